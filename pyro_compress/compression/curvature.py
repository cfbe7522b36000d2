"""What rounding a layer costs: how much its outputs matter, and what its inputs look like.

To second order, a change δ of the weights that make one output adds `½ · s · P · δ H δᵀ` to the loss: H is the second
moment of the layer's inputs, s the mean squared gradient of the loss at that output, P the number of positions that
the output is computed at. It is the Kronecker-factored Fisher information (Martens & Grosse 2015; Grosse & Martens 2016
for convolutions) with its output factor taken as diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_compress.compression.uses import LOOKED_UP, SINGLE, STATE, Use, frequencies, patches
from pyro_compress.data.several import task_named
from pyro_compress.graph.operations.row import Value
from pyro_compress.graph.operations.sequences import GATES
from pyro_compress.graph.rules.sequences import parameters_of
from pyro_compress.graph.rules.table import run_node
from pyro_compress.pcn.gate import UNLIMITED, check
from pyro_compress.types import Graph, Node

Uses = Mapping[int, list[Use]]
"""Of weights, by the index of the node."""

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
    """What the outputs of a weight's rows are worth.

    Attributes:
        squares: mean squared gradient of the loss at each output, over examples and positions, `(out,)`, float64; of
            a weight that is rounded value by value at each value, `(values,)`.
        positions: at how many positions an output is computed.
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
    graph: Graph, tensors: dict[str, Tensor], x: Tensor, uses: Uses, gradient: Noise = drawn_labels, seed: int = 0
) -> dict[str, Sensitivity]:
    """Mean squared gradient at the outputs of every weight's rows, by the weight's name.

    Of a weight that is rounded value by value it is that of the values themselves, an estimate of the diagonal of the
    Fisher information: gradients at drawn labels have a mean of 0, so the square of their sum over examples is the sum
    of their squares in expectation. So it is with outputs that are the same for all examples (of positions, say).

    Args:
        graph: the network.
        tensors: its tensors.
        x: examples; no labels are needed.
        uses: of its weights (`uses_of`).
        gradient: what the task's likelihood says of the outputs.
        seed: draws the labels.
    """
    generator = torch.Generator().manual_seed(seed)
    sums, positions = dict[str, Tensor](), dict[str, int]()
    flows = check(graph, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, UNLIMITED).flows
    alone = {use.name for parts in uses.values() for use in parts if use.kind == SINGLE}
    held = {name: t.detach().clone().requires_grad_() if name in alone else t.detach() for name, t in tensors.items()}
    for part in x.split(CHUNK):
        with torch.enable_grad():
            outputs, leaves = _watched(graph, held, part, uses, flows)
            flat = [leaf for parts, *_ in leaves.values() for leaf in parts]
            for draw in range(DRAWS):
                wanted, again = gradient(outputs.detach(), generator), draw < DRAWS - 1
                grads = torch.autograd.grad(outputs, flat, wanted, retain_graph=again, allow_unused=True)
                given = iter([torch.zeros_like(x) if g is None else g for x, g in zip(flat, grads, strict=True)])
                for name, (parts, axis, rows) in leaves.items():
                    found = [next(given) for _ in parts]
                    if name in alone:
                        squares, positions[name] = found[0].flatten().square(), 1
                    else:
                        one = (torch.stack(found, 1) if len(found) > 1 else found[0]).movedim(axis, -1)
                        channels = one.reshape(len(part) if rows else 1, -1, one.shape[-1])
                        squares, positions[name] = channels.square().mean(1).sum(0), channels.shape[1]
                    sums[name] = sums.get(name, 0.0) + squares.double()
    return {name: Sensitivity(total / (DRAWS * len(x)), positions[name]) for name, total in sums.items()}


def _watched(
    graph: Graph, tensors: dict[str, Tensor], x: Tensor, uses: Uses, flows: Sequence[Value]
) -> tuple[Tensor, dict[str, tuple[list[Tensor], int, bool]]]:
    """The outputs, and per weight the values whose gradients are asked for.

    With the axis of their channels, and whether every example has its own.
    """
    values, leaves = {0: x}, dict[str, tuple[list[Tensor], int, bool]]()
    for index, node in enumerate(graph.nodes[1:], 1):
        rows = bool(flows[index].rows)
        given = {role: tensors[name] for role, name in node.parameters.items()}
        products = [use for use in uses.get(index, ()) if use.kind != SINGLE]
        if products and node.op in GATES:
            values[index], into, across = stepped(node, values[node.inputs[0]], given)
            for use in products:
                leaves[use.name] = across if use.kind == STATE else [into], -1, rows
        else:
            values[index] = run_node(node, [values[i] for i in node.inputs], given)
            for use in products:
                _with_gradient(values[index])
                leaves[use.name] = [values[index]], -1 if len(use.shape) == 2 else 1, rows
        leaves |= {use.name: ([tensors[use.name]], 0, False) for use in uses.get(index, ()) if use.kind == SINGLE}
    return values[len(graph.nodes) - 1], leaves


def _with_gradient(value: Tensor) -> Tensor:
    return value if value.requires_grad else value.requires_grad_()


def stepped(node: Node, x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A recurrent layer step by step: its outputs, and what inputs and outputs before add to its gates.

    Args:
        node: an `lstm` or a `gru`.
        x: `(batch, steps, features)`.
        p: its tensors by role.

    Returns:
        `(batch, steps, units)`; `(batch, steps, gates * units)`; of every step, in the order in which they are taken,
        `(batch, gates * units)`. Gradients reach both.
    """
    weight, recurrent, *biases = parameters_of(p)
    b_ih, b_hh = biases or [torch.zeros(()), torch.zeros(())]
    into = _with_gradient(x @ weight.T + b_ih)
    h = c = x.new_zeros(len(x), recurrent.shape[1])
    across, found, steps = list[Tensor](), dict[int, Tensor](), into.unbind(1)
    for t in range(x.shape[1] - 1, -1, -1) if node.attributes.get("reverse") else range(x.shape[1]):
        kept = _with_gradient(h @ recurrent.T + b_hh)
        across.append(kept)
        if node.op == "lstm":
            i, f, g, o = (steps[t] + kept).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (r, z, n), (r_h, z_h, n_h) = steps[t].chunk(3, 1), kept.chunk(3, 1)
            z = (z + z_h).sigmoid()
            h = (1 - z) * (n + (r + r_h).sigmoid() * n_h).tanh() + z * h
        found[t] = h
    return torch.stack([found[t] for t in range(x.shape[1])], 1), into, across


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


def moments(now: list[Tensor], before: list[Tensor], use: Use) -> Moments:
    """Moments of what a weight's rows are multiplied with, from the same examples in chunks.

    Args:
        now: as it is.
        before: as it was.
        use: of the weight.
    """
    groups, _, n = use.size
    if use.kind == SINGLE:
        ones = torch.ones(groups, 1, 1, dtype=torch.float64)
        return Moments(ones, ones)
    if use.kind == LOOKED_UP:
        counted = frequencies(torch.cat([one.reshape(-1) for one in now]), groups)[:, None, None]
        return Moments(counted, counted)
    second, cross = torch.zeros(2, groups, n, n, dtype=torch.float64)
    same = all(one is other for one, other in zip(now, before, strict=True))
    total, share = 0, POSITIONS // len(now)
    for index, (one, other) in enumerate(zip(now, before, strict=True)):
        a = patches(one, use, share, index)
        second += a.permute(1, 2, 0) @ a.transpose(0, 1)
        if not same:
            cross += patches(other, use, share, index).permute(1, 2, 0) @ a.transpose(0, 1)
        total += len(a)
    second /= total
    return Moments(second, second if same else cross / total)
