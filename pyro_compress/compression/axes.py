"""Where channels lie behind operations that move values: reshapes, permutations, entries taken of an axis.

What moves values moves the numbers of their channels in the same way. A node that names sizes or places says others
once channels are gone (`renamed`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.channels import Spaces, Value
from pyro_compress.graph.operations.row import Channels
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.types import Node

Dims = list[tuple[list[int], list[int]]]
Batches = tuple[tuple[int, ...], tuple[int, ...]]


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """Channels behind a reshape: along all axes that theirs, and those that are read together with them, become."""
    source, target = list[int](), list[int]()
    for one, other in _matched(value.shape, shape):
        if any(dim + 1 in value.axes for dim in one):
            source, target = source + one, target + other
    full, sizes = [value.shape[dim] for dim in source], [shape[dim] for dim in target]
    parts = [part.expand(full).reshape(sizes) for part in value.spread(dim + 1 for dim in source)]
    axes = tuple(dim + 1 for dim in target)
    return _lean(Value(shape, axes, *parts))


def regrouped(value: Value, source: Batches, target: Batches) -> Value | None:
    """Channels behind a reshape that makes other rows; None where they become a part of the rows.

    Args:
        value: what is reshaped.
        source: its shape for two numbers of examples, their rows first.
        target: the same of the output.
    """
    groups, again = (_matched(one, other) for one, other in zip(source, target, strict=True))
    touched = [group for group in groups if any(dim in value.axes for dim in group[0])]
    if groups != again or any(0 in (*one, *other) for one, other in touched):
        return None
    whole = Value(source[0], tuple(axis + 1 for axis in value.axes), value.ids, value.constant)
    found = reshaped(whole, target[0])
    return Value(target[0][1:], tuple(axis - 1 for axis in found.axes), found.ids, found.constant)


def without_idle(spaces: Spaces, nodes: list[Node], values: list[Value]) -> list[Node]:
    """Nodes without those that take all that is left of an axis.

    Args:
        spaces: settled, swept.
        nodes: renamed.
        values: what they make.
    """
    place, found = list[int](), list[Node]()
    for node, value in zip(nodes, values, strict=True):
        source = values[node.inputs[0]] if node.inputs else value
        takes = node.op in OPERATIONS and OPERATIONS[node.op].channels is Channels.TAKEN
        if takes and value.axes and spaces.sizes(source) == spaces.sizes(value) != value.shape:
            place.append(place[node.inputs[0]])
            continue
        place.append(len(found))
        found.append(replace(node, inputs=tuple(place[i] for i in node.inputs)))
    return found


def _matched(one: tuple[int, ...], other: tuple[int, ...]) -> Dims:
    """Dimensions of two shapes of as many values, in groups that hold the same values."""
    found: Dims = []
    i = j = 0
    while i < len(one) or j < len(other):
        first, second = i, j
        i, j = min(i + 1, len(one)), min(j + 1, len(other))
        while (a := math.prod(one[first:i])) != (b := math.prod(other[second:j])):
            i, j = (i + 1, j) if a < b else (i, j + 1)
        found.append((list(range(first, i)), list(range(second, j))))
    return found


def _lean(value: Value) -> Value:
    """Without axes of size 1, as long as one is left."""
    axes = tuple(axis for axis in value.axes if value.shape[axis - 1] > 1) or value.axes[:1]
    return Value(value.shape, axes, *value.spread(axes))


def permuted(value: Value, shape: tuple[int, ...], order: list[int]) -> Value:
    """Channels behind a permutation of the axes; `order` tells where each comes from."""
    places = [axis for axis, source in enumerate(order, 1) if source in value.axes]
    dims = [value.axes.index(order[axis - 1]) for axis in places]
    return Value(shape, tuple(places), value.ids.permute(dims), value.constant.permute(dims))


def taken(node: Node, value: Value, shape: tuple[int, ...]) -> Value | None:
    """Channels behind entries of an axis; None where they are not next to each other, and theirs is the axis."""
    axis = node.attributes["axis"]
    falls = len(shape) < len(value.shape)
    axes = tuple(one - (falls and one > axis) for one in value.axes if not (falls and one == axis))
    if axis not in value.axes:
        return replace(value, shape=shape, axes=axes)
    if node.attributes.get("step", 1) != 1:
        return None
    if not axes:  # one channel of all: it is an entry of nothing any more
        return None
    ids, constant = (_run(node, part, value.axes.index(axis)) for part in (value.ids, value.constant))
    return Value(shape, axes, ids, constant)


def _run(node: Node, part: Tensor, dim: int) -> Tensor:
    """The operation on numbers or constants of channels."""
    attributes = node.attributes | {"axis": dim + 1}
    return torch.from_numpy(np.ascontiguousarray(OPERATIONS[node.op].run(part.numpy()[None], {}, attributes)[0]))


def joined(values: list[Value], shape: tuple[int, ...], axis: int) -> Value:
    """Channels behind values that are joined along an axis of their channels."""
    dim = values[0].axes.index(axis)
    ids, constant = (torch.cat([getattr(v, part) for v in values], dim) for part in ("ids", "constant"))
    return Value(shape, values[0].axes, ids, constant)


def renamed(spaces: Spaces, node: Node, source: Value, value: Value) -> dict[str, Any]:
    """Attributes of a node that moves values, once channels are gone.

    Args:
        spaces: settled, swept.
        node: as it was.
        source: what it reads.
        value: what it makes.
    """
    kind = OPERATIONS[node.op].channels
    if kind in (Channels.FLATTENED, Channels.REGROUPED):
        return node.attributes | {"shape": list(spaces.sizes(value))}
    if kind is Channels.TAKEN and value.axes and node.attributes["axis"] in source.axes:
        there = spaces.there(source, node.attributes["axis"])
        places = {name: node.attributes[name] for name in ("index", "start", "stop") if name in node.attributes}
        return node.attributes | {name: int(there[:place].sum()) for name, place in places.items()}
    return node.attributes
