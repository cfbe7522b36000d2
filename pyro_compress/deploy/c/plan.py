"""A network as the steps of a C program: shapes, what is folded into what, and where the values lie in memory.

A step is one loop nest of the generated code. Batch norm behind a layer becomes the layer's scale and bias, functions
of single values run over the output of the step before them, padding is a step of its own, and reshaping is none,
because values lie in memory as torch numbers them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyro_compress.networks.graph import POINTWISE
from pyro_compress.pcn.file import dense, plan_of
from pyro_compress.types import Compressed, Node, Quantized

LAYERS = ("linear", "conv1d", "conv2d")
REDUCED = ("mean", "sum", "amax")
POOLS = ("max_pool", "avg_pool")
PARTS = ("slice", "select")
OTHERS = (*REDUCED, "add", "subtract", "multiply", "divide", "concat", "softmax", "log_softmax", "mixture")
BY_CHANNEL = ("prelu", "group_norm")
SUPPORTED = (*LAYERS, "batch_norm", *BY_CHANNEL, *POINTWISE, *POOLS, *PARTS, *OTHERS, "constant", "pad", "reshape")
LOWEST = -3.402823466e38
"""The smallest float32: what max pooling sees outside of its input."""

Shape = tuple[int, int, int]
"""Channels, height, width of one example; a vector is all channels."""


@dataclass(frozen=True)
class Weights:
    """The non-zeros of a layer and what its sums become: `sum * scale + bias`.

    Attributes:
        codes: `(out, in / groups, height, width)`, integers or float32.
        scale: one number, or one per output.
        bias: one per output.
        stride: of rows and columns; `dilation` likewise.
        groups: groups of channels.
    """

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass
class Step:
    """One loop nest.

    Attributes:
        op: one of `LAYERS`, `POOLS`, `OTHERS`, or `slice`, `pad`, `affine`, `prelu`, `group_norm`, `constant`, `copy`.
        inputs: values it reads: -1 is the network's input, others are indices of steps.
        shapes: theirs.
        shape: of its output.
        weights: of a layer; of `affine`, `prelu` and `group_norm`, scale and bias; of `constant`, the codes.
        attributes: as in the graph; of `pad` a list `sources` of rows and columns, and `fill`.
        after: functions of single values that run over the output.
    """

    op: str
    inputs: list[int]
    shapes: list[Shape]
    shape: Shape
    weights: Weights | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    after: list[Node] = field(default_factory=list)


def planned(network: Compressed) -> list[Step]:
    """The steps of a network in order; the last one's output is the network's.

    Raises:
        ValueError: an operation that the C export does not know; it is named.
    """
    for node in network.graph.nodes[1:]:
        if node.op not in SUPPORTED:
            raise ValueError(
                f"operation {node.op!r} is not supported in C (supported: {', '.join(SUPPORTED)}); "
                "export to model.onnx, or to a folder for numpy, which know them all"
            )
    return _Planning(network).steps


class _Planning:
    """One pass over the graph.

    Attributes:
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
        first = node.inputs[0]
        self.value[index] = self.value[first]
        if node.op == "reshape":
            return
        if node.op == "batch_norm":
            self.normalised(node, index)
        elif node.op in BY_CHANNEL:
            self.by_channel(node, index)
        elif node.op == "constant":
            shape = spatial(self.shapes[index])
            weights = Weights(dense(self.network.tensors[node.parameters["value"]]), np.ones(1), np.zeros(1))
            self.value[index] = self.add(Step("constant", [self.value[first]], [shape], shape, weights))
        elif node.op in POINTWISE:
            if not self.alone[first]:
                self.copy(first, index)
            self.steps[self.value[index]].after.append(node)
        elif node.op == "pad":
            self.value[index] = self.padded(first, _pad_sources(node, self.shapes[first]), 0.0)
        elif node.op in LAYERS:
            self.layer(node, index)
        elif node.op in POOLS:
            self.pooled(node, index)
        elif node.op in PARTS:
            self.part(node, index)
        else:
            self.other(node, index)

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
        before = (channels, height, width)
        return self.add(Step("pad", [self.value[source]], [before], shape, attributes=told))

    def normalised(self, node: Node, index: int) -> None:
        """Batch norm: into the layer before it where nobody else reads that, else as a step."""
        scale, bias = _batch_norm(self.network, node)
        first = node.inputs[0]
        step = self.steps[self.value[first]] if self.alone[first] else None
        if step and step.weights and not step.after and step.op in LAYERS and step.shape[0] == len(scale):
            weights = step.weights
            folded = scale * weights.scale, scale * weights.bias + bias
            step.weights = replace(weights, scale=folded[0], bias=folded[1])
            return
        shape = spatial(self.shapes[index])
        weights = Weights(np.zeros(0), scale, bias)
        self.value[index] = self.add(Step("affine", [self.value[first]], [shape], shape, weights))

    def by_channel(self, node: Node, index: int) -> None:
        """What has a number per channel and is no batch norm."""
        p = {role: dense(self.network.tensors[name]) for role, name in node.parameters.items()}
        shape = spatial(self.shapes[index])
        scale = np.broadcast_to(p.get("weight", np.ones(1)), shape[:1])
        weights = Weights(np.zeros(0), scale, p.get("bias", np.zeros(shape[0])))
        step = Step(node.op, [self.value[node.inputs[0]]], [shape], shape, weights, dict(node.attributes))
        self.value[index] = self.add(step)

    def layer(self, node: Node, index: int) -> None:
        """A layer with weights, behind a border where it has one."""
        first, a = node.inputs[0], node.attributes
        if node.op == "linear" and len(self.shapes[first]) != 1:
            raise ValueError(
                "a linear layer at every position of a sequence is not supported in C; export to model.onnx, or to a "
                "folder for numpy"
            )
        channels, height, width = spatial(self.shapes[first])
        before, after = ([0] * (2 - len(side)) + list(side) for side in a.get("padding", ((0, 0), (0, 0))))
        sources = [_zero_border(*around) for around in zip((height, width), before, after, strict=True)]
        value = self.padded(first, sources, 0.0)
        shape = (channels, len(sources[0]), len(sources[1]))
        step = Step(node.op, [value], [shape], spatial(self.shapes[index]), _weights(self.network, node))
        self.value[index] = self.add(step)

    def pooled(self, node: Node, index: int) -> None:
        """Pooling, behind a border where it has one."""
        first, a = node.inputs[0], node.attributes
        channels, height, width = spatial(self.shapes[first])
        before = a.get("padding", [0] * len(a["kernel"]))
        sides = ([0] * (2 - len(side)) + list(side) for side in (before, a.get("after", before)))
        sources = [_zero_border(*around) for around in zip((height, width), *sides, strict=True)]
        value = self.padded(first, sources, LOWEST if node.op == "max_pool" else 0.0)
        shape = (channels, len(sources[0]), len(sources[1]))
        self.value[index] = self.add(Step(node.op, [value], [shape], spatial(self.shapes[index]), attributes=dict(a)))

    def part(self, node: Node, index: int) -> None:
        """Part of an axis; a single entry is one in a shape without that axis."""
        first, a = node.inputs[0], node.attributes
        before = spatial(self.shapes[first])
        place = 0 if a["axis"] == 1 else a["axis"] + 2 - len(self.shapes[first])
        one = {"start": a["index"], "stop": a["index"] + 1} if node.op == "select" else a
        taken = range(one["start"], one["stop"], one.get("step", 1))
        channels, height, width = (len(taken) if i == place else size for i, size in enumerate(before))
        told = {"place": place, "start": taken.start, "step": taken.step}
        shape = (channels, height, width)
        self.value[index] = self.add(Step("slice", [self.value[first]], [before], shape, attributes=told))

    def other(self, node: Node, index: int) -> None:
        """What reads several values, or takes many to one."""
        shapes, a = [self.shapes[i] for i in node.inputs], dict(node.attributes)
        if node.op in REDUCED and a["axes"] != list(range(2, 1 + len(shapes[0]))):
            raise ValueError(f"a {node.op} over other axes than all of an image's (or a series') is not supported in C")
        if node.op in ("softmax", "log_softmax") and len(shapes[0]) != 1:
            raise ValueError(f"a {node.op} of anything but a vector is not supported in C")
        if node.op == "concat" and a["axis"] != 1:
            raise ValueError("joining values along other axes than the channels is not supported in C")
        values, planes = [self.value[i] for i in node.inputs], [spatial(shape) for shape in shapes]
        self.value[index] = self.add(Step(node.op, values, planes, spatial(self.shapes[index]), attributes=a))


def spatial(shape: tuple[int, ...]) -> Shape:
    """A shape as channels, height, width."""
    if not 0 < len(shape) <= 3:
        raise ValueError(f"values of shape {shape} are not supported in C: vectors, series and images only")
    channels, *sizes = shape
    height, width = [1] * (2 - len(sizes)) + sizes
    return channels, height, width


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


def _batch_norm(network: Compressed, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Batch norm in evaluation mode as scale and bias per channel."""
    p = {role: dense(network.tensors[name]).astype(np.float64) for role, name in node.parameters.items()}
    scale = p.get("weight", np.ones(1)) / np.sqrt(p["running_var"] + node.attributes["eps"])
    return scale, p.get("bias", np.zeros(1)) - p["running_mean"] * scale


def _zero_border(size: int, before: int, after: int) -> list[int]:
    return [-1] * before + list(range(size)) + [-1] * after


def _pad_sources(node: Node, shape: tuple[int, ...]) -> list[list[int]]:
    """Where every row and every column of a padded value comes from; -1 is the border of zeros."""
    sizes, mode = node.attributes["sizes"], node.attributes["mode"]
    if any(sizes[2 * (len(shape) - 1) :]):
        raise ValueError("padding of channels is not supported in C")
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    sources = []
    for place, size in ((1, spatial(shape)[1]), (0, spatial(shape)[2])):  # torch names the last dimension first
        around = tuple(sizes[2 * place : 2 * place + 2]) or (0, 0)
        filled = {"constant_values": -1} if mode == "constant" else {}
        sources.append(np.pad(np.arange(size), around, modes[mode], **filled).tolist())  # type: ignore[call-overload]
    return sources
