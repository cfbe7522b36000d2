"""Axes that become one value, or that are set in proportion."""

from __future__ import annotations

import math

import numpy as np

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces import c, onnx
from pyro_compress.graph.rules.row import Reader, Rule, refuse_places
from pyro_compress.types import Node, count


def _read(op: str) -> Reader:
    """An operation that takes several axes to one value each."""

    def read(call: Call) -> Parsed:
        wanted = call["dim"]
        axes = [call.axis(axis) for axis in (wanted if isinstance(wanted, list | tuple) else [wanted])]
        if not axes:
            raise ValueError("it works across the batch dimension, which is not supported")
        keepdim = {"keepdim": True} if call["keepdim"] else {}
        return op, [call["self"]], {}, {"axes": sorted(axes)} | keepdim

    return read


def _read_largest(call: Call, part: int) -> Parsed:
    refuse_places(part)
    return _read("amax")(call)


def _read_smallest(call: Call, part: int) -> Parsed:
    refuse_places(part)
    return _read("amin")(call)


def _read_variance(call: Call) -> Parsed:
    unbiased = call["unbiased"] if call.has("unbiased") else True
    correction = call["correction"] if call.has("correction") else int(unbiased)
    correction = 1 if correction is None else correction
    if correction != int(correction) or correction < 0:
        raise ValueError(f"a correction of {correction} is not supported")
    op, inputs, tensors, attributes = _read("variance")(call)
    return op, inputs, tensors, attributes | {"correction": int(correction)}


def _place_variance(builder: onnx.Builder, placement: onnx.Placement) -> None:
    out, a = placement.output, placement.attributes
    axes = builder.constant(np.array(a["axes"], np.int64), f"{out}.axes")
    mean = builder.node("ReduceMean", [*placement.inputs, axes], f"{out}.mean", keepdims=1)
    spread = builder.node("Sub", [*placement.inputs, mean], f"{out}.spread")
    number = math.prod(placement.shapes[0][axis - 1] for axis in a["axes"]) - a["correction"]
    total = builder.node("ReduceSumSquare", [spread, axes], f"{out}.sum", keepdims=int(a.get("keepdim", False)))
    builder.node("Div", [total, builder.constant(np.array(number, np.float32), f"{out}.number")], out)


def _read_over_axis(op: str) -> Reader:
    return lambda call: (op, [call["self"]], {}, {"axis": call.axis(call["dim"])})


def _place(op: str) -> onnx.Place:
    def place(builder: onnx.Builder, placement: onnx.Placement) -> None:
        axes = builder.constant(np.array(placement.attributes["axes"], np.int64), f"{placement.output}.axes")
        builder.node(
            op, [*placement.inputs, axes], placement.output, keepdims=int(placement.attributes.get("keepdim", False))
        )

    return place


def _c_reduced(start: str, more: str, end: str) -> c.LoopRule:
    def place(planning: c.Planning, node: Node, index: int) -> int:
        rank = len(planning.shapes[node.inputs[0]])
        if node.attributes["axes"] != list(range(2, 1 + rank)):
            raise ValueError(f"a {node.op} over other axes than all of an image's (or a series') is not supported in C")
        return c.placed(planning, node, index)

    def body(tag: str, loop: c.Loop, per: str) -> str:
        pixels = count(loop.shapes[0][1:])
        return f"""
            for (size_t c = 0; c < {loop.shape[0]}; c++)
            {c.each(per)} {{
            const float *p = x + c * {pixels}{per} + l;
            float found = {start};
            for (size_t i = 0; i < {pixels}; i++) {{
            const float v = p[i{per}];
            found = {more};
            }}
            y[c{per} + l] = {end.format(pixels)};
            }}"""

    return c.LoopRule(body, place)


def _c_softmax(last: str) -> c.LoopRule:
    def place(planning: c.Planning, node: Node, index: int) -> int:
        if len(planning.shapes[node.inputs[0]]) != 1:
            raise ValueError(f"a {node.op} of anything but a vector is not supported in C")
        return c.placed(planning, node, index)

    def body(tag: str, loop: c.Loop, per: str) -> str:
        return f"""
            {c.each(per)} {{
            float most = x[l], sum = 0;
            for (size_t i = 0; i < {loop.shape[0]}; i++)
            most = most > x[i{per} + l] ? most : x[i{per} + l];
            for (size_t i = 0; i < {loop.shape[0]}; i++)
            sum += expf(x[i{per} + l] - most);
            for (size_t i = 0; i < {loop.shape[0]}; i++)
            y[i{per} + l] = {last.format(per)};
            }}"""

    return c.LoopRule(body, place)


RULES = {
    "mean": Rule(
        lambda x, p, a: x.mean(a["axes"], a.get("keepdim", False)), {"mean": _read("mean")},
        onnx=_place("ReduceMean"), c=_c_reduced("0", "found + v", "found / {}"),
    ),
    "sum": Rule(
        lambda x, p, a: x.sum(a["axes"], a.get("keepdim", False)), {"sum": _read("sum")},
        onnx=_place("ReduceSum"), c=_c_reduced("0", "found + v", "found"),
    ),
    "amax": Rule(
        lambda x, p, a: x.amax(a["axes"], a.get("keepdim", False)), {"amax": _read("amax")}, {"max": _read_largest},
        _place("ReduceMax"), _c_reduced("p[0]", "found > v ? found : v", "found"),
    ),
    "amin": Rule(
        lambda x, p, a: x.amin(a["axes"], a.get("keepdim", False)), {"amin": _read("amin")}, {"min": _read_smallest},
        _place("ReduceMin"), _c_reduced("p[0]", "found < v ? found : v", "found"),
    ),
    "variance": Rule(
        lambda x, p, a: x.var(a["axes"], correction=a["correction"], keepdim=a.get("keepdim", False)),
        {"var": _read_variance}, onnx=_place_variance,
    ),
    "softmax": Rule(
        lambda x, p, a: x.softmax(a["axis"]), {"softmax": _read_over_axis("softmax")},
        onnx=onnx.over_axis("Softmax"), c=_c_softmax("expf(x[i{0} + l] - most) / sum"),
    ),
    "log_softmax": Rule(
        lambda x, p, a: x.log_softmax(a["axis"]), {"log_softmax": _read_over_axis("log_softmax")},
        onnx=onnx.over_axis("LogSoftmax"), c=_c_softmax("x[i{0} + l] - most - logf(sum)"),
    ),
}  # fmt: skip
