"""A name, a file or a folder -> `Splits`: what is held out, how raw values become inputs and targets.

Images are float32 in [0, 1] with shape `(n, channels, height, width)`; tables become `(n, inputs)`, series
`(n, channels, length)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data import tabular
from pyro_compress.data.datasets import DATASETS as DATASETS
from pyro_compress.data.datasets import SPLIT_SEED, Arrays
from pyro_compress.data.folders import load_folder
from pyro_compress.data.npz import convert, load_npz, read_npz
from pyro_compress.data.streaming import Streamed
from pyro_compress.settings import TOLD, Reading
from pyro_compress.types import Column, Data, Preprocessing, Quantity, Splits

TEST_SHARE = 0.2
"""Share of a table's rows that is held out where no table with test rows is given."""

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
    found: dict[str, Any] = {} if splits.scale == 1 else {"scale": splits.scale}
    if splits.columns:
        found["columns"] = [
            {"name": c.name, "categories": list(c.categories)} if c.categories else _less(c, "categories")
            for c in splits.columns
        ]
    if splits.targets:
        return found | {"targets": [asdict(one) for one in splits.targets]}
    numbered = splits.classes == tuple(str(i) for i in range(len(splits.classes)))
    return found | ({} if numbered else {"classes": list(splits.classes)})


def _less(column: Column, field: str) -> dict[str, Any]:
    return {key: value for key, value in asdict(column).items() if key != field}


def preprocessing_of(meta: dict[str, Any]) -> Preprocessing:
    """The preprocessing of a compressed file with this metadata; without names, classes are numbered from 0."""
    if (data := meta.get("data")) in PREPROCESSING:
        return PREPROCESSING[data]
    return Preprocessing(
        float(meta.get("scale", 1.0)),
        tuple(str(name) for name in meta.get("classes", ())),
        tuple(Column(**(one | {"categories": tuple(one.get("categories", ()))})) for one in meta.get("columns", ())),
        tuple(Quantity(**one) for one in meta.get("targets", ())),
    )


def preprocessing(splits: Splits) -> Preprocessing:
    """The preprocessing that splits went through."""
    return Preprocessing(splits.scale, splits.classes, splits.columns, splits.targets)


def reading_of(meta: dict[str, Any]) -> Reading:
    """How the data of a compressed file with this metadata are read."""
    found = {name: meta[name] for name in TOLD if name in meta}
    return Reading(**found | {"target": tuple(meta.get("target", ()))})


def load_splits(
    data: str,
    data_dir: str = "",
    validation: float | None = None,
    download: bool = False,
    reading: Reading | None = None,
) -> Splits:
    """Load a data set and hold out a validation split, the same one in every run.

    Args:
        data: name in `DATASETS`, the path of a `.npz`, `.csv` or `.parquet` file, or a folder (`folders`).
        data_dir: folder of the downloaded data sets.
        validation: share of the training set, in (0, 1); None takes a tenth, or more where that is under 240 rows.
        download: fetch a missing data set.
        reading: task, columns, sizes.

    Raises:
        ValueError: unknown name, missing files, arrays that do not fit each other.
    """
    if not data:
        raise ValueError("no data are named, and the network does not say what it was fitted on; name them with --data")
    reading = reading or Reading()
    found = _loaded(data, data_dir, validation, download, reading)
    how = {one.name: getattr(reading, one.name) for one in fields(Reading)}
    return replace(found, origin={"data": data, "validation": validation} | how)


def _loaded(data: str, data_dir: str, validation: float | None, download: bool, reading: Reading) -> Splits:
    path = Path(data)
    if reading.series and path.suffix in tabular.SUFFIXES:
        raise ValueError(f"{data!r}: series are arrays (n, channels, length), in a .npz file or a folder of .npy files")
    if path.suffix in tabular.SUFFIXES:
        return table_splits(path, validation, reading)
    if reading.target or reading.test_data:
        raise ValueError(f"{data!r} is no table: target columns and test tables go with .csv and .parquet files")
    if data in DATASETS:
        arrays = DATASETS[data](data_dir, download)
    elif data.endswith(".npz"):
        arrays = load_npz(path)
    elif path.is_dir():
        arrays = load_folder(path, reading)
    else:
        raise ValueError(
            f"unknown data set {data!r}; allowed: {', '.join(DATASETS)}, a .npz, .csv or .parquet file, or a folder"
        )
    return split(arrays, validation, data, reading)


def split(arrays: Arrays, validation: float | None, name: str = "data", reading: Reading | None = None) -> Splits:
    """Check and convert raw arrays, and hold out the validation split (seed `SPLIT_SEED`)."""
    reading = reading or Reading()
    train = convert(arrays.x_train, arrays.y_train, f"{name}: x_train, y_train", reading=reading)
    test = convert(arrays.x_test, arrays.y_test, f"{name}: x_test, y_test", reading=reading)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise ValueError(
            f"{name}: one example of x_train has shape {tuple(train.x.shape[1:])}, "
            f"one of x_test {tuple(test.x.shape[1:])}; they must agree"
        )
    held_in, held_out = partition(train.y.numpy(), validation, reading, name)
    known = PREPROCESSING[name].scale if name in PREPROCESSING else None
    scale = known or (255.0 if _bytes(arrays.x_train) else 1.0)
    parts = [_rows(train, held_in), _rows(train, held_out), test]
    if reading.task == "regression":
        names = [f"target {i}" for i in range(train.y.shape[1])]
        parts, targets = _with_targets(parts, names, name)
        return _splits(parts, (), scale=scale, targets=targets)
    number = int(train.y.max()) + 1
    if len(test.y) and int(test.y.max()) >= number:
        raise ValueError(f"{name}: y_test holds class {int(test.y.max())}, which y_train never shows")
    if arrays.classes and len(arrays.classes) < number:
        raise ValueError(f"{name}: {len(arrays.classes)} class names for labels up to {number - 1}")
    return _splits(parts, arrays.classes or tuple(str(i) for i in range(number)), scale=scale)


def _splits(parts: Sequence[Data], classes: tuple[str, ...], **known: Any) -> Splits:
    train, validation, test = parts
    return Splits(train, validation, test, classes, **known)


def _bytes(x: Any) -> bool:
    """Whether the values were divided by 255."""
    return (x.source.read(0).dtype if isinstance(x, Streamed) else x.dtype) == np.uint8


def _rows(data: Data, rows: np.ndarray) -> Data:
    index: Any = torch.from_numpy(rows)
    x: Any = data.x  # a tensor, or what stands in for one
    part: Any = x.subset(index) if isinstance(x, Streamed) else x[index]
    return Data(part, data.y[index])


def _with_targets(parts: Sequence[Data], names: Sequence[str], name: str) -> tuple[list[Data], tuple[Quantity, ...]]:
    """Parts with targets in standard deviations of the first, the training rows, and what these are."""
    try:
        targets = tabular.quantities(parts[0].y.double().numpy(), names)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return [standardized(part, targets) for part in parts], targets


def standardized(data: Data, targets: Sequence[Quantity]) -> Data:
    """Data whose targets are in standard deviations; as they are, where there are none."""
    if not targets:
        return data
    if data.y.shape[1] != len(targets):
        raise ValueError(f"{data.y.shape[1]} targets, but the network predicts {len(targets)}")
    return Data(data.x, torch.from_numpy(tabular.standardized(data.y.double().numpy(), targets)))


def partition(y: np.ndarray, validation: float | None, reading: Reading, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on: stratified by class, or at random for regression.

    Raises:
        ValueError: a share or a limit out of range, or too few rows of a class.
    """
    if validation is None:
        validation = min(max(0.1, 240 / max(len(y), 1)), 1 / 3)
    if not 0 < validation < 1:
        raise ValueError(f"validation share {validation}: allowed are values between 0 and 1")
    labels = y if reading.task == "classification" else None
    held_in, held_out = _drawn(np.arange(len(y)), validation, labels, f"validation split in {name}")
    if not 0 < reading.limit < len(held_in):
        return held_in, held_out
    labels = None if labels is None else labels[held_in]
    _, kept = _drawn(held_in, reading.limit, labels, f"training subset in {name}")
    return kept, held_out


def _drawn(rows: np.ndarray, size: float, labels: np.ndarray | None, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of rows, the second of a given share or number, stratified by labels; both in order."""
    from sklearn.model_selection import train_test_split

    try:
        rest, chosen = train_test_split(rows, test_size=size, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:
        stratified = "" if labels is None else "stratified "
        if labels is not None and len(np.unique(labels)) > len(labels) / 2:
            raise ValueError(
                f"no {stratified}{what}: its {len(labels)} rows have {len(np.unique(labels))} different labels; "
                "numbers are predicted with --task regression"
            ) from error
        raise ValueError(f"no {stratified}{what} of size {size:.3g}: {error}") from error
    return np.sort(rest), np.sort(chosen)


def table_splits(path: Path, validation: float | None, reading: Reading) -> Splits:
    """Splits of a table; means, spreads and categories are those of the training rows.

    Raises:
        ValueError: what `tabular` refuses.
    """
    table = tabular.read_table(path)
    tabular.check_targets(table, reading.target, reading.task, path)
    classification, first = reading.task == "classification", table[reading.target[0]]
    classes = tabular.class_names(first) if classification else ()
    y = _target_values(table, reading, classes, path)
    rows = np.arange(len(y))
    if not reading.test_data:
        rows, out = _drawn(rows, TEST_SHARE, y if classification else None, f"test split in {path}")
    held_in, held_out = (rows[part] for part in partition(y[rows], validation, reading, str(path)))
    columns = tabular.columns_of(table, reading.target, held_in, path)
    if reading.test_data:
        test = _table_data(Path(reading.test_data), columns, reading, classes)
    else:
        test = Data(*_tensors(table, columns, y, out, path))
    parts = [*(Data(*_tensors(table, columns, y, rows, path)) for rows in (held_in, held_out)), test]
    targets: tuple[Quantity, ...] = ()
    if not classification:
        parts, targets = _with_targets(parts, reading.target, str(path))
    return _splits(parts, classes, columns=columns, targets=targets)


def _target_values(table: tabular.Table, reading: Reading, classes: Sequence[str], path: Path) -> np.ndarray:
    """Class numbers `(n,)`, or targets in their own units `(n, targets)`."""
    if reading.task == "classification":
        return tabular.labels_of(table[reading.target[0]], classes, f"{path}: column {reading.target[0]!r}")
    return np.stack([table[name] for name in reading.target], 1)


def _tensors(
    table: tabular.Table, columns: Sequence[Column], y: np.ndarray, rows: np.ndarray, path: Path
) -> tuple[Tensor, Tensor]:
    part = {name: values[rows] for name, values in table.items()}
    return torch.from_numpy(tabular.inputs_of(part, columns, path)), torch.from_numpy(y[rows])


def _table_data(path: Path, columns: Sequence[Column], reading: Reading, classes: Sequence[str]) -> Data:
    """All rows of a table, targets in their own units."""
    table = tabular.read_table(path)
    tabular.check_targets(table, reading.target, reading.task, path)
    y = _target_values(table, reading, classes, path)
    return Data(*_tensors(table, columns, y, np.arange(len(y)), path))


def load_examples(path: Path, known: Preprocessing | None = None, reading: Reading | None = None) -> Data:
    """Labelled examples of a `.npz` file (its `x` and `y`, or `x_test` and `y_test`) or of a table.

    Args:
        path: the file.
        known: preprocessing of the network they are for: with a scale, raw values cannot pass for scaled ones.
        reading: task and target columns of the network.

    Raises:
        ValueError: missing arrays or columns, mismatched lengths, NaNs, values out of the network's range.
    """
    reading = reading or Reading()
    if path.suffix in tabular.SUFFIXES:
        if known is None or not known.columns:
            raise ValueError(f"{path}: this network was not fitted on a table; give a .npz file")
        return standardized(_table_data(path, known.columns, reading, known.classes), known.targets)
    arrays = read_npz(path)
    for suffix in ("", "_test"):
        if f"x{suffix}" in arrays and f"y{suffix}" in arrays:
            what, scale = f"{path}: x{suffix}, y{suffix}", known.scale if known else None
            found = convert(arrays[f"x{suffix}"], arrays[f"y{suffix}"], what, scale, reading)
            return standardized(found, known.targets if known else ())
    raise ValueError(f"{path} needs arrays x and y, or x_test and y_test; it holds {', '.join(arrays)}")
