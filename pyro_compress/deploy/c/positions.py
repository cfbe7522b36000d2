"""Linear layers at many positions as convolutions: vectors hold what one weight makes of neighbouring positions.

What a sequence has at one place lies together; a layer that multiplies its non-zeros alone would read one number here
and one there. With inputs transposed, a non-zero weight multiplies a row of positions, as a convolution by one pixel
does. Layers that follow each other, or read the same value, share a transposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pyro_compress.deploy.c.whole import ROW
from pyro_compress.graph.faces.c import Loop


def side_by_side(loops: Sequence[Loop]) -> list[Loop]:
    """The same network with linear layers at `ROW` positions or more as convolutions of transposed values."""
    made, place, turned = list[Loop](), {-1: -1}, dict[int, int]()
    for old, loop in enumerate(loops):
        loop = replace(loop, inputs=[place[i] for i in loop.inputs])
        if loop.op != "linear" or loop.attributes.get("positions", 1) < ROW:
            made.append(loop)
        else:
            _convolved(made, loop, turned)
        place[old] = len(made) - 1
    return _read(made)


def _convolved(made: list[Loop], loop: Loop, turned: dict[int, int]) -> None:
    """Append a layer as transposition, convolution and transposition; `turned` are values that lie transposed."""
    assert loop.weights is not None
    positions, (outputs, inputs), value = loop.attributes["positions"], loop.weights.codes.shape[:2], loop.inputs[0]
    if value not in turned:
        made.append(_transposed(value, positions, inputs, loop.node))
        turned[value] = len(made) - 1
    shapes = [(inputs, 1, positions)]
    made.append(Loop("conv2d", [turned[value]], shapes, (outputs, 1, positions), loop.weights, after=loop.after))
    made[-1].node = loop.node
    made.append(_transposed(len(made) - 1, outputs, positions, loop.node))
    turned[len(made) - 1] = len(made) - 2


def _transposed(value: int, rows: int, columns: int, node: int) -> Loop:
    axes = [list(range(columns)), [row * columns for row in range(rows)]]
    attributes = {"axes": axes, "base": 0, "layer": 0}
    return Loop("moved", [value], [(rows, 1, columns)], (columns, 1, rows), attributes=attributes, node=node)


def _read(loops: list[Loop]) -> list[Loop]:
    """The loops without those whose value nobody reads."""
    found = {len(loops) - 1}
    for index in reversed(range(len(loops))):
        if index in found:
            found.update(loops[index].inputs)
    new = {old: place for place, old in enumerate(sorted(found - {-1}))} | {-1: -1}
    return [replace(loops[old], inputs=[new[i] for i in loops[old].inputs]) for old in sorted(found - {-1})]
