"""Numbers of a graph that change with the length of the sequences that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self


class Length(int):
    """A whole number that changes with the length of the sequences; as an `int` it is what it is at the full length.

    Attributes:
        slope: by how much it grows with every step of a sequence.
    """

    slope: int

    def __new__(cls, full: int, slope: int = 1) -> Self:
        """`full` at the full length."""
        found = super().__new__(cls, full)
        found.slope = slope
        return found

    @classmethod
    def spelled(cls, value: Any, full: int) -> Any:
        """JSON values for an attribute: `{"length": slope, "plus": what is left}` for such a number.

        Args:
            value: an attribute, or a part of one.
            full: the full length.
        """
        if isinstance(value, cls):
            return {"length": value.slope, "plus": int(value) - value.slope * full}
        return _within(value, lambda part: cls.spelled(part, full))

    @classmethod
    def read(cls, value: Any, full: int) -> Any:
        """What `spelled` made, as it was."""
        if isinstance(value, dict) and value.keys() == {"length", "plus"}:
            slope, more = value["length"], value["plus"]
            if type(slope) is int and type(more) is int and max(abs(slope), abs(more)) < 1 << 31:
                return cls(slope * full + more, slope)
        return _within(value, lambda part: cls.read(part, full))

    @classmethod
    def at(cls, value: Any, more: int) -> Any:
        """An attribute where sequences are `more` steps longer than the full length."""
        return int(value) + value.slope * more if isinstance(value, cls) else _within(value, lambda p: cls.at(p, more))


def _within(value: Any, change: Callable[[Any], Any]) -> Any:
    """A JSON value with its parts changed."""
    if isinstance(value, dict):
        return {key: change(part) for key, part in value.items()}
    return [change(part) for part in value] if isinstance(value, list) else value


def shapes_taken(longest: tuple[int, ...], least: int) -> str:
    """Shapes of one example that a network takes, in words; `least` as in `types.Graph`."""
    return f"({least} to {longest[0]},)" if least else str(longest)
