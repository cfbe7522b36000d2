"""Which loops run example by example and which on a block of them, and where every value lies in the workspace.

Inside a block the values of one place lie side by side, one per example (a *lane*), so that a non-zero weight is one
multiply-add of vectors whatever the layer looks like. A convolution with rows of pixels long enough does as well with
the pixels of one example, which stay in the cache, so such layers at the beginning run example by example.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyro_compress.deploy.c import whole
from pyro_compress.deploy.c.plan import is_layer
from pyro_compress.graph.faces.c import Loop
from pyro_compress.types import count


@dataclass(frozen=True)
class Layout:
    """Where loops run and values lie.

    Attributes:
        loops: of the whole network.
        border: loops before it run example by example, the others on blocks.
        crossing: the value that is handed over: -1 for the input, or the index of a loop.
        places: per loop, offset of its output among the values of its side, per example.
        sizes: values per example that both sides need.
    """

    loops: list[Loop]
    border: int
    crossing: int
    places: list[int]
    sizes: tuple[int, int]


def laid_out(loops: list[Loop]) -> Layout:
    """Choose the border and give every value its place."""
    border, crossing = _border(loops)
    front, front_size = _places(loops, 0, border, crossing)
    back, back_size = _places(loops, border, len(loops), len(loops) - 1)
    return Layout(loops, border, crossing, front + back, (front_size, back_size))


def _border(loops: list[Loop]) -> tuple[int, int]:
    """The smallest value that alone is handed over between the last layer of long rows and the layer behind it."""
    layers = [i for i, loop in enumerate(loops) if is_layer(loop)]
    wide = [i for i in layers if loops[i].op != "linear" and loops[i].shape[2] >= whole.ROW]
    earliest = wide[-1] + 1 if wide else 0
    latest = next((i for i in layers if i >= earliest), len(loops))
    cuts = [(cut, value) for cut, value in _crossings(loops) if cut >= earliest]
    near = [(count(loops[value].shape) if value >= 0 else 0, cut, value) for cut, value in cuts if cut <= latest]
    if near:
        _, cut, value = min(near)
        return cut, value
    return cuts[0]


def _crossings(loops: list[Loop]) -> list[tuple[int, int]]:
    """The cuts, from the first on, behind which loops read a single value of those before; and that value."""
    found, read = [(len(loops), len(loops) - 1)], set[int]()
    for cut in reversed(range(len(loops))):
        read.update(loops[cut].inputs)
        read.discard(cut)
        if len(read) == 1:
            found.append((cut, next(iter(read))))
    return found[::-1]


def _places(loops: list[Loop], first: int, last: int, kept: int) -> tuple[list[int], int]:
    """Offsets of the outputs of loops `first` to `last`, the lowest that is free while they live; and their extent."""
    ends = {i: i for i in range(first, last)}
    for index in range(first, last):
        ends.update({i: index for i in loops[index].inputs if i >= first})
    if first <= kept < last:
        ends[kept] = last
    placed: list[tuple[int, int, int]] = []  # offset, end of it, loop that reads it last
    offsets, extent = [], 0
    for index in range(first, last):
        size, offset = count(loops[index].shape) + loops[index].scratch + whole.scratch(loops[index]), 0
        placed = [one for one in placed if one[2] >= index]
        for start, end, _ in sorted(placed):
            if start < offset + size and offset < end:
                offset = end
        placed.append((offset, offset + size, ends[index]))
        offsets.append(offset)
        extent = max(extent, offset + size)
    return offsets, extent
