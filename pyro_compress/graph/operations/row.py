"""What an operation is, without torch: what a file may say of it, how numpy runs it, what it does to channels.

A module of this folder has one family of operations; `table.OPERATIONS` has them all. To add one, give it a row here
and one in `pyro_compress.graph.rules`, which says what torch makes of it. This folder imports numpy and itself alone,
because the folder export ships it as it stands.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

MAX_RANK = 7
"""Dimensions of a value or a tensor, the batch not counted."""
MAX_SIZE = 1 << 31
MAX_NUMBER = 3.4028234663852886e38
"""Largest float32."""
SMALLEST_NORMAL = 2.0**-126
"""Smallest float32 that is not subnormal."""
MAX_EXACT = 1 << 53
"""Largest whole number where any number is meant: those up to it are floats, too; torch takes none beyond 2^63."""
MAX_INPUTS = 1024
"""Values that one operation reads."""

Parameters = dict[str, np.ndarray]
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


BATCHES = (2, 3)
"""Numbers of examples for which shapes are inferred: what differs between the two depends on the batch."""
KINDS = ("float32", "int64", "int32", "bool", "complex64")
"""Types of values."""


class Value(NamedTuple):
    """What flows between two operations, known before anything runs.

    Most values have the examples in rows: their first dimension is the batch, or whole times as long. What is computed
    from tensors of the network alone is one row for all of them. Values of torch's own operations may be neither.

    Attributes:
        at: its shape for each of `BATCHES` examples.
        kind: its type, one of `KINDS`.
    """

    at: tuple[Shape, Shape]
    kind: str = "float32"

    @property
    def rows(self) -> int | None:
        """Rows of the first dimension for every example; 0: one for all of them; None: neither."""
        two, three = self.at
        if not two or two[1:] != three[1:]:
            return None
        if two[0] * 3 == three[0] * 2:
            return two[0] // 2
        return 0 if two[0] == three[0] == 1 else None

    @property
    def shape(self) -> Shape:
        """Shape of a row."""
        return self.at[0][1:]

    def for_batch(self, batch: int) -> Shape:
        """Its shape for so many examples: every size grows evenly with them, or not at all."""
        two, three = self.at
        return tuple(a + (batch - BATCHES[0]) * (b - a) for a, b in zip(two, three, strict=True))

    @property
    def size(self) -> int:
        """Values that an example takes."""
        return -(-math.prod(self.at[0]) // BATCHES[0]) if self.rows else math.prod(self.at[0])


def in_rows(shape: Shape, rows: int = 1, kind: str = "float32") -> Value:
    """A value with so many rows of a shape for every example; 0: one row for all."""
    return Value(((2 * rows or 1, *shape), (3 * rows or 1, *shape)), kind)


Run = Callable[..., np.ndarray]
"""`(inputs..., parameters, attributes) -> value`, where the first dimension of every value is the batch."""
Rule = Callable[[Sequence[Shape], Roles, Attributes], Made]
"""Shapes of the inputs and of the tensors by role, without the batch dimension; given attributes of the right kinds, it
computes with whole numbers alone, and raises `ValueError` where torch or numpy would refuse to run."""
Known = Callable[[Sequence[np.ndarray], Attributes], np.ndarray]
"""Value of every channel of the inputs, float64, NaN where it varies -> the same of the output."""


class Kind(NamedTuple):
    """A type of attribute: whether a value is one, and what to call it."""

    allows: Callable[[Any], bool]
    name: str


class Channels(Enum):
    """What an operation does to channels."""

    APART = "keeps them apart, wherever they lie, but for those along an axis that it names"
    BEHIND_BATCH = "keeps them apart where they are the first dimension behind the batch"
    FLATTENED = "gives values another shape, in the order that they have"
    REGROUPED = "makes other rows of the values, in the order that they have"
    MOVED = "permutes the axes"
    TAKEN = "takes entries of one axis"
    MADE = "makes new ones: a layer whose weight has the shape (out, in / groups, *kernel)"
    MADE_ACROSS = "makes new ones: a layer whose weight has the shape (in, out / groups, *kernel)"
    BEHIND = "puts those of its inputs one behind the other, where it joins them along their axis"
    GATED = "makes new ones along the last axis, each with a row in every gate of recurrent weights"
    LOOKED_UP = "makes new ones along the last axis: the columns of a table"
    MATCHED = "keeps apart what lies along axes before the last two, as heads of attention do"
    ATTENDED = "likewise, and makes means of its last input along the axis before the last"
    MIXED = "mixes or moves them"


@dataclass(frozen=True)
class Operation:
    """What belongs to an operation.

    Attributes:
        run: it in numpy.
        shape: its rule of shapes.
        inputs: fewest and most values that it reads.
        roles: of the tensors that it must have; `may` of those that it may have.
        attributes: those that it must have; `options` those that it may have.
        channels: what it does to them.
        known: what becomes of a channel that has the same value everywhere; None: the operation is run on that value.
        by_channel: whether its tensors have a first entry per channel of its output (or one for all).
        last: whether a layer reads and makes channels along the last axis, not the first behind the batch.
        affine: where, on trained weights, it is one multiplication and one addition per channel: these two, from its
            tensors by role.
        starts: role -> value at which such a tensor starts to be trained, for operations that no module of torch has.
        broadcasts: whether it takes one row for all examples beside a row for each.
        takes: types of the values that it reads; of its output, where that is another, `gives`.
        regroups: whether it makes rows of another number from its input's.
        multiplies: whether its tensors are weights, though it is no layer that makes channels.
        since: version of the format from which a file may have it.
        passed_since: version of the format from which `pcn.layout` looks back through it; None: it does not. Part of
            the format: with another number a file decodes into other weights.
    """

    run: Run
    shape: Rule
    inputs: tuple[int, int] = (1, 1)
    roles: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    attributes: Mapping[str, Kind] = field(default_factory=dict)
    options: Mapping[str, Kind] = field(default_factory=dict)
    channels: Channels = Channels.MIXED
    known: Known | None = None
    by_channel: bool = False
    last: bool = False
    affine: Callable[[Mapping[str, Any], Attributes], tuple[Any, Any]] | None = None
    starts: Mapping[str, float] = field(default_factory=dict)
    broadcasts: bool = False
    takes: tuple[str, ...] = ("float32",)
    gives: str = "float32"
    regroups: bool = False
    multiplies: bool = False
    since: int = 1
    passed_since: int | None = None


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether a JSON value is a whole number in range; true and false are none."""
    return _is_int(value) and least <= value < MAX_SIZE


def _is_int(value: Any) -> bool:
    """Whether a value is an int, one that changes with the length of sequences too."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that float32 can hold; true, infinity and NaN are none."""
    if _is_int(value):
        return bool(abs(value) <= MAX_EXACT)
    return type(value) is float and -MAX_NUMBER <= value <= MAX_NUMBER


def is_normal(value: Any) -> bool:
    """Whether a number is neither beyond float32 nor one that processors may take for 0 (a subnormal one)."""
    return is_number(value) and (value == 0 or abs(value) >= SMALLEST_NORMAL)


def _list(of: Callable[[Any], bool], least: int = 1, most: int = MAX_RANK) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(of, value))


NUMBER = Kind(is_normal, "a finite number, 0 or at least 1.2e-38")
EPSILON = Kind(lambda value: is_normal(value) and value >= 0, "a number that is not negative, 0 or at least 1.2e-38")
NUMBER_OR_NONE = Kind(
    lambda value: value is None or is_normal(value), "a finite number, 0 or at least 1.2e-38, or null"
)
BOOL = Kind(lambda value: isinstance(value, bool), "true or false")
INDEX = Kind(is_whole, "a whole number")
COUNT = Kind(lambda value: is_whole(value, 1), "a positive whole number")
AXES = Kind(_list(lambda value: is_whole(value, 1)), "a list of axes, counted from 1")
SIZES = Kind(_list(lambda value: is_whole(value, 1)), "a list of positive whole numbers")
SHAPE = Kind(_list(lambda value: is_whole(value, 1), 0), "a list of positive whole numbers")
BORDERS = Kind(_list(is_whole), "a list of whole numbers")
BORDER = Kind(_list(is_whole, 0, 2 * MAX_RANK), "a list of whole numbers, two per dimension")
PADDING = Kind(_list(_list(is_whole), 2, 2), "two lists of whole numbers")
MODE = Kind(
    lambda value: value in ("constant", "reflect", "replicate", "circular"), "constant, reflect, replicate or circular"
)


def unchanged(known: Sequence[np.ndarray], a: Attributes) -> np.ndarray:
    """Values stay, or are chosen among equal ones."""
    return known[0]


def zeros(known: Sequence[np.ndarray], a: Attributes) -> np.ndarray:
    """Only zero stays what it is."""
    return np.where(known[0] == 0, 0.0, np.nan)


def unknown(known: Sequence[np.ndarray], a: Attributes) -> np.ndarray:
    """Nothing is known of what it makes."""
    return np.full_like(known[0], np.nan)
