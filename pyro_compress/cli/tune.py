"""tune: a search over the settings of fit and compression together."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import INTERRUPTED, echo, one_line_errors, quiet_option, tell
from pyro_compress.cli.console import searched_text, submitted_text, trials_shown
from pyro_compress.cli.ignored import TUNE, StrictCommand
from pyro_compress.cli.options import (
    announce_code,
    code_options,
    data_options,
    device_options,
    runs_option,
    setting_options,
    submit_options,
)
from pyro_compress.cli.values import FilePath
from pyro_compress.settings.studies import SearchConfig

STORAGE = "PYRO_COMPRESS_STORAGE"


@click.command(
    cls=StrictCommand, ignored=TUNE, short_help="Search the settings of fit and compress together.",
    examples=(
        "tune study.toml --trials 20 --workers 2", "tune study.toml --resume --trials 40",
        "tune study.toml --worker  # on another machine, with the same folder",
    ),
)  # fmt: skip
@click.argument("study", type=FilePath("the TOML file of a search"))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=None, help="Results folder; default tuning/NAME.")
@runs_option
@setting_options(SearchConfig, ("trials", "minutes", "sampler", "seed"), "Instead of the study's", unset=True)
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes on this machine.")
@click.option("--resume", is_flag=True, help="Go on with a study: after an interruption, or with a larger budget.")
@click.option("--worker", is_flag=True, help="Join a study that somebody else began, and leave the outcome to them.")
@submit_options("the workers")
@click.option(
    "--storage", envvar=STORAGE, default="", show_default=False, metavar="URL",
    help=f"Data base that workers share (also {STORAGE}); default a journal in --out.",
)  # fmt: skip
@click.option(
    "--grace",
    type=click.FloatRange(2),
    default=60.0,
    metavar="SECONDS",
    help="Silence after which a worker is taken for dead, or for stopped.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON object and nothing else.")
@code_options
@data_options
@device_options
@quiet_option
def tune(
    study: Path, out: Path | None, workers: int, resume: bool, worker: bool, submit: bool, slurm: tuple[str, ...],
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Search the settings that a study file names; ends in the Pareto set of files and the best configuration."""
    from pyro_compress.runs.starting import end_with_parent

    end_with_parent()
    with one_line_errors():
        from pyro_compress.foreign import read_toml

        announce_code(read_toml(study), study)
        from pyro_compress.tuning.search import join, place_of
        from pyro_compress.tuning.search import submit as submitted
        from pyro_compress.tuning.search import tune as searched

        own = {name: options.pop(name) for name in ("trials", "minutes", "sampler", "seed")}
        asked = options | {name: value for name, value in own.items() if value is not None}
        if submit:
            place, handed = submitted(study, out, workers, slurm=slurm, resume=resume, **asked)
            again = shlex.join(["tune", str(study), "--out", str(place), "--resume"])
            return tell(submitted_text(handed, "workers", again))
        try:
            with trials_shown() as on_trial:
                if worker:
                    join(study, out, on_trial=on_trial, **asked)
                    return
                outcome = searched(study, out, workers, resume=resume, on_trial=on_trial, **asked)
        except KeyboardInterrupt:
            again = f"pyro-compress tune {study} --out {place_of(study, out)} --resume"
            echo(f"stopped, state kept; go on with: {again}", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
    if as_json:
        echo(json.dumps(outcome.to_dict()))
    else:
        tell(searched_text(outcome))
