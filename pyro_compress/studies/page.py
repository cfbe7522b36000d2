"""The page of a comparison: tables, pictures, uncertainty, ranking, configurations of a results folder of `compare`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from pyro_compress.atomic import write_atomically
from pyro_compress.foreign import printable
from pyro_compress.inspection import drawing, page
from pyro_compress.inspection.page import Picture
from pyro_compress.studies import figures as study_plots
from pyro_compress.studies import ranking, tables
from pyro_compress.studies.results import STUDY_COPY, read_document, read_results
from pyro_compress.studies.tables import Row
from pyro_compress.training.history import read_history

MEASURES = (
    ("NLL (nats)", "nll_nats", 3),
    ("ECE", "ece", 4),
    ("Brier", "brier", 4),
    ("out-of-domain AUROC", "ood_auroc", 3),
)
"""Heading, field of a row, decimals."""


def write_comparison(results: Path, out: Path) -> None:
    """Write the page of a results folder.

    Raises:
        ValueError: no results folder, or no folder for the page.
        OSError: the file cannot be written.
    """
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is no folder; make it first, or choose another --out")
    rows = read_results(results)
    if not rows:
        raise ValueError(f"{results} holds no rows yet; run pyro-compress compare first")
    document = read_document(results)
    with drawing.style():
        write_atomically(out, html(rows, document, results).encode())


def html(rows: list[Row], document: dict[str, Any], results: Path) -> str:
    """The page."""
    fits = {row.config_hash: row for row in rows}
    near = smallest(rows)
    facts = [
        *near,
        ("fits", str(len(fits))),
        ("seeds", ", ".join(map(str, sorted({row.seed for row in rows})))),
        ("methods", str(len({row.label for row in rows if not row.ensemble}))),
        ("training in all", _duration(sum(row.train_seconds for row in fits.values()))),
    ]
    sections = [page.facts(facts), page.note(f"{NEAREST if near else ''}{tables.READING}")]
    for (data, network), members in tables.groups(rows).items():
        sized = sizes(members)
        sections += [
            page.section(f"{data}, {network}: test accuracy (%) by sparsity", page.table(tables.table(members))),
            page.section("Bytes of a file by sparsity", page.table(sized) + page.note(SIZES)) if sized else "",
            page.section("Pictures", page.gallery(_pictures(members, results))),
            page.section("Uncertainty", page.table(uncertainty(members)) + page.note(UNCERTAINTY)),
        ]
    if ranked := ranking.read_ranking(results):
        sections.append(page.section("Posteriors by ELPD", page.table(ranking.lines(ranked)) + page.note(RANKING)))
    if failures := document.get("failures"):
        text = "".join(f"<dt>{escape(name)}</dt><dd>{escape(reason)}</dd>" for name, reason in failures.items())
        sections.append(page.section("Fits that failed", f"<dl>{text}</dl>"))
    sections.append(page.section("To repeat it", _repeat(results, document)))
    return page.document(f"Comparison: {results.resolve().name}", "pyro-compress, one comparison", sections)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


UNCERTAINTY = (
    "At the smallest and the largest sparsity of the table. Lower is better but for the AUROC: how well predictive "
    "entropy tells the other data set from this one, 0.5 being chance."
)
RANKING = (
    "PSIS-LOO of the same training rows for every posterior of a data set and seed. A difference of a few standard "
    "errors counts; where many rows have k above 0.7 the estimate itself is not to be trusted."
)


SIZES = (
    "Mean ± sample standard deviation over the seeds. The posterior mean, its steps a quarter of the root mean square "
    "of what a layer keeps; no search: compress finds coarser steps and smaller files. Accuracies are of the weights "
    "before they are rounded."
)
NEAREST = "Bytes: the smallest file whose mean accuracy is within a point of the best. "
NEAR = 0.01
"""Accuracy that the smallest file of the first tile may lack of the best."""


def smallest(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """A tile per data set and network: the smallest file whose mean accuracy is within a point of the best."""
    found, groups = [], tables.groups(list(rows))
    for (data, network), members in groups.items():
        cells: dict[tuple[str, float], list[Row]] = {}
        for row in members:
            if row.file_bytes is not None:
                cells.setdefault((row.label, row.sparsity), []).append(row)
        accuracies = {key: statistics.mean(row.accuracy for row in own) for key, own in cells.items()}
        near = [key for key, accuracy in accuracies.items() if accuracy >= max(accuracies.values()) - NEAR]
        if near:
            size, (label, sparsity) = min((_mean_bytes(cells[key]), key) for key in near)
            where = f"{data}, {network}: " if len(groups) > 1 else ""
            found.append((f"bytes: {where}{label}, {100 * sparsity:g} % removed", f"{size:,.0f}"))
    return found


def _mean_bytes(rows: Sequence[Row]) -> float:
    return statistics.mean(row.file_bytes or 0 for row in rows)


def sizes(rows: Sequence[Row]) -> list[list[str]]:
    """Bytes of files: methods down, sparsities across; nothing where no row has any."""
    known = [row for row in rows if row.file_bytes is not None]
    if not known:
        return []
    columns = sorted({row.sparsity for row in known})
    lines = [["method", *(f"{100 * sparsity:g} %" for sparsity in columns)]]
    for label in study_plots.labels_of(known):
        at = [[float(r.file_bytes or 0) for r in known if (r.label, r.sparsity) == (label, s)] for s in columns]
        lines.append([label, *(tables.spread(values, 0) if values else "" for values in at)])
    return lines


def uncertainty(rows: Sequence[Row]) -> list[list[str]]:
    """NLL, calibration and out-of-domain detection at the ends of the range of sparsities, over the seeds."""
    ends = sorted({row.sparsity for row in rows})
    ends = [ends[0], ends[-1]] if len(ends) > 1 else ends
    lines = [["method", "removed", *(title for title, _, _ in MEASURES)]]
    for label in dict.fromkeys(row.label for row in rows):
        for sparsity in ends:
            own = [row for row in rows if row.label == label and row.sparsity == sparsity]
            if own:
                cells = [_spread([getattr(row, field) for row in own], digits) for _, field, digits in MEASURES]
                lines.append([label, f"{100 * sparsity:g} %", *cells])
    return lines


def _spread(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return tables.spread(known, digits) if known else ""


def _pictures(rows: Sequence[Row], results: Path) -> Iterator[Picture]:
    """Those the rows and run folders have the data for."""
    means = [row for row in rows if not row.ensemble]
    yield _drawn(
        "Error against sparsity",
        "Mean over the seeds; the band is their range.",
        lambda ax: study_plots.error_against_sparsity(ax, means),
    )
    if files := _files(means):
        yield _drawn(
            "Error against bytes",
            "Mean over the seeds, bars a standard deviation; one point per sparsity.",
            lambda ax: study_plots.error_against_bytes(ax, files, joined=True),
        )
    sparsity = statistics.median_low(sorted({row.sparsity for row in means}))
    yield _drawn(
        "Error against time",
        "Mean over the seeds, bars from least to most; minutes on the machine that ran them.",
        lambda ax: study_plots.error_against_time(ax, means, sparsity),
    )
    if curves := _curves(means, results):
        yield _drawn(
            "Training",
            "Validation error before pruning: mean over the seeds, their range as a band.",
            lambda ax: drawing.log_axes(study_plots.training_curves(ax, curves, "validation error (%)"), "y"),
        )


def _files(rows: Sequence[Row]) -> dict[str, list[list[tuple[float, float]]]]:
    """Label -> (bytes, error in %) over the seeds, for each sparsity."""
    files: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for row in rows:
        if row.file_bytes is not None:
            group = files.setdefault(row.label, {}).setdefault(row.sparsity, [])
            group.append((float(row.file_bytes), 100 * (1 - row.accuracy)))
    return {label: [*groups.values()] for label, groups in files.items()}


def _drawn(title: str, reading: str, draw: Callable[[Axes], Axes]) -> Picture:
    figure, (ax,) = study_plots.new_figure()
    if len(draw(ax).get_legend_handles_labels()[1]) > study_plots.FEW:
        study_plots.name_once(figure)
    return Picture(title, reading, drawing.svg(figure))


def _curves(rows: Sequence[Row], results: Path) -> dict[str, list[list[float]]]:
    """Label -> validation error in percent by epoch, from the run folder of every seed."""
    curves: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        own = curves.setdefault(row.label, {})
        if row.config_hash not in own and (epochs := read_history(results / "runs" / row.config_hash)):
            accuracies = [epoch["validation_accuracy"] for epoch in epochs]
            own[row.config_hash] = [math.nan if one is None else 100 * (1 - one) for one in accuracies]
    return {label: [*seeds.values()] for label, seeds in curves.items() if seeds}


def _repeat(results: Path, document: dict[str, Any]) -> str:
    study = results / STUDY_COPY
    parts = [f"<pre>pyro-compress compare {STUDY_COPY} --out {escape(results.resolve().name)}</pre>"]
    if study.is_file():
        parts.append(f"<pre>{escape(printable(study.read_text(errors='replace')))}</pre>")
    run = next(iter(document["runs"].values()))
    machine = ", ".join(f"{key} {value}" for key, value in (run["versions"] | run["machine"]).items())
    parts.append(page.note(f"{machine}. Resolved configurations of every fit: study.json beside the results."))
    return "".join(parts)
