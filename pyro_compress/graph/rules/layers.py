"""Layers with weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pyro_compress.graph.calls import Call, Parsed, axes_of
from pyro_compress.graph.convolution import convolve
from pyro_compress.graph.faces.c import Layer, LoopRule
from pyro_compress.graph.faces.c_layers import place_upward, place_volume
from pyro_compress.graph.faces.onnx import Builder, Placement
from pyro_compress.graph.rules.row import Rule, check_rank, each


def _read_linear(call: Call) -> Parsed:
    weight, turned = turned_weight(call["weight"])
    op = "linear_transpose" if turned else "linear"
    return op, [call["input"]], {"weight": weight, "bias": call["bias"]}, {}


def _read_addmm(call: Call) -> Parsed:
    if call["beta"] != 1 or call["alpha"] != 1:
        raise ValueError("supported with alpha and beta of 1 only")
    op, inputs, tensors, attributes = product(call, call["mat1"], call["mat2"])
    return op, inputs, tensors | {"bias": call["self"]}, attributes


def _read_mm(call: Call) -> Parsed:
    return product(call, call["self"], call["mat2"])


def product(call: Call, one: fx.Node, weight: fx.Node) -> Parsed:
    """A product with a weight on its right, `(in, out)` as it stands.

    Raises:
        ValueError: it is no tensor of the network with two dimensions.
    """
    weight, turned = turned_weight(weight)
    if weight.name not in call.tensors or weight.meta["val"].dim() != 2:
        raise ValueError("supported with a weight of two dimensions only")
    return "linear" if turned else "linear_transpose", [one], {"weight": weight}, {}


def turned_weight(weight: fx.Node) -> tuple[fx.Node, bool]:
    """A weight before its two axes were exchanged, where they were, and whether they were."""
    given = axes_of(weight)
    if given != [1, 0] and weight.target is not torch.ops.aten.t.default:
        return weight, False
    source = weight.args[0]
    assert isinstance(source, fx.Node)
    return source, True


def _read_conv(call: Call) -> Parsed:
    kernel = call["weight"].meta["val"].shape[2:]
    rank = len(kernel)
    check_rank(call, rank)
    stride, dilation, padding = each(call["stride"], rank), each(call["dilation"], rank), call["padding"]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = each(0 if padding == "valid" else padding, rank)
    attributes = {"stride": stride, "padding": [before, after], "dilation": dilation}
    if (groups := call["groups"]) != 1:
        attributes["groups"] = groups
    return f"conv{rank}d", [call["input"]], {"weight": call["weight"], "bias": call["bias"]}, attributes


def padded(x: Tensor, attributes: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """The input of a convolution, padded where its sides differ, and the padding that is left to torch."""
    before, after = attributes["padding"]
    if before == after:
        return x, before
    around = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return F.pad(x, around), [0] * len(before)


def _linear_transpose(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return x @ p["weight"] + p["bias"] if "bias" in p else x @ p["weight"]


def _conv(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    x, padding = padded(x, a)
    return convolve(x, p["weight"], p.get("bias"), a["stride"], padding, a["dilation"], a.get("groups", 1))


def _read_conv_transpose(call: Call) -> Parsed:
    rank = len(call["weight"].meta["val"].shape) - 2
    check_rank(call, rank)
    names = {"stride": "stride", "padding": "padding", "dilation": "dilation", "extra": "output_padding"}
    attributes: dict[str, Any] = {name: each(call[given], rank) for name, given in names.items()}
    attributes |= {} if call["groups"] == 1 else {"groups": call["groups"]}
    roles = {"weight": call["weight"], "bias": call["bias"]}
    return f"conv_transpose{rank}d", [call["input"]], roles, attributes


def _conv_transpose(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(a["stride"]) - 1]
    return conv(x, p["weight"], p.get("bias"), a["stride"], a["padding"], a["extra"], a.get("groups", 1), a["dilation"])


def _place_conv_transpose(builder: Builder, placement: Placement) -> None:
    parameters = [
        builder.tensor(placement.parameters[role]) for role in ("weight", "bias") if role in placement.parameters
    ]
    a = placement.attributes
    builder.node(
        "ConvTranspose", [*placement.inputs, *parameters], placement.output, strides=a["stride"],
        pads=[*a["padding"]] * 2, dilations=a["dilation"], output_padding=a["extra"], group=a.get("groups", 1),
    )  # fmt: skip


def _place_linear(builder: Builder, placement: Placement) -> None:
    weight = builder.tensor(placement.parameters["weight"])
    bias = [builder.tensor(placement.parameters["bias"])] if "bias" in placement.parameters else []
    if len(placement.shapes[0]) == 1:
        builder.node("Gemm", [*placement.inputs, weight, *bias], placement.output, transB=1)
        return
    turned = builder.node("Transpose", [weight], f"{placement.output}.weight", perm=[1, 0])
    _place_product(builder, placement, turned, bias)


def _place_product(builder: Builder, placement: Placement, weight: str, bias: list[str]) -> None:
    product = builder.node(
        "MatMul", [*placement.inputs, weight], f"{placement.output}.product" if bias else placement.output
    )
    if bias:
        builder.node("Add", [product, *bias], placement.output)


def _place_linear_transpose(builder: Builder, placement: Placement) -> None:
    weight = builder.tensor(placement.parameters["weight"])
    bias = [builder.tensor(placement.parameters["bias"])] if "bias" in placement.parameters else []
    _place_product(builder, placement, weight, bias)


def _place_conv(builder: Builder, placement: Placement) -> None:
    parameters = [
        builder.tensor(placement.parameters[role]) for role in ("weight", "bias") if role in placement.parameters
    ]
    attributes = placement.attributes
    before, after = attributes["padding"]
    builder.node(
        "Conv", [*placement.inputs, *parameters], placement.output, strides=attributes["stride"],
        pads=[*before, *after], dilations=attributes["dilation"], group=attributes.get("groups", 1),
    )  # fmt: skip


RULES = {
    "linear": Rule(
        lambda x, p, a: F.linear(x, p["weight"], p.get("bias")), {"linear": _read_linear}, onnx=_place_linear, c=Layer()
    ),
    "linear_transpose": Rule(
        lambda x, p, a: _linear_transpose(x, p),
        {"addmm": _read_addmm, "mm": _read_mm},
        onnx=_place_linear_transpose,
        c=Layer(turned=True),
    ),
    "conv1d": Rule(_conv, {"conv1d": _read_conv}, onnx=_place_conv, c=Layer()),
    "conv2d": Rule(_conv, {"conv2d": _read_conv}, onnx=_place_conv, c=Layer()),
    "conv3d": Rule(_conv, {"conv3d": _read_conv}, onnx=_place_conv, c=LoopRule(None, place_volume)),
    **{
        f"conv_transpose{rank}d": Rule(
            _conv_transpose,
            {f"conv_transpose{rank}d": _read_conv_transpose},
            onnx=_place_conv_transpose,
            c=LoopRule(None, place_upward),
        )
        for rank in (1, 2, 3)
    },
}
