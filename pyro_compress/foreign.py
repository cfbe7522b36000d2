"""What comes from elsewhere: TOML and JSON held against the types of our own values, and text made fit to be shown.

A file that somebody sent may hold anything where a number is expected, and names that are commands to a terminal or a
spreadsheet. Whoever reads such a file goes through this module first; behind it every value has its declared type.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
import stat
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

MAX_TOML = 1 << 20
"""Bytes of a TOML file; what people write has a few thousand."""
MAX_WHOLE = 1 << 63
"""Whole numbers are smaller than this, and larger than its negative: what fits into eight bytes."""
LINE = 1000
"""Characters of a line that says what is wrong; libraries repeat what stands in a file, all of it."""
LISTED = 20
"""Names up to which a message repeats all that are allowed; of more, where one is near, that one."""
SHOWN = 60
"""Characters of a refused value that a message repeats."""
ACTS = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Characters that are not seen but act: controls, escape sequences, changes of direction, halves of pairs."""

NO_CODE = "PYRO_COMPRESS_NO_CODE"
"""Environment variable under which no code of the user's is imported."""

_ACTING, _ACTING_IN_TEXT = re.compile(f"[{ACTS}]"), re.compile(f"(?![\n\t])[{ACTS}]")
_PLAIN: dict[Any, str] = {int: "a whole number", float: "a number", str: "plain text", bool: "true or false"}


def ordinary(path: Path) -> Path:
    """The path of a file or folder to be read, unless a read of it could wait or never end.

    Raises:
        ValueError: a pipe, a socket or a device lies there.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return path  # whoever reads it says why it cannot
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return path
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise ValueError(f"{path} is {kind}; write what it gives to a file, and give that one")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file.

    Raises:
        ValueError: it is none, or too large.
        OSError: it cannot be read.
    """
    with ordinary(path).open("rb") as file:
        data = file.read(MAX_TOML + 1)
    return toml(data, str(path))


def toml(data: bytes, where: str) -> dict[str, Any]:
    """The table that a TOML file's bytes hold; `where` is for messages.

    Raises:
        ValueError: it is none, or too large.
    """
    if len(data) > MAX_TOML:
        raise ValueError(f"{where} holds more than {MAX_TOML} bytes; a TOML file of this program is smaller")
    try:
        return tomllib.loads(data.decode())
    except RecursionError as error:
        raise ValueError(f"{where} is no valid TOML: it is nested too deeply") from error
    except ValueError as error:  # of the syntax, the encoding, or a number of thousands of digits
        raise ValueError(f"{where} is no valid TOML: {error}") from error


def json_of(text: str | bytes, where: str) -> Any:
    """A JSON value; `where` is for messages.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where} is no valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where} is no valid JSON: {error}") from error


def table(value: Any, where: str) -> dict[str, Any]:
    """The value, if it is a table with names that can be shown.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, dict) or not all(fits(key, str) for key in value):
        raise ValueError(f"{where}: {shown(value)}: give a table")
    return value


def typed(values: Mapping[str, Any], of: type, where: str) -> None:
    """Hold named values against the annotations of a dataclass's fields; names that it does not have are left alone.

    Raises:
        ValueError: a value of another type, a number that is none, text with control characters.
    """
    hints = _hints(of)
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise ValueError(f"{where}: {name} {shown(value)}: give {wanted(hints[name])}")


Record = TypeVar("Record")


def record(of: type[Record], document: Any, where: str) -> Record:
    """A dataclass from the table that a file of ours holds of it; a measured number may be NaN there.

    Raises:
        ValueError: no table, a field that is unknown or missing, a value of another type.
    """
    known: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(of)  # type: ignore[arg-type]
    values = table(document, where)
    required = {one.name for one in known if one.default is one.default_factory is dataclasses.MISSING}
    if wrong := sorted((set(values) - {one.name for one in known}) | (required - set(values))):
        raise ValueError(f"{where}: unknown or missing {shown(', '.join(wrong))}")
    typed({name: 0.0 if value != value else value for name, value in values.items()}, of, where)
    return of(**values)


def of_type(value: Any, hint: Any, where: str) -> Any:
    """The value, if it is of a type: `int`, `list[str]`, `dict[str, float]`, `float | None`, ...

    Raises:
        ValueError: it is not.
    """
    if not fits(value, hint):
        raise ValueError(f"{where} {shown(value)}: give {wanted(hint)}")
    return value


def shown(value: Any) -> str:
    """A value as a message repeats it: in one line, without what acts on a terminal, and not all of a long one."""
    text = printable(repr(value)) if not isinstance(value, int) or abs(value) < MAX_WHOLE else "a huge number"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@functools.cache
def _hints(of: type) -> dict[str, Any]:
    return get_type_hints(of)


def fits(value: Any, hint: Any) -> bool:
    """Whether a TOML or JSON value is of a type; every whole number is a number, and arrays are tuples."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, str) and fits(v, inner[1]) for k, v in value.items())
    if hint is float:
        return (type(value) is float and not math.isnan(value)) or fits(value, int)
    if hint is int:
        return type(value) is int and -MAX_WHOLE < value < MAX_WHOLE
    if hint is str:
        return isinstance(value, str) and not _ACTING.search(value)
    return isinstance(value, hint)


def wanted(hint: Any) -> str:
    """What to give where a type is asked for, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(wanted(one) for one in inner if one is not types.NoneType)
    if origin in (list, tuple):
        return f"a list, each of them {wanted(inner[0])}"
    if origin is dict:
        return f"a table, each value {wanted(inner[1])}"
    return _PLAIN.get(hint, "something else")


def unknown(what: str, given: Any, allowed: Iterable[str], others: str = "") -> ValueError:
    """The error that a name is none of those allowed, with the one that was probably meant.

    Args:
        what: what the name is of: `prior`.
        given: the name.
        allowed: names.
        others: what else is allowed, in words.
    """
    known, near = list(allowed), ""
    if len(known) > LISTED and (near := meant(given, known)):
        return ValueError(f"unknown {what} {shown(given)}{near}")
    listed = f"{', '.join(known)}{', ' * bool(known and others)}{others}"
    return ValueError(f"unknown {what} {shown(given)}; allowed: {listed or 'none'}{meant(given, known)}")


def meant(given: Any, allowed: Iterable[str]) -> str:
    """A question after a name that is none of those allowed: whether it was another one; empty if none is near."""
    folded = {name.strip().casefold(): name for name in allowed}
    near = difflib.get_close_matches(str(given).strip().casefold(), list(folded), 1)
    return f"; did you mean {name_shown(folded[near[0]])}?" if near else ""


def name_shown(text: str) -> str:
    """A name as a line of a table shows it: as it is, or spelled out where it would act, or could not be seen."""
    return text if text.strip() == text != "" and not _ACTING.search(text) else shown(text)


def printable(text: str) -> str:
    r"""Text without what acts on a terminal: such a character is spelled out, `\x1b` for an escape.

    Line feeds and tabs stay.
    """
    return _ACTING_IN_TEXT.sub(lambda found: found[0].encode("unicode-escape").decode(), text)


def one_line(text: str) -> str:
    """A message as it is printed: on one line, without what acts on a terminal, and not all of a long one."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LINE else f"{line[: LINE // 2]} ... {line[-LINE // 2 :]}"


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def cell(value: Any) -> Any:
    """A cell of a CSV file: text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cell(text: str) -> str:
    """What `cell` was given; to be used on columns of text only."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def file_name(name: Any, where: str) -> str:
    """The name, if a file or folder may bear it: a foreign file does not say where results go.

    Raises:
        ValueError: it is none, or leads elsewhere.
    """
    text: str = of_type(name, str, where)
    if not text or len(text.encode()) > 200 or text in (".", "..") or set(text) & set("/\\") or text.startswith("-"):
        raise ValueError(f"{where} {shown(text)}: give a name for a folder, without slashes")
    return text


def own_code(net: str) -> bool:
    """Whether a network's name is that of a function to be imported, `package.module:function`."""
    return ":" in net and not net.startswith("torchvision:") and not net.endswith(".pcn")


def code_named_in(document: Any, key: str = "") -> list[str]:
    """Functions that a document names as networks, priors or guides, in order, each once."""
    if isinstance(document, dict):
        found = [one for name, value in document.items() for one in code_named_in(value, str(name))]
    elif isinstance(document, list | tuple):
        found = [one for value in document for one in code_named_in(value, key)]
    else:
        code = key in ("net", "networks", "prior", "guide") and isinstance(document, str) and own_code(document)
        found = [document] if code else []
    return list(dict.fromkeys(found))
