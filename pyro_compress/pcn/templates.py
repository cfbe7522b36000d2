"""Networks that a file names instead of spelling out: a name, an input shape and widths give graph and tensor shapes.

The numbers and what they build are part of the file format. A network that does not match a template exactly is
written as its own graph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from pyro_compress.types import Graph, Node

Built = tuple[Graph, dict[str, tuple[int, ...]]]
Template = Callable[[tuple[int, ...], tuple[int, ...]], Built]


def mlp(input_shape: tuple[int, ...], widths: tuple[int, ...]) -> Built:
    """Flattened input, linear layers with biases, a ReLU between two of them."""
    nodes = [Node("input"), Node("reshape", (0,), {}, {"shape": [math.prod(input_shape)]})]
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (into, out) in enumerate(itertools.pairwise((math.prod(input_shape), *widths))):
        if index:
            nodes.append(Node("relu", (len(nodes) - 1,)))
        nodes.append(_weighted("linear", len(nodes) - 1, str(2 * index + 1), shapes, (out, into)))
    return Graph(tuple(nodes), input_shape), shapes


def lenet_5(input_shape: tuple[int, ...], widths: tuple[int, ...], relu: bool) -> Built:
    """Two 5×5 convolutions, each max-pooled (and rectified, or not), and two linear layers with a ReLU between.

    Raises:
        ValueError: not four widths, or not an image that this fits.
    """
    if len(widths) != 4 or len(input_shape) != 3 or min(input_shape[1:]) < 16:
        raise ValueError(f"LeNet-5 with widths {widths} on inputs of shape {input_shape}")
    side = [((size - 4) // 2 - 4) // 2 for size in input_shape[1:]]
    first, second, hidden, classes = widths
    flat = second * math.prod(side)
    nodes, shapes = [Node("input")], dict[str, tuple[int, ...]]()
    conv = {"stride": [1, 1], "padding": [[0, 0], [0, 0]], "dilation": [1, 1]}
    for name, shape in (("0", (first, input_shape[0], 5, 5)), ("3", (second, first, 5, 5))):
        nodes.append(_weighted("conv2d", len(nodes) - 1, name, shapes, shape, conv))
        nodes.append(Node("max_pool", (len(nodes) - 1,), {}, {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0]}))
        if relu:
            nodes.append(Node("relu", (len(nodes) - 1,)))
    nodes.append(Node("reshape", (len(nodes) - 1,), {}, {"shape": [flat]}))
    nodes.append(_weighted("linear", len(nodes) - 1, "7", shapes, (hidden, flat)))
    nodes.append(Node("relu", (len(nodes) - 1,)))
    nodes.append(_weighted("linear", len(nodes) - 1, "9", shapes, (classes, hidden)))
    return Graph(tuple(nodes), input_shape), shapes


def _weighted(
    op: str, source: int, name: str, shapes: dict[str, tuple[int, ...]], shape: tuple[int, ...],
    attributes: dict[str, object] | None = None,
) -> Node:  # fmt: skip
    shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return Node(op, (source,), {"weight": f"{name}.weight", "bias": f"{name}.bias"}, dict(attributes or {}))


TEMPLATES: dict[int, Template] = {
    1: mlp,
    2: lambda input_shape, widths: lenet_5(input_shape, widths, relu=False),
    3: lambda input_shape, widths: lenet_5(input_shape, widths, relu=True),
}
"""Number in the file -> template; 0 stands for a graph that is spelled out."""


def matching(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> tuple[int, tuple[int, ...]] | None:
    """Number and widths of the template that builds exactly this network; None if none does."""
    widths = tuple(shapes[n.parameters["weight"]][0] for n in graph.nodes if "weight" in n.parameters)
    for number, template in TEMPLATES.items():
        try:
            built = template(graph.input_shape, widths)
        except ValueError:
            continue
        if built == (graph, shapes):
            return number, widths
    return None
