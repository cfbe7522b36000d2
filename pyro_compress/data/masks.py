"""Folders of images with a mask each -> arrays: the class of every pixel.

`DIR/images/NAME.png` beside `DIR/masks/NAME.png`, or both below `DIR/train`, `DIR/val` and `DIR/test`. A mask is a grey
or a palette image whose pixels are numbers of classes; 255 says that a pixel has none, but where the masks hold 0 and
255 alone, which are then classes 0 and 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyro_compress.data.datasets import Arrays
from pyro_compress.data.held_out import drawn
from pyro_compress.data.images import ImageFiles, opened
from pyro_compress.data.layout import NAMES, images_in, visible
from pyro_compress.data.streaming import MIB
from pyro_compress.data.tasks import IGNORED
from pyro_compress.settings import ReadConfig

log = logging.getLogger(__name__)

IMAGES, MASKS = ("images", "imgs"), ("masks", "labels", "annotations")
"""What the folders of a split may be called, in upper or lower case."""
WITHOUT = 255
"""Pixel of a mask that has no class."""
TEST_SHARE = 0.2
PIXEL_BYTES = 12
"""Bytes that a pixel takes: as float32 of one channel, and its label."""

Pairs = list[tuple[Path, Path]]


def load_masks(folder: Path, reading: ReadConfig) -> Arrays:
    """Images and the class of every pixel.

    Raises:
        ValueError: no such folders, an image without a mask, masks of another size or in colour, too much for memory.
    """
    splits = {name: path for path in visible(folder) for name, own in NAMES.items() if path.name.casefold() in own}
    found = {name: _pairs(path) for name, path in splits.items()} if "train" in splits else {"train": _pairs(folder)}
    if "test" not in found:
        rows, held = drawn(np.arange(len(found["train"])), TEST_SHARE, None, f"test split in {folder}")
        found["test"] = [found["train"][i] for i in held]
        found["train"] = [found["train"][i] for i in rows]
    like = [image for image, _ in found["train"]]
    files = {name: ImageFiles([image for image, _ in pairs], reading.image_size, like) for name, pairs in found.items()}
    shape = files["train"].shape
    needed = sum(map(len, found.values())) * int(np.prod(shape)) * PIXEL_BYTES
    if needed > reading.in_memory_mib * MIB:
        raise ValueError(
            f"{folder} takes {needed // MIB:,} MiB as images and labels, which are held in memory: allow it with "
            "--in-memory-mib, or give a smaller --image-size"
        )
    x = {name: np.stack([one.read(i) for i in range(len(one))]) for name, one in files.items()}
    y = {
        name: np.stack([_mask(path, shape[1:], reading.image_size) for _, path in pairs])
        for name, pairs in found.items()
    }
    two = set(np.unique(y["train"]).tolist()) == {0, WITHOUT}
    labels = {name: np.where(one == WITHOUT, 1 if two else IGNORED, one.astype(np.int64)) for name, one in y.items()}
    log.info("%s: 255 in a mask %s", folder, "is class 1, as all pixels are 0 or 255" if two else "means no class")
    return Arrays(
        x["train"], labels["train"], x["test"], labels["test"], (), x.get("validation"), labels.get("validation")
    )


def _pairs(folder: Path) -> Pairs:
    """Every image below the folder of images, with the mask of the same name."""
    images, masks = _named(folder, IMAGES), _named(folder, MASKS)
    if images is None or masks is None:
        raise ValueError(
            f"{folder} needs a folder images and a folder masks, NAME.png in the one for NAME.png in the other (or "
            "train, val and test with both in each)"
        )
    by_name = {path.relative_to(masks).with_suffix(""): path for path in images_in(masks)}
    found = images_in(images)
    if not found:
        raise ValueError(f"{images}: no images")
    if missing := [path for path in found if path.relative_to(images).with_suffix("") not in by_name]:
        raise ValueError(f"{missing[0]} has no mask: {masks / missing[0].relative_to(images)} is not there")
    return [(path, by_name[path.relative_to(images).with_suffix("")]) for path in found]


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    return next((path for path in visible(folder) if path.name.casefold() in names), None)


def _mask(path: Path, sides: tuple[int, ...], size: int) -> np.ndarray:
    """Numbers of classes, `(height, width)`, of the pixels that `ImageFiles` keeps of the image."""
    from PIL import Image, ImageOps

    with opened(path) as mask:
        if mask.mode not in ("L", "P", "1"):
            raise ValueError(
                f"{path} has pixels of mode {mask.mode}; a mask is a grey or a palette image of 8 bits, whose pixels "
                "are numbers of classes"
            )
        try:
            mask.load()
            fitted = ImageOps.fit(mask, (size, size), Image.Resampling.NEAREST) if size else mask
        except Exception as error:  # decoders raise whatever they like at a damaged file
            raise ValueError(f"{path} is no readable image: {error}") from error
        found = np.asarray(fitted).astype(np.uint8) * (WITHOUT if mask.mode == "1" else 1)
    if found.shape != tuple(sides):
        raise ValueError(f"{path} is {found.shape[1]}×{found.shape[0]} pixels, its image {sides[1]}×{sides[0]}")
    return found.astype(np.uint8)
