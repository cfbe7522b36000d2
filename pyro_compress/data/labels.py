"""Labels as people have them -> class numbers, and the names that these stand for.

A class is known by its name: `7` for the whole number 7, however it is stored, `True` for a bool, a text as it is. The
names travel with the network, in the order of its outputs, so that other data with the same labels find their outputs.
To read another kind of array, add a row to `KINDS`.
"""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_compress.doubts import doubt

log = logging.getLogger(__name__)

IGNORED = (-100, -1, 255)
"""Numbers that often mark examples without a class."""
MISSING = ("na", "n/a", "nan", "null", "none", "-", "?", "#n/a", "missing", "unknown", "<na>")
"""Words that often mean that there is nothing; as categories and classes they are taken, and said."""
WHOLE = re.compile("-?[0-9]+")
LISTED = 10
"""So many names stand in a message."""
BOOLS = ("False", "True")
LAST_LETTER = 0x10FFFF
"""Of Unicode."""


@dataclass(frozen=True)
class Labels:
    """Labels of one array.

    Attributes:
        names: of the different ones, in order.
        rows: the place among `names` of every example, `(n,)` int64.
        kind: `number`, `name`, `bool`, or `place` where the array itself says which output is meant.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    kind: str


def read_labels(y: np.ndarray, what: str, fractions: bool = False) -> Labels:
    """Labels of an array `(n,)` or `(n, 1)`, or `(n, classes)` where every row has a single 1.

    Args:
        y: whole numbers of any type, bools or texts.
        what: names the array in messages.
        fractions: numbers with decimals are labels too.

    Raises:
        ValueError: no labels: missing ones, numbers to predict, several classes per example.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.dtype.kind in "biuf":
        return _one_hot(y, what)
    if y.ndim != 1 or y.dtype.kind not in KINDS:
        raise ValueError(
            f"{what}: labels must be whole numbers or names of shape (n,), or one-hot (n, classes), got {y.dtype} of "
            f"shape {y.shape}"
        )
    values, kind = KINDS[y.dtype.kind](y, what, fractions)
    different, rows = np.unique(values, return_inverse=True)
    names = tuple(BOOLS[int(one)] if kind == "bool" else name_of(one) for one in different)
    return Labels(names, rows.reshape(-1).astype(np.int64), kind)


def name_of(value: Any) -> str:
    """Name of a label: a text as it is, a whole number without a decimal point."""
    if isinstance(value, str):
        return str(value)
    return str(int(value)) if float(value).is_integer() else f"{float(value):.15g}"


def _one_hot(y: np.ndarray, what: str) -> Labels:
    if (strange := np.flatnonzero(~np.isin(y, (0, 1)).all(1))).size:
        raise ValueError(
            f"{what}: labels of shape {y.shape} must be one-hot, row {strange[0] + 1} is not; for numbers to predict "
            "use --task regression"
        )
    if (several := np.flatnonzero(y.astype(np.int64).sum(1) != 1)).size:
        marked = int(y[several[0]].astype(np.int64).sum())
        raise ValueError(f"{what}: row {several[0] + 1} has {marked} classes; classification needs one per example")
    return Labels(tuple(str(i) for i in range(y.shape[1])), y.argmax(1).astype(np.int64), "place")


def _whole(y: np.ndarray, what: str, fractions: bool) -> tuple[np.ndarray, str]:
    return y, "bool" if y.dtype.kind == "b" else "number"


def _floats(y: np.ndarray, what: str, fractions: bool) -> tuple[np.ndarray, str]:
    if (missing := ~np.isfinite(y)).any():
        row = int(missing.argmax()) + 1
        raise ValueError(f"{what}: {int(missing.sum())} labels are NaN or infinite, the first in row {row}")
    y = y.astype(np.float64)
    if (parts := y % 1 != 0).any() and not fractions:
        row = int(parts.argmax())
        raise ValueError(
            f"{what}: labels must be whole numbers or names, row {row + 1} has {y[row]:g}; for numbers to predict use "
            "--task regression"
        )
    return y, "number"


def _texts(y: np.ndarray, what: str, fractions: bool) -> tuple[np.ndarray, str]:
    if (missing := np.char.strip(y) == "").any():
        row = int(missing.argmax()) + 1
        raise ValueError(f"{what}: {int(missing.sum())} labels are empty, the first in row {row}")
    return y, "name"


def _encoded(y: np.ndarray, what: str, fractions: bool) -> tuple[np.ndarray, str]:
    return _texts(texts(y, what), what, fractions)


def texts(values: np.ndarray, what: str) -> np.ndarray:
    """Text of an array of bytes in UTF-8; other arrays as they are, if text is text."""
    if values.dtype.kind == "U" and (beyond := values.astype("<U").view("<u4") > LAST_LETTER).any():
        raise ValueError(f"{what}: {int(beyond.sum())} characters are none (damaged)")
    if values.dtype.kind != "S":
        return values
    try:
        return np.char.decode(values, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: text must be in UTF-8: {error}") from error


KINDS: dict[str, Callable[[np.ndarray, str, bool], tuple[np.ndarray, str]]] = {
    "b": _whole,
    "i": _whole,
    "u": _whole,
    "f": _floats,
    "U": _encoded,
    "S": _encoded,
}
"""Kind of a numpy type -> (array, what, fractions) -> sortable labels, and what kind they are."""


def named(labels: Labels, declared: Sequence[str], what: str) -> Labels:
    """Labels by the names that the data declare for them; as they are, where they declare none.

    Raises:
        ValueError: a name stands there twice, or a label is none of them.
    """
    if not declared:
        return labels
    if twice := [name for name in declared if list(declared).count(name) > 1]:
        raise ValueError(f"{what}: class name {twice[0]!r} stands there twice")
    rows = _by_number(labels, len(declared))
    if rows is None and labels.kind == "number" and not set(labels.names) & set(declared):
        raise ValueError(
            f"{what}: labels from {labels.names[0]} to {labels.names[-1]}, but there are {len(declared)} class names, "
            f"for labels from 0 to {len(declared) - 1}"
        )
    if rows is None:
        rows = places(labels, declared, what, "the class names are", by_number=False)
    return Labels(tuple(declared), rows, "name")


def _by_number(labels: Labels, classes: int) -> np.ndarray | None:
    """Labels that are places among so many classes; None where they are not."""
    if labels.kind == "place":
        return labels.rows if len(labels.names) == classes else None
    numbers = [_number(name) for name in labels.names]
    if labels.kind == "name" or not all(0 <= number < classes for number in numbers):
        return None
    return np.array(numbers, np.int64)[labels.rows]


def places(
    labels: Labels, classes: Sequence[str], what: str, whose: str = "the network knows", by_number: bool = True
) -> np.ndarray:
    """Which of the classes every example belongs to, `(n,)` int64: by name, or by number where classes have names.

    Args:
        labels: of the examples.
        classes: names in the order of the outputs.
        what: names the array in messages.
        whose: says in messages whose classes these are.
        by_number: numbers are places among classes whose names are no numbers.

    Raises:
        ValueError: a label that is none of them.
    """
    number = {name: index for index, name in enumerate(classes)}
    names = [_other_name(name, number) for name in labels.names]
    named_otherwise = by_number and not _numbers(classes) and not any(name in number for name in names)
    if (labels.kind == "place" or named_otherwise) and (rows := _by_number(labels, len(classes))) is not None:
        return rows
    if unknown := [index for index, name in enumerate(names) if name not in number]:
        row = int((labels.rows == unknown[0]).argmax()) + 1
        raise ValueError(f"{what} holds class {labels.names[unknown[0]]!r} (row {row}); {whose} {listed(classes)}")
    return np.array([number[name] for name in names], np.int64)[labels.rows]


def _other_name(name: str, number: dict[str, int]) -> str:
    """A bool stands for 0 or 1, and the other way round, where only one of both is known; 01 for 1 likewise."""
    if name not in number and _numbers([name]) and str(int(name)) in number:
        return str(int(name))
    pairs = dict(zip((*BOOLS, "0", "1"), ("0", "1", *BOOLS), strict=True))
    return pairs[name] if name not in number and pairs.get(name) in number and set(number) <= set(pairs) else name


def _numbers(names: Sequence[str]) -> bool:
    return all(WHOLE.fullmatch(name) for name in names)


def _number(name: str) -> int:
    return BOOLS.index(name) if name in BOOLS else int(name) if _numbers([name]) else -1


def reordered(names: Sequence[str], classes: Sequence[str], what: str) -> list[int]:
    """Place among a network's classes of each class of other data.

    Data with as many classes of quite other names are taken in their order, and that is said.

    Raises:
        ValueError: a class that the network does not know.
    """
    labels = Labels(tuple(names), np.arange(len(names)), "number" if _numbers(names) else "name")
    number = {name: index for index, name in enumerate(classes)}
    known = [name for name in names if _other_name(name, number) in number]
    if not known and len(names) == len(classes) and labels.kind == "name":
        doubt(log, f"{what}: its classes {listed(names)} are taken for {listed(classes)}, in this order")
        return list(range(len(names)))
    return [int(place) for place in places(labels, classes, what)]


def listed(names: Sequence[str]) -> str:
    """Names for a message, not more than `LISTED`."""
    more = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def doubts(labels: Labels) -> list[str]:
    """What is doubtful about the labels of a training set."""
    return [*_apart(labels), *_void(labels), *_alike(labels.names)]


def _apart(labels: Labels) -> list[str]:
    """Whole numbers with a gap of more than there are classes, or one that often means that there is no class."""
    if labels.kind != "number" or not _numbers(labels.names) or len(labels.names) < 2:
        return []
    numbers = [int(name) for name in labels.names]
    gap = max(b - a for a, b in itertools.pairwise(numbers))
    marks = [n for n, near in ((numbers[0], numbers[1]), (numbers[-1], numbers[-2])) if _marks(n, near)]
    hint = f"; if {marks[0]} marks examples to ignore, leave these out" if marks and len(numbers) > 2 else ""
    if gap <= len(numbers) and not hint:
        return []
    return [f"labels from {numbers[0]} to {numbers[-1]} are {len(numbers)} classes, {listed(labels.names)}{hint}"]


def _marks(number: int, near: int) -> bool:
    return number in IGNORED and (number < 0 or abs(number - near) > 1)


def _void(labels: Labels) -> list[str]:
    """Texts that may be no class, but the mark of a missing one."""
    if labels.kind != "name" or not (found := [name for name in labels.names if name.strip().casefold() in MISSING]):
        return []
    return [f"label {found[0]!r} is taken as a class of its own; if it marks missing labels, leave these examples out"]


def _alike(names: Sequence[str]) -> list[str]:
    """Names that differ in case, in spaces or in how accents are stored."""
    first = dict[str, str]()
    for name in names:
        key = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        if (other := first.setdefault(key, name)) != name:
            return [f"classes {other!r} and {name!r} are two classes; if they are the same, give them one name"]
    return []
