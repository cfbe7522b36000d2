"""Options that say nothing where they stand: given on the command line and ignored, each is an error of one line.

A row is what `StrictCommand` takes as `ignored`: the options it is about, when they are ignored, and what to do. Values
of a TOML file do not count: a run's config.toml holds every option.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from pyro_compress.cli.commands import Command
from pyro_compress.cli.options import NETWORK
from pyro_compress.settings import PosteriorConfig
from pyro_compress.settings.declared import having
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.settings.registries import names_in

Values = dict[str, Any]
DATASETS = names_in("data/datasets.py", "DATASETS")


class Ignored(NamedTuple):
    """Options, when they are ignored, and what the message says of them.

    Attributes:
        names: of the parameters; with `others`, all but these.
        when: the command's parameters -> whether they count for nothing.
        why: what to do, after "--name".
        others: whether the names are those that do count.
    """

    names: tuple[str, ...]
    when: Callable[[Values], bool]
    why: str
    others: bool = False


def refuse_ignored(ctx: click.Context, rows: Sequence[Ignored]) -> None:
    """Refuse what was given on the command line and would be ignored.

    Raises:
        ClickException: names the option and what to do.
    """
    given = {
        str(param.name): max(param.opts, key=len)
        for param in ctx.command.params
        if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    }
    for row in rows:
        if row.when(ctx.params):
            found = [option for name, option in given.items() if (name in row.names) is not row.others]
            if found:
                raise click.ClickException(f"{', '.join(found)} {row.why}")


class StrictCommand(Command):
    """A command that refuses options which would be ignored.

    Args:
        ignored: its rows.
        arguments: as for `Command`.
    """

    def __init__(self, *arguments: Any, ignored: Sequence[Ignored] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ignored = ignored

    def invoke(self, ctx: click.Context) -> Any:
        """Refuse, or run."""
        refuse_ignored(ctx, self.ignored)
        return super().invoke(ctx)


def _named_data(values: Values) -> bool:
    return str(values["data"]) in DATASETS


def _no_folder(values: Values) -> bool:
    """A data set by name, or a file; what is not there is told later."""
    path = Path(values["data"] or "")
    return _named_data(values) or path.is_file() or (bool(path.suffix) and not path.is_dir())


def _raw_weights_alone(values: Values) -> bool:
    if values["lr_group"] is None or values["prior"] == "none":
        return False
    from pyro_compress.bayes.assignment import assignment_of

    return not assignment_of(values["prior"]).more_sites


def _rows_alone(values: Values) -> bool:
    return bool(values["rows"] or values["row"] is not None or values["submit"])


BY_NAME = f"goes with a data set by name: {', '.join(DATASETS)}"
FROM_FOLDER = "goes with a folder as --data, whose files may be read while training; this one is held in memory"

DATA = (
    Ignored(("hidden",), lambda values: values["net"] not in (None, "mlp"), "goes with --net mlp"),
    Ignored(("workers",), _no_folder, FROM_FOLDER),
    Ignored(("in_memory_mib",), lambda values: _no_folder(values) and values["task"] != "next-token", FROM_FOLDER),
    Ignored(("vocabulary", "context"), lambda values: values["task"] != "next-token", "goes with --task next-token"),
    Ignored(("image_size",), _no_folder, "goes with a folder of images as --data"),
    Ignored(("series",), _named_data, "goes with arrays of your own as --data; this data set holds images"),
)  # fmt: skip
"""Of network and data, where a command is told of them."""


def _without_run(row: Ignored) -> Ignored:
    return row._replace(when=lambda values: values["run"] is None and row.when(values))


FIT = (
    Ignored(
        ("resume", "force", "download", *having(CheckpointConfig), "device", "no_code", "quiet", "as_json"),
        lambda values: values["resume"] is not None,
        "cannot change with --resume: the run's own configuration counts; leave it out, or start another fit",
        others=True,
    ),
    Ignored(
        having(PosteriorConfig),
        lambda values: values["prior"] == "none",
        "goes with a prior; with --prior none leave it out",
    ),
    Ignored(
        ("momentum",),
        lambda values: values["prior"] != "none" or values["optimizer"] != "sgd",
        "goes with --prior none --optimizer sgd",
    ),
    Ignored(
        ("natural_lr", "natural_beta1", "natural_beta2"), lambda values: values["optimizer"] != "natural",
        "goes with --optimizer natural",
    ),
    Ignored(
        ("init_range",), lambda values: bool(values["init"]) and not values["new_head"],
        "goes without --init, whose weights take the place of a random start",
    ),
    Ignored(
        ("lr_group",), _raw_weights_alone, 
        "goes with a prior that has more than raw weights: scales of groups, components of a mixture",
    ),
    Ignored(("download", "data_dir"), lambda values: not _named_data(values), BY_NAME),
    *DATA,
)  # fmt: skip


def _not_compensated(values: Values) -> bool:
    """Whether a compression fine-tunes, or rounds to the nearest alone."""
    if values["rounding"] is not None:
        return values["rounding"] == "nearest"
    pruned = ("criterion", "sparsity", "rule", "relative_step", "bits", "lambda", "how", "folder", "finetune")
    return any(values[name] for name in pruned)


COMPRESS = (
    Ignored(("repair",), _not_compensated, "goes with --rounding compensated or smallest"),
    Ignored(
        (
            "criterion", "sparsity", "rule", "relative_step", "bits", "lambda", "how", "folder", "epochs", "lr",
            "finetune",
        ),
        lambda values: values["rounding"] == "compensated",
        "goes without --rounding compensated, which takes the means as they are and chooses every integer itself",
    ),
    Ignored(
        ("criterion", "sparsity", "rule", "relative_step", "bits", "lambda", "finetune"),
        lambda values: values["rounding"] == "smallest",
        "goes without --rounding smallest, which tries both ways by itself",
    ),
    Ignored(
        ("net",), lambda values: values["run"] is not None, "stands for a network that is no run: leave RUN or it out",
    ),
    Ignored(
        (*(name for name in NETWORK if name not in ("net", "data")), "how", "folder", "calibration"),
        lambda values: values["run"] is not None,
        "goes with --net, without a run folder, which has its own",
    ),
    Ignored(
        ("tolerance",), lambda values: values["target_error"] is not None,
        "and --target-error exclude each other: an error to reach stands instead of a tolerance",
    ),
    Ignored(
        ("tolerance", "nll_tolerance"), lambda values: values["max_bytes"] is not None,
        "and --max-bytes exclude each other: the best file that fits stands instead of the smallest within a tolerance",
    ),
    Ignored(
        ("teacher_weight", "temperature"), lambda values: values["finetune"] and not values["teacher"],
        "goes with --teacher RUN",
    ),
    Ignored(
        ("data_dir",), lambda values: values["run"] is None and bool(values["data"]) and not _named_data(values),
        BY_NAME,
    ),
    *map(_without_run, DATA),
)  # fmt: skip

EVALUATE = (
    Ignored(
        ("split",), lambda values: Path(values["data"] or "").suffix.lower() in (".npz", ".csv", ".tsv", ".parquet"),
        "goes without a file as --data, all of whose rows are scored",
    ),
)  # fmt: skip

PREDICT = (
    Ignored(("force",), lambda values: values["out"] is None, "goes with --csv: nothing else is written"),
    Ignored(("data_dir",), lambda values: not _named_data(values), "goes with a data set by name as DATA"),
)

INSPECT = (
    Ignored(
        ("rows", "all_rows", "netcdf", "force", "seed"), lambda values: values["restarts"], "goes without --restarts"
    ),
    Ignored(("rows",), lambda values: values["all_rows"], "goes without --all-rows"),
    Ignored(("force",), lambda values: values["netcdf"] is None, "goes with --netcdf: nothing else is written"),
)

REPORT = (
    Ignored(
        ("network", "draws", "threads", "data_dir"),
        lambda values: (Path(values["folder"] or "") / "study.json").is_file(),
        "goes with a run; this folder holds the results of compare",
    ),
)  # fmt: skip

EXPORT = (
    Ignored(
        ("int8",), lambda values: values["int8_dynamic"], "and --int8-dynamic exclude each other: give one of them"
    ),
)

ALONE = "goes without --rows, --row and --submit"
SLURM = Ignored(("slurm",), lambda values: not values["submit"], "goes with --submit")

COMPARE = (
    Ignored(
        ("rows", "row", "submit", "jobs"), lambda values: values["table"], "goes without --table, which fits nothing"
    ),
    Ignored(("row", "submit"), lambda values: values["rows"], "and --rows exclude each other: give one of them"),
    Ignored(("submit",), lambda values: values["row"] is not None, "and --row exclude each other: give one of them"),
    Ignored(("jobs",), _rows_alone, f"{ALONE}: who starts the commands says how many at a time"),
    Ignored(("elpd", "markdown"), _rows_alone, f"{ALONE}: give it to compare --table afterwards"),
    Ignored(
        ("as_json",), lambda values: values["rows"] or values["submit"], "goes without --rows and --submit: give it "
        "to compare --table afterwards",
    ),
    Ignored(("markdown",), lambda values: values["as_json"], "and --json exclude each other: give one of them"),
    SLURM,
)  # fmt: skip

TUNE = (
    Ignored(("as_json",), lambda values: values["worker"], "goes without --worker, which prints no outcome"),
    Ignored(("resume",), lambda values: values["worker"], "goes without --worker, which joins a study that is there"),
    Ignored(("submit",), lambda values: values["worker"], "and --worker exclude each other: give one of them"),
    Ignored(
        ("as_json",), lambda values: values["submit"], "goes without --submit: give it to tune --resume afterwards"
    ),
    SLURM,
)
