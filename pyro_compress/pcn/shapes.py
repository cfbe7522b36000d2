"""What shape an operation gives one example, and what it costs: a function per kind of operation, found by `schema`.

Each rule is `(shapes of the inputs, shapes of the tensors by role, attributes) -> Made`, without the batch dimension;
it is given attributes that `schema` has checked, computes with whole numbers alone, and raises `ValueError` where torch
or numpy would refuse to run. So a network can be judged before anything of it is allocated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Shape = tuple[int, ...]
Roles = Mapping[str, Shape]
Attributes = Mapping[str, Any]


class Made(NamedTuple):
    """What an operation makes of one example.

    Attributes:
        shape: of its output.
        work: multiply-adds, or what takes as long.
        scratch: values that it holds while it runs, beside inputs and output.
    """

    shape: Shape
    work: int
    scratch: int = 0


Rule = Callable[[Sequence[Shape], Roles, Attributes], Made]


def same(price: int = 1) -> Rule:
    """A function of single values, each of which takes as long as `price` multiply-adds."""

    def rule(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
        return Made(x[0], price * math.prod(x[0]), math.prod(x[0]))

    return rule


def clip(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Values between two numbers."""
    _expect(a["low"] <= a["high"], f"values from {a['low']} to {a['high']}")
    return same()(x, p, a)


def linear(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """`(..., in)` -> `(..., out)`."""
    weight = _of_rank(p, "weight", 2)
    _expect(bool(x[0]) and x[0][-1] == weight[1], f"a weight of shape {weight} on values of shape {x[0]}")
    _per_channel(p, ("bias",), weight[0])
    shape = (*x[0][:-1], weight[0])
    return Made(shape, math.prod(x[0]) * weight[0])


def conv(rank: int) -> Rule:
    """`(channels, *positions)` -> `(filters, *positions)`."""

    def rule(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
        weight, groups = _of_rank(p, "weight", rank + 2), a.get("groups", 1)
        channels, *sizes = _image(x[0], rank)
        fits = weight[1] * groups == channels and weight[0] % groups == 0
        _expect(fits, f"a weight of shape {weight} in {groups} groups on {channels} channels")
        _per_channel(p, ("bias",), weight[0])
        before, after = a["padding"]
        _lengths(rank, a["stride"], a["dilation"], before, after)
        reach = [d * (k - 1) + 1 for d, k in zip(a["dilation"], weight[2:], strict=True)]
        padded = [size + b + e for size, b, e in zip(sizes, before, after, strict=True)]
        places = _places(padded, reach, a["stride"])
        taps = math.prod(weight[1:])
        windows = math.prod(places) * taps
        return Made((weight[0], *places), windows * weight[0], 2 * windows + channels * math.prod(padded))

    return rule


def pool(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Windows over `(channels, *positions)`; `after` is what torch pads at the end when it rounds up."""
    kernel, stride = a["kernel"], a["stride"]
    rank = len(kernel)
    _expect(1 <= rank <= 3, f"a kernel of {rank} dimensions")
    channels, *sizes = _image(x[0], rank)
    before = a.get("padding", [0] * rank)
    after = a.get("after", before)
    _lengths(rank, stride, before, after)
    _expect(all(2 * b <= k for b, k in zip(before, kernel, strict=True)), "padding of more than half of the kernel")
    padded = [size + b + e for size, b, e in zip(sizes, before, after, strict=True)]
    places = _places(padded, kernel, stride)
    if "after" in a:
        up = [_rounded_up(*one) for one in zip(sizes, before, kernel, stride, strict=True)]
        _expect(places == up, f"{places} windows where rounding up gives {up}")
    shape = (channels, *places)
    return Made(shape, math.prod(shape) * math.prod(kernel), channels * math.prod(padded))


def mean_pool(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """As `pool`; torch wants the input itself, without its border, to be as large as a window of three dimensions."""
    three = len(a["kernel"]) == 3 and len(x[0]) == 4
    fits = not three or all(k <= size for k, size in zip(a["kernel"], x[0][1:], strict=True))
    _expect(fits, f"windows of {a['kernel']} over {x[0]}")
    return pool(x, p, a)


def _rounded_up(size: int, before: int, kernel: int, stride: int) -> int:
    """How many windows torch counts with `ceil_mode`: the last one begins within the input or its left border."""
    places = -(-(size + 2 * before - kernel) // stride) + 1
    return places - 1 if (places - 1) * stride >= size + before else places


def batch_norm(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Per channel."""
    _expect(bool(x[0]), "a single value has no channels")
    _per_channel(p, tuple(p), x[0][0])
    return same(2)(x, p, a)


def prelu(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """A slope per channel, or one for all."""
    _expect(bool(x[0]), "a single value has no channels")
    _expect(p["weight"] in ((1,), (x[0][0],)), f"slopes of shape {p['weight']} for {x[0][0]} channels")
    return same()(x, p, a)


def layer_norm(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Over the last dimension."""
    _expect(bool(x[0]), "a single value has no dimension to normalise")
    _per_channel(p, tuple(p), x[0][-1])
    return same(8)(x, p, a)


def group_norm(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Over groups of channels."""
    _expect(bool(x[0]) and x[0][0] % a["groups"] == 0, f"{a['groups']} groups of values of shape {x[0]}")
    _per_channel(p, tuple(p), x[0][0])
    return same(8)(x, p, a)


def two(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Two values with as many dimensions, of which one may be repeated where it has size 1."""
    shape = _broadcast(*x)
    return Made(shape, math.prod(shape))


def mixture(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Class scores of several networks."""
    _expect(len(x[0]) == 1 and len(set(x)) == 1, f"outputs of shapes {', '.join(map(str, x[:4]))}")
    return Made(x[0], 64 * len(x) * math.prod(x[0]), 4 * len(x) * math.prod(x[0]))


def reshape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """The same values in another shape."""
    shape = tuple(a["shape"])
    _expect(math.prod(shape) == math.prod(x[0]), f"values of shape {x[0]} as {shape}")
    return Made(shape, math.prod(shape))


def constant(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """A tensor that every example is given."""
    shape = tuple(a["shape"])
    _expect(math.prod(shape) == math.prod(p["value"]), f"a tensor of shape {p['value']} as {shape}")
    return Made(shape, math.prod(shape))


def pad(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """A border around the last dimensions; `sizes` begins with the last one."""
    sizes, mode, rank = a["sizes"], a["mode"], len(x[0])
    number = len(sizes) // 2
    _expect(len(sizes) % 2 == 0 and number <= rank, f"{len(sizes)} sizes of borders around {rank} dimensions")
    pairs = [(0, 0)] * (rank - number) + [(sizes[2 * i], sizes[2 * i + 1]) for i in reversed(range(number))]
    if mode != "constant":
        _expect(number in (rank, rank - 1) and 1 <= number <= 3, f"{mode} around {number} of {rank} dimensions")
        _expect(mode != "circular" or number == rank - 1, f"{mode} around {number} of {rank} dimensions")
        most = {"reflect": -1, "replicate": math.inf, "circular": 0}[mode]
        fits = all(max(pair) <= size + most for pair, size in zip(pairs, x[0], strict=True))
        _expect(fits, f"a {mode} border that is wider than values of shape {x[0]}")
    shape = tuple(size + before + after for size, (before, after) in zip(x[0], pairs, strict=True))
    return Made(shape, math.prod(shape))


def reduced(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Several axes to one value each."""
    axes = a["axes"]
    _expect(len(set(axes)) == len(axes) and max(axes) <= len(x[0]), f"axes {axes} of values of shape {x[0]}")
    kept = [1 if axis in axes else size for axis, size in enumerate(x[0], 1) if a.get("keepdim") or axis not in axes]
    return Made(tuple(kept), math.prod(x[0]))


def permute(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Axes in another order."""
    _expect(sorted(a["axes"]) == list(range(1, len(x[0]) + 1)), f"axes {a['axes']} of values of shape {x[0]}")
    return Made(tuple(x[0][axis - 1] for axis in a["axes"]), math.prod(x[0]))


def select(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """One entry of an axis, which goes."""
    axis = _axis(x[0], a)
    _expect(a["index"] < x[0][axis], f"entry {a['index']} of {x[0][axis]}")
    shape = x[0][:axis] + x[0][axis + 1 :]
    return Made(shape, math.prod(shape))


def slice_(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Part of an axis."""
    axis = _axis(x[0], a)
    _expect(a["start"] < a["stop"] <= x[0][axis], f"entries {a['start']} to {a['stop']} of {x[0][axis]}")
    taken = len(range(a["start"], a["stop"], a.get("step", 1)))
    shape = (*x[0][:axis], taken, *x[0][axis + 1 :])
    return Made(shape, math.prod(shape))


def concat(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Several values along one axis."""
    axis = _axis(x[0], a)
    around = {(*one[:axis], *one[axis + 1 :]) for one in x} if all(len(one) == len(x[0]) for one in x) else set()
    _expect(len(around) == 1, f"shapes {', '.join(map(str, x[:4]))} along axis {a['axis']}")
    shape = (*x[0][:axis], sum(one[axis] for one in x), *x[0][axis + 1 :])
    return Made(shape, math.prod(shape))


def over_axis(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """A softmax."""
    _axis(x[0], a)
    return Made(x[0], 64 * math.prod(x[0]), 2 * math.prod(x[0]))


def matmul(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """`(..., n, k)` times `(..., k, m)`."""
    one, other = x
    fits = len(one) == len(other) >= 2 and one[-1] == other[-2]
    _expect(fits, f"values of shapes {one} and {other}")
    shape = (*_broadcast(one[:-2], other[:-2]), one[-2], other[-1])
    return Made(shape, math.prod(shape) * one[-1])


def attention(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    """Queries `(..., n, k)`, keys `(..., m, k)` and values `(..., m, v)`."""
    q, k, v = x
    fits = len(q) == len(k) == len(v) >= 2 and q[:-2] == k[:-2] == v[:-2] and q[-1] == k[-1] and k[-2] == v[-2]
    _expect(fits, f"queries {q}, keys {k} and values {v}")
    scores = math.prod(q[:-1]) * k[-2]
    return Made((*q[:-1], v[-1]), scores * (q[-1] + v[-1] + 64), 4 * scores)


def _expect(fits: bool, found: str) -> None:
    if not fits:
        raise ValueError(f"{found} do not fit" if "and " in found else f"{found}: that does not fit")


def _of_rank(p: Roles, role: str, rank: int) -> Shape:
    _expect(len(p[role]) == rank, f"a {role} of shape {p[role]}")
    return p[role]


def _per_channel(p: Roles, roles: Sequence[str], channels: int) -> None:
    for role in roles:
        _expect(p.get(role, (channels,)) == (channels,), f"a {role} of shape {p.get(role)} for {channels} channels")


def _image(shape: Shape, rank: int) -> Shape:
    _expect(len(shape) == rank + 1, f"values of shape {shape} under a window of {rank} dimensions")
    return shape


def _lengths(rank: int, *lists: Sequence[int]) -> None:
    _expect(all(len(one) == rank for one in lists), f"lists of {', '.join(str(len(one)) for one in lists)} numbers")


def _places(sizes: Sequence[int], reach: Sequence[int], stride: Sequence[int]) -> list[int]:
    """How many windows fit, dimension by dimension."""
    _expect(all(r <= size for r, size in zip(reach, sizes, strict=True)), f"windows of {list(reach)} over {sizes}")
    return [(size - r) // s + 1 for size, r, s in zip(sizes, reach, stride, strict=True)]


def _axis(shape: Shape, a: Attributes) -> int:
    """Index of an axis in a shape without the batch."""
    _expect(a["axis"] <= len(shape), f"axis {a['axis']} of values of shape {shape}")
    return int(a["axis"]) - 1


def _broadcast(one: Shape, other: Shape) -> Shape:
    fits = len(one) == len(other) and all(m == n or 1 in (m, n) for m, n in zip(one, other, strict=True))
    _expect(fits, f"values of shapes {one} and {other}")
    return tuple(itertools.starmap(max, zip(one, other, strict=True)))
