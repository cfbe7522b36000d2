"""An integer program in numpy and torch's double precision, which is exact there: what its C is held against."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from pyro_compress.deploy.integer.steps import Step
from pyro_compress.graph.operations.resizing import resampling


def run(steps: list[Step], codes: np.ndarray) -> np.ndarray:
    """Integers `(n, inputs)` to integers `(n, outputs)`."""
    values: list[np.ndarray] = []
    for step in steps:
        given = [
            (codes if i < 0 else values[i])
            .reshape(len(codes), *(shape if step.op != "constant" else (-1,)))
            .astype(int)
            for i, shape in zip(step.inputs, step.shapes, strict=True)
        ]
        found = np.clip(result(step, given), step.low, step.high)
        assert found.shape[1:] == step.shape
        values.append(found if step.table is None else step.table[found + 128].astype(np.int64))
    return values[-1].reshape(len(codes), -1).astype(np.int8)


def divided(product: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """By a power of two, halves up."""
    return np.floor_divide(product + 2 ** (np.asarray(shift, np.int64) - 1), 2 ** np.asarray(shift, np.int64))


def scaled(step: Step, sums: np.ndarray, factor: float) -> np.ndarray:
    """A sum in units of `factor` of the grid; the multiplier has 31 bits."""
    exponent = int(np.frexp(factor)[1])
    return divided(sums * round(factor * 2.0 ** (31 - exponent)), 31 - exponent) + step.grid.zero


def result(step: Step, given: list[np.ndarray]) -> np.ndarray:
    x, zeros = given[0], [grid.zero for grid in step.grids]
    factors = [grid.scale / step.grid.scale for grid in step.grids]
    if step.op in SEQUENCES:
        return SEQUENCES[step.op](step, given)
    if step.layer:
        return layer(step, x)
    if step.op == "multiply":
        return scaled(step, (x - zeros[0]) * (given[1] - zeros[1]), factors[0] * step.grids[1].scale)
    if step.op in ("add", "subtract"):
        sign = 1 if step.op == "add" else -1
        shift = min(21 - int(np.frexp(max(factors))[1]), 30)
        one, two = (round(factor * 2.0**shift) for factor in factors)
        return divided((x - zeros[0]) * one + sign * (given[1] - zeros[1]) * two, shift) + step.grid.zero
    if step.op in ("maximum", "minimum"):
        one, two = (scaled(step, v - z, f) for v, z, f in zip(given, zeros, factors, strict=True))
        return np.maximum(*np.broadcast_arrays(one, two)) if step.op == "maximum" else np.minimum(one, two)
    if step.op == "constant":
        return np.broadcast_to(
            step.grid.codes(step.numbers).astype(np.int64).reshape(step.shape), (len(x), *step.shape)
        )
    if step.op == "prelu":
        slopes = np.concatenate([step.numbers, [1]]) * factors[0]
        shift = min(21 - int(np.frexp(np.abs(slopes).max())[1]), 30)
        whole = np.rint(slopes * 2.0**shift).astype(np.int64)
        v = x - zeros[0]
        return divided(v * np.where(v < 0, whole[:-1].reshape(-1, 1, 1), whole[-1]), shift) + step.grid.zero
    if step.op == "concat":
        parts = zip(given, step.grids, factors, zeros, strict=True)
        rows = (len(x), step.attributes["rows"], -1)
        made = [(v if g == step.grid else scaled(step, v - z, f)).reshape(rows) for v, g, f, z in parts]
        return np.concatenate(made, 2).reshape(len(x), *step.shape)
    if step.op == "moved":
        places = step.attributes["base"] + sum(np.ix_(*map(np.array, step.attributes["axes"])))
        return x.reshape(len(x), -1)[:, places.ravel()].reshape(len(x), *step.shape)
    if step.op == "resize":
        return resized(step, x)
    if step.op == "pad":
        rows, columns = (np.array(side) for side in step.attributes["sources"])
        found = x[:, :, rows][:, :, :, columns]
        found[:, :, rows < 0] = zeros[0]
        found[:, :, :, columns < 0] = zeros[0]
        return found
    return x if step.op == "copy" else pooled(step, x)


def layer(step: Step, x: np.ndarray) -> np.ndarray:
    """The exact sums of `codes * (x - zero)` and the bias, pooled, and what becomes of them."""
    if step.positions > 1:
        one = replace(step, shapes=[(x.shape[3], 1, 1)], positions=1, map=(step.shape[2], 1, 1))
        return layer(one, x.reshape(-1, x.shape[3], 1, 1)).reshape(len(x), *step.shape)
    weights, zero = step.layer, step.grids[0].zero
    codes, (top, left), (_, height, width) = weights.codes, step.border, step.map
    around = [
        (size - 1) * stride + (kernel - 1) * dilation + 1 - before - given
        for size, stride, kernel, dilation, before, given in zip(
            (height, width), step.strides, codes.shape[2:], step.dilation, step.border, x.shape[2:], strict=True
        )
    ]
    padded = F.pad(torch.from_numpy(x - zero).double(), (left, around[1], top, around[0]))
    sums = F.conv2d(padded, torch.from_numpy(codes).double(), None, step.strides, 0, step.dilation, step.groups)
    bias = (weights.bias + zero * codes.astype(np.int64).reshape(len(codes), -1).sum(1)).reshape(-1, 1, 1)
    sums = sums.numpy().astype(np.int64) + bias
    if step.window:
        sums = F.max_pool2d(torch.from_numpy(sums).double(), step.window.kernel, step.window.stride).numpy()
    multipliers, shifts = (values.reshape(-1, 1, 1) for values in (weights.multipliers, weights.shifts))
    return divided(sums.astype(np.int64) * multipliers, shifts) + step.grid.zero


def resized(step: Step, x: np.ndarray) -> np.ndarray:
    """Of an axis of another size every place, from two neighbours and 256ths."""
    weights = resampling(x.shape[2], step.shape[1], step.attributes["corners"])
    found = np.rint(256 * weights).astype(int)
    for row, exact in zip(found, weights, strict=True):
        (first, *rest) = np.flatnonzero(exact)
        row[first] = 256 - sum(row[rest])
    return divided(np.einsum("bcni,mn->bcmi", x, found), 8)


# --- sequences: whole numbers of Python's, and what the functions of C are, in other words


def table(function: Callable[[float], float], size: int) -> list[int]:
    return [round(function(k)) for k in range(size)]


LOGISTICS = table(lambda k: 32768 / (1 + math.exp(-k / 16)), 129)
POWERS = table(lambda k: 65535 * 2 ** (-k / 64), 65)
LOGARITHMS = table(lambda k: 65536 * math.log(1 + k / 64), 65)


def between(values: list[int], place: int, rest: int, bits: int, half: int = 0) -> int:
    return values[place] + ((values[min(place + 1, len(values) - 1)] - values[place]) * rest + half >> bits)


def logistic(x: int) -> int:
    v = min(abs(x), 32768)
    found = between(LOGISTICS, v // 256, v % 256, 8, 128)
    return found if x >= 0 else 32768 - found


def tangent(x: int) -> int:
    return 2 * logistic(max(-131072, min(131072, 2 * x))) - 32768


def power(x: int) -> int:
    """2^-x, and less than 1 in 65536 for more than 16."""
    place, rest = x // 1024 % 64, x % 1024
    return (POWERS[place] - ((POWERS[place] - POWERS[place + 1]) * rest >> 10)) >> x // 65536 if x < 1 << 20 else 0


def logarithm(x: int) -> int:
    bits = x.bit_length() - 1
    fraction = (x << 31 - bits) - (1 << 31)
    return bits * 45426 + between(LOGARITHMS, fraction >> 25, fraction >> 9 & 65535, 16)


def whole(function: Callable[[int], int], values: np.ndarray) -> np.ndarray:
    return np.vectorize(function, otypes=[np.int64])(values)


def requantized(step: Step, sums: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(scaled(step, sums, factor), step.low, step.high)


def embedding(step: Step, given: list[np.ndarray]) -> np.ndarray:
    rows = np.clip(np.rint(step.numbers / step.grid.scale) + step.grid.zero, -128, 127).astype(int)
    return rows[given[0][:, :, 0, 0]][:, :, None]


def norm(step: Step, given: list[np.ndarray]) -> np.ndarray:
    x, before = given[0], step.grids[0]
    last = step.op == "layer_norm"
    rows = (x - before.zero).reshape(
        len(x), -1 if last else step.attributes["groups"], *((step.shape[2],) if last else (-1,))
    )
    size = rows.shape[2]
    sums, squares = rows.sum(2, keepdims=True), np.square(rows).sum(2, keepdims=True)
    spread = size * squares - sums**2 + round(size**2 * step.attributes["eps"] / before.scale**2)

    def normal(value: int, spread: int) -> int:
        """4096 value / sqrt(spread), by the root of 31 bits that C has."""
        spread = max(spread, 1)
        up = next(up for up in range(31) if spread << 2 * up >= 1 << 60)
        root = ((1 << 61) - 1) // math.isqrt(spread << 2 * up)
        return value * root + (1 << 48 - up) >> 49 - up

    made = np.vectorize(normal, otypes=[np.int64])(size * rows - sums, spread).reshape(x.shape)
    scale, shift = (
        np.rint(one / step.grid.scale * 2.0**22 / k).astype(int) for one, k in zip(step.numbers, (4096, 1), strict=True)
    )
    scale, shift = (one.reshape((1, 1, -1) if last else (-1, 1, 1)) for one in (scale, shift))
    return divided(scale * made + shift, 22) + step.grid.zero


def softmax(step: Step, given: list[np.ndarray]) -> np.ndarray:
    x, scale = given[0], step.grids[0].scale
    below = x.max(2, keepdims=True) - x
    counts = np.rint(65535 * np.exp(-scale * below)).astype(int)
    total = counts.sum(2, keepdims=True)
    if step.op == "softmax":
        return scaled(step, counts * (2**46 // total) >> 16, 2.0**-30 / step.grid.scale)
    logs = whole(logarithm, total) - round(65536 * math.log(65535))
    exponent = int(np.frexp(65536 * scale)[1])
    below = divided(-below * round(65536 * scale * 2.0 ** (31 - exponent)), 31 - exponent)
    return scaled(step, below - logs, 2.0**-16 / step.grid.scale)


def matmul(step: Step, given: list[np.ndarray]) -> np.ndarray:
    (x, y), (one, two) = given, step.grids
    return scaled(step, (x - one.zero) @ (y - two.zero), one.scale * two.scale / step.grid.scale)


def attention(step: Step, given: list[np.ndarray]) -> np.ndarray:
    query, key, value = (x - grid.zero for x, grid in zip(given, step.grids, strict=True))
    scores = query @ key.swapaxes(2, 3) * (1 if step.attributes["scale"] >= 0 else -1)
    seen = np.tri(*scores.shape[2:], dtype=bool) if step.attributes["causal"] else np.ones(scores.shape[2:], bool)
    most = np.where(seen, scores, scores.min() - 1).max(3, keepdims=True)
    factor = step.grids[0].scale * step.grids[1].scale * abs(step.attributes["scale"]) * math.log2(math.e) * 65536
    exponent = int(np.frexp(factor)[1])
    below = divided((most - scores) * round(factor * 2.0 ** (31 - exponent)), 31 - exponent)
    counts = np.where(seen, whole(power, np.where(seen, below, 0)), 0)
    shares = counts * (2**46 // counts.sum(3, keepdims=True)) >> 26
    return scaled(step, shares @ value, step.grids[2].scale / step.grid.scale / 2**20)


def recurrent(step: Step, given: list[np.ndarray]) -> np.ndarray:
    x, (steps, _, units) = given[0][:, :, 0], step.shape
    order = range(steps - 1, -1, -1) if step.attributes["reverse"] else range(steps)
    h, state = np.full((len(x), units), step.grid.zero), np.zeros((len(x), units), int)
    found = np.zeros((len(x), steps, 1, units), int)
    for t in order:
        sums = [layer(one, v[:, :, None, None])[:, :, 0, 0] for one, v in ((step.given, x[:, t]), (step.inner, h))]
        one, two = (np.split(v, 4 if step.op == "lstm" else 3, 1) for v in sums)
        r, z = (whole(logistic, one[k] + two[k]) for k in (0, 1))
        if step.op == "lstm":
            new, give = whole(tangent, one[2] + two[2]), whole(logistic, one[3] + two[3])
            state = np.clip(divided(state * z + 2 * r * new, 15), -(2**30), 2**30)
            unit = divided(give * whole(tangent, divided(state, 4)), 15)
        else:
            new = whole(tangent, one[2] + divided(r * two[2], 15))
            unit = state = divided((32768 - z) * new + z * state, 15)
        h = requantized(step, unit, 2.0**-15 / step.grid.scale)
        found[:, t, 0] = h
    return found


SEQUENCES = {
    "embedding": embedding, "layer_norm": norm, "group_norm": norm, "softmax": softmax, "log_softmax": softmax,
    "matmul": matmul, "attention": attention, "lstm": recurrent, "gru": recurrent,
}  # fmt: skip


def pooled(step: Step, x: np.ndarray) -> np.ndarray:
    kernel, stride = (step.window.kernel, step.window.stride) if step.window else (x.shape[2:], x.shape[2:])
    zero = step.grids[0].zero
    outside = {"max_pool": -128, "amax": -128, "amin": 127}.get(step.op, zero)
    after = [
        max((size - 1) * s + k - before - given, 0)
        for size, s, k, before, given in zip(step.shape[1:], stride, kernel, step.border, x.shape[2:], strict=True)
    ]
    padded = np.pad(
        x, ((0, 0), (0, 0), (step.border[0], after[0]), (step.border[1], after[1])), constant_values=outside
    )
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))[:, :, :: stride[0], :: stride[1]]
    views = views[:, :, : step.shape[1], : step.shape[2]]
    if step.op in ("max_pool", "amax"):
        return views.max((4, 5))
    if step.op == "amin":
        return views.min((4, 5))
    size = 1 if step.op == "sum" else kernel[0] * kernel[1]
    return scaled(step, (views - zero).sum((4, 5)), step.grids[0].scale / (step.grid.scale * size))
