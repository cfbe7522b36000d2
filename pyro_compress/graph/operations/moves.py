"""What moves values and computes nothing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_compress.graph.operations.fits import axis_of, expect
from pyro_compress.graph.operations.row import (
    AXES,
    BORDER,
    BORDERS,
    COUNT,
    INDEX,
    KINDS,
    MAX_INPUTS,
    MODE,
    SHAPE,
    SIZES,
    Attributes,
    Channels,
    Made,
    Operation,
    Parameters,
    Roles,
    Shape,
    unchanged,
    zeros,
)


def _pad(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    sizes = a["sizes"]
    pairs = [(sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)][::-1]
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return np.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs, modes[a["mode"]])  # type: ignore[call-overload]


def _expand(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    sizes = dict(zip(a["axes"], a["sizes"], strict=True))
    return np.broadcast_to(x, [sizes.get(axis, size) for axis, size in enumerate(x.shape)])


def _slice(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    return x[(slice(None),) * a["axis"] + (slice(a["start"], a["stop"], a.get("step", 1)),)]


def _concat(*arguments: Any) -> np.ndarray:
    *inputs, _, attributes = arguments
    return np.concatenate(inputs, attributes["axis"])


def _constant(x: np.ndarray, p: Parameters, a: Attributes) -> np.ndarray:
    return np.broadcast_to(p["value"].reshape(1, *a["shape"]), (len(x), *a["shape"]))


def _reshape_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    shape = tuple(a["shape"])
    expect(math.prod(shape) == math.prod(x[0]), f"values of shape {x[0]} as {shape}")
    return Made(shape, math.prod(shape))


def _regroup_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Rows of another shape: windows of an image as examples, say, or back."""
    shape = tuple(a["shape"])
    return Made(shape, max(math.prod(shape), math.prod(x[0])))


def _constant_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """A tensor that every example is given."""
    shape = tuple(a["shape"])
    expect(math.prod(shape) == math.prod(p["value"]), f"a tensor of shape {p['value']} as {shape}")
    return Made(shape, math.prod(shape))


def _pad_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """A border around the last dimensions; `sizes` begins with the last one."""
    sizes, mode, rank = a["sizes"], a["mode"], len(x[0])
    number = len(sizes) // 2
    expect(len(sizes) % 2 == 0 and number <= rank, f"{len(sizes)} sizes of borders around {rank} dimensions")
    pairs = [(0, 0)] * (rank - number) + [(sizes[2 * i], sizes[2 * i + 1]) for i in reversed(range(number))]
    if mode != "constant":
        expect(number in (rank, rank - 1) and 1 <= number <= 3, f"{mode} around {number} of {rank} dimensions")
        expect(mode != "circular" or number == rank - 1, f"{mode} around {number} of {rank} dimensions")
        most = {"reflect": -1, "replicate": math.inf, "circular": 0}[mode]
        fits = all(max(pair) <= size + most for pair, size in zip(pairs, x[0], strict=True))
        expect(fits, f"a {mode} border that is wider than values of shape {x[0]}")
    shape = tuple(size + before + after for size, (before, after) in zip(x[0], pairs, strict=True))
    return Made(shape, math.prod(shape))


def _permute_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    expect(sorted(a["axes"]) == list(range(1, len(x[0]) + 1)), f"axes {a['axes']} of values of shape {x[0]}")
    return Made(tuple(x[0][axis - 1] for axis in a["axes"]), math.prod(x[0]))


def _expand_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Axes of size 1 repeated, to a size each."""
    sizes = dict(zip(a["axes"], a["sizes"], strict=False))
    fits = len(sizes) == len(a["axes"]) == len(a["sizes"]) and max(sizes) <= len(x[0])
    expect(fits and all(x[0][axis - 1] == 1 for axis in sizes), f"values of shape {x[0]} repeated to {sizes}")
    shape = tuple(sizes.get(axis, size) for axis, size in enumerate(x[0], 1))
    return Made(shape, math.prod(shape))


def _flip_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    axes = a["axes"]
    expect(len(set(axes)) == len(axes) and max(axes) <= len(x[0]), f"axes {axes} of values of shape {x[0]}")
    return Made(x[0], math.prod(x[0]))


def _roll_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Axes shifted in a circle, by as many places each."""
    expect(len(a["shifts"]) == len(a["axes"]), f"{len(a['shifts'])} shifts of {len(a['axes'])} axes")
    return _flip_shape(x, p, a)


def _select_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """One entry of an axis, which goes."""
    axis = axis_of(x[0], a)
    expect(a["index"] < x[0][axis], f"entry {a['index']} of {x[0][axis]}")
    shape = x[0][:axis] + x[0][axis + 1 :]
    return Made(shape, math.prod(shape))


def _slice_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    axis = axis_of(x[0], a)
    expect(a["start"] < a["stop"] <= x[0][axis], f"entries {a['start']} to {a['stop']} of {x[0][axis]}")
    taken = len(range(a["start"], a["stop"], a.get("step", 1)))
    shape = (*x[0][:axis], taken, *x[0][axis + 1 :])
    return Made(shape, math.prod(shape))


def _concat_shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    axis = axis_of(x[0], a)
    around = {(*one[:axis], *one[axis + 1 :]) for one in x} if all(len(one) == len(x[0]) for one in x) else set()
    expect(len(around) == 1, f"shapes {', '.join(map(str, x[:4]))} along axis {a['axis']}")
    shape = (*x[0][:axis], sum(one[axis] for one in x), *x[0][axis + 1 :])
    return Made(shape, math.prod(shape))


MOVES = {
    "reshape": Operation(
        lambda x, p, a: x.reshape(len(x), *a["shape"]), _reshape_shape, attributes={"shape": SHAPE},
        channels=Channels.FLATTENED,
    ),
    "pad": Operation(
        _pad, _pad_shape, attributes={"sizes": BORDER, "mode": MODE}, channels=Channels.BEHIND_BATCH, known=zeros,
        passed_since=2,
    ),
    "permute": Operation(
        lambda x, p, a: x.transpose(0, *a["axes"]), _permute_shape, attributes={"axes": AXES}, channels=Channels.MOVED
    ),
    "select": Operation(
        lambda x, p, a: x.take(a["index"], a["axis"]), _select_shape, attributes={"axis": COUNT, "index": INDEX},
        channels=Channels.TAKEN,
    ),
    "slice": Operation(
        _slice, _slice_shape, attributes={"axis": COUNT, "start": INDEX, "stop": COUNT}, options={"step": COUNT},
        channels=Channels.TAKEN,
    ),
    "expand": Operation(
        _expand, _expand_shape, attributes={"axes": AXES, "sizes": SIZES}, channels=Channels.APART, known=unchanged
    ),
    "flip": Operation(
        lambda x, p, a: np.flip(x, tuple(a["axes"])), _flip_shape, attributes={"axes": AXES},
        channels=Channels.APART, known=unchanged,
    ),
    "roll": Operation(
        lambda x, p, a: np.roll(x, tuple(a["shifts"]), tuple(a["axes"])), _roll_shape,
        attributes={"shifts": BORDERS, "axes": AXES}, channels=Channels.APART, known=unchanged,
    ),
    "concat": Operation(
        _concat, _concat_shape, (1, MAX_INPUTS), attributes={"axis": COUNT}, channels=Channels.BEHIND
    ),
    "regroup": Operation(
        lambda x, p, a: x.reshape(-1, *a["shape"]), _regroup_shape, attributes={"shape": SHAPE}, regroups=True, since=5,
        channels=Channels.REGROUPED,
    ),
    "constant": Operation(_constant, _constant_shape, roles=("value",), attributes={"shape": SHAPE}, takes=KINDS),
}  # fmt: skip
