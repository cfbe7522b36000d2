"""How a running fit is shown: a bar on a terminal or in a notebook, a line per epoch elsewhere."""

from __future__ import annotations

import html
import importlib
import sys
from collections.abc import Callable
from typing import Any

from pyro_compress.training.callbacks import Callback
from pyro_compress.training.history import Epoch


def _written(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class ProgressBar(Callback):
    """Shows a fit and a search while they run, on standard error or in a notebook's cell.

    Args:
        write: takes a line per epoch, where there is neither a terminal nor a notebook.
    """

    def __init__(self, write: Callable[[str], object] = _written):
        self.write = write
        self.bar: Any = None
        self.update: Callable[[int, int, str], object] | None = None

    def on_begin(self, what: str) -> None:
        """Draw the bar where one can be drawn."""
        if (cell := _notebook_cell()) is not None:
            self.update = cell
        elif sys.stderr.isatty():
            self.bar, self.update = _terminal_bar(what)
            self.bar.start()

    def on_epoch(self, epoch: Epoch) -> None:
        """Move it, or write a line."""
        if self.update is None:
            self.write(epoch_line(epoch))
        else:
            self.update(epoch.epoch, epoch.epochs, bar_text(epoch))

    def on_search(self, done: int, total: int) -> None:
        """Move it."""
        if self.update is not None:
            self.update(done, total, "searching on the validation split")

    def on_end(self, what: str) -> None:
        """Leave it as it is."""
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.update = None

    def __enter__(self) -> ProgressBar:
        """As a context, where no one else says what begins."""
        self.on_begin("fit")
        return self

    def __exit__(self, *error: object) -> None:
        """It has ended."""
        self.on_end("fit")


def _terminal_bar(what: str) -> tuple[Any, Callable[[int, int, str], object]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(what, total=None)
    return bar, lambda done, total, text: bar.update(task, total=total, completed=done, description=text)


def _notebook_cell() -> Callable[[int, int, str], object] | None:
    """What draws a bar into the running cell; None outside of notebooks. HTML alone: no widgets have to be there."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or type(shell).__name__ == "TerminalInteractiveShell":
        return None
    page = importlib.import_module("IPython.display")
    handle = page.display(page.HTML(""), display_id=True)

    def update(done: int, total: int, text: str) -> None:
        bar = f'<progress value="{done}" max="{total}"></progress> {done}/{total} {html.escape(text)}'
        handle.update(page.HTML(bar))

    return update


def bar_text(epoch: Epoch) -> str:
    """What stands beside the progress bar: short enough for 80 columns."""
    kl = "" if epoch.kl_nats is None else f", KL {epoch.kl_nats:,.0f}"
    return f"{epoch.phase}, validation {epoch.validation}{kl}"


def epoch_line(epoch: Epoch) -> str:
    """One epoch in words."""
    parts = [f"epoch {epoch.epoch:3d} {epoch.phase:5s}"]
    if epoch.negative_elbo_nats is not None:
        parts.append(f"-ELBO {epoch.negative_elbo_nats:,.0f} nats (KL {epoch.kl_nats:,.0f} × {epoch.kl_weight:.2f})")
    parts.append(f"validation {epoch.validation}")
    left = [f"units left: {'-'.join(map(str, epoch.widths))}"] if epoch.widths else []
    return ", ".join([*parts, f"{epoch.seconds:.0f} s", *left])
