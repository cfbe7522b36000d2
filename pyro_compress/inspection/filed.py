"""What a page says of a run's compressed file: tiles, steps from dense to file, layers, size against error, weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyro_compress.compression.candidates import to_module
from pyro_compress.inspection import anatomy, drawing, file_plots, page
from pyro_compress.inspection.page import Picture
from pyro_compress.inspection.summary import Inspection
from pyro_compress.inspection.tradeoff import Point, tradeoff
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.scores import Quality, Scores
from pyro_compress.types import Compressed, Splits

MOST_LAYERS = 6
"""Layers whose weights are drawn: the largest."""


@dataclass(frozen=True)
class Filed:
    """A compressed file, read and scored.

    Attributes:
        path: the file.
        network: what it holds.
        bytes: its size, as the file system counts it.
        validation_scores: its scores.
        test_scores: as above, on the test split.
    """

    path: Path
    network: Compressed
    bytes: int
    validation_scores: Quality
    test_scores: Quality

    @property
    def steps(self) -> anatomy.Steps:
        """The way from the dense network to the file."""
        return anatomy.steps_of(self.network, self.bytes)


def filed(path: Path, splits: Splits) -> Filed:
    """Read a file and score it.

    Raises:
        ValueError: as `pyro_compress.pcn.file.read`.
    """
    network = file.read(path)
    module = to_module(network)
    validation, test = (evaluate(module, splits, split, noise=network.noise) for split in ("validation", "test"))
    return Filed(path, network, os.path.getsize(path), validation, test)


def tiles(inspection: Inspection, found: Filed | None) -> str:
    """First what a person wants first: how small, how good."""
    (name, before), total = judged(inspection.test_scores), inspection.run.posterior.parameters_total
    if found is None:
        return page.facts([(f"test {name}", before), ("weights", f"{total:,}"), ("bytes as float32", f"{4 * total:,}")])
    return page.facts(
        [
            ("bytes, the whole file", f"{found.bytes:,}"),
            ("smaller than float32", f"{page.times(found.steps.dense / found.bytes)}×"),
            (f"test {name} before", before),
            (f"test {name} after", judged(found.test_scores)[1]),
        ]
    )


def judged(scores: Quality) -> tuple[str, str]:
    """What a task is judged by, and the number."""
    return next(iter(scores.cells.items()))


def sections(inspection: Inspection, found: Filed | None, splits: Splits) -> list[str]:
    """Size against error; of a file also the bar of its steps, its layers, its weights before and after."""
    with drawing.style():
        shown = [*_curve(inspection, found, splits), *(_weights(inspection, found) if found else ())]
    parts = []
    if found is not None:
        steps = anatomy.step_rows(found.steps)
        parts.append(page.section("From dense to file", page.split(found.steps.factors.items()) + page.table(steps, 3)))
    parts.append(page.section("Size and error", page.gallery(shown)) if shown else "")
    if found is not None:
        rows = anatomy.layer_rows(inspection.layers, found.network, found.path)
        parts.append(page.section("Layers of the file", page.table(rows) + page.note(LAYERS)))
    return parts


LAYERS = (
    "Inputs read and units kept: those with any weight that is not zero. Bits: width of the largest integer of the "
    "layer, sign included; the coder spends fewer on what is frequent, so that bytes are less than values times bits."
)


def _curve(inspection: Inspection, found: Filed | None, splits: Splits) -> Iterator[Picture]:
    points = tradeoff(inspection.run.posterior, splits)
    if not points:
        return
    factor, label = (100, "validation error (%)") if isinstance(points[0].scores, Scores) else (1, "validation error")
    dense = found.steps.dense if found else 4 * inspection.run.posterior.parameters_total
    marks = {"before, float32": (dense, inspection.validation_scores)}
    if found is not None:
        marks["this file"] = (found.bytes, found.validation_scores)
    figure, axes = drawing.figure(size=(5.0, 3.2))
    file_plots.size_against_error(
        axes[0, 0],
        [(point.bytes, factor * point.scores.error, factor * standard_error(point, splits)) for point in points],
        {name: (size, factor * scores.error) for name, (size, scores) in marks.items()},
        label,
    )
    band = "; the band is a standard error" if isinstance(points[0].scores, Scores) else ""
    shares = ", ".join(f"{100 * point.kept:g}" for point in points)
    yield Picture(
        "Size against error",
        f"Line: the posterior mean with {shares} % of its weights, rounded at one precision, no search{band}. "
        "Where it bends upwards, weights go that are needed. A file below the line gained by its "
        "search, its order of units or fine-tuning.",
        drawing.svg(figure),
    )


def standard_error(point: Point, splits: Splits) -> float:
    """Of a share of wrong answers among the validation rows; 0 of other errors."""
    if not isinstance(point.scores, Scores):
        return 0.0
    share = point.scores.error
    return math.sqrt(share * (1 - share) / max(len(splits.validation.y), 1))


def _weights(inspection: Inspection, found: Filed) -> Iterator[Picture]:
    layers = inspection.run.posterior.layers
    largest = sorted(layers, key=lambda name: -layers[name].mean.numel())[:MOST_LAYERS]
    names = [name for name in layers if name in largest]
    columns = min(len(names), 3)
    figure, axes = drawing.figure(-(-len(names) // columns), columns, (6.0, 2.3 * -(-len(names) // columns)))
    shown = {}
    for name in names:
        tensor = found.network.tensors.get(name)
        after = np.zeros(0) if tensor is None else file.dense(tensor).flatten()
        shown[name] = (layers[name].mean.flatten().numpy(), after)
    for spare in axes.flatten()[len(names) :]:
        spare.set_visible(False)
    file_plots.weight_histograms(list(axes.flatten()[: len(names)]), shown)
    yield Picture(
        "Weights before and after",
        "Grey: the posterior mean. Red: the values in the file, a few levels that repeat; the column at zero holds "
        "what was removed inside of units that are left. Counts on a log scale.",
        drawing.svg(figure),
    )
