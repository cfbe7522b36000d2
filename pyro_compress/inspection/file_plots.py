"""Pictures of a compressed file beside what it was made from: data in, the `Axes` they were drawn on out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_compress.inspection.drawing import legend_above, log_axes
from pyro_compress.inspection.palette import ACCENT, GREY, INK, SECOND

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def weight_histograms(axes: Sequence[Axes], layers: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Sequence[Axes]:
    """Weights of a layer before, as a filled histogram, and in the file, as a line; counts on a log scale.

    Args:
        axes: one per layer.
        layers: name -> weights before, weights in the file (none that went with their units).
    """
    for ax, (name, (before, after)) in zip(axes, layers.items(), strict=True):
        reach = max(float(np.abs(before).max(initial=0)), float(np.abs(after).max(initial=0)), 1e-12)
        edges = np.linspace(-reach, reach, 62).tolist()  # zero in the middle of a bin
        ax.hist(before, edges, histtype="stepfilled", color=GREY, alpha=0.55, label="before")
        ax.hist(after, edges, histtype="step", color=ACCENT, linewidth=1.4, label="file")
        ax.set_yscale("log", nonpositive="clip")
        ax.set_ylim(bottom=0.6)
        ax.minorticks_off()
        ax.set_title(name)
    axes[0].set_ylabel("weights")
    axes[0].legend(loc="upper left", handlelength=1.2, borderaxespad=0)
    return axes


def size_against_error(
    ax: Axes, curve: Sequence[tuple[int, float, float]], marks: Mapping[str, tuple[int, float]], error: str
) -> Axes:
    """Validation error by the bytes of the file: one line with its standard error as a band, and single points.

    Args:
        ax: where to draw.
        curve: bytes, error, its standard error (0 where there is none).
        marks: label -> bytes, error.
        error: what the error is, with its unit.
    """
    sizes, errors, spread = np.array(sorted(curve)).reshape(-1, 3).T
    if curve:
        ax.plot(sizes, errors, color=SECOND, marker="o", markersize=4, label="pruned and rounded")
    if spread.any():
        band: Any = {"color": SECOND, "alpha": 0.2, "linewidth": 0.0}
        ax.fill_between(sizes, np.maximum(errors - spread, 0), errors + spread, **band)
    for (label, (size, value)), (colour, marker) in zip(marks.items(), ((INK, "s"), (ACCENT, "*")), strict=False):
        ax.plot([size], [value], linestyle="", zorder=3, label=label, color=colour, marker=marker, markersize=9)
    least = min([value for value in [*errors, *(value for _, value in marks.values())] if value > 0], default=1.0)
    log_axes(ax, "xy", sizes="x")
    ax.set_ylim(bottom=least / 1.6)
    log_axes(ax, "y")
    ax.set_xlabel("file")
    ax.set_ylabel(error)
    legend_above(ax)
    return ax
