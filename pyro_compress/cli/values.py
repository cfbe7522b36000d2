"""What options take: words of the command line, or values of a TOML file, made what a command works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pyro_compress.foreign import shown, unknown
from pyro_compress.settings.declared import SHOWN, Declared


class RunPath(click.Path):
    """A path that may be a run folder; what a killed process left half done about it is finished before it is used."""

    def __init__(self, of_file: str = "", **options: Any) -> None:
        super().__init__(path_type=Path, exists=True, **options)
        self.of_file = of_file  # what to give instead of one

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        from pyro_compress.kinds import is_run
        from pyro_compress.placing import incomplete, recover

        recover(Path(value), is_run)
        if said := incomplete(Path(value)):
            self.fail(said, param, ctx)
        if self.of_file and Path(value).is_file():
            self.fail(f"{value} is a file; {self.of_file}", param, ctx)
        return super().convert(value, param, ctx)


class FilePath(click.Path):
    """A path of a file; where a folder is given instead, what to give is said."""

    def __init__(self, wanted: str) -> None:
        super().__init__(path_type=Path, exists=True, dir_okay=False)
        self.wanted = wanted

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if Path(value).is_dir():
            self.fail(f"{value} is a folder; give {self.wanted}", param, ctx)
        return super().convert(value, param, ctx)


class Value(click.ParamType):
    """A value of a setting: a word of the command line or a value of a TOML file, parsed and checked."""

    def __init__(self, row: Declared, parse: Callable[[Any], Any], name: str, example: str = "") -> None:
        self.row, self.parse, self.name, self.example = row, parse, name, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What the setting holds."""
        try:
            found = self.parse(value)
        except (TypeError, ValueError, AttributeError, OverflowError):
            self.fail(f"{shown(value)}: give {self.example}", param, ctx)
        return checked(self.row, found)


class Name(click.Choice):
    """One of some names; another one is refused with what was meant, as Python and TOML files do."""

    def __init__(self, names: Sequence[str], also: Callable[[object], bool] | None = None) -> None:
        super().__init__(names)
        self.also = also

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name."""
        if value not in self.choices and not (self.also and self.also(value)):
            what = param.opts[-1].lstrip("-").replace("-", "_") if param else "name"
            raise click.ClickException(str(unknown(what, value, filter(None, self.choices))))
        return value


class Whole(click.IntRange):
    """A whole number; its range is for `--help`."""

    number: click.ParamType = click.INT

    def __init__(self, row: Declared) -> None:
        setting = row.setting
        most = setting.most if setting.most is not None and setting.most < SHOWN else setting.below
        least, above = setting.least, setting.least is None
        super().__init__(setting.above if above else least, most, above, setting.below is not None)  # type: ignore[arg-type]
        self.row = row

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        return checked(self.row, self.number.convert(value, param, ctx))


class Real(Whole):
    """A number likewise."""

    name = "float range"
    number = click.FLOAT


def checked(row: Declared, value: Any) -> Any:
    """The value, if the setting allows it; else the one line that Python and TOML files say, too."""
    try:
        row.check(value if not many(row) else dict([value]) if isinstance(value, tuple) else (value,))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    return value


def many(row: Declared) -> bool:
    """Whether its option may be given several times."""
    return row.setting.kind == "repeated" or row.whole in (tuple[str, ...], dict[str, float])


def value_type(row: Declared) -> click.ParamType:
    """What the option of a setting takes."""
    if row.setting.kind == "run":
        return RunPath(file_okay=False)
    if row.setting.among and not row.setting.other:
        return Name(list(row.setting.among), row.setting.also)
    if row.whole in (int, float):
        ranged = Whole(row) if row.whole is int else Real(row)
        return ranged if row.setting.range else click.INT if row.whole is int else click.FLOAT
    if row.whole is str or row.whole == tuple[str, ...]:
        return click.STRING
    parse, name, example = PARSERS[row.whole if not many(row) else (row.whole,)]
    return Value(row, parse, name, example)


def listed(of: type) -> Callable[[Any], Any]:
    """`"500,500"` or `[500, 500]` -> `(500, 500)`."""
    return lambda value: tuple(of(part) for part in (value.split(",") if isinstance(value, str) else value))


def pair(value: Any) -> tuple[str, float]:
    """`"tau0=1e-5"` -> `("tau0", 1e-5)`."""
    name, number = value.split("=") if isinstance(value, str) else value
    return name, float(number)


def shares(value: Any) -> float | dict[str, float]:
    """`"0.9"` -> `0.9`; `"fc1.weight=0.9,fc2.weight=0.5"` -> a dict."""
    if isinstance(value, str) and "=" in value:
        value = dict(part.split("=") for part in value.split(","))
    return {str(n): float(s) for n, s in value.items()} if isinstance(value, dict) else float(value)


PARSERS: dict[Any, tuple[Callable[[Any], Any], str, str]] = {
    tuple[int, ...]: (listed(int), "n,n,...", "whole numbers separated by commas, like 500,500"),
    tuple[float, ...]: (listed(float), "x,x,...", "numbers separated by commas, like 0.485,0.456,0.406"),
    (tuple[float, ...],): (float, "number", "a number"),
    (dict[str, float],): (pair, "name=value", "an option of the prior as name=number, like tau0=1e-5"),
    float | dict[str, float]: (shares, "share", "a share like 0.9, or layer=share,layer=share"),
}
"""Type of a setting, in brackets where its option is given several times -> from words, its metavar, an example."""
