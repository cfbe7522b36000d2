"""Windows, of each of which one value is left."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces import c, onnx
from pyro_compress.graph.rules.row import Reader, Rule, check_rank, each, refuse_places
from pyro_compress.types import Node


def _read_max_pool(rank: int) -> Reader:
    def read(call: Call) -> Parsed:
        check_rank(call, rank)
        kernel = each(call["kernel_size"], rank)
        if any(d != 1 for d in each(call["dilation"], rank)):
            raise ValueError("max pooling with dilation is not supported")
        stride, padding = each(call["stride"] or kernel, rank), each(call["padding"], rank)
        attributes = {"kernel": kernel, "stride": stride, "padding": padding}
        if call["ceil_mode"]:
            sizes = zip(call.shape[2:], stride, kernel, call.before[2:], padding, strict=True)
            wanted = [(a - 1) * s + k - b - p for a, s, k, b, p in sizes]
            if any(w > p for w, p in zip(wanted, padding, strict=True)):  # rounding up takes more
                attributes["after"] = [max(p, w) for p, w in zip(padding, wanted, strict=True)]
        return "max_pool", [call.first], {}, attributes

    return read


def _read_avg_pool(rank: int) -> Reader:
    def read(call: Call) -> Parsed:
        check_rank(call, rank)
        kernel, padding = each(call["kernel_size"], rank), each(call["padding"], rank)
        if call["ceil_mode"] or (rank > 1 and call["divisor_override"] is not None):
            raise ValueError("average pooling with ceil_mode or divisor_override is not supported")
        if not call["count_include_pad"] and any(padding):
            raise ValueError(
                "average pooling with padding is supported where it counts in the mean (count_include_pad)"
            )
        attributes = {"kernel": kernel, "stride": each(call["stride"] or kernel, rank)}
        return "avg_pool", [call.first], {}, attributes | ({"padding": padding} if any(padding) else {})

    return read


def _read_adaptive_avg_pool(call: Call) -> Parsed:
    return "avg_pool", [call.first], {}, _whole_ratio(call)


def _read_adaptive_max_pool(call: Call, part: int) -> Parsed:
    attributes = _whole_ratio(call)
    refuse_places(part)
    return "max_pool", [call.first], {}, attributes | {"padding": [0] * len(attributes["kernel"])}


def _whole_ratio(call: Call) -> dict[str, list[int]]:
    check_rank(call, len(call["output_size"]))
    before, after = list(call.before[2:]), list(call.shape[2:])
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise ValueError(f"adaptive pooling from {before} to {after}: only whole ratios are supported")
    kernel = [b // a for b, a in zip(before, after, strict=True)]
    return {"kernel": kernel, "stride": kernel}


def _pool(kind: str) -> Callable[..., Tensor]:
    def run(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
        padding, rounds_up = a.get("padding", 0), {"ceil_mode": True} if "after" in a else {}
        if kind == "max" and _only_values(x) and not any(padding or ()) and not rounds_up:
            return _max_of_slices(x, a["kernel"], a["stride"])
        pool = getattr(F, f"{kind}_pool{len(a['kernel'])}d")
        found: Tensor = pool(x, a["kernel"], a["stride"], padding, **rounds_up)
        return found

    return run


def _only_values(x: Tensor) -> bool:
    """Whether nobody wants more than numbers from the CPU: neither gradients nor a traced program."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_cuda)


def _max_of_slices(x: Tensor, kernel: list[int], stride: list[int]) -> Tensor:
    """Max pooling axis by axis as the maximum of strided slices: the same bits as torch's own, ten times as fast.

    Torch's pooling also notes where each maximum was, pixel by pixel. Only its gradient needs that: of several equal
    values it goes to the first, here it would be shared.
    """
    for axis, (size, step) in enumerate(zip(kernel, stride, strict=True), x.dim() - len(kernel)):
        reach = (x.shape[axis] - size) // step * step + 1
        windows = [x.narrow(axis, i, reach)[(slice(None),) * axis + (slice(None, None, step),)] for i in range(size)]
        x = functools.reduce(torch.maximum, windows)
    return x


def _place(op: str, **more: int) -> onnx.Place:
    def place(builder: onnx.Builder, placement: onnx.Placement) -> None:
        kernel, strides = placement.attributes["kernel"], placement.attributes["stride"]
        before = placement.attributes.get("padding", [0] * len(kernel))
        pads = [*before, *placement.attributes.get("after", before)]
        builder.node(op, placement.inputs, placement.output, kernel_shape=kernel, strides=strides, pads=pads, **more)

    return place


def _c_face(start: str, more: str, end: str, fill: float) -> c.LoopRule:
    """Pooling, behind a border where it has one."""

    def place(planning: c.Planning, node: Node, index: int) -> int:
        """Rows and columns; of volumes first these, then planes."""
        first, a = node.inputs[0], node.attributes
        (channels, *sizes), value = planning.shapes[first], planning.value[first]
        before = a.get("padding", [0] * len(a["kernel"]))
        axes = list(zip(sizes, a["kernel"], a["stride"], before, a.get("after", before), strict=True))
        rest = [(1, 1, 1, 0, 0)] * (2 - len(axes)) + axes[-2:]
        planes = axes[0][0] if len(axes) == 3 else 1
        value, made = pooled(planning, node.op, value, channels * planes, rest)
        if len(axes) == 3:
            size = made[1] * made[2]
            value, _ = pooled(planning, node.op, value, channels, [axes[0], (size, 1, 1, 0, 0)])
        return value

    def pooled(
        planning: c.Planning, op: str, value: int, channels: int, axes: list[tuple[int, ...]]
    ) -> tuple[int, c.Shape]:
        """Two axes (size, kernel, stride, border before, border behind); the loop and the shape of its output."""
        sources = [c.zero_border(size, before, after) for size, _, _, before, after in axes]
        height, width = (size for size, *_ in axes)
        value = planning.padded(value, (channels, height, width), sources, fill)
        shape = (channels, len(sources[0]), len(sources[1]))
        sides = zip(shape[1:], axes, strict=True)
        rows, columns = ((size - kernel) // stride + 1 for size, (_, kernel, stride, *_) in sides)
        attributes = {"kernel": [axes[0][1], axes[1][1]], "stride": [axes[0][2], axes[1][2]]}
        made = (channels, rows, columns)
        return planning.add(c.Loop(op, [value], [shape], made, attributes=attributes)), made

    def body(tag: str, loop: c.Loop, per: str) -> str:
        kernel, stride = loop.attributes["kernel"], loop.attributes["stride"]
        (channels, height, width), (_, rows, columns) = loop.shape, loop.shapes[0]
        return f"""
            for (size_t c = 0; c < {channels}; c++)
            for (size_t r = 0; r < {height}; r++)
            for (size_t q = 0; q < {width}; q++)
            {c.each(per)} {{
            const float *p = x + ((c * {rows} + r * {stride[0]}) * {columns} + q * {stride[1]}){per} + l;
            float found = {start};
            for (size_t i = 0; i < {kernel[0]}; i++)
            for (size_t j = 0; j < {kernel[1]}; j++) {{
            const float v = p[(i * {columns} + j){per}];
            found = {more};
            }}
            y[((c * {height} + r) * {width} + q){per} + l] = {end.format(kernel[0] * kernel[1])};
            }}"""

    return c.LoopRule(body, place)


RULES = {
    "max_pool": Rule(
        _pool("max"),
        {f"max_pool{rank}d": _read_max_pool(rank) for rank in (1, 2, 3)},
        {f"adaptive_max_pool{rank}d": _read_adaptive_max_pool for rank in (1, 2)},
        _place("MaxPool"),
        _c_face("p[0]", "found > v ? found : v", "found", c.LOWEST),
    ),
    "avg_pool": Rule(
        _pool("avg"),
        {f"avg_pool{rank}d": _read_avg_pool(rank) for rank in (1, 2, 3)}
        | {f"adaptive_avg_pool{rank}d": _read_adaptive_avg_pool for rank in (1, 2)},
        onnx=_place("AveragePool", count_include_pad=1),
        c=_c_face("0", "found + v", "found / {}", 0.0),
    ),
}
