"""The command line: parse, call one function, print.

Nothing heavy is imported before a command runs; the names that options offer are read off the source of the modules
that own them, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import Group, echo, one_line_errors
from pyro_compress.cli.compare import compare
from pyro_compress.cli.compress import compress
from pyro_compress.cli.deploy import bench, export
from pyro_compress.cli.doctor import doctor
from pyro_compress.cli.fit import fit
from pyro_compress.cli.ignored import EVALUATE, StrictCommand
from pyro_compress.cli.info import info
from pyro_compress.cli.inspect import inspect_command, report
from pyro_compress.cli.options import data_options, device_options, memory_option
from pyro_compress.cli.predict import predict
from pyro_compress.cli.tune import tune
from pyro_compress.cli.values import Name, RunPath


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="pyro-compress")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train a network as a Pyro program, keep what its posterior is sure about, ship the rest as nothing."""
    if ctx.invoked_subcommand != "fit" and os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ:
        raise click.ClickException(
            f"{ctx.invoked_subcommand} is one process: start it without torchrun, which is for fit"
        )


@click.command(
    cls=StrictCommand, ignored=EVALUATE,
    examples=(
        "evaluate runs/digits-mlp-horseshoe-0", "evaluate network.pcn --split validation --json",
        "evaluate network.pcn --data new.csv",
    ),
)  # fmt: skip
@click.argument("target", type=RunPath())
@click.option(
    "--data",
    default=None,
    metavar="NAME",
    help="Other data: a table, text or .npz file is scored whole, of a data set or folder the --split; default: the "
    "--split of what it was fitted on. (--data of compress and inspect says where those lie now.)",
)
@click.option("--split", type=Name(["train", "validation", "test"]), default="test", help="Part of the data.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON object and nothing else.")
@memory_option
@data_options
@device_options
def evaluate(target: Path, data: str | None, split: str, as_json: bool, **options: Any) -> None:
    """Score a run folder (its posterior mean) or a .pcn file."""
    with one_line_errors():
        from pyro_compress.runs.evaluation import evaluate as evaluated

        found = evaluated(target, data, split, **options)
    echo(json.dumps(found.to_dict()) if as_json else f"{target}: {found!r}")


for command in (
    fit, compress, evaluate, inspect_command, report, info, predict, export, bench, compare, tune, doctor,
):  # fmt: skip
    main.add_command(command)
