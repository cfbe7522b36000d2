"""Size against error of one run: its posterior, pruned at several thresholds and rounded at one precision."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_compress.advance import advanced
from pyro_compress.compression.candidates import Candidates
from pyro_compress.compression.rounding import COMPARED
from pyro_compress.pcn import file
from pyro_compress.scores import Quality
from pyro_compress.types import Posterior, Splits

KEPT = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
"""Shares of the weights that stay."""
LARGEST = 5_000_000
"""Values of a network from which on this takes minutes, and is left out."""
FEWEST = 20
"""Weights: where fewer would stay, a share says nothing."""


@dataclass(frozen=True)
class Point:
    """One candidate: the share of the weights that stay, the bytes of its file, its scores on validation."""

    kept: float
    bytes: int
    scores: Quality


def tradeoff(posterior: Posterior, splits: Splits) -> list[Point]:
    """Size and validation scores by the share of the weights that stays; nothing for large networks."""
    if posterior.parameters_total > LARGEST:
        return []
    weights = sum(layer.mean.numel() for layer in posterior.layers.values())
    shares = [kept for kept in KEPT if kept * weights >= FEWEST]
    search = Candidates(posterior, splits, posterior.criterion, "cpu", [1 - kept for kept in shares])
    points = []
    for done, kept in enumerate(shares, 1):
        draft = search.draft(1 - kept, COMPARED)
        size = len(file.dumps(search.network(draft), in_context=False)[0])
        points.append(Point(kept, size, search.scores(draft)))
        advanced("sizes and errors", done, len(shares))
    return points
