"""Normalisation, and slopes per channel."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from pyro_compress.graph.calls import Call, Mixes, Parsed
from pyro_compress.graph.faces import c
from pyro_compress.graph.faces.c_text import floats, number
from pyro_compress.graph.faces.onnx import Builder, Placement
from pyro_compress.graph.rules.row import Rule
from pyro_compress.pcn.file import dense
from pyro_compress.types import Node, count


def _read_batch_norm(call: Call) -> Parsed:
    call.without_effect("momentum", "cudnn_enabled")
    if call["training"] and not isinstance(call.before[0], torch.SymInt):
        raise ValueError("batch norm of what the network computes from its own tensors has no row")
    if call["training"]:
        raise Mixes(
            "batch norm without running statistics makes of one example something else in every batch; keep them "
            "(track_running_stats=True)"
        )
    return _batch_normed(call)


def _batch_normed(call: Call) -> Parsed:
    call.without_effect("momentum")
    roles = {role: call[role] for role in ("weight", "bias", "running_mean", "running_var")}
    if (roles["weight"] is None) != (roles["bias"] is None):
        raise ValueError("batch norm is supported with weight and bias, or with neither")
    return "batch_norm", [call["input"]], roles, {"eps": call["eps"]}


def _read_batch_norm_part(call: Call, part: int) -> Parsed:
    if part:
        raise ValueError("the statistics of batch norm are not supported as values")
    return _batch_normed(call)


def _read_layer_norm(call: Call) -> Parsed:
    call.without_effect("cudnn_enable")
    if len(call["normalized_shape"]) != 1:
        raise ValueError("layer norm is supported over the last dimension only")
    return "layer_norm", [call["input"]], {"weight": call["weight"], "bias": call["bias"]}, {"eps": call["eps"]}


def _read_group_norm(call: Call) -> Parsed:
    call.without_effect("cudnn_enabled")
    roles = {"weight": call["weight"], "bias": call["bias"]}
    return "group_norm", [call["input"]], roles, {"groups": call["num_groups"], "eps": call["eps"]}


def _read_instance_norm(call: Call) -> Parsed:
    """Group norm with a group per channel."""
    call.without_effect("running_mean", "running_var", "momentum", "cudnn_enabled")
    if not call["use_input_stats"]:
        raise ValueError("instance norm is supported without running statistics only")
    roles = {"weight": call["weight"], "bias": call["bias"]}
    return "group_norm", [call["input"]], roles, {"groups": call.before[1], "eps": call["eps"]}


def _read_prelu(call: Call) -> Parsed:
    return "prelu", [call["self"]], {"weight": call["weight"]}, {}


def _place_batch_norm(builder: Builder, placement: Placement) -> None:
    channels = dense(builder.network.tensors[placement.parameters["running_mean"]]).shape
    absent = {"weight": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
    tensors = [
        builder.tensor(placement.parameters[role]) if role in placement.parameters
        else builder.constant(absent[role], f"{placement.output}.{role}")
        for role in ("weight", "bias", "running_mean", "running_var")
    ]  # fmt: skip
    builder.node(
        "BatchNormalization",
        [*placement.inputs, *tensors],
        placement.output,
        epsilon=float(placement.attributes["eps"]),
    )


def _place_layer_norm(builder: Builder, placement: Placement) -> None:
    size = placement.shapes[0][-1:]
    scale = (
        builder.tensor(placement.parameters["weight"]) if "weight" in placement.parameters
        else builder.constant(np.ones(size, np.float32), f"{placement.output}.weight")
    )  # fmt: skip
    bias = [builder.tensor(placement.parameters["bias"])] if "bias" in placement.parameters else []
    builder.node(
        "LayerNormalization",
        [*placement.inputs, scale, *bias],
        placement.output,
        epsilon=float(placement.attributes["eps"]),
    )


def _place_group_norm(builder: Builder, placement: Placement) -> None:
    """Instance norm of groups; ONNX's own group norm has changed what its scale means from opset to opset."""
    out, groups, shape = placement.output, placement.attributes["groups"], placement.shapes[0]
    rows = builder.constant(np.array([0, groups, -1], np.int64), f"{out}.rows")
    back = builder.constant(np.array([0, *shape], np.int64), f"{out}.shape")
    ones = builder.constant(np.ones(groups, np.float32), f"{out}.ones")
    zeros = builder.constant(np.zeros(groups, np.float32), f"{out}.zeros")
    found = builder.node("Reshape", [*placement.inputs, rows], f"{out}.grouped")
    found = builder.node(
        "InstanceNormalization", [found, ones, zeros], f"{out}.normalized", epsilon=float(placement.attributes["eps"])
    )
    left = [(role, op) for role, op in (("weight", "Mul"), ("bias", "Add")) if role in placement.parameters]
    found = builder.node("Reshape", [found, back], f"{out}.whole" if left else out)
    for place, (role, op) in enumerate(left, 1):
        values = builder.by_channel(placement, role)
        found = builder.node(op, [found, values], out if place == len(left) else f"{out}.{op}")


def _place_prelu(builder: Builder, placement: Placement) -> None:
    builder.node("PRelu", [*placement.inputs, builder.by_channel(placement, "weight")], placement.output)


def _c_place(planning: c.Planning, node: Node, index: int) -> int:
    """A loop with a number per channel, or two."""
    p = {role: dense(planning.network.tensors[name]) for role, name in node.parameters.items()}
    shape = c.spatial(planning.shapes[index])
    scale = np.broadcast_to(p.get("weight", np.ones(1)), shape[:1])
    weights = c.Weights(np.zeros(0), scale, p.get("bias", np.zeros(shape[0])))
    first = planning.value[node.inputs[0]]
    return planning.add(c.Loop(node.op, [first], [shape], shape, weights, dict(node.attributes)))


def _c_prelu(tag: str, loop: c.Loop, per: str) -> str:
    channels, pixels = loop.shape[0], count(loop.shape[1:])
    return f"""
        for (size_t o = 0; o < {channels}; o++)
        for (size_t i = 0; i < {pixels}{per}; i++) {{
        const float v = x[o * {pixels}{per} + i];
        y[o * {pixels}{per} + i] = v < 0 ? v * {tag}_scale[o] : v;
        }}"""


def _c_group_norm(tag: str, loop: c.Loop, per: str) -> str:
    groups, pixels = loop.attributes["groups"], count(loop.shape[1:])
    size = count(loop.shape) // groups
    return f"""
        for (size_t g = 0; g < {groups}; g++)
        {c.each(per)} {{
        {_c_moments(f"g * {size} + ", size, per, loop.attributes["eps"])}
        for (size_t i = g * {size}; i < (g + 1) * {size}; i++)
        y[i{per} + l] = (x[i{per} + l] - mean) * spread * {tag}_scale[i / {pixels}] + {tag}_bias[i / {pixels}];
        }}"""


def _c_place_layer_norm(planning: c.Planning, node: Node, index: int) -> int:
    """A loop with two numbers per place of the last axis."""
    p = {role: dense(planning.network.tensors[name]) for role, name in node.parameters.items()}
    *rows, size = planning.shapes[index]
    shape = (count(tuple(rows)), 1, size)
    weights = c.Weights(np.zeros(0), p.get("weight", np.ones(size)), p.get("bias", np.zeros(size)))
    return planning.add(
        c.Loop(node.op, [planning.value[node.inputs[0]]], [shape], shape, weights, dict(node.attributes))
    )


def _c_layer_norm(tag: str, loop: c.Loop, per: str) -> str:
    rows, _, size = loop.shape
    return f"""
        for (size_t o = 0; o < {rows}; o++, x += {size}{per})
        {c.each(per)} {{
        {_c_moments("", size, per, loop.attributes["eps"])}
        for (size_t i = 0; i < {size}; i++)
        y[(o * {size} + i){per} + l] = (x[i{per} + l] - mean) * spread * {tag}_scale[i] + {tag}_bias[i];
        }}"""


def _c_moments(first: str, size: int, per: str, eps: float) -> str:
    """Mean of so many values, and what they are multiplied by to have a variance of one."""
    if per:
        return f"""
            float mean = 0, spread = 0;
            for (size_t i = 0; i < {size}; i++)
            mean += x[({first}i){per} + l];
            mean /= {size};
            for (size_t i = 0; i < {size}; i++) {{
            const float v = x[({first}i){per} + l] - mean;
            spread += v * v;
            }}
            spread = 1 / sqrtf(spread / {size} + {number(eps)});"""
    return f"""
        const vector zero = {{0}};
        vector sums = zero, squares = zero;
        float mean = 0, spread = 0, parts[VECTOR];
        size_t n = 0;
        for (; n + VECTOR <= {size}; n += VECTOR)
        sums += FROM(x + {first}n);
        AT(parts) = sums;
        for (size_t i = 0; i < VECTOR; i++)
        mean += parts[i];
        for (; n < {size}; n++)
        mean += x[{first}n];
        mean /= {size};
        for (n = 0; n + VECTOR <= {size}; n += VECTOR) {{
        const vector v = FROM(x + {first}n) - mean;
        squares += v * v;
        }}
        AT(parts) = squares;
        for (size_t i = 0; i < VECTOR; i++)
        spread += parts[i];
        for (; n < {size}; n++)
        spread += (x[{first}n] - mean) * (x[{first}n] - mean);
        spread = 1 / sqrtf(spread / {size} + {number(eps)});"""


def _c_scale(tag: str, loop: c.Loop) -> str:
    assert loop.weights is not None
    return floats(f"{tag}_scale", loop.weights.scale)


def c_scale_and_bias(tag: str, loop: c.Loop) -> str:
    """The tables of a loop with two numbers per channel."""
    assert loop.weights is not None
    return floats(f"{tag}_scale", np.atleast_1d(loop.weights.scale)) + floats(f"{tag}_bias", loop.weights.bias)


RULES = {
    "batch_norm": Rule(
        lambda x, p, a: F.batch_norm(
            x, p["running_mean"], p["running_var"], p.get("weight"), p.get("bias"), eps=a["eps"]
        ),
        {"batch_norm": _read_batch_norm},
        {"_native_batch_norm_legit_no_training": _read_batch_norm_part},
        _place_batch_norm,
    ),
    "layer_norm": Rule(
        lambda x, p, a: F.layer_norm(x, x.shape[-1:], p.get("weight"), p.get("bias"), a["eps"]),
        {"layer_norm": _read_layer_norm},
        onnx=_place_layer_norm,
        c=c.LoopRule(_c_layer_norm, _c_place_layer_norm, c_scale_and_bias),
    ),
    "group_norm": Rule(
        lambda x, p, a: F.group_norm(x, a["groups"], p.get("weight"), p.get("bias"), a["eps"]),
        {"group_norm": _read_group_norm, "instance_norm": _read_instance_norm},
        onnx=_place_group_norm,
        c=c.LoopRule(_c_group_norm, _c_place, c_scale_and_bias),
    ),
    "prelu": Rule(
        lambda x, p, a: F.prelu(x, p["weight"]),
        {"prelu": _read_prelu},
        onnx=_place_prelu,
        c=c.LoopRule(_c_prelu, _c_place, _c_scale),
    ),
}
