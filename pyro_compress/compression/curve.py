"""The size-against-error curve of a search: as a table, and as a picture where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path

from pyro_compress.atomic import write_atomically, written
from pyro_compress.compression.target import Trial
from pyro_compress.places import check_file


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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter([t.bytes for t in trials], [100 * t.validation_error for t in trials], s=8, color="0.7")
    front = [t for t in trials if all(t.validation_error < u.validation_error for u in trials if u.bytes < t.bytes)]
    axes.plot([t.bytes for t in front], [100 * t.validation_error for t in front], marker="o", ms=3)
    axes.set(xscale="log", xlabel="file (bytes)", ylabel="validation error (%)")
    with written(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": "pyro-compress"})
