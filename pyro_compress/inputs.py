"""Several named inputs, packed into one row of float32 per example.

A network that reads an image and a list of tokens reads them here one behind the other, in the order of their names:
that way everything that feeds, prunes, codes and exports networks has one array to do with. The graph cuts the row up
again, turns numbers of tokens back into whole numbers, and says which inputs lie in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_compress.outputs import NAME

MOST = 64
"""Inputs of one network."""
KINDS = ("float32", "int64", "bool")
"""Types of inputs that are packed."""
EXACT = 1 << 24
"""Largest whole number up to which float32 holds every one."""


@dataclass(frozen=True)
class Input:
    """One of several inputs.

    Attributes:
        name: of the parameter of `forward` that takes it.
        shape: of one example.
        kind: type of its values, one of `KINDS`.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "float32"

    @property
    def size(self) -> int:
        """Values of one example."""
        return math.prod(self.shape)


def inputs_of(given: Any) -> tuple[Input, ...]:
    """Inputs from what JSON or a user says of them, in the order of their names.

    Args:
        given: `{name: shape}` or `{name: (shape, kind)}`, or a list of `[name, shape, kind]`.

    Raises:
        ValueError: names that are none, shapes or types that no input may have, or too many.

    Examples:
        >>> inputs_of({"tokens": ((5,), "int64"), "image": (1, 8, 8)})
        (Input(name='image', shape=(1, 8, 8), kind='float32'), Input(name='tokens', shape=(5,), kind='int64'))
    """
    if isinstance(given, Mapping):
        given = [(name, *(of if _is_pair(of) else (of, "float32"))) for name, of in sorted(given.items())]
    if not isinstance(given, list | tuple) or len(given) > MOST:
        raise ValueError(f"inputs are at most {MOST}, each with a name, a shape and a type")
    found = []
    for one in given:
        if not isinstance(one, list | tuple) or len(one) != 3:
            raise ValueError("an input is a name, a shape and a type")
        name, shape, kind = one
        if not isinstance(name, str) or not NAME.fullmatch(name) or name.startswith("__"):
            raise ValueError(f"an input is called {name!r:.60}; names are letters, digits and underscores")
        if kind not in KINDS:
            raise ValueError(f"input {name} of type {kind!r:.30}; allowed: {', '.join(KINDS)}")
        if (
            not isinstance(shape, list | tuple)
            or not shape
            or not all(type(n) is int and 0 < n < 1 << 31 for n in shape)
        ):
            raise ValueError(f"input {name} of shape {shape!r:.60}; a shape is one or more positive numbers")
        found.append(Input(name, tuple(shape), kind))
    names = [one.name for one in found]
    if names != sorted(set(names)):
        raise ValueError(f"inputs {', '.join(names)}: every name once, in their order")
    return tuple(found)


def _is_pair(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and isinstance(given[1], str)


def size_of(inputs: Sequence[Input]) -> int:
    """Values of one example, of all inputs."""
    return sum(one.size for one in inputs)


def slices(inputs: Sequence[Input]) -> list[slice]:
    """Where each of them lies in a row."""
    found, start = [], 0
    for one in inputs:
        found.append(slice(start, start + one.size))
        start += one.size
    return found


def packed(arrays: Mapping[str, np.ndarray], inputs: Sequence[Input], what: str = "") -> np.ndarray:
    """Rows `(n, values)`, float32, of arrays `(n, *shape)` by name.

    Args:
        arrays: one per input.
        inputs: what the network takes.
        what: names the data in messages.

    Raises:
        ValueError: an array is missing or one too many, another shape, another number of examples, a value that is
            none or that float32 does not hold.
    """
    before = f"{what}: " if what else ""
    if {*arrays} != {one.name for one in inputs}:
        wanted = ", ".join(one.name for one in inputs)
        raise ValueError(f"{before}inputs {', '.join(sorted(arrays))}; this network takes {wanted}")
    examples = {len(array) for array in arrays.values()}
    if len(examples) != 1:
        counts = ", ".join(f"{len(array)} of {name}" for name, array in arrays.items())
        raise ValueError(f"{before}every input has one row per example; got {counts}")
    rows = np.empty((*examples, size_of(inputs)), np.float32)
    for one, where in zip(inputs, slices(inputs), strict=True):
        array = np.asarray(arrays[one.name])
        if array.shape[1:] != one.shape:
            raise ValueError(f"{before}one example of {one.name} has shape {array.shape[1:]}; wanted is {one.shape}")
        if kind_of(array) != one.kind and not (one.kind == "float32" and array.dtype.kind in "biuf"):
            raise ValueError(f"{before}{one.name} is {array.dtype}; this network takes {one.kind}")
        if one.kind == "int64" and array.size and max(-int(array.min()), int(array.max())) > EXACT:
            raise ValueError(f"{before}{one.name} has whole numbers beyond {EXACT}")
        rows[:, where] = array.reshape(len(array), -1)
    return rows


def kind_of(array: np.ndarray) -> str:
    """Which input an array is: whole numbers are tokens, but bytes are numbers."""
    if array.dtype.kind == "b":
        return "bool"
    return "int64" if array.dtype.kind in "iu" and array.dtype != np.uint8 else "float32"


def unpacked(rows: np.ndarray, inputs: Sequence[Input]) -> dict[str, np.ndarray]:
    """The arrays that `packed` made rows of, each in its own type."""
    return {
        one.name: rows[:, where].reshape(len(rows), *one.shape).astype(one.kind)
        for one, where in zip(inputs, slices(inputs), strict=True)
    }
