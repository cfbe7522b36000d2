"""fit: options -> FitConfig -> run folder."""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import INTERRUPTED, RESULTS, Option, echo, hushed, one_line_errors, quiet_option, tell
from pyro_compress.cli.console import epoch_printer
from pyro_compress.cli.ignored import FIT, StrictCommand
from pyro_compress.cli.options import (
    announce_code,
    announce_option,
    as_defaults,
    code_options,
    given,
    setting_options,
)
from pyro_compress.cli.values import FilePath
from pyro_compress.doubts import keep
from pyro_compress.foreign import file_name
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig

RESULT: dict[str, Any] = {"cls": Option, "heading": RESULTS}


def load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make a TOML file's values the defaults of the command; what stands on the command line wins."""
    if path is not None:
        with one_line_errors():
            from pyro_compress.runs.config import read_config

            ctx.default_map = as_defaults(ctx, read_config(path))


@click.command(
    cls=StrictCommand, ignored=FIT,
    examples=(
        "fit --prior horseshoe --epochs 30 --seed 1", "fit --data photos --net resnet-20 -o runs/photos",
        "fit --resume runs/photos",
    ),
)  # fmt: skip
@click.option(
    "--config", type=FilePath("a TOML file, as a run's config.toml"), callback=load_config, is_eager=True,
    expose_value=False, help="TOML file with the same options (a run's config.toml, say); the command line wins.",
)  # fmt: skip
@code_options
@setting_options(FitConfig)
@click.option("--download", is_flag=True, help="Fetch a missing data set into --data-dir.", cls=Option, heading="Data")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="Run folder; default runs/DATA-NET-PRIOR-SEED.",
    **RESULT,
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing run folder, drop an unfinished one.", **RESULT)
@click.option(
    "--resume", type=click.Path(path_type=Path), default=None, metavar="RUN",
    help="Go on with the interrupted fit of this run folder; its configuration counts, not other options.", **RESULT,
)  # fmt: skip
@setting_options(CheckpointConfig)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the run folder and its last epoch as one JSON object.", **RESULT
)
@click.option(
    "--print-config", is_flag=True, help="Print the resolved configuration as TOML, and fit nothing.", **RESULT
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, in how much memory and time; nothing is written.", **RESULT
)
@quiet_option
def fit(
    out: Path | None, force: bool, download: bool, resume: Path | None, print_config: bool, dry_run: bool,
    as_json: bool, **_: Any,
) -> None:  # fmt: skip
    """Train a network and write its posterior to a run folder."""
    with one_line_errors():
        from pyro_compress.process_group import joined
        from pyro_compress.runs.config import never_shrinks
        from pyro_compress.runs.run import fit_run, resume_run
        from pyro_compress.training.callbacks import Callback
        from pyro_compress.training.checkpoint import Interrupted
        from pyro_compress.training.history import read_history
        from pyro_compress.training.settled import unsettled

        context = click.get_current_context()
        announce_option(context)
        announce_option(context, "prior")
        announce_option(context, "guide")
        if (print_config or dry_run) and os.environ.get("RANK", "0") != "0":
            return  # one of several processes says it
        if print_config or dry_run:
            echo(rehearsal_text(FitConfig(**given(context, FitConfig)), out, force, print_config))
            return
        checkpointing = CheckpointConfig(**given(context, CheckpointConfig))
        with joined(context.params["device"]) as group:
            config = FitConfig(**given(context, FitConfig))
            where = resume or out or Path("runs") / default_name(config.data, config.net, config.prior, config.seed)
            try:
                with epoch_printer() if group.first and not hushed() else nullcontext(Callback()) as shown:
                    if resume:
                        run = resume_run(resume, force, download, shown.on_epoch, checkpointing, group, announced)
                    else:
                        run = fit_run(config, where, force, download, shown.on_epoch, checkpointing, group)
            except Interrupted:
                if group.first:
                    again = f"{where} --force" if force else f"{where}"
                    echo(f"stopped, state kept; go on with: pyro-compress fit --resume {again}", err=True)
                raise click.exceptions.Exit(INTERRUPTED) from None
    if group.first:
        config = run.config if resume else config
        history = read_history(run.path)
        if as_json:
            echo(json.dumps({"run": str(run.path)} | history[-1]))
        else:
            tell(f"{run.path}: posterior of {config.net} on {config.data}; next: pyro-compress compress {run.path}")
        keep(unsettled(history, config.kl_weight))
        keep(never_shrinks(run.config))


def announced(config: FitConfig) -> None:
    """Say which code of the user's an unfinished fit is about to import."""
    named = {"net": config.net, "prior": config.prior, "guide": config.guide}
    announce_code(named, f"{click.get_current_context().params['resume']}, an unfinished fit,")


def rehearsal_text(config: FitConfig, out: Path | None, force: bool, print_config: bool) -> str:
    """What a fit would do, in words; or its resolved configuration as TOML."""
    import tomli_w

    from pyro_compress.runs.config import table_of
    from pyro_compress.runs.folder import check_run_folder
    from pyro_compress.runs.rehearsal import prepared, rehearsed

    if print_config:
        return tomli_w.dumps({"fit": table_of(prepared(config)[0])}).rstrip()
    where = out or Path("runs") / default_name(config.data, config.net, config.prior, config.seed)
    check_run_folder(where, force)
    return "\n".join([f"run folder: {where}", *rehearsed(config), "nothing was written"])


def default_name(data: str, net: str, prior: str, seed: int) -> str:
    """Name of a run folder; a compressed file counts by its own name."""
    network = Path(net).stem if net.endswith(".pcn") else net.replace(":", ".")
    priors = re.sub(r"[^\w.+-]+", "_", prior.replace(":", "."))
    return file_name(f"{Path(data).stem}-{network}-{priors}-{seed}", "the run folder's default name")
