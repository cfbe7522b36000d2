"""What several commands share: options, and the names they offer."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import echo
from pyro_compress.cli.values import Numbers, Widths
from pyro_compress.foreign import NO_CODE, code_named_in, shown


def code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option under which no code of the user's is imported, whoever names it."""

    def refuse(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not os.environ.get(NO_CODE):
            os.environ[NO_CODE] = "1"
            ctx.call_on_close(lambda: os.environ.pop(NO_CODE, None))

    return click.option(
        "--no-code", is_flag=True, is_eager=True, expose_value=False, callback=refuse, envvar=NO_CODE,
        show_envvar=False, help=f"Import no network and no prior from package.module:function (also {NO_CODE}=1).",
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


def convert_defaults(ctx: click.Context, options: dict[str, Any], path: Path) -> dict[str, Any]:
    """Options of a TOML file as a command's defaults, every one of a value that its option takes.

    Raises:
        ValueError: a value that it does not take.
    """
    params = {str(param.name): param for param in ctx.command.params}
    for name, value in options.items():
        try:
            if name in params:
                params[name].type_cast_value(ctx, value)
        except (click.ClickException, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = error.message if isinstance(error, click.ClickException) else f"{shown(value)} is no value for it"
            raise ValueError(f"{path}: {name}: {reason}") from error
    return options


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where the data are."""
    folder = click.option(
        "--data-dir",
        envvar="PYRO_COMPRESS_DATA",
        default="",
        show_default=False,
        metavar="DIR",
        help="Folder that MNIST and the like lie in (also PYRO_COMPRESS_DATA).",
    )
    return folder(command)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how the data are read: the fields of `pyro_compress.settings.Reading`."""
    for option in reversed((
        click.option(
            "--task", type=click.Choice(names_in("data/tasks.py", "TASKS")), default="classification",
            help="What is predicted: classes, numbers, the next token of a text, a class per position, several labels.",
        ),
        click.option("--target", multiple=True, metavar="COLUMN", help="Column of a table to predict. Repeatable."),
        click.option(
            "--test-data", default="", show_default=False, metavar="FILE",
            help="Table of test rows; default: a fifth of --data.",
        ),
        click.option(
            "--image-size", type=click.IntRange(0), default=0, metavar="PIXELS",
            help="Height and width that a folder's images are brought to; 0: they are all of one size.",
        ),
        click.option(
            "--series", is_flag=True,
            help="Arrays (n, channels, length) are series, not grey images; (n, length): of one channel.",
        ),
        click.option(
            "--limit", type=click.IntRange(0), default=0, metavar="N", help="Training examples to keep; 0: all."
        ),
        click.option(
            "--in-memory-mib", type=click.FloatRange(0), default=4096.0, metavar="MIB",
            help="Folders of more than this are read while training, not before.",
        ),
        click.option(
            "--vocabulary", type=click.Choice(["", "bytes", "characters"]), default="", show_default=False,
            metavar="[bytes|characters]",
            help="With a text: what its tokens are; default: bytes.",
        ),
        click.option(
            "--context", type=click.IntRange(2), default=64, help="With a text: tokens that the network sees at a time."
        ),
        click.option(
            "--tokens", type=click.IntRange(0), default=0, metavar="N",
            help="Whole numbers in arrays are tokens, from 0 to N - 1, not features or pixels.",
        ),
        click.option(
            "--pad", type=click.IntRange(-1), default=-1, metavar="TOKEN",
            help="Token that fills up short sequences; it counts in no loss and no score.",
        ),
        click.option(
            "--ignore", type=click.IntRange(-1), default=-1, metavar="LABEL",
            help="Label of positions that have none, beside -100.",
        ),
        click.option("--workers", type=click.IntRange(0), default=2, help="Processes that read them while training."),
    )):  # fmt: skip
        command = option(command)
    return command


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where to compute."""
    device = click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA where there is one."
    )
    threads = click.option(
        "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 leaves torch's default."
    )
    return device(threads(command))


def memory_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Option that says how much a file may ask for."""
    return click.option(
        "--max-memory", type=click.FloatRange(1), default=4096.0, metavar="MIB",
        help="Memory that a .pcn file may ask for; more, and the work that goes with it, is refused beforehand.",
    )(command)  # fmt: skip


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a trained network that is no run: what it is, its weights, its data, the posterior around it."""
    for option in (
        click.option(
            "--run", "folder", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
            help="With --posterior svi: keep the fit as a run folder.",
        ),
        click.option("--seed", type=int, default=0, help="With --net: of calibration or posterior."),
        click.option("--lr", type=float, default=None, help="With --posterior svi: rate of the means; default 3e-4."),
        click.option(
            "--epochs", type=click.IntRange(1), default=None,
            help="With --posterior svi: of the fit around the weights; default: as many as 2,000 steps take, 3 to 30.",
        ),
        click.option(
            "--posterior", "how", type=click.Choice(names_in("runs/post_training.py", "POSTERIORS")), default=None,
            help="With --net: prune by one pass of curvature (laplace), or by a short fit from the weights (svi).",
        ),
        click.option(
            "--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=None,
            help="With --net: share of the training set held out, as for fit.",
        ),
        reading_options,
        click.option(
            "--data", default=None, metavar="NAME",
            help="With --net: its data, as for fit; with RUN: where the same data are now.",
        ),
        input_options,
        click.option("--init", default=None, metavar="WEIGHTS", help="With --net: its trained weights, as for fit."),
        click.option("--hidden", type=Widths(), default="500,500", help="With --net mlp: widths of its hidden layers."),
        click.option("--net", default=None, metavar="NAME", help="A trained network, as for fit (or a .pcn file)."),
    ):  # fmt: skip
        command = option(command)
    return command


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what a network does to its inputs first."""
    std = click.option(
        "--input-std", type=Numbers(), default=(), show_default=False, help="What they are divided by then, likewise."
    )
    mean = click.option(
        "--input-mean", type=Numbers(), default=(), show_default=False,
        help="The network subtracts it from its inputs: one number, or one per channel; default: what --init wants.",
    )  # fmt: skip
    return mean(std(command))


def names_in(module: str, registry: str) -> tuple[str, ...]:
    """Keys of a registry (a dict literal) in a module of this package, without importing it."""
    source = (Path(__file__).parents[1] / module).read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == registry:
            assert isinstance(statement, ast.AnnAssign)
            assert isinstance(statement.value, ast.Dict)
            return tuple(ast.literal_eval(key) for key in statement.value.keys if key is not None)
    raise ValueError(f"no registry {registry} in {module}")
