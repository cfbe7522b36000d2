"""Grids of activations: value = scale * (integer - zero), an integer of 8 bits (Jacob et al. 2018, equation 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.candidates import to_module
from pyro_compress.graph.network import run_graph
from pyro_compress.types import Compressed, Node

LOW, HIGH = -128, 127
BATCH = 100
"""Calibration examples that run at a time."""
TAIL = 1e-4
"""Share of the values at either end that a clipped range leaves out."""


@dataclass(frozen=True)
class Grid:
    """Where 8-bit integers lie.

    Attributes:
        scale: distance of two neighbours.
        zero: the integer that stands for 0.
    """

    scale: float
    zero: int

    def codes(self, values: np.ndarray) -> np.ndarray:
        """The nearest integers, int8."""
        return np.clip(np.rint(values / self.scale) + self.zero, LOW, HIGH).astype(np.int8)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """What integers stand for, float64."""
        return self.scale * (codes.astype(np.float64) - self.zero)

    def code(self, value: float) -> int:
        """The integer of one number."""
        return int(self.codes(np.array(value)))


EVERY = np.arange(LOW, HIGH + 1)
"""The integers of a grid."""


@dataclass(frozen=True)
class Choice:
    """How a range becomes a grid: whether 0 lies in the middle, and whether the tails are left out."""

    symmetric: bool
    clipped: bool

    def __str__(self) -> str:
        """In words."""
        return f"{'symmetric' if self.symmetric else 'asymmetric'}{', tails clipped' if self.clipped else ''}"

    def grid(self, low: float, high: float) -> Grid:
        """The grid that covers a range and 0, which is one of its values."""
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            return Grid(1.0, 0)
        if self.symmetric:
            return Grid(float(np.float32(max(-low, high) / HIGH)), 0)
        scale = float(np.float32((high - low) / (HIGH - LOW)))
        return Grid(scale, int(np.clip(round(LOW - low / scale), LOW, HIGH)))


CHOICES = [Choice(symmetric, clipped) for clipped in (False, True) for symmetric in (False, True)]


@dataclass(frozen=True)
class Ranges:
    """Per node of a graph its smallest and largest value on the calibration examples, and the same without tails."""

    whole: Mapping[int, tuple[float, float]]
    clipped: Mapping[int, tuple[float, float]]

    def grid(self, node: int, choice: Choice) -> Grid:
        """The grid of a node's values."""
        return choice.grid(*(self.clipped if choice.clipped else self.whole)[node])


def calibrated(network: Compressed, examples: Tensor) -> Ranges:
    """Run a network in float32 and see the range of every node; without tails, a mean over batches.

    The output keeps its tails: two of its values that are cut off would be the same.

    Args:
        network: what is exported, operations that nobody reads left out.
        examples: `(n, *input_shape)`, of the training split.
    """
    graph, tensors = network.graph, dict(to_module(network).state_dict())
    index = {id(node): place for place, node in enumerate(graph.nodes)}
    seen: dict[int, list[np.ndarray]] = {}
    for batch in examples.split(BATCH):
        here: dict[int, np.ndarray] = {}

        def look(node: Node, inputs: list[Tensor], here: dict[int, np.ndarray] = here) -> None:
            for place, value in zip(node.inputs, inputs, strict=True):
                if place not in here:
                    here[place] = _extent(value)

        with torch.no_grad():
            here[len(index) - 1] = _extent(run_graph(graph, tensors, batch, look))
        for place, extent in here.items():
            seen.setdefault(place, []).append(extent)
    whole = {place: (float(min(e[0] for e in found)), float(max(e[3] for e in found))) for place, found in seen.items()}
    clipped = {place: tuple(np.mean([e[1:3] for e in found], 0).tolist()) for place, found in seen.items()}
    last = len(index) - 1
    return Ranges(whole, clipped | {last: whole[last]})


def _extent(value: Tensor) -> np.ndarray:
    """Least, lower and upper end without tails, most."""
    ordered = np.sort(value.detach().numpy(), axis=None)
    cut = int(TAIL * len(ordered))
    return ordered[[0, cut, -1 - cut, -1]].astype(np.float64)
