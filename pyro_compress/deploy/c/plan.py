"""A network as the loops of a C program: what is folded into what, and what runs over which output.

A loop is one loop nest of the generated code. Batch norm behind a layer becomes the layer's scale and bias, functions
of single values run over the output of the loop before them, padding is a loop of its own, and reshaping is none,
because values lie in memory as torch numbers them. What else an operation becomes is the C face of its rule
(`graph.faces.c`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from pyro_compress.graph.faces.c import Layer, Loop, LoopRule, Shape, Single, Weights, spatial, zero_border
from pyro_compress.graph.operations.kept import refuse_kept
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.graph.rules.table import RULES
from pyro_compress.pcn.file import dense, plan_of
from pyro_compress.types import Compressed, Graph, Node, Quantized


def supported() -> list[str]:
    """Operations that can be exported to C."""
    return [op for op, rule in RULES.items() if rule.c or OPERATIONS[op].affine]


def is_layer(loop: Loop) -> bool:
    """Whether a loop is a layer with weights."""
    return loop.op in RULES and isinstance(RULES[loop.op].c, Layer)


def planned(network: Compressed) -> list[Loop]:
    """The loops of a network in order; the last one's output is the network's. Raises as `loop_plan`."""
    return loop_plan(network).loops


def loop_plan(network: Compressed) -> LoopPlan:
    """A network's loops, and which of them has the value of which operation.

    Operations whose value nobody reads become none.

    Raises:
        ValueError: an operation that the C export does not know; it is named.
    """
    refuse_kept(network.graph, "C")
    network = replace(network, graph=_read(network.graph))
    known = supported()
    for node in network.graph.nodes[1:]:
        if node.op not in known:
            raise ValueError(
                f"operation {node.op!r} is not supported in C (supported: {', '.join(known)}); "
                "export to model.onnx, or to a folder for numpy, which know them all"
            )
    return LoopPlan(network)


def _read(graph: Graph) -> Graph:
    """The graph without operations that do not lead to its output."""
    last = len(graph.nodes) - 1
    found = {0, last}
    for index in range(last, 0, -1):
        if index in found:
            found.update(graph.nodes[index].inputs)
    new = {old: place for place, old in enumerate(sorted(found))}
    nodes = (replace(graph.nodes[old], inputs=tuple(new[i] for i in graph.nodes[old].inputs)) for old in new)
    return replace(graph, nodes=tuple(nodes))


class LoopPlan:
    """One pass over the graph.

    Attributes:
        network: what is exported.
        shapes: of one example's value behind every node.
        loops: so far.
        value: node of the graph -> the loop that computes it (-1: the input).
        alone: nodes whose value nobody else reads, so that it may be changed where it lies.
    """

    def __init__(self, network: Compressed):
        self.network, self.loops = network, list[Loop]()
        self.shapes = plan_of(network).shapes
        self.value, self.alone = {0: -1}, {0: False}
        readers = Counter(i for node in network.graph.nodes for i in node.inputs)
        for index, node in enumerate(network.graph.nodes[1:], 1):
            self.place(node, index)
            single = readers[index] == 1
            passed_on = self.value[index] == self.value[node.inputs[0]]
            self.alone[index] = single and self.value[index] >= 0 and (not passed_on or self.alone[node.inputs[0]])
        last = len(network.graph.nodes) - 1
        if not self.loops or self.value[last] != len(self.loops) - 1:
            self.copy(last, last)

    def place(self, node: Node, index: int) -> None:
        """Turn one node into a loop, or into a part of the one before."""
        first, face = node.inputs[0], RULES[node.op].c
        self.value[index] = self.value[first]
        if isinstance(face, Single):
            if not self.alone[first]:
                self.copy(first, index)
            self.loops[self.value[index]].after.append(node)
        elif isinstance(face, Layer):
            self.layer(node, index)
        elif isinstance(face, LoopRule):
            self.value[index] = face.place(self, node, index)
        else:
            self.normalised(node, index)

    def add(self, loop: Loop) -> int:
        """Append a loop; returns its index."""
        self.loops.append(loop)
        return len(self.loops) - 1

    def copy(self, source: int, index: int) -> None:
        """Values that others still read are copied before a function runs over them."""
        shape = spatial(self.shapes[index])
        self.value[index] = self.add(Loop("copy", [self.value[source]], [shape], shape))

    def padded(self, source: int, sources: list[list[int]], fill: float) -> int:
        """Values with a border; `sources` names the row and the column that every row and column comes from."""
        channels, height, width = spatial(self.shapes[source])
        if sources == [list(range(height)), list(range(width))]:
            return self.value[source]
        shape = (channels, len(sources[0]), len(sources[1]))
        attributes = {"sources": sources, "fill": fill}
        before: Shape = (channels, height, width)
        return self.add(Loop("pad", [self.value[source]], [before], shape, attributes=attributes))

    def normalised(self, node: Node, index: int) -> None:
        """A scale and a shift per channel: into the layer before it where nobody else reads that, else as a loop."""
        affine, first = OPERATIONS[node.op].affine, node.inputs[0]
        assert affine is not None
        tensors = {role: dense(self.network.tensors[name]).astype(np.float64) for role, name in node.parameters.items()}
        scale, bias = affine(tensors, node.attributes)
        loop = self.loops[self.value[first]] if self.alone[first] else None
        if loop and loop.weights and not loop.after and is_layer(loop) and loop.shape[0] == len(scale):
            weights = loop.weights
            folded = scale * weights.scale, scale * weights.bias + bias
            loop.weights = replace(weights, scale=folded[0], bias=folded[1])
            return
        shape = spatial(self.shapes[index])
        weights = Weights(np.zeros(0), scale, bias)
        self.value[index] = self.add(Loop("affine", [self.value[first]], [shape], shape, weights))

    def layer(self, node: Node, index: int) -> None:
        """A layer with weights, behind a border where it has one."""
        first, a = node.inputs[0], node.attributes
        if "stride" not in a and len(self.shapes[first]) != 1:
            raise ValueError(
                "a linear layer at every position of a sequence is not supported in C; export to model.onnx, or to a "
                "folder for numpy"
            )
        channels, height, width = spatial(self.shapes[first])
        before, after = ([0] * (2 - len(side)) + list(side) for side in a.get("padding", ((0, 0), (0, 0))))
        sources = [zero_border(*around) for around in zip((height, width), before, after, strict=True)]
        value = self.padded(first, sources, 0.0)
        shape = (channels, len(sources[0]), len(sources[1]))
        loop = Loop(node.op, [value], [shape], spatial(self.shapes[index]), _weights(self.network, node))
        self.value[index] = self.add(loop)


def _weights(network: Compressed, node: Node) -> Weights:
    tensor, a = network.tensors[node.parameters["weight"]], node.attributes
    codes, step = (tensor.codes, tensor.step) if isinstance(tensor, Quantized) else (dense(tensor), 1.0)
    kernel = (1,) * (4 - codes.ndim) + codes.shape[2:]
    outputs = len(codes)
    bias = dense(network.tensors[node.parameters["bias"]]) if "bias" in node.parameters else np.zeros(outputs)

    def pair(name: str) -> tuple[int, int]:
        values = [1] * (2 - len(a.get(name, []))) + list(a.get(name, []))
        return values[0], values[1]

    return Weights(
        codes.reshape(outputs, codes.shape[1], *kernel), np.array(step, np.float64), bias.astype(np.float64),
        pair("stride"), pair("dilation"), a.get("groups", 1),
    )  # fmt: skip
