"""compare: a study, run and tabled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_compress.cli.commands import echo, one_line_errors
from pyro_compress.cli.console import outcome_line
from pyro_compress.cli.ignored import COMPARE, StrictCommand
from pyro_compress.cli.options import announce_code, code_options, data_options, device_options

if TYPE_CHECKING:
    from pyro_compress.studies.ranking import Ranked
    from pyro_compress.studies.tables import Row


class Seeds(click.ParamType):
    """Comma-separated integers."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`"0,1"` -> `(0, 1)`."""
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: give seeds separated by commas, like 0,1,2", param, ctx)


@click.command(cls=StrictCommand, ignored=COMPARE, short_help="Fit and prune what a study file names, into one table.")
@click.argument("study", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Results folder; default studies/NAME.")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Fits at a time, one process each.")
@click.option("--seeds", type=Seeds(), default=None, help="Only these seeds of the study.")
@click.option("--table", is_flag=True, help="Fit nothing: tables of what is there.")
@click.option("--elpd", is_flag=True, help="Rank the posteriors by ELPD too (ArviZ; also elpd.json in --out).")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
@code_options
@data_options
@device_options
def compare(
    study: Path, out: Path | None, jobs: int, seeds: tuple[int, ...] | None, table: bool, elpd: bool, markdown: bool,
    as_json: bool, data_dir: str, device: str, threads: int,
) -> None:  # fmt: skip
    """Fit and prune what a study file names; resumes, and ends in one table (also CSV, JSON, Markdown in --out)."""
    with one_line_errors():
        from collections import Counter
        from dataclasses import asdict, replace

        from pyro_compress.foreign import read_toml
        from pyro_compress.kinds import is_study
        from pyro_compress.places import check_results

        if not table:
            announce_code(read_toml(study), study)
        from pyro_compress.studies import compare as comparison
        from pyro_compress.studies import plan as studies
        from pyro_compress.studies import results, tables

        read = studies.read_study(study)
        out = out or Path("studies") / read.name
        check_results(out, is_study, study, "compare")
        read = replace(read, seeds=seeds or read.seeds)
        planned = studies.plan(read, data_dir, device, threads)
        wanted = [one for one in planned if not table or results.cached_rows(one, out)]
        if not wanted:
            raise ValueError(f"{out} holds no row of {study}; run it without --table")
        fitted = Counter((one.config.data, one.config.seed) for one in wanted if one.config.prior != "none")
        if elpd and max(fitted.values(), default=0) < 2:
            raise ValueError(f"{study} has no two posteriors of the same data set and seed; --elpd ranks two or more")
        results.keep_study(study, out)
        try:
            outcomes = comparison.compare(wanted, out, jobs, outcome_line)
        except KeyboardInterrupt:
            echo(f"stopped, what is done is kept; the same command goes on, in {out}", err=True)
            raise click.exceptions.Exit(130) from None
        rows = [row for outcome in outcomes for row in outcome.rows]
        ranked = _ranked(rows, out, data_dir) if elpd else []
    if as_json:
        found = [vars(row) for row in rows]
        echo(json.dumps({"rows": found, "elpd": [asdict(one) for one in ranked]} if elpd else found))
    else:
        echo((tables.markdown if markdown else tables.plain)(rows))
        if elpd:
            from pyro_compress.studies.ranking import lines

            echo("\n" + (tables.markdown_table if markdown else tables.aligned)(lines(ranked)))
    if failed := [outcome for outcome in outcomes if outcome.failure]:
        raise click.ClickException(f"{len(failed)} of {len(planned)} fits failed; the first: {failed[0].failure}")


def _ranked(rows: list[Row], out: Path, data_dir: str) -> list[Ranked]:
    from pyro_compress.studies.ranking import rank, write_ranking

    ranked = rank(rows, out, data_dir)
    write_ranking(ranked, out)
    return ranked
