"""Functions of single values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces.c import Single
from pyro_compress.graph.faces.c_text import number
from pyro_compress.graph.faces.onnx import Builder, Placement, plain
from pyro_compress.graph.operations.row import MAX_NUMBER
from pyro_compress.graph.rules.row import Rule, elementwise, is_number

FLAT_SOFTPLUS = 15
"""From here on softplus is its argument, to float32's rounding."""
HARD = "(v <= -3 ? 0 : v >= 3 ? 1 : (v + 3) / 6)"
SOFTPLUS = "((v > 0 ? v : 0) + log1pf(expf(-fabsf(v))))"
GELU = {
    True: "0.5f * v * (1 + tanhf(0.79788456f * (v + 0.044715f * v * v * v)))",
    False: "0.5f * v * (1 + erff(v * 0.70710678f))",
}
"""In C, by whether it is the approximation."""


def _read_gelu(call: Call) -> Parsed:
    return "gelu", [call["self"]], {}, {"tanh": call["approximate"] == "tanh"}


def _read_leaky_relu(call: Call) -> Parsed:
    return "leaky_relu", [call["self"]], {}, {"slope": float(call["negative_slope"])}


def _read_elu(call: Call) -> Parsed:
    return _scaled_elu(call, call["alpha"], call["scale"])


def _read_selu(call: Call) -> Parsed:
    return _scaled_elu(call, 1.6732632423543772, 1.0507009873554805)


def _scaled_elu(call: Call, alpha: float, scale: float) -> Parsed:
    return "elu", [call["self"]], {}, {"alpha": float(alpha), "scale": float(scale)}


def _read_softplus(call: Call) -> Parsed:
    if call["beta"] != 1:
        raise ValueError("softplus is supported with beta 1 only")
    if call["threshold"] < FLAT_SOFTPLUS:
        raise ValueError(f"softplus is supported with a threshold of {FLAT_SOFTPLUS} or more, got {call['threshold']}")
    return "softplus", [call["self"]], {}, {}


def _read_clip(call: Call) -> Parsed:
    return "clip", [call["self"]], {}, {"low": float(call["min_val"]), "high": float(call["max_val"])}


def _read_relu6(call: Call) -> Parsed:
    return "clip", [call["self"]], {}, {"low": 0.0, "high": 6.0}


def _read_clamp(call: Call) -> Parsed:
    ends = [call[name] if call.has(name) else None for name in ("min", "max")]
    if not all(end is None or is_number(end) for end in ends):
        raise ValueError("supported between two numbers only")
    low, high = (default if end is None else end for end, default in zip(ends, (-MAX_NUMBER, MAX_NUMBER), strict=True))
    return "clip", [call["self"]], {}, {"low": float(low), "high": float(high)}


def _read_power(call: Call) -> Parsed:
    if not is_number(call["exponent"]):
        raise ValueError("supported for a value to the power of a number only")
    return "power", [call["self"]], {}, {"exponent": float(call["exponent"])}


def _read_square(call: Call) -> Parsed:
    return "power", [call["self"]], {}, {"exponent": 2.0}


def scaled(call: Call, factor: float = 1.0, offset: float = 0.0) -> Parsed:
    """A value times a number, plus a number."""
    attributes = {"factor": float(factor)} | ({"offset": float(offset)} if offset else {})
    return "scale", [call["self"]], {}, attributes


def _scale(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    """In as few operations as it was read from."""
    factor, offset = a["factor"], a.get("offset", 0)
    if offset and factor == -1:
        return offset - x
    x = x if factor == 1 else x * factor
    return x + offset if offset else x


def _place_silu(builder: Builder, placement: Placement) -> None:
    gate = builder.node("Sigmoid", placement.inputs, f"{placement.output}.gate")
    builder.node("Mul", [*placement.inputs, gate], placement.output)


def _place_gelu(builder: Builder, placement: Placement) -> None:
    builder.node(
        "Gelu", placement.inputs, placement.output, approximate="tanh" if placement.attributes["tanh"] else "none"
    )


def _place_leaky_relu(builder: Builder, placement: Placement) -> None:
    builder.node("LeakyRelu", placement.inputs, placement.output, alpha=float(placement.attributes["slope"]))


def _place_elu(builder: Builder, placement: Placement) -> None:
    builder.node(
        "Selu",
        placement.inputs,
        placement.output,
        alpha=float(placement.attributes["alpha"]),
        gamma=float(placement.attributes["scale"]),
    )


def _place_scale(builder: Builder, placement: Placement) -> None:
    numbers = [(name, op) for name, op in (("factor", "Mul"), ("offset", "Add")) if name in placement.attributes]
    found = placement.inputs[0]
    for place, (name, op) in enumerate(numbers, 1):
        value = builder.constant(np.array(placement.attributes[name], np.float32), f"{placement.output}.{name}")
        found = builder.node(
            op, [found, value], placement.output if place == len(numbers) else f"{placement.output}.{op}"
        )


def _place_rsqrt(builder: Builder, placement: Placement) -> None:
    root = builder.node("Sqrt", placement.inputs, f"{placement.output}.root")
    builder.node("Reciprocal", [root], placement.output)


def _place_expm1(builder: Builder, placement: Placement) -> None:
    """exp(x) - 1 as 2 sinh(x / 2) exp(x / 2), which loses no digits near 0."""
    half = builder.constant(np.array(0.5, np.float32), f"{placement.output}.half")
    two = builder.constant(np.array(2, np.float32), f"{placement.output}.two")
    x = builder.node("Mul", [*placement.inputs, half], f"{placement.output}.x")
    product = builder.node(
        "Mul",
        [builder.node("Sinh", [x], f"{placement.output}.sinh"), builder.node("Exp", [x], f"{placement.output}.exp")],
        f"{placement.output}.product",
    )
    builder.node("Mul", [product, two], placement.output)


def _place_log_sigmoid(builder: Builder, placement: Placement) -> None:
    turned = builder.node("Neg", placement.inputs, f"{placement.output}.turned")
    builder.node("Neg", [builder.node("Softplus", [turned], f"{placement.output}.softplus")], placement.output)


def _place_log1p(builder: Builder, placement: Placement) -> None:
    one = builder.constant(np.array(1, np.float32), f"{placement.output}.one")
    builder.node("Log", [builder.node("Add", [*placement.inputs, one], f"{placement.output}.sum")], placement.output)


def _place_power(builder: Builder, placement: Placement) -> None:
    exponent = builder.constant(np.array(placement.attributes["exponent"], np.float32), f"{placement.output}.exponent")
    builder.node("Pow", [*placement.inputs, exponent], placement.output)


def _place_clip(builder: Builder, placement: Placement) -> None:
    ends = [
        builder.constant(np.array(placement.attributes[name], np.float32), f"{placement.output}.{name}")
        for name in ("low", "high")
    ]
    builder.node("Clip", [*placement.inputs, *ends], placement.output)


def _c_elu(a: dict[str, Any]) -> str:
    return f"v > 0 ? v * {number(a['scale'])} : {number(a['alpha'] * a['scale'])} * expm1f(v)"


def _c_scale(a: dict[str, Any]) -> str:
    return f"v * {number(a['factor'])}" + (f" + {number(a['offset'])}" if "offset" in a else "")


def _c_clip(a: dict[str, Any]) -> str:
    return "v < {0} ? {0} : v > {1} ? {1} : v".format(number(a["low"]), number(a["high"]))


def pointwise(op: str, run: Any, onnx: Any, c: str) -> Rule:
    """An operation without attributes that torch has under the same name."""
    return Rule(lambda x, p, a: run(x), {op: elementwise(op)}, onnx=onnx, c=Single(lambda a: c))


RULES = {
    "relu": pointwise("relu", F.relu, plain("Relu"), "v < 0 ? 0 : v"),
    "tanh": pointwise("tanh", torch.tanh, plain("Tanh"), "tanhf(v)"),
    "sigmoid": pointwise("sigmoid", torch.sigmoid, plain("Sigmoid"), "1 / (1 + expf(-v))"),
    "silu": pointwise("silu", F.silu, _place_silu, "v / (1 + expf(-v))"),
    "hardswish": pointwise("hardswish", F.hardswish, plain("HardSwish"), f"v * {HARD}"),
    "hardsigmoid": pointwise("hardsigmoid", F.hardsigmoid, plain("HardSigmoid", alpha=1 / 6, beta=0.5), HARD),
    "softplus": Rule(
        lambda x, p, a: F.softplus(x), {"softplus": _read_softplus}, onnx=plain("Softplus"),
        c=Single(lambda a: SOFTPLUS),
    ),
    "mish": pointwise("mish", F.mish, plain("Mish"), f"v * tanhf({SOFTPLUS})"),
    "sin": pointwise("sin", torch.sin, plain("Sin"), "sinf(v)"),
    "cos": pointwise("cos", torch.cos, plain("Cos"), "cosf(v)"),
    "abs": pointwise("abs", torch.abs, plain("Abs"), "fabsf(v)"),
    "exp": pointwise("exp", torch.exp, plain("Exp"), "expf(v)"),
    "expm1": pointwise("expm1", torch.expm1, _place_expm1, "expm1f(v)"),
    "log": pointwise("log", torch.log, plain("Log"), "logf(v)"),
    "log1p": pointwise("log1p", torch.log1p, _place_log1p, "log1pf(v)"),
    "erf": pointwise("erf", torch.erf, plain("Erf"), "erff(v)"),
    "log_sigmoid": pointwise(
        "log_sigmoid", F.logsigmoid, _place_log_sigmoid, "(v < 0 ? v : 0) - log1pf(expf(-fabsf(v)))"
    ),
    "sqrt": pointwise("sqrt", torch.sqrt, plain("Sqrt"), "sqrtf(v)"),
    "rsqrt": pointwise("rsqrt", torch.rsqrt, _place_rsqrt, "1 / sqrtf(v)"),
    "reciprocal": pointwise("reciprocal", torch.reciprocal, plain("Reciprocal"), "1 / v"),
    "power": Rule(
        lambda x, p, a: x.pow(a["exponent"]), {"pow": _read_power, "square": _read_square}, onnx=_place_power,
        c=Single(lambda a: "v * v" if a["exponent"] == 2 else f"powf(v, {number(a['exponent'])})"),
    ),
    "gelu": Rule(
        lambda x, p, a: F.gelu(x, approximate="tanh" if a["tanh"] else "none"), {"gelu": _read_gelu},
        onnx=_place_gelu, c=Single(lambda a: GELU[a["tanh"]]),
    ),
    "leaky_relu": Rule(
        lambda x, p, a: F.leaky_relu(x, a["slope"]), {"leaky_relu": _read_leaky_relu}, onnx=_place_leaky_relu,
        c=Single(lambda a: f"v < 0 ? v * {number(a['slope'])} : v"),
    ),
    "elu": Rule(
        lambda x, p, a: torch.ops.aten.elu(x, a["alpha"], a["scale"]), {"elu": _read_elu, "selu": _read_selu},
        onnx=_place_elu, c=Single(_c_elu),
    ),
    "scale": Rule(_scale, {"neg": lambda call: scaled(call, -1)}, onnx=_place_scale, c=Single(_c_scale)),
    "clip": Rule(
        lambda x, p, a: F.hardtanh(x, a["low"], a["high"]),
        {
            "hardtanh": _read_clip, "relu6": _read_relu6, "clamp": _read_clamp, "clamp_min": _read_clamp,
            "clamp_max": _read_clamp,
        },
        onnx=_place_clip, c=Single(_c_clip),
    ),
}  # fmt: skip
