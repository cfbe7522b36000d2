"""What a configuration is made of: every field is declared once, with all that is known about it.

Options of the command line, TOML files, checks, `tune`'s space, hashes, `--help` and docs/settings.md are made from
these declarations. A class of settings is a frozen dataclass that inherits from `Config`; a field of it is a
`setting(default, help, ...)`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

from pyro_compress.foreign import fits, of_type, shown, unknown, wanted
from pyro_compress.settings.registries import Names

SHOWN = 1 << 10
"""Bounds from here on only catch slips, and are not shown."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known about a field beside its type and default.

    Attributes:
        help: one sentence or two; `{names}` stands for the names of `among`.
        among: the names that are allowed.
        other: what else is allowed (`MODULE:FUNCTION`); empty: nothing.
        also: tells of a further text whether it is allowed where it comes from a file; None: none is.
        least: smallest value; of a list, of every entry.
        most: largest value.
        above: values are larger than this.
        below: values are smaller than this.
        unit: what a value stands for in `--help`: `EPOCHS`.
        group: heading in `--help`; empty: the class's own.
        option: name on the command line, where it differs.
        name: what it is called everywhere but in Python, where that is a keyword of Python.
        former: what it was called: options, TOML files and studies may still say so.
        kind: what its option is beside: `run` takes a run folder, `repeated` may be given several times, `joined` too,
            which makes one text with commas between, `switch` makes the part that it belongs to.
        envvar: environment variable that gives it, too.
        stored: a compressed file repeats it, where it is no default.
        searched: whether `tune` may search it.
        identity: whether another value makes another fit; else it says where and how fast one runs.
        path: whether it may name a file or folder.
        unlisted: no option, but in Python.
    """

    help: str
    among: Names | tuple[str, ...] = ()
    other: str = ""
    also: Callable[[object], bool] | None = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    unit: str = ""
    group: str = ""
    option: str = ""
    name: str = ""
    former: str = ""
    kind: str = ""
    envvar: str = ""
    stored: bool = False
    searched: bool = True
    identity: bool = True
    path: bool = False
    unlisted: bool = False

    @property
    def range(self) -> str:
        """The values that are allowed, as a formula; empty: all."""
        low = f"{self.least:g}<=" if self.least is not None else f"{self.above:g}<" if self.above is not None else ""
        high = f"<{self.below:g}" if self.below is not None else ""
        if self.most is not None and self.most < SHOWN:
            high = f"<={self.most:g}"
        if low and not high:
            return f"x>={self.least:g}" if self.least is not None else f"x>{self.above:g}"
        return f"{low}x{high}" if low or high else ""

    def wrong(self, value: float) -> str:
        """Why a number is not allowed; empty if it is."""
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        high = (self.most is None or value <= self.most) and (self.below is None or value < self.below)
        if not math.isfinite(value):
            return "it must be finite"
        if low and high:
            return ""
        if self.most is not None and value > self.most >= SHOWN:
            return f"at most {self.most}"
        if self.below is None and (self.most is None or self.most >= SHOWN):
            if 0 in (self.above, self.least) or self.least == 1:
                return "it must not be negative" if self.least == 0 else "it must be positive"
        most = self.most if self.most is None or self.most < SHOWN else None
        ends = {"from": self.least, "above": self.above, "up to": most, "below": self.below}
        bounds = [f"{word} {end:g}" for word, end in ends.items() if end is not None]
        return f"allowed are values {' and '.join(bounds)}{' on' * (bounds == bounds[:1] and self.least is not None)}"


def setting(default: Any, help: str, **more: Any) -> Any:
    """A field of a configuration: its default, one line of help, and what else `Setting` takes."""
    metadata = {"setting": Setting(help, **more)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Declared:
    """A field of a configuration.

    Attributes:
        name: of the field, or what its setting is called instead; of one that lies in a part, of its option.
        hint: its type.
        default: its default.
        setting: what else is known about it.
        group: its heading.
        part: field of the configuration that holds it; empty: the configuration itself.
        field: its name there.
    """

    name: str
    hint: Any
    default: Any
    setting: Setting
    group: str
    part: str = ""
    field: str = ""

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return f"--{(self.setting.option or self.name).replace('_', '-')}"

    @property
    def whole(self) -> Any:
        """Its type, where it is given."""
        given = [one for one in get_args(self.hint) if one is not type(None)]
        return functools.reduce(operator.or_, given) if type(None) in get_args(self.hint) else self.hint

    def check(self, value: Any) -> None:
        """Refuse what is not allowed.

        Raises:
            ValueError: another type, a number out of range, an unknown name.
        """
        if value is None and type(None) in get_args(self.hint):
            return
        held = self.plain(value)
        entries = held if isinstance(held, tuple | list) else list(held.values()) if isinstance(held, dict) else [held]
        if not fits(held, self.hint) and all(one == one for one in entries):  # not a number is a number out of range
            several = get_origin(self.whole) is tuple and not isinstance(value, list | tuple)
            wants = f"{wanted(get_args(self.whole)[0])}, or a list of such" if several else wanted(self.hint)
            raise ValueError(f"{self.name} {shown(value)}: give {wants}")
        for one in entries:
            if isinstance(one, str) and self.setting.among and not self.setting.other:
                allowed, also = tuple(self.setting.among), self.setting.also
                if one not in allowed and not (also and also(one)):
                    raise unknown(self.name, one, filter(None, allowed))
            elif isinstance(one, int | float) and (wrong := self.setting.wrong(one)):
                raise ValueError(f"{self.name} {shown(one)}: {wrong}")

    def plain(self, value: Any) -> Any:
        """A value as the field holds it: a path as text, a list as a tuple, a single number as one of one.

        A number of numpy becomes one of Python.
        """
        if isinstance(value, list | tuple) and get_origin(self.whole) is tuple:
            return tuple(map(_plain, value))
        value = _plain(value)
        single = isinstance(value, int | float) and not isinstance(value, bool)
        return (value,) if single and get_origin(self.whole) is tuple else value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return value.item() if type(value).__module__ == "numpy" and not getattr(value, "shape", None) else value


class Config:
    """A configuration: a frozen dataclass whose fields are settings.

    Attributes:
        heading: group of the settings that name none.
    """

    heading: ClassVar[str] = ""

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Refuse names that it does not have, with the one that was meant."""
        known = [one.name for one in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in named:
            if name not in known:
                now = [row.field for row in declared(cls).values() if name in (row.name, row.setting.former)]
                reason = f"{name!r} is called {now[0]!r}" if now else unknown("setting", name, known)
                raise TypeError(f"{cls.__name__}: {reason}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: as `Declared.check`.
        """
        for one in declared(type(self)).values():
            if not one.part:
                one.check(given := getattr(self, one.field))
                object.__setattr__(self, one.field, one.plain(given))

    def part(self, of: type[C]) -> C:
        """Those of its settings that another configuration has, too, as one of that kind."""
        return of(**{one.name: getattr(self, one.name) for one in dataclasses.fields(of)})  # type: ignore[arg-type]


C = TypeVar("C", bound=Config)


def declared(of: type[Config]) -> dict[str, Declared]:
    """The settings of a configuration by name, those of its parts by the names of their options."""
    kind: Any = of  # what mypy does not take for hashable
    return _declared(kind)


@functools.cache
def _declared(of: Any) -> dict[str, Declared]:
    hints, found = get_type_hints(of), dict[str, Declared]()
    for one in dataclasses.fields(of):
        if inner := one.metadata.get("part"):
            for each in (row for row in declared(inner).values() if not row.setting.unlisted):
                name = (each.setting.option or each.name).replace("-", "_")
                found[name] = dataclasses.replace(each, name=name, part=one.name, field=each.name)
        elif known := one.metadata.get("setting"):
            default = one.default_factory() if callable(one.default_factory) else one.default
            owner = next(each for each in reversed(of.__mro__) if one.name in inspect.get_annotations(each))
            group = known.group or owner.heading
            name = known.name or one.name
            found[name] = Declared(name, hints[one.name], default, known, group, field=one.name)
    return found


def having(of: type[Config], **wanted: Any) -> tuple[str, ...]:
    """Names of the settings of which so much is known: `having(FitConfig, path=True)`."""
    rows = declared(of).values()
    return tuple(one.name for one in rows if all(getattr(one.setting, key) == value for key, value in wanted.items()))


def current(given: Mapping[str, Any], of: type[Config]) -> dict[str, Any]:
    """Values by the names that their settings have now; earlier names and those of Python's fields are understood.

    Raises:
        ValueError: a setting is given by two names.
    """
    rows, found = declared(of), dict[str, Any]()
    names = {row.setting.former: name for name, row in rows.items() if row.setting.former}
    names |= {row.field: name for name, row in rows.items() if not row.part}
    for key, value in given.items():
        name = key if key in rows else names.get(key, key)
        if name in found:
            raise ValueError(f"{' and '.join(k for k in given if name in (k, names.get(k)))} are one setting: {name}")
        found[name] = value
    return found


def options_in(
    table: Mapping[str, Any], of: type[Config], where: str, allowed: Iterable[str] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Settings that a TOML table holds, every one checked.

    Args:
        table: names, with dashes or underscores, and values.
        of: the configuration that they belong to.
        where: what to call the table in messages.
        allowed: names that it may hold; None: those of all settings that are options.
        beside: what else it may hold -> its type.

    Raises:
        ValueError: a name that is not allowed, a value that is none of the setting.
    """
    try:
        options = current({str(key).replace("-", "_"): value for key, value in table.items()}, of)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    rows = declared(of)
    names = (*(having(of, unlisted=False) if allowed is None else allowed), *(beside or ()))
    for name, value in options.items():
        if beside and name in beside:
            of_type(value, beside[name], f"{where}: {name}")
            continue
        if name not in names:
            raise ValueError(f"{where}: {unknown('option', name, sorted(names))}")
        if name in rows:
            try:
                rows[name].check(value)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
    return {name: rows[name].plain(value) if name in rows else value for name, value in options.items()}


def flat(config: Config) -> dict[str, Any]:
    """The settings of a configuration that have a value, by their flat names: what `built` takes."""
    found = dict[str, Any]()
    for name, row in declared(type(config)).items():
        holder = getattr(config, row.part) if row.part else config
        value = None if holder is None or row.setting.unlisted else getattr(holder, row.field)
        if value not in (None, ()):
            found[name] = value
    return found


def built(of: type[C], options: Mapping[str, Any]) -> C:
    """A configuration from settings by their flat names; a part is there if the setting that switches it on is given.

    Raises:
        ValueError: a value is refused, or settings of a part that is not there.
    """
    rows, own, parts = declared(of), dict[str, Any](), dict[str, dict[str, Any]]()
    for name, value in current(options, of).items():
        if (row := rows.get(name)) is None:
            raise unknown("setting", name, rows)
        (parts.setdefault(row.part, {}) if row.part else own)[row.field] = value
    kinds = {one.name: one.metadata["part"] for one in dataclasses.fields(of) if "part" in one.metadata}  # type: ignore[arg-type]
    for part, values in parts.items():
        rows_of_part = [row for row in rows.values() if row.part == part and row.field in values]
        switch = next(row for row in rows.values() if row.part == part and row.setting.kind == "switch")
        if switch.field not in values:
            given, goes = ", ".join(row.option for row in rows_of_part), "go" if len(rows_of_part) > 1 else "goes"
            raise ValueError(f"{given} {goes} with {switch.option} {switch.setting.unit}")
        own[part] = kinds[part](**values)
    return of(**own)
