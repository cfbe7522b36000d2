"""Named data sets: digits, and what torchvision knows how to find and to fetch.

Images are `(n, height, width)` or `(n, channels, height, width)`. To add one, write a function
`(data_dir, download) -> Arrays` and add a row to `DATASETS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_compress.inputs import Input

SPLIT_SEED = 0
"""Seed of held-out rows: the same in every run, whatever its own seed."""


class Arrays(NamedTuple):
    """Raw arrays of a data set; bytes are scaled to [0, 1] later.

    Attributes:
        x_train: training examples, `(n, ...)`.
        y_train: their labels or targets.
        x_test: test examples.
        y_test: their labels or targets.
        classes: names of the classes; empty: the labels themselves name them.
        x_validation: validation examples, where the data bring them along; else they are held out of the training set.
        y_validation: their labels or targets.
        scale: what whole numbers are divided by; 0: their type says it.
        inputs: of several inputs, what lies in a row of `x`.

    Labels of several outputs are arrays by the name of the output.
    """

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any
    classes: tuple[str, ...] = ()
    x_validation: Any = None
    y_validation: Any = None
    scale: float = 0.0
    inputs: tuple[Input, ...] = ()


Load = Callable[[str, bool], Arrays]


def digits(data_dir: str, download: bool) -> Arrays:
    """The 1,797 UCI handwritten digits (8×8, Alpaydin & Kaynak 1998) from scikit-learn; a fifth is the test set."""
    from sklearn.model_selection import train_test_split

    images, target = _digits()
    x = (images / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        x, target, test_size=0.2, stratify=target, random_state=SPLIT_SEED
    )
    return Arrays(x_train, y_train, x_test, y_test, tuple(str(i) for i in range(10)))


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels; scikit-learn reads them from a text, which takes longer than an epoch on them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target


def _torchvision(name: str, upright: bool = True, **options: Any) -> Load:
    """Loader of one of torchvision's MNIST-like sets; `download` fetches it into `data_dir`."""

    def load(data_dir: str, download: bool) -> Arrays:
        import torchvision.datasets

        root = Path(data_dir or "data")
        try:
            train, test = (
                getattr(torchvision.datasets, name)(root, train=train, download=download, **options)
                for train in (True, False)
            )
        except RuntimeError as error:
            raise ValueError(_absent(name, root / name / "raw")) from error
        x_train, x_test = (part.data.numpy() if upright else part.data.numpy().swapaxes(1, 2) for part in (train, test))
        return Arrays(x_train, train.targets.numpy(), x_test, test.targets.numpy(), tuple(train.classes))

    return load


def _absent(name: str, folder: Path) -> str:
    return (
        f"{name} not found: its files belong in {folder} "
        "(name the folder with --data-dir or PYRO_COMPRESS_DATA, or fetch them with --download)"
    )


class Cifar(NamedTuple):
    """Where a CIFAR set's binary version lies, and what its records are.

    Attributes:
        folder: of the unpacked files.
        archive: name and MD5 of the file to fetch.
        train: names of the training files.
        held_out: name of the test file.
        names: name of the text file with the classes.
        labels: bytes before the pixels; the last of them is the class.
    """

    folder: str
    archive: tuple[str, str]
    train: tuple[str, ...]
    held_out: str
    names: str
    labels: int


CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
PIXELS = (3, 32, 32)
CIFAR10 = Cifar(
    "cifar-10-batches-bin", ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1,
)  # fmt: skip
CIFAR100 = Cifar(
    "cifar-100-binary", ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    ("train.bin",), "test.bin", "fine_label_names.txt", 2,
)  # fmt: skip


def _cifar(name: str, layout: Cifar) -> Load:
    """Loader of the binary version: torchvision reads the Python version, which would have to be unpickled."""

    def load(data_dir: str, download: bool) -> Arrays:
        root = Path(data_dir or "data")
        folder = root / layout.folder
        if download and not (folder / layout.held_out).is_file():
            from torchvision.datasets.utils import download_and_extract_archive

            archive, md5 = layout.archive
            download_and_extract_archive(CIFAR_URL + archive, str(root), filename=archive, md5=md5)
        needed = (*layout.train, layout.held_out, layout.names)
        if missing := [file for file in needed if not (folder / file).is_file()]:
            raise ValueError(_absent(f"{name}'s binary version ({missing[0]})", folder))
        train = [_records(folder / file, layout.labels) for file in layout.train]
        x_test, y_test = _records(folder / layout.held_out, layout.labels)
        classes = tuple((folder / layout.names).read_text(encoding="utf-8").split())
        x_train, y_train = (np.concatenate(parts) for parts in zip(*train, strict=True))
        return Arrays(x_train, y_train, x_test, y_test, classes)

    return load


def _records(path: Path, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, 3, 32, 32)` and classes of one file."""
    size = labels + int(np.prod(PIXELS))
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % size:
        raise ValueError(f"{path}: {values.size:,} bytes are no whole number of records of {size:,}; fetch it again")
    rows = values.reshape(-1, size)
    return rows[:, labels:].reshape(-1, *PIXELS), rows[:, labels - 1].astype(np.int64)


DATASETS: dict[str, Load] = {
    "digits": digits,
    "mnist": _torchvision("MNIST"),
    "fashion-mnist": _torchvision("FashionMNIST"),
    "kmnist": _torchvision("KMNIST"),
    "emnist": _torchvision("EMNIST", upright=False, split="balanced"),
    "cifar-10": _cifar("CIFAR-10", CIFAR10),
    "cifar-100": _cifar("CIFAR-100", CIFAR100),
}
