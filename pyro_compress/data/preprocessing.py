"""What must be known to feed a network elsewhere and to read its outputs: of splits, in a file, in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from pyro_compress.outputs import Output, Outputs
from pyro_compress.settings import STORED, ReadConfig
from pyro_compress.types import Column, Preprocessing, Quantity, Splits

NUMERALS = tuple("0123456789")
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

PREPROCESSING: dict[str, Preprocessing] = {
    "digits": Preprocessing(16.0, NUMERALS),
    "mnist": Preprocessing(255.0, tuple(f"{i} - {name}" for i, name in enumerate(DIGIT_NAMES))),
    "fashion-mnist": Preprocessing(255.0, CLOTHES),
}
"""Of the data sets that a name is enough to identify: a compressed file need not repeat it."""


def preprocessing_meta(data: str, splits: Splits) -> dict[str, Any]:
    """What a compressed file must say about its inputs and outputs beyond the data set's name."""
    if data in PREPROCESSING:
        return {}
    found: dict[str, Any] = {} if splits.scale == 1 else {"scale": splits.scale}
    if splits.columns:
        found["columns"] = [
            {"name": c.name, "categories": list(c.categories)} if c.categories else _less(c, "categories")
            for c in splits.columns
        ]
    if splits.targets:
        found["targets"] = [asdict(one) for one in splits.targets]
    if not splits.classes:
        return found
    return found | ({} if splits.classes == numbered(len(splits.classes)) else {"classes": list(splits.classes)})


def filled(known: Preprocessing, output: tuple[int, ...]) -> Preprocessing:
    """The same for a network with outputs of this shape, with classes numbered from 0 where no names are known."""
    return known if known.classes or known.targets or not output else replace(known, classes=numbered(output[0]))


def numbered(classes: int) -> tuple[str, ...]:
    """Names of classes that are numbered from 0: a file does not spell them out."""
    return tuple(str(i) for i in range(classes))


def class_names(known: Preprocessing, outputs: int, reading: ReadConfig) -> tuple[str, ...]:
    """Names of the classes of a network with so many outputs; of bytes what they are as characters."""
    names = known.classes if len(known.classes) == outputs else numbered(outputs)
    if reading.task == "next-token" and not reading.tokens and reading.vocabulary in ("", "bytes"):
        return tuple(chr(i) if i < 128 and chr(i).isprintable() else f"0x{i:02x}" for i in range(outputs))
    return names


def target_names(known: Preprocessing, outputs: int) -> tuple[Quantity, ...]:
    """The targets of a network with so many outputs; numbered, and in units of their own, where nothing is known."""
    plain = tuple(Quantity(f"target {i}") for i in range(outputs))
    return known.targets if len(known.targets) == outputs else plain


def described(outputs: Outputs, known: Preprocessing) -> Iterator[tuple[Output, tuple[str, ...], tuple[Quantity, ...]]]:
    """Each of several outputs, the names of its classes, and its targets; of both one is empty."""
    units, named = target_names(known, outputs.targets), known.classes
    named = named if len(named) == outputs.size - outputs.targets else ()
    for one, classes, targets in zip(outputs.each, outputs.of_classes(named), outputs.of_numbers(units), strict=True):
        yield one, tuple(classes) or (() if targets else numbered(one.size)), tuple(targets)


def pad_of(reading: ReadConfig) -> int:
    """The token that fills up short sequences; -1: none."""
    return reading.pad if reading.tokens else -1


def _less(column: Column, field: str) -> dict[str, Any]:
    return {key: value for key, value in asdict(column).items() if key != field}


def preprocessing_of(meta: dict[str, Any]) -> Preprocessing:
    """The preprocessing of a compressed file with this metadata; without names, classes are numbered from 0."""
    if (data := meta.get("data")) in PREPROCESSING:
        return PREPROCESSING[data]
    return Preprocessing(
        float(meta.get("scale", 1.0)),
        tuple(str(name) for name in meta.get("classes", ())),
        tuple(Column(**(one | {"categories": tuple(one.get("categories", ()))})) for one in meta.get("columns", ())),
        tuple(Quantity(**one) for one in meta.get("targets", ())),
    )


def preprocessing(splits: Splits) -> Preprocessing:
    """The preprocessing that splits went through."""
    return Preprocessing(splits.scale, splits.classes, splits.columns, splits.targets)


def reading_of(meta: dict[str, Any]) -> ReadConfig:
    """How the data of a compressed file with this metadata are read."""
    found = {name: meta[name] for name in STORED if name in meta}
    return ReadConfig(**found | {"target": tuple(meta.get("target", ()))})
