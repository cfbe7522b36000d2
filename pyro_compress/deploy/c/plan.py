"""A network as the steps of a C program: what is folded into what, and what runs over which output.

A step is one loop nest of the generated code. Batch norm behind a layer becomes the layer's scale and bias, functions
of single values run over the output of the step before them, padding is a step of its own, and reshaping is none,
because values lie in memory as torch numbers them. What else an operation becomes is the C face of its rule
(`graph.faces.c`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from pyro_compress.graph.faces.c import Layer, Shape, Single, Step, Stepped, Weights, spatial, zero_border
from pyro_compress.graph.operations.kept import refuse_kept
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.graph.rules.table import RULES
from pyro_compress.pcn.file import dense, plan_of
from pyro_compress.types import Compressed, Graph, Node, Quantized


def supported() -> list[str]:
    """Operations that can be exported to C."""
    return [op for op, rule in RULES.items() if rule.c or OPERATIONS[op].affine]


def is_layer(step: Step) -> bool:
    """Whether a step is a layer with weights."""
    return step.op in RULES and isinstance(RULES[step.op].c, Layer)


def planned(network: Compressed) -> list[Step]:
    """The steps of a network in order; the last one's output is the network's.

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
    return _Plan(network).steps


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


class _Plan:
    """One pass over the graph.

    Attributes:
        network: what is exported.
        shapes: of one example's value behind every node.
        steps: so far.
        value: node of the graph -> the step that computes it (-1: the input).
        alone: nodes whose value nobody else reads, so that it may be changed where it lies.
    """

    def __init__(self, network: Compressed):
        self.network, self.steps = network, list[Step]()
        self.shapes = plan_of(network).shapes
        self.value, self.alone = {0: -1}, {0: False}
        readers = Counter(i for node in network.graph.nodes for i in node.inputs)
        for index, node in enumerate(network.graph.nodes[1:], 1):
            self.place(node, index)
            single = readers[index] == 1
            passed_on = self.value[index] == self.value[node.inputs[0]]
            self.alone[index] = single and self.value[index] >= 0 and (not passed_on or self.alone[node.inputs[0]])
        last = len(network.graph.nodes) - 1
        if not self.steps or self.value[last] != len(self.steps) - 1:
            self.copy(last, last)

    def place(self, node: Node, index: int) -> None:
        """Turn one node into a step, or into a part of the one before."""
        first, face = node.inputs[0], RULES[node.op].c
        self.value[index] = self.value[first]
        if isinstance(face, Single):
            if not self.alone[first]:
                self.copy(first, index)
            self.steps[self.value[index]].after.append(node)
        elif isinstance(face, Layer):
            self.layer(node, index)
        elif isinstance(face, Stepped):
            self.value[index] = face.place(self, node, index)
        else:
            self.normalised(node, index)

    def add(self, step: Step) -> int:
        """Append a step; returns its index."""
        self.steps.append(step)
        return len(self.steps) - 1

    def copy(self, source: int, index: int) -> None:
        """Values that others still read are copied before a function runs over them."""
        shape = spatial(self.shapes[index])
        self.value[index] = self.add(Step("copy", [self.value[source]], [shape], shape))

    def padded(self, source: int, sources: list[list[int]], fill: float) -> int:
        """Values with a border; `sources` names the row and the column that every row and column comes from."""
        channels, height, width = spatial(self.shapes[source])
        if sources == [list(range(height)), list(range(width))]:
            return self.value[source]
        shape = (channels, len(sources[0]), len(sources[1]))
        told = {"sources": sources, "fill": fill}
        before: Shape = (channels, height, width)
        return self.add(Step("pad", [self.value[source]], [before], shape, attributes=told))

    def normalised(self, node: Node, index: int) -> None:
        """A scale and a shift per channel: into the layer before it where nobody else reads that, else as a step."""
        affine, first = OPERATIONS[node.op].affine, node.inputs[0]
        assert affine is not None
        tensors = {role: dense(self.network.tensors[name]).astype(np.float64) for role, name in node.parameters.items()}
        scale, bias = affine(tensors, node.attributes)
        step = self.steps[self.value[first]] if self.alone[first] else None
        if step and step.weights and not step.after and is_layer(step) and step.shape[0] == len(scale):
            weights = step.weights
            folded = scale * weights.scale, scale * weights.bias + bias
            step.weights = replace(weights, scale=folded[0], bias=folded[1])
            return
        shape = spatial(self.shapes[index])
        weights = Weights(np.zeros(0), scale, bias)
        self.value[index] = self.add(Step("affine", [self.value[first]], [shape], shape, weights))

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
        step = Step(node.op, [value], [shape], spatial(self.shapes[index]), _weights(self.network, node))
        self.value[index] = self.add(step)


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
