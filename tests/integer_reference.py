"""An integer program in numpy and torch's double precision, which is exact there: what its C is held against."""

import numpy as np
import torch
import torch.nn.functional as F

from pyro_compress.deploy.integer.steps import Step


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
        return np.broadcast_to(step.grid.codes(step.numbers).astype(np.int64), (len(x), *step.shape))
    if step.op == "prelu":
        slopes = np.concatenate([step.numbers, [1]]) * factors[0]
        shift = min(21 - int(np.frexp(np.abs(slopes).max())[1]), 30)
        whole = np.rint(slopes * 2.0**shift).astype(np.int64)
        v = x - zeros[0]
        return divided(v * np.where(v < 0, whole[:-1].reshape(-1, 1, 1), whole[-1]), shift) + step.grid.zero
    if step.op == "concat":
        parts = zip(given, step.grids, factors, zeros, strict=True)
        return np.concatenate([v if g == step.grid else scaled(step, v - z, f) for v, g, f, z in parts], 1)
    if step.op == "slice":
        a = step.attributes
        last = a["start"] + a["step"] * (step.shape[a["place"]] - 1) + 1
        return x[(slice(None),) * (a["place"] + 1) + (slice(a["start"], last, a["step"]),)]
    if step.op == "pad":
        rows, columns = (np.array(side) for side in step.attributes["sources"])
        found = x[:, :, rows][:, :, :, columns]
        found[:, :, rows < 0] = zeros[0]
        found[:, :, :, columns < 0] = zeros[0]
        return found
    return x if step.op == "copy" else pooled(step, x)


def layer(step: Step, x: np.ndarray) -> np.ndarray:
    """The exact sums of `codes * (x - zero)` and the bias, pooled, and what becomes of them."""
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
