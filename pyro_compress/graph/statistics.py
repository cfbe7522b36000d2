"""Statistics of batch norm: taken anew, and what belongs to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_compress.graph.network import run_graph
from pyro_compress.graph.operations.norms import STATISTICS_ROLES
from pyro_compress.graph.operations.table import has_statistics
from pyro_compress.types import Graph, Node

STATISTICS = 1024
"""Examples that the statistics of batch norm are taken from, where they are taken anew."""
STATISTICS_VALUES = 1 << 22
"""Fewer examples are taken where they hold more values than this together, but 64 in any case."""


@torch.no_grad()
def batch_statistics(graph: Graph, tensors: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Mean and variance of what every batch norm is given when the network sees `x`, by their tensors' names.

    Weights that changed after training (averaged, pruned, rounded) make the running statistics stale; these are what
    they would be (Izmailov et al. 2018, section 3.2, for averaged weights).

    Args:
        graph: the network.
        tensors: its tensors, as they are now.
        x: examples of the training set, `(n, *input_shape)`; of many, `STATISTICS` are taken at random.
    """
    return _seen(graph, tensors, x, anew=True)


@torch.no_grad()
def renewed_statistics(graph: Graph, tensors: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Batch norm's tensors with the statistics of `x`, and weights and biases under which its outputs stay.

    A file holds scale and shift, and no statistics (`compression.packing`). Training that goes on from it normalises by
    the minibatch, and needs the weights and biases that belong to that.

    Args:
        graph: the network.
        tensors: its tensors.
        x: as for `batch_statistics`.
    """
    seen, found = _seen(graph, tensors, x, anew=False), dict[str, Tensor]()
    for node in foldable_norms(graph):
        names = [node.parameters[role] for role in ("weight", "bias", *STATISTICS_ROLES)]
        weight, bias, mean, variance = (tensors[name] for name in names)
        new_mean, new_variance, eps = seen[names[2]], seen[names[3]], node.attributes["eps"]
        scale = weight / (variance + eps).sqrt()
        new = scale * (new_variance + eps).sqrt(), bias + scale * (new_mean - mean), new_mean, new_variance
        found |= dict(zip(names, new, strict=True))
    return found


def foldable_norms(graph: Graph) -> list[Node]:
    """Batch norms with statistics, scale and shift, of which nothing means anything else to another operation."""
    roles = {"weight", "bias", *STATISTICS_ROLES}
    norms = [node for node in graph.nodes if has_statistics(node.op) and roles <= node.parameters.keys()]
    return [norm for norm in norms if all(_alike(norm, node) for node in graph.nodes)]


def _alike(norm: Node, node: Node) -> bool:
    """Whether another operation reads none of batch norm's tensors, or all of them in the same way."""
    apart = not set(norm.parameters.values()) & set(node.parameters.values())
    same = (node.op, node.parameters, node.attributes) == (norm.op, norm.parameters, norm.attributes)
    return apart or same


def _seen(graph: Graph, tensors: Mapping[str, Tensor], x: Tensor, anew: bool) -> dict[str, Tensor]:
    """Statistics of what every batch norm is given; anew: behind others that go by theirs already."""
    if not any(has_statistics(node.op) for node in graph.nodes):
        return {}
    enough = min(STATISTICS, max(64, STATISTICS_VALUES // max(x[:1].numel(), 1)))
    if len(x) > enough:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:enough]
        x = x[rows.to(x.device)]
    x = x.to(next(iter(tensors.values())).device)
    found = dict[str, Tensor]()
    current = dict(tensors)

    def look(node: Node, inputs: list[Tensor]) -> None:
        if not has_statistics(node.op):
            return
        axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
        variance, mean = torch.var_mean(inputs[0], axes, correction=0)
        found.update({node.parameters["running_mean"]: mean, node.parameters["running_var"]: variance})
        if anew:
            current.update(found)

    run_graph(graph, current, x, look)
    return found
