"""compare: a study, run and tabled."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_compress.cli.commands import INTERRUPTED, echo, one_line_errors, quiet_option, tell
from pyro_compress.cli.console import outcome_line, outcome_text, submitted_text
from pyro_compress.cli.ignored import COMPARE, StrictCommand
from pyro_compress.cli.options import (
    announce_code,
    code_options,
    data_options,
    device_options,
    runs_option,
    submit_options,
)
from pyro_compress.cli.values import FilePath

if TYPE_CHECKING:
    from pyro_compress.studies.study import Comparison, Sweep


class Seeds(click.ParamType):
    """Comma-separated integers."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`"0,1"` -> `(0, 1)`."""
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: give seeds separated by commas, like 0,1,2", param, ctx)


@click.command(
    cls=StrictCommand, ignored=COMPARE, short_help="Fit and prune what a study file names, into one table.",
    examples=(
        "compare study.toml --jobs 4", "compare study.toml --seeds 0,1 --elpd",
        "compare study.toml --submit --slurm partition=gpu,time=60",
    ),
)  # fmt: skip
@click.argument(
    "study",
    type=FilePath(
        "the TOML file of a study; files that are there stand side by side with: pyro-compress bench FILE.pcn FILE.pcn"
    ),
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="Results folder; default studies/NAME."
)
@runs_option
@click.option("--jobs", type=click.IntRange(1), default=1, help="Fits at a time, one process each.")
@click.option("--seeds", type=Seeds(), default=None, help="Only these seeds of the study.")
@click.option("--table", is_flag=True, help="Fit nothing: tables of what is there.")
@click.option("--rows", is_flag=True, help="Fit nothing: print a command for every row that is missing.")
@click.option(
    "--row", metavar="HASH", default=None,
    help="Make one row, unless it is there; exit status 75: another process works on it.",
)  # fmt: skip
@submit_options("the rows that are missing")
@click.option("--elpd", is_flag=True, help="Rank the posteriors by ELPD too (ArviZ; also elpd.json in --out).")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
@code_options
@data_options
@device_options
@quiet_option
def compare(
    study: Path, out: Path | None, table: bool, rows: bool, row: str | None, submit: bool, slurm: tuple[str, ...],
    elpd: bool, markdown: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Fit and prune what a study file names; resumes, and ends in one table (also CSV, JSON, Markdown in --out)."""
    from pyro_compress.runs.starting import end_with_parent

    end_with_parent()
    with one_line_errors():
        from pyro_compress.foreign import read_toml

        if not table:
            announce_code(read_toml(study), study)
        from pyro_compress.studies.study import compare as compared
        from pyro_compress.studies.study import place_of, sweep

        options["seeds"] = options["seeds"] or ()
        jobs = options.pop("jobs")
        try:
            if rows or row is not None or submit:
                found = sweep(study, out, **options)
                if submit:
                    return _submit(found, slurm)
                return _print_commands(found) if rows else _make_row(found, str(row), as_json)
            results = compared(study, out, jobs, table=table, elpd=elpd, on_outcome=outcome_line, **options)
        except KeyboardInterrupt:
            if row is None:
                echo(f"stopped, what is done is kept; the same command goes on, in {place_of(study, out)}", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
    _print_tables(results, elpd, markdown, as_json)


def _print_tables(found: Comparison, elpd: bool, markdown: bool, as_json: bool) -> None:
    from pyro_compress.studies import tables

    if as_json:
        document = found.to_dict()
        echo(json.dumps(document if elpd else document["rows"]))
    else:
        tell((tables.markdown if markdown else tables.plain)(found.rows))
        if elpd:
            from pyro_compress.studies.ranking import lines

            tell("\n" + (tables.markdown_table if markdown else tables.aligned)(lines(found.ranked)))
    if failed := found.failed:
        raise click.ClickException(
            f"{len(failed)} of {len(found.outcomes)} fits failed; the first: {failed[0].failure}"
        )


def _print_commands(found: Sweep) -> None:
    if missing := found.missing:
        echo("\n".join(shlex.join(found.command(planned)) for planned in missing))
    else:
        _tell_that_all_is_there(found)


def _submit(found: Sweep, slurm: Sequence[str]) -> None:
    from pyro_compress.studies.study import submit_rows

    if handed := submit_rows(found, slurm):
        tell(submitted_text(handed, "rows", _table(found)))
    else:
        _tell_that_all_is_there(found)


def _table(found: Sweep) -> str:
    return shlex.join(["compare", str(found.path), "--out", str(found.out), "--table"])


def _tell_that_all_is_there(found: Sweep) -> None:
    tell(f"no row is missing; the table: pyro-compress {_table(found)}", err=True)


def _make_row(found: Sweep, name: str, as_json: bool) -> None:
    from pyro_compress.doubts import keep
    from pyro_compress.studies.compare import BUSY
    from pyro_compress.studies.study import run_row

    if (outcome := run_row(found, name)) is None:
        tell(f"row {name}: another process works on it, so nothing was done", err=True)
        raise click.exceptions.Exit(BUSY)
    if as_json:
        document = {"rows": [vars(one) for one in outcome.rows], "failure": outcome.failure, "doubts": outcome.doubts}
        echo(json.dumps(document))
        raise click.exceptions.Exit(1 if outcome.failure else 0)
    for sentence in outcome.doubts:
        keep(sentence)
    if outcome.failure:
        raise click.ClickException(outcome_text(outcome))
    tell(outcome_text(outcome), err=True)
