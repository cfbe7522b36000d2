"""What compress starts from: a run folder, or trained weights and data."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pyro_compress.cli.console import epoch_printer
from pyro_compress.cli.options import given
from pyro_compress.doubts import keep
from pyro_compress.settings import CompressConfig
from pyro_compress.settings.declared import having
from pyro_compress.settings.fit import MachineConfig

if TYPE_CHECKING:
    from pyro_compress.types import Posterior, Splits


def default_name(net: str) -> Path:
    """The file of a network that is no run, in the working directory; that of a .pcn file has the same name."""
    return Path(Path(net).name if net.endswith(".pcn") else f"{net.replace(':', '.')}.pcn")


class Source(NamedTuple):
    """What is compressed: a posterior, its data, what counts as before (None: its mean), seconds, how it is rounded."""

    posterior: Posterior
    splits: Splits
    reference: Posterior | None = None
    seconds: float = 0.0
    rounding: str = "nearest"


POSTERIOR = ("how", "folder", "epochs", "lr")
"""Options that ask for a posterior around given weights."""


def rounding_of(run: Path | None, named: dict[str, Any], asked: CompressConfig) -> str:
    """How weights become integers: as it is asked for; else by no criterion alone, where nothing asks for one.

    Of a run both ways are tried, where there is the memory for compensation; given weights have no posterior.
    """
    if asked.rounding is not None:
        return asked.rounding
    if not asked.rounds_only or named.keys() & set(POSTERIOR):
        return "nearest"
    if not run:
        return "compensated"
    return "smallest" if asked.repair is not None or has_room(run) else "nearest"


def has_room(run: Path) -> bool:
    """Whether compensation of a run fits into memory; where it does not, that is said."""
    from pyro_compress.runs.command_budget import check_command

    try:
        check_command("compress --rounding compensated", run)
    except ValueError as error:
        keep(f"rounded to the nearest alone, as there is no room to try compensation: {error}")
        return False
    return True


def command_of(config: CompressConfig) -> str:
    """What is asked for, by its name in `command_budget.COMMANDS`."""
    if config.finetuning:
        return "compress --finetune"
    if config.rounding in ("compensated", "smallest"):
        return "compress --rounding compensated"
    return "compress --lambda" if any(config.lam) else "compress"


def of_run(command: str, run: Path, data_dir: str, named: dict[str, Any]) -> Source:
    """The posterior of a run folder and the data it was fitted on.

    Args:
        command: name in `command_budget.COMMANDS`.
        run: the folder.
        data_dir: where data sets lie.
        named: what was given of `network_options`; only `data` may be, which is where the same data are now.

    Raises:
        ValueError: others are given, it would not go into memory, or the folder holds no such run.
    """
    from pyro_compress.networks.outputs import doubtful_end
    from pyro_compress.runs.command_budget import check_command
    from pyro_compress.runs.folder import load_run
    from pyro_compress.training.history import read_history
    from pyro_compress.training.settled import unsettled

    data = named.get("data", "")
    if extra := [name for name in named if name != "data"]:
        option = {"how": "posterior", "folder": "run"}.get(extra[0], extra[0].replace("_", "-"))
        raise ValueError(f"--{option} goes with --net, without the run folder {run}")
    check_command(command, run)
    loaded = load_run(run, data)
    source = Source(loaded.posterior, loaded.splits(data_dir))
    keep(doubtful_end(source.posterior.graph, source.splits.task))
    keep(unsettled(read_history(run), loaded.config.kl_weight))
    return source


def of_weights(command: str, named: dict[str, Any], asked: CompressConfig, quiet: bool) -> Source:
    """A posterior around weights that were trained elsewhere; what counts as before is the network that they make.

    Args:
        command: name in `command_budget.COMMANDS`.
        named: what was given of `network_options`.
        asked: the compression, as it was asked for.
        quiet: whether no progress is shown.

    Raises:
        ValueError: options are missing or contradict, the weights do not fit, or it would not go into memory.
    """
    from pyro_compress.runs.post_training import load_trained, start_of
    from pyro_compress.settings import FitConfig

    calibration = named.get("calibration", "")
    if calibration and named.get("data"):
        raise ValueError("--calibration and --data exclude each other: examples without labels, or with them")
    needed = ("net", "init") if calibration else ("net", "init", "data")
    if missing := [f"--{name}" for name in needed if not named.get(name)]:
        raise ValueError(
            f"give a RUN folder, or --net, --init and --data (or --calibration); missing: {', '.join(missing)}"
        )
    folder, how = named.get("folder"), named.get("how", "laplace")
    if how == "laplace" and (extra := [name for name in ("epochs", "lr") if name in named]):
        raise ValueError(f"--{extra[0]} goes with --posterior svi; a Laplace approximation trains nothing")
    config = FitConfig(
        prior="log-uniform", **given(click.get_current_context(), FitConfig, ("data_dir", *having(MachineConfig))),
        **{name: value for name, value in named.items() if name not in ("how", "folder", "calibration")},
    )  # fmt: skip
    compensated = command == "compress --rounding compensated"
    trained = load_trained(config, folder, command, "" if compensated else how, calibration)
    from pyro_compress.training.callbacks import Callback

    with epoch_printer() if not quiet else nullcontext(Callback()) as shown:
        start = start_of(trained, asked, None if compensated else how, shown.on_epoch)
    return Source(start.posterior, trained.splits, trained.network, start.seconds, start.rounding)
