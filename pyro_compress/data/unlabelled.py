"""Examples without labels, as people have them: what a network makes predictions for, read as labelled ones are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.datasets import DATASETS, Arrays
from pyro_compress.data.images import ImageFiles
from pyro_compress.data.layout import images_in, is_image
from pyro_compress.data.npz import input_scale, inputs, joined, read_npz, scale_for, wanted
from pyro_compress.data.streaming import ArrayFile, Streamed
from pyro_compress.data.table_files import is_table, read_table
from pyro_compress.data.tabular import inputs_of
from pyro_compress.data.text import last_window
from pyro_compress.foreign import ordinary
from pyro_compress.inputs import BYTES
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Graph, Preprocessing

HELD_VALUES = 1 << 22
"""Values of images that are held at a time."""


class Inputs(NamedTuple):
    """Examples in order.

    Attributes:
        kind: what one is called: `row`, `image` or `text`.
        names: of all of them.
        parts: their values, one part after the other.
    """

    kind: str
    names: Sequence[str]
    parts: Iterable[Tensor]


def rows(x: Tensor) -> Inputs:
    """Examples that have no names; they are numbered from 1."""
    return Inputs("row", [str(i) for i in range(1, len(x) + 1)], [x])


def load_inputs(data: str, graph: Graph, known: Preprocessing, reading: ReadConfig) -> Inputs:
    """Examples of a file or folder, for a network.

    Args:
        data: an image, a folder with images in it or below, a table, a `.npz` or `.npy` file, or a text.
        graph: the network.
        known: its preprocessing.
        reading: how the data of its fit were read.

    Raises:
        ValueError: no such file, one of another kind than the network takes, or a damaged one.
    """
    path = Path(data)
    if not path.exists():
        raise ValueError(
            f"{data!r}: no such file or folder, nor a data set whose test split could be taken; those are "
            f"{', '.join(DATASETS)}"
        )
    ordinary(path)
    if path.suffix.lower() == ".npz" and graph.inputs:
        return rows(torch.from_numpy(_joined(path, graph)))
    if path.suffix.lower() in (".npz", ".npy"):
        return rows(array_inputs(_array(path), data, graph, known, reading))
    if reading.task == "next-token" and not reading.tokens:
        return Inputs("text", [path.name], [last_window(path, reading, known, graph.least)])
    if is_table(path) and known.columns:
        needed = [column.name for column in known.columns]
        return rows(torch.from_numpy(inputs_of(read_table(path, only=needed), known.columns, path)))
    takes = wanted_text(graph, known, reading)
    if len(graph.input_shape) != 3 or not (path.is_dir() or is_image(path)):
        raise ValueError(f"{data}: this network takes {takes}; give it such data, or an array of inputs (.npz, .npy)")
    if path.is_dir() and not (found := images_in(path)):
        raise ValueError(f"{data}: no images in it or below; this network takes {takes}, or arrays (.npz, .npy)")
    if not path.is_dir():
        return _images([path], [path.name], graph, known, reading)
    return _images(found, [one.relative_to(path).as_posix() for one in found], graph, known, reading)


def examples_without_labels(data: str, reading: ReadConfig) -> Tensor:
    """Examples of a file or folder for a network of which nothing is known yet, in the range that labelled ones have.

    Args:
        data: a `.npy` or `.npz` file (`x`, `x_train`, `x_test`, the first that is there, or a single array), a folder
            with `x_train.npy`, or one with images in it or below.
        reading: how they are read.

    Raises:
        ValueError: none of these, or what the readers of labelled data refuse.
    """
    path, nothing = Path(data), Preprocessing(0, ())
    if not path.exists():
        raise ValueError(f"{data!r}: no such file or folder; examples without labels are arrays or images")
    ordinary(path)
    if (path / "x_train.npy").is_file():
        path = path / "x_train.npy"
    if path.suffix.lower() in (".npz", ".npy"):
        x = _array(path, ("x", "x_train", "x_test"))
        if x.ndim < 2:
            raise ValueError(f"{path}: examples must have the shape (n, ...), got {x.shape}")
        return array_inputs(x, data, Graph((), tuple(x.shape[1:])), nothing, reading)
    found = images_in(path) if path.is_dir() else []
    if not found:
        raise ValueError(f"{data}: give arrays (.npy, .npz), or a folder with images in it or below")
    shape = ImageFiles(found, reading.image_size, found).shape
    parts = _images(found, [one.name for one in found], Graph((), shape), nothing, reading).parts
    return torch.cat(list(parts))


def wanted_text(graph: Graph, known: Preprocessing, reading: ReadConfig) -> str:
    """What a network takes, in words."""
    shape = graph.input_shape
    if known.columns:
        return "tables (.csv, .tsv, .parquet)"
    if reading.task == "next-token" and not reading.tokens:
        return "texts"
    if len(shape) == 3 and shape[0] in (1, 3):
        return f"images of {shape[2]}×{shape[1]} pixels"
    return f"{'tokens' if graph.kind == 'int64' else 'numbers'} of shape {shape}"


def array_inputs(x: np.ndarray, what: str, graph: Graph, known: Preprocessing, reading: ReadConfig) -> Tensor:
    """An array `(n, ...)` as a network takes it; of longer sequences, whose next token is asked for, their ends.

    What the network takes says whether examples `(n, a, b)` are series, and the numbers of a text network's words.

    Raises:
        ValueError: as `data.npz.inputs`.
    """
    reading = replace(reading, series=reading.series or len(graph.input_shape) == 2)
    if reading.task == "next-token" and x.ndim == 2:
        x, reading = x[:, -graph.input_shape[-1] :], replace(reading, tokens=reading.tokens or len(known.classes))
    found: Tensor = inputs(x, what, scale_for(x, known, reading), reading)
    return found


def _joined(path: Path, graph: Graph) -> np.ndarray:
    """Several inputs: `x.NAME`, `x_test.NAME`, or arrays that bear their names alone."""
    arrays = read_npz(path)
    for part in ("x", "x_test"):
        if any(name.startswith(f"{part}.") for name in arrays):
            own = {name: array for name, array in arrays.items() if name.startswith(f"{part}.")}
            return joined(own, path, graph.inputs)[0][part]
    found = {one.name: arrays[one.name] for one in graph.inputs if one.name in arrays}
    return joined({f"x.{name}": array for name, array in found.items()} or arrays, path, graph.inputs)[0]["x"]


def _array(path: Path, names: Sequence[str] = ("x", "x_test")) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return np.asarray(ArrayFile(path).mapped)
    arrays = read_npz(path)
    name = next((name for name in names if name in arrays), None)
    if name is None and len(arrays) != 1:
        wished = f"{names[0]} (or {', '.join(names[1:])})"
        raise ValueError(f"{path} needs an array {wished}, or a single one; it holds {', '.join(arrays)}")
    (found,) = wanted(arrays, [name or next(iter(arrays))], path)
    return found


def _images(
    paths: Sequence[Path], names: Sequence[str], graph: Graph, known: Preprocessing, reading: ReadConfig
) -> Inputs:  # fmt: skip
    shape = graph.input_shape
    files = ImageFiles(paths, reading.image_size, paths, shape)
    eight = files.kind in ("grey", "colour")
    if eight and known.scale > BYTES:
        raise ValueError(
            f"{paths[0]} holds pixels of 8 bits; this network was fitted on more of them, divided by {known.scale:g}"
        )
    scale = known.scale
    if scale in (0, 1):  # as for labelled images: bytes are divided, unless they only say yes and no
        every = Streamed(files, torch.arange(len(files)), 0)
        scale = input_scale(Arrays(every, np.empty(0), every, np.empty(0))) if eight else 1.0
    each = max(1, HELD_VALUES // math.prod(shape))

    def parts() -> Iterable[Tensor]:
        for start in range(0, len(files), each):
            held = np.stack([files.read(i) for i in range(start, min(start + each, len(files)))])
            yield inputs(held, str(paths[start]), scale, reading)

    return Inputs("image", names, parts())
