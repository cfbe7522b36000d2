"""Rows of a study and the tables made of them: mean ± standard deviation over seeds, bold beyond the noise."""

from __future__ import annotations

import csv
import functools
import io
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from pyro_compress.foreign import from_cell, record


@dataclass(frozen=True)
class Row:
    """One fit at one sparsity, on the test split.

    Attributes:
        dataset: data set.
        network: network.
        method: method.
        variant: variant of the method, or empty.
        sparsity: share of the weights removed.
        seed: seed of the fit.
        accuracy: in [0, 1].
        nll_nats: per example.
        ece: expected calibration error.
        train_seconds: of the fit, all epochs, with the validation accuracy of each.
        config_hash: names the resolved configuration.
        brier: Brier score.
        ood_auroc: how well predictive entropy tells the other data set from this one; None if not measured.
        ensemble: whether several draws predict together; otherwise the posterior mean does.
        file_bytes: size of the pruned posterior mean as a file, at the precision `compression.rounding.COMPARED`; None
            of an ensemble, and of rows that earlier versions made.
    """

    dataset: str
    network: str
    method: str
    variant: str
    sparsity: float
    seed: int
    accuracy: float
    nll_nats: float
    ece: float
    train_seconds: float
    config_hash: str
    brier: float | None = None
    ood_auroc: float | None = None
    ensemble: bool = False
    file_bytes: int | None = None

    @property
    def label(self) -> str:
        """Method and variant."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


_HASH = re.compile(r"[0-9a-f]{1,64}")
"""What a configuration's hash looks like: it names a folder."""


def row_of(document: Any, where: str) -> Row:
    """A row from JSON.

    Raises:
        ValueError: it is none.
    """
    row = record(Row, document, where)
    if not 0 <= row.sparsity < 1 or not _HASH.fullmatch(row.config_hash):
        raise ValueError(f"{where}: sparsity {row.sparsity} with config_hash {row.config_hash!r}")
    return row


COLUMNS = tuple(field.name for field in fields(Row))[:11]
"""Columns of study.csv."""

READING = (
    "Mean ± sample standard deviation over the seeds; bold: beats every other row of the column in a paired t-test "
    "over the seeds at 5 %."
)
"""How to read a table."""

Cell = dict[int, float]
"""Seed -> value."""


def read_csv(text: str) -> list[Row]:
    """Rows of a study.csv.

    Raises:
        ValueError: other columns than `COLUMNS`.
    """
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"columns {', '.join(reader.fieldnames or ())}; expected: {', '.join(COLUMNS)}")
    numbers: dict[str, Callable[[str], float]] = {
        "seed": int, "sparsity": float, "accuracy": float, "nll_nats": float, "ece": float, "train_seconds": float,
    }  # fmt: skip
    return [Row(**{key: numbers.get(key, from_cell)(value) for key, value in line.items()}) for line in reader]  # type: ignore[arg-type]


def spread(values: list[float], digits: int = 2) -> str:
    """Mean ± sample standard deviation, with commas between thousands; a single value without a spread."""
    mean = f"{statistics.mean(values):,.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else mean


def exceeds_noise(best: Cell, other: Cell) -> bool:
    """Whether `best` is higher than `other` by a two-sided paired t-test over their common seeds, at 5 %.

    Fewer than two common seeds say nothing.
    """
    gaps = [best[seed] - other[seed] for seed in best if seed in other]
    if len(gaps) < 2:
        return False
    return statistics.mean(gaps) > t_quantile(len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))


@functools.cache
def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t with this many degrees of freedom, at least one."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def winner(column: dict[str, Cell]) -> str | None:
    """The row that beats every other one beyond the noise, if there is one."""
    if len(column) < 2:
        return None
    best = max(column, key=lambda label: statistics.mean(column[label].values()))
    beaten = all(exceeds_noise(column[best], cell) for label, cell in column.items() if label != best)
    return best if beaten else None


def grid(rows: list[Row], measure: str = "accuracy") -> dict[float, dict[str, Cell]]:
    """Sparsity -> method -> seed -> value; accuracies in percent."""
    factor = 100 if measure == "accuracy" else 1
    columns: dict[float, dict[str, Cell]] = {}
    for row in rows:
        cell = columns.setdefault(row.sparsity, {}).setdefault(row.label, {})
        cell[row.seed] = factor * getattr(row, measure)
    return dict(sorted(columns.items()))


def table(rows: list[Row], measure: str = "accuracy", digits: int = 2) -> list[list[str]]:
    """Header and lines of one data set and network: methods down, sparsities across, then seeds and minutes."""
    columns = grid(rows, measure)
    winners = {sparsity: winner(column) for sparsity, column in columns.items()}
    lines = [["method", *(f"{100 * sparsity:g} %" for sparsity in columns), "seeds", "minutes"]]
    for label in dict.fromkeys(row.label for row in rows):
        own = [row for row in rows if row.label == label]
        cells = []
        for sparsity, column in columns.items():
            text = spread(list(column[label].values()), digits) if label in column else ""
            cells.append(f"**{text}**" if winners[sparsity] == label else text)
        seeds = sorted({row.seed for row in own})
        minutes = [row.train_seconds / 60 for row in {row.config_hash: row for row in own}.values()]
        lines.append([label, *cells, ", ".join(map(str, seeds)), f"{statistics.mean(minutes):.1f}"])
    return lines


def groups(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by (data set, network)."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.dataset, row.network), []).append(row)
    return found


def markdown_table(lines: list[list[str]]) -> str:
    """Lines of cells as a Markdown table; the first is the header."""
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def markdown(rows: list[Row]) -> str:
    """Test accuracy in percent, one Markdown table per data set and network."""
    parts = [
        f"### {dataset}, {network}: test accuracy (%) by sparsity\n\n{markdown_table(table(members))}\n"
        for (dataset, network), members in groups(rows).items()
    ]
    return "\n".join(parts).strip()


def plain(rows: list[Row]) -> str:
    """The same for a terminal: aligned columns, a star where Markdown has bold."""
    parts = []
    for (dataset, network), members in groups(rows).items():
        lines = [[cell.removeprefix("**").replace("**", " *") for cell in line] for line in table(members)]
        parts.append(f"{dataset}, {network}: test accuracy (%) by sparsity\n{aligned(lines)}")
    return "\n\n".join(parts)


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells in columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
