"""What several values become together."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyro_compress.graph.operations.fits import broadcast, expect
from pyro_compress.graph.operations.reductions import log_softmax, log_sum_exp, softmax
from pyro_compress.graph.operations.row import (
    BOOL,
    MAX_INPUTS,
    NUMBER_OR_NONE,
    Attributes,
    Channels,
    Known,
    Made,
    Operation,
    Parameters,
    Roles,
    Shape,
)


def _mixture(logits: tuple[np.ndarray, ...]) -> np.ndarray:
    log_probs = np.stack([log_softmax(one, 1) for one in logits])
    return np.asarray(log_sum_exp(log_probs, 0)[0] - np.float32(math.log(len(logits))))


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    factor = 1 / math.sqrt(q.shape[-1]) if a["scale"] is None else a["scale"]
    scores = (q @ np.swapaxes(k, -1, -2)) * np.float32(factor)
    if a["causal"]:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, np.float32(-np.inf))
    return softmax(scores, -1) @ v


def _two_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Two values with as many dimensions, of which one may be repeated where it has size 1."""
    shape = broadcast(*x)
    return Made(shape, math.prod(shape))


def _mixture_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Class scores of several networks."""
    expect(len(x[0]) == 1 and len(set(x)) == 1, f"outputs of shapes {', '.join(map(str, x[:4]))}")
    return Made(x[0], 64 * len(x) * math.prod(x[0]), 4 * len(x) * math.prod(x[0]))


def _matmul_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """`(..., n, k)` times `(..., k, m)`."""
    one, other = x
    fits = len(one) == len(other) >= 2 and one[-1] == other[-2]
    expect(fits, f"values of shapes {one} and {other}")
    shape = (*broadcast(one[:-2], other[:-2]), one[-2], other[-1])
    return Made(shape, math.prod(shape) * one[-1])


def _attention_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Queries `(..., n, k)`, keys `(..., m, k)` and values `(..., m, v)`."""
    q, k, v = x
    fits = len(q) == len(k) == len(v) >= 2 and q[:-2] == k[:-2] == v[:-2] and q[-1] == k[-1] and k[-2] == v[-2]
    expect(fits, f"queries {q}, keys {k} and values {v}")
    scores = math.prod(q[:-1]) * k[-2]
    return Made((*q[:-1], v[-1]), scores * (q[-1] + v[-1] + 64), 4 * scores)


def _product(known: Sequence[np.ndarray], a: Attributes) -> np.ndarray:
    """Zero times what varies is zero."""
    one, other = known
    return np.where((one == 0) | (other == 0), 0.0, one * other)


def _quotient(known: Sequence[np.ndarray], a: Attributes) -> np.ndarray:
    one, other = known
    return np.where(other == 0, np.nan, one / np.where(other == 0, 1.0, other))


def _of_two(run: Callable[[Any, Any], Any], known: Known, since: int | None = None) -> Operation:
    return Operation(
        lambda x, y, p, a: run(x, y),
        _two_shape,
        (2, 2),
        channels=Channels.APART,
        known=known,
        broadcasts=True,
        passed_since=since,
    )


SEVERAL = {
    "add": _of_two(np.add, lambda known, a: known[0] + known[1], since=2),
    "subtract": _of_two(np.subtract, lambda known, a: known[0] - known[1]),
    "multiply": _of_two(np.multiply, _product),
    "divide": _of_two(np.divide, _quotient),
    "maximum": _of_two(np.maximum, lambda known, a: np.maximum(*known)),
    "minimum": _of_two(np.minimum, lambda known, a: np.minimum(*known)),
    "mixture": Operation(lambda *given: _mixture(given[:-2]), _mixture_shape, (1, MAX_INPUTS)),
    "matmul": Operation(lambda x, y, p, a: x @ y, _matmul_shape, (2, 2), channels=Channels.MATCHED),
    "attention": Operation(
        _attention, _attention_shape, (3, 3), attributes={"causal": BOOL, "scale": NUMBER_OR_NONE},
        channels=Channels.ATTENDED,
    ),
}  # fmt: skip
