"""What the command line prints: progress on standard error, results for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_compress.advance import Heard, hearing
from pyro_compress.cli.commands import echo, hushed, tell, wrapped
from pyro_compress.scores import ratio_text

if TYPE_CHECKING:
    from pyro_compress.compression.pipeline import Report
    from pyro_compress.deploy.export import Exported
    from pyro_compress.deploy.measured import Bench
    from pyro_compress.inspection.restarts import Agreement
    from pyro_compress.inspection.summary import Inspection
    from pyro_compress.runs.slurm import Submitted
    from pyro_compress.scores import Quality
    from pyro_compress.studies.results import Outcome
    from pyro_compress.training.display import ProgressBar
    from pyro_compress.tuning.outcome import Outcome as Searched
    from pyro_compress.tuning.reported import OnTrial, Reported


def epoch_printer() -> ProgressBar:
    """A progress bar on a terminal, one line per epoch elsewhere; both on standard error."""
    from pyro_compress.training.display import ProgressBar

    return ProgressBar(lambda line: echo(line, err=True))


@contextmanager
def progress_shown(ticking: bool = True) -> Iterator[Heard]:
    """How far the work inside has come, as a bar that does not stay; on a terminal only.

    Args:
        ticking: whether its times run on between two tellings, which takes a thread.
    """
    if hushed() or not sys.stderr.isatty():
        yield lambda what, done, total, *texts: None
        return
    from pyro_compress.training.display import terminal_bar

    with terminal_bar(transient=True, ticking=ticking) as show, hearing(show):
        yield show


def report_text(report: Report, path: Path) -> str:
    """The report for people."""
    rows = [("", *list(report.test_after.cells)[:3])]
    for split in ("validation", "test"):
        for when in ("before", "after"):
            scores = getattr(report, f"{split}_{when}")
            rows.append((f"{split} {when}", *list(scores.cells.values())[:3]))
    wide = max(20, *(len(cell) + 2 for cell in rows[0]))
    lines = ["".join(f"{cell:>{wide}}" if i else f"{cell:<20}" for i, cell in enumerate(row)) for row in rows]
    kept, total = report.parameters_kept, report.parameters_total
    nothing = any("at chance level" in text for text in report.warnings)
    smaller = "" if nothing else f"; {ratio_text(report.ratio)}"
    lines += [
        "",
        removed_text(report),
        *([f"rounding            {grid}"] if (grid := grid_text(report)) else []),
        *([f"fine-tuning         {finetuning}"] if (finetuning := finetuning_text(report)) else []),
        f"parameters          {kept:,} of {total:,} kept ({100 * kept / total:.2f} %)",
        *([f"units in the file   {units}"] if (units := units_text(report)) else []),
        *([f"units that stay     {stuck}"] if (stuck := stuck_text(report)) else []),
        f"bits per kept value {report.bits_per_kept_weight:.2f}",
        *([f"as fixed point      {fixed}"] if (fixed := fixed_point_text(report)) and not nothing else []),
        "",
        *(f"  {name:<18}{size:>10,} B" for name, size in report.sections_bytes.items()),
        "",
        f"{path}: {report.file_bytes:,} bytes; dense float32 {report.dense_bytes:,} bytes{smaller}",
    ]
    return "\n".join(lines)


def units_text(report: Report) -> str:
    """Units of every layer, before and now; empty where the weights belong to no layer."""
    before, now = ("-".join(map(str, units)) for units in (report.units_before, report.units_kept))
    return f"{before} -> {now}" if before else ""


def stuck_text(report: Report) -> str:
    """Why units without weights are still there."""
    if not report.units_stuck:
        return ""
    return f"{sum(report.units_stuck.values())} without weights: their channels meet {', '.join(report.units_stuck)}"


def removed_text(report: Report) -> str:
    """What took weights out."""
    share = f"{100 * report.sparsity:.1f} % of the weights"
    if report.rounding:
        return f"rounding            {report.rounding}, {share} rounded to zero"
    return f"criterion           {report.criterion}, {share} removed by it"


def grid_text(report: Report) -> str:
    """The grid on which the weights lie, as far as a search or options chose it."""
    step = [] if report.relative_step is None else [f"relative step {report.relative_step:.3g}"]
    return ", ".join([*step, *([f"λ {report.lam:.3g}"] if report.lam else [])])


def fixed_point_text(report: Report) -> str:
    """What the posterior's variances alone would save, if there is a posterior and anything is left."""
    if min(report.fixed_point_bits, default=32) >= 32 or report.fixed_point_ratio is None:
        return ""
    bits = "-".join(map(str, report.fixed_point_bits))
    return f"{bits} bits a weight by the posterior's variances, {report.fixed_point_ratio:.1f}× (computed, no file)"


def finetuning_text(report: Report) -> str:
    """What fine-tuning was used, if any."""
    if not (found := report.finetuned).epochs:
        return ""
    teacher = f", teacher {found.teacher}" if found.teacher else ""
    augmented = f", images changed by {found.augment}" if found.augment else ""
    svi = " of SVI" if found.svi else ""
    return f"{found.epochs} epochs{svi} at λ {found.lam:.3g}{teacher}{augmented}"


def outcome_line(outcome: Outcome, done: int, total: int) -> None:
    """One fit of a study, and how many are done, on standard error."""
    tell(f"[{done:>{len(str(total))}}/{total}] {outcome_text(outcome)}", err=True)


def outcome_text(outcome: Outcome) -> str:
    """One fit of a study, on one line."""
    planned = outcome.planned
    method, config = planned.method, planned.config
    head = f"{config.data} {planned.network} {method.name} {method.variant} seed {config.seed}"
    cells = [f"{100 * r.sparsity:g} %: {100 * r.accuracy:.2f}" for r in outcome.rows if not r.ensemble]
    return f"{' '.join(head.split())}: {outcome.failure or ', '.join(cells)}"


def submitted_text(handed: Submitted, what: str, afterwards: str) -> str:
    """Jobs that were handed to Slurm, and what to type when they have ended."""
    numbers = " to ".join(dict.fromkeys([handed.numbers[0], handed.numbers[-1]]))
    return (
        f"{len(handed.numbers)} {what} handed over, as jobs {numbers}\n"
        f"what the first one says: {handed.log}\n"
        f"when they have ended: pyro-compress {afterwards}"
    )


def trial_line(trial: Reported) -> str:
    """One trial of a search, in columns, and how the search stands."""
    count = f"[{trial.done:>{len(str(trial.wanted))}}/{trial.wanted}]" if trial.wanted else f"[{trial.done:>4}]"
    found = trial.failure
    if trial.found:
        found = f"validation error {100 * trial.found[0]:6.2f} %, {trial.found[1]:>9,} bytes"
    head = f"{count} trial {trial.trial:>3} at {trial.epochs} epochs: {found} ({trial.seconds:.1f} s)"
    return f"{head}; {search_texts(trial)[0]}"


def search_texts(trial: Reported) -> tuple[str, ...]:
    """What is best so far and how long it will take, the longest first."""
    from pyro_compress.training.display import duration

    short = (
        f"best {100 * trial.best[0]:.2f} %, {trial.best[1]:,} bytes" if trial.best else "nothing meets the bound yet"
    )
    left = f"{short}; about {duration(trial.seconds_left)} left" if trial.seconds_left else short
    return left, short


@contextmanager
def trials_shown() -> Iterator[OnTrial]:
    """A bar of the trials on a terminal, a line of each elsewhere; both on standard error."""
    if hushed():
        yield lambda trial: None
    elif not sys.stderr.isatty():
        yield lambda trial: echo(trial_line(trial), err=True)
    else:
        from pyro_compress.training.display import terminal_bar

        with terminal_bar() as show:
            yield lambda trial: show(
                f"{trial.epochs} epochs", trial.done, trial.wanted or trial.done, *search_texts(trial)
            )


def searched_text(outcome: Searched) -> str:
    """The outcome of a search, for people."""
    rows = [("trial", "bytes", "validation", "test", "values", "")]
    for m in outcome.front:
        errors = (f"{100 * m.validation_error:.2f} %", f"{100 * m.test_error:.2f} %")
        chosen = "<- best.toml" if m is outcome.best else ""
        rows.append((str(m.trial), f"{m.bytes:,}", *errors, f"{m.parameters:,}", chosen))
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in outcome.importances.items())
    failed = f", {outcome.failed} of them without a file" if outcome.failed else ""
    return "\n".join(
        [
            *table(rows),
            "",
            f"{outcome.finished} trials{failed}, {outcome.minutes:.1f} minutes of computing; "
            f"the front's files, table and picture: {outcome.out}",
            *([wrapped(f"importances: {shares}")] if shares else []),
            *([] if outcome.best else ["nothing meets the bound; allow more trials, or another bound"]),
        ]
    )


def export_text(exported: Exported) -> str:
    """What was exported, for people."""
    measure, before = next(iter(exported.before.cells.items()))
    outputs = "probabilities" if measure == "accuracy" else "predictions"
    return "\n".join(
        [
            f"{exported.path}: {exported.bytes:,} bytes, loaded again, compared on {exported.examples:,} test inputs",
            f"largest difference  {exported.difference:.2g} of outputs up to {exported.largest_output:.3g}; "
            f"{exported.probability_difference:.2g} of {outputs}",
            f"{measure:<20}{before} decoded, {exported.after.cells[measure]} exported",
            *exported.notes,
        ]
    )


BENCH_LEGEND = (
    "µs per call: median (95th percentile); ×: against the dense network in torch, or else in ONNX Runtime;",
    "ex/s: examples per second at the largest batch; MiB: peak of a process, and what came after its import;",
    "the last column: what the engine's own outputs score on examples of the test split.",
)


def bench_text(results: Sequence[Bench]) -> str:
    """Tables of latencies, and what they mean."""
    from pyro_compress.deploy.measured import findings

    parts = []
    for result in results:
        density = 100 * result.density
        parts.append(f"{result.file}: {result.file_bytes:,} bytes, {density:.1f} % of its weights non-zero")
        scored = [f"{result.measure}: on {result.examples:,} examples of the test split."] * bool(result.measure)
        parts += [*_bench_table(result), "", *scored, *findings(result), *result.missing, ""]
    return "\n".join([*parts, *BENCH_LEGEND])


def _bench_table(result: Bench) -> list[str]:
    batches, scored = [f"batch {cell.batch}" for cell in result.rows[0].cells], bool(result.measure)
    rows = [["network", "engine", "threads", "bytes", "MiB", *batches, "ex/s", *[result.measure] * scored]]
    for row in result.rows:
        memory = "" if row.peak_mib is None else f"{row.peak_mib:.0f} +{row.added_mib:.1f}"
        cells = []
        for cell in row.cells:
            gain = result.gain(row, cell.batch)
            times = "" if gain is None else f" {gain:.1f}×"
            cells.append(f"{cell.median_us:,.1f} ({cell.p95_us:,.1f}){times}")
        rate = f"{row.cells[-1].per_second:,.0f}"
        rows.append(
            [row.variant, row.engine, str(row.threads), f"{row.bytes:,}", memory, *cells, rate, *[row.score] * scored]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [str.ljust, str.ljust, *[str.rjust] * (len(widths) - 2)]
    return ["  ".join(p(cell, width) for p, cell, width in zip(pad, row, widths, strict=True)) for row in rows]


def inspection_text(inspection: Inspection) -> str:
    """An inspection for people: the table, the ELBO trace, the readings."""
    from pyro_compress.inspection.readings import layer_rows, readings

    config, (criterion, threshold) = inspection.run.config, inspection.criterion
    lines = [
        f"{inspection.run.path}: {config.prior} posterior of {config.net} on {inspection.run.called}, "
        f"{inspection.training_rows:,} training rows",
        "",
        *table(layer_rows(inspection.layers)),
        f"kept: {criterion} above {threshold:.3g}; units above: what is left then, a rule of thumb",
        *["±: standard error of a KL that is a mean over draws"] * any(one.kl_se_nats for one in inspection.layers),
        *["units in file: what `compress` left"] * any(layer.in_file for layer in inspection.layers),
        "",
    ]
    if losses := [e["negative_elbo_nats"] for e in inspection.history if e["negative_elbo_nats"] is not None]:
        shown = losses[: -1 : max(1, len(losses) // 7)]
        lines += [f"-ELBO, from the first to the last epoch: {' '.join(f'{v:,.0f}' for v in (*shown, losses[-1]))}", ""]
    for name, scores in (("posterior mean", inspection.test_scores), ("averaged over draws", _of_draws(inspection))):
        if scores is not None:
            measure, cell = next(iter(scores.cells.items()))
            lines.append(f"test, {name:<20} {measure} {cell}, {-scores.nll_nats:.4f} nats per row")
    paragraphs = [wrapped(f"{topic}: {text}") for topic, text in readings(inspection).items()]
    return "\n".join([*lines, "", *paragraphs])


def _of_draws(inspection: Inspection) -> Quality | None:
    return inspection.sampled.test_scores if inspection.sampled else None


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines: the first column to the left, the others to the right."""
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(size) if i else cell.ljust(size) for i, (cell, size) in enumerate(zip(row, sizes, strict=True))
        )
        for row in rows
    ]


def restarts_text(found: list[Agreement]) -> str:
    """A comparison of restarts for people."""
    from pyro_compress.inspection.readings import restarts

    rows = [("quantity", "items", "median r-hat", "above 1.05", "median ESS", "draws")]
    for a in found:
        numbers = (f"{a.median_rhat:.2f}", f"{100 * a.share_above:.0f} %", f"{a.median_ess:.0f}", f"{a.draws}")
        rows.append((a.quantity, f"{a.items}", *numbers))
    return "\n".join([*table(rows), "", wrapped(restarts(found))])
