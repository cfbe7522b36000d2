"""Reading less of the input: the smallest window of it that holds every value a network reads.

Units in the middle of a network are removed for good; inputs cannot be, because whoever calls the network delivers all
of them. Gathering the surviving ones costs more than it saves (each is copied by itself), but a window is copied row by
row, and the first layer then multiplies only what lies in it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pyro_compress.pcn.file import dense
from pyro_compress.types import Compressed, Node, Quantized

WORTH = 0.85
"""A window of more than this share of the inputs is not worth the copy."""


def cropped(network: Compressed) -> Compressed:
    """The same function with a `crop` node behind the input, or the network as it is where that does not pay.

    Only an input that goes straight into one linear layer, flattened or not, is cropped: a convolution slides over all
    of it.
    """
    graph = network.graph
    readers = [i for i, node in enumerate(graph.nodes) if 0 in node.inputs]
    flat = len(readers) == 1 and graph.nodes[readers[0]].op == "reshape" and len(graph.input_shape) > 1
    if flat:
        flat = graph.nodes[readers[0]].attributes["shape"] == [math.prod(graph.input_shape)]
        readers = [i for i, node in enumerate(graph.nodes) if readers[0] in node.inputs]
    if len(readers) != 1 or graph.nodes[readers[0]].op != "linear" or not (flat or len(graph.input_shape) == 1):
        return network
    name = graph.nodes[readers[0]].parameters["weight"]
    weight = dense(network.tensors[name])
    window = _window(weight.any(0).reshape(graph.input_shape))
    size = math.prod(part.stop - part.start for part in window)
    if size > WORTH * weight.shape[1]:
        return network
    return _with_window(network, name, window, size, flat)


def _window(live: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around the live inputs; a single input where none is."""
    places = np.argwhere(live)
    if not len(places):
        return tuple(slice(0, 1) for _ in live.shape)
    corners = zip(places.min(0), places.max(0), strict=True)
    return tuple(slice(int(low), int(high) + 1) for low, high in corners)


def _with_window(network: Compressed, name: str, window: tuple[slice, ...], size: int, flat: bool) -> Compressed:
    graph, tensor = network.graph, network.tensors[name]

    def cut(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, *graph.input_shape)[(slice(None), *window)].reshape(-1, size)

    smaller = Quantized(cut(tensor.codes), tensor.step) if isinstance(tensor, Quantized) else cut(tensor)
    corners = {"starts": [part.start for part in window], "ends": [part.stop for part in window]}
    nodes = [graph.nodes[0], Node("crop", (0,), {}, corners)]
    for node in graph.nodes[1:]:
        if flat and node.op == "reshape" and node.inputs == (0,):
            node = replace(node, attributes={"shape": [size]})
        nodes.append(replace(node, inputs=tuple(i + 1 for i in node.inputs)))
    return Compressed(replace(graph, nodes=tuple(nodes)), network.tensors | {name: smaller}, network.meta)
