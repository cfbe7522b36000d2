"""Which steps run example by example and which on a block of them, and where every value lies in the workspace.

Inside a block the values of one place lie side by side, one per example (a *lane*), so that a non-zero weight is one
multiply-add of vectors whatever the layer looks like. A convolution with rows of pixels long enough does as well with
the pixels of one example, which stay in the cache, so such layers at the beginning run example by example.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyro_compress.deploy.c.plan import is_layer
from pyro_compress.graph.faces.c import Step
from pyro_compress.types import count

ROW = 8
"""Pixels per row from which on a convolution runs example by example: the widest vector that is used."""


@dataclass(frozen=True)
class Layout:
    """Where steps run and values lie.

    Attributes:
        steps: of the whole network.
        border: steps before it run example by example, the others on blocks.
        crossing: the value that is handed over: -1 for the input, or the index of a step.
        places: per step, offset of its output among the values of its side, per example.
        sizes: values per example that both sides need.
    """

    steps: list[Step]
    border: int
    crossing: int
    places: list[int]
    sizes: tuple[int, int]


def laid_out(steps: list[Step]) -> Layout:
    """Choose the border and give every value its place."""
    border, crossing = _border(steps)
    front, front_size = _places(steps, 0, border, crossing)
    back, back_size = _places(steps, border, len(steps), len(steps) - 1)
    return Layout(steps, border, crossing, front + back, (front_size, back_size))


def _border(steps: list[Step]) -> tuple[int, int]:
    """The smallest value that alone is handed over between the last layer of long rows and the layer behind it."""
    layers = [i for i, step in enumerate(steps) if is_layer(step)]
    wide = [i for i in layers if steps[i].shape[2] >= ROW]
    earliest = wide[-1] + 1 if wide else 0
    latest = next((i for i in layers if i >= earliest), len(steps))
    cuts = [(cut, value) for cut, value in _crossings(steps) if cut >= earliest]
    near = [(count(steps[value].shape) if value >= 0 else 0, cut, value) for cut, value in cuts if cut <= latest]
    if near:
        _, cut, value = min(near)
        return cut, value
    return cuts[0]


def _crossings(steps: list[Step]) -> list[tuple[int, int]]:
    """The cuts, from the first on, behind which steps read a single value of those before; and that value."""
    found, read = [(len(steps), len(steps) - 1)], set[int]()
    for cut in reversed(range(len(steps))):
        read.update(steps[cut].inputs)
        read.discard(cut)
        if len(read) == 1:
            found.append((cut, next(iter(read))))
    return found[::-1]


def _places(steps: list[Step], first: int, last: int, kept: int) -> tuple[list[int], int]:
    """Offsets of the outputs of steps `first` to `last`, the lowest that is free while they live; and their extent."""
    ends = {i: i for i in range(first, last)}
    for index in range(first, last):
        ends.update({i: index for i in steps[index].inputs if i >= first})
    if first <= kept < last:
        ends[kept] = last
    placed: list[tuple[int, int, int]] = []  # offset, end of it, step that reads it last
    offsets, extent = [], 0
    for index in range(first, last):
        size, offset = count(steps[index].shape), 0
        placed = [one for one in placed if one[2] >= index]
        for start, end, _ in sorted(placed):
            if start < offset + size and offset < end:
                offset = end
        placed.append((offset, offset + size, ends[index]))
        offsets.append(offset)
        extent = max(extent, offset + size)
    return offsets, extent
