"""A trained network on calibration examples, rounded layer after layer: each makes up for what those before it lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_compress.compression.compensation import Found, problem_of, rounded_layer
from pyro_compress.compression.curvature import (
    CHUNK,
    POSITIONS,
    Moments,
    Noise,
    Sensitivity,
    drawn_labels,
    moments,
    most_values,
    sensitivities,
)
from pyro_compress.graph.operations.table import has_statistics, is_weighted
from pyro_compress.graph.rules.table import run_node
from pyro_compress.pcn import gate
from pyro_compress.pcn.codec import quarter_power
from pyro_compress.pcn.layout import layouts
from pyro_compress.types import Graph

IMAGES = 4096
"""Most calibration examples."""
SOLVED, SWEPT = 4, 3
"""Multiples of n³ that the algebra of n inputs takes, and rounds of compensation in the search for a step, about."""
VALUES = 1 << 28
"""Values of activations that are held, about: a gibibyte of float32. Where all inputs of layers fit, they stay."""


@dataclass(frozen=True)
class Setting:
    """How a network is rounded.

    Attributes:
        lam: λ, nats that a bit may cost, per example.
        damping: of the moments, in units of their mean; more is safer with fewer examples and coarser steps.
        descending: columns with the largest second moment first.
    """

    lam: float
    damping: float = 0.1
    descending: bool = False


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
        worth: sensitivity of the outputs of every layer, by its index.
        found: the integers that were found last, by layer; where the next search begins.
        fixed: moments of layers that no other layer with weights precedes, by layer: no rounding changes them.
        inputs: of the other layers in the network as it was given, by the node they come from; empty where they do not
            fit into `VALUES`, and are computed again.
    """

    graph: Graph
    tensors: dict[str, Tensor]
    x: Tensor
    worth: dict[int, Sensitivity]
    found: dict[int, Found] = field(default_factory=dict)
    fixed: dict[int, Moments] = field(default_factory=dict)
    inputs: dict[int, list[Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def rounded(self, setting: Setting) -> Rounded:
        """Round every layer with weights, the first to the last, on what the rounded layers before it give it."""
        tensors, steps = dict(self.tensors), dict[str, float]()
        finished, held, new = self.graph.finished, bool(self.inputs), dict[int, list[Tensor]]()
        now: dict[int, list[Tensor]] = {0: list(self.x.split(CHUNK))}
        before = self.inputs if held else dict(now)
        for index, node in enumerate(self.graph.nodes[1:], 1):
            if is_weighted(node.op):
                name, (source,) = node.parameters["weight"], node.inputs
                if index not in self.fixed:
                    same = source in before and all(a is b for a, b in zip(now[source], before[source], strict=True))
                    seen = moments(now[source], before[source], node, tuple(tensors[name].shape))
                    if same:
                        self.fixed[index] = seen
                    else:
                        new[source] = before[source]
                else:
                    seen = self.fixed[index]
                tensors[name], steps[name] = self._layer(index, seen, setting)
            elif has_statistics(node.op):
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
        return Rounded(tensors, steps)

    def _layer(self, index: int, seen: Moments, setting: Setting) -> tuple[Tensor, float]:
        """Values of a rounded weight, and its step."""
        name, shapes = self.graph.nodes[index].parameters["weight"], self._shapes
        problem = problem_of(
            self.tensors[name], seen, self.worth[index], layouts(self.graph, shapes)[name], setting.lam,
            setting.damping, setting.descending,
        )  # fmt: skip
        found = self.found[index] = rounded_layer(problem, self.found.get(index))
        step = quarter_power(found.exponent)
        return torch.from_numpy(found.codes).float().view(shapes[name]) * step, step

    def _run(self, index: int, values: dict[int, list[Tensor]], tensors: dict[str, Tensor]) -> None:
        node = self.graph.nodes[index]
        parameters = {role: tensors[name] for role, name in node.parameters.items()}
        chunks = zip(*(values[i] for i in node.inputs), strict=True)
        values[index] = [run_node(node, list(inputs), parameters) for inputs in chunks]

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def unserved(graph: Graph, names: Iterable[str]) -> list[str]:
    """Of some weights those that compensation does not take: of no linear layer or convolution, or used more than once.

    Args:
        graph: the network.
        names: of its weights.
    """
    uses = Counter(name for node in graph.nodes for name in node.parameters.values())
    layers = {node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)}
    return [name for name in names if name not in layers or uses[name] > 1]


def work_of(graph: Graph, tensors: Mapping[str, Tensor]) -> float:
    """Multiply-adds of rounding a network once, about: moments of inputs, what is solved with them, and compensation.

    Args:
        graph: the network.
        tensors: its tensors.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    made, total = gate.check(graph, shapes, gate.UNLIMITED).shapes, 0.0
    for index, node in enumerate(graph.nodes):
        if is_weighted(node.op):
            rows, *inner = shapes[node.parameters["weight"]]
            n, groups = math.prod(inner), node.attributes.get("groups", 1)
            positions = min(POSITIONS, IMAGES * math.prod(made[index]) // rows)
            total += n * n * (groups * (2 * positions + SOLVED * n) + SWEPT * rows)
    return total


def calibrated(
    graph: Graph, tensors: dict[str, Tensor], x: Tensor, gradient: Noise = drawn_labels, seed: int = 0
) -> Calibrated:
    """A network with as many calibration examples as fit into `VALUES`, and the sensitivity of its outputs.

    Args:
        graph: the network.
        tensors: its tensors.
        x: examples to choose from; no labels are needed.
        gradient: what the task's likelihood says of the outputs.
        seed: draws the examples, and the labels for the sensitivities.
    """
    number = min(IMAGES, len(x), max(CHUNK, VALUES // most_values(graph, tensors, x[:2])))
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:number]
    chosen = x[rows]
    return Calibrated(graph, tensors, chosen, sensitivities(graph, tensors, chosen, gradient, seed))


def _statistics(parts: list[Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Mean and variance by channel."""
    axes = [axis for axis in range(parts[0].dim()) if axis != 1]
    count = sum(part.numel() // part.shape[1] for part in parts)
    mean = sum((part.double().sum(axes) for part in parts), torch.zeros(())) / count
    shape = [-1 if axis == 1 else 1 for axis in range(parts[0].dim())]
    square = sum(((part.double() - mean.view(shape)).square().sum(axes) for part in parts), torch.zeros(())) / count
    return {names["running_mean"]: mean.float(), names["running_var"]: square.float()}
