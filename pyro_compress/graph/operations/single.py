"""Functions of single values: each row is one line."""

import math
from collections.abc import Sequence

import numpy as np

from pyro_compress.graph.operations.fits import expect, same
from pyro_compress.graph.operations.row import (
    BOOL,
    NUMBER,
    Attributes,
    Channels,
    Kind,
    Made,
    Operation,
    Parameters,
    Roles,
    Rule,
    Run,
    Shape,
)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))


def _hardsigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + np.float32(3), 0, 6) / np.float32(6)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    if a["tanh"]:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float32])(x))


def _elu(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    return np.where(x > 0, x, np.float32(a["alpha"]) * np.expm1(np.minimum(x, 0))) * np.float32(a["scale"])


def _scale(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    scaled = x * np.float32(a["factor"])
    return scaled + np.float32(a["offset"]) if "offset" in a else scaled


def _clip_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    expect(a["low"] <= a["high"], f"values from {a['low']} to {a['high']}")
    return same()(x, p, a)


def pointwise(
    run: Run, price: int = 1, since: int | None = None, rule: Rule | None = None,
    options: dict[str, Kind] | None = None, **attributes: Kind,
) -> Operation:  # fmt: skip
    """A function of single values.

    Args:
        run: it in numpy.
        price: how many multiply-adds take as long, per value.
        since: version of the format from which layouts look back through it (`Operation.passed_since`).
        rule: of shapes, where attributes must fit each other.
        options: attributes that it may have.
        **attributes: those that it must have.
    """
    return Operation(
        run, rule or same(price), attributes=attributes, options=options or {}, channels=Channels.APART,
        passed_since=since,
    )  # fmt: skip


SINGLE = {
    "relu": pointwise(lambda x, p, a: np.maximum(x, 0), 1, 2),
    "tanh": pointwise(lambda x, p, a: np.tanh(x), 16, 2),
    "sigmoid": pointwise(lambda x, p, a: _sigmoid(x), 16, 2),
    "silu": pointwise(lambda x, p, a: x * _sigmoid(x), 16, 2),
    "hardswish": pointwise(lambda x, p, a: x * _hardsigmoid(x), 4),
    "hardsigmoid": pointwise(lambda x, p, a: _hardsigmoid(x), 4),
    "gelu": pointwise(_gelu, 128, 2, tanh=BOOL),
    "leaky_relu": pointwise(lambda x, p, a: np.where(x > 0, x, x * np.float32(a["slope"])), 1, 2, slope=NUMBER),
    "elu": pointwise(_elu, 16, 2, alpha=NUMBER, scale=NUMBER),
    "softplus": pointwise(lambda x, p, a: _softplus(x), 32, 2),
    "mish": pointwise(lambda x, p, a: x * np.tanh(_softplus(x)), 32, 2),
    "sin": pointwise(lambda x, p, a: np.sin(x), 16, 2),
    "cos": pointwise(lambda x, p, a: np.cos(x), 16),
    "abs": pointwise(lambda x, p, a: np.abs(x)),
    "exp": pointwise(lambda x, p, a: np.exp(x), 16),
    "expm1": pointwise(lambda x, p, a: np.expm1(x), 16),
    "log": pointwise(lambda x, p, a: np.log(x), 16),
    "log1p": pointwise(lambda x, p, a: np.log1p(x), 16),
    "erf": pointwise(lambda x, p, a: _erf(x), 128),
    "log_sigmoid": pointwise(lambda x, p, a: -_softplus(-x), 32),
    "sqrt": pointwise(lambda x, p, a: np.sqrt(x), 4),
    "rsqrt": pointwise(lambda x, p, a: 1 / np.sqrt(x), 4),
    "reciprocal": pointwise(lambda x, p, a: 1 / x, 4),
    "power": pointwise(lambda x, p, a: np.power(x, x.dtype.type(a["exponent"])), 32, exponent=NUMBER),
    "scale": pointwise(_scale, 2, options={"offset": NUMBER}, factor=NUMBER),
    "clip": pointwise(
        lambda x, p, a: np.clip(x, np.float32(a["low"]), np.float32(a["high"])),
        rule=_clip_shape,
        low=NUMBER,
        high=NUMBER,
    ),
}
