"""The operations of a network in numpy: `RUN` has one function per operation of `pyro_compress.networks.graph`.

Each is `(inputs..., parameters, attributes) -> value`, where the first dimension of every value is the batch. This file
imports numpy and nothing else, because the folder export ships it as it stands.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Parameters = dict[str, np.ndarray]
Attributes = dict[str, Any]


def _linear(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    y = x @ p["weight"].T
    return y + p["bias"] if "bias" in p else y


def _conv(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    weight = p["weight"]
    rank, groups = weight.ndim - 2, a.get("groups", 1)
    before, after = a["padding"]
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    reach = [d * (k - 1) + 1 for d, k in zip(a["dilation"], weight.shape[2:], strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows = sliding_window_view(x, reach, axes)  # (batch, channels, *positions, *reach)
    strides = [slice(None, None, s) for s in a["stride"]]
    dilations = [slice(None, None, d) for d in a["dilation"]]
    windows = windows[(slice(None), slice(None), *strides, *dilations)]
    outputs = []
    for part, kernel in zip(np.split(windows, groups, 1), np.split(weight, groups, 0), strict=True):
        kernel_axes = tuple(range(2 + rank, 2 + 2 * rank))
        outputs.append(np.tensordot(part, kernel, ((1, *kernel_axes), (1, *range(2, 2 + rank)))))
    y = np.moveaxis(np.concatenate(outputs, -1), -1, 1)
    return y + p["bias"].reshape(-1, *[1] * rank) if "bias" in p else y


def _pool(reduce: Callable[..., np.ndarray], fill: float) -> Callable[..., np.ndarray]:
    def pool(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
        rank = len(a["kernel"])
        before = a.get("padding", [0] * rank)
        after = a["after"] if "after" in a else before
        x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)], constant_values=fill)
        windows = sliding_window_view(x, a["kernel"], tuple(range(2, 2 + rank)))
        windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in a["stride"]))]
        return reduce(windows, axis=tuple(range(-rank, 0)))

    return pool


def _batch_norm(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    shape = (-1, *[1] * (x.ndim - 2))
    y = (x - p["running_mean"].reshape(shape)) / np.sqrt(p["running_var"].reshape(shape) + a["eps"])
    y = y * p["weight"].reshape(shape) if "weight" in p else y
    return y + p["bias"].reshape(shape) if "bias" in p else y


def _gelu(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    if a["tanh"]:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float32])(x / math.sqrt(2)))


def _prelu(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    return np.where(x > 0, x, x * p["weight"].reshape(-1, *[1] * (x.ndim - 2)))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _pad(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    sizes = a["sizes"]
    pairs = [(sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)][::-1]
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return np.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs, modes[a["mode"]])  # type: ignore[call-overload]


def _layer_norm(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    y = (x - mean) / np.sqrt(np.square(x - mean).mean(-1, keepdims=True) + np.float32(a["eps"]))
    y = y * p["weight"] if "weight" in p else y
    return y + p["bias"] if "bias" in p else y


def _scale(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    scaled = x * np.float32(a["factor"])
    return scaled + np.float32(a["offset"]) if "offset" in a else scaled


def _group_norm(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    groups = x.reshape(len(x), a["groups"], -1)
    mean = groups.mean(-1, keepdims=True)
    y = (groups - mean) / np.sqrt(np.square(groups - mean).mean(-1, keepdims=True) + np.float32(a["eps"]))
    y, shape = y.reshape(x.shape), (-1, *[1] * (x.ndim - 2))
    y = y * p["weight"].reshape(shape) if "weight" in p else y
    return y + p["bias"].reshape(shape) if "bias" in p else y


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    raised = np.exp(x - x.max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    factor = 1 / math.sqrt(q.shape[-1]) if a["scale"] is None else a["scale"]
    scores = (q @ np.swapaxes(k, -1, -2)) * np.float32(factor)
    if a["causal"]:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, np.float32(-np.inf))
    return _softmax(scores, -1) @ v


def _reduced(reduce: Callable[..., Any]) -> Callable[..., np.ndarray]:
    return lambda x, p, a: reduce(x, axis=tuple(a["axes"]), keepdims=a.get("keepdim", False))


def _slice(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    return x[(slice(None),) * a["axis"] + (slice(a["start"], a["stop"], a.get("step", 1)),)]


def _concat(*arguments: Any) -> np.ndarray:
    *inputs, _, attributes = arguments
    return np.concatenate(inputs, attributes["axis"])


def _constant(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    return np.broadcast_to(p["value"].reshape(1, *a["shape"]), (len(x), *a["shape"]))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))


def _mixture(logits: tuple[np.ndarray, ...]) -> np.ndarray:
    log_probs = np.stack([one - _log_sum_exp(one, 1) for one in logits])
    return _log_sum_exp(log_probs, 0)[0] - np.float32(math.log(len(logits)))


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    most = x.max(axis, keepdims=True)
    return np.asarray(most + np.log(np.exp(x - most).sum(axis, keepdims=True)))


def _hardsigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + np.float32(3), 0, 6) / np.float32(6)


RUN: dict[str, Callable[..., np.ndarray]] = {
    "linear": _linear,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "relu": lambda x, p, a: np.maximum(x, 0),
    "tanh": lambda x, p, a: np.tanh(x),
    "sigmoid": lambda x, p, a: _sigmoid(x),
    "silu": lambda x, p, a: x * _sigmoid(x),
    "hardswish": lambda x, p, a: x * _hardsigmoid(x),
    "hardsigmoid": lambda x, p, a: _hardsigmoid(x),
    "gelu": _gelu,
    "leaky_relu": lambda x, p, a: np.where(x > 0, x, x * np.float32(a["slope"])),
    "elu": lambda x, p, a: (
        np.where(x > 0, x, np.float32(a["alpha"]) * np.expm1(np.minimum(x, 0))) * np.float32(a["scale"])
    ),
    "softplus": lambda x, p, a: _softplus(x),
    "mish": lambda x, p, a: x * np.tanh(_softplus(x)),
    "sin": lambda x, p, a: np.sin(x),
    "prelu": _prelu,
    "reshape": lambda x, p, a: x.reshape(len(x), *a["shape"]),
    "max_pool": _pool(np.max, -np.inf),
    "avg_pool": _pool(np.mean, 0),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "add": lambda x, y, p, a: x + y,
    "subtract": lambda x, y, p, a: x - y,
    "divide": lambda x, y, p, a: x / y,
    "mixture": lambda *given: _mixture(given[:-2]),
    "multiply": lambda x, y, p, a: x * y,
    "scale": _scale,
    "clip": lambda x, p, a: np.clip(x, np.float32(a["low"]), np.float32(a["high"])),
    "pad": _pad,
    "mean": _reduced(np.mean),
    "sum": _reduced(np.sum),
    "amax": _reduced(np.max),
    "permute": lambda x, p, a: x.transpose(0, *a["axes"]),
    "select": lambda x, p, a: x.take(a["index"], a["axis"]),
    "slice": _slice,
    "concat": _concat,
    "constant": _constant,
    "softmax": lambda x, p, a: _softmax(x, a["axis"]),
    "log_softmax": lambda x, p, a: x - _log_sum_exp(x, a["axis"]),
    "matmul": lambda x, y, p, a: x @ y,
    "attention": _attention,
}
