"""What rules of shapes ask: whether sizes fit, and how many windows there are."""

import itertools
import math
from collections.abc import Sequence

from pyro_compress.graph.operations.row import Attributes, Made, Roles, Rule, Shape


def same(price: int = 1) -> Rule:
    """A function of single values, each of which takes as long as `price` multiply-adds."""

    def rule(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
        return Made(x[0], price * math.prod(x[0]), math.prod(x[0]))

    return rule


def expect(fits: bool, found: str) -> None:
    """Refuse what does not fit.

    Raises:
        ValueError: with what was found.
    """
    if not fits:
        raise ValueError(f"{found} do not fit" if "and " in found else f"{found}: that does not fit")


def of_rank(p: Roles, role: str, rank: int) -> Shape:
    """Shape of a tensor that must have so many dimensions."""
    expect(len(p[role]) == rank, f"a {role} of shape {p[role]}")
    return p[role]


def per_channel(p: Roles, roles: Sequence[str], channels: int) -> None:
    """Tensors that have a value per channel."""
    for role in roles:
        expect(p.get(role, (channels,)) == (channels,), f"a {role} of shape {p.get(role)} for {channels} channels")


def image(shape: Shape, rank: int) -> Shape:
    """The shape of channels over so many dimensions."""
    expect(len(shape) == rank + 1, f"values of shape {shape} under a window of {rank} dimensions")
    return shape


def lengths(rank: int, *lists: Sequence[int]) -> None:
    """Lists with a number per dimension."""
    expect(all(len(one) == rank for one in lists), f"lists of {', '.join(str(len(one)) for one in lists)} numbers")


def places(sizes: Sequence[int], reach: Sequence[int], stride: Sequence[int]) -> list[int]:
    """How many windows fit, dimension by dimension."""
    expect(all(r <= size for r, size in zip(reach, sizes, strict=True)), f"windows of {list(reach)} over {sizes}")
    return [(size - r) // s + 1 for size, r, s in zip(sizes, reach, stride, strict=True)]


def axis_of(shape: Shape, a: Attributes) -> int:
    """Index of an axis in a shape without the batch."""
    expect(a["axis"] <= len(shape), f"axis {a['axis']} of values of shape {shape}")
    return int(a["axis"]) - 1


def broadcast(one: Shape, other: Shape) -> Shape:
    """The shape of two values that meet, of which one may be repeated where it has size 1."""
    fits = len(one) == len(other) and all(m == n or 1 in (m, n) for m, n in zip(one, other, strict=True))
    expect(fits, f"values of shapes {one} and {other}")
    return tuple(itertools.starmap(max, zip(one, other, strict=True)))
