"""The tensors of a network while it is made smaller: weights as they came, copied before the first change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from pyro_compress.graph.operations.row import Channels
from pyro_compress.graph.operations.table import OPERATIONS, is_weighted
from pyro_compress.types import CACHED, Graph, Node, blocks, rows_of


class Held:
    """The tensors of a network.

    Attributes:
        tensors: by name; all but weights of layers in double.
        uses: how many operations read each.
    """

    def __init__(self, graph: Graph, tensors: dict[str, Tensor], spare: Collection[str] = ()):
        self.uses = Counter(name for node in graph.nodes for name in node.parameters.values())
        weights = {node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)}
        self.tensors = {n: tensor if n in weights else tensor.double().clone() for n, tensor in tensors.items()}
        self.shared = weights - set(spare)
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def of(self, node: Node) -> dict[str, Tensor]:
        """Tensors of a node by role."""
        return {role: self.tensors[name] for role, name in node.parameters.items()}

    def alone(self, node: Node) -> bool:
        """Whether nobody else reads the tensors of a node."""
        return all(self.uses[name] == 1 for name in node.parameters.values())

    def occupied(self, name: str) -> tuple[Tensor, Tensor]:
        """How many values of every row of a weight are not zero, and which columns hold any that is not."""
        if name not in self.seen:  # looked at anew only where it has changed
            self.seen[name] = _occupied(self.tensors[name])
        return self.seen[name]

    def changeable(self, name: str) -> Tensor:
        """A weight that is about to be changed in place."""
        self.seen.pop(name, None)
        if name in self.shared:
            self.tensors[name] = self.tensors[name].clone()
            self.shared.remove(name)
        return self.tensors[name]


def kind_of(node: Node) -> Channels:
    """What an operation does to channels."""
    return OPERATIONS[node.op].channels if node.op in OPERATIONS else Channels.MIXED


def is_by_channel(node: Node) -> bool:
    """Whether a node's tensors have an entry per channel of its output."""
    return node.op in OPERATIONS and OPERATIONS[node.op].by_channel


def _occupied(weight: Tensor) -> tuple[Tensor, Tensor]:
    counts, columns = [], np.zeros(weight.shape[1], bool)
    for part in blocks(weight, CACHED):
        used = (part != 0).numpy().reshape(len(part), weight.shape[1], -1)
        counts += [np.count_nonzero(row) for row in used]
        columns |= used.any((0, 2))
    return torch.tensor(counts), torch.from_numpy(columns)


def cut(tensor: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """Some rows of a tensor, and of these some columns: a copy."""
    width = () if columns is None else (len(columns),)
    found = tensor.new_empty((len(rows), *width, *tensor.shape[1 + len(width) :]))
    for part in rows_of((len(rows), *tensor.shape[1:]), CACHED):
        taken = tensor[rows[part]]
        found[part] = taken if columns is None else taken.index_select(1, columns)
    return found
