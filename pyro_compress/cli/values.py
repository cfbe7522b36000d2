"""What options take: words of the command line, or values of a TOML file, made what a command works with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pyro_compress.foreign import own_code


class RunPath(click.Path):
    """A path that may be a run folder; what a killed process left half done about it is finished before it is used."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, exists=True, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        from pyro_compress.kinds import is_run
        from pyro_compress.placing import recover, unfinished

        recover(Path(value), is_run)
        if not Path(value).exists() and unfinished(Path(value)).is_dir():
            self.fail(f"the fit of {value} was stopped; go on with: pyro-compress fit --resume {value}", param, ctx)
        return super().convert(value, param, ctx)


class Numbers(click.ParamType):
    """Comma-separated numbers, or a TOML array of them."""

    name = "x,x,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """`"0.5,0.25"` or `[0.5, 0.25]` -> `(0.5, 0.25)`."""
        parts = value.split(",") if isinstance(value, str) else value
        try:
            return tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            self.fail(f"{value!r}: give numbers separated by commas, like 0.485,0.456,0.406", param, ctx)


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


class PriorName(click.ParamType):
    """A row of `PRIORS`, `none`, `package.module:function`, or an entry point."""

    name = "prior"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = [*known, "none"]

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What `--help` shows."""
        return f"[{'|'.join(self.known)}|MODULE:FUNCTION]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, where there can be a prior of that name."""
        name = str(value)
        if name in self.known or own_code(name):
            return name
        from importlib.metadata import entry_points

        if name in {point.name for point in entry_points(group="pyro_compress.priors")}:
            return name
        near = difflib.get_close_matches(name, self.known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.fail(
            f"{name!r} is none of {', '.join(self.known)}, nor package.module:function of a prior of yours{hint}",
            param, ctx,
        )  # fmt: skip


class PriorOption(click.ParamType):
    """`name=number`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """`"tau0=1e-5"` -> `("tau0", 1e-5)`."""
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).partition("=")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"{value!r}: give an option of the prior as name=number, like tau0=1e-5", param, ctx)


class Shares(click.ParamType):
    """A share, or one per layer as `layer=share,...` or a TOML table."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | dict[str, float]:
        """`"0.9"` -> `0.9`; `"fc1.weight=0.9,fc2.weight=0.5"` -> a dict."""
        try:
            if isinstance(value, str) and "=" in value:
                value = dict(part.split("=") for part in value.split(","))
            return {str(n): float(s) for n, s in value.items()} if isinstance(value, dict) else float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r}: give a share like 0.9, or layer=share,layer=share", param, ctx)
