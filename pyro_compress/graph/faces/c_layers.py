"""Convolutions that become those of images in C: of volumes, and transposed ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_compress.graph.faces.c import Loop, Planning, Sources, Weights, along, coded, zero_border
from pyro_compress.graph.faces.c_moves import interleaved
from pyro_compress.pcn.file import dense
from pyro_compress.types import Node

MOST_LAID_OUT = 1 << 26
"""Codes and values that a convolution may become: four for each value that a C file may have."""


@dataclass(frozen=True)
class Convolution:
    """A convolution over as many axes as its kernel has.

    Attributes:
        codes: `(out, in / groups, *kernel)`, and `scale`, what they are multiplied by.
        bias: one per output.
        sources: per axis, where every place of the padded input comes from; -1 is a zero.
        stride: per axis; `dilation` likewise.
        groups: groups of channels.
        name: of its weight, for messages.
    """

    codes: np.ndarray
    scale: float
    bias: np.ndarray
    sources: Sources
    stride: Sequence[int]
    dilation: Sequence[int]
    groups: int
    name: str

    @property
    def made(self) -> list[int]:
        """Places of its output along every axis."""
        axes = zip(self.sources, self.codes.shape[2:], self.stride, self.dilation, strict=True)
        return [(len(places) - d * (k - 1) - 1) // s + 1 for places, k, s, d in axes]


def place_volume(planning: Planning, node: Node, index: int) -> int:
    """A convolution of volumes."""
    first, a = node.inputs[0], node.attributes
    codes, scale = coded(planning.network.tensors[node.parameters["weight"]])
    sizes = planning.shapes[first][1:]
    sources = [zero_border(*sides) for sides in zip(sizes, *a["padding"], strict=True)]
    bias, groups = _bias(planning, node, len(codes)), a.get("groups", 1)
    stride = [min(step, len(places)) for step, places in zip(a["stride"], sources, strict=True)]  # no second window
    made = Convolution(codes, scale, bias, sources, stride, a["dilation"], groups, node.parameters["weight"])
    return _convolved(planning, planning.value[first], planning.shapes[first], made)


def place_upward(planning: Planning, node: Node, index: int) -> int:
    """A transposed convolution: one that makes the `stride` neighbours of every place as channels."""
    first, a = node.inputs[0], node.attributes
    weight, scale = coded(planning.network.tensors[node.parameters["weight"]])
    shape, (filters, *made) = planning.shapes[first], planning.shapes[index]
    padding, groups, name = a["padding"], a.get("groups", 1), node.parameters["weight"]
    ends = [before + after for before, after in zip(padding, made, strict=True)]
    stride = [min(step, end) for step, end in zip(a["stride"], ends, strict=True)]  # later phases are never read
    codes, behind = _phases(weight, groups, stride, a["dilation"], name)
    sources = [
        [place - reach if 0 <= place - reach < size else -1 for place in range(-(-end // step) + reach)]
        for size, end, step, reach in zip(shape[1:], ends, stride, behind, strict=True)
    ]
    bias = np.repeat(_bias(planning, node, filters), math.prod(stride))
    layer = Convolution(codes, scale, bias, sources, [1] * len(stride), [1] * len(stride), groups, name)
    value = _convolved(planning, planning.value[first], shape, layer)
    offsets = interleaved(filters, stride, layer.made, padding, ends)
    return planning.moved(value, (len(codes), *layer.made), offsets, math.prod(stride))


def _phases(
    weight: np.ndarray, groups: int, stride: Sequence[int], dilation: Sequence[int], name: str
) -> tuple[np.ndarray, list[int]]:
    """Weights `(out * stride, in / groups, *kernel)` of a convolution, and how far back it looks along every axis.

    Place `stride * j + phase` of the output is made of those taps `t` that have `dilation * t = stride * e + phase`,
    and of places `j - e` of the input.
    """
    channels, each, *kernel = weight.shape
    behind = [d * (k - 1) // s for d, k, s in zip(dilation, kernel, stride, strict=True)]
    shape = (groups, each, *stride, channels // groups, *(reach + 1 for reach in behind))
    _laid_out(name, math.prod(shape))
    codes, parts = np.zeros(shape, weight.dtype), weight.reshape(groups, channels // groups, each, *kernel)
    for taps in itertools.product(*map(range, kernel)):
        pairs = [divmod(d * tap, s) for tap, d, s in zip(taps, dilation, stride, strict=True)]
        phases = tuple(phase for _, phase in pairs)
        places = tuple(reach - back for reach, (back, _) in zip(behind, pairs, strict=True))
        every: Any = slice(None)
        codes[(every, every, *phases, every, *places)] = parts[(every, every, every, *taps)].swapaxes(1, 2)
    return codes.reshape(-1, channels // groups, *(reach + 1 for reach in behind)), behind


def _laid_out(name: str, size: int) -> None:
    """Refuse a convolution that becomes one of images that is far larger than itself."""
    if size > MOST_LAID_OUT:
        raise ValueError(
            f"convolution {name.removesuffix('.weight')} takes {size} numbers in C (at most {MOST_LAID_OUT}); make its "
            "stride, dilation or input smaller, or export to model.onnx"
        )


def _bias(planning: Planning, node: Node, outputs: int) -> np.ndarray:
    p = node.parameters
    return dense(planning.network.tensors[p["bias"]]).astype(np.float64) if "bias" in p else np.zeros(outputs)


def _convolved(planning: Planning, value: int, shape: tuple[int, ...], layer: Convolution) -> int:
    """The loop of a convolution over one axis, two or three."""
    if len(shape) == 4:
        return _stacked(planning, value, shape, layer)
    flat = 4 - layer.codes.ndim
    channels, height, width = shape[0], *[1] * flat, *shape[1:]
    rows, columns = [[0]] * flat + layer.sources
    value = planning.padded(value, (channels, height, width), [rows, columns], 0.0)
    return _image(planning, value, (channels, len(rows), len(columns)), layer)


def _image(planning: Planning, value: int, shape: tuple[int, int, int], layer: Convolution) -> int:
    """The loop of a convolution of images, whose border is there."""
    outputs, inputs, *kernel = layer.codes.shape
    kernel = [1] * (2 - len(kernel)) + kernel
    (down, aside), (far, wide) = ([1] * (2 - len(one)) + list(one) for one in (layer.stride, layer.dilation))
    codes, scale = layer.codes.reshape(outputs, inputs, *kernel), np.array(layer.scale, np.float64)
    weights = Weights(codes, scale, layer.bias, (down, aside), (far, wide), layer.groups)
    high = (shape[1] - far * (kernel[0] - 1) - 1) // down + 1
    across = (shape[2] - wide * (kernel[1] - 1) - 1) // aside + 1
    return planning.add(Loop("conv2d", [value], [shape], (outputs, high, across), weights))


def _stacked(planning: Planning, value: int, shape: tuple[int, ...], layer: Convolution) -> int:
    """A convolution of volumes: planes that a window sees together are channels, one image lies below the other.

    Rows of windows that reach from one image into the next are computed and left out.
    """
    channels, *sizes = shape
    outputs, inputs, deep, *kernel = layer.codes.shape
    planes, rows, columns = layer.sources
    rows = rows + [-1] * (-len(rows) % layer.stride[1])  # every image begins with the first row of a window
    depth, *made = layer.made
    image = (channels * deep, depth * len(rows), len(columns))
    high = (image[1] - layer.dilation[1] * (kernel[0] - 1) - 1) // layer.stride[1] + 1
    _laid_out(layer.name, max(math.prod(image), outputs * high * made[1]))
    flat = sizes[1] * sizes[2]
    value = planning.padded(value, (channels, sizes[0], flat), [planes, list(range(flat))], 0.0)
    value = planning.padded(value, (channels * len(planes), sizes[1], sizes[2]), [rows, columns], 0.0)
    whole = (channels, len(planes), len(rows) * len(columns))
    every, plane, pixel = along(whole)
    below = plane[:: layer.stride[0]][:depth]
    beside = plane[:: layer.dilation[0]][:deep]
    value = planning.moved(value, whole, [every, beside, below, pixel])
    flattened = Convolution(
        layer.codes.reshape(outputs, inputs * deep, *kernel), layer.scale, layer.bias, [],
        layer.stride[1:], layer.dilation[1:], layer.groups, layer.name,
    )  # fmt: skip
    value = _image(planning, value, image, flattened)
    step = len(rows) // layer.stride[1]
    apart = [[place * high * made[1] for place in range(outputs)], *along((depth, step, made[1]))]
    apart[2] = apart[2][: made[0]]
    return planning.moved(value, (outputs, high, made[1]), apart, 1)
