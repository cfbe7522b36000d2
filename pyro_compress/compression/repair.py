"""After rounding: what is no weight learns to make up for it, from the network as it was given and without labels.

Integers stay. Biases and the scales and shifts of norms are trained so that the outputs say what those of the given
network said (distillation, Hinton et al. 2015): the loss is the divergence of the two predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pyro_compress.graph.network import run_graph
from pyro_compress.graph.operations.norms import STATISTICS_ROLES
from pyro_compress.pcn import gate
from pyro_compress.types import Graph

MOST_WORK = 2e11
"""Multiply-adds of all forward passes, about: larger networks get fewer epochs, or none."""
BATCH, LR = 128, 2e-3
"""Examples of a step, and Adam's rate, which falls to 0."""

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(outputs, those of the given network) -> mean divergence in nats."""


def affordable(graph: Graph, tensors: dict[str, Tensor], examples: int, epochs: int) -> int:
    """Epochs that `MOST_WORK` allows, and no more than asked for."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    work = gate.check(graph, shapes, gate.UNLIMITED).work
    return min(epochs, int(MOST_WORK / max(work * examples, 1)))


def free_vectors(graph: Graph, tensors: dict[str, Tensor], rounded: Collection[str]) -> list[str]:
    """Names of the vectors that may move: of operations with a row, neither rounded weights nor statistics."""
    found = {
        name: None
        for node in graph.nodes
        if node.op != "aten"
        for role, name in node.parameters.items()
        if role not in STATISTICS_ROLES
        and name not in rounded
        and tensors[name].dim() == 1
        and tensors[name].is_floating_point()
    }
    return list(found)


def repaired(
    graph: Graph, tensors: dict[str, Tensor], rounded: Collection[str], x: Tensor, wanted: Tensor,
    divergence: Divergence, epochs: int, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """The rounded network with its vectors trained.

    Args:
        graph: the network.
        tensors: its tensors, after rounding.
        rounded: names of those that lie on a grid.
        x: examples.
        wanted: outputs of the given network on them.
        divergence: of the task.
        epochs: passes over the examples.
        seed: of their order.
    """
    tensors = dict(tensors)
    free = {name: tensors[name].detach().clone().requires_grad_() for name in free_vectors(graph, tensors, rounded)}
    if not free:
        return tensors
    tensors |= free
    optimizer, generator = torch.optim.Adam(free.values(), LR), torch.Generator().manual_seed(seed)
    total = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(BATCH):
                optimizer.zero_grad()
                divergence(run_graph(graph, tensors, x[rows]), wanted[rows]).backward()
                optimizer.step()
                schedule.step()
    return tensors | {name: tensor.detach() for name, tensor in free.items()}
