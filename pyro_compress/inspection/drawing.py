"""How pictures of a run look: figures, legends, SVG. Needs matplotlib (extra `inspect`).

Nothing here touches `pyplot` or global settings: `figure` makes a figure with its axes, and `svg` turns it into text.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyro_compress.inspection.palette import GREY, INK

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "pyro-compress",
}


@contextmanager
def style() -> Iterator[None]:
    """The package's look, for figures that are made and saved inside.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ValueError(f"pictures need matplotlib: pip install 'pyro-compress[inspect]' ({error})") from error
    with rc_context(STYLE):
        yield


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (5.0, 3.0)) -> tuple[Figure, np.ndarray]:
    """A figure in inches and its axes, `(rows, columns)`."""
    from matplotlib.figure import Figure

    made = Figure(figsize=size, layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False)


def svg(made: Figure) -> str:
    """A figure as SVG text, the same text every time."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def legend_above(ax: Axes) -> None:
    """A legend that hides nothing."""
    handles, _ = ax.get_legend_handles_labels()
    columns = 2 if len(handles) in (2, 4) else 3
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.2)


def bare(ax: Axes) -> None:
    """Leave the picture alone: no ticks, no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
