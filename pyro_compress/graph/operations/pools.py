"""Windows, of each of which one value is left."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pyro_compress.graph.operations.fits import expect, image, lengths, places
from pyro_compress.graph.operations.row import (
    BORDERS,
    SIZES,
    Attributes,
    Channels,
    Kind,
    Known,
    Made,
    Operation,
    Parameters,
    Roles,
    Rule,
    Run,
    Shape,
    unchanged,
    zeros,
)


def _pool(reduce: Callable[..., np.ndarray], fill: float) -> Run:
    def pool(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
        rank = len(a["kernel"])
        before = a.get("padding", [0] * rank)
        after = a["after"] if "after" in a else before
        x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)], constant_values=fill)
        windows = sliding_window_view(x, a["kernel"], tuple(range(2, 2 + rank)))
        windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in a["stride"]))]
        return reduce(windows, axis=tuple(range(-rank, 0)))

    return pool


def _pool_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Windows over `(channels, *positions)`; `after` is what torch pads at the end when it rounds up."""
    kernel, stride = a["kernel"], a["stride"]
    rank = len(kernel)
    expect(1 <= rank <= 3, f"a kernel of {rank} dimensions")
    channels, *sizes = image(x[0], rank)
    before = a.get("padding", [0] * rank)
    after = a.get("after", before)
    lengths(rank, stride, before, after)
    expect(all(2 * b <= k for b, k in zip(before, kernel, strict=True)), "padding of more than half of the kernel")
    padded = [size + b + e for size, b, e in zip(sizes, before, after, strict=True)]
    windows = places(padded, kernel, stride)
    if "after" in a:
        up = [_rounded_up(*one) for one in zip(sizes, before, kernel, stride, strict=True)]
        expect(windows == up, f"{windows} windows where rounding up gives {up}")
    shape = (channels, *windows)
    return Made(shape, math.prod(shape) * math.prod(kernel), channels * math.prod(padded))


def _mean_pool_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """As others; torch wants the input itself, without its border, to be as large as a window of three dimensions."""
    three = len(a["kernel"]) == 3 and len(x[0]) == 4
    fits = not three or all(k <= size for k, size in zip(a["kernel"], x[0][1:], strict=True))
    expect(fits, f"windows of {a['kernel']} over {x[0]}")
    return _pool_shape(x, p, a)


def _rounded_up(size: int, before: int, kernel: int, stride: int) -> int:
    """How many windows torch counts with `ceil_mode`: the last one begins within the input or its left border."""
    windows = -(-(size + 2 * before - kernel) // stride) + 1
    return windows - 1 if (windows - 1) * stride >= size + before else windows


def _mean_of(known: Sequence[np.ndarray], a: Attributes) -> np.ndarray:
    return zeros(known, a) if "padding" in a else unchanged(known, a)


def _pooling(run: Run, rule: Rule, known: Known, **more: Kind) -> Operation:
    return Operation(
        run, rule, attributes={"kernel": SIZES, "stride": SIZES}, options={"padding": BORDERS} | more,
        channels=Channels.BEHIND_BATCH, known=known, passed_since=2,
    )  # fmt: skip


POOLS = {
    "max_pool": _pooling(_pool(np.max, -np.inf), _pool_shape, unchanged, after=BORDERS),
    "avg_pool": _pooling(_pool(np.mean, 0), _mean_pool_shape, _mean_of),
}
