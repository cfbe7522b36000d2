"""Columns of a table -> numbers: which are inputs, how each becomes one, what is refused.

Numbers are standardised by the training rows, names become one input per category. Both travel with the network
(`types.Column`), so that another table can be fed to it later.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyro_compress.data.labels import Labels, read_labels
from pyro_compress.data.table_files import Table
from pyro_compress.doubts import doubt
from pyro_compress.foreign import meant
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Column, Quantity

log = logging.getLogger(__name__)

MOST_CATEGORIES = 1000
"""A column with more different names than this is an identifier, not a category."""
FEW_CATEGORIES = 20
"""With more, and one for every second row, it is doubtful."""
ROUNDING = 16
"""A spread of so many units in the last place is what rounding leaves of a constant."""
INDEX = ("", "Unnamed: 0", "__index_level_0__")
"""Names under which pandas and R store the number of the row."""


def check_targets(table: Table, target: Sequence[str], task: str, path: Path) -> None:
    """Refuse targets that are not there, or not of the task.

    Raises:
        ValueError: as said.
    """
    listed = ", ".join(table)
    if not target:
        raise ValueError(f"{path}: name the column that is to be predicted with --target; it holds {listed}")
    if unknown := [name for name in target if name not in table]:
        raise ValueError(f"{path} has no column {unknown[0]!r}; it holds {listed}{_hint(unknown[0], list(table))}")
    if twice := [name for name in target if target.count(name) > 1]:
        raise ValueError(f"target {twice[0]!r} is named twice; give every --target once")
    if len(table) == len(set(target)):
        raise ValueError(f"{path}: no column is left as an input beside {', '.join(target)}")
    if task == "classification" and len(target) > 1:
        raise ValueError(f"{len(target)} targets: classification predicts one column; give one --target")
    if task == "regression" and (names := [name for name in target if table[name].dtype.kind == "U"]):
        raise ValueError(
            f"{path}: target {names[0]!r} holds names, regression needs numbers; use --task classification"
        )


def _hint(wanted: str, there: list[str]) -> str:
    """What may be wrong where a column is not found."""
    if len(there) == 1 and wanted.casefold() in there[0].casefold():
        return "; that is one column: put commas, semicolons, tabs or bars between columns"
    return meant(wanted, there)


def columns_of(table: Table, target: Sequence[str], rows: np.ndarray, path: Path) -> tuple[Column, ...]:
    """How every column but the targets becomes inputs, as its values in the given rows say.

    Raises:
        ValueError: an identifier, or no column that could be an input.
    """
    found = []
    for name, values in table.items():
        if name in target:
            continue
        if _counts_rows(values) and name in INDEX:
            doubt(log, f"{path}: column {name!r} numbers the rows and is left out")
            continue
        what, part = f"{path}: column {name!r}", values[rows]
        found.append(_names(part, name, what) if part.dtype.kind == "U" else _numbers(part, name, what))
        if _counts_rows(values) and np.ptp(values) == len(values) - 1:
            doubt(log, f"{what} has another whole number in every row; if it only counts them, leave it out")
    if not found:
        raise ValueError(f"{path}: no column is left as an input beside {', '.join(target)}")
    return tuple(found)


def _counts_rows(values: np.ndarray) -> bool:
    return values.dtype.kind in "iu" and len(values) > FEW_CATEGORIES and len(np.unique(values)) == len(values)


def _names(values: np.ndarray, name: str, what: str) -> Column:
    names = tuple(str(one) for one in np.unique(values))
    if len(names) > MOST_CATEGORIES:
        raise ValueError(f"{what} has {len(names)} different names; leave identifiers out")
    if len(names) > max(FEW_CATEGORIES, len(values) / 2):
        doubt(log, f"{what} has {len(names)} different names in {len(values)} rows; leave identifiers out")
    return Column(name, categories=names)


def _numbers(values: np.ndarray, name: str, what: str) -> Column:
    """A constant column has no spread to be measured by: its own size stands in, at least 1."""
    mean, std = moments(values, what)
    if not std:
        doubt(log, f"{what} is the same in all training rows: it says nothing")
    return Column(name, mean, std or max(1.0, abs(mean)))


def moments(values: np.ndarray, what: str) -> tuple[float, float]:
    """Mean and standard deviation in as many digits as matter, a few bytes of a file: to 10⁻⁷ of the latter.

    What only differs by rounding has no spread.

    Raises:
        ValueError: values whose spread is no number any more.
    """
    unit = float(np.finfo(values.dtype if values.dtype.kind == "f" else np.float64).eps)
    values = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(values.mean()), float(values.std())
    if not math.isfinite(std):
        raise ValueError(f"{what}: values up to {np.abs(values).max():g} are too large to be standardised")
    if std <= ROUNDING * unit * float(np.abs(values).max(initial=0.0)):
        std = 0.0
    digits = 7 - math.floor(math.log10(std)) if std else 15
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
            _say_unknown(values, parts[-1].any(1), f"{path}: column {column.name!r}")
        else:
            gap = values.astype(np.float64) - column.mean
            parts.append(_divided(gap, column.std, f"{path}: column {column.name!r}")[:, None])
    return np.concatenate(parts, 1)


def _say_unknown(values: np.ndarray, known: np.ndarray, what: str) -> None:
    if not known.all():
        strange = values[~known]
        message = (
            f"{len(strange)} of {len(values)} rows hold names that training never showed, the first {str(strange[0])!r}"
        )
        doubt(log, f"{what}: {message}")


def _divided(gap: np.ndarray, std: float | np.ndarray, what: str) -> np.ndarray:
    """Standardised values in the network's precision: one far from the training rows may be beyond it."""
    with np.errstate(over="ignore"):
        found: np.ndarray = (gap / std).astype(np.float32)
    if (broken := ~np.isfinite(found)).any():
        row = int(np.nonzero(broken)[0][0]) + 1
        raise ValueError(f"{what}: row {row} is too far from the training rows to be standardised (no finite float32)")
    return found


def labels_of(table: Table, reading: ReadConfig, path: Path) -> Labels:
    """Labels in the target column of classification; numbers with decimals may be some."""
    name = reading.target[0]
    return read_labels(table[name], f"{path}: column {name!r}", fractions=True)


def quantities(y: np.ndarray, names: Sequence[str]) -> tuple[Quantity, ...]:
    """Mean and standard deviation of every target `(rows, targets)`.

    Raises:
        ValueError: a target that never changes.
    """
    found = tuple(Quantity(n, *moments(column, f"target {n}")) for n, column in zip(names, y.T, strict=True))
    if flat := [one.name for one in found if not one.std > 0]:
        raise ValueError(f"target {flat[0]} is the same in all training rows; there is nothing to predict")
    return found


def standardized(y: np.ndarray, targets: Sequence[Quantity]) -> np.ndarray:
    """Targets `(rows, targets)` as the network predicts them, float32.

    Raises:
        ValueError: one that float32 does not hold.
    """
    means, stds = np.array([t.mean for t in targets]), np.array([t.std for t in targets])
    return _divided(y - means, stds, "targets")


def raw_targets(y: np.ndarray, targets: Sequence[Quantity]) -> np.ndarray:
    """Standardised targets in their own units again."""
    mean, std = (np.array([getattr(one, name) for one in targets], np.float64) for name in ("mean", "std"))
    return y.astype(np.float64) * std + mean
