"""Results of a study on disk: rows of every fit, by the hash of its configuration, and the tables of them all.

rows/HASH.json          a fit's evaluation
rows/HASH.failed        or why there is none
rows/HASH.lock          held while it is worked on
study.csv, study.json, study.md, study.toml
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.foreign import cell, json_of, of_type, ordinary, table
from pyro_compress.runs.identity import differing
from pyro_compress.studies.plan import Planned
from pyro_compress.studies.tables import COLUMNS, Row, markdown, row_of

STUDY_COPY = "study.toml"


@dataclass(frozen=True)
class Outcome:
    """What became of one fit: its rows, or why there are none, and what is doubtful of them."""

    planned: Planned
    rows: tuple[Row, ...]
    failure: str = ""
    doubts: tuple[str, ...] = ()


def settled(planned: Planned, out: Path, began: float) -> Outcome | None:
    """What is known of a fit: the rows of whenever it was evaluated, or a failure noted since `began`."""
    if (rows := cached_rows(planned, out)) is not None:
        return Outcome(planned, rows)
    failed = failed_path(planned, out)
    try:
        return Outcome(planned, (), ordinary(failed).read_text()) if failed.stat().st_mtime >= began else None
    except FileNotFoundError:  # none, or none any more
        return None


def rows_path(planned: Planned, out: Path) -> Path:
    """Where its rows lie, or will: under the name of an earlier version, where that made them as they are asked for."""
    path, earlier = out / "rows" / f"{planned.hash}.json", out / "rows" / f"{planned.earlier_hash}.json"
    return earlier if not path.is_file() and earlier.is_file() and _serves(earlier, planned) else path


def _serves(path: Path, planned: Planned) -> bool:
    """Whether what an earlier version stored was made by one of the configurations that are asked for."""
    try:
        stored = json.loads(ordinary(path).read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return any(not differing(stored, config) for config in planned.configs)


def lock_path(planned: Planned, out: Path) -> Path:
    """Held while a fit is worked on."""
    return out / "rows" / f"{planned.hash}.lock"


def failed_path(planned: Planned, out: Path) -> Path:
    """Why there are no rows."""
    return out / "rows" / f"{planned.hash}.failed"


def cached_rows(planned: Planned, out: Path) -> tuple[Row, ...] | None:
    """Rows of an earlier evaluation, under the study's present labels; None where a sparsity is missing."""
    rows = _stored(planned, out)
    if not set(planned.sparsities) <= {row.sparsity for row in rows}:
        return None
    method = planned.method
    return tuple(
        replace(row, method=method.name, variant=method.row_variant(row.ensemble))
        for sparsity in planned.sparsities
        for row in rows
        if row.sparsity == sparsity
    )


def with_stored(planned: Planned, out: Path) -> tuple[float, ...]:
    """Sparsities of a fit, and what another method or an earlier study had it evaluated at."""
    return tuple(dict.fromkeys([*planned.sparsities, *(row.sparsity for row in _stored(planned, out))]))


def _stored(planned: Planned, out: Path) -> list[Row]:
    try:
        path = rows_path(planned, out)
        document = table(json_of(ordinary(path).read_bytes(), str(path)), str(path))
        return [row_of(row, str(path)) for row in document["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_results(outcomes: list[Outcome], out: Path) -> None:
    """Write study.csv, study.json and study.md."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    runs = dict[str, dict[str, Any]]()
    for outcome in outcomes:
        path, name = rows_path(outcome.planned, out), outcome.planned.hash
        if path.exists():
            if name not in runs:
                runs[name] = table(json_of(ordinary(path).read_bytes(), str(path)), str(path)) | {"rows": []}
            runs[name]["rows"] += [asdict(row) for row in outcome.rows]  # methods may share a fit
    failures = {o.planned.hash: o.failure for o in outcomes if o.failure}
    write_atomically(out / "study.csv", csv_text(rows).encode())
    document = {"runs": runs, "failures": failures}
    write_atomically(out / "study.json", (json.dumps(document, indent=1) + "\n").encode())
    write_atomically(out / "study.md", (markdown(rows) + "\n").encode())


def csv_text(rows: list[Row]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def keep_study(study: Path, out: Path) -> None:
    """Put a copy of the study file beside its results."""
    (out / "rows").mkdir(parents=True, exist_ok=True)
    write_atomically(out / STUDY_COPY, study.read_bytes())


def read_results(out: Path) -> list[Row]:
    """Rows of a results folder, extras included.

    Raises:
        ValueError: no results folder.
    """
    return [row for run in read_document(out)["runs"].values() for row in run["rows"]]


def read_document(out: Path) -> dict[str, Any]:
    """What `study.json` of a results folder says, its rows read.

    Raises:
        ValueError: no results folder.
    """
    path = out / "study.json"
    try:
        document = table(json_of(ordinary(path).read_bytes(), str(path)), str(path))
        runs = {name: table(run, f"{path}: {name}") for name, run in table(document["runs"], f"{path}: runs").items()}
        found = {
            name: run
            | {"rows": [row_of(row, f"{path}: {name}") for row in of_type(run["rows"], list[Any], f"{path}: rows")]}
            | {key: table(run[key], f"{path}: {key}") for key in ("versions", "machine")}
            for name, run in runs.items()
        }
        return {"runs": found, "failures": of_type(document.get("failures", {}), dict[str, str], f"{path}: failures")}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{out} is no results folder of compare (it needs study.json): {error}") from error
