"""Axes that become one value, or that are set in proportion."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyro_compress.graph.operations.fits import axis_of, expect
from pyro_compress.graph.operations.row import (
    AXES,
    BOOL,
    COUNT,
    INDEX,
    Attributes,
    Channels,
    Known,
    Made,
    Operation,
    Parameters,
    Roles,
    Run,
    Shape,
    unchanged,
    unknown,
    zeros,
)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Positive values that sum to one along an axis."""
    raised = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(raised / raised.sum(axis, keepdims=True))


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Logarithms of shares along an axis."""
    x = x - x.max(axis, keepdims=True)  # first: a large number plus the logarithm may be that number
    return np.asarray(x - np.log(np.exp(x).sum(axis, keepdims=True)))


def log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    """Log of the sum of the exponentials along an axis, which is kept."""
    most = x.max(axis, keepdims=True)
    return np.asarray(most + np.log(np.exp(x - most).sum(axis, keepdims=True)))


def _reduced(reduce: Callable[..., Any]) -> Run:
    return lambda x, p, a: np.asarray(reduce(x, axis=tuple(a["axes"]), keepdims=a.get("keepdim", False)))


def _variance(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    axes = tuple(a["axes"])
    spread = x - x.mean(axes, keepdims=True)
    number = math.prod(x.shape[axis] for axis in axes) - a["correction"]
    return np.asarray(np.square(spread).sum(axes, keepdims=a.get("keepdim", False)) / x.dtype.type(number))


def _of_nothing(known: Sequence[np.ndarray], a: Attributes) -> np.ndarray:
    """What stays the same has no variance."""
    return np.where(np.isnan(known[0]), np.nan, 0.0)


def _reduced_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    axes = a["axes"]
    expect(len(set(axes)) == len(axes) and max(axes) <= len(x[0]), f"axes {axes} of values of shape {x[0]}")
    kept = [1 if axis in axes else size for axis, size in enumerate(x[0], 1) if a.get("keepdim") or axis not in axes]
    return Made(tuple(kept), math.prod(x[0]))


def _variance_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    made = _reduced_shape(x, p, a)
    number = math.prod(x[0][axis - 1] for axis in a["axes"])
    expect(number > a["correction"], f"the variance of {number} values with a correction of {a['correction']}")
    return made


def _over_axis_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    axis_of(x[0], a)
    return Made(x[0], 64 * math.prod(x[0]), 2 * math.prod(x[0]))


def _reducing(reduce: Callable[..., Any], known: Known) -> Operation:
    return Operation(
        _reduced(reduce), _reduced_shape, attributes={"axes": AXES}, options={"keepdim": BOOL},
        channels=Channels.APART, known=known,
    )  # fmt: skip


def _along_axis(run: Callable[..., np.ndarray]) -> Operation:
    return Operation(
        lambda x, p, a: run(x, a["axis"]), _over_axis_shape, attributes={"axis": COUNT}, channels=Channels.APART,
        known=unknown,
    )  # fmt: skip


REDUCTIONS = {
    "mean": _reducing(np.mean, unchanged),
    "sum": _reducing(np.sum, zeros),
    "amax": _reducing(np.max, unchanged),
    "amin": _reducing(np.min, unchanged),
    "variance": Operation(
        _variance,
        _variance_shape,
        attributes={"axes": AXES, "correction": INDEX},
        options={"keepdim": BOOL},
        channels=Channels.APART,
        known=_of_nothing,
    ),
    "softmax": _along_axis(softmax),
    "log_softmax": _along_axis(log_softmax),
}
