"""Labels of every position, several labels of yes or no, inputs as their own targets: raw arrays -> splits' tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.preprocessing import numbered
from pyro_compress.data.streaming import Streamed
from pyro_compress.data.tasks import IGNORED
from pyro_compress.inputs import Input
from pyro_compress.settings import ReadConfig
from pyro_compress.types import PER_POSITION, Data

MOST_CLASSES = 1 << 16
"""Labels beyond this are no numbers of classes."""


def position_labels(y: np.ndarray, what: str) -> Tensor:
    """Labels `(n, *positions)` as whole numbers, those that say "none" among them.

    Raises:
        ValueError: something else.
    """
    if y.ndim < 2 or y.dtype.kind not in "biu":
        raise ValueError(
            f"{what}: a class per position is wanted, whole numbers of shape (n, length) or (n, height, width); got "
            f"{y.dtype} of shape {y.shape}"
        )
    return torch.from_numpy(y.astype(np.int64))


def yes_or_no(y: np.ndarray, what: str) -> Tensor:
    """Labels `(n, labels)` of 0 and 1 as float32.

    Raises:
        ValueError: something else.
    """
    if y.ndim != 2 or y.dtype.kind not in "biuf" or not y.shape[1]:
        raise ValueError(f"{what}: labels of 0 and 1 (n, labels) are wanted; got {y.dtype} of shape {y.shape}")
    if not np.isin(y, (0, 1)).all():
        strange = y[~np.isin(y, (0, 1))].flat[0]
        raise ValueError(f"{what}: every label is 0 or 1 (no or yes); there is a {strange:g}")
    return torch.from_numpy(y.astype(np.float32))


def tokens_in(x: Any, what: str, reading: ReadConfig) -> Tensor:
    """Tokens `(n, length)`.

    Raises:
        ValueError: no whole numbers of this many kinds.
    """
    if isinstance(x, Streamed):
        raise ValueError(f"{what}: tokens are held in memory: allow it with --in-memory-mib")
    if x.ndim != 2 or x.dtype.kind not in "iu" or not x.size:
        raise ValueError(
            f"{what}: --tokens {reading.tokens} means whole numbers (n, length); got {x.dtype} of shape {x.shape}"
        )
    least, most = int(x.min()), int(x.max())
    if least < 0 or most >= reading.tokens:
        raise ValueError(
            f"{what}: tokens from {least} to {most}, but --tokens {reading.tokens} allows 0 to {reading.tokens - 1}"
        )
    return torch.from_numpy(x.astype(np.int64))


def masked(x: Tensor, y: Tensor, what: str, reading: ReadConfig, several: Sequence[Input] = ()) -> Tensor:
    """Labels of positions, `IGNORED` where there is none: by their own value, or because the input is padding.

    Args:
        x: inputs; of tokens `(n, length)`, otherwise with channels before the positions.
        y: labels `(n, *positions)`.
        what: names the labels in messages.
        reading: which label and which token say so.
        several: of several inputs what lies in a row of `x`; one of them at least has these positions, first or last
            in its shape.

    Raises:
        ValueError: other positions than the inputs have; padding or next tokens of several inputs.
    """
    if reading.task == "next-token":
        check_one_input(several, what)
    given, positions = tuple(y.shape[1:]), tuple(x.shape[1 if reading.tokens else 2 :])
    if several and not any(given in (one.shape[: len(given)], one.shape[-len(given) :]) for one in several):
        shapes = ", ".join(f"{one.name} {one.shape}" for one in several)
        raise ValueError(f"{what}: labels of positions {given}; no input has these in its shape: {shapes}")
    if several and reading.pad >= 0:
        raise ValueError(f"{what}: --pad goes with one input; of several, label what is filled up -100")
    if not several and given != positions:
        raise ValueError(f"{what}: labels of positions {given}; inputs of shape {tuple(x.shape[1:])} have {positions}")
    if reading.ignore >= 0:
        y = y.masked_fill(y == reading.ignore, IGNORED)
    if reading.pad >= 0 and reading.tokens:
        padding = x == reading.pad if reading.task != "next-token" else y == reading.pad
        y = y.masked_fill(padding, IGNORED)
    return y


def check_counting(reading: ReadConfig, what: object) -> None:
    """Refuse before a fit what says which positions count where nothing would ask for it.

    Raises:
        ValueError: padding or a label of no class, and no class per position; padding of what is no tokens.
    """
    found = {"--pad": reading.pad, "--ignore": reading.ignore}
    if reading.task not in PER_POSITION and (given := [name for name, value in found.items() if value >= 0]):
        raise ValueError(
            f"{what}: {', '.join(given)} goes with a class per position ({', '.join(PER_POSITION)}), not with "
            f"{reading.task}, of which every example counts; leave it out"
        )
    if reading.pad >= 0 and not reading.tokens:
        raise ValueError(
            f"{what}: --pad is a token of an array, whole numbers (n, length) with --tokens N; here are none: "
            "leave it out"
        )


def check_one_input(several: Sequence[Input], what: object) -> None:
    """Refuse next tokens of several inputs, of which nobody says whose they are.

    Raises:
        ValueError: there are several.
    """
    if several:
        names = ", ".join(one.name for one in several)
        raise ValueError(
            f"{what}: next-token goes with one input of tokens, and there are {names}; give --task tagging, with the "
            "next tokens (n, length) as labels"
        )


def position_classes(
    labels: dict[str, Tensor], declared: Sequence[str], known: Sequence[str], reading: ReadConfig
) -> tuple[str, ...]:
    """Names of the classes of positions: given, or numbered up to the largest of the training labels.

    Args:
        labels: by what they are called in messages; the first are the training set's.
        declared: names that the data give.
        known: those of the network that the data are for.
        reading: as above.

    Raises:
        ValueError: labels beyond the classes, or none at all.
    """
    train = next(iter(labels.values()))
    names = tuple(known) or tuple(declared)
    if reading.task == "next-token" and reading.tokens:
        names = names or numbered(reading.tokens)
    names = names or numbered(min(int(train.max()), MOST_CLASSES) + 1)
    for what, y in labels.items():
        check_labels(y, len(names), what)
    if len(names) < 2:
        raise ValueError(f"{next(iter(labels))} holds one class: there is nothing to tell apart")
    return names


def check_labels(y: Tensor, classes: int, what: str) -> None:
    """Refuse labels that are no class, and none but such that say "none".

    Raises:
        ValueError: says which.
    """
    given = y[y != IGNORED]
    if not len(given):
        raise ValueError(f"{what}: no position has a label")
    if int(given.min()) < 0 or int(given.max()) >= classes:
        raise ValueError(
            f"{what}: labels from {int(given.min())} to {int(given.max())}, but there are {classes} classes, from 0 to "
            f"{classes - 1}; a label that says there is none is -100, or named with --ignore"
        )


def own_targets(x: Any, what: str) -> Data:
    """Inputs that are their own targets.

    Raises:
        ValueError: they stay on disk.
    """
    if isinstance(x, Streamed):
        raise ValueError(f"{what}: what is reconstructed is held in memory: allow it with --in-memory-mib")
    return Data(x, x)


def without_lengths(y: np.ndarray, lengths: np.ndarray, what: str) -> np.ndarray:
    """Labels `(n, length)`, those beyond the length of their sequence `IGNORED`.

    Raises:
        ValueError: lengths that do not fit.
    """
    if y.ndim != 2 or lengths.shape != y.shape[:1] or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"{what}: a length per sequence is wanted, whole numbers of shape (n,), beside labels (n, length); got "
            f"{lengths.dtype} of shape {lengths.shape} beside {y.shape}"
        )
    if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= y.shape[1]:
        raise ValueError(f"{what}: lengths from {lengths.min()} to {lengths.max()} in sequences of {y.shape[1]}")
    return np.where(np.arange(y.shape[1]) < lengths[:, None].astype(np.int64), y.astype(np.int64), IGNORED)
