"""Where every value lies in the arena, and for how long: planned before, so that nothing is allocated at run time."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_compress.deploy.integer.parts import NORMS, TWO
from pyro_compress.deploy.integer.steps import Step
from pyro_compress.types import count

IN_PLACE = (
    *TWO, "copy", "prelu", "max_pool", "avg_pool", "mean", "sum", "amax", "amin", *NORMS, "softmax", "log_softmax",
)  # fmt: skip
"""Operations whose output at one place needs no input before it any more."""


@dataclass(frozen=True)
class Arena:
    """Bytes of the arena.

    Attributes:
        places: per step, the offset of its output; -1 for the last, which is the caller's.
        bytes: the largest extent that is in use at a time.
        work: numbers of 32 bits beside it, of the step that holds most of them.
    """

    places: list[int]
    bytes: int
    work: int = 0

    @property
    def whole(self) -> int:
        """Bytes of static memory."""
        return self.bytes + 4 * self.work


def planned(steps: list[Step]) -> Arena:
    """The better of two orders of placing: as the steps come, or the largest value first."""
    spans = _spans(steps)
    orders = [sorted(spans), sorted(spans, key=lambda one: -spans[one][0])]
    size, places = min((_placed(spans, order) for order in orders), key=lambda found: found[0])
    work = max(step.work for step in steps)
    return Arena([*(places[_owner(steps, i)] for i in range(len(steps) - 1)), -1], size, work)


def _last(steps: list[Step], index: int) -> int:
    """The step that reads a step's output last."""
    return max((i for i, step in enumerate(steps) if index in step.inputs), default=index)


def _owner(steps: list[Step], index: int) -> int:
    """The step whose place a step's output takes: its input's, where that is read by nobody later."""
    step = steps[index]
    bordered = step.border != (0, 0)
    repeated = any(shape != step.shape for shape in step.shapes) and len(step.shapes) > 1
    if step.op not in IN_PLACE or bordered or repeated:
        return index
    source = step.inputs[0]
    if source < 0 or step.inputs.count(source) > 1 or _last(steps, source) > index:
        return index
    return _owner(steps, source)


def _spans(steps: list[Step]) -> dict[int, tuple[int, int, int]]:
    """Owner of a place -> its bytes, and the first and last step that use it."""
    spans: dict[int, tuple[int, int, int]] = {}
    for index, step in enumerate(steps[:-1]):
        owner, size = _owner(steps, index), count(step.shape)
        old = spans.get(owner, (0, index, index))
        spans[owner] = (max(old[0], size), min(old[1], index), max(old[2], _last(steps, index)))
    return spans


def _placed(spans: dict[int, tuple[int, int, int]], order: list[int]) -> tuple[int, dict[int, int]]:
    """Each value at the lowest offset that is free while it lives; and their extent."""
    places: dict[int, int] = {}
    for one in order:
        size, first, last = spans[one]
        offset = 0
        beside = [
            (places[other], places[other] + spans[other][0])
            for other in places
            if spans[other][1] <= last and first <= spans[other][2]
        ]
        for start, end in sorted(beside):
            if start < offset + size and offset < end:
                offset = end
        places[one] = offset
    return max((places[one] + spans[one][0] for one in spans), default=0), places
