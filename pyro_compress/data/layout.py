"""Which folders hold the images of which split and class.

Images lie as `DIR/train/CLASS/NAME.png`, with `DIR/val/CLASS/...` and `DIR/test/CLASS/...` where there are such sets,
or as `DIR/CLASS/NAME.png`. What systems and programs leave beside them (names with a dot in front, `__MACOSX`) is
passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyro_compress.doubts import doubt

log = logging.getLogger(__name__)

NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Split -> what its folder may be called, in upper or lower case."""
LEFTOVERS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


class Listed(NamedTuple):
    """Image files, and the class number of each."""

    paths: list[Path]
    y: np.ndarray

    def rows(self, rows: np.ndarray) -> Listed:
        """Some of them."""
        return Listed([self.paths[i] for i in rows], self.y[rows])


def visible(folder: Path) -> list[Path]:
    """Folders in a folder that people made."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not leftover(path.name))


def leftover(name: str) -> bool:
    """Whether a name is one that systems and programs give what they leave behind."""
    return name.startswith(".") or name in LEFTOVERS


def split_folders(folder: Path) -> dict[str, Path]:
    """Split -> its folder; without one of training images, the folder itself is it.

    Raises:
        ValueError: two folders for one split, test images without training ones, or no classes.
    """
    found = dict[str, Path]()
    for path in visible(folder):
        split = next((split for split, names in NAMES.items() if path.name.casefold() in names), None)
        if split is None or not visible(path):
            continue
        if split in found:
            raise ValueError(f"{folder}: {found[split].name} and {path.name} are both folders for {split}; keep one")
        found[split] = path
    if "train" in found:
        return found
    if found:
        raise ValueError(f"{folder} has a folder {next(iter(found.values())).name}, but none called train")
    inside = visible(folder)
    if not inside and (loose := _loose(folder)):
        raise ValueError(
            f"{folder} holds images such as {loose[0].name}, but no folder of a class; put those of every class into a "
            "folder of its own, CLASS/*.png or train/CLASS/*.png"
        )
    if not inside:
        raise ValueError(f"{folder} has neither a folder train (images by class) nor a file x_train.npy")
    if len(inside) == 1 and len(visible(inside[0])) > 1:
        raise ValueError(f"{folder} holds a single folder; give {inside[0]}, if its folders are the classes")
    return {"train": folder}


def listed(folder: Path, classes: Sequence[str] | None = None) -> tuple[Listed, tuple[str, ...]]:
    """Image files below the folders of the classes, in the order of their names, and the names of the classes.

    Args:
        folder: of one split.
        classes: those of the training images; None: every folder with images is one.

    Raises:
        ValueError: no images, or a class that the training images never show.
    """
    by_class = {path.name: images_in(path) for path in visible(folder)}
    if empty := [name for name, paths in by_class.items() if not paths and (classes is None or name not in classes)]:
        doubt(log, f"{folder}: folder {empty[0]} holds no images and is passed over")
    own = tuple(name for name, paths in by_class.items() if paths)
    if strange := sorted(set(own) - set(own if classes is None else classes)):
        raise ValueError(f"{folder} has class {strange[0]}, which the training images never show")
    paths, labels = list[Path](), list[int]()
    for label, name in enumerate(own if classes is None else classes):
        found = by_class.get(name, [])
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise ValueError(f"{folder}: no images; they belong in {folder / 'CLASS' / 'NAME.png'}")
    if loose := _loose(folder):
        doubt(log, f"{folder}: {len(loose)} images lie in no class folder and are passed over")
    return Listed(paths, np.array(labels, np.int64)), own


def _loose(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and is_image(path))


def images_in(folder: Path) -> list[Path]:
    """Image files in a folder and below, in the order of their names."""
    below = (path for path in folder.rglob("*") if not any(map(leftover, path.relative_to(folder).parts)))
    return sorted(path for path in below if is_image(path) and not path.is_dir())


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its ending, in upper or lower case: of the formats that Pillow reads."""
    from PIL import Image

    endings = Image.registered_extensions()
    return endings.get(path.suffix.lower(), "") in Image.OPEN and not leftover(path.name)
