"""Which rows are held out: by share or by number, stratified by class, the same ones in every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyro_compress.data.datasets import SPLIT_SEED
from pyro_compress.data.streaming import Streamed
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Data

FEW_CLASSES = 20
"""With more, and one for every second row, labels may be numbers to predict."""


def rows_of(data: Data, rows: np.ndarray) -> Data:
    """Some rows of data, in memory or not."""
    index: Any = torch.from_numpy(rows)
    x: Any = data.x  # a tensor, or what stands in for one
    part: Any = x.subset(index) if isinstance(x, Streamed) else x[index]
    return Data(part, data.y[index])


def partition(y: np.ndarray, validation: float | None, reading: ReadConfig, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on: stratified by class, or at random for regression.

    Raises:
        ValueError: a share or a limit out of range, or too few rows of a class.
    """
    if validation is None:
        validation = min(max(0.1, 240 / max(len(y), 1)), 1 / 3)
    if not 0 < validation < 1:
        raise ValueError(f"validation share {validation}: allowed are values between 0 and 1")
    labels = y if reading.task == "classification" else None
    held_in, held_out = drawn(np.arange(len(y)), validation, labels, f"validation split in {name}")
    return limited(held_in, y, reading, name), held_out


def held_out(found: dict[str, Data], validation: float | None, reading: ReadConfig, name: str) -> list[Data]:
    """Training, validation and test examples, of those that the data bring: without a validation split one is drawn."""
    train = found["train"]
    if "validation" not in found:
        held_in, held_out = partition(train.y.numpy(), validation, reading, name)
        return [rows_of(train, held_in), rows_of(train, held_out), found["test"]]
    if validation is not None:
        raise ValueError(f"{name} brings its own validation split: leave out --validation {validation:g}")
    kept = limited(np.arange(len(train)), train.y.numpy(), reading, name)
    return [rows_of(train, kept) if len(kept) < len(train) else train, found["validation"], found["test"]]


def limited(rows: np.ndarray, y: np.ndarray, reading: ReadConfig, name: str) -> np.ndarray:
    """Training rows, not more than the limit."""
    if not 0 < reading.limit < len(rows):
        return rows
    labels = y[rows] if reading.task == "classification" else None
    return drawn(rows, reading.limit, labels, f"training subset in {name}")[1]


def drawn(rows: np.ndarray, size: float, labels: np.ndarray | None, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of rows, the second of a given share or number, stratified by labels; both in order."""
    from sklearn.model_selection import train_test_split

    try:
        rest, chosen = train_test_split(rows, test_size=size, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:
        stratified = "" if labels is None else "stratified "
        if labels is not None and len(np.unique(labels)) > max(FEW_CLASSES, len(labels) / 2):
            raise ValueError(
                f"no {stratified}{what}: its {len(labels)} rows have {len(np.unique(labels))} different labels; "
                "numbers are predicted with --task regression"
            ) from error
        if labels is not None and (single := _single(labels)).size:
            hint = "; numbers are predicted with --task regression" if len(np.unique(labels)) > FEW_CLASSES else ""
            raise ValueError(
                f"no {stratified}{what}: {len(single)} of its {len(np.unique(labels))} classes have a single row (the "
                f"first is row {rows[single[0]] + 1}), and every class must be in both parts; give them more rows, or "
                f"leave them out{hint}"
            ) from error
        if labels is not None and 0 < size and len(labels) * (size if size < 1 else 1) < len(np.unique(labels)):
            raise ValueError(
                f"no {stratified}{what}: {len(labels)} rows of {len(np.unique(labels))} classes are too few for a part "
                f"of {size:.3g} in which every class is; give it more rows, or hold out more of them"
            ) from error
        raise ValueError(f"no {stratified}{what} of size {size:.3g}: {error}") from error
    return np.sort(rest), np.sort(chosen)


def _single(labels: np.ndarray) -> np.ndarray:
    """Places of the labels that no other is equal to."""
    _, first, times = np.unique(labels, return_index=True, return_counts=True)
    found: np.ndarray = np.sort(first[times == 1])
    return found
