"""Folders of data: images by class, or `.npy` arrays; too large for memory they stay on disk.

Images lie as `DIR/train/CLASS/NAME.png`, with `DIR/test/CLASS/...` where there is a test set; arrays as `x_train.npy`,
`y_train.npy`, `x_test.npy`, `y_test.npy`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from pyro_compress.data.datasets import SPLIT_SEED, Arrays
from pyro_compress.data.streaming import MIB, ArrayFile, Source, Streamed
from pyro_compress.settings import Reading

TEST_SHARE = 0.2
"""Share of the images that is held out where there is no folder `test`."""
GREY = ("1", "L", "LA", "I;16")


class ImageFiles:
    """Images by number, as bytes `(channels, height, width)`.

    Args:
        paths: the files.
        size: they are scaled until the shorter side has this many pixels, then cut to a square around the centre; 0:
            they must all be as large as the first.
        like: the first training image decides about size and colour.
    """

    def __init__(self, paths: list[Path], size: int, like: Path):
        from PIL import Image, UnidentifiedImageError

        self.paths, self.size = paths, size
        try:
            with Image.open(like) as image:
                self.mode = "L" if image.mode in GREY else "RGB"
                width, height = (size, size) if size else image.size
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{like} is no readable image: {error}") from error
        self.shape = (1 if self.mode == "L" else 3, height, width)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """One image."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                found = image.convert(self.mode)
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{path} is no readable image: {error}") from error
        if self.size:
            found = ImageOps.fit(found, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.asarray(found)
        if pixels.shape[:2] != self.shape[1:]:
            raise ValueError(
                f"{path} is {pixels.shape[1]}×{pixels.shape[0]} pixels, others are {self.shape[2]}×{self.shape[1]}; "
                "bring them to one size with --image-size"
            )
        return pixels[None] if self.mode == "L" else pixels.transpose(2, 0, 1)


def load_folder(folder: Path, reading: Reading) -> Arrays:
    """Data of a folder; examples that do not fit into `reading.in_memory_mib` are left where they are.

    Raises:
        ValueError: neither kind of folder, no images, or images where none are wanted, images of several sizes, damaged
            files.
    """
    if (folder / "x_train.npy").is_file():
        return _arrays(folder, reading)
    if not (folder / "train").is_dir():
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        hint = f"; if {inside[0]}, ... are classes, move them into {folder / 'train'}" if inside else ""
        raise ValueError(f"{folder} has neither a folder train (images by class) nor a file x_train.npy{hint}")
    if reading.task != "classification":
        raise ValueError(f"{folder}: images by class are for --task classification; regression takes arrays")
    if reading.series:
        raise ValueError(f"{folder} holds images; series are arrays (n, channels, length)")
    return _images(folder, reading)


def _arrays(folder: Path, reading: Reading) -> Arrays:
    names = ("x_train", "y_train", "x_test", "y_test")
    if missing := [name for name in names if not (folder / f"{name}.npy").is_file()]:
        raise ValueError(f"{folder} has no file {missing[0]}.npy")
    x_train, y_train, x_test, y_test = (ArrayFile(folder / f"{name}.npy", reading) for name in names)
    if len(x_train) != len(y_train) or len(x_test) != len(y_test):
        raise ValueError(
            f"{folder}: {len(x_train)} and {len(x_test)} examples but {len(y_train)} and {len(y_test)} labels"
        )
    labels = np.array(y_train.mapped), np.array(y_test.mapped)
    if _fits(x_train, len(x_train) + len(x_test), reading):
        return Arrays(np.array(x_train.mapped), labels[0], np.array(x_test.mapped), labels[1])
    for values in (x_train.mapped, x_test.mapped):
        if values.dtype != np.uint8 and not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"{folder}: arrays that stay on disk must hold bytes or floats, got {values.dtype}")
    return Arrays(_left(x_train, reading), labels[0], _left(x_test, reading), labels[1])


def _images(folder: Path, reading: Reading) -> Arrays:
    classes = tuple(sorted(path.name for path in (folder / "train").iterdir() if path.is_dir()))
    paths, y = _listed(folder / "train", classes)
    if (folder / "test").is_dir():
        test, y_test = _listed(folder / "test", classes)
    else:
        from sklearn.model_selection import train_test_split

        try:
            kept, out = train_test_split(np.arange(len(y)), test_size=TEST_SHARE, stratify=y, random_state=SPLIT_SEED)
        except ValueError as error:
            raise ValueError(f"{folder}: no folder test, and none can be held out: {error}") from error
        kept, out = np.sort(kept), np.sort(out)
        test, y_test = [paths[i] for i in out], y[out]
        paths, y = [paths[i] for i in kept], y[kept]
    train, held_out = (ImageFiles(part, reading.image_size, paths[0]) for part in (paths, test))
    if _fits(train, len(train) + len(held_out), reading):
        read = [np.stack([files.read(i) for i in range(len(files))]) for files in (train, held_out)]
        return Arrays(read[0], y, read[1], y_test, classes)
    return Arrays(_left(train, reading), y, _left(held_out, reading), y_test, classes)


def _listed(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """Image files below a folder and their classes, in the order of their names."""
    from PIL import Image

    if strange := sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(classes)):
        raise ValueError(f"{folder} has class {strange[0]}, which the training images never show")
    known = {suffix.lower() for suffix in Image.registered_extensions()}
    paths, labels = list[Path](), list[int]()
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in known) if classes else []
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise ValueError(f"{folder}: no images; they belong in {folder / 'CLASS' / 'NAME.png'}")
    return paths, np.array(labels, np.int64)


def _fits(source: Source, examples: int, reading: Reading) -> bool:
    """Whether all examples may be held in memory as float32."""
    return 4 * math.prod(source.shape) * examples <= reading.in_memory_mib * MIB


def _left(source: Source, reading: Reading) -> Streamed:
    return Streamed(source, torch.arange(len(source)), reading.workers)
