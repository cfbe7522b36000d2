"""What a network of some data has to give: class numbers with their names, targets in standard deviations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pyro_compress.data import tabular
from pyro_compress.data.labels import Labels, doubts, named, places, reordered
from pyro_compress.doubts import doubt
from pyro_compress.types import Data, Preprocessing, Quantity, Splits

log = logging.getLogger(__name__)


def splits_of(parts: Sequence[Data], classes: tuple[str, ...], **known: Any) -> Splits:
    """Training, validation and test examples with what is known of them."""
    train, validation, test = parts
    return Splits(train, validation, test, classes, **known)


def classes_of(
    labels: dict[str, Labels], declared: Sequence[str], name: str, known: Preprocessing | None
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of the classes in the order of the outputs, and the class numbers of every array.

    Args:
        labels: of every array, by what it is called in messages; the first is the training set's.
        declared: names that the data give their classes.
        name: of the data.
        known: what is known of the network that they are for.

    Raises:
        ValueError: a single class, or one that the training examples never show.
    """
    by_name = {what: named(one, declared, what) for what, one in labels.items()}
    if known and known.classes and not declared:
        return known.classes, [places(one, known.classes, what) for what, one in by_name.items()]
    first, train = next(iter(by_name.items()))
    own, shown = train.names, set(train.rows.tolist())
    if len(shown) < 2 and not known:
        raise ValueError(f"{first} holds one class, {own[min(shown)]!r}: there is nothing to tell apart")
    numbers = [places(one, own, what, f"{first} shows", by_number=False) for what, one in by_name.items()]
    if known and known.classes:
        there = np.array(reordered(own, known.classes, name), np.int64)
        return known.classes, [there[rows] for rows in numbers]
    for what, rows in zip(by_name, numbers, strict=True):
        if new := [place for place in np.unique(rows).tolist() if place not in shown]:
            row = int((rows == new[0]).argmax()) + 1
            raise ValueError(f"{what} holds class {own[new[0]]!r} (row {row}), which {first} never shows")
    absent = [f"class {one!r} has no training example" for place, one in enumerate(own) if place not in shown]
    say(name, [*doubts(labels[first] if not declared else train), *absent[:1]])
    return own, numbers


def say(name: str, doubtful: Sequence[str]) -> None:
    """Doubts about data of a name."""
    for sentence in doubtful:
        doubt(log, f"{name}: {sentence}")


def with_targets(
    parts: Sequence[Data], names: Sequence[str], name: str, known: Preprocessing | None
) -> tuple[list[Data], tuple[Quantity, ...]]:
    """Parts with targets in standard deviations of the first, the training rows, and what these are."""
    try:
        targets = known.targets if known and known.targets else ()
        targets = targets or tabular.quantities(parts[0].y.double().numpy(), names)
        return [standardized(part, targets) for part in parts], targets
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def standardized(data: Data, targets: Sequence[Quantity]) -> Data:
    """Data whose targets are in standard deviations; as they are, where there are none."""
    if not targets:
        return data
    if data.y.shape[1] != len(targets):
        raise ValueError(f"{data.y.shape[1]} targets, but the network predicts {len(targets)}")
    return Data(data.x, torch.from_numpy(tabular.standardized(data.y.double().numpy(), targets)))
