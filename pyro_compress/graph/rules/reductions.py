"""Axes that become one value, or that are set in proportion."""

from __future__ import annotations

import math

import numpy as np

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces import c, c_moves, onnx
from pyro_compress.graph.rules.row import Reader, Rule, refuse_places
from pyro_compress.types import Node


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


def _c_together(planning: c.Planning, source: int, axes: list[int]) -> tuple[int, c.Shape]:
    """A value whose axes, counted from 1, are neighbours, and its shape as what is before them, they, and behind."""
    shape, value = planning.shapes[source], planning.value[source]
    if axes == list(range(axes[0], axes[-1] + 1)):
        return value, c.around(shape, axes)
    kept = [axis for axis in range(1, len(shape) + 1) if axis not in axes]
    value = planning.moved(value, shape, c_moves.permuted(shape, {"axes": [*kept, *axes]}))
    size = math.prod(shape[axis - 1] for axis in axes)
    return value, (math.prod(shape) // size, size, 1)


def _c_place_reduced(planning: c.Planning, node: Node, index: int) -> int:
    value, shape = _c_together(planning, node.inputs[0], node.attributes["axes"])
    window = {"kernel": [shape[1], 1], "stride": [shape[1], 1]}
    attributes = window | {"correction": node.attributes.get("correction", 0)}
    return planning.add(c.Loop(node.op, [value], [shape], (shape[0], 1, shape[2]), attributes=attributes))


def _c_over(inside: str) -> c.Body:
    """What is done with every row of values along the middle of three axes: `p[AT(k)]`, of which there are `SIZE`."""

    def body(tag: str, loop: c.Loop, per: str) -> str:
        rows, size, columns = loop.shapes[0]
        made = loop.shape[1]
        text = inside.replace("SIZE", str(size)).replace("STEP", f"{columns}{per}")
        correction = loop.attributes.get("correction", 0)
        return f"""
            for (size_t o = 0; o < {rows}; o++)
            for (size_t i = 0; i < {columns}{per}; i++) {{
            const float *const p = x + o * {size * columns}{per} + i;
            float *const q = y + o * {made * columns}{per} + i;
            {text.replace("NUMBER", str(size - correction))}
            }}"""

    return body


def _c_reduced(start: str, more: str, end: str) -> c.LoopRule:
    inside = f"""
        float found = {start};
        for (size_t k = 0; k < SIZE; k++) {{
        const float v = p[k * STEP];
        found = {more};
        }}
        *q = {end};"""
    return c.LoopRule(_c_over(inside), _c_place_reduced)


C_VARIANCE = """
    float mean = 0, found = 0;
    for (size_t k = 0; k < SIZE; k++)
    mean += p[k * STEP];
    mean /= SIZE;
    for (size_t k = 0; k < SIZE; k++)
    found += (p[k * STEP] - mean) * (p[k * STEP] - mean);
    *q = found / NUMBER;"""


def _c_softmax(last: str) -> c.LoopRule:
    def place(planning: c.Planning, node: Node, index: int) -> int:
        shape, value = c.around(planning.shapes[index], [node.attributes["axis"]]), planning.value[node.inputs[0]]
        return planning.add(c.Loop(node.op, [value], [shape], shape))

    inside = f"""
        float most = *p, sum = 0;
        for (size_t k = 1; k < SIZE; k++)
        most = most > p[k * STEP] ? most : p[k * STEP];
        for (size_t k = 0; k < SIZE; k++)
        sum += expf(p[k * STEP] - most);
        for (size_t k = 0; k < SIZE; k++)
        q[k * STEP] = {last};"""
    return c.LoopRule(_c_over(inside), place)


RULES = {
    "mean": Rule(
        lambda x, p, a: x.mean(a["axes"], a.get("keepdim", False)), {"mean": _read("mean")},
        onnx=_place("ReduceMean"), c=_c_reduced("0", "found + v", "found / SIZE"),
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
        {"var": _read_variance}, onnx=_place_variance, c=c.LoopRule(_c_over(C_VARIANCE), _c_place_reduced),
    ),
    "softmax": Rule(
        lambda x, p, a: x.softmax(a["axis"]), {"softmax": _read_over_axis("softmax")},
        onnx=onnx.over_axis("Softmax"), c=_c_softmax("expf(p[k * STEP] - most) / sum"),
    ),
    "log_softmax": Rule(
        lambda x, p, a: x.log_softmax(a["axis"]), {"log_softmax": _read_over_axis("log_softmax")},
        onnx=onnx.over_axis("LogSoftmax"), c=_c_softmax("p[k * STEP] - most - logf(sum)"),
    ),
}  # fmt: skip
