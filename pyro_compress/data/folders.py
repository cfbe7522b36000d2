"""Folders of data: images by class, or `.npy` arrays; too large for memory they stay on disk.

Images lie as `layout` says; arrays as `x_train.npy`, `y_train.npy`, `x_test.npy`, `y_test.npy`, and `x_val.npy`,
`y_val.npy` where there is a validation set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_compress.data.datasets import Arrays
from pyro_compress.data.held_out import drawn
from pyro_compress.data.images import ImageFiles, whole_scale
from pyro_compress.data.layout import Listed, listed, split_folders
from pyro_compress.data.masks import load_masks
from pyro_compress.data.npz import VALIDATION
from pyro_compress.data.streaming import MIB, ArrayFile, Source, Streamed
from pyro_compress.settings import ReadConfig

TEST_SHARE = 0.2
"""Share of the images that is held out where there is no folder `test`."""


def load_folder(folder: Path, reading: ReadConfig) -> Arrays:
    """Data of a folder; examples that do not fit into `reading.in_memory_mib` are left where they are.

    Raises:
        ValueError: neither kind of folder, no images, or images where none are wanted, images of several sizes, damaged
            files.
    """
    if (folder / "x_train.npy").is_file():
        return _arrays(folder, reading)
    if reading.task == "segmentation":
        return load_masks(folder, reading)
    places = split_folders(folder)
    if reading.task not in ("classification", "reconstruction"):
        raise ValueError(
            f"{folder}: images by class are for --task classification or reconstruction; {reading.task} takes arrays"
        )
    if reading.series:
        raise ValueError(f"{folder} holds images; series are arrays (n, channels, length)")
    return _images(folder, places, reading)


def _arrays(folder: Path, reading: ReadConfig) -> Arrays:
    own = [name for name in VALIDATION if (folder / f"x_{name}.npy").is_file()][:1]
    names = [f"{kind}_{part}" for part in ("train", "test", *own) for kind in ("x", "y")]
    if missing := [name for name in names if not (folder / f"{name}.npy").is_file()]:
        raise ValueError(f"{folder} has no file {missing[0]}.npy")
    files = [ArrayFile(folder / f"{name}.npy", reading) for name in names]
    x, y = files[::2], [np.array(file.mapped) for file in files[1::2]]
    held = _fits(x, reading)
    taken = [np.array(file.mapped) if held else _left(file, reading) for file in x]
    x_validation, y_validation = (taken[2], y[2]) if own else (None, None)
    return Arrays(taken[0], y[0], taken[1], y[1], (), x_validation, y_validation)


def _images(folder: Path, places: dict[str, Path], reading: ReadConfig) -> Arrays:
    train, classes = listed(places["train"])
    found = {"train": train} | {split: listed(places[split], classes)[0] for split in places if split != "train"}
    if "test" not in found:
        found["train"], found["test"] = _held_out(train, folder)
    like = found["train"].paths
    files = {split: ImageFiles(one.paths, reading.image_size, like) for split, one in found.items()}
    held = _fits(list(files.values()), reading)
    x: dict[str, Any] = {split: _stack(one) if held else _left(one, reading) for split, one in files.items()}
    y = {split: one.y for split, one in found.items()}
    scale = _scale(list(files.values()), x if held else {})
    return Arrays(
        x["train"], y["train"], x["test"], y["test"], classes, x.get("validation"), y.get("validation"), scale
    )


def _held_out(train: Listed, folder: Path) -> tuple[Listed, Listed]:
    kept, out = drawn(np.arange(len(train.y)), TEST_SHARE, train.y, f"test split in {folder}, which has no folder test")
    return train.rows(kept), train.rows(out)


def _stack(files: ImageFiles) -> np.ndarray:
    return np.stack([files.read(i) for i in range(len(files))])


def _scale(files: Sequence[ImageFiles], held: dict[str, np.ndarray]) -> float:
    """What pixels of more than 8 bits are divided by, which all of them say; 0: their type says it."""
    if files[0].kind in ("grey", "colour"):
        return 0.0
    seen = held.values() if held else (one.read(i) for one in files for i in range(len(one)))
    extremes = [(int(pixels.max()), int(pixels.min())) for pixels in seen]
    if files[0].kind == "float":
        return 1.0
    return whole_scale(max(most for most, _ in extremes), min(least for _, least in extremes))


def _fits(sources: Sequence[Source], reading: ReadConfig) -> bool:
    """Whether all examples may be held in memory as float32."""
    examples = sum(len(source) for source in sources)
    return 4 * math.prod(sources[0].shape) * examples <= reading.in_memory_mib * MIB


def _left(source: Source, reading: ReadConfig) -> Streamed:
    return Streamed(source, torch.arange(len(source)), reading.workers)
