"""How a weight tensor lies in space: rows of planes of `height × width` values, read off the graph.

A filter of a convolution has one plane per input channel. A linear layer that reads a flattened image has one plane of
pixels per channel; any other has one 1 × 1 plane per input. Writer and reader derive it alike, so it takes no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Set

from pyro_compress.graph.operations.table import OPERATIONS, is_flattening, is_weighted
from pyro_compress.types import Graph

Layout = tuple[int, int, int, int]
"""(rows, planes, height, width)."""

NEWEST = 6


def passed_by(version: int) -> frozenset[str]:
    """Operations that a look back passes by, to their first input, in a version of the format.

    Part of the format: with another set a file decodes into other weights.
    """
    rows = OPERATIONS.items()
    return frozenset(op for op, row in rows if row.passed_since is not None and row.passed_since <= version)


def layouts(graph: Graph, shapes: dict[str, tuple[int, ...]], version: int = NEWEST) -> dict[str, Layout]:
    """Layout of every tensor that has values, by name; a vector is a column of rows with one value each.

    Args:
        graph: the network.
        shapes: shape of every tensor.
        version: of the format.
    """
    found = {name: plain(shape) for name, shape in shapes.items()}
    origins = _origins(graph, passed_by(version))
    for node in graph.nodes:
        name = node.parameters.get("weight", "")
        if is_weighted(node.op) and node.inputs and len(shapes.get(name, ())) == 2:
            found[name] = _linear(graph, shapes, name, origins, node.inputs[0])
    return {name: layout for name, layout in found.items() if math.prod(layout)}


def plain(shape: tuple[int, ...]) -> Layout:
    """Layout of a tensor of which nothing but the shape is known."""
    rows, columns, *kernel = (*shape, 1, 1)[: max(len(shape), 2)]
    height, width = (1, 1, *kernel)[-2:]
    return rows, math.prod((columns, *kernel)) // max(height * width, 1), height, width


def _linear(graph: Graph, shapes: dict[str, tuple[int, ...]], name: str, origins: list[int], source: int) -> Layout:
    """Follow the input back to where it was flattened, and from there to what made its channels."""
    rows, columns = shapes[name]
    source = origins[source]
    if not is_flattening(graph.nodes[source].op) or not graph.nodes[source].inputs:
        return rows, columns, 1, 1
    origin = origins[graph.nodes[source].inputs[0]]
    node = graph.nodes[origin]
    if origin == 0 and len(graph.input_shape) == 3 and math.prod(graph.input_shape) == columns:
        return (rows, *graph.input_shape)
    channels = (*shapes.get(node.parameters.get("weight", ""), ()), 0)[0] if is_weighted(node.op) else 0
    if not channels or columns % channels:
        return rows, columns, 1, 1
    area = columns // channels
    side = math.isqrt(area)
    return (rows, channels, side, side) if side * side == area else (rows, channels, 1, area)


def _origins(graph: Graph, passed: Set[str]) -> list[int]:
    """Per node, where its channels come from: itself, or behind a chain of operations that are passed by."""
    found = list[int]()
    for index, node in enumerate(graph.nodes):
        found.append(found[node.inputs[0]] if node.op in passed and node.inputs else index)
    return found
