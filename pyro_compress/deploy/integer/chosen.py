"""An integer export: grids are tried on the validation split, and the best is written with what it costs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.candidates import to_module
from pyro_compress.deploy.integer.footprint import footprint, report
from pyro_compress.deploy.integer.grids import CHOICES, Choice, calibrated
from pyro_compress.deploy.integer.library import load_integer
from pyro_compress.deploy.integer.parts import Parts, parts_of
from pyro_compress.deploy.integer.source import Program, program, text
from pyro_compress.deploy.integer.steps import entry_size, steps_of
from pyro_compress.doubts import doubt
from pyro_compress.metrics import evaluate
from pyro_compress.networks.bounded import bounded
from pyro_compress.pcn.file import plan_of
from pyro_compress.scores import Quality
from pyro_compress.types import Compressed, Splits, count

LOG = logging.getLogger(__name__)
LOSS = 0.005
"""Validation accuracy (share of the RMSE) from which on a loss is doubtful."""
MOST_VALUES = 1 << 22
"""Values of a network that are written down as tables of a microcontroller."""


@dataclass(frozen=True)
class _Tried:
    choice: Choice
    built: Program
    scores: Quality


def write_integer(
    network: Compressed, card: Mapping[str, Any], path: Path, splits: Splits, examples: Tensor
) -> list[str]:  # fmt: skip
    """Write the file, with the choice of grids that loses least on the validation split.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`.
        path: where to.
        splits: the data; ranges are those of `examples`, the choice is made on the validation split.
        examples: `(n, *input_shape)`, of the training split, for calibration.

    Returns:
        What the user should know.

    Raises:
        ValueError: an operation that integers do not know, or a network that is too large.
    """
    plan = plan_of(network)
    if plan.values > MOST_VALUES:
        raise ValueError(
            f"{plan.values} values are too many for a microcontroller (at most {MOST_VALUES}); export without --integer"
        )
    parts = parts_of(network)
    before = evaluate(bounded(to_module(network), plan), splits, "validation", noise=network.noise)
    tried = _tried(parts, card, path.stem, splits, examples)
    best = min(tried, key=lambda one: (one.scores.error, one.scores.nll_nats))
    lines = _lines(best, tried, before, path.stem)
    write_atomically(path, text(best.built, card, path.stem, lines).encode("ascii"))
    measure, wanted = next(iter(before.cells.items()))
    if not best.scores.within(before, LOSS):
        doubt(
            LOG,
            f"integers of 8 bits change the validation {measure} from {wanted} to {best.scores.cells[measure]}; "
            "bound its activations (ReLU6) and fit again, or export without --integer",
        )
    return lines


def _tried(parts: Parts, card: Mapping[str, Any], stem: str, splits: Splits, examples: Tensor) -> list[_Tried]:
    """Every choice of grids, compiled and scored on the validation split."""
    entry, found = card["input"], list[_Tried]()
    images = entry["range"] == [0, 1] and entry["dtype"] == "float32"
    raw = entry["scale"] if images and entry["scale"] <= 255 else 0.0
    ranges, plan = calibrated(parts.network, examples), plan_of(parts.network)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for choice in CHOICES:
            built = program(steps_of(parts, ranges, choice, raw), stem)
            place = Path(folder, f"{stem}.c")
            write_atomically(place, built.code.encode())
            predict = bounded(_on_tensors(load_integer(place), plan.output), plan)
            scores = evaluate(predict, splits, "validation", noise=parts.network.noise)
            found.append(_Tried(choice, built, scores))
    return found


def _on_tensors(run: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.from_numpy(run(x.numpy())).reshape(len(x), *shape)


def _lines(best: _Tried, tried: list[_Tried], before: Quality, stem: str) -> list[str]:
    """Memory, accuracy and what was requantized, in words."""
    built, measure = best.built, next(iter(before.cells))
    sizes = footprint(built.code, built.tables, built.arena.whole)
    others = ", ".join(f"{one.choice} {one.scores.cells[measure]}" for one in tried if one is not best)
    lines = report(sizes, entry_size(built.steps), count(built.steps[-1].shape))
    lines.append(f"validation {measure}: {before.cells[measure]} in floats, {best.scores.cells[measure]} in integers")
    lines.append(f"grids     {best.choice} ({others})")
    wide = [step.name for step in built.steps if step.layer and step.layer.requantized]
    if wide:
        lines.append(f"no integers of 8 bits in the file, requantized per output channel: {', '.join(wide)}")
    return lines
