"""The size-against-error curve of a search: as a table, and as a picture where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_compress.atomic import write_atomically, written
from pyro_compress.compression.target import Trial
from pyro_compress.inspection import drawing
from pyro_compress.inspection.palette import GREY, SECOND
from pyro_compress.places import check_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check_curve(path: Path, beside: Path, force: bool) -> None:
    """Refuse a table, or the picture that goes with it, that cannot be written or is something else.

    Args:
        path: the table.
        beside: the file that the command writes.
        force: replace a table and a picture of this kind.

    Raises:
        ValueError: says why.
    """
    if path.suffix == ".png" or path.absolute() == beside.absolute():
        raise ValueError(f"--curve {path}: give the table a name of its own, that does not end in .png")
    check_file(path, "curve", force, "--curve")
    if importlib.util.find_spec("matplotlib") is not None:
        check_file(path.with_suffix(".png"), "picture", force, "--curve")


def write_curve(path: Path, trials: list[Trial]) -> list[Path]:
    """Write all candidates, largest file first, as CSV, and beside it a picture (`.png`) if matplotlib is there.

    Returns:
        The files written.
    """
    names = [field.name for field in fields(Trial)]
    rows = sorted(trials, key=lambda trial: -trial.bytes)
    lines = [
        ",".join(names).replace(",lam,", ",lambda,"),
        *(",".join(f"{getattr(row, name):.10g}" for name in names) for row in rows),
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    if importlib.util.find_spec("matplotlib") is None:
        return [path]
    picture = path.with_suffix(".png")
    _draw(picture, rows)
    return [path, picture]


def _draw(path: Path, trials: list[Trial]) -> None:
    with drawing.style():
        made, axes = drawing.figure(size=(6.0, 4.0))
        draw_curve(axes[0, 0], trials)
        with written(path) as file:
            made.savefig(file, format="png", dpi=120, metadata={"Software": "pyro-compress"})


def draw_curve(ax: Axes, trials: list[Trial]) -> Axes:
    """Every candidate, and those that no smaller one beats.

    Args:
        ax: where to draw.
        trials: largest first.
    """
    front = [t for t in trials if all(t.validation_error < u.validation_error for u in trials if u.bytes < t.bytes)]
    all_sizes, all_errors = [t.bytes for t in trials], [100 * t.validation_error for t in trials]
    ax.scatter(all_sizes, all_errors, s=8, color=GREY, alpha=0.5, label="candidates")
    sizes, errors = [t.bytes for t in front], [100 * t.validation_error for t in front]
    ax.plot(sizes, errors, color=SECOND, marker="o", markersize=3, label="no smaller one is as good")
    ax.set(xlabel="file", ylabel="validation error (%)")
    drawing.log_axes(ax, "xy" if min(all_errors) > 0 else "x", sizes="x")
    drawing.legend_above(ax)
    return ax
