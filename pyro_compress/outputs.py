"""Several named outputs with a loss each, spelled in the name of a task: `angle=regression:1+digit=classification:10`.

A network that tells the digit and the angle of an image gives them here one behind the other, in the order of their
names; of the labels each has its columns, a class number one, in one row of float32. That way everything that trains,
prunes, scores and exports networks has one array to do with, and a file says what lies in it by its task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}")
"""What an input or an output may be called."""
PARTS = ("classification", "multi-label", "regression")
"""Tasks that one of several outputs may have."""
MOST = 64
"""Outputs of one network."""
LARGEST = 1 << 20
"""Values of one of them."""
ONE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]{0,60})=(?P<task>[a-z-]+):(?P<size>[1-9][0-9]{0,6})")

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """One of several outputs.

    Attributes:
        name: as `forward` and the data call it.
        task: one of `PARTS`.
        size: values of one example: classes, labels or targets.
    """

    name: str
    task: str
    size: int

    @property
    def labels(self) -> int:
        """Columns of its labels: one for a class number, else as many as it has values."""
        return 1 if self.task == "classification" else self.size


@dataclass(frozen=True)
class Outputs:
    """All outputs of a network, in the order of their names."""

    each: tuple[Output, ...]

    @cached_property
    def task(self) -> str:
        """The name of the task that says all this."""
        return "+".join(f"{one.name}={one.task}:{one.size}" for one in self.each)

    @property
    def size(self) -> int:
        """Values of one example."""
        return sum(one.size for one in self.each)

    @property
    def targets(self) -> int:
        """How many of them are numbers, which have units."""
        return sum(one.size for one in self.each if one.task == "regression")

    @cached_property
    def columns(self) -> tuple[slice, ...]:
        """Where each lies in a row of outputs."""
        return _slices([one.size for one in self.each])

    @cached_property
    def label_columns(self) -> tuple[slice, ...]:
        """Where the labels of each lie in a row of labels."""
        return _slices([one.labels for one in self.each])

    def of_numbers(self, targets: Sequence[T]) -> list[Sequence[T]]:
        """What is known of each output that gives numbers: of all of them one behind the other; of others nothing."""
        return self._dealt(targets, True)

    def of_classes(self, classes: Sequence[T]) -> list[Sequence[T]]:
        """The same of each output that gives classes or labels."""
        return self._dealt(classes, False)

    def _dealt(self, known: Sequence[T], numbers: bool) -> list[Sequence[T]]:
        own = [one.size if (one.task == "regression") is numbers else 0 for one in self.each]
        return [known[where] for where in _slices(own)]


def _slices(sizes: Sequence[int]) -> tuple[slice, ...]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))


def outputs_from(named: Mapping[str, tuple[str, int]]) -> Outputs:
    """Outputs by name, each with its task and its number of values.

    Raises:
        ValueError: a name that is none, another task than those of `PARTS`, none or too many.

    Examples:
        >>> outputs_from({"digit": ("classification", 10), "angle": ("regression", 1)}).task
        'angle=regression:1+digit=classification:10'
    """
    if not 0 < len(named) <= MOST:
        raise ValueError(f"{len(named)} outputs; a network has from 1 to {MOST}")
    for name, (task, size) in named.items():
        if not NAME.fullmatch(name) or name.startswith("__"):
            raise ValueError(f"an output is called {name!r:.60}; names are letters, digits and underscores")
        if task not in PARTS:
            raise ValueError(f"output {name} is for {task!r:.30}; one of several may be for {', '.join(PARTS)}")
        if not 0 < size <= LARGEST:
            raise ValueError(f"output {name} has {size} values; allowed are 1 to {LARGEST}")
    return Outputs(tuple(Output(name, *named[name]) for name in sorted(named)))


@lru_cache
def outputs_of(task: str) -> Outputs | None:
    """The several outputs that a task's name spells; None: it is the name of something else.

    Raises:
        ValueError: it spells some, but not as `Outputs.task` does.
    """
    if "=" not in task:
        return None
    found = [ONE.fullmatch(part) for part in task[: 100 * MOST].split("+")]
    named = {one["name"]: (one["task"], int(one["size"])) for one in found if one}
    if not all(found) or (outputs := outputs_from(named)).task != task:
        raise ValueError(
            f"several outputs are spelled NAME=TASK:VALUES+..., in the order of their names; got {task:.100}"
        )
    return outputs


def is_several(task: object) -> bool:
    """Whether a value is the name of such a task."""
    try:
        return isinstance(task, str) and outputs_of(task) is not None
    except ValueError:
        return False
