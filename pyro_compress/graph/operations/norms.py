"""Normalisation, and slopes per channel."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_compress.graph.operations.fits import expect, per_channel, same
from pyro_compress.graph.operations.row import (
    COUNT,
    EPSILON,
    Attributes,
    Channels,
    Made,
    Operation,
    Parameters,
    Roles,
    Shape,
)

SCALE = ("weight", "bias")
STATISTICS_ROLES = ("running_mean", "running_var")


def _batch_norm(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    shape = (-1, *[1] * (x.ndim - 2))
    y = (x - p["running_mean"].reshape(shape)) / np.sqrt(p["running_var"].reshape(shape) + a["eps"])
    y = y * p["weight"].reshape(shape) if "weight" in p else y
    return y + p["bias"].reshape(shape) if "bias" in p else y


def _as_scale_and_shift(p: Mapping[str, Any], a: Attributes) -> tuple[Any, Any]:
    """Batch norm with fixed statistics, of arrays or of tensors."""
    scale = p.get("weight", 1.0) / (p["running_var"] + a["eps"]) ** 0.5
    return scale, p.get("bias", 0.0) - p["running_mean"] * scale


def _layer_norm(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    y = (x - mean) / np.sqrt(np.square(x - mean).mean(-1, keepdims=True) + np.float32(a["eps"]))
    y = y * p["weight"] if "weight" in p else y
    return y + p["bias"] if "bias" in p else y


def _group_norm(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    groups = x.reshape(len(x), a["groups"], -1)
    mean = groups.mean(-1, keepdims=True)
    y = (groups - mean) / np.sqrt(np.square(groups - mean).mean(-1, keepdims=True) + np.float32(a["eps"]))
    y, shape = y.reshape(x.shape), (-1, *[1] * (x.ndim - 2))
    y = y * p["weight"].reshape(shape) if "weight" in p else y
    return y + p["bias"].reshape(shape) if "bias" in p else y


def _prelu(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    return np.where(x > 0, x, x * p["weight"].reshape(-1, *[1] * (x.ndim - 2)))


def _batch_norm_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    expect(bool(x[0]), "a single value has no channels")
    per_channel(p, tuple(p), x[0][0])
    return same(2)(x, p, a)


def _layer_norm_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Over the last dimension."""
    expect(bool(x[0]), "a single value has no dimension to normalise")
    per_channel(p, tuple(p), x[0][-1])
    return same(8)(x, p, a)


def _group_norm_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    expect(bool(x[0]) and x[0][0] % a["groups"] == 0, f"{a['groups']} groups of values of shape {x[0]}")
    per_channel(p, tuple(p), x[0][0])
    return same(8)(x, p, a)


def _prelu_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """A slope per channel, or one for all."""
    expect(bool(x[0]), "a single value has no channels")
    expect(p["weight"] in ((1,), (x[0][0],)), f"slopes of shape {p['weight']} for {x[0][0]} channels")
    return same()(x, p, a)


NORMS = {
    "batch_norm": Operation(
        _batch_norm, _batch_norm_shape, roles=STATISTICS_ROLES, may=SCALE, attributes={"eps": EPSILON},
        channels=Channels.BEHIND_BATCH, by_channel=True, affine=_as_scale_and_shift, passed_since=2,
    ),
    "layer_norm": Operation(
        _layer_norm, _layer_norm_shape, may=SCALE, attributes={"eps": EPSILON}, starts={"weight": 1.0, "bias": 0.0}
    ),
    "group_norm": Operation(
        _group_norm, _group_norm_shape, may=SCALE, attributes={"groups": COUNT, "eps": EPSILON},
        starts={"weight": 1.0, "bias": 0.0},
    ),
    "prelu": Operation(
        _prelu, _prelu_shape, roles=("weight",), channels=Channels.BEHIND_BATCH, by_channel=True,
        starts={"weight": 0.25}, passed_since=2,
    ),
}  # fmt: skip
