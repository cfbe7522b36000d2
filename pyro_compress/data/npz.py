"""Raw arrays -> tensors: what a `.npz` file may hold, which labels go with which task."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.datasets import Arrays
from pyro_compress.data.streaming import Streamed
from pyro_compress.settings import Reading
from pyro_compress.types import Data


def load_npz(path: Path) -> Arrays:
    """Read `x_train`, `y_train`, `x_test`, `y_test`, and class names `classes` if given, from a `.npz` file."""
    arrays = read_npz(path)
    wanted = ("x_train", "y_train", "x_test", "y_test")
    if missing := [name for name in wanted if name not in arrays]:
        raise ValueError(f"{path} has no array {', '.join(missing)}; it holds {', '.join(arrays)}")
    classes = tuple(str(name) for name in arrays.get("classes", ()))
    return Arrays(arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"], classes)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file; nothing is unpickled."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and offer to load it
        raise ValueError(f"{path} is no .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, EOFError, KeyError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable .npz file: {error}") from error


def convert(x: Any, y: np.ndarray, what: str, scale: float | None = None, reading: Reading | None = None) -> Data:
    """Check one pair of arrays and turn it into tensors; a missing dimension of channels is added.

    Integers are divided by `scale`, bytes by 255 where it is None. What stays on disk is taken as it is.
    """
    reading = reading or Reading()
    if len(x) != len(y):
        raise ValueError(f"{what}: {len(x)} examples but {len(y)} labels")
    if not len(x):
        raise ValueError(f"{what}: no examples")
    if isinstance(x, Streamed):
        streamed: Any = x  # stands in for a tensor wherever rows are taken
        return Data(streamed, LABELS[reading.task](y, what))
    if x.ndim < 2 or not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise ValueError(f"{what}: examples must be real numbers of shape (n, ...), got {x.dtype} of shape {x.shape}")
    labels = LABELS[reading.task](y, what)
    values = x.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{what}: {int((~np.isfinite(values)).sum())} values are NaN or infinite")
    if np.issubdtype(x.dtype, np.integer) and scale is not None:
        values /= scale
    elif x.dtype == np.uint8:
        values /= 255
    if scale not in (None, 1.0) and not 0 <= values.min() <= values.max() <= 1:
        raise ValueError(
            f"{what}: values from {x.min():g} to {x.max():g}, but this network takes integers from 0 to {scale:g}, "
            "or floats already divided by that"
        )
    values = values.reshape(len(values), *reading.example_shape(values.shape[1:]))
    return Data(torch.from_numpy(values), labels)


def _class_labels(y: np.ndarray, what: str) -> Tensor:
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        hint = "; for numbers to predict use --task regression" if np.issubdtype(y.dtype, np.floating) else ""
        raise ValueError(
            f"{what}: labels must be integers 0, 1, ... of shape (n,), got {y.dtype} of shape {y.shape}{hint}"
        )
    return torch.from_numpy(y.astype(np.int64))


def _target_labels(y: np.ndarray, what: str) -> Tensor:
    y = y[:, None] if y.ndim == 1 else y
    real = np.issubdtype(y.dtype, np.number) and not np.issubdtype(y.dtype, np.complexfloating)
    if y.ndim != 2 or not real or not np.isfinite(y).all():
        raise ValueError(
            f"{what}: targets must be finite numbers of shape (n,) or (n, targets), got {y.dtype} {y.shape}"
        )
    return torch.from_numpy(y.astype(np.float64))


LABELS = {"classification": _class_labels, "regression": _target_labels}
"""Task -> (array, what it is) -> tensor; targets are still in their own units."""
