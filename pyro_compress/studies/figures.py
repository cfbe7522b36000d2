"""Figures of a study: one function each, data in, Axes out. Needs matplotlib (`pip install 'pyro-compress[plots]'`).

Lines differ by dash and marker as well as by lightness, so that every figure reads in grey.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from pyro_compress.atomic import write_atomically
from pyro_compress.studies.tables import Row

STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0b4f9c", "linestyle": "--", "marker": "s"},
    {"color": "#c8501e", "linestyle": "-", "marker": "^"},
    {"color": "#5b8c2a", "linestyle": "-.", "marker": "D"},
    {"color": "#8e5ea8", "linestyle": ":", "marker": "v"},
    {"color": "#b09000", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "P"},
    {"color": "#777777", "linestyle": "--", "marker": "X"},
    {"color": "#3aa0a0", "linestyle": ":", "marker": "*"},
    {"color": "#555555", "linestyle": (0, (8, 2)), "marker": "<"},
    {"color": "#6d9ad1", "linestyle": (0, (1, 2)), "marker": ">"},
    {"color": "#7a2e0e", "linestyle": (0, (4, 1, 1, 1)), "marker": "p"},
    {"color": "#9dbf7a", "linestyle": (0, (2, 1)), "marker": "h"},
    {"color": "#4f2d66", "linestyle": (0, (6, 1, 2, 1)), "marker": "d"},
    {"color": "#d98cab", "linestyle": (0, (3, 3)), "marker": "8"},
    {"color": "#d9c24a", "linestyle": (0, (1, 1, 4, 1)), "marker": "H"},
    {"color": "#1d6b4f", "linestyle": (0, (10, 1, 1, 1)), "marker": "$+$"},
)
FEW = 8
"""Lines whose names find room inside the axes; those of more go below (`name_once`)."""


def style(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the line with this number."""
    return STYLES[index % len(STYLES)] | {"markersize": 5, "linewidth": 1.6}


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Names of the methods, each once, in the rows' order."""
    return list(dict.fromkeys(row.label for row in rows))


def name_once(figure: Figure) -> None:
    """One legend below all panels, which share `labels` then, instead of one in each; the figure grows by it."""
    named: dict[str, Artist] = {}
    for ax in figure.axes:
        named |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        if legend := ax.get_legend():
            legend.remove()
    columns = 2 * len(figure.axes)
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(named) // columns))
    where = {"loc": "outside lower center", "ncols": columns}
    figure.legend([*named.values()], [*named], frameon=False, fontsize="small", **where)


def new_figure(panels: int = 1, width: float = 5.6, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes)


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
    for i, (density, label) in enumerate(zip((*parts, sum(parts)), labels, strict=True)):
        width = 2.6 if label == "mixture" else 1.4
        ax.plot(x, density, label=label, color=STYLES[2 - i]["color"], linestyle=("--", ":", "-")[i], linewidth=width)
    top = max(density.max() for density in parts)
    ax.set(yscale="log", ylim=(parts[0].max() / 10, 3 * top), xlabel="weight", ylabel="density")
    ax.legend(frameon=False)
    return ax


def training_curves(ax: Axes, curves: Mapping[str, Sequence[float]], what: str) -> Axes:
    """One value per epoch, one line per method."""
    for index, (label, values) in enumerate(curves.items()):
        every = max(len(values) // 8, 1)
        ax.plot(range(1, len(values) + 1), values, label=label, markevery=every, **style(index))
    ax.set(xlabel="epoch", ylabel=what)
    ax.legend(frameon=False, fontsize="small")
    return ax


def weight_distributions(ax: Axes, weights: Mapping[str, np.ndarray], reach: float = 0.3) -> Axes:
    """Distribution of the (posterior mean) weights of each method on a log scale; the legend has the variances."""
    edges = np.linspace(-reach, reach, 121)
    for index, (label, values) in enumerate(weights.items()):
        density, _ = np.histogram(np.clip(values, -reach, reach), edges, density=True)
        look = style(index) | {"marker": None}
        ax.step(edges[:-1], density, where="post", label=f"{label}, variance {values.var():.2g}", **look)
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


def accuracy_against_sparsity(
    ax: Axes, rows: Sequence[Row], published: Mapping[str, Mapping[float, float]] | None = None,
    labels: Sequence[str] = (),
) -> Axes:  # fmt: skip
    """Mean test accuracy over the seeds, their range as a band; published values as thin grey lines of small dots.

    Args:
        ax: where to draw.
        rows: of one data set and network.
        published: label of a row -> sparsity -> published accuracy in [0, 1].
        labels: names in the order that gives them their looks, so that several panels agree; the rows' own if empty.
    """
    for label in labels_of(rows):
        own = [row for row in rows if row.label == label]
        at = {s: [100 * r.accuracy for r in own if r.sparsity == s] for s in sorted({r.sparsity for r in own})}
        kept = [100 * (1 - sparsity) for sparsity in at]
        look = style((labels or labels_of(rows)).index(label))
        ax.plot(kept, [statistics.mean(values) for values in at.values()], label=label, **look)
        low, high = ([function(values) for values in at.values()] for function in (min, max))
        ax.fill_between(kept, low, high, color=look["color"], alpha=0.18, linewidth=0)
        if claimed := (published or {}).get(label):
            claims = [100 * accuracy for accuracy in claimed.values()]
            thin = {"color": look["color"], "linewidth": 0.7, "linestyle": ":", "marker": look["marker"]}
            ax.plot([100 * (1 - s) for s in claimed], claims, markersize=4, markerfacecolor="white", **thin)
    _kept_axis(ax, [row.sparsity for row in rows])
    ax.set(ylabel="test accuracy (%)", ylim=(0, 100))
    ax.legend(frameon=False, fontsize="small", loc="lower left")
    return ax


def accuracy_against_bytes(ax: Axes, points: Mapping[str, Sequence[tuple[int, float]]], dense_bytes: int) -> Axes:
    """Test accuracy of compressed files against their bytes on disk; one line per method, one point per sparsity."""
    for index, (label, pairs) in enumerate(points.items()):
        ordered = sorted(pairs)
        ax.plot([b / 1000 for b, _ in ordered], [100 * a for _, a in ordered], label=label, **style(index))
    ax.axvline(dense_bytes / 1000, color="#999999", linewidth=1, linestyle="--")
    ax.annotate(
        "dense float32", (dense_bytes / 1000, 0.02), xycoords=("data", "axes fraction"), ha="right", rotation=90
    )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="file (kB)", ylabel="test accuracy (%)")
    ax.legend(frameon=False, fontsize="small", loc="lower center")
    return ax


def error_against_bytes(
    ax: Axes, trials: Sequence[tuple[float, int | float]], front: Sequence[tuple[float, int]],
    references: Mapping[str, tuple[float, int]],
) -> Axes:  # fmt: skip
    """A search: every trial, the test errors of its front, and other people's points.

    Args:
        ax: where to draw.
        trials: (validation error in [0, 1], bytes) of each.
        front: (test error, bytes) of the files that no other dominates on validation.
        references: name -> (test error, bytes).
    """
    ax.scatter([b for _, b in trials], [100 * e for e, _ in trials], s=10, color="0.7", label="trials (validation)")
    ordered = sorted(front, key=lambda point: point[1])
    ax.plot([b for _, b in ordered], [100 * e for e, _ in ordered], label="front (test)", **style(1))
    for index, (name, (error, size)) in enumerate(references.items()):
        look = style(index + 2) | {"linestyle": "", "markerfacecolor": "white"}
        ax.plot([size], [100 * error], label=name, **look)
    ax.set(xscale="log", yscale="log", xlabel="file (bytes)", ylabel="error (%)")
    ax.legend(frameon=False, fontsize="x-small")
    for axis, steps in ((ax.xaxis, (1, 2, 5)), (ax.yaxis, (1, 1.5, 2, 3, 4, 6, 8))):
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())
    return ax


def accuracy_against_time(ax: Axes, rows: Sequence[Row], sparsity: float, labels: Sequence[str] = ()) -> Axes:
    """Test accuracy at one sparsity against the minutes that the fit took; one point per seed; `labels` as above."""
    shown = [row for row in rows if row.sparsity == sparsity]
    for label in labels_of(shown):
        own = [row for row in shown if row.label == label]
        look = style((labels or labels_of(shown)).index(label))
        look = {key: look[key] for key in ("color", "marker")}
        ax.scatter([r.train_seconds / 60 for r in own], [100 * r.accuracy for r in own], label=label, **look)
    ax.set(xlabel="training (minutes)", ylabel=f"test accuracy (%), {100 * sparsity:g} % removed")
    ax.set_xlim(left=0)
    ax.legend(frameon=False, fontsize="small")
    return ax
