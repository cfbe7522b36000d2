"""Tables -> splits; means, spreads and categories are those of the training rows, unless the network's are known."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pyro_compress.data import tabular
from pyro_compress.data.held_out import drawn, partition
from pyro_compress.data.labels import places
from pyro_compress.data.outputs import classes_of, splits_of, with_targets
from pyro_compress.data.table_files import Table, read_table
from pyro_compress.doubts import doubt
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Column, Data, Preprocessing, Quantity, Splits

log = logging.getLogger(__name__)

TEST_SHARE = 0.2
"""Share of a table's rows that is held out where no table with test rows is given."""


def table_splits(
    path: Path, validation: float | None, reading: ReadConfig, known: Preprocessing | None = None
) -> Splits:
    """Splits of a table; means, spreads and categories are those of the training rows, unless they are known.

    Raises:
        ValueError: what `tabular` refuses.
    """
    table = _table(path, reading)
    classification = reading.task == "classification"
    classes, y = _table_classes(table, reading, path, known) if classification else ((), _targets(table, reading))
    rows = np.arange(len(y))
    if not reading.test_data:
        rows, out = drawn(rows, TEST_SHARE, y if classification else None, f"test split in {path}")
    held_in, held_out = (rows[part] for part in partition(y[rows], validation, reading, str(path)))
    columns = known.columns if known else ()
    columns = columns or tabular.columns_of(table, reading.target, held_in, path)
    parts = [_rows_of_table(table, columns, y, rows, path) for rows in (held_in, held_out)]
    if reading.test_data:
        if os.path.realpath(reading.test_data) == os.path.realpath(path):
            doubt(log, f"{path} is its own --test-data: test scores are those of rows that were fitted")
        parts.append(table_data(Path(reading.test_data), columns, reading, classes))
    else:
        parts.append(_rows_of_table(table, columns, y, out, path))
    targets: tuple[Quantity, ...] = ()
    if not classification:
        parts, targets = with_targets(parts, reading.target, str(path), known)
    return splits_of(parts, classes, columns=columns, targets=targets)


def _table(path: Path, reading: ReadConfig) -> Table:
    table = read_table(path, reading.target if reading.task == "classification" else ())
    tabular.check_targets(table, reading.target, reading.task, path)
    return table


def _table_classes(
    table: Table, reading: ReadConfig, path: Path, known: Preprocessing | None
) -> tuple[tuple[str, ...], np.ndarray]:
    what = f"{path}: column {reading.target[0]!r}"
    classes, (numbers,) = classes_of({what: tabular.labels_of(table, reading, path)}, (), str(path), known)
    return classes, numbers


def _targets(table: Table, reading: ReadConfig) -> np.ndarray:
    """Targets in their own units, `(n, targets)`."""
    return np.stack([table[name].astype(np.float64) for name in reading.target], 1)


def _rows_of_table(table: Table, columns: Sequence[Column], y: np.ndarray, rows: np.ndarray, path: Path) -> Data:
    part = {name: values[rows] for name, values in table.items()}
    return Data(torch.from_numpy(tabular.inputs_of(part, columns, path)), torch.from_numpy(y[rows]))


def table_data(path: Path, columns: Sequence[Column], reading: ReadConfig, classes: Sequence[str]) -> Data:
    """All rows of a table, targets in their own units."""
    table = _table(path, reading)
    if reading.task == "classification":
        y = places(tabular.labels_of(table, reading, path), classes, f"{path}: column {reading.target[0]!r}")
    else:
        y = _targets(table, reading)
    return _rows_of_table(table, columns, y, np.arange(len(y)), path)
