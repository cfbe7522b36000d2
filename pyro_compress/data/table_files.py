"""Tables on disk (CSV, Parquet) -> columns of numbers, of yes and no, or of text; nothing may be missing.

CSV is taken as spreadsheets and programs of any country write it: the separator is the one that the first line has,
numbers may have a decimal comma. What only looks like numbers (thousands, units, words for a missing one) is refused.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_compress.data.labels import MISSING
from pyro_compress.doubts import doubt
from pyro_compress.foreign import ordinary

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".parquet")
SEPARATORS = (",", ";", "\t", "|")
MIXED = 20
"""A column of words of which most are numbers, more different ones than this, is a column of numbers."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+")
DRESSED = re.compile(r"[-+]?[^\w\s,.]?\s*[-+]?\d[\d.,' ]*\s*([%°]|[^\W\d_]{1,4})?")
DIGITS = re.compile(r"[-+\d.,' ]")
LEADING_ZERO = re.compile(r"\s*0\d")

Table = Mapping[str, np.ndarray]
"""Column -> values: numbers, bools, or strings."""


def is_table(path: Path) -> bool:
    """Whether a name is that of a table."""
    return path.suffix.lower() in SUFFIXES


def read_table(path: Path, labels: Sequence[str] = (), only: Sequence[str] | None = None) -> Table:
    """Columns of a table.

    Args:
        path: the file.
        labels: columns of labels, which are names even where they look like numbers: `01067` keeps its zero.
        only: columns that are looked at, where they are there; None: all.

    Raises:
        ValueError: no such file or package, a missing value, a column that is neither numbers nor names.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"tables need one more package ({error}); pip install 'pyro-compress[tabular]'") from error
    ordinary(path)
    try:
        is_parquet = path.suffix.lower() == ".parquet"
        table = parquet.ParquetFile(path).read() if is_parquet else _read_csv(path, labels)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable table: {' '.join(str(error).split())}") from error
    if not table.num_rows:
        raise ValueError(f"{path}: no rows")
    names = [name for name in table.column_names if only is None or name in only]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: column {twice[0]!r} stands there twice")
    return {name: _values(table.column(name), f"{path}: column {name!r}", name in labels) for name in names}


def _read_csv(path: Path, labels: Sequence[str]) -> Any:
    import pyarrow
    from pyarrow import csv as arrow

    parse = arrow.ParseOptions(delimiter=separator(path), newlines_in_values=True)
    # NA is a category, and a country
    table = arrow.read_csv(path, None, parse, arrow.ConvertOptions(strings_can_be_null=False))
    for index, name in enumerate(table.column_names):
        if name in labels and pyarrow.types.is_integer(table.column(index).type):
            as_text = arrow.ConvertOptions(include_columns=[name], column_types={name: pyarrow.string()})
            column = arrow.read_csv(path, None, parse, as_text).column(0)
            if any(LEADING_ZERO.match(text) for text in column.unique().to_pylist()):
                table = table.set_column(index, name, column)
    return table


def separator(path: Path) -> str:
    """What stands between the columns: of `SEPARATORS` the one that the first line has most of, a comma if none.

    Raises:
        ValueError: the file is no text in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: text must be in UTF-8; save it so ({error})") from error
    counts = {one: len(next(csv.reader([header], delimiter=one), [])) for one in SEPARATORS}
    return max(SEPARATORS, key=lambda one: counts[one])


def _values(column: Any, what: str, labels: bool) -> np.ndarray:
    """One column as numbers, bools or strings; nothing may be missing."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    found = column.to_pylist()
    if types.is_boolean(kind) or types.is_integer(kind):
        _check_missing(np.array([v is None for v in found]), what)
        return np.array(found, np.bool_ if types.is_boolean(kind) else None)
    if types.is_floating(kind) or types.is_decimal(kind):
        values = np.array([np.nan if v is None else float(v) for v in found])
        _check_missing(~np.isfinite(values), what)
        return values.astype(np.float32) if types.is_float32(kind) else values
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        _check_missing(np.array([v is None or not v.strip() for v in found]), what)
        return np.array(found, dtype=np.str_) if labels else _numbers_or_names(found, what)
    if types.is_null(kind):
        raise ValueError(f"{what} is empty: every value is missing; leave it out")
    hint = "save the text in UTF-8" if types.is_binary(kind) else "convert it or leave it out"
    raise ValueError(f"{what} holds {column.type}; columns must be numbers or names, {hint}")


def _check_missing(missing: np.ndarray, what: str) -> None:
    if missing.any():
        first = int(missing.argmax()) + 1
        raise ValueError(f"{what}: {int(missing.sum())} values are missing, NaN or infinite, the first in row {first}")


def _numbers_or_names(found: list[str], what: str) -> np.ndarray:
    """Texts as they are, or the numbers that they are: stored as text, between spaces, with a decimal comma.

    Raises:
        ValueError: numbers that cannot be read with certainty, or numbers with words between them.
    """
    words = [text for text in found if not NUMBER.fullmatch(text.strip())]
    commas = [text for text in words if COMMA.fullmatch(text.strip())]
    if commas and len(commas) == len(words) and not all(THOUSANDS.fullmatch(text.strip()) for text in commas):
        doubt(log, f"{what}: numbers such as {commas[0]} are read with a decimal comma")
        return np.array([float(text.replace(",", ".")) for text in found])
    dressed = [text for text in words if DRESSED.fullmatch(text.strip())]
    if len({DIGITS.sub("", text) for text in dressed}) > 1:  # codes, not one unit or currency
        dressed = []
    plain = len(found) - len(words)
    if not words and len(set(found)) > MIXED and not any(LEADING_ZERO.match(text) for text in found):
        values = np.array([float(text) for text in found])
        _check_missing(~np.isfinite(values), what)
        return values
    if words and len(set(found)) > MIXED and plain + len(dressed) > len(found) / 2:
        odd = next(text for text in words if text not in dressed or len(dressed) == len(words))
        raise ValueError(
            f"{what}: {plain + len(dressed)} of {len(found)} values are numbers, but not {odd!r} (row "
            f"{found.index(odd) + 1}); write every value as a plain number such as 1234.5, or leave the column out"
        )
    _say_doubts(found, plain + len(dressed), what)
    return np.array(found, dtype=np.str_)


def _say_doubts(found: list[str], numbers: int, what: str) -> None:
    """What is doubtful about a column of categories, so many of which are numbers."""
    if void := [text for text in found if text.strip().casefold() in MISSING]:
        doubt(log, f"{what}: {void[0]!r} (row {found.index(void[0]) + 1}) is taken as a category of its own")
    elif numbers > len(found) / 2:
        doubt(log, f"{what}: {numbers} of {len(found)} values are numbers; all are taken as categories")
