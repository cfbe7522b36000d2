"""A name, a file or a folder -> `Splits`: what is held out, how raw values become inputs and targets.

Images are float32 in [0, 1] with shape `(n, channels, height, width)`; tables become `(n, inputs)`, series
`(n, channels, length)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_compress.data.datasets import DATASETS as DATASETS
from pyro_compress.data.datasets import Arrays
from pyro_compress.data.folders import load_folder
from pyro_compress.data.held_out import held_out
from pyro_compress.data.labels import Labels, named, places
from pyro_compress.data.npz import (
    BYTES,
    LABELS,
    class_names,
    completed,
    doubtful_inputs,
    input_scale,
    inputs,
    joined,
    load_npz,
    read_npz,
    scale_for,
    wanted,
    with_labels,
)
from pyro_compress.data.outputs import classes_of, say, splits_of, standardized, with_targets
from pyro_compress.data.positions import (
    MOST_CLASSES,
    check_counting,
    check_labels,
    masked,
    own_targets,
    position_classes,
)
from pyro_compress.data.preprocessing import PREPROCESSING as PREPROCESSING
from pyro_compress.data.preprocessing import filled as filled
from pyro_compress.data.preprocessing import numbered as numbered
from pyro_compress.data.preprocessing import preprocessing as preprocessing
from pyro_compress.data.preprocessing import preprocessing_meta as preprocessing_meta
from pyro_compress.data.preprocessing import preprocessing_of as preprocessing_of
from pyro_compress.data.preprocessing import reading_of as reading_of
from pyro_compress.data.several_labels import check_several, several_rows, several_splits
from pyro_compress.data.streaming import ArrayFile
from pyro_compress.data.table_files import is_table
from pyro_compress.data.table_splits import table_data, table_splits
from pyro_compress.data.text import is_text, text_examples, text_splits, with_vocabulary
from pyro_compress.foreign import unknown
from pyro_compress.inputs import Input
from pyro_compress.outputs import is_several, outputs_of
from pyro_compress.pcn.meta import ENTRIES
from pyro_compress.settings import ReadConfig
from pyro_compress.types import PER_POSITION, Data, Preprocessing, Splits


def load_splits(
    data: str,
    data_dir: str = "",
    validation: float | None = None,
    download: bool = False,
    reading: ReadConfig | None = None,
    known: Preprocessing | None = None,
    shape: tuple[int, ...] | None = None,
    takes: tuple[Input, ...] = (),
) -> Splits:
    """Load a data set and hold out a validation split, the same one in every run.

    Args:
        data: name in `DATASETS`, the path of a `.npz`, `.csv`, `.tsv` or `.parquet` file, or a folder (`folders`).
        data_dir: folder of the downloaded data sets.
        validation: share of the training set, in (0, 1); None takes a tenth, or more where that is under 240 rows.
        download: fetch a missing data set.
        reading: task, columns, sizes.
        known: preprocessing of the network that the data are for: its scale, classes, columns and targets count, and
            not what these data would have by themselves.
        shape: of one example, as the network takes it.
        takes: of several inputs those that the network takes, with their scales.

    Raises:
        ValueError: unknown name, missing files, arrays that do not fit each other.
    """
    if not data:
        raise ValueError(
            "no data are named, and the network does not say what it was fitted on; name them with --data (data= in "
            "Python)"
        )
    reading = reading or ReadConfig()
    found = _loaded(data, (data_dir, download), validation, reading, (known, shape, takes))
    if known is None:
        check_counting(reading, data)
    _check_meta(data, found)
    if found.task == "next-token" and not reading.tokens:
        reading = replace(reading, vocabulary=with_vocabulary(reading))
    how = {one.name: getattr(reading, one.name) for one in fields(ReadConfig)}
    how |= {"task": found.task} if is_several(found.task) else {}
    return replace(found, origin={"data": data, "validation": validation} | how)


def _check_meta(data: str, splits: Splits) -> None:
    """Refuse before a fit what a file could not hold after it: names that act on a terminal, spreads beyond float32."""
    for name, value in preprocessing_meta(data, splits).items():
        parts = value if isinstance(value, list) else [value]
        if wrong := [one for one in parts if not ENTRIES[name].allows([one] if isinstance(value, list) else one)]:
            raise ValueError(f"{data}: {name}: {wrong[0]!r:.80}: a file holds {ENTRIES[name].name}")


def _loaded(
    data: str, source: tuple[str, bool], validation: float | None, reading: ReadConfig,
    network: tuple[Preprocessing | None, tuple[int, ...] | None, tuple[Input, ...]],
) -> Splits:  # fmt: skip
    path, (known, shape, takes) = Path(data), network
    if data not in DATASETS and is_text(path, reading):
        return text_splits(path, validation, reading, known)
    if is_table(path):
        if reading.series:
            raise ValueError(f"{data!r}: series are arrays (n, channels, length), in a .npz file or as .npy files")
        return table_splits(path, validation, reading, known)
    if reading.target or reading.test_data:
        raise ValueError(f"{data!r} is no table: target columns and test tables go with .csv, .tsv and .parquet files")
    if data in DATASETS:
        arrays = DATASETS[data](*source)
    elif path.suffix.lower() == ".npz":
        arrays = load_npz(path, reading.task, takes)
    elif path.is_dir():
        arrays = load_folder(path, reading)
    else:
        raise unknown("data set", data, DATASETS, "a .npz, .csv, .tsv or .parquet file, or a folder")
    return replace(split(arrays, validation, data, reading, known, shape), inputs=arrays.inputs)


def split(
    arrays: Arrays, validation: float | None, name: str = "data", reading: ReadConfig | None = None,
    known: Preprocessing | None = None, shape: tuple[int, ...] | None = None,
) -> Splits:  # fmt: skip
    """Check and convert raw arrays, and hold out the validation split (seed `SPLIT_SEED`) where they bring none."""
    reading = reading or ReadConfig()
    given = _labelled(arrays, name, reading)
    scale = 1.0 if reading.tokens else _scale(arrays, name, known)
    x = {part: inputs(raw, f"{name}: x_{part}", scale, reading) for part, (raw, _) in given.items()}
    for part, values in x.items():
        if values.shape[1:] != x["train"].shape[1:]:
            raise ValueError(
                f"{name}: one example of x_train has shape {tuple(x['train'].shape[1:])}, "
                f"one of x_{part} {tuple(values.shape[1:])}; they must agree"
            )
    if shape and tuple(x["train"].shape[1:]) != tuple(shape):
        got = tuple(x["train"].shape[1:])
        raise ValueError(f"{name}: one example has shape {got}; this network takes {tuple(shape)}")
    doubtful = [] if reading.tokens else doubtful_inputs(x["train"], scale, arrays.inputs)
    say(name, [*doubtful, *_shared(arrays)] if not known else [])
    labels = {part: y for part, (_, y) in given.items()}
    if isinstance(arrays.y_train, Mapping):
        return several_splits(
            x, labels, name, reading, known, validation=validation, scale=scale, tokens=reading.tokens
        )
    if reading.task not in ("classification", "regression"):
        called = arrays.classes, known.classes if known else ()
        found, classes = _of_task(x, labels, called, name, reading, arrays.inputs)
        parts = held_out(found, validation, reading, name)
        return splits_of(parts, classes, scale=scale, task=reading.task, tokens=reading.tokens)
    if reading.task == "regression":
        names = [f"target {i}" for i in range(labels["train"].shape[1])]
        parts = held_out({part: Data(x[part], labels[part]) for part in x}, validation, reading, name)
        parts, targets = with_targets(parts, names, name, known)
        return splits_of(parts, (), scale=scale, targets=targets)
    classes, numbers = classes_of({f"{name}: y_{part}": y for part, y in labels.items()}, arrays.classes, name, known)
    found = {part: Data(x[part], torch.from_numpy(rows)) for part, rows in zip(labels, numbers, strict=True)}
    return splits_of(held_out(found, validation, reading, name), classes, scale=scale, tokens=reading.tokens)


def _of_task(
    x: dict[str, Any],
    labels: dict[str, Any],
    names: tuple[Sequence[str], Sequence[str]],
    name: str,
    reading: ReadConfig,
    several: Sequence[Input],
) -> tuple[dict[str, Data], tuple[str, ...]]:
    """Examples of a task that is neither classification nor regression, and the names of its classes.

    Args:
        x: part -> inputs.
        labels: part -> labels, as `LABELS` reads them.
        names: of the classes, as the data and as the network say.
        name: of the data.
        reading: task, and which positions count for nothing.
        several: of several inputs what lies in a row.
    """
    if reading.task == "reconstruction":
        return {part: own_targets(values, f"{name}: x_{part}") for part, values in x.items()}, ()
    declared, known = names
    if reading.task == "multi-label":
        first = labels["train"].shape[1]
        wanted = len(known) or first
        if wrong := [part for part, y in labels.items() if y.shape[1] != wanted]:
            raise ValueError(f"{name}: y_{wrong[0]} has {labels[wrong[0]].shape[1]} labels, wanted are {wanted}")
        if declared and len(declared) != first:
            raise ValueError(f"{name}: {len(declared)} names of classes for {first} labels")
        return {part: Data(x[part], y) for part, y in labels.items()}, tuple(known or declared or numbered(first))
    masks = {part: masked(x[part], y, f"{name}: y_{part}", reading, several) for part, y in labels.items()}
    classes = position_classes({f"{name}: y_{part}": y for part, y in masks.items()}, declared, known, reading)
    return {part: Data(x[part], y) for part, y in masks.items()}, classes


def _shared(arrays: Arrays) -> list[str]:
    """That the test examples are the first or the last of the training examples."""
    train, test = arrays.x_train, arrays.x_test
    if not (isinstance(train, np.ndarray) and isinstance(test, np.ndarray) and len(test) <= len(train)):
        return []
    if not any(np.array_equal(test, part) for part in (train[: len(test)], train[len(train) - len(test) :])):
        return []
    return ["the test examples are training examples too: test scores are those of rows that were fitted"]


def _scale(arrays: Arrays, name: str, known: Preprocessing | None) -> float:
    """What whole numbers are divided by: what the network was trained with, where that is known."""
    if name in PREPROCESSING:
        return PREPROCESSING[name].scale
    return known.scale if known and known.scale not in (0, 1) else input_scale(arrays)


def before(data: str, reading: ReadConfig, outputs: int) -> Preprocessing | None:
    """What earlier versions made of own data, and did not write down: all bytes were divided, all labels were numbers.

    Returns:
        None where that is what this one makes of them.
    """
    path, arrays = Path(data), dict[str, np.ndarray]()
    if path.suffix.lower() == ".npz" and path.is_file():
        arrays = read_npz(path)
    elif (path / "x_train.npy").is_file():
        arrays = {"x_train": ArrayFile(path / "x_train.npy", reading).mapped}
    if "x_train" not in arrays:
        return None
    scale = BYTES if arrays["x_train"].dtype == np.uint8 else 1.0
    unnumbered = "classes" in arrays or reading.task != "classification"
    return Preprocessing(scale, () if unnumbered else numbered(outputs))


def _labelled(arrays: Arrays, name: str, reading: ReadConfig) -> dict[str, tuple[Any, Any]]:
    """Part -> examples, and their labels (`Labels`) or targets."""
    found: dict[str, tuple[Any, Any]] = {}
    pairs = {
        "train": (arrays.x_train, arrays.y_train),
        "validation": (arrays.x_validation, arrays.y_validation),
        "test": (arrays.x_test, arrays.y_test),
    }
    for part, (x, y) in pairs.items():
        if x is not None and y is not None:
            several = isinstance(arrays.y_train, Mapping)
            check_several(several, reading.task, name)
            found[part] = x, y if several else _labels_beside(x, y, f"{name}: x_{part}", f"{name}: y_{part}", reading)
    return found


def _labels_beside(x: Any, y: np.ndarray, what: str, labels: str, reading: ReadConfig) -> Any:
    """Labels or targets, as many as there are examples."""
    if not len(x.shape) or not y.ndim:
        raise ValueError(f"{what}: examples (n, ...) and labels (n,) are wanted, got shapes {x.shape} and {y.shape}")
    if len(x) != len(y):
        raise ValueError(f"{what}: {len(x)} examples but {len(y)} labels")
    if not len(x):
        raise ValueError(f"{what}: no examples")
    return LABELS[reading.task](y, labels)


def load_examples(
    path: Path, known: Preprocessing | None = None, reading: ReadConfig | None = None, takes: tuple[Input, ...] = ()
) -> Data:
    """Labelled examples of a `.npz` file (its `x` and `y`, or `x_test` and `y_test`) or of a table.

    Args:
        path: the file.
        known: preprocessing of the network they are for: with a scale, raw values cannot pass for scaled ones; its
            classes say which output a label means.
        reading: task and target columns of the network.
        takes: of several inputs those that it takes, with their scales.

    Raises:
        ValueError: missing arrays or columns, mismatched lengths, NaNs, values out of the network's range, a class
            that the network does not know.
    """
    reading, known = reading or ReadConfig(), known or Preprocessing(0.0, ())
    if is_text(path, reading):
        return text_examples(path, reading, known)
    if is_table(path):
        if not known.columns:
            raise ValueError(f"{path}: this network was not fitted on a table; give a .npz file")
        return standardized(table_data(path, known.columns, reading, known.classes), known.targets)
    arrays, labels_of = with_labels(read_npz(path), path)
    arrays, several = joined(arrays, path, takes)
    arrays = completed(arrays, reading.task, path, several) | labels_of
    for suffix in ("", "_test"):
        if f"x{suffix}" in arrays and f"y{suffix}" in arrays:
            check_several(bool(labels_of), reading.task, str(path), given=True)
            x, y = wanted(arrays, (f"x{suffix}", f"y{suffix}"), path)
            what = f"{path}: x{suffix}"
            if outputs := outputs_of(reading.task):
                found = inputs(x, what, scale_for(x, known, reading), reading)
                rows = several_rows(labels_of[f"y{suffix}"], outputs, known, f"{path}: y{suffix}")
                if len(rows) != len(found):
                    raise ValueError(f"{what}: {len(found)} examples but {len(rows)} labels")
                return replace(Data(found, rows), inputs=several)
            labels = _labels_beside(x, y, what, f"{path}: y{suffix}", reading)
            found = inputs(x, what, scale_for(x, known, reading), reading)
            if reading.task == "reconstruction":
                return own_targets(found, what)
            if reading.task in PER_POSITION:
                labels = masked(found, labels, f"{path}: y{suffix}", reading, several)
                check_labels(labels, len(known.classes) or MOST_CLASSES, f"{path}: y{suffix}")
            if reading.task == "classification":
                labels = torch.from_numpy(_known_places(labels, class_names(arrays, path), known, f"{path}: y{suffix}"))
            return replace(standardized(Data(found, labels), known.targets), inputs=several)
    raise ValueError(f"{path} needs arrays x and y, or x_test and y_test; it holds {', '.join(arrays)}")


def _known_places(labels: Labels, declared: Sequence[str], known: Preprocessing, what: str) -> np.ndarray:
    """Outputs that labels stand for; a network that nothing is known of has one for each of them."""
    if set(declared) <= set(known.classes):
        labels = named(labels, declared, what)
    return places(labels, known.classes or labels.names, what)
