"""Every use that a network makes of a weight, as a product of rows with what they are multiplied with.

Rounding with compensation knows matrices: `(groups, rows, n)`, each row multiplied with the same n inputs. A use says
how a tensor lies as such rows, and what its inputs are. Rows of a table that are looked up have one input, how often
they are; so has each value of a weight whose use is none of these, or that is used more than once: it is rounded by
itself, by the Fisher information of its own gradient.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.graph.rules.layers import padded
from pyro_compress.types import Graph, Node

ROWS, TURNED, ACROSS, LOOKED_UP, STATE, SINGLE = "rows", "turned", "across", "looked up", "state", "single"
"""Rows first; columns first; of transposed convolutions; tables; on a recurrent layer's own outputs; value by value."""
KINDS = {
    ("linear_transpose", "weight"): TURNED, ("embedding", "weight"): LOOKED_UP,
    **{(f"conv_transpose{rank}d", "weight"): ACROSS for rank in (1, 2, 3)},
    **{(op, "weight_ih"): ROWS for op in ("lstm", "gru")}, **{(op, "weight_hh"): STATE for op in ("lstm", "gru")},
}  # fmt: skip
"""(Operation, role) of the weights of operations that are no layers with `(out, in / groups, *kernel)` weights."""


@dataclass(frozen=True)
class Use:
    """A node's use of a weight.

    Attributes:
        index: of the node.
        node: it.
        role: of the weight in it.
        kind: how its rows lie.
        shape: of the weight.
    """

    index: int
    node: Node
    role: str
    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the weight."""
        return self.node.parameters[self.role]

    @property
    def by_element(self) -> bool:
        """Whether every row has one input of its own, so that nothing can make up for anything."""
        return self.kind in (LOOKED_UP, SINGLE)

    @property
    def size(self) -> tuple[int, int, int]:
        """(groups, rows, n)."""
        groups = self.node.attributes.get("groups", 1)
        if self.kind == SINGLE:
            return math.prod(self.shape), 1, 1
        if self.kind == LOOKED_UP:
            return self.shape[0], self.shape[1], 1
        if self.kind == TURNED:
            return 1, self.shape[1], self.shape[0]
        if self.kind == ACROSS:
            return groups, self.shape[1], self.shape[0] // groups * math.prod(self.shape[2:])
        return groups, self.shape[0] // groups, math.prod(self.shape[1:])

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Values in the weight's shape as `(groups, rows, n)`."""
        groups, rows, n = self.size
        if self.kind == TURNED:
            return values.T[None]
        if self.kind == ACROSS:
            return values.reshape(groups, -1, rows, math.prod(self.shape[2:])).swapaxes(1, 2).reshape(groups, rows, n)
        return values.reshape(groups, rows, n)

    def tensor(self, rows: np.ndarray) -> np.ndarray:
        """The way back."""
        groups, count, _ = self.size
        if self.kind == TURNED:
            return np.ascontiguousarray(rows[0].T)
        if self.kind == ACROSS:
            rows = rows.reshape(groups, count, -1, math.prod(self.shape[2:])).swapaxes(1, 2)
        return np.ascontiguousarray(rows).reshape(self.shape)


def uses_of(graph: Graph, shapes: Mapping[str, tuple[int, ...]], names: Collection[str] = ()) -> dict[int, list[Use]]:
    """What every node multiplies by, by its index; a weight that is used more than once counts at its first use.

    Args:
        graph: the network.
        shapes: of its tensors.
        names: weights that are rounded, beside those of all layers.
    """
    count = Counter(name for node in graph.nodes for name in node.parameters.values())
    found, seen = dict[int, list[Use]](), set[str]()
    for index, node in enumerate(graph.nodes):
        for role, name in node.parameters.items():
            layer = role == "weight" and is_weighted(node.op)
            kind = ROWS if layer else KINDS.get((node.op, role), SINGLE)
            if name in seen or not (layer or name in names):
                continue
            seen.add(name)
            use = Use(index, node, role, kind if count[name] == 1 else SINGLE, shapes[name])
            found.setdefault(index, []).append(use)
    return found


def patches(x: Tensor, use: Use, most: int = 0, seed: int = 0) -> Tensor:
    """What the rows of a weight are multiplied with, `(positions, groups, n)`; padding as zeros.

    Args:
        x: the layer's inputs; of a recurrent weight on its own outputs, these (`before_steps`).
        use: of the weight, with the same inputs for all rows.
        most: positions, drawn where there are more; 0: all.
        seed: draws them.
    """
    groups, _, n = use.size
    if len(use.shape) == 2:
        x = x.reshape(-1, x.shape[-1])
        return _drawn(x, 1, most, seed)[:, None]
    a, kernel = use.node.attributes, use.shape[2:]
    if use.kind == ACROSS:
        x, window = _spread(x, use), [(k, 1, d) for k, d in zip(kernel, a["dilation"], strict=True)]
    else:
        x, padding = padded(x, a)
        x = F.pad(x, [size for size in reversed(padding) for _ in range(2)])
        window = list(zip(kernel, a["stride"], a["dilation"], strict=True))
    for axis, (size, stride, dilation) in enumerate(window, 2):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    rank = len(kernel)
    x = _drawn(x.movedim(1, 1 + rank), 1 + rank, most, seed)  # (batch, *positions, channels, *kernel)
    if use.kind == ACROSS:
        x = x.flip(list(range(x.dim() - rank, x.dim())))
    return x.reshape(-1, groups, n)


def _spread(x: Tensor, use: Use) -> Tensor:
    """Inputs of a transposed convolution with zeros between them, padded so that a plain one does the same."""
    a, kernel = use.node.attributes, use.shape[2:]
    whole = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], a["stride"], strict=True)))
    places = tuple(slice(None, None, s) for s in (1, 1, *a["stride"]))
    whole[places] = x
    borders = [
        (d * (k - 1) - p, d * (k - 1) - p + e)
        for k, d, p, e in zip(kernel, a["dilation"], a["padding"], a["extra"], strict=True)
    ]
    return F.pad(whole, [size for pair in reversed(borders) for size in pair])


def before_steps(outputs: Tensor, node: Node) -> Tensor:
    """What a recurrent layer's own weights are multiplied with: its outputs `(batch, steps, units)`, a step earlier."""
    if node.attributes.get("reverse"):
        return F.pad(outputs[:, 1:], (0, 0, 0, 1))
    return F.pad(outputs[:, :-1], (0, 0, 1, 0))


def frequencies(x: Tensor, rows: int) -> Tensor:
    """How often every row of a table is looked up, `(rows,)`, float64, as a share of the positions."""
    return torch.bincount(x.reshape(-1), minlength=rows).double() / x.numel()


def _drawn(x: Tensor, axes: int, most: int, seed: int) -> Tensor:
    """At most so many places of the first axes, as one axis; all of them where they are no more."""
    count = math.prod(x.shape[:axes])
    if not 0 < most < count:
        return x
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
    return x[torch.unravel_index(rows, x.shape[:axes])]
