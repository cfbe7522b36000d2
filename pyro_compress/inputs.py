"""Several named inputs, packed into one row of float32 per example.

A network that reads an image and a list of tokens reads them here one behind the other, in the order of their names:
that way everything that feeds, prunes, codes and exports networks has one array to do with. The graph cuts the row up
again, turns numbers of tokens back into whole numbers, and says which inputs lie in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_compress.outputs import NAME

MOST = 64
"""Inputs of one network."""
KINDS = ("float32", "int64", "bool")
"""Types of inputs that are packed."""
EXACT = 1 << 24
"""Largest whole number up to which float32 holds every one."""
BYTES = 255.0
"""What bytes are divided by."""
SCALES = (1e-30, 1e30)
"""Least and largest value that whole numbers may be divided by."""


@dataclass(frozen=True)
class Input:
    """One of several inputs.

    Attributes:
        name: of the parameter of `forward` that takes it.
        shape: of one example.
        kind: type of its values, one of `KINDS`.
        scale: of numbers, the raw value that becomes 1.0; 1 where they are taken as they are; 0: nobody said, as in
            files of earlier versions, and bytes are divided by 255.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "float32"
    scale: float = field(default=0.0, compare=False)

    @property
    def size(self) -> int:
        """Values of one example."""
        return math.prod(self.shape)

    @property
    def spelled(self) -> list[Any]:
        """As JSON values, which `inputs_of` reads."""
        return [self.name, list(self.shape), self.kind, *([self.scale] if self.scale else [])]


def inputs_of(given: Any) -> tuple[Input, ...]:
    """Inputs from what JSON or a user says of them, in the order of their names.

    Args:
        given: `{name: shape}`, `{name: (shape, kind)}` or `{name: (shape, kind, scale)}`, or a list of
            `[name, shape, kind]`, with a scale behind it where one is known.

    Raises:
        ValueError: names that are none, shapes, types or scales that no input may have, or too many.

    Examples:
        >>> [one.spelled for one in inputs_of({"tokens": ((5,), "int64"), "image": ((1, 8, 8), "float32", 255.0)})]
        [['image', [1, 8, 8], 'float32', 255.0], ['tokens', [5], 'int64']]
    """
    if isinstance(given, Mapping):
        given = [(name, *(of if _has_kind(of) else (of, "float32"))) for name, of in sorted(given.items())]
    if not isinstance(given, list | tuple) or len(given) > MOST:
        raise ValueError(f"inputs are at most {MOST}, each with a name, a shape and a type")
    found = []
    for one in given:
        if not isinstance(one, list | tuple) or len(one) not in (3, 4):
            raise ValueError("an input is a name, a shape and a type, with a scale where one is known")
        name, shape, kind, scale = (*one, 0.0)[:4]
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
        if type(scale) not in (int, float) or not (scale == 0 or SCALES[0] <= scale <= SCALES[1]):
            raise ValueError(f"input {name} is divided by {scale!r:.30}; a scale is a positive number, or 0 for none")
        found.append(Input(name, tuple(shape), kind, float(scale) if kind == "float32" else 0.0))
    names = [one.name for one in found]
    if names != sorted(set(names)):
        raise ValueError(f"inputs {', '.join(names)}: every name once, in their order")
    return tuple(found)


def _has_kind(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) in (2, 3) and isinstance(given[1], str)


def inputs_in(arrays: Mapping[str, np.ndarray]) -> tuple[Input, ...]:
    """What arrays `(n, *shape)` by name are as inputs: their shapes, types and scales.

    Raises:
        ValueError: as `inputs_of`.
    """
    return inputs_of({name: (array.shape[1:], kind_of(array), scale_of(array)) for name, array in arrays.items()})


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
    """Rows `(n, values)`, float32, of arrays `(n, *shape)` by name, whole numbers divided by the scale of their input.

    Args:
        arrays: one per input.
        inputs: what the network takes.
        what: names the data in messages.

    Raises:
        ValueError: an array is missing or one too many, another shape, another number of examples, a value that is
            none or that float32 does not hold, raw values where scaled ones belong.
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
        if array.dtype.kind not in {"float32": "biuf", "int64": "iu", "bool": "b"}[one.kind]:
            raise ValueError(f"{before}{one.name} is {array.dtype}; this network takes {one.kind}")
        if one.kind == "int64" and array.size and max(-int(array.min()), int(array.max())) > EXACT:
            raise ValueError(f"{before}{one.name} has whole numbers beyond {EXACT}")
        values = _scaled(array, one, before) if one.kind == "float32" else array
        rows[:, where] = values.reshape(len(array), -1)
    return rows


def _scaled(array: np.ndarray, one: Input, before: str) -> np.ndarray:
    """Numbers in the range that a network was trained on."""
    if one.scale == 1 and array.dtype == np.uint8:
        raise ValueError(
            f"{before}{one.name} is uint8, and this network was trained on other numbers, taken as they are; "
            "give it in the type and range of the training data"
        )
    scale = one.scale or scale_of(array)
    values = array / np.float32(scale) if scale != 1 and array.dtype.kind in "iu" else array
    if one.scale not in (0, 1) and values.size and not 0 <= values.min() <= values.max() <= 1:
        raise ValueError(
            f"{before}{one.name} has values from {array.min():g} to {array.max():g}; this network takes integers "
            f"from 0 to {one.scale:g}, or floats already divided by that"
        )
    return values


def kind_of(array: np.ndarray) -> str:
    """Which input an array is: whole numbers are tokens, but bytes are numbers."""
    if array.dtype.kind == "b":
        return "bool"
    return "int64" if array.dtype.kind in "iu" and array.dtype != np.uint8 else "float32"


def scale_of(array: np.ndarray) -> float:
    """What the whole numbers of an array are divided by where nothing else is known: 255 for bytes; 1: nothing."""
    return BYTES if array.dtype == np.uint8 else 1.0


def unpacked(rows: np.ndarray, inputs: Sequence[Input]) -> dict[str, np.ndarray]:
    """The arrays that `packed` made rows of, each in its own type."""
    return {
        one.name: rows[:, where].reshape(len(rows), *one.shape).astype(one.kind)
        for one, where in zip(inputs, slices(inputs), strict=True)
    }
