"""Images and series of another size."""

import math
from collections.abc import Sequence

import numpy as np

from pyro_compress.graph.operations.fits import expect
from pyro_compress.graph.operations.row import (
    BOOL,
    SIZES,
    Attributes,
    Channels,
    Made,
    Operation,
    Parameters,
    Roles,
    Shape,
    unchanged,
)


def _upsample(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    for axis, times in enumerate(a["factors"], 2):
        x = np.repeat(x, times, axis)
    return x


def _upsample_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    factors = a["factors"]
    expect(len(factors) == len(x[0]) - 1 <= 3, f"{len(factors)} factors for values of shape {x[0]}")
    shape = (x[0][0], *(size * times for size, times in zip(x[0][1:], factors, strict=True)))
    return Made(shape, math.prod(shape))


def resampling(before: int, after: int, corners: bool) -> np.ndarray:
    """What every place of an axis of another size is made of, `(after, before)`, linear between neighbours.

    Args:
        before: places there are.
        after: places there will be.
        corners: whether the first and the last places fall on each other; else the edges do.
    """
    places = np.arange(after, dtype=np.float64)
    ratio = (before - 1) / max(after - 1, 1) if corners else before / after
    at = places * ratio if corners else np.maximum((places + 0.5) * ratio - 0.5, 0)
    low = np.minimum(at.astype(np.int64), before - 1)
    high, part = np.minimum(low + 1, before - 1), at - low
    found = np.zeros((after, before))
    np.add.at(found, (np.arange(after), low), 1 - part)
    np.add.at(found, (np.arange(after), high), part)
    return found


def _resize(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    for axis, size in enumerate(a["sizes"], 2):
        weights = resampling(x.shape[axis], size, a["corners"]).astype(x.dtype)
        x = np.moveaxis(np.tensordot(x, weights, ((axis,), (1,))), -1, axis)
    return x


def _resize_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    sizes = a["sizes"]
    expect(len(sizes) == len(x[0]) - 1 <= 3, f"{len(sizes)} sizes for values of shape {x[0]}")
    shape, work, values = x[0], 0, 0
    for axis, size in enumerate(sizes, 1):
        work += math.prod(shape) * size
        shape = (*shape[:axis], size, *shape[axis + 1 :])
        values = max(values, math.prod(shape) + size * x[0][axis])
    return Made(shape, work, 2 * values)


RESIZING = {
    "upsample": Operation(
        _upsample, _upsample_shape, attributes={"factors": SIZES}, channels=Channels.BEHIND_BATCH, known=unchanged
    ),
    "resize": Operation(
        _resize, _resize_shape, attributes={"sizes": SIZES, "corners": BOOL}, channels=Channels.BEHIND_BATCH,
        known=unchanged,
    ),
}  # fmt: skip
