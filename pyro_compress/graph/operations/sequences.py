"""What reads sequences: tables that numbers of words are looked up in, recurrent layers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_compress.graph.operations.fits import expect, of_rank, per_channel
from pyro_compress.graph.operations.row import (
    BOOL,
    KINDS,
    Attributes,
    Channels,
    Made,
    Operation,
    Parameters,
    Roles,
    Rule,
    Shape,
)

GATES = {"lstm": 4, "gru": 3}
"""Blocks of rows of a recurrent weight, one for each gate, each with a row for every hidden unit."""


def _embedding(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    table = p["weight"]
    if x.size and not 0 <= int(x.min()) <= int(x.max()) < len(table):
        raise ValueError(f"embedding: numbers from {int(x.min())} to {int(x.max())} in a table of {len(table)} rows")
    return np.asarray(table[x])


def _embedding_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """`(...)` -> `(..., features)`."""
    shape = (*x[0], of_rank(p, "weight", 2)[1])
    return Made(shape, math.prod(shape))


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _steps(x: np.ndarray, p: Parameters, a: Attributes) -> tuple[np.ndarray, range]:
    """What the inputs add to every gate, and the order of the steps."""
    given = x @ p["weight_ih"].T
    given = given + p["bias_ih"] if "bias_ih" in p else given
    return given, range(x.shape[1] - 1, -1, -1) if a.get("reverse", False) else range(x.shape[1])


def _lstm(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    given, steps = _steps(x, p, a)
    units = p["weight_hh"].shape[1]
    h = c = np.zeros((len(x), units), x.dtype)
    found = np.empty((*x.shape[:2], units), x.dtype)
    for t in steps:
        gates = given[:, t] + h @ p["weight_hh"].T
        gates = gates + p["bias_hh"] if "bias_hh" in p else gates
        i, f, g, o = np.split(gates, 4, 1)
        c = _logistic(f) * c + _logistic(i) * np.tanh(g)
        h = _logistic(o) * np.tanh(c)
        found[:, t] = h
    return found


def _gru(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    given, steps = _steps(x, p, a)
    units = p["weight_hh"].shape[1]
    h = np.zeros((len(x), units), x.dtype)
    found = np.empty((*x.shape[:2], units), x.dtype)
    for t in steps:
        kept = h @ p["weight_hh"].T
        kept = kept + p["bias_hh"] if "bias_hh" in p else kept
        (r, z, n), (r_h, z_h, n_h) = np.split(given[:, t], 3, 1), np.split(kept, 3, 1)
        z = _logistic(z + z_h)
        h = (1 - z) * np.tanh(n + _logistic(r + r_h) * n_h) + z * h
        found[:, t] = h
    return found


def _recurrent_shape(gates: int) -> Rule:
    """`(steps, features)` -> `(steps, units)`."""

    def rule(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
        into, across = of_rank(p, "weight_ih", 2), of_rank(p, "weight_hh", 2)
        fits = len(x[0]) == 2 and into[1] == x[0][1] and into[0] == across[0] == gates * across[1]
        expect(fits, f"weights of shapes {into} and {across} on values of shape {x[0]}")
        per_channel(p, ("bias_ih", "bias_hh"), into[0])
        steps, rows = x[0][0], into[0]
        return Made((steps, across[1]), steps * rows * (into[1] + across[1] + 64), steps * rows + 4 * rows)

    return rule


def _as_it_is(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    return Made(x[0], math.prod(x[0]))


def _recurrent(run: Any, gates: int) -> Operation:
    return Operation(
        run, _recurrent_shape(gates), roles=("weight_ih", "weight_hh"), may=("bias_ih", "bias_hh"),
        options={"reverse": BOOL}, channels=Channels.GATED, multiplies=True, since=5,
    )  # fmt: skip


SEQUENCES = {
    "embedding": Operation(
        _embedding, _embedding_shape, roles=("weight",), takes=tuple(kind for kind in KINDS if kind.startswith("int")),
        channels=Channels.LOOKED_UP, multiplies=True, since=5,
    ),
    "whole": Operation(lambda x, p, a: x.astype(np.int64), _as_it_is, gives="int64", since=6),
    "truth": Operation(lambda x, p, a: x != 0, _as_it_is, gives="bool", since=6),
    "lstm": _recurrent(_lstm, GATES["lstm"]),
    "gru": _recurrent(_gru, GATES["gru"]),
}  # fmt: skip
