"""Raw arrays -> tensors: what a `.npz` file may hold, which numbers are inputs, which labels go with which task."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.datasets import Arrays
from pyro_compress.data.labels import read_labels, texts
from pyro_compress.data.positions import check_one_input, position_labels, tokens_in, without_lengths, yes_or_no
from pyro_compress.data.streaming import ArrayFile, Streamed, scaled
from pyro_compress.foreign import ordinary
from pyro_compress.inputs import BYTES, Input, inputs_in, packed, scale_of, slices
from pyro_compress.settings import ReadConfig
from pyro_compress.types import PER_POSITION, Preprocessing

log = logging.getLogger(__name__)

CHUNK_VALUES = 1 << 22
COLOURS = (1, 3, 4)
"""How many channels images have, most of them."""
LARGE = 100
"""Inputs beyond this train badly; so do bytes of which only a tenth is used."""
VALIDATION = ("validation", "val", "valid")
"""Names of the arrays that hold a validation split, where a file brings one along."""
Y = ("y", "y_train", "y_test", *(f"y_{name}" for name in VALIDATION))
"""Names of arrays of labels."""


def load_npz(path: Path, task: str = "classification", takes: tuple[Input, ...] = ()) -> Arrays:
    """Read `x_train`, `y_train`, `x_test`, `y_test` from a `.npz` file, with `classes`, `x_val`, `y_val` if given.

    Args:
        path: the file.
        task: says what stands for labels.
        takes: of several inputs those that a network is known to take.
    """
    arrays, labels = with_labels(read_npz(path), path)
    arrays, inputs = joined(arrays, path, takes)
    arrays = completed(arrays, task, path, inputs) | labels
    names = ("x_train", "y_train", "x_test", "y_test")
    x_train, y_train, x_test, y_test = wanted(arrays, names, path)
    own = [name for name in VALIDATION if f"x_{name}" in arrays and f"y_{name}" in arrays][:1]
    x_val, y_val = wanted(arrays, (f"x_{own[0]}", f"y_{own[0]}"), path) if own else (None, None)
    return Arrays(x_train, y_train, x_test, y_test, class_names(arrays, path), x_val, y_val, inputs=inputs)


def with_labels(arrays: dict[str, np.ndarray], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a file but labels of several outputs, `y_train.NAME`; and these: `y_train` -> arrays by name.

    Raises:
        ValueError: `y_train` beside `y_train.NAME`.
    """
    labels = dict[str, dict[str, np.ndarray]]()
    for name in [name for name in arrays if "." in name and name.partition(".")[0].lower() in Y]:
        part, _, own = name.partition(".")
        (labels.setdefault(part.lower(), {})[own],) = wanted(arrays, (name,), path)
    if both := labels.keys() & arrays.keys():
        raise ValueError(f"{path} has an array {min(both)} beside {min(both)}.NAME: one output, or several with names")
    return {name: array for name, array in arrays.items() if name.partition(".")[0].lower() not in labels}, labels


def joined(
    arrays: dict[str, np.ndarray], path: Path, known: tuple[Input, ...] = ()
) -> tuple[dict[str, np.ndarray], tuple[Input, ...]]:
    """The arrays of a file with several inputs, `x_train.NAME`, one per part: `x_train`; and what lies in a row.

    Bytes (uint8) are divided by 255, whole numbers of other types are tokens, everything else is taken as it is.
    Where a network is `known` to take some, those have to be there, and their scales count.

    Raises:
        ValueError: parts with other inputs, `x_train` beside `x_train.NAME`, arrays that do not fit each other.
    """
    parts = dict[str, dict[str, np.ndarray]]()
    for name in [name for name in arrays if "." in name and name.partition(".")[0].lower().startswith("x")]:
        part, _, own = name.partition(".")
        (array,) = wanted(arrays, (name,), path)
        if array.ndim < 2 or array.dtype.kind not in "biuf":
            raise ValueError(f"{path}: {name} is {array.dtype} of shape {array.shape}; wanted are numbers (n, ...)")
        parts.setdefault(part.lower(), {})[own] = array
    if both := parts.keys() & arrays.keys():
        raise ValueError(f"{path} has an array {min(both)} beside {min(both)}.NAME: one input, or several with names")
    if known and not parts:
        raise ValueError(f"{path} needs arrays x.{known[0].name}, ...; it holds {', '.join(arrays)}")
    if not parts:
        return arrays, ()
    first = parts.get("x_train") or next(iter(parts.values()))
    inputs = tuple(_scaled(one, first) for one in known) or inputs_in(first)
    rows = {part: packed(found, inputs, f"{path}: {part}") for part, found in parts.items()}
    return {name: array for name, array in arrays.items() if "." not in name} | rows, inputs


def _scaled(one: Input, arrays: dict[str, np.ndarray]) -> Input:
    """An input with the scale of its array, where an earlier version did not write it down."""
    unknown = one.kind == "float32" and not one.scale and one.name in arrays
    return replace(one, scale=scale_of(arrays[one.name])) if unknown else one


def completed(
    arrays: dict[str, np.ndarray], task: str, path: Path, inputs: Sequence[Input] = ()
) -> dict[str, np.ndarray]:
    """The arrays of a file with what a task makes of them.

    The next tokens are those of the same sequences one further on, where no `y` says otherwise; labels beyond
    `lengths` count for nothing; what is reconstructed needs no `y`.

    Raises:
        ValueError: next tokens of several `inputs`; lengths that do not fit.
    """
    for name in [name for name in arrays if name == "x" or name.startswith("x_")]:
        x, label, lengths = arrays[name], f"y{name[1:]}", f"lengths{name[1:]}"
        if label not in arrays and task == "next-token" and x.ndim == 2 and x.shape[1] > 1:
            check_one_input(inputs, path)
            arrays |= {name: x[:, :-1], label: x[:, 1:]}
        if label not in arrays and task == "reconstruction":
            arrays[label] = x
        if lengths in arrays and label in arrays and task in PER_POSITION:
            arrays[label] = without_lengths(arrays[label], arrays[lengths], f"{path}: {lengths}")
    return arrays


def wanted(arrays: dict[str, np.ndarray], names: Sequence[str], path: Path) -> list[np.ndarray]:
    """Arrays by name.

    Raises:
        ValueError: one is not there, or holds Python objects.
    """
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path} has no array {', '.join(missing)}; it holds {', '.join(arrays)}")
    if hidden := [name for name in names if isinstance(arrays[name], np.ndarray) and arrays[name].dtype == object]:
        raise ValueError(
            f"{path}: array {hidden[0]} holds Python objects, and nothing is unpickled; store numbers, or text as "
            f"{hidden[0]}.astype(str)"
        )
    return [arrays[name] for name in names]


def class_names(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    """Names of the classes that a file gives; none where it gives none."""
    if "classes" not in arrays:
        return ()
    (found,) = wanted(arrays, ("classes",), path)
    return tuple(str(name) for name in texts(np.atleast_1d(found), f"{path}: classes"))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file, under names in lower case; nothing is unpickled, an array of objects comes empty."""
    if not ordinary(path).is_file():
        raise ValueError(f"{path}: no such file")
    if not _is_zip(path):  # numpy would take it for a pickle, and offer to load it
        raise ValueError(f"{path} is no .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            lower = {name: name if "." in name or name.lower() in archive else name.lower() for name in archive}
            names = {key: name for name, key in lower.items()}
            found = {name: _array(archive, stored) for name, stored in names.items()}
    except Exception as error:  # what is damaged or foreign fails in many ways
        raise ValueError(f"{path} is no readable .npz file: {error}") from error
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}  # others come as bytes


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # parts of a larger one
        return False


def _array(archive: Any, name: str) -> np.ndarray | bytes:
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            return np.empty(0, object)
        raise


def inputs(x: Any, what: str, scale: float, reading: ReadConfig) -> Any:
    """Check examples and turn them into a float32 tensor; a missing dimension of channels is added.

    Args:
        x: an array, or what stays on disk.
        what: names the array in messages.
        scale: what whole numbers are divided by.
        reading: whether arrays are series.

    Raises:
        ValueError: no real numbers, NaN or infinite ones, raw values where scaled ones belong.
    """
    if reading.tokens:
        return tokens_in(x, what, reading)
    if isinstance(x, Streamed):
        _check_file(x, what)
        return x.divided(scale)
    _check_type(x, what)
    values = scaled(x).numpy()
    check_finite([values], what)
    if x.dtype.kind in "iu" and scale != 1:
        values /= scale
    if scale != 1 and not 0 <= values.min() <= values.max() <= 1:
        raise ValueError(
            f"{what}: values from {x.min():g} to {x.max():g}, but this network takes integers from 0 to {scale:g}, "
            "or floats already divided by that"
        )
    return torch.from_numpy(values.reshape(len(values), *reading.example_shape(values.shape[1:])))


def _check_type(x: np.ndarray, what: str) -> None:
    if x.ndim < 2 or x.dtype.kind not in "biuf":
        raise ValueError(f"{what}: examples must be real numbers of shape (n, ...), got {x.dtype} of shape {x.shape}")
    if not len(x):
        raise ValueError(f"{what}: no examples")
    if not x.size:
        raise ValueError(f"{what}: examples of shape {x.shape[1:]} hold no values")


def _check_file(x: Streamed, what: str) -> None:
    """What stays on disk as one array is looked through once; images are checked as they are read."""
    if isinstance(x.source, ArrayFile) and len(x):
        _check_type(x.source.mapped, what)
        if x.source.mapped.dtype.kind == "f":
            check_finite((scaled(part).numpy() for part in _chunks(x.source)), what)


def _chunks(source: ArrayFile) -> Any:
    rows = max(CHUNK_VALUES // max(int(np.prod(source.shape)), 1), 1)
    return (source.mapped[start : start + rows] for start in range(0, len(source), rows))


def check_finite(parts: Any, what: str) -> None:
    """Refuse values that are no finite float32, with the place of the first.

    Raises:
        ValueError: as said.
    """
    broken, first, seen = 0, "", 0
    for part in parts:
        if not (finite := np.isfinite(part)).all():
            row, *place = (int(i[0]) for i in np.nonzero(~finite))
            where = f"column {place[0] + 1}" if len(place) == 1 else f"place {tuple(i + 1 for i in place)}"
            first = first or f"row {seen + row + 1}" + (f", {where}" if place else "")
            broken += int((~finite).sum())
        seen += len(part)
    if broken:
        raise ValueError(
            f"{what}: {broken} values are NaN or infinite (or too large for float32), the first in {first}"
        )


def input_scale(arrays: Arrays) -> float:
    """What whole numbers are divided by: 255 where they are bytes, unless these only say yes and no.

    Raises:
        ValueError: parts of different types, of which only some would be divided.
    """
    if arrays.scale:
        return arrays.scale
    parts = [x for x in (arrays.x_train, arrays.x_validation, arrays.x_test) if x is not None and len(x)]
    if not parts:
        return 1.0
    types = [x.source.read(int(x.rows[0])).dtype if isinstance(x, Streamed) else x.dtype for x in parts]
    bytes_ = [x for x, dtype in zip(parts, types, strict=True) if dtype == np.uint8]
    if not any(_exceeds(x, 1) for x in bytes_):
        return 1.0
    if types[0] != np.uint8:
        raise ValueError(f"training examples are {types[0]}, others bytes to be divided by 255; store one type")
    return BYTES


def scale_for(x: np.ndarray, known: Preprocessing, reading: ReadConfig) -> float:
    """What whole numbers of examples are divided by, which a network of which so much is known is given."""
    return 1.0 if reading.tokens else known.scale or input_scale(Arrays(x, x, x, x))


def _exceeds(x: Any, bound: int) -> bool:
    """Whether any value is larger; of files no more is read than needed."""
    if isinstance(x, np.ndarray):
        return bool(x.max(initial=0) > bound)
    if isinstance(x.source, ArrayFile):
        return any(part.max(initial=0) > bound for part in _chunks(x.source))
    return any(x.source.read(int(row)).max() > bound for row in x.rows)


def doubtful_inputs(x: Any, scale: float, several: Sequence[Input] = ()) -> list[str]:
    """What is doubtful about the range and the layout of training examples that are held in memory.

    Args:
        x: the examples.
        scale: what whole numbers were divided by.
        several: of several inputs what lies in a row; those of numbers are looked at one by one.
    """
    if not isinstance(x, Tensor):
        return []
    if several:
        numbers = [
            (one, x[:, where]) for one, where in zip(several, slices(several), strict=True) if one.kind == "float32"
        ]
        return [
            f"{one.name}: {text.partition(', or give --input-mean')[0]}"
            for one, part in numbers
            for text in doubtful_inputs(part.reshape(-1, *one.shape), one.scale)
        ]
    largest = float(x.abs().max())
    if x.ndim == 4 and x.shape[3] in COLOURS and x.shape[1] not in COLOURS:
        own = tuple(x.shape[1:])
        return [
            f"examples of shape {own} look like images whose colours come last; here they come first, "
            f"{own[2:] + own[:2]}: transpose them, as in np.moveaxis(x, -1, 1)"
        ]
    if float(x.min()) == float(x.max()):
        return ["all inputs are the same number: they say nothing"]
    if scale == 1 and largest > LARGE:
        return [
            f"inputs reach {largest:g} and are taken as they are; networks learn from values around 1: divide them "
            "beforehand, or give --input-mean and --input-std"
        ]
    if scale == BYTES and largest * BYTES < BYTES / 10:
        return [f"bytes of at most {largest * BYTES:.0f} are divided by 255; where they are no images, store floats"]
    return []


def _class_labels(y: np.ndarray, what: str) -> Any:
    return read_labels(y, what)


def _target_values(y: np.ndarray, what: str) -> Tensor:
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or y.dtype.kind not in "biuf":
        raise ValueError(
            f"{what}: targets must be finite numbers of shape (n,) or (n, targets), got {y.dtype} {y.shape}"
        )
    check_finite([y], what)
    return torch.from_numpy(y.astype(np.float64))


LABELS: dict[str, Callable[[np.ndarray, str], Any]] = {
    "classification": _class_labels,
    "regression": _target_values,
    "next-token": position_labels,
    "tagging": position_labels,
    "segmentation": position_labels,
    "multi-label": yes_or_no,
    "reconstruction": lambda y, what: y,
}
"""Task -> (array, what it is) -> labels, or targets `(n, targets)` still in their own units."""
