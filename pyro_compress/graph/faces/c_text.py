"""Pieces of C: tables, numbers, names, strings that cannot end a comment, indentation."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

WIDTH = 110
"""Columns of tables and comments."""


def identifier(text: str) -> str:
    """A name that every C compiler takes, from the name of a file."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if name[:1].isalpha() else f"network_{name}".rstrip("_")


def number(value: float) -> str:
    """A float32 as the shortest literal that reads back as the same.

    Raises:
        ValueError: infinity or not a number.
    """
    if not np.isfinite(value):
        raise ValueError("the network has values that are infinite or not a number; C has no literal for them")
    digits = str(np.float32(value))
    return digits + ("f" if "." in digits or "e" in digits else ".0f")


def table(kind: str, name: str, values: Iterable[str]) -> str:
    """A constant array, of one zero where there are no values."""
    words = list(values) or ["0"]
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) > WIDTH:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([f"static const {kind} {name}[{len(words)}] = {{", *lines, line, "};", ""])


def integers(name: str, values: np.ndarray) -> str:
    """A constant array of integers, of the smallest type that holds them."""
    return table(integer_type(values), name, map(str, values.tolist()))


def integer_type(values: np.ndarray) -> str:
    """The smallest type that holds integers."""
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    kinds = ("uint8", "uint16", "uint32") if least >= 0 else ("int8", "int16", "int32")
    return f"{next(kind for kind in kinds if np.iinfo(kind).min <= least <= most <= np.iinfo(kind).max)}_t"


def floats(name: str, values: np.ndarray) -> str:
    """A constant array of float32."""
    return table("float", name, map(number, values.tolist()))


def string(text: str) -> str:
    """A string literal: UTF-8, everything but plain ASCII as three octal digits."""
    plain = {ord(c) for c in map(chr, range(32, 127))} - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def comment(lines: Iterable[str]) -> str:
    """A comment of these lines, which neither end it, nor begin another, nor hold a trigraph."""
    return "/*\n" + "\n".join(f" * {harmless(line)}".rstrip() for line in lines) + "\n */\n"


def harmless(text: str) -> str:
    """Text that may stand in a comment, in ASCII."""
    clean = text.encode("ascii", "backslashreplace").decode()
    clean = "".join(c if " " <= c else " " for c in clean)
    for part in ("*/", "/*", "??"):
        while part in clean:
            clean = clean.replace(part, f"{part[0]} {part[1]}")
    return clean


def indented(text: str) -> str:
    """Code with four spaces per level, a level being a brace or a loop without one; empty lines at most one by one."""
    lines, inside, outside, hanging = list[str](), [0], list[int](), 0
    for line in map(str.strip, text.splitlines()):
        if not line and (not lines or not lines[-1] or lines[-1].endswith("{")):
            continue
        level = inside[-1] + hanging
        if line.startswith("}"):
            inside.pop()
            level = outside.pop()
        flat = not line or line.startswith("#")
        lines.append(line if flat else "    " * level + line)
        if line.endswith("{"):
            outside.append(level)
            inside.append(level + (not line.startswith("extern")))
        if not flat:
            hanging = hanging + 1 if line.startswith(("for ", "if ")) and line.endswith(")") else 0
    return "\n".join(lines) + "\n"
