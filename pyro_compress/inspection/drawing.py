"""How pictures of a run look: figures, legends, SVG. Needs matplotlib (extra `inspect`).

Nothing here touches `pyplot` or global settings: `figure` makes a figure with its axes, and `svg` turns it into text.
"""

from __future__ import annotations

import io
import math
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

MODES = f":root{{--ink:{INK}}}@media(prefers-color-scheme:dark){{:root{{--ink:#dfe6ec}}}}"


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
    """A figure as SVG text without a ground, the same text every time; what is dark ink is light in dark mode."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    head, _, body = text[text.index("<svg") :].partition(">")
    return f"{head}><style>{MODES}</style>{body}".replace(f": {INK}", ": var(--ink)")


def legend_above(ax: Axes) -> None:
    """A legend that hides nothing."""
    handles, _ = ax.get_legend_handles_labels()
    columns = 2 if len(handles) in (2, 4) else 3
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.2)


def log_axes(ax: Axes, which: str, sizes: str = "") -> Axes:
    """Log scales with plain numbers, as many as the range needs; for axes whose lines are drawn.

    Args:
        ax: the axes.
        which: `x`, `y` or `xy`.
        sizes: those of them that hold bytes.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for name in which:
        getattr(ax, f"set_{name}scale")("log", nonpositive="clip")
        axis = ax.xaxis if name == "x" else ax.yaxis
        low, high = axis.get_view_interval()
        decades = abs(math.log10(high / low))
        if decades > 0.7:
            axis.set_major_locator(LogLocator(subs=(1,) if decades > 2.2 else (1, 2, 5)))
        else:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        plain = bytes_text if name in sizes else "{:,.10g}".format
        axis.set_major_formatter(FuncFormatter(lambda value, _, plain=plain: plain(value)))
        axis.set_minor_locator(NullLocator())
    return ax


def bytes_text(value: float) -> str:
    """A size as an axis shows it: 500 B, 20 kB, 1 MB."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} B"


def bare(ax: Axes) -> None:
    """Leave the picture alone: no ticks, no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
