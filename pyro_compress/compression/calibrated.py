"""A trained network on calibration examples, rounded layer after layer: each makes up for what those before it lost."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pyro_compress.compression.compensation import Found, problem_of, rounded_layer
from pyro_compress.compression.curvature import (
    CHUNK,
    POSITIONS,
    Moments,
    Sensitivity,
    Uses,
    drawn_of,
    moments,
    most_values,
    sensitivities,
)
from pyro_compress.compression.repair import Divergence, repaired
from pyro_compress.compression.uses import LOOKED_UP, STATE, Use, before_steps, uses_of
from pyro_compress.data.several import task_named
from pyro_compress.graph.network import run_graph
from pyro_compress.graph.operations.sequences import GATES
from pyro_compress.graph.operations.table import has_statistics
from pyro_compress.graph.rules.table import run_node
from pyro_compress.pcn import gate
from pyro_compress.pcn.codec import quarter_power
from pyro_compress.pcn.layout import Layout, layouts
from pyro_compress.types import Graph, Node

IMAGES = 4096
"""Most calibration examples."""
SOLVED, SWEPT = 4, 3
"""Multiples of n³ that the algebra of n inputs takes, and rounds of compensation in the search for a step, about."""
VALUES = 1 << 28
"""Values of activations that are held, about: a gibibyte of float32. Where all inputs of layers fit, they stay."""


@dataclass(frozen=True)
class OperatingPoint:
    """How a network is rounded.

    Attributes:
        lam: λ, nats that a bit may cost, per example.
        damping: of the moments, in units of their mean; more is safer with fewer examples and coarser steps.
        descending: columns with the largest second moment first.
        repair: epochs in which biases and norms make up for it; 0: they stay.
    """

    lam: float
    damping: float = 0.1
    descending: bool = False
    repair: int = 0


@dataclass(frozen=True)
class Rounded:
    """A rounded network.

    Attributes:
        tensors: all of them, weights on their grids, statistics of batch norm taken anew.
        steps: weight tensor name -> step.
    """

    tensors: dict[str, Tensor]
    steps: dict[str, float]


@dataclass
class Calibrated:
    """A network with what is needed to round it at any λ.

    Attributes:
        graph: the network.
        tensors: as it was given.
        x: calibration examples.
        uses: of the weights that are rounded, by the index of their node.
        worth: sensitivity of the outputs of every weight, by its name.
        divergence: of what a rounded network says from what the given one says.
        precisions: `1 / (N σ²)` of the weights that have a posterior, by name.
        found: the integers that were found last, by weight; where the next search begins.
        fixed: moments of weights that no other one precedes, by name: no rounding changes them.
        inputs: of the other nodes in the network as it was given, by the node they come from; empty where they do not
            fit into `VALUES`, and are computed again.
    """

    graph: Graph
    tensors: dict[str, Tensor]
    x: Tensor
    uses: Uses
    worth: dict[str, Sensitivity]
    divergence: Divergence
    precisions: Mapping[str, Tensor] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)
    fixed: dict[str, Moments] = field(default_factory=dict)
    inputs: dict[int, list[Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def rounded(self, point: OperatingPoint) -> Rounded:
        """Round every weight, from the first node to the last, on what those before it give it, rounded."""
        tensors, steps = dict(self.tensors), dict[str, float]()
        finished, held, new = self.graph.finished, bool(self.inputs), dict[int, list[Tensor]]()
        now: dict[int, list[Tensor]] = {0: list(self.x.split(CHUNK))}
        before = self.inputs if held else dict(now)
        for index, node in enumerate(self.graph.nodes[1:], 1):
            for use in self.uses.get(index, ()):
                if use.name not in self.fixed:
                    source = node.inputs[0] if node.inputs else 0
                    seen = self._moments(use, now, before, tensors)
                    if seen.second is seen.cross and use.kind != STATE:
                        self.fixed[use.name] = seen
                    else:
                        new[source] = before[source]
                else:
                    seen = self.fixed[use.name]
                tensors[use.name], steps[use.name] = self._weight(use, seen, point)
            if has_statistics(node.op):
                tensors |= _statistics(now[node.inputs[0]], node.parameters)
            if not held:
                self._run(index, before, self.tensors)
            alike = all(tensors[name] is self.tensors[name] for name in node.parameters.values())
            if not held and alike and all(now[i] is before[i] for i in node.inputs):
                now[index] = before[index]
            else:
                self._run(index, now, tensors)
            for i in finished[index]:
                del now[i]
                if not held:
                    del before[i]
        if not held and sum(part.numel() for parts in new.values() for part in parts) <= VALUES:
            self.inputs = new
        if point.repair:
            tensors = repaired(self.graph, tensors, steps, self.x, self._wanted, self.divergence, point.repair)
        return Rounded(tensors, steps)

    @cached_property
    def _wanted(self) -> Tensor:
        """Outputs of the network as it was given, on the calibration examples."""
        return torch.cat([run_graph(self.graph, self.tensors, part) for part in self.x.split(CHUNK)])

    def _moments(
        self, use: Use, now: dict[int, list[Tensor]], before: dict[int, list[Tensor]], tensors: dict[str, Tensor]
    ) -> Moments:
        """Of a weight's inputs; a recurrent layer's own outputs come from its weights as they are by now."""
        if use.by_element:
            first = now[use.node.inputs[0]] if use.kind == LOOKED_UP else []
            return moments(first, first, use)
        (source,) = use.node.inputs
        if use.kind != STATE:
            return moments(now[source], before[source], use)
        is_now = [self._state(use.node, part, tensors) for part in now[source]]
        return moments(is_now, [self._state(use.node, part, self.tensors) for part in before[source]], use)

    def _state(self, node: Node, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return before_steps(run_node(node, [x], {role: tensors[n] for role, n in node.parameters.items()}), node)

    def _weight(self, use: Use, seen: Moments, point: OperatingPoint) -> tuple[Tensor, float]:
        """Values of a rounded weight, and its step."""
        problem = problem_of(
            self.tensors[use.name], use, seen, self.worth[use.name], self._layouts[use.name], point.lam,
            point.damping, point.descending, self.precisions.get(use.name),
        )  # fmt: skip
        found = self.found[use.name] = rounded_layer(problem, self.found.get(use.name))
        step = quarter_power(found.exponent)
        return torch.from_numpy(found.codes).float() * step, step

    def _run(self, index: int, values: dict[int, list[Tensor]], tensors: dict[str, Tensor]) -> None:
        node = self.graph.nodes[index]
        parameters = {role: tensors[name] for role, name in node.parameters.items()}
        if not node.inputs:  # the same for all examples
            values[index] = [run_node(node, [], parameters)] * len(self.x.split(CHUNK))
            return
        chunks = zip(*(values[i] for i in node.inputs), strict=True)
        values[index] = [run_node(node, list(inputs), parameters) for inputs in chunks]

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return layouts(self.graph, _shapes(self.tensors))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def work_of(graph: Graph, tensors: Mapping[str, Tensor], names: Collection[str] = ()) -> float:
    """Multiply-adds of rounding a network once, about: moments of inputs, what is solved with them, and compensation.

    Args:
        graph: the network.
        tensors: its tensors.
        names: weights that are rounded, beside those of all layers.
    """
    shapes = _shapes(tensors)
    made, total = gate.check(graph, shapes, gate.UNLIMITED).shapes, 0.0
    for index, uses in uses_of(graph, shapes, names).items():
        for use in uses:
            groups, rows, n = use.size
            outputs = math.prod(made[index]) if use.node.op not in GATES else made[index][0] * rows
            positions = 0 if use.by_element else min(POSITIONS, IMAGES * outputs // (groups * rows))
            total += n * n * groups * (2 * positions + SOLVED * n + SWEPT * rows)
    return total


def calibrated(
    graph: Graph, tensors: dict[str, Tensor], x: Tensor, names: Collection[str] = (), task: str = "classification",
    noise: float | None = None, seed: int = 0, precisions: Mapping[str, Tensor] | None = None,
) -> Calibrated:  # fmt: skip
    """A network with as many calibration examples as fit into `VALUES`, and the sensitivity of its outputs.

    Args:
        graph: the network.
        tensors: its tensors.
        x: examples to choose from; no labels are needed.
        names: weights that are rounded, beside those of all layers.
        task: what the outputs mean.
        noise: of regression.
        seed: draws the examples, and the labels for the sensitivities.
        precisions: of weights with a posterior, as `Calibrated` has them.
    """
    number = min(IMAGES, len(x), max(CHUNK, VALUES // most_values(graph, tensors, x[:2])))
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:number]
    chosen, uses = x[rows], uses_of(graph, _shapes(tensors), names)
    worth = sensitivities(graph, tensors, chosen, uses, drawn_of(task, noise), seed)
    divergence = task_named(task).divergence
    return Calibrated(
        graph, tensors, chosen, uses, worth, lambda given, others: divergence(given, others, noise or 1.0),
        precisions or {},
    )  # fmt: skip


def _statistics(parts: list[Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Mean and variance by channel."""
    axes = [axis for axis in range(parts[0].dim()) if axis != 1]
    count = sum(part.numel() // part.shape[1] for part in parts)
    mean = sum((part.double().sum(axes) for part in parts), torch.zeros(())) / count
    shape = [-1 if axis == 1 else 1 for axis in range(parts[0].dim())]
    square = sum(((part.double() - mean.view(shape)).square().sum(axes) for part in parts), torch.zeros(())) / count
    return {names["running_mean"]: mean.float(), names["running_var"]: square.float()}
