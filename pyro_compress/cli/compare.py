"""compare: a study, run and tabled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import echo, one_line_errors, quiet_option, tell
from pyro_compress.cli.console import outcome_line
from pyro_compress.cli.ignored import COMPARE, StrictCommand
from pyro_compress.cli.options import announce_code, code_options, data_options, device_options, runs_option


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
    examples=("compare study.toml --jobs 4", "compare study.toml --seeds 0,1 --elpd", "compare study.toml --table"),
)  # fmt: skip
@click.argument("study", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="Results folder; default studies/NAME."
)
@runs_option
@click.option("--jobs", type=click.IntRange(1), default=1, help="Fits at a time, one process each.")
@click.option("--seeds", type=Seeds(), default=None, help="Only these seeds of the study.")
@click.option("--table", is_flag=True, help="Fit nothing: tables of what is there.")
@click.option("--elpd", is_flag=True, help="Rank the posteriors by ELPD too (ArviZ; also elpd.json in --out).")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
@code_options
@data_options
@device_options
@quiet_option
def compare(
    study: Path, out: Path | None, seeds: tuple[int, ...] | None, table: bool, elpd: bool, markdown: bool,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Fit and prune what a study file names; resumes, and ends in one table (also CSV, JSON, Markdown in --out)."""
    with one_line_errors():
        from pyro_compress.foreign import read_toml

        if not table:
            announce_code(read_toml(study), study)
        from pyro_compress.studies import tables
        from pyro_compress.studies.study import compare as compared
        from pyro_compress.studies.study import place_of

        try:
            found = compared(study, out, seeds=seeds or (), table=table, elpd=elpd, on_outcome=outcome_line, **options)
        except KeyboardInterrupt:
            echo(f"stopped, what is done is kept; the same command goes on, in {place_of(study, out)}", err=True)
            raise click.exceptions.Exit(130) from None
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
