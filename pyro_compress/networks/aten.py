"""What torch calls an operation -> what we call it: `READERS` has one function per ATen operation.

A reader takes a call of an exported graph and tells the operation, the nodes it reads, its tensors by role, and its
attributes; the batch dimension is in none of them. `identity` stands for what does nothing in evaluation mode. An
operation in place is read as the one of the same name without an underscore. An operation that gives several values is
read once for each that is used: `PARTS` has those. Whatever argument a reader does not look at must be its default
(`calls.Call`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_compress.networks.aten_shapes import (
    expanded,
    joined,
    padded,
    part_of_split,
    part_of_unbound,
    permuted,
    reshaped,
    selected,
    sliced,
    transposed,
)
from pyro_compress.networks.calls import Call, Reading

Reader = Callable[[Call], Reading]


def _linear(call: Call) -> Reading:
    return "linear", [call["input"]], {"weight": call["weight"], "bias": call["bias"]}, {}


def _conv(call: Call) -> Reading:
    kernel = call["weight"].meta["val"].shape[2:]
    rank = len(kernel)
    _check_rank(call, rank)
    stride, dilation, padding = _each(call["stride"], rank), _each(call["dilation"], rank), call["padding"]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = _each(0 if padding == "valid" else padding, rank)
    attributes = {"stride": stride, "padding": [before, after], "dilation": dilation}
    if (groups := call["groups"]) != 1:
        attributes["groups"] = groups
    return f"conv{rank}d", [call["input"]], {"weight": call["weight"], "bias": call["bias"]}, attributes


def _each(value: int | list[int], rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _check_rank(call: Call, rank: int) -> None:
    if len(call.before) != rank + 2:
        raise ValueError(
            f"supported for values (batch, channels, ...) of {rank + 2} dimensions, got {len(call.before)}"
        )


def _elementwise(op: str) -> Reader:
    return lambda call: (op, [call["self"]], {}, {})


def _same(*without_effect: str) -> Reader:
    """What changes no value; a change of type shows in the type of its output."""

    def read(call: Call) -> Reading:
        call.without_effect(*without_effect)
        return "identity", [call.first], {}, {}

    return read


def _dropout(call: Call) -> Reading:
    rate, train = call["p"], call["train"]
    if rate and train:
        raise ValueError("it drops values in evaluation mode too; give it training=self.training")
    return "identity", [call.first], {}, {}


def _leaky_relu(call: Call) -> Reading:
    return "leaky_relu", [call["self"]], {}, {"slope": float(call["negative_slope"])}


def _elu(call: Call) -> Reading:
    return _scaled_elu(call, call["alpha"], call["scale"])


def _scaled_elu(call: Call, alpha: float, scale: float) -> Reading:
    return "elu", [call["self"]], {}, {"alpha": float(alpha), "scale": float(scale)}


FLAT_SOFTPLUS = 15
"""From here on softplus is its argument, to float32's rounding."""


def _softplus(call: Call) -> Reading:
    if call["beta"] != 1:
        raise ValueError("softplus is supported with beta 1 only")
    if call["threshold"] < FLAT_SOFTPLUS:
        raise ValueError(f"softplus is supported with a threshold of {FLAT_SOFTPLUS} or more, got {call['threshold']}")
    return "softplus", [call["self"]], {}, {}


def _prelu(call: Call) -> Reading:
    return "prelu", [call["self"]], {"weight": call["weight"]}, {}


def _gelu(call: Call) -> Reading:
    return "gelu", [call["self"]], {}, {"tanh": call["approximate"] == "tanh"}


def _max_pool(rank: int) -> Reader:
    def read(call: Call) -> Reading:
        _check_rank(call, rank)
        kernel = _each(call["kernel_size"], rank)
        if any(d != 1 for d in _each(call["dilation"], rank)):
            raise ValueError("max pooling with dilation is not supported")
        stride, padding = _each(call["stride"] or kernel, rank), _each(call["padding"], rank)
        attributes = {"kernel": kernel, "stride": stride, "padding": padding}
        if call["ceil_mode"]:
            sizes = zip(call.shape[2:], stride, kernel, call.before[2:], padding, strict=True)
            wanted = [(a - 1) * s + k - b - p for a, s, k, b, p in sizes]
            if any(w > p for w, p in zip(wanted, padding, strict=True)):  # rounding up takes more
                attributes["after"] = [max(p, w) for p, w in zip(padding, wanted, strict=True)]
        return "max_pool", [call.first], {}, attributes

    return read


def _avg_pool(rank: int) -> Reader:
    def read(call: Call) -> Reading:
        _check_rank(call, rank)
        kernel, padding = _each(call["kernel_size"], rank), _each(call["padding"], rank)
        if call["ceil_mode"] or (rank > 1 and call["divisor_override"] is not None):
            raise ValueError("average pooling with ceil_mode or divisor_override is not supported")
        if not call["count_include_pad"] and any(padding):
            raise ValueError(
                "average pooling with padding is supported where it counts in the mean (count_include_pad)"
            )
        attributes = {"kernel": kernel, "stride": _each(call["stride"] or kernel, rank)}
        return "avg_pool", [call.first], {}, attributes | ({"padding": padding} if any(padding) else {})

    return read


def _adaptive_avg_pool(call: Call) -> Reading:
    return "avg_pool", [call.first], {}, _whole_ratio(call)


def _adaptive_max_pool(call: Call, part: int) -> Reading:
    attributes = _whole_ratio(call)
    _refuse_places(part)
    return "max_pool", [call.first], {}, attributes | {"padding": [0] * len(attributes["kernel"])}


def _whole_ratio(call: Call) -> dict[str, list[int]]:
    _check_rank(call, len(call["output_size"]))
    before, after = list(call.before[2:]), list(call.shape[2:])
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise ValueError(f"adaptive pooling from {before} to {after}: only whole ratios are supported")
    kernel = [b // a for b, a in zip(before, after, strict=True)]
    return {"kernel": kernel, "stride": kernel}


def _batch_norm(call: Call) -> Reading:
    call.without_effect("momentum", "cudnn_enabled")
    if call["training"]:
        raise ValueError(
            "batch norm without running statistics makes of one example something else in every batch; keep them "
            "(track_running_stats=True)"
        )
    return _batch_normed(call)


def _batch_normed(call: Call) -> Reading:
    call.without_effect("momentum")
    roles = {role: call[role] for role in ("weight", "bias", "running_mean", "running_var")}
    if (roles["weight"] is None) != (roles["bias"] is None):
        raise ValueError("batch norm is supported with weight and bias, or with neither")
    return "batch_norm", [call["input"]], roles, {"eps": call["eps"]}


def _batch_norm_part(call: Call, part: int) -> Reading:
    if part:
        raise ValueError("the statistics of batch norm are not supported as values")
    return _batch_normed(call)


def _two(op: str) -> Reader:
    """An operation on two values, of which one may be repeated along dimensions other than the batch."""

    def read(call: Call) -> Reading:
        a, b = call["self"], call["other"]
        if not isinstance(a, torch.fx.Node) or not isinstance(b, torch.fx.Node):
            raise ValueError("supported for two tensors only")
        for value in (a, b):
            if value.name not in call.tensors and value.meta["val"].dim() != len(call.shape):
                raise ValueError("supported for two tensors with as many dimensions only")
        return op, [a, b], {}, {}

    return read


def _scaled(call: Call, factor: float = 1.0, offset: float = 0.0) -> Reading:
    """A value times a number, plus a number."""
    attributes = {"factor": float(factor)} | ({"offset": float(offset)} if offset else {})
    return "scale", [call["self"]], {}, attributes


def _add(call: Call) -> Reading:
    return _scaled(call, 1, call["other"]) if _is_number(call["other"]) else _two("add")(call)


def _sub(call: Call) -> Reading:
    return _scaled(call, 1, -call["other"]) if _is_number(call["other"]) else _two("subtract")(call)


def _rsub(call: Call) -> Reading:
    if not _is_number(call["other"]):
        raise ValueError("supported for a number minus a value only")
    return _scaled(call, -1, call["other"])


def _mul(call: Call) -> Reading:
    return _scaled(call, call["other"]) if _is_number(call["other"]) else _two("multiply")(call)


def _div(call: Call) -> Reading:
    number = call["other"]
    return _scaled(call, 1 / number) if _is_number(number) and number else _two("divide")(call)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _matmul(call: Call) -> Reading:
    one, two = call["self"], call["other"]
    if one.meta["val"].dim() != two.meta["val"].dim() or one.meta["val"].dim() < 3:
        raise ValueError("supported for two values with a batch dimension and as many dimensions only")
    return "matmul", [one, two], {}, {}


def _attention(call: Call) -> Reading:
    if call["attn_mask"] is not None or call["enable_gqa"]:
        raise ValueError("attention is supported without a mask and with as many keys' heads as queries' only")
    values = [call[name] for name in ("query", "key", "value")]
    return "attention", values, {}, {"causal": bool(call["is_causal"]), "scale": call["scale"]}


def _layer_norm(call: Call) -> Reading:
    call.without_effect("cudnn_enable")
    if len(call["normalized_shape"]) != 1:
        raise ValueError("layer norm is supported over the last dimension only")
    return "layer_norm", [call["input"]], {"weight": call["weight"], "bias": call["bias"]}, {"eps": call["eps"]}


def _group_norm(call: Call) -> Reading:
    call.without_effect("cudnn_enabled")
    roles = {"weight": call["weight"], "bias": call["bias"]}
    return "group_norm", [call["input"]], roles, {"groups": call["num_groups"], "eps": call["eps"]}


def _instance_norm(call: Call) -> Reading:
    """Group norm with a group per channel."""
    call.without_effect("running_mean", "running_var", "momentum", "cudnn_enabled")
    if not call["use_input_stats"]:
        raise ValueError("instance norm is supported without running statistics only")
    roles = {"weight": call["weight"], "bias": call["bias"]}
    return "group_norm", [call["input"]], roles, {"groups": call.before[1], "eps": call["eps"]}


def _reduced(op: str) -> Reader:
    """An operation that takes several axes to one value each."""

    def read(call: Call) -> Reading:
        wanted = call["dim"]
        axes = [call.axis(axis) for axis in (wanted if isinstance(wanted, list | tuple) else [wanted])]
        if not axes:
            raise ValueError("it works across the batch dimension, which is not supported")
        keepdim = {"keepdim": True} if call["keepdim"] else {}
        return op, [call["self"]], {}, {"axes": sorted(axes)} | keepdim

    return read


def _largest(call: Call, part: int) -> Reading:
    _refuse_places(part)
    return _reduced("amax")(call)


def _refuse_places(part: int) -> None:
    if part:
        raise ValueError("the places of the largest values are not supported")


def _over_axis(op: str) -> Reader:
    return lambda call: (op, [call["self"]], {}, {"axis": call.axis(call["dim"])})


def _clip(call: Call) -> Reading:
    return "clip", [call["self"]], {}, {"low": float(call["min_val"]), "high": float(call["max_val"])}


def _relu6(call: Call) -> Reading:
    return "clip", [call["self"]], {}, {"low": 0.0, "high": 6.0}


READERS: dict[str, Reader] = {
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
    "selu": lambda call: _scaled_elu(call, 1.6732632423543772, 1.0507009873554805),
    "softplus": _softplus,
    "mish": _elementwise("mish"),
    "prelu": _prelu,
    "sin": _elementwise("sin"),
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "alias": _same(),
    "detach": _same(),
    "contiguous": _same("memory_format"),
    "clone": _same("memory_format"),
    "to": _same("dtype", "layout", "device", "other", "pin_memory", "non_blocking", "copy", "memory_format"),
    "_to_copy": _same("dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format"),
    "type_as": _same("other"),
    "flatten": reshaped,
    "view": reshaped,
    "reshape": reshaped,
    "unflatten": reshaped,
    "unsqueeze": reshaped,
    "squeeze": reshaped,
    "max_pool1d": _max_pool(1),
    "max_pool2d": _max_pool(2),
    "max_pool3d": _max_pool(3),
    "avg_pool1d": _avg_pool(1),
    "avg_pool2d": _avg_pool(2),
    "avg_pool3d": _avg_pool(3),
    "adaptive_avg_pool1d": _adaptive_avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "neg": lambda call: _scaled(call, -1),
    "mul": _mul,
    "div": _div,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "softmax": _over_axis("softmax"),
    "log_softmax": _over_axis("log_softmax"),
    "hardtanh": _clip,
    "relu6": _relu6,
    "pad": padded,
    "mean": _reduced("mean"),
    "sum": _reduced("sum"),
    "amax": _reduced("amax"),
    "permute": permuted,
    "transpose": transposed,
    "select": selected,
    "slice": sliced,
    "cat": joined,
    "expand": expanded,
}

PARTS: dict[str, Callable[[Call, int], Reading]] = {
    "chunk": part_of_split,
    "split": part_of_split,
    "split_with_sizes": part_of_split,
    "unbind": part_of_unbound,
    "max": _largest,
    "adaptive_max_pool1d": _adaptive_max_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
    "_native_batch_norm_legit_no_training": _batch_norm_part,
}
