"""What moves values and computes nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces import c, c_moves, onnx
from pyro_compress.graph.faces.c_text import floats
from pyro_compress.graph.rules.row import Rule
from pyro_compress.pcn.file import dense
from pyro_compress.types import Node, count

# --- readers


def _read_reshape(call: Call) -> Parsed:
    call.told_by_shape("size", "shape", "dim", "sizes", "start_dim", "end_dim", "other")
    shape, before = call.shape, call.before
    if any(not isinstance(size, int) for size in shape[1:]) or isinstance(shape[0], int) != isinstance(before[0], int):
        raise ValueError("it moves the batch dimension, which is not supported")
    op = "reshape" if str(shape[0]) == str(before[0]) else "regroup"
    return op, [call.first], {}, {"shape": list(shape[1:])}


def _read_permute(call: Call) -> Parsed:
    return _moved(call, [axis % len(call.before) for axis in call["dims"]])


def _read_transpose(call: Call) -> Parsed:
    axes = list(range(len(call.before)))
    one, two = (int(call[name]) % len(axes) for name in ("dim0", "dim1"))
    axes[one], axes[two] = axes[two], axes[one]
    return _moved(call, axes)


def _moved(call: Call, axes: list[int]) -> Parsed:
    if axes[0] != 0:
        raise ValueError("it moves the batch dimension, which is not supported")
    return "permute", [call.first], {}, {"axes": axes[1:]}


def _read_select(call: Call) -> Parsed:
    axis = call.axis(call["dim"])
    return "select", [call.first], {}, {"axis": axis, "index": int(call["index"]) % call.before[axis]}


def _read_slice(call: Call) -> Parsed:
    """A part of an axis, or all of it."""
    ends = [call[name] for name in ("start", "end", "step")]
    if call.before == call.shape:
        call.told_by_shape("dim")
        return "identity", [call.first], {}, {}
    axis = call.axis(call["dim"])
    return _part(call, axis, *slice(*ends).indices(call.before[axis]))


def _part(call: Call, axis: int, start: int, stop: int, step: int = 1) -> Parsed:
    attributes = {"axis": axis, "start": start, "stop": stop} | ({"step": step} if step != 1 else {})
    return "slice", [call.first], {}, attributes


def _read_part_of_split(call: Call, part: int) -> Parsed:
    call.told_by_shape("chunks", "split_size", "split_sizes")
    axis = call.axis(call["dim"])
    sizes = [value.shape[axis] for value in call.node.meta["val"]]
    return _part(call, axis, sum(sizes[:part]), sum(sizes[: part + 1]))


def _read_part_of_unbound(call: Call, part: int) -> Parsed:
    return "select", [call.first], {}, {"axis": call.axis(call["dim"]), "index": part}


def _read_expand(call: Call) -> Parsed:
    """A parameter that is repeated for every example is repeated by its node anyway."""
    call.told_by_shape("size", "other")
    call.without_effect("implicit")
    if call.first.name in call.tensors and call.before[1:] == call.shape[1:]:
        return "identity", [call.first], {}, {}
    if len(call.before) != len(call.shape) or str(call.before[0]) != str(call.shape[0]):
        raise ValueError("supported along dimensions of size 1 behind the batch, and for parameters along the batch")
    pairs = enumerate(zip(call.before[1:], call.shape[1:], strict=True), 1)
    sizes = {axis: after for axis, (before, after) in pairs if before != after}
    if not sizes:
        return "identity", [call.first], {}, {}
    return "expand", [call.first], {}, {"axes": list(sizes), "sizes": list(sizes.values())}


def _read_narrow(call: Call) -> Parsed:
    axis, start, length = call.axis(call["dim"]), int(call["start"]), int(call["length"])
    return _part(call, axis, start % call.before[axis], start % call.before[axis] + length)


def _read_flip(call: Call) -> Parsed:
    return "flip", [call["self"]], {}, {"axes": sorted(call.axis(axis) for axis in call["dims"])}


def _read_roll(call: Call) -> Parsed:
    axes, shifts = list(call["dims"]), list(call["shifts"])
    if not axes:
        raise ValueError("it works across the batch dimension, which is not supported")
    total: dict[int, int] = {}
    for axis, shift in zip(map(call.axis, axes), shifts, strict=True):
        total[axis] = (total.get(axis, 0) + shift) % call.before[axis]
    return "roll", [call["self"]], {}, {"shifts": list(total.values()), "axes": list(total)}


def _read_concat(call: Call) -> Parsed:
    return "concat", list(call["tensors"]), {}, {"axis": call.axis(call["dim"])}


def _read_pad(call: Call) -> Parsed:
    mode, sizes = call["mode"], list(call["pad"])
    if mode == "constant" and (call["value"] or 0) != 0:
        raise ValueError("padding with a constant other than 0 is not supported")
    call.without_effect("value")
    if min(sizes, default=0) < 0:
        raise ValueError(f"padding by {sizes}: less than nothing is not supported; take a part of the value")
    return "pad", [call["self"]], {}, {"sizes": sizes, "mode": mode}


# --- torch


def _concat(*arguments: Any) -> Tensor:
    *inputs, _, attributes = arguments
    return torch.cat(inputs, attributes["axis"])


def _constant(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    value, shape = p["value"], (1, *a["shape"])
    value = value.to(x.dtype) if x.is_floating_point() else value  # beside tokens it stays what it is
    value = value if value.shape == shape else value.reshape(shape)  # `capture` reads no reshape of a parameter
    return value.expand(x.shape[0], *a["shape"])


def _expand(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    sizes = dict(zip(a["axes"], a["sizes"], strict=True))
    return x.expand([sizes.get(axis, -1) for axis in range(x.dim())])


def _slice(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    return x[(slice(None),) * a["axis"] + (slice(a["start"], a["stop"], a.get("step", 1)),)]


# --- ONNX


def _place_reshape(builder: onnx.Builder, placement: onnx.Placement) -> None:
    shape = placement.attributes["shape"]
    if len(shape) == 1:
        builder.node("Flatten", placement.inputs, placement.output, axis=1)
    else:
        target = builder.constant(np.array([0, *shape], np.int64), f"{placement.output}.shape")
        builder.node("Reshape", [*placement.inputs, target], placement.output)


def _place_regroup(builder: onnx.Builder, placement: onnx.Placement) -> None:
    target = builder.constant(np.array([-1, *placement.attributes["shape"]], np.int64), f"{placement.output}.shape")
    builder.node("Reshape", [*placement.inputs, target], placement.output)


def _place_pad(builder: onnx.Builder, placement: onnx.Placement) -> None:
    sizes, rank = placement.attributes["sizes"], len(placement.shapes[0]) + 1
    pads = np.zeros((2, rank), np.int64)
    for place in range(len(sizes) // 2):  # torch names the last dimension first, (before, after) each
        pads[:, rank - 1 - place] = sizes[2 * place : 2 * place + 2]
    amounts = builder.constant(pads.reshape(-1), f"{placement.output}.pads")
    builder.node(
        "Pad", [*placement.inputs, amounts], placement.output, mode=c_moves.MODES[placement.attributes["mode"]]
    )


def _place_permute(builder: onnx.Builder, placement: onnx.Placement) -> None:
    builder.node("Transpose", placement.inputs, placement.output, perm=[0, *placement.attributes["axes"]])


def _place_select(builder: onnx.Builder, placement: onnx.Placement) -> None:
    index = builder.constant(np.array(placement.attributes["index"], np.int64), f"{placement.output}.index")
    builder.node("Gather", [*placement.inputs, index], placement.output, axis=placement.attributes["axis"])


def _place_slice(builder: onnx.Builder, placement: onnx.Placement) -> None:
    a = placement.attributes
    numbers = {"starts": a["start"], "ends": a["stop"], "axes": a["axis"], "steps": a.get("step", 1)}
    names = [builder.constant(np.array([n], np.int64), f"{placement.output}.{name}") for name, n in numbers.items()]
    builder.node("Slice", [*placement.inputs, *names], placement.output)


def _place_expand(builder: onnx.Builder, placement: onnx.Placement) -> None:
    sizes = dict(zip(placement.attributes["axes"], placement.attributes["sizes"], strict=True))
    wanted = [sizes.get(axis, 1) for axis in range(len(placement.shapes[0]) + 1)]
    shape = builder.constant(np.array(wanted, np.int64), f"{placement.output}.shape")
    builder.node("Expand", [*placement.inputs, shape], placement.output)


def _place_flip(builder: onnx.Builder, placement: onnx.Placement) -> None:
    axes = placement.attributes["axes"]
    numbers = {"starts": [-1] * len(axes), "ends": [np.iinfo(np.int64).min] * len(axes), "axes": axes}
    numbers["steps"] = [-1] * len(axes)
    names = [builder.constant(np.array(v, np.int64), f"{placement.output}.{name}") for name, v in numbers.items()]
    builder.node("Slice", [*placement.inputs, *names], placement.output)


def _place_roll(builder: onnx.Builder, placement: onnx.Placement) -> None:
    """Axis by axis, the places in the order in which they will lie."""
    pairs = list(zip(placement.attributes["axes"], placement.attributes["shifts"], strict=True))
    found = placement.inputs[0]
    for place, (axis, shift) in enumerate(pairs, 1):
        order = np.roll(np.arange(placement.shapes[0][axis - 1]), shift).astype(np.int64)
        name = placement.output if place == len(pairs) else f"{placement.output}.{place}"
        found = builder.node("Gather", [found, builder.constant(order, f"{name}.order")], name, axis=axis)


def _place_constant(builder: onnx.Builder, placement: onnx.Placement) -> None:
    """A tensor of one example, repeated for the batch, whose size only the input knows."""
    shape = placement.attributes["shape"]
    value = dense(builder.network.tensors[placement.parameters["value"]]).reshape(1, *shape)
    batch = builder.node("Shape", placement.inputs, f"{placement.output}.batch", start=0, end=1)
    rest = builder.constant(np.array(shape, np.int64), f"{placement.output}.shape")
    whole = builder.node("Concat", [batch, rest], f"{placement.output}.whole", axis=0)
    builder.node("Expand", [builder.constant(value, f"{placement.output}.value"), whole], placement.output)


# --- C


def _c_reshape(planning: c.Planning, node: Node, index: int) -> int:
    """Nothing: values lie in memory as torch numbers them."""
    return planning.value[node.inputs[0]]


def _c_place_concat(planning: c.Planning, node: Node, index: int) -> int:
    """Rows of each value, one behind the other."""
    shapes = [planning.shapes[i] for i in node.inputs]
    before = math.prod(shapes[0][: node.attributes["axis"] - 1])
    values, made = [planning.value[i] for i in node.inputs], planning.shapes[index]
    planes = [c.spatial(shape) for shape in shapes]
    return planning.add(c.Loop("concat", values, planes, c.spatial(made), attributes={"rows": before}))


def _c_concat(tag: str, loop: c.Loop, per: str) -> str:
    lines, start, rows = [], 0, loop.attributes["rows"]
    whole = count(loop.shape) // rows
    for number, shape in enumerate(loop.shapes):
        name, size = f"x{number if len(loop.shapes) > 1 else ''}", count(shape) // rows
        to, source = f"{start}{per} + i", "i"
        if rows > 1:
            lines.append(f"for (size_t r = 0; r < {rows}; r++)")
            to, source = f"(r * {whole} + {start}){per} + i", f"r * {size}{per} + i"
        lines.append(f"for (size_t i = 0; i < {size}{per}; i++)\ny[{to}] = {name}[{source}];")
        start += size
    return "\n".join(lines)


def _c_place_constant(planning: c.Planning, node: Node, index: int) -> int:
    shape = c.spatial(planning.shapes[index])
    weights = c.Weights(dense(planning.network.tensors[node.parameters["value"]]), np.ones(1), np.zeros(1))
    return planning.add(c.Loop("constant", [planning.value[node.inputs[0]]], [shape], shape, weights))


def _c_constant(tag: str, loop: c.Loop, per: str) -> str:
    return f"""
        (void)x;
        for (size_t i = 0; i < {count(loop.shape)}; i++)
        {c.each(per)}
        y[i{per} + l] = {tag}_values[i];"""


def _c_values(tag: str, loop: c.Loop) -> str:
    assert loop.weights is not None
    return floats(f"{tag}_values", loop.weights.codes.reshape(-1))


SHAPED = ("flatten", "view", "view_as", "reshape", "reshape_as", "unflatten", "unsqueeze", "squeeze", "_unsafe_view")

RULES = {
    "reshape": Rule(
        lambda x, p, a: x.reshape(x.shape[0], *a["shape"]),  # len(x) would fix the batch in torch.export
        dict.fromkeys(SHAPED, _read_reshape),
        onnx=_place_reshape, c=c.LoopRule(None, _c_reshape),
    ),
    "regroup": Rule(lambda x, p, a: x.reshape(-1, *a["shape"]), onnx=_place_regroup),
    "pad": Rule(
        lambda x, p, a: F.pad(x, a["sizes"], a["mode"]), {"pad": _read_pad}, onnx=_place_pad,
        c=c.LoopRule(None, c_moves.place_pad),
    ),
    "permute": Rule(
        lambda x, p, a: x.permute(0, *a["axes"]), {"permute": _read_permute, "transpose": _read_transpose},
        onnx=_place_permute, c=c_moves.moving(c_moves.permuted),
    ),
    "select": Rule(
        lambda x, p, a: x.select(a["axis"], a["index"]), {"select": _read_select}, {"unbind": _read_part_of_unbound},
        _place_select, c_moves.moving(c_moves.part),
    ),
    "slice": Rule(
        _slice, {"slice": _read_slice, "narrow": _read_narrow},
        dict.fromkeys(("chunk", "split", "split_with_sizes"), _read_part_of_split),
        _place_slice, c_moves.moving(c_moves.part),
    ),
    "expand": Rule(
        _expand, {"expand": _read_expand, "expand_as": _read_expand},
        onnx=_place_expand, c=c_moves.moving(c_moves.repeated),
    ),
    "flip": Rule(
        lambda x, p, a: x.flip(a["axes"]), {"flip": _read_flip}, onnx=_place_flip, c=c_moves.moving(c_moves.flipped)
    ),
    "roll": Rule(
        lambda x, p, a: x.roll(a["shifts"], a["axes"]), {"roll": _read_roll}, onnx=_place_roll,
        c=c_moves.moving(c_moves.rolled),
    ),
    "concat": Rule(
        _concat, {"cat": _read_concat}, onnx=onnx.over_axis("Concat"), c=c.LoopRule(_c_concat, _c_place_concat)
    ),
    "constant": Rule(_constant, onnx=_place_constant, c=c.LoopRule(_c_constant, _c_place_constant, _c_values)),
}  # fmt: skip
