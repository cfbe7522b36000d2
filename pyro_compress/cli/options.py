"""What several commands share: options, and the names they offer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pyro_compress.cli.commands import ELSEWHERE, Option, echo
from pyro_compress.cli.values import Name, many, value_type
from pyro_compress.foreign import NO_CODE, code_named_in
from pyro_compress.settings import FitConfig, ReadConfig
from pyro_compress.settings.declared import Config, Declared, declared, having
from pyro_compress.settings.export import MemoryConfig
from pyro_compress.settings.fit import RUNNING, MachineConfig
from pyro_compress.settings.registries import names_in


def code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option under which no code of the user's is imported, whoever names it."""

    def refuse(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[NO_CODE] = bool(value)  # `Command.invoke` makes it so while the command runs

    return click.option(
        "--no-code", is_flag=True, is_eager=True, expose_value=False, callback=refuse, envvar=NO_CODE,
        show_envvar=False, help=f"Import no network, prior or guide from package.module:function (also {NO_CODE}=1).",
    )(command)  # fmt: skip


def announce_code(document: Any, said_by: str | Path) -> None:
    """Say which functions are about to be imported because a file names them, before anything else is printed.

    Raises:
        ValueError: `--no-code` refuses them.
    """
    if not (names := ", ".join(code_named_in(document))):
        return
    if os.environ.get(NO_CODE):
        raise ValueError(f"{said_by} names code to import: {names}; --no-code refuses it")
    if os.environ.get("RANK", "0") == "0":
        echo(f"{said_by} names code, which is now imported and run: {names} (--no-code refuses it)", err=True)


def announce_option(ctx: click.Context, name: str = "net") -> None:
    """The same for an option whose value came from a `--config` file."""
    if ctx.get_parameter_source(name) == click.core.ParameterSource.DEFAULT_MAP:
        announce_code({name: ctx.params.get(name)}, "--config")


def as_defaults(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Settings of a TOML file as a command's defaults, lists where an option may be given several times."""
    several = {param.name for param in ctx.command.params if getattr(param, "multiple", False)}

    def default(name: str, value: Any) -> Any:
        if name not in several:
            return value
        return list(value.items()) if isinstance(value, dict) else [value] if isinstance(value, str) else value

    return {name: default(name, value) for name, value in options.items()}


def setting_options(
    of: type[Config], names: Iterable[str] | None = None, group: str = "", unset: bool = False, **helps: str
) -> Callable[..., Any]:
    """Options of a configuration's settings, as they are declared.

    Args:
        of: the configuration.
        names: of the settings; None: all.
        group: heading, where it is not the settings' own.
        unset: no default is shown, and what is not given is None.
        helps: name -> help, where the setting's own does not say what it is for this command.
    """
    rows = declared(of)
    chosen = [rows[name] for name in (having(of, unlisted=False) if names is None else names)]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for row in reversed(chosen):
            command = _option(row, unset or row.setting.kind == "switch", group or row.group, helps.get(row.name))(
                command
            )
        return command

    return add


def _option(row: Declared, unset: bool, heading: str, help: str | None) -> Callable[..., Any]:
    setting, default = row.setting, () if many(row) else None if unset else row.default
    more: dict[str, Any] = {"envvar": setting.envvar, "show_envvar": False} if setting.envvar else {}
    if row.whole is bool:
        more |= {"is_flag": True}
    else:
        names = "|".join([*filter(None, setting.among), *filter(None, [setting.other])])
        metavar = setting.unit or (f"[{names}]" if names else {int: "N", float: "NUMBER"}.get(row.whole))
        more |= {"type": value_type(row), "multiple": many(row), "metavar": metavar}
        if setting.kind == "joined":
            default = [default]
            more |= {"multiple": True, "callback": lambda ctx, param, value: ",".join(value)}
        more |= {"show_default": default not in (None, "", ())}
    if isinstance(default, tuple) and not many(row):
        default = ",".join(map(str, default)) or None
    text = (help or setting.help).replace("{names}", ", ".join(setting.among))
    more |= {"former": f"--{setting.former.replace('_', '-')}" if setting.former else ""}
    return click.option(row.option, row.name, default=default, help=text, cls=Option, heading=heading, **more)


runs_option = click.option(
    "--runs", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
    help="Runs that studies and searches share; OUT/runs becomes a link to it. Default: OUT/runs itself.",
)  # fmt: skip


def submit_options(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that hand work to Slurm; `what` is handed over."""
    submit = click.option("--submit", is_flag=True, help=f"Hand {what} to Slurm, a job each, and do not wait.")
    slurm = click.option(
        "--slurm", multiple=True, metavar="KEY=VALUE,...",
        help="With --submit: settings of the jobs, as sbatch calls them: partition=gpu,time=60 (minutes).",
    )  # fmt: skip
    return lambda command: submit(slurm(command))


data_options = setting_options(FitConfig, ["data_dir"], RUNNING)
device_options = setting_options(FitConfig, having(MachineConfig), RUNNING)
memory_option = setting_options(MemoryConfig)
threads_option = setting_options(FitConfig, ["threads"], RUNNING)


def given(ctx: click.Context, of: type[Config], names: Iterable[str] | None = None) -> dict[str, Any]:
    """Settings of a configuration that somebody gave: on the command line, in a file, in the environment.

    Args:
        ctx: of the command, whose options they are.
        of: the configuration.
        names: the settings that are asked for; None: all.
    """
    rows = declared(of)
    found = {
        name: ctx.params[name]
        for name in (having(of, unlisted=False) if names is None else names)
        if name in ctx.params and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    return {name: dict(value) if isinstance(rows[name].default, dict) else value for name, value in found.items()}


NETWORK = (
    "net",
    "hidden",
    "init",
    "input_mean",
    "input_std",
    "data",
    *having(ReadConfig),
    "validation",
    "epochs",
    "lr",
    "seed",
)
"""Settings of a fit that `compress` takes of a network that is no run."""


def network_given(ctx: click.Context) -> dict[str, Any]:
    """What somebody gave of `network_options`."""
    more = {name: ctx.params[name] for name in ("how", "folder", "calibration") if ctx.params[name] is not None}
    return given(ctx, FitConfig, NETWORK) | more


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a trained network that is no run: what it is, its weights, its data, the posterior around it."""
    settings = setting_options(
        FitConfig, NETWORK, ELSEWHERE, unset=True,
        data="Its data, as for fit; with RUN: where the same data are now.",
        epochs="With --posterior svi: of the fit around the weights; default: as many as 2,000 steps take, 3 to 30.",
        lr="With --posterior svi: rate of the means; default 3e-4.",
        seed="Of calibration or posterior.",
    )  # fmt: skip
    how = click.option(
        "--posterior", "how", type=Name(names_in("runs/post_training.py", "POSTERIORS")), default=None,
        help="Prune by one pass of curvature (laplace), or by a short fit from the weights (svi).",
        cls=Option, heading=ELSEWHERE,
    )  # fmt: skip
    folder = click.option(
        "--run", "folder", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
        help="With --posterior svi: keep the fit as a run folder.", cls=Option, heading=ELSEWHERE,
    )  # fmt: skip
    calibration = click.option(
        "--calibration", type=click.Path(), default=None, metavar="DATA",
        help="Instead of --data: examples without labels, arrays or a folder of images; what is lost is agreement with "
        "the network.", cls=Option, heading=ELSEWHERE,
    )  # fmt: skip
    return settings(calibration(how(folder(command))))
