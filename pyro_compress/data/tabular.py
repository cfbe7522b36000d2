"""Tables (CSV, Parquet) -> numbers: which columns are inputs, how each becomes one, what is refused.

Numbers are standardised by the training rows, names become one input per category. Both travel with the network
(`types.Column`), so that another table can be fed to it later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_compress.types import Column, Quantity

SUFFIXES = (".csv", ".parquet")
MOST_CATEGORIES = 1000
"""A column with more different names than this is an identifier, not a category."""

Table = Mapping[str, np.ndarray]
"""Column -> values: float64 numbers, or strings."""


def read_table(path: Path) -> Table:
    """All columns of a table.

    Raises:
        ValueError: no such file or package, a missing value, a column that is neither numbers nor names.
    """
    try:
        import pyarrow
        from pyarrow import csv, parquet
    except ImportError as error:
        raise ValueError(f"tables need one more package ({error}); pip install 'pyro-compress[tabular]'") from error
    try:
        if path.suffix == ".csv":
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
        else:
            table = parquet.ParquetFile(path).read()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable table: {error}") from error
    if not table.num_rows:
        raise ValueError(f"{path}: no rows")
    if twice := [name for name in table.column_names if table.column_names.count(name) > 1]:
        raise ValueError(f"{path}: column {twice[0]!r} stands there twice")
    return {name: _values(table.column(name), f"{path}: column {name!r}") for name in table.column_names}


def _values(column: Any, what: str) -> np.ndarray:
    """One column as float64 or strings; nothing may be missing."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        values = np.array([np.nan if v is None else float(v) for v in column.to_pylist()])
        missing = ~np.isfinite(values)
    elif types.is_string(kind) or types.is_large_string(kind):
        found = column.to_pylist()
        missing = np.array([v is None for v in found])
        values = np.array(["" if v is None else v for v in found], dtype=np.str_)
    else:
        raise ValueError(f"{what} holds {column.type}; columns must be numbers or names, convert it or leave it out")
    if missing.any():
        first = int(missing.argmax()) + 1
        raise ValueError(f"{what}: {int(missing.sum())} values are missing, NaN or infinite, the first in row {first}")
    return values


def check_targets(table: Table, target: Sequence[str], task: str, path: Path) -> None:
    """Refuse targets that are not there, or not of the task.

    Raises:
        ValueError: as said.
    """
    listed = ", ".join(table)
    if not target:
        raise ValueError(f"{path}: name the column that is to be predicted with --target; it holds {listed}")
    if unknown := [name for name in target if name not in table]:
        raise ValueError(f"{path} has no column {unknown[0]!r}; it holds {listed}")
    if len(table) == len(set(target)):
        raise ValueError(f"{path}: no column is left as an input beside {', '.join(target)}")
    if task == "classification" and len(target) > 1:
        raise ValueError(f"{len(target)} targets: classification predicts one column; give one --target")
    if task == "regression" and (names := [name for name in target if table[name].dtype.kind == "U"]):
        raise ValueError(
            f"{path}: target {names[0]!r} holds names, regression needs numbers; use --task classification"
        )


def columns_of(table: Table, target: Sequence[str], rows: np.ndarray, path: Path) -> tuple[Column, ...]:
    """How every column but the targets becomes inputs, as its values in the given rows say."""
    found = []
    for name, values in table.items():
        if name in target:
            continue
        part = values[rows]
        if part.dtype.kind == "U":
            names = tuple(str(one) for one in np.unique(part))
            if len(names) > MOST_CATEGORIES:
                raise ValueError(f"{path}: column {name!r} has {len(names)} different names; leave identifiers out")
            found.append(Column(name, categories=names))
        else:
            mean, std = moments(part)
            found.append(Column(name, mean, std or 1.0))
    return tuple(found)


def moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation in as many digits as matter, a few bytes of a file: to 10⁻⁷ of the latter."""
    mean, std = float(values.mean()), float(values.std())
    digits = 7 - math.floor(math.log10(std)) if 0 < std < math.inf else 15
    return round(mean, digits), round(std, digits)


def inputs_of(table: Table, columns: Sequence[Column], path: Path) -> np.ndarray:
    """Inputs of a network, `(rows, inputs)` float32, from a table that has these columns.

    Raises:
        ValueError: a column is missing, or of another kind than it was.
    """
    parts = []
    for column in columns:
        if column.name not in table:
            raise ValueError(f"{path} has no column {column.name!r}, which the network reads")
        values = table[column.name]
        if (values.dtype.kind == "U") != bool(column.categories):
            wanted = "names" if column.categories else "numbers"
            raise ValueError(f"{path}: column {column.name!r} must hold {wanted}, as in the training data")
        if column.categories:
            parts.append((values[:, None] == np.array(column.categories)).astype(np.float32))
        else:
            parts.append(((values - column.mean) / column.std).astype(np.float32)[:, None])
    return np.concatenate(parts, 1)


def class_names(values: np.ndarray) -> tuple[str, ...]:
    """Names of the classes in a target column, in order; whole numbers without a decimal point."""
    return tuple(_class_name(value) for value in np.unique(values))


def labels_of(values: np.ndarray, classes: Sequence[str], what: str) -> np.ndarray:
    """Class numbers of a target column.

    Raises:
        ValueError: a class that is none of them.
    """
    number = {name: index for index, name in enumerate(classes)}
    names = [_class_name(value) for value in values]
    if unknown := [name for name in names if name not in number]:
        raise ValueError(f"{what} holds class {unknown[0]!r}; the network knows {', '.join(classes)}")
    return np.array([number[name] for name in names], np.int64)


def _class_name(value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{float(value):.15g}"


def quantities(y: np.ndarray, names: Sequence[str]) -> tuple[Quantity, ...]:
    """Mean and standard deviation of every target `(rows, targets)`.

    Raises:
        ValueError: a target that never changes.
    """
    found = tuple(Quantity(n, *moments(column)) for n, column in zip(names, y.T, strict=True))
    if flat := [one.name for one in found if not one.std > 0]:
        raise ValueError(f"target {flat[0]} is the same in all training rows; there is nothing to predict")
    return found


def standardized(y: np.ndarray, targets: Sequence[Quantity]) -> np.ndarray:
    """Targets `(rows, targets)` as the network predicts them, float32."""
    means, stds = np.array([t.mean for t in targets]), np.array([t.std for t in targets])
    return ((y - means) / stds).astype(np.float32)
