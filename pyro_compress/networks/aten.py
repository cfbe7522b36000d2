"""What torch calls an operation -> what we call it: `READERS` has one function per ATen operation.

A reader takes a node of an exported graph and tells the operation, the nodes it reads, its tensors by role, and its
attributes; the batch dimension is in none of them. `identity` stands for what does nothing in evaluation mode. An
operation in place is read as the one of the same name without an underscore. An operation that gives several values is
read once for each that is used: `PARTS` has those.
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


def _leaky_relu(node: torch.fx.Node) -> Reading:
    return "leaky_relu", [_first(node)], {}, {"slope": float(_argument(node, 1, "negative_slope", 0.01))}


def _elu(node: torch.fx.Node) -> Reading:
    if _argument(node, 3, "input_scale", 1) != 1:
        raise ValueError("supported without input_scale only")
    return _scaled_elu(node, _argument(node, 1, "alpha", 1), _argument(node, 2, "scale", 1))


def _scaled_elu(node: torch.fx.Node, alpha: float, scale: float) -> Reading:
    return "elu", [_first(node)], {}, {"alpha": float(alpha), "scale": float(scale)}


def _softplus(node: torch.fx.Node) -> Reading:
    if _argument(node, 1, "beta", 1) != 1:
        raise ValueError("softplus is supported with beta 1 only")
    return "softplus", [_first(node)], {}, {}


def _prelu(node: torch.fx.Node) -> Reading:
    return "prelu", [_first(node)], {"weight": node.args[1]}, {}  # type: ignore[dict-item]


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
    if any(d != 1 for d in _each(_argument(node, 4, "dilation", 1), rank)):
        raise ValueError("max pooling with dilation is not supported")
    stride = _each(_argument(node, 2, "stride") or kernel, rank)
    padding = _each(_argument(node, 3, "padding", 0), rank)
    attributes = {"kernel": kernel, "stride": stride, "padding": padding}
    if _argument(node, 5, "ceil_mode", False):
        before, after = _first(node).meta["val"].shape[2:], node.meta["val"].shape[2:]
        wanted = [(a - 1) * s + k - b - p for a, s, k, b, p in zip(after, stride, kernel, before, padding, strict=True)]
        if any(w > p for w, p in zip(wanted, padding, strict=True)):  # rounding up takes more
            attributes["after"] = [max(p, w) for p, w in zip(padding, wanted, strict=True)]
    return "max_pool", [_first(node)], {}, attributes


def _avg_pool(node: torch.fx.Node) -> Reading:
    rank = node.meta["val"].dim() - 2
    kernel = _each(node.args[1], rank)  # type: ignore[arg-type]
    padding = _each(_argument(node, 3, "padding", 0), rank)
    if _argument(node, 4, "ceil_mode", False) or _argument(node, 6, "divisor_override") is not None:
        raise ValueError("average pooling with ceil_mode or divisor_override is not supported")
    if any(padding) and not _argument(node, 5, "count_include_pad", True):
        raise ValueError("average pooling with padding is supported where it counts in the mean (count_include_pad)")
    stride = _argument(node, 2, "stride") or kernel
    attributes = {"kernel": kernel, "stride": _each(stride, rank)} | ({"padding": padding} if any(padding) else {})
    return "avg_pool", [_first(node)], {}, attributes


def _adaptive_avg_pool(node: torch.fx.Node) -> Reading:
    return "avg_pool", [_first(node)], {}, _whole_ratio(node, node.meta["val"])


def _adaptive_max_pool(node: torch.fx.Node, part: int) -> Reading:
    if part:
        raise ValueError("the places of the largest values are not supported")
    attributes = _whole_ratio(node, node.meta["val"][0])
    return "max_pool", [_first(node)], {}, attributes | {"padding": [0] * len(attributes["kernel"])}


def _whole_ratio(node: torch.fx.Node, output: torch.Tensor) -> dict[str, list[int]]:
    before, after = list(_first(node).meta["val"].shape[2:]), list(output.shape[2:])
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise ValueError(f"adaptive pooling from {before} to {after}: only whole ratios are supported")
    kernel = [b // a for b, a in zip(before, after, strict=True)]
    return {"kernel": kernel, "stride": kernel}


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


def _scaled(node: torch.fx.Node, factor: float = 1.0, offset: float = 0.0) -> Reading:
    """A value times a number, plus a number."""
    attributes = {"factor": float(factor)} | ({"offset": float(offset)} if offset else {})
    return "scale", [_first(node)], {}, attributes


def _add(node: torch.fx.Node) -> Reading:
    number: Any = node.args[1]
    return _scaled(node, 1, number) if _is_number(node, number) else _two("add")(node)


def _sub(node: torch.fx.Node) -> Reading:
    number: Any = node.args[1]
    return _scaled(node, 1, -number) if _is_number(node, number) else _two("subtract")(node)


def _rsub(node: torch.fx.Node) -> Reading:
    number: Any = node.args[1]
    if not _is_number(node, number):
        raise ValueError("supported for a number minus a value only")
    return _scaled(node, -1, number)


def _mul(node: torch.fx.Node) -> Reading:
    number: Any = node.args[1]
    return _scaled(node, number) if _is_number(node, number) else _two("multiply")(node)


def _div(node: torch.fx.Node) -> Reading:
    number: Any = node.args[1]
    return _scaled(node, 1 / number) if _is_number(node, number) and number else _two("divide")(node)


def _is_number(node: torch.fx.Node, value: Any) -> bool:
    return isinstance(value, int | float) and len(node.args) == 2 and not node.kwargs


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


def _group_norm(node: torch.fx.Node) -> Reading:
    roles = {"weight": _argument(node, 2, "weight"), "bias": _argument(node, 3, "bias")}
    return "group_norm", [_first(node)], roles, {"groups": node.args[1], "eps": _argument(node, 4, "eps", 1e-5)}


def _instance_norm(node: torch.fx.Node) -> Reading:
    """Group norm with a group per channel."""
    if not node.args[5]:
        raise ValueError("instance norm is supported without running statistics only")
    channels = _first(node).meta["val"].shape[1]
    roles = {"weight": node.args[1], "bias": node.args[2]}
    return "group_norm", [_first(node)], roles, {"groups": channels, "eps": node.args[7]}  # type: ignore[return-value]


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
    if _first(node).meta["val"].shape == node.meta["val"].shape:
        return "identity", [_first(node)], {}, {}
    axis = _axis(node, _argument(node, 1, "dim", 0))
    ends = [_argument(node, place, name) for place, name in ((2, "start"), (3, "end"), (4, "step"))]
    start, stop, step = slice(*ends).indices(_first(node).meta["val"].shape[axis])
    return _sliced(node, axis, start, stop, step)


def _sliced(node: torch.fx.Node, axis: int, start: int, stop: int, step: int = 1) -> Reading:
    attributes = {"axis": axis, "start": start, "stop": stop} | ({"step": step} if step != 1 else {})
    return "slice", [_first(node)], {}, attributes


def _split(node: torch.fx.Node, part: int) -> Reading:
    axis = _axis(node, _argument(node, 2, "dim", 0))
    sizes = [value.shape[axis] for value in node.meta["val"]]
    return _sliced(node, axis, sum(sizes[:part]), sum(sizes[: part + 1]))


def _unbind(node: torch.fx.Node, part: int) -> Reading:
    return "select", [_first(node)], {}, {"axis": _axis(node, _argument(node, 1, "dim", 0)), "index": part}


def _reduced(op: str) -> Callable[[torch.fx.Node], Reading]:
    """An operation that takes several axes to one value each."""

    def read(node: torch.fx.Node) -> Reading:
        wanted = node.args[1]
        axes = [_axis(node, axis) for axis in (wanted if isinstance(wanted, list | tuple) else [wanted])]
        keepdim = {"keepdim": True} if _argument(node, 2, "keepdim", False) else {}
        return op, [_first(node)], {}, {"axes": sorted(axes)} | keepdim

    return read


def _largest(node: torch.fx.Node, part: int) -> Reading:
    if part:
        raise ValueError("the places of the largest values are not supported")
    return _reduced("amax")(node)


def _concat(node: torch.fx.Node) -> Reading:
    return "concat", list(node.args[0]), {}, {"axis": _axis(node, _argument(node, 1, "dim", 0))}  # type: ignore[arg-type]


def _over_axis(op: str) -> Callable[[torch.fx.Node], Reading]:
    return lambda node: (op, [_first(node)], {}, {"axis": _axis(node, node.args[1])})


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
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": lambda node: _scaled_elu(node, 1.6732632423543772, 1.0507009873554805),
    "softplus": _softplus,
    "mish": _elementwise("mish"),
    "prelu": _prelu,
    "sin": _elementwise("sin"),
    "dropout": _elementwise("identity"),
    "feature_dropout": _elementwise("identity"),
    "alpha_dropout": _elementwise("identity"),
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
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "neg": lambda node: _scaled(node, -1),
    "mul": _mul,
    "div": _div,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "softmax": _over_axis("softmax"),
    "log_softmax": _over_axis("log_softmax"),
    "hardtanh": _clip,
    "relu6": _clip,
    "pad": _pad,
    "mean": _reduced("mean"),
    "sum": _reduced("sum"),
    "amax": _reduced("amax"),
    "permute": _permute,
    "transpose": _transpose,
    "select": _select,
    "slice": _slice,
    "cat": _concat,
    "expand": _expand,
}

PARTS: dict[str, Callable[[torch.fx.Node, int], Reading]] = {
    "chunk": _split,
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _unbind,
    "max": _largest,
    "adaptive_max_pool1d": _adaptive_max_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
}
