"""Layers with weights."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pyro_compress.graph.operations.fits import expect, image, lengths, of_rank, per_channel, places
from pyro_compress.graph.operations.row import (
    BORDERS,
    COUNT,
    PADDING,
    SIZES,
    Attributes,
    Channels,
    Made,
    Operation,
    Parameters,
    Roles,
    Rule,
    Shape,
)


def _linear(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    y = x @ p["weight"].T
    return y + p["bias"] if "bias" in p else y


def _linear_transpose(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    y = x @ p["weight"]
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


def _linear_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """`(..., in)` -> `(..., out)`."""
    weight = of_rank(p, "weight", 2)
    expect(bool(x[0]) and x[0][-1] == weight[1], f"a weight of shape {weight} on values of shape {x[0]}")
    per_channel(p, ("bias",), weight[0])
    shape = (*x[0][:-1], weight[0])
    return Made(shape, math.prod(x[0]) * weight[0])


def _linear_transpose_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """`(..., in)` -> `(..., out)`; the weight is `(in, out)`."""
    weight = of_rank(p, "weight", 2)
    expect(bool(x[0]) and x[0][-1] == weight[0], f"a weight of shape {weight} on values of shape {x[0]}")
    per_channel(p, ("bias",), weight[1])
    return Made((*x[0][:-1], weight[1]), math.prod(x[0]) * weight[1])


def _conv_shape(rank: int) -> Rule:
    """`(channels, *positions)` -> `(filters, *positions)`."""

    def rule(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
        weight, groups = of_rank(p, "weight", rank + 2), a.get("groups", 1)
        channels, *sizes = image(x[0], rank)
        fits = weight[1] * groups == channels and weight[0] % groups == 0
        expect(fits, f"a weight of shape {weight} in {groups} groups on {channels} channels")
        per_channel(p, ("bias",), weight[0])
        before, after = a["padding"]
        lengths(rank, a["stride"], a["dilation"], before, after)
        reach = [d * (k - 1) + 1 for d, k in zip(a["dilation"], weight[2:], strict=True)]
        padded = [size + b + e for size, b, e in zip(sizes, before, after, strict=True)]
        positions = places(padded, reach, a["stride"])
        taps = math.prod(weight[1:])
        windows = math.prod(positions) * taps
        return Made((weight[0], *positions), windows * weight[0], 2 * windows + channels * math.prod(padded))

    return rule


def _layer(rule: Rule, convolves: bool) -> Operation:
    window = {"stride": SIZES, "padding": PADDING, "dilation": SIZES} if convolves else {}
    return Operation(
        _conv if convolves else _linear, rule, roles=("weight",), may=("bias",), attributes=window,
        options={"groups": COUNT} if convolves else {}, channels=Channels.MADE, by_channel=True,
        last=not convolves,
    )  # fmt: skip


def _conv_transpose(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    weight, groups = p["weight"], a.get("groups", 1)
    kernel, rank = weight.shape[2:], weight.ndim - 2
    sizes = _sizes_upward(x.shape[2:], kernel, a)
    filters = weight.shape[1] * groups
    whole = [size + 2 * border for size, border in zip(sizes, a["padding"], strict=True)]
    y = np.zeros((len(x), filters, *whole), x.dtype)
    for taps in np.ndindex(*kernel):
        starts = [tap * d for tap, d in zip(taps, a["dilation"], strict=True)]
        ends = [start + s * (n - 1) + 1 for start, s, n in zip(starts, a["stride"], x.shape[2:], strict=True)]
        at = tuple(slice(*one) for one in zip(starts, ends, a["stride"], strict=True))
        parts = zip(np.split(x, groups, 1), np.split(weight[(..., *taps)], groups, 0), strict=True)
        made = [np.moveaxis(np.tensordot(part, one, (1, 0)), -1, 1) for part, one in parts]
        y[(slice(None), slice(None), *at)] += np.concatenate(made, 1)
    inside = tuple(slice(border, border + size) for border, size in zip(a["padding"], sizes, strict=True))
    y = y[(slice(None), slice(None), *inside)]
    return y + p["bias"].reshape(-1, *[1] * rank) if "bias" in p else y


def _sizes_upward(sizes: Sequence[int], kernel: Sequence[int], a: Attributes) -> list[int]:
    axes = zip(sizes, kernel, a["stride"], a["padding"], a["dilation"], a["extra"], strict=True)
    return [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, d, e in axes]


def _conv_transpose_shape(rank: int) -> Rule:
    """`(channels, *positions)` -> `(filters, *positions)`; the weight is `(channels, filters / groups, *kernel)`."""

    def rule(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
        weight, groups = of_rank(p, "weight", rank + 2), a.get("groups", 1)
        channels, *sizes = image(x[0], rank)
        expect(
            weight[0] == channels and channels % groups == 0,
            f"a weight of shape {weight} in {groups} groups on {channels} channels",
        )
        filters = weight[1] * groups
        per_channel(p, ("bias",), filters)
        lengths(rank, a["stride"], a["padding"], a["dilation"], a["extra"])
        wide = zip(a["extra"], a["stride"], a["dilation"], strict=True)
        expect(all(e < max(s, d) for e, s, d in wide), f"{a['extra']} further places")
        made = _sizes_upward(sizes, weight[2:], a)
        expect(min(made) > 0, f"a weight of shape {weight} on values of shape {x[0]}")
        whole = filters * math.prod(n + 2 * b for n, b in zip(made, a["padding"], strict=True))
        places = math.prod(sizes) * math.prod(weight[2:])
        return Made((filters, *made), places * channels * weight[1], whole + math.prod(sizes) * filters)

    return rule


def _upward(rank: int) -> Operation:
    window = {"stride": SIZES, "padding": BORDERS, "dilation": SIZES, "extra": BORDERS}
    return Operation(
        _conv_transpose, _conv_transpose_shape(rank), roles=("weight",), may=("bias",), attributes=window,
        options={"groups": COUNT}, channels=Channels.MADE_ACROSS, multiplies=True, since=5,
    )  # fmt: skip


LAYERS = {
    "linear": _layer(_linear_shape, convolves=False),
    "linear_transpose": Operation(
        _linear_transpose, _linear_transpose_shape, roles=("weight",), may=("bias",), channels=Channels.MADE_ACROSS,
        last=True, multiplies=True, since=7,
    ),
    "conv1d": _layer(_conv_shape(1), convolves=True),
    "conv2d": _layer(_conv_shape(2), convolves=True),
    "conv3d": _layer(_conv_shape(3), convolves=True),
    "conv_transpose1d": _upward(1),
    "conv_transpose2d": _upward(2),
    "conv_transpose3d": _upward(3),
}  # fmt: skip
