"""A network as the loops of a C program: what is folded into what, and what runs over which output.

A loop is one loop nest of the generated code. Batch norm behind a layer becomes the layer's scale and bias, functions
of single values run over the output of the loop before them, padding is a loop of its own, and reshaping is none,
because values lie in memory as torch numbers them. What only moves values is the loop `moved`. What else an operation
becomes is the C face of its rule (`graph.faces.c`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pyro_compress.deploy.refusals import behind, refuse_kept
from pyro_compress.graph.faces.c import (
    Layer,
    Loop,
    LoopRule,
    Shape,
    Single,
    Sources,
    Weights,
    coded,
    spatial,
    zero_border,
)
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.graph.rules.table import RULES
from pyro_compress.pcn.file import dense, plan_of
from pyro_compress.types import Compressed, Graph, Node, count


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
    for index, node in enumerate(network.graph.nodes[1:], 1):
        if node.op not in known:
            raise ValueError(
                f"operation {node.op!r} behind {behind(network.graph, index)} is not supported in C; leave it out "
                "of the network, or export to model.onnx, or to a folder for numpy, which know it"
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
            before = len(self.loops)
            self.place(node, index)
            for loop in self.loops[before:]:
                loop.node = index
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
            self._moved_from(self.loops[self.value[index]]).after.append(node)
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
        self.value[index] = self.add(Loop("copy", [self.value[source]], [shape], shape, node=index))

    def padded(self, value: int, shape: Shape, sources: Sources, fill: float) -> int:
        """Values with a border; `sources` names the row and the column that every row and column comes from."""
        channels, height, width = shape
        if sources == [list(range(height)), list(range(width))]:
            return value
        attributes = {"sources": sources, "fill": fill}
        after = (channels, len(sources[0]), len(sources[1]))
        return self.add(Loop("pad", [value], [shape], after, attributes=attributes))

    def moved(self, value: int, shape: tuple[int, ...], offsets: Sequence[Sequence[int]], layer: int = 0) -> int:
        """Values in another order, some of them, or some several times; nothing where they stay as they are."""
        axes, base = _merged(offsets)
        if not base and axes == [list(range(count(shape)))]:
            return value
        attributes = {"axes": axes, "base": base, "layer": layer}
        made = spatial(tuple(len(axis) for axis in offsets))
        return self.add(Loop("moved", [value], [spatial(shape)], made, attributes=attributes))

    def normalised(self, node: Node, index: int) -> None:
        """A scale and a shift per channel: into the layer before it where nobody else reads that, else as a loop."""
        affine, first = OPERATIONS[node.op].affine, node.inputs[0]
        assert affine is not None
        tensors = {role: dense(self.network.tensors[name]).astype(np.float64) for role, name in node.parameters.items()}
        scale, bias = affine(tensors, node.attributes)
        found = self._layer_before(first) if self.alone[first] else None
        if found and found[0].shape[0] == len(scale) * found[1]:
            loop, times = found
            assert loop.weights is not None
            weights, scale, bias = loop.weights, np.repeat(scale, times), np.repeat(bias, times)
            folded = scale * weights.scale, scale * weights.bias + bias
            loop.weights = replace(weights, scale=folded[0], bias=folded[1])
            return
        shape = spatial(self.shapes[index])
        weights = Weights(np.zeros(0), scale, bias)
        self.value[index] = self.add(Loop("affine", [self.value[first]], [shape], shape, weights))

    def _moved_from(self, loop: Loop) -> Loop:
        """The layer whose outputs a loop moves, where it moves nothing else: functions of single values run there."""
        while loop.op == "moved" and loop.attributes["layer"] and not loop.after:
            loop = self.loops[loop.inputs[0]]
        return loop

    def _layer_before(self, node: int) -> tuple[Loop, int] | None:
        """The layer that made a value's channels, and how many of its outputs are in each of them."""
        moved = self.loops[self.value[node]]
        loop = self._moved_from(moved)
        times = moved.attributes["layer"] if loop is not moved else 1
        fits = is_layer(loop) and not loop.after and "positions" not in loop.attributes
        return (loop, times) if fits else None

    def layer(self, node: Node, index: int) -> None:
        """A layer with weights, behind a border where it has one."""
        first, a = node.inputs[0], node.attributes
        weights = _weights(self.network, node)
        if "stride" not in a:
            self.value[index] = self.linear(self.value[first], self.shapes[first], weights)
            return
        before, after = ([0] * (2 - len(side)) + list(side) for side in a["padding"])
        channels, height, width = spatial(self.shapes[first])
        sources = [zero_border(*around) for around in zip((height, width), before, after, strict=True)]
        value = self.padded(self.value[first], (channels, height, width), sources, 0.0)
        shape = (channels, len(sources[0]), len(sources[1]))
        self.value[index] = self.add(Loop(node.op, [value], [shape], spatial(self.shapes[index]), weights))

    def linear(self, value: int, shape: tuple[int, ...], weights: Weights) -> int:
        """A linear layer at every position of a value, or on a vector; returns its loop."""
        outputs, inputs = weights.codes.shape[:2]
        positions = count(shape) // inputs
        if positions == 1:
            return self.add(Loop("linear", [value], [(inputs, 1, 1)], (outputs, 1, 1), weights))
        shapes: list[Shape] = [(positions, 1, inputs)]
        attributes = {"positions": positions}
        return self.add(Loop("linear", [value], shapes, (positions, 1, outputs), weights, attributes))


def _merged(offsets: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """Axes of which two neighbours that together have one step are one, each beginning at its least; and their sum."""
    base = sum(min(axis) for axis in offsets)
    axes: list[list[int]] = []
    for axis in offsets:
        here = [place - min(axis) for place in axis]
        if axes and _one_step(axes[-1], here):
            axes[-1] = [one + other for one in axes[-1] for other in here]
        else:
            axes.append(here)
    return axes, base


def _one_step(outer: Sequence[int], inner: Sequence[int]) -> bool:
    """Whether two axes together have one step, or one of them has a single place."""
    if len(outer) == 1 or len(inner) == 1:
        return True
    step = inner[1] - inner[0]
    return is_even(outer) and is_even(inner) and outer[1] - outer[0] == step * len(inner)


def is_even(places: Sequence[int]) -> bool:
    """Whether places follow each other in equal steps."""
    return len(set(np.diff(places).tolist())) <= 1


def _weights(network: Compressed, node: Node) -> Weights:
    a, face = node.attributes, RULES[node.op].c
    codes, step = coded(network.tensors[node.parameters["weight"]])
    codes = codes.T if isinstance(face, Layer) and face.turned else codes
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
