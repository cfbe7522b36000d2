"""How far long work has come: told where it is done, heard by whoever shows it.

Like `doubts`: whoever works deep inside needs to know nobody. Where nobody hears, telling costs a look-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Heard(Protocol):
    """Hears that parts of something are done; of the texts beside it, longest first, the first that fits is shown."""

    def __call__(self, what: str, done: int, total: int, *texts: str) -> None:
        """So many parts of what is named are done."""


_HEARD: ContextVar[Heard | None] = ContextVar("heard", default=None)


def advanced(what: str, done: int, total: int) -> None:
    """Tell that so many parts of something are done."""
    if (heard := _HEARD.get()) is not None:
        heard(what, done, total)


@contextmanager
def hearing(heard: Heard) -> Iterator[None]:
    """Whoever works inside is heard."""
    token = _HEARD.set(heard)
    try:
        yield
    finally:
        _HEARD.reset(token)
