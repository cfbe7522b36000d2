"""What is doubtful of a result: said when it is found, and again in the last lines of the command that found it.

`doubt` is for whoever finds something that the result may suffer from, deep inside; a command gathers what was said
while it ran (`gathered`). What does not touch the result (a lock that is waited for, a folder put back in its place) is
a plain log warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_GATHERED: ContextVar[list[str] | None] = ContextVar("gathered", default=None)


def doubt(log: logging.Logger, sentence: str) -> None:
    """Say it now, and keep it for the last lines.

    Args:
        log: of the module that found it.
        sentence: one line; an empty one is no doubt.
    """
    if sentence:
        log.warning("%s", sentence)
        keep(sentence)


def keep(sentence: str) -> None:
    """Keep a doubt for the last lines alone, once; an empty sentence is no doubt."""
    found = _GATHERED.get()
    if sentence and found is not None and sentence not in found:
        found.append(sentence)


def kept() -> list[str]:
    """What was kept so far; empty where nobody gathers."""
    return list(_GATHERED.get() or ())


@contextmanager
def gathered() -> Iterator[list[str]]:
    """The doubts that come up inside, in order; whoever gathers outside does not see them."""
    found: list[str] = []
    token = _GATHERED.set(found)
    try:
        yield found
    finally:
        _GATHERED.reset(token)
