"""Figures of a study: one function each, data in, Axes out. Needs matplotlib (`pip install 'pyro-compress[plots]'`).

The looks of methods are those of `pyro_compress.inspection.palette`. A single seed has no bar and no band.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pyro_compress.atomic import write_atomically
from pyro_compress.inspection.drawing import log_axes
from pyro_compress.inspection.palette import GREY, METHODS, looks
from pyro_compress.studies.tables import Row

Point = tuple[float, float]
BAND: Any = {"alpha": 0.18, "linewidth": 0}
BIG: Any = {"markersize": 12, "markeredgewidth": 2, "linestyle": ""}
FEW = 8
"""Lines whose names find room inside the axes; those of more go below (`name_once`)."""


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Names of the methods, each once, in the rows' order."""
    return list(dict.fromkeys(row.label for row in rows))


def name_once(figure: Figure) -> None:
    """One legend below all panels, which share `labels` then, instead of one in each; the figure grows by it."""
    named: dict[str, Any] = {}
    for ax in figure.axes:
        pairs = [*zip(*ax.get_legend_handles_labels(), strict=True)]
        pairs.sort(key=lambda pair: not isinstance(pair[0], ErrorbarContainer))  # what was measured comes first
        named |= {label: handle for handle, label in pairs}
        if legend := ax.get_legend():
            legend.remove()
    widest, room = max(map(len, named)), figure.get_figwidth()
    columns = max(1, min(len(named), int(room / (0.45 + 0.063 * widest))))
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(named) // columns))
    where = {"loc": "outside lower center", "ncols": columns}
    figure.legend([*named.values()], [*named], frameon=False, fontsize="small", **where)


def new_figure(panels: int = 1, width: float = 5.6, height: float = 4.0, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, or in several rows; width and height are a panel's, in inches."""
    columns = -(-panels // rows)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes[:panels])


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem.png` and `stem.svg`.

    Raises:
        OSError: the folder cannot be written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context({"svg.hashsalt": "pyro-compress", "svg.fonttype": "none"}):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            data, path = io.BytesIO(), stem.with_suffix(f".{kind}")
            figure.savefig(data, format=kind, dpi=150, metadata=metadata)
            write_atomically(path, data.getvalue())
            written.append(path)
    return written


def scale_mixture_prior(ax: Axes, pi: float, sigma1: float, sigma2: float, reach: float = 0.05) -> Axes:
    """Density of pi N(0, sigma1²) + (1 - pi) N(0, sigma2²) and of its parts (Blundell et al. 2015, eq. 7)."""
    x = np.linspace(-reach, reach, 2001)
    parts = [
        share * np.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        for share, sigma in ((pi, sigma1), (1 - pi, sigma2))
    ]
    labels = (f"{pi:g} · N(0, {sigma1:.3g}²)", f"{1 - pi:g} · N(0, {sigma2:.3g}²)", "mixture")
    colours = (METHODS["gaussian"].colour, GREY, METHODS["Bayes by Backprop"].colour)
    for i, (density, label) in enumerate(zip((*parts, sum(parts)), labels, strict=True)):
        width = 2.6 if label == "mixture" else 1.4
        ax.plot(x, density, label=label, color=colours[i], linestyle=("--", ":", "-")[i], linewidth=width)
    top = max(density.max() for density in parts)
    ax.set(yscale="log", ylim=(parts[0].max() / 10, 3 * top), xlabel="weight", ylabel="density")
    ax.legend(frameon=False)
    return ax


def training_curves(ax: Axes, curves: Mapping[str, Sequence[Sequence[float]]], what: str) -> Axes:
    """One value per epoch: the mean over the seeds of a method, their range as a band.

    Args:
        ax: where to draw.
        curves: label -> a curve per seed.
        what: the value, with its unit.
    """
    found = looks([*curves])
    for label, seeds in curves.items():
        epochs = max(map(len, seeds))
        values = [[curve[i] for curve in seeds if i < len(curve)] for i in range(epochs)]
        x, every = range(1, epochs + 1), max(epochs // 8, 1)
        ax.plot(x, [statistics.mean(seen) for seen in values], label=label, markevery=every, **found[label].line())
        if len(seeds) > 1:
            ax.fill_between(x, [*map(min, values)], [*map(max, values)], color=found[label].colour, **BAND)
    ax.set(xlabel="epoch", ylabel=what)
    ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False, fontsize="small")
    return ax


def weight_distributions(ax: Axes, weights: Mapping[str, np.ndarray], reach: float = 0.3) -> Axes:
    """Distribution of the (posterior mean) weights of each method on a log scale; the legend has the variances."""
    edges, found = np.linspace(-reach, reach, 121), looks([*weights])
    for label, values in weights.items():
        density, _ = np.histogram(np.clip(values, -reach, reach), edges, density=True)
        line = found[label].line() | {"marker": None}
        ax.step(edges[:-1], density, where="post", label=f"{label}, variance {values.var():.2g}", **line)
    ax.set(yscale="log", xlabel=f"weight (beyond ±{reach:g}: in the outermost bins)", ylabel="density")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _kept_axis(ax: Axes, sparsities: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.invert_xaxis()
    kept = sorted({100 * (1 - sparsity) for sparsity in sparsities})
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    ax.set_xlabel("weights kept (%)")


def error_against_sparsity(
    ax: Axes, rows: Sequence[Row], published: Mapping[str, Mapping[float, float]] | None = None,
    labels: Sequence[str] = (),
) -> Axes:  # fmt: skip
    """Mean test error over the seeds, their range as a band; published values as hollow markers on thin lines.

    Args:
        ax: where to draw.
        rows: of one data set and network.
        published: label of a row -> sparsity -> published accuracy in [0, 1].
        labels: names that get looks together, so that several panels agree; the rows' own if empty.
    """
    found, claims = looks(labels or labels_of(rows)), published or {}
    for label in labels_of(rows):
        own = [row for row in rows if row.label == label]
        at = {s: [_error(row) for row in own if row.sparsity == s] for s in sorted({row.sparsity for row in own})}
        kept = [100 * (1 - sparsity) for sparsity in at]
        ax.plot(kept, [statistics.mean(values) for values in at.values()], label=label, **found[label].line())
        low, high = ([function(values) for values in at.values()] for function in (min, max))
        ax.fill_between(kept, low, high, color=found[label].colour, **BAND)
        if claimed := claims.get(label):
            errors = [100 * (1 - accuracy) for accuracy in claimed.values()]
            thin = replace(found[label], hollow=True, dash=":").line() | {"linewidth": 0.8, "markersize": 4}
            ax.plot([100 * (1 - s) for s in claimed], errors, label=f"{label}, published", **thin)
    _kept_axis(ax, [row.sparsity for row in rows])
    ax.set_ylabel("test error (%)")
    log_axes(ax, "y")
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def error_against_time(ax: Axes, rows: Sequence[Row], sparsity: float, labels: Sequence[str] = ()) -> Axes:
    """Test error at one sparsity against the minutes of the fit: mean over the seeds, bars from least to most."""
    shown = [row for row in rows if row.sparsity == sparsity]
    found = looks(labels or labels_of(shown))
    for label in labels_of(shown):
        own = [row for row in shown if row.label == label]
        minutes, errors = [row.train_seconds / 60 for row in own], [_error(row) for row in own]
        bars: Any = {"xerr": _range(minutes), "yerr": _range(errors), "elinewidth": 0.9, "capsize": 2}
        ax.errorbar(statistics.mean(minutes), statistics.mean(errors), label=label, **bars, **found[label].point())
    ax.set(xlabel="training (minutes)", ylabel=f"test error (%), {100 * sparsity:g} % removed")
    log_axes(ax, "xy")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _error(row: Row) -> float:
    return 100 * (1 - row.accuracy)


def _range(values: Sequence[float]) -> list[list[float]]:
    """How far the least and the most are from the mean, as matplotlib takes it."""
    mean = statistics.mean(values)
    return [[mean - min(values)], [max(values) - mean]]


def error_against_bytes(
    ax: Axes, files: Mapping[str, Sequence[Sequence[Point]]], published: Sequence[tuple[str, float, float]] = (),
    dense: Point | None = None, joined: bool = False, labels: Sequence[str] = (),
) -> Axes:  # fmt: skip
    """Test error of compressed files against their bytes: mean over the seeds, bars of a standard deviation.

    Args:
        ax: where to draw.
        files: label -> one group of (bytes, error in %) over the seeds per setting.
        published: (name, bytes, error in %) as papers print them; hollow.
        dense: the network before, in float32.
        joined: draw a line through the groups of a label, smallest first.
        labels: names that get looks together, so that several panels agree.
    """
    found = looks(labels or [*files])
    for label, groups in files.items():
        ordered = sorted(groups, key=lambda group: statistics.mean(size for size, _ in group))
        sizes, errors = ([[point[i] for point in group] for group in ordered] for i in (0, 1))
        bars: dict[str, Any] = {"elinewidth": 0.7, "capsize": 1.5}
        if any(len(group) > 1 for group in ordered):
            bars |= {"xerr": [*map(_std, sizes)], "yerr": [*map(_std, errors)]}
        look = found[label].line() if joined else found[label].point()
        ax.errorbar([*map(statistics.mean, sizes)], [*map(statistics.mean, errors)], label=label, **bars, **look)
    named = looks([_method(name) for name, _, _ in published])
    for name, size, error in published:
        known = name in ax.get_legend_handles_labels()[1]
        look = replace(named[_method(name)], hollow=True).point() | {"markersize": 7, "markeredgewidth": 1.4}
        ax.plot([size], [error], label="_" if known else name, **look)
    if dense:
        ax.plot(*[[value] for value in dense], label="uncompressed, float32", color=GREY, marker="|", **BIG)
    ax.set(xlabel="file", ylabel="test error (%)")
    log_axes(ax, "xy", sizes="x")
    ax.legend(frameon=False, fontsize="small")
    return ax


def search_front(
    ax: Axes, trials: Sequence[Point], front: Sequence[Point], published: Sequence[tuple[str, float, float]]
) -> Axes:
    """A search: every trial's (bytes, validation error in %), the test errors of its front, other people's points."""
    ax.scatter([x for x, _ in trials], [y for _, y in trials], s=10, color=GREY, alpha=0.5, label="trials (validation)")
    shown = {"front (test)": [[point] for point in front]}
    return error_against_bytes(ax, shown, published, joined=True)


def _method(name: str) -> str:
    return name.partition(" (")[0].partition(",")[0]


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
