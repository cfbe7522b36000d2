"""What the command line prints: progress on standard error, results for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pyro_compress.compression.pipeline import Report
    from pyro_compress.training import Epoch
    from pyro_compress.types import Scores


@contextmanager
def epoch_printer() -> Iterator[Callable[[Epoch], None]]:
    """A progress bar on a terminal, one line per epoch elsewhere; both on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if not sys.stderr.isatty():
        yield lambda epoch: click.echo(epoch_line(epoch), err=True)
        return
    columns = (BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("fitting", total=None)
        yield lambda epoch: progress.update(
            task, total=epoch.epochs, completed=epoch.epoch, description=bar_text(epoch)
        )


def bar_text(epoch: Epoch) -> str:
    """What stands beside the progress bar: short enough for 80 columns."""
    kl = "" if epoch.kl_nats is None else f", KL {epoch.kl_nats:,.0f}"
    return f"{epoch.phase}, validation {100 * epoch.validation_accuracy:.2f} %{kl}"


def epoch_line(epoch: Epoch) -> str:
    """One epoch in words."""
    parts = [f"epoch {epoch.epoch:3d} {epoch.phase:5s}"]
    if epoch.negative_elbo_nats is not None:
        parts.append(f"-ELBO {epoch.negative_elbo_nats:,.0f} nats (KL {epoch.kl_nats:,.0f} × {epoch.kl_weight:.2f})")
    parts.append(f"validation {100 * epoch.validation_accuracy:.2f} %, {epoch.validation_nll_nats:.4f} nats")
    return ", ".join([*parts, f"{epoch.seconds:.0f} s"])


@contextmanager
def trial_printer(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of the search, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("searching on the validation split", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def report_text(report: Report, path: Path) -> str:
    """The report for people."""
    rows = [("", "accuracy", "NLL (nats)", "ECE")]
    for split in ("validation", "test"):
        for when in ("before", "after"):
            scores = getattr(report, f"{split}_{when}")
            rows.append(
                (
                    f"{split} {when}",
                    f"{100 * scores.accuracy:.2f} %",
                    f"{scores.nll_nats:.4f}",
                    f"{scores.ece:.4f}",
                )
            )
    lines = ["".join(f"{cell:>20}" if i else f"{cell:<20}" for i, cell in enumerate(row)) for row in rows]
    kept, total = report.parameters_kept, report.parameters_total
    lines += [
        "",
        f"criterion           {report.criterion}, {100 * report.sparsity:.1f} % of the weights removed by it",
        *([f"fine-tuning         {finetuning}"] if (finetuning := finetuning_text(report)) else []),
        f"parameters          {kept:,} of {total:,} kept ({100 * kept / total:.2f} %)",
        f"units               {'-'.join(map(str, report.units_before))} -> {'-'.join(map(str, report.units_kept))}",
        f"bits per kept weight {report.bits_per_kept_weight:.2f}",
        "",
        *(f"  {name:<18}{size:>10,} B" for name, size in report.sections_bytes.items()),
        "",
        f"{path}: {report.file_bytes:,} bytes; dense float32 {report.dense_bytes:,} bytes; {report.ratio:.1f}× smaller",
    ]
    return "\n".join(lines)


def finetuning_text(report: Report) -> str:
    """What fine-tuning was used, if any."""
    if not report.finetune_epochs:
        return ""
    teacher = f", teacher {report.teacher}" if report.teacher else ""
    return f"{report.finetune_epochs} epochs at rate {report.finetune_rate:.3g}{teacher}"


@contextmanager
def tune_printer(quiet: bool) -> Iterator[Callable[[int, int, int], None]]:
    """A progress bar of fine-tuning, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda epoch, epochs, kept: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("fine-tuning", total=None)
        yield lambda epoch, epochs, kept: progress.update(
            task, completed=epoch, total=epochs, description=f"fine-tuning, {kept:,} values left"
        )


def scores_text(target: Path, scores: Scores, size: int) -> str:
    """Scores for people."""
    return (
        f"{target}: accuracy {100 * scores.accuracy:.2f} %, NLL {scores.nll_nats:.4f} nats, ECE {scores.ece:.4f}, "
        f"Brier {scores.brier:.4f} on {size:,} examples"
    )
