"""How a running fit is shown: a bar on a terminal or in a notebook, a line per epoch elsewhere."""

from __future__ import annotations

import html
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyro_compress.advance import Heard, advanced, hearing
from pyro_compress.training.callbacks import Callback
from pyro_compress.training.history import Epoch

SEARCH = "searching on the validation split"
AVERAGED = 86_400.0
"""Seconds whose parts say how long the rest will take: one part may take long."""
WIDE = 60
"""Columns of a terminal from which on there is room for the bar itself."""


def _written(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class ProgressBar(Callback):
    """Shows a fit, a search and whatever tells how far it has come, on standard error or in a notebook's cell.

    Args:
        write: takes a line per epoch, where there is neither a terminal nor a notebook, and the last one.
    """

    def __init__(self, write: Callable[[str], object] = _written):
        self.write = write
        self.update: Heard | None = None
        self.best: Epoch | None = None
        self.last: Epoch | None = None
        self.running = ExitStack()

    def on_begin(self, what: str) -> None:
        """Draw the bar where one can be drawn."""
        if (cell := _notebook_cell()) is not None:
            self.update = cell
        elif sys.stderr.isatty():
            self.update = self.running.enter_context(terminal_bar())
        if self.update is not None:
            self.running.enter_context(hearing(self.update))

    def on_epoch(self, epoch: Epoch) -> None:
        """Move it, or write a line."""
        self.last = epoch
        self.best = epoch if self.best is None else min(self.best, epoch, key=_rank)
        if self.update is None:
            self.write(epoch_line(epoch))
        else:
            self.update(f"fit, {epoch.phase}", epoch.epoch, epoch.epochs, *bar_texts(epoch))

    def on_search(self, done: int, total: int) -> None:
        """Move it."""
        advanced(SEARCH, done, total)

    def on_end(self, what: str) -> None:
        """Leave it as it is, and say what a fit came to."""
        self.running.close()
        self.update = None
        if self.last is not None and self.best is not None:
            self.write(last_line(self.last, self.best))
        self.last = self.best = None

    def __enter__(self) -> ProgressBar:
        """As a context, where no one else says what begins."""
        self.on_begin("fit")
        return self

    def __exit__(self, *error: object) -> None:
        """It has ended."""
        self.on_end("fit")


def _rank(epoch: Epoch) -> tuple[float, float]:
    """The smaller, the better on validation."""
    accuracy, error = epoch.validation_accuracy, epoch.validation_rmse or 0.0
    return error if accuracy is None else -accuracy, epoch.validation_nll_nats


@contextmanager
def terminal_bar(console: Any = None, transient: bool = False, ticking: bool = True) -> Iterator[Heard]:
    """A bar that says what is done, how much of it, and how long it will take; only what fits into the line is shown.

    Args:
        console: of `rich`; None: standard error.
        transient: nothing of it stays.
        ticking: whether its times run on between two updates, which takes a thread.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(stderr=True)
    times = TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    wide: list[Any] = [BarColumn(12)] if console.width >= WIDE else []
    text = TextColumn("{task.description}", markup=False)
    columns = (*wide, MofNCompleteColumn(), times, text)
    with Progress(
        *columns, console=console, transient=transient, auto_refresh=ticking, speed_estimate_period=AVERAGED
    ) as bar:
        task, shown = bar.add_task("", total=None), ""

        def update(what: str, done: int, total: int, *texts: str) -> None:
            nonlocal shown
            room = console.width - 13 * bool(wide) - 2 * len(f"{total}") - len("/ 0:00:00 ")
            text = next((one for one in texts or (what,) if len(one) <= room), (texts or (what,))[-1][: max(room, 0)])
            if what == shown:
                bar.update(task, total=total, completed=done, description=text, refresh=not ticking)
            else:  # its pace begins anew
                bar.reset(task, total=total, completed=done, description=text)
                shown = what

        yield update


def _notebook_cell() -> Heard | None:
    """What draws a bar into the running cell; None outside of notebooks. HTML alone: no widgets have to be there."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or type(shell).__name__ == "TerminalInteractiveShell":
        return None
    page = importlib.import_module("IPython.display")
    handle = page.display(page.HTML(""), display_id=True)

    def update(what: str, done: int, total: int, *texts: str) -> None:
        bar = f'<progress value="{done}" max="{total}"></progress> {done}/{total} {html.escape((*texts, what)[0])}'
        handle.update(page.HTML(bar))

    return update


def bar_texts(epoch: Epoch) -> tuple[str, ...]:
    """What stands beside the progress bar, the longest first."""
    short = epoch.validation
    kl = () if epoch.kl_nats is None else (f"{epoch.phase}, validation {short}, KL {epoch.kl_nats:,.0f}",)
    return *kl, f"{epoch.phase}, validation {short}", f"validation {short}", short


def epoch_line(epoch: Epoch) -> str:
    """One epoch in words, in columns."""
    elbo = ""
    if epoch.negative_elbo_nats is not None:
        elbo = f"-ELBO {epoch.negative_elbo_nats:>11,.0f} nats (KL {epoch.kl_nats:>11,.0f} × {epoch.kl_weight:.2f})"
    units = f"units left: {'-'.join(map(str, epoch.widths))}" if epoch.widths else ""
    more = epoch.epochs - epoch.epoch
    left = f"about {duration(more * epoch.seconds / epoch.epoch)} left" if more > 0 else ""
    head = f"epoch {epoch.epoch:3d} {epoch.phase:5s}  validation {epoch.validation:>22}  {epoch.seconds:5.0f} s"
    return "  ".join(filter(None, [head, elbo, units, left]))


def last_line(last: Epoch, best: Epoch) -> str:
    """What a fit came to."""
    spent = f"{last.epoch} epoch{'s' * (last.epoch != 1)} in {duration(last.seconds)}"
    return f"{spent}; best on validation: {best.validation}, in epoch {best.epoch}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
