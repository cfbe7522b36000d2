"""What torch calls an operation -> what we call it: `READERS` has one function per ATen operation.

A reader takes a node of an exported graph and tells the operation, the nodes it reads, its tensors by role, and its
attributes; the batch dimension is in none of them. `identity` stands for what does nothing in evaluation mode. An
operation in place is read as the one of the same name without an underscore.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Reading = tuple[str, list[torch.fx.Node], dict[str, torch.fx.Node | None], dict[str, Any]]


def _argument(node: torch.fx.Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _linear(node: torch.fx.Node) -> Reading:
    return "linear", [node.args[0]], {"weight": node.args[1], "bias": _argument(node, 2, "bias")}, {}  # type: ignore[list-item, dict-item]


def _conv(node: torch.fx.Node) -> Reading:
    x, weight = node.args[0], node.args[1]
    kernel = weight.meta["val"].shape[2:]  # type: ignore[union-attr]
    rank = len(kernel)
    stride = _each(_argument(node, 3, "stride", 1), rank)
    padding = _argument(node, 4, "padding", 0)
    dilation = _each(_argument(node, 5, "dilation", 1), rank)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = _each(0 if padding == "valid" else padding, rank)
    attributes = {"stride": stride, "padding": [before, after], "dilation": dilation}
    if (groups := _argument(node, 6, "groups", 1)) != 1:
        attributes["groups"] = groups
    return f"conv{rank}d", [x], {"weight": weight, "bias": _argument(node, 2, "bias")}, attributes  # type: ignore[list-item, dict-item]


def _each(value: int | list[int], rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _elementwise(op: str) -> Callable[[torch.fx.Node], Reading]:
    return lambda node: (op, [node.args[0]], {}, {})  # type: ignore[list-item]


def _gelu(node: torch.fx.Node) -> Reading:
    return "gelu", [node.args[0]], {}, {"tanh": node.kwargs.get("approximate", "none") == "tanh"}  # type: ignore[list-item]


def _reshape(node: torch.fx.Node) -> Reading:
    shape, before = node.meta["val"].shape, node.args[0].meta["val"].shape  # type: ignore[union-attr]
    if any(not isinstance(size, int) for size in shape[1:]) or str(shape[:1]) != str(before[:1]):
        raise ValueError("it moves the batch dimension, which is not supported")
    return "reshape", [node.args[0]], {}, {"shape": list(shape[1:])}  # type: ignore[list-item]


def _max_pool(node: torch.fx.Node) -> Reading:
    rank = node.meta["val"].dim() - 2
    kernel = _each(node.args[1], rank)  # type: ignore[arg-type]
    if any(d != 1 for d in _each(_argument(node, 4, "dilation", 1), rank)) or _argument(node, 5, "ceil_mode", False):
        raise ValueError("max pooling with dilation or ceil_mode is not supported")
    stride, padding = _argument(node, 2, "stride") or kernel, _argument(node, 3, "padding", 0)
    attributes = {"kernel": kernel, "stride": _each(stride, rank), "padding": _each(padding, rank)}
    return "max_pool", [node.args[0]], {}, attributes  # type: ignore[list-item]


def _avg_pool(node: torch.fx.Node) -> Reading:
    rank = node.meta["val"].dim() - 2
    kernel = _each(node.args[1], rank)  # type: ignore[arg-type]
    if any(_each(_argument(node, 3, "padding", 0), rank)) or _argument(node, 4, "ceil_mode", False):
        raise ValueError("average pooling with padding or ceil_mode is not supported")
    stride = _argument(node, 2, "stride") or kernel
    return "avg_pool", [node.args[0]], {}, {"kernel": kernel, "stride": _each(stride, rank)}  # type: ignore[list-item]


def _adaptive_avg_pool(node: torch.fx.Node) -> Reading:
    before = list(node.args[0].meta["val"].shape[2:])  # type: ignore[union-attr]
    after = list(node.meta["val"].shape[2:])
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise ValueError(f"adaptive average pooling from {before} to {after}: only whole ratios are supported")
    kernel = [b // a for b, a in zip(before, after, strict=True)]
    return "avg_pool", [node.args[0]], {}, {"kernel": kernel, "stride": kernel}  # type: ignore[list-item]


def _batch_norm(node: torch.fx.Node) -> Reading:
    roles = dict(zip(("weight", "bias", "running_mean", "running_var"), node.args[1:5], strict=True))
    return "batch_norm", [node.args[0]], roles, {"eps": node.args[7]}  # type: ignore[list-item, return-value]


def _two(op: str) -> Callable[[torch.fx.Node], Reading]:
    """An operation on two values, of which one may be repeated along dimensions other than the batch."""

    def read(node: torch.fx.Node) -> Reading:
        a, b = node.args[0], node.args[1]
        if not isinstance(a, torch.fx.Node) or not isinstance(b, torch.fx.Node) or node.kwargs:
            raise ValueError("supported for two tensors only")
        for value in (a, b):
            if value.op != "placeholder" and value.meta["val"].dim() != node.meta["val"].dim():
                raise ValueError("supported for two tensors with as many dimensions only")
        return op, [a, b], {}, {}

    return read


def _mul(node: torch.fx.Node) -> Reading:
    if isinstance(node.args[1], int | float):
        return "scale", [node.args[0]], {}, {"factor": float(node.args[1])}  # type: ignore[list-item]
    return _two("multiply")(node)


def _div(node: torch.fx.Node) -> Reading:
    if not isinstance(node.args[1], int | float) or node.kwargs:
        raise ValueError("supported for division by a number only")
    return "scale", [node.args[0]], {}, {"factor": 1 / node.args[1]}  # type: ignore[list-item]


def _matmul(node: torch.fx.Node) -> Reading:
    one, two = (value.meta["val"].dim() for value in node.args)  # type: ignore[union-attr]
    if one != two or one < 3:
        raise ValueError("supported for two values with a batch dimension and as many dimensions only")
    return "matmul", [node.args[0], node.args[1]], {}, {}  # type: ignore[list-item]


def _attention(node: torch.fx.Node) -> Reading:
    if _argument(node, 3, "attn_mask") is not None or node.kwargs.get("enable_gqa"):
        raise ValueError("attention is supported without a mask and with as many keys' heads as queries' only")
    attributes = {"causal": bool(_argument(node, 5, "is_causal", False)), "scale": node.kwargs.get("scale")}
    return "attention", list(node.args[:3]), {}, attributes  # type: ignore[arg-type]


def _layer_norm(node: torch.fx.Node) -> Reading:
    if len(node.args[1]) != 1:  # type: ignore[arg-type]
        raise ValueError("layer norm is supported over the last dimension only")
    roles = {"weight": _argument(node, 2, "weight"), "bias": _argument(node, 3, "bias")}
    return "layer_norm", [node.args[0]], roles, {"eps": _argument(node, 4, "eps", 1e-5)}  # type: ignore[list-item]


def _axis(node: torch.fx.Node, axis: Any) -> int:
    """An axis of a node's first input, counted from the front, the batch being 0."""
    rank = _first(node).meta["val"].dim()
    found = int(axis) % rank
    if found == 0:
        raise ValueError("it works across the batch dimension, which is not supported")
    return found


def _first(node: torch.fx.Node) -> torch.fx.Node:
    first = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
    assert isinstance(first, torch.fx.Node)
    return first


def _permute(node: torch.fx.Node) -> Reading:
    rank = _first(node).meta["val"].dim()
    axes = [axis % rank for axis in node.args[1]]  # type: ignore[union-attr]
    return _permuted(node, axes)


def _transpose(node: torch.fx.Node) -> Reading:
    axes = list(range(_first(node).meta["val"].dim()))
    one, two = (int(axis) % len(axes) for axis in node.args[1:3])  # type: ignore[arg-type]
    axes[one], axes[two] = axes[two], axes[one]
    return _permuted(node, axes)


def _permuted(node: torch.fx.Node, axes: list[int]) -> Reading:
    if axes[0] != 0:
        raise ValueError("it moves the batch dimension, which is not supported")
    return "permute", [_first(node)], {}, {"axes": axes[1:]}


def _select(node: torch.fx.Node) -> Reading:
    axis = _axis(node, node.args[1])
    size = _first(node).meta["val"].shape[axis]
    return "select", [_first(node)], {}, {"axis": axis, "index": int(node.args[2]) % size}  # type: ignore[arg-type]


def _slice(node: torch.fx.Node) -> Reading:
    if _first(node).meta["val"].shape != node.meta["val"].shape:
        raise ValueError("supported where it takes everything only")
    return "identity", [_first(node)], {}, {}


def _mean(node: torch.fx.Node) -> Reading:
    wanted = node.args[1]
    axes = [_axis(node, axis) for axis in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    if _argument(node, 2, "keepdim", False):
        raise ValueError("the mean is supported without keepdim only")
    return "mean", [_first(node)], {}, {"axes": sorted(axes)}


def _concat(node: torch.fx.Node) -> Reading:
    return "concat", list(node.args[0]), {}, {"axis": _axis(node, _argument(node, 1, "dim", 0))}  # type: ignore[arg-type]


def _softmax(node: torch.fx.Node) -> Reading:
    return "softmax", [_first(node)], {}, {"axis": _axis(node, node.args[1])}


def _clip(node: torch.fx.Node) -> Reading:
    relu6 = "relu6" in str(node.target)
    low, high = (0, 6) if relu6 else (_argument(node, 1, "min_val", -1), _argument(node, 2, "max_val", 1))
    return "clip", [_first(node)], {}, {"low": float(low), "high": float(high)}


def _expand(node: torch.fx.Node) -> Reading:
    """A parameter that is repeated for every example; its node repeats it anyway."""
    if _first(node).op != "placeholder" or _first(node).meta["val"].shape[1:] != node.meta["val"].shape[1:]:
        raise ValueError("supported for parameters that are repeated along the batch only")
    return "identity", [_first(node)], {}, {}


def _pad(node: torch.fx.Node) -> Reading:
    mode = _argument(node, 2, "mode", "constant")
    if mode == "constant" and (_argument(node, 3, "value") or 0) != 0:
        raise ValueError("padding with a constant other than 0 is not supported")
    return "pad", [node.args[0]], {}, {"sizes": list(node.args[1]), "mode": mode}  # type: ignore[list-item, arg-type]


READERS: dict[str, Callable[[torch.fx.Node], Reading]] = {
    "linear": _linear,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "relu": _elementwise("relu"),
    "tanh": _elementwise("tanh"),
    "sigmoid": _elementwise("sigmoid"),
    "silu": _elementwise("silu"),
    "hardswish": _elementwise("hardswish"),
    "hardsigmoid": _elementwise("hardsigmoid"),
    "gelu": _gelu,
    "dropout": _elementwise("identity"),
    "alias": _elementwise("identity"),
    "contiguous": _elementwise("identity"),
    "flatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "unflatten": _reshape,
    "unsqueeze": _reshape,
    "squeeze": _reshape,
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "max_pool3d": _max_pool,
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "avg_pool3d": _avg_pool,
    "adaptive_avg_pool1d": _adaptive_avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "add": _two("add"),
    "mul": _mul,
    "div": _div,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "softmax": _softmax,
    "hardtanh": _clip,
    "relu6": _clip,
    "pad": _pad,
    "mean": _mean,
    "permute": _permute,
    "transpose": _transpose,
    "select": _select,
    "slice": _slice,
    "cat": _concat,
    "expand": _expand,
}
