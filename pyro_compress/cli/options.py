"""What several commands share: options, the names they offer, and errors of one line."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user did wrong becomes one line on standard error and exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        raise click.ClickException(message or type(error).__name__) from None


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where the data are."""
    folder = click.option(
        "--data-dir",
        envvar="PYRO_COMPRESS_DATA",
        default="",
        metavar="DIR",
        help="Folder of the torchvision data sets (also PYRO_COMPRESS_DATA).",
    )
    return folder(command)


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where to compute."""
    device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
    threads = click.option(
        "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 leaves torch's default."
    )
    return device(threads(command))


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a trained network that is no run: what it is, its weights, its data, the posterior around it."""
    for option in (
        click.option(
            "--run", "folder", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
            help="With --posterior svi: keep the fit as a run folder.",
        ),
        click.option("--seed", type=int, default=0, help="With --net."),
        click.option("--lr", type=float, default=None, help="With --posterior svi: rate of the means; default 3e-4."),
        click.option(
            "--epochs", type=click.IntRange(1), default=None,
            help="With --posterior svi: of the fit around the weights; default about 2,000 steps.",
        ),
        click.option(
            "--posterior", "how", type=click.Choice(names_in("runs/post_training.py", "POSTERIORS")), default="laplace",
            help="With --net: one pass of curvature, or a short fit that starts at the weights.",
        ),
        click.option(
            "--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=None,
            help="With --net: share of the training set held out, as for fit.",
        ),
        click.option("--data", default=None, metavar="NAME", help="With --net: data set or .npz file, as for fit."),
        click.option("--init", default=None, metavar="WEIGHTS", help="With --net: its trained weights, as for fit."),
        click.option("--net", default=None, metavar="NAME", help="Instead of RUN: a trained network, as for fit."),
    ):  # fmt: skip
        command = option(command)
    return command


class Widths(click.ParamType):
    """Comma-separated positive integers, or a TOML array of them."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`"500,500"` or `[500, 500]` -> `(500, 500)`."""
        parts = value.split(",") if isinstance(value, str) else value
        try:
            widths = tuple(int(part) for part in parts)
        except (TypeError, ValueError):
            widths = ()
        if not widths or min(widths) < 1:
            self.fail(f"{value!r}: give positive widths separated by commas, like 500,500", param, ctx)
        return widths


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
