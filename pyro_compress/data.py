"""Data sets: a name or a file -> `Splits`.

Images are float32 in [0, 1] with shape `(n, channels, height, width)`. To add a data set, write a function
`(data_dir, download) -> Arrays` and add a row to `DATASETS`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_compress.types import Data, Preprocessing, Splits

SPLIT_SEED = 0
"""Seed of the embedded test split and of the validation split: the same in every run, whatever its own seed."""


class Arrays(NamedTuple):
    """Raw arrays of a data set; integer images are scaled to [0, 1] by `split`."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...] = ()


def digits(data_dir: str, download: bool) -> Arrays:
    """The 1,797 UCI handwritten digits (8×8, Alpaydin & Kaynak 1998) from scikit-learn; a fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        x, bunch.target, test_size=0.2, stratify=bunch.target, random_state=SPLIT_SEED
    )
    return Arrays(x_train, y_train, x_test, y_test, tuple(str(i) for i in range(10)))


def _torchvision(name: str) -> Callable[[str, bool], Arrays]:
    """Loader of one of torchvision's MNIST-like sets; `download` fetches it into `data_dir`."""

    def load(data_dir: str, download: bool) -> Arrays:
        import torchvision.datasets

        root = Path(data_dir or "data")
        try:
            train, test = (
                getattr(torchvision.datasets, name)(root, train=train, download=download) for train in (True, False)
            )
        except RuntimeError as error:
            raise ValueError(
                f"{name} not found: its files belong in {root / name / 'raw'} "
                "(name the folder with --data-dir or PYRO_COMPRESS_DATA, or fetch them with --download)"
            ) from error
        return Arrays(
            train.data.numpy(),
            train.targets.numpy(),
            test.data.numpy(),
            test.targets.numpy(),
            tuple(train.classes),
        )

    return load


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


def told(data: str, splits: Splits) -> dict[str, Any]:
    """What a compressed file must say about its inputs and outputs beyond the data set's name."""
    if data in PREPROCESSING:
        return {}
    numbered = splits.classes == tuple(str(i) for i in range(len(splits.classes)))
    scale = {} if splits.scale == 1 else {"scale": splits.scale}
    return scale | ({} if numbered else {"classes": list(splits.classes)})


def preprocessing_of(meta: dict[str, Any]) -> Preprocessing:
    """The preprocessing of a compressed file with this metadata; without names, classes are numbered from 0."""
    if (data := meta.get("data")) in PREPROCESSING:
        return PREPROCESSING[data]
    return Preprocessing(float(meta.get("scale", 1.0)), tuple(str(name) for name in meta.get("classes", ())))


DATASETS: dict[str, Callable[[str, bool], Arrays]] = {
    "digits": digits,
    "mnist": _torchvision("MNIST"),
    "fashion-mnist": _torchvision("FashionMNIST"),
}


def load_npz(path: Path) -> Arrays:
    """Read `x_train`, `y_train`, `x_test`, `y_test`, and class names `classes` if given, from a `.npz` file."""
    arrays = _read_npz(path)
    wanted = ("x_train", "y_train", "x_test", "y_test")
    if missing := [name for name in wanted if name not in arrays]:
        raise ValueError(f"{path} has no array {', '.join(missing)}; it holds {', '.join(arrays)}")
    classes = tuple(str(name) for name in arrays.get("classes", ()))
    return Arrays(arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"], classes)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file; nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return dict(archive)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, EOFError, KeyError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable .npz file: {error}") from error


def load_splits(data: str, data_dir: str = "", validation: float | None = None, download: bool = False) -> Splits:
    """Load a data set and hold out a stratified validation split, the same one in every run.

    Args:
        data: name in `DATASETS`, or the path of a `.npz` file.
        data_dir: folder of the torchvision data sets.
        validation: share of the training set, in (0, 1); None takes a tenth, or more where that is under 240 rows.
        download: fetch a missing torchvision data set.

    Raises:
        ValueError: unknown name, missing files, arrays that do not fit each other.
    """
    if data in DATASETS:
        arrays = DATASETS[data](data_dir, download)
    elif data.endswith(".npz"):
        arrays = load_npz(Path(data))
    else:
        raise ValueError(f"unknown data set {data!r}; allowed: {', '.join(DATASETS)}, or a .npz file")
    return split(arrays, validation, data)


def split(arrays: Arrays, validation: float | None, name: str = "data") -> Splits:
    """Check and convert raw arrays, and hold out the validation split (stratified, seed `SPLIT_SEED`)."""
    if validation is None:
        validation = min(max(0.1, 240 / max(len(arrays.x_train), 1)), 1 / 3)
    if not 0 < validation < 1:
        raise ValueError(f"validation share {validation}: allowed are values between 0 and 1")
    train = _convert(arrays.x_train, arrays.y_train, f"{name}: x_train, y_train")
    test = _convert(arrays.x_test, arrays.y_test, f"{name}: x_test, y_test")
    if train.x.shape[1:] != test.x.shape[1:]:
        raise ValueError(
            f"{name}: one example of x_train has shape {tuple(train.x.shape[1:])}, "
            f"one of x_test {tuple(test.x.shape[1:])}; they must agree"
        )
    number = int(train.y.max()) + 1
    if len(test.y) and int(test.y.max()) >= number:
        raise ValueError(f"{name}: y_test holds class {int(test.y.max())}, which y_train never shows")
    if arrays.classes and len(arrays.classes) < number:
        raise ValueError(f"{name}: {len(arrays.classes)} class names for labels up to {number - 1}")
    known = PREPROCESSING[name].scale if name in PREPROCESSING else None
    held_in, held_out = _stratified(train.y.numpy(), validation, name)
    return Splits(
        train=Data(train.x[held_in], train.y[held_in]),
        validation=Data(train.x[held_out], train.y[held_out]),
        test=test,
        classes=arrays.classes or tuple(str(i) for i in range(number)),
        scale=known or (255.0 if arrays.x_train.dtype == np.uint8 else 1.0),
    )


def _stratified(y: np.ndarray, share: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    try:
        held_in, held_out = train_test_split(np.arange(len(y)), test_size=share, stratify=y, random_state=SPLIT_SEED)
    except ValueError as error:
        raise ValueError(f"{name}: no stratified validation split of share {share:.3g}: {error}") from error
    return np.sort(held_in), np.sort(held_out)


def _convert(x: np.ndarray, y: np.ndarray, what: str, scale: float | None = None) -> Data:
    """Check one pair of arrays and turn it into tensors; a missing channel dimension of images is added.

    Integers are divided by `scale`, bytes by 255 where it is None.
    """
    if len(x) != len(y):
        raise ValueError(f"{what}: {len(x)} examples but {len(y)} labels")
    if not len(x):
        raise ValueError(f"{what}: no examples")
    if x.ndim < 2 or not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise ValueError(f"{what}: examples must be real numbers of shape (n, ...), got {x.dtype} of shape {x.shape}")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(f"{what}: labels must be integers 0, 1, ... of shape (n,), got {y.dtype} of shape {y.shape}")
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
    if values.ndim == 3:
        values = values[:, None]
    return Data(torch.from_numpy(values), torch.from_numpy(y.astype(np.int64)))


def load_examples(path: Path, scale: float | None = None) -> Data:
    """Labelled examples of a `.npz` file: its `x` and `y`, or `x_test` and `y_test`.

    Args:
        path: the file.
        scale: that of the network's `Preprocessing`; with one, raw values cannot pass for scaled ones.

    Raises:
        ValueError: missing arrays, mismatched lengths, NaNs, values out of the network's range.
    """
    arrays = _read_npz(path)
    for suffix in ("", "_test"):
        if f"x{suffix}" in arrays and f"y{suffix}" in arrays:
            return _convert(arrays[f"x{suffix}"], arrays[f"y{suffix}"], f"{path}: x{suffix}, y{suffix}", scale)
    raise ValueError(f"{path} needs arrays x and y, or x_test and y_test; it holds {', '.join(arrays)}")
