"""Image files -> arrays `(channels, height, width)`: what is in them, and nothing of it lost without a word.

Grey and coloured images are bytes. Grey ones of more bits keep all of them (`deep`), those of floats are taken as they
are. Transparent parts show white paper. A camera's note on which side is up is followed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_compress.doubts import doubt
from pyro_compress.foreign import ordinary

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

KINDS = {
    **dict.fromkeys(("1", "L", "LA", "La"), "grey"),
    **dict.fromkeys(("I", "I;16", "I;16L", "I;16B", "I;16N"), "deep"),
    "F": "float",
}
"""Pillow's mode -> what we call it; every other mode is `colour`."""
BITS = (8, 10, 12, 14, 16)
"""Depths of sensors: pixels are divided by the largest value of the smallest depth that holds them."""
OPAQUE = (255, 255)


class ImageFiles:
    """Images by number: bytes, or int32 and float32 where they have more bits.

    Args:
        paths: the files.
        size: they are scaled until the shorter side has this many pixels, then cut to a square around the centre; 0:
            they must all be as large as the first.
        like: the training images: one in colour makes all coloured, the first decides about size.
        shape: of one image as a network takes it, `(channels, height, width)`: it decides instead, where it is known.
    """

    def __init__(self, paths: Sequence[Path], size: int, like: Sequence[Path], shape: tuple[int, ...] = ()):
        self.paths, self.size, self.known = list(paths), size, bool(shape)
        self.kind = kind_of_all(like)
        if shape and self.kind in ("grey", "colour"):
            self.kind = "grey" if shape[0] == 1 else "colour"
        self.mode = {"grey": "L", "colour": "RGB"}.get(self.kind, "F")
        if size:
            self.shape: tuple[int, ...] = (1, size, size)
        elif shape:
            self.shape = (1, *shape[1:])
        else:
            self.shape = (1, *self._pixels(like[0]).shape[:2])
        if self.kind == "colour":
            self.shape = (3, *self.shape[1:])

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """One image."""
        path = self.paths[index]
        pixels = self._pixels(path)
        if pixels.shape[:2] != self.shape[1:]:
            message, sides = f"{path} is {pixels.shape[1]}×{pixels.shape[0]} pixels", f"{self.shape[2]}×{self.shape[1]}"
            if self.known:
                raise ValueError(f"{message}; this network takes {sides}: bring it to that size first")
            raise ValueError(f"{message}, others are {sides}; bring them to one size with --image-size")
        return pixels.transpose(2, 0, 1) if self.kind == "colour" else pixels[None]

    def _pixels(self, path: Path) -> np.ndarray:
        with opened(path) as image:
            kind = KINDS.get(image.mode, "colour")
            if {kind, self.kind} & {"deep", "float"} and kind != self.kind:
                raise ValueError(f"{path} holds {kind} pixels, others {self.kind} ones; bring them to one kind")
            try:
                found = _flat(_upright(image), self.mode)
            except Exception as error:  # decoders raise whatever they like at a damaged file
                raise _unreadable(path, error) from error
        if found is None:
            raise ValueError(f"{path}: what is drawn is white, or wholly transparent: nothing of it is left on white")
        return self._fitted(found, path)

    def _fitted(self, image: Image.Image, path: Path) -> np.ndarray:
        from PIL import Image, ImageOps

        if self.kind not in ("deep", "float"):
            if self.size:
                image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
            return np.asarray(image)
        values = np.asarray(image)
        if not (finite := np.isfinite(values)).all():
            row, column = (int(place[0]) + 1 for place in np.nonzero(~finite))
            raise ValueError(
                f"{path}: {int((~finite).sum())} values are NaN or infinite, the first in row {row}, column {column}"
            )
        if self.size:
            scaled = ImageOps.fit(
                Image.fromarray(values.astype(np.float32)), (self.size, self.size), Image.Resampling.BILINEAR
            )
            values = np.rint(np.asarray(scaled)) if self.kind == "deep" else np.asarray(scaled)
        return values.astype(np.int32 if self.kind == "deep" else np.float32)


def opened(path: Path) -> Image.Image:
    """An image file, of which only the head is read yet."""
    from PIL import Image

    try:
        return Image.open(ordinary(path))
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no readable image: {' '.join(str(error).split()) or type(error).__name__}")


def _upright(image: Image.Image) -> Image.Image:
    """The image as its camera says that it is to be held; as it is stored, where nobody says or the note is damaged."""
    from PIL import ImageOps

    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a damaged note is no damaged image
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _flat(image: Image.Image, mode: str) -> Image.Image | None:
    """An image of grey, coloured or many-bit pixels on white; None where that hides all that was drawn."""
    from PIL import Image

    if mode == "F":
        image.load()
        return image
    if not image.has_transparency_data:
        return image.convert(mode)
    drawn = image.convert("RGBA")
    if drawn.getchannel("A").getextrema() == OPAQUE:
        return image.convert(mode)
    ground = Image.new("RGBA", drawn.size, "white")
    ground.alpha_composite(drawn)
    seen = ground.convert(mode)
    return None if _plain(seen) and not _plain(drawn) else seen


def _plain(image: Image.Image) -> bool:
    extrema: Any = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in bands)


def kind_of_all(paths: Sequence[Path]) -> str:
    """Kind of a set of images: coloured as soon as one is.

    Raises:
        ValueError: an unreadable one, or kinds that cannot be brought together.
    """
    first, pages = dict[str, Path](), list[Path]()
    for path in paths:
        with opened(path) as image:
            first.setdefault(KINDS.get(image.mode, "colour"), path)
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                pages.append(path)
    if pages:
        doubt(log, f"{pages[0]}: of {len(pages)} images with several pages or frames only the first is read")
    if set(first) <= {"grey", "colour"}:
        return "colour" if "colour" in first else "grey"
    if len(first) > 1:
        (one, path), (other, second) = list(first.items())[:2]
        raise ValueError(f"{path} holds {one} pixels, {second} {other} ones; bring them to one kind")
    return next(iter(first))


def whole_scale(largest: int, smallest: int) -> float:
    """What whole numbers of more than 8 bits are divided by: the largest value of their depth; 1: as they are."""
    fitting = [2**bits - 1 for bits in BITS if largest < 2**bits]
    return float(fitting[0]) if fitting and smallest >= 0 else 1.0
