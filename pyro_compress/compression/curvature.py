"""What rounding a layer costs: how much its outputs matter, and what its inputs look like.

To second order, a change δ of the weights that make one output adds `½ · s · P · δ H δᵀ` to the loss: H is the second
moment of the layer's inputs, s the mean squared gradient of the loss at that output, P the number of positions that
the output is computed at. It is the Kronecker-factored Fisher information (Martens & Grosse 2015; Grosse & Martens 2016
for convolutions) with its output factor taken as diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.data.several import task_named
from pyro_compress.graph.operations.table import is_last, is_weighted
from pyro_compress.graph.rules.layers import padded
from pyro_compress.graph.rules.table import run_node
from pyro_compress.types import Graph, Node

DRAWS = 3
"""Labels that are drawn per example for the sensitivity of outputs."""
POSITIONS = 60_000
"""Rows that the moments of one layer's inputs are taken from, about, where there are more."""
CHUNK = 128
"""Examples that are worked on at a time."""

Noise = Callable[[Tensor, torch.Generator], Tensor]
"""(outputs, generator) -> gradient of the negative log-likelihood of targets that are drawn from the prediction."""


@dataclass(frozen=True)
class Sensitivity:
    """What the outputs of one layer are worth.

    Attributes:
        squares: mean squared gradient of the loss at each output, over examples and positions, `(out,)`, float64.
        positions: at how many positions the layer computes an output.
    """

    squares: Tensor
    positions: int


@dataclass(frozen=True)
class Moments:
    """Second moments of what a layer's rows are multiplied with, per group of a grouped convolution.

    Attributes:
        second: of the inputs as they are now, `(groups, n, n)`, float64.
        cross: of the inputs as they were (rows) with those as they are now (columns), same shape.
    """

    second: Tensor
    cross: Tensor


def drawn_labels(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient of the cross-entropy at labels that the network itself draws."""
    return drawn_of("classification")(outputs, generator)


def drawn_of(task: str, noise: float | None = None) -> Noise:
    """The same of a task: at labels, or targets with this noise, that the network itself draws."""
    if task_named(task).noisy and task_named(task).outputs is None:
        return lambda outputs, generator: torch.randn(outputs.shape, generator=generator) / (noise or 1.0)
    return lambda outputs, generator: -task_named(task).fisher(outputs, noise, generator)[:, 0]


def sensitivities(
    graph: Graph, tensors: dict[str, Tensor], x: Tensor, gradient: Noise = drawn_labels, seed: int = 0
) -> dict[int, Sensitivity]:
    """Mean squared gradient at the outputs of every layer with weights, by the layer's index in the graph.

    Args:
        graph: the network.
        tensors: its tensors.
        x: examples; no labels are needed.
        gradient: what the task's likelihood says of the outputs.
        seed: draws the labels.
    """
    generator = torch.Generator().manual_seed(seed)
    sums, positions = dict[int, Tensor](), dict[int, int]()
    for part in x.split(CHUNK):
        values, leaves = {0: part}, dict[int, Tensor]()
        with torch.enable_grad():
            for index, node in enumerate(graph.nodes[1:], 1):
                given = {role: tensors[name].detach() for role, name in node.parameters.items()}
                values[index] = run_node(node, [values[i] for i in node.inputs], given)
                if is_weighted(node.op):
                    values[index].requires_grad_() if values[index].is_leaf else None
                    leaves[index] = values[index]
            outputs = values[len(graph.nodes) - 1]
            for draw in range(DRAWS):
                wanted = gradient(outputs.detach(), generator)
                found = torch.autograd.grad(outputs, list(leaves.values()), wanted, retain_graph=draw < DRAWS - 1)
                for index, one in zip(leaves, found, strict=True):
                    axis = -1 if is_last(graph.nodes[index].op) else 1
                    channels = one.movedim(axis, -1).reshape(len(part), -1, one.shape[axis])
                    positions[index] = channels.shape[1]
                    sums[index] = sums.get(index, 0.0) + channels.square().mean(1).sum(0).double()
    return {index: Sensitivity(total / (DRAWS * len(x)), positions[index]) for index, total in sums.items()}


@torch.no_grad()
def most_values(graph: Graph, tensors: dict[str, Tensor], x: Tensor) -> int:
    """Values per example that two runs of a network side by side hold at a time, at the most."""
    values, finished, most = {0: x}, graph.finished, 0
    for index, node in enumerate(graph.nodes[1:], 1):
        given = {role: tensors[name] for role, name in node.parameters.items()}
        values[index] = run_node(node, [values[i] for i in node.inputs], given)
        most = max(most, sum(value.numel() for value in values.values()))
        for i in finished[index]:
            del values[i]
    return 2 * most // len(x)


def patches(x: Tensor, node: Node, shape: tuple[int, ...], most: int = 0, seed: int = 0) -> Tensor:
    """What the rows of a layer's weight are multiplied with, `(positions, groups, n)`; padding as zeros.

    Args:
        x: the layer's inputs.
        node: the layer.
        shape: of its weight.
        most: positions, drawn where there are more; 0: all.
        seed: draws them.
    """
    if node.op == "linear":
        x = x.reshape(-1, x.shape[-1])
        return _drawn(x, 1, most, seed)[:, None]
    a, rank = node.attributes, len(shape) - 2
    x, padding = padded(x, a)
    x = F.pad(x, [size for size in reversed(padding) for _ in range(2)])
    for axis, (kernel, stride, dilation) in enumerate(zip(shape[2:], a["stride"], a["dilation"], strict=True), 2):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    x = _drawn(x.movedim(1, 1 + rank), 1 + rank, most, seed)  # (batch, *positions, channels, *kernel)
    return x.reshape(-1, a.get("groups", 1), shape[1] * math.prod(shape[2:]))


def _drawn(x: Tensor, axes: int, most: int, seed: int) -> Tensor:
    """At most so many places of the first axes, as one axis; all of them where they are no more."""
    count = math.prod(x.shape[:axes])
    if not 0 < most < count:
        return x
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
    return x[torch.unravel_index(rows, x.shape[:axes])]


def moments(now: list[Tensor], before: list[Tensor], node: Node, shape: tuple[int, ...]) -> Moments:
    """Moments of a layer's inputs, from the same examples in chunks, as they are now and as they were before."""
    n, groups = math.prod(shape[1:]), node.attributes.get("groups", 1)
    second, cross = torch.zeros(2, groups, n, n, dtype=torch.float64)
    same = all(one is other for one, other in zip(now, before, strict=True))
    total, share = 0, POSITIONS // len(now)
    for index, (one, other) in enumerate(zip(now, before, strict=True)):
        a = patches(one, node, shape, share, index)
        second += a.permute(1, 2, 0) @ a.transpose(0, 1)
        if not same:
            cross += patches(other, node, shape, share, index).permute(1, 2, 0) @ a.transpose(0, 1)
        total += len(a)
    return Moments(second / total, (second if same else cross) / total)
