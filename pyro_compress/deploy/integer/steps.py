"""The steps of an integer program: what every loop computes, from which grids to which, and by which constants."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pyro_compress.deploy.c.plan import is_layer
from pyro_compress.deploy.integer.fixed_point import IntegerLayer, integer_layer
from pyro_compress.deploy.integer.grids import EVERY, HIGH, LOW, Choice, Grid, Ranges
from pyro_compress.deploy.integer.parts import CLAMPS, KEEPING, NORMS, RECURRENT, Part, Parts, Window, window_of
from pyro_compress.graph.faces.c import Loop, Shape
from pyro_compress.graph.rules.table import run_node
from pyro_compress.types import Node, count

GATES = Grid(2.0**-12, 0)
"""Where the gates of recurrent layers lie, and what norms make before they are scaled; not of 8 bits."""
REDUCED = ("mean", "sum", "amax", "amin")


@dataclass(frozen=True)
class Step:
    """One loop nest in integers.

    Attributes:
        op: `layer`, or the operation.
        inputs: steps that it reads; -1 is the network's input.
        shapes: theirs, and `grids`.
        shape: of its output.
        grid: what its sums become, between `low` and `high`.
        out: grid of its output; another one than `grid` where there is a table.
        name: the layer's, or that of the one before.
        layer: integers of a layer.
        strides: rows and columns from one output to the next; `dilation` likewise, and `groups` of channels.
        numbers: slopes of channels, values of a constant.
        map: shape of a layer's outputs before they are pooled.
        border: as in `Part`.
        window: what pooling looks at.
        table: what becomes of each of 256 integers at the end.
        attributes: as in the loop.
        positions: of a linear layer that is repeated.
        given: of a recurrent layer, the layer that adds what it reads to its gates.
        inner: the layer that adds its own outputs of the step before.
        work: numbers of 32 bits that it holds while it runs.
    """

    op: str
    inputs: list[int]
    shapes: list[Shape]
    shape: Shape
    grids: list[Grid]
    grid: Grid
    low: int
    high: int
    out: Grid
    name: str
    attributes: dict
    border: tuple[int, int] = (0, 0)
    window: Window | None = None
    layer: IntegerLayer | None = None
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    numbers: np.ndarray | None = None
    map: Shape = (0, 0, 0)
    table: np.ndarray | None = None
    positions: int = 1
    given: Step | None = None
    inner: Step | None = None
    work: int = 0


def steps_of(parts: Parts, ranges: Ranges, choice: Choice, raw: float) -> list[Step]:
    """Every part on grids.

    Args:
        parts: the program.
        ranges: of its nodes.
        choice: how a range becomes a grid.
        raw: of images the whole number that becomes 1.0, so that a byte less 128 is the integer of its pixel; 0 for
            everything else.
    """
    tokens = parts.network.graph.kind != "float32"
    entry = Grid(float(np.float32(1 / raw)), LOW) if raw else Grid(1.0, 0) if tokens else ranges.grid(0, choice)
    steps: list[Step] = []
    for part in parts.parts:
        grids = [steps[i].out if i >= 0 else entry for i in part.loop.inputs]
        steps.append(_step(part, grids, ranges, choice))
    return steps


def entry_grid(steps: list[Step]) -> Grid:
    """The grid of the network's input."""
    return next(grid for step in steps for i, grid in zip(step.inputs, step.grids, strict=True) if i < 0)


def entry_size(steps: list[Step]) -> int:
    """Values of the network's input; what a constant reads has its own shape."""
    reading = (step for step in steps if step.op != "constant")
    return next(count(shape) for step in reading for i, shape in zip(step.inputs, step.shapes, strict=True) if i < 0)


def _step(part: Part, grids: list[Grid], ranges: Ranges, choice: Choice) -> Step:
    loop, after = part.loop, part.loop.after
    keeps = loop.op in KEEPING or part.base < 0
    clamps = bool(after) and not keeps and all(node.op in CLAMPS for node in after)
    tabled = bool(after) and not clamps
    grid = grids[0] if keeps else ranges.grid(part.final if clamps else part.base, choice)
    low, high = _bounds(after, grid) if clamps else (LOW, HIGH)
    out = ranges.grid(part.final, choice) if tabled else grid
    step = Step(
        loop.op, loop.inputs, loop.shapes, loop.shape, grids, grid, low, high, out, part.name, loop.attributes,
        part.border, part.pool, table=_table(after, grid, out) if tabled else None,
    )  # fmt: skip
    if is_layer(loop):
        return _as_layer(step, loop, part.name)
    if loop.op in ("max_pool", "avg_pool", *REDUCED):
        return replace(step, window=window_of(loop))
    if loop.op in RECURRENT:
        assert loop.inner is not None
        assert part.given is not None
        given = _alone(part.given, grids[0], GATES, part.name)
        return replace(
            step, given=given, inner=_alone(loop.inner, grid, GATES, part.name), work=-(-5 * loop.shape[2] // 4)
        )
    if loop.op == "attention":
        return replace(step, work=loop.shapes[1][1])
    return replace(step, numbers=_numbers(loop)) if loop.weights else step


def _as_layer(step: Step, loop: Loop, name: str) -> Step:
    assert loop.weights is not None
    return replace(
        step, op="layer", layer=integer_layer(loop.weights, name, step.grids[0], step.grid),
        strides=loop.weights.stride, dilation=loop.weights.dilation, groups=loop.weights.groups,
        map=loop.attributes.get("map", loop.shape), positions=loop.attributes.get("positions", 1),
    )  # fmt: skip


def _alone(loop: Loop, before: Grid, after: Grid, name: str) -> Step:
    """A linear layer that another step calls on one vector."""
    assert loop.weights is not None
    outputs, inputs = loop.weights.codes.shape[:2]
    shape: Shape = (outputs, 1, 1)
    step = Step("layer", [-1], [(inputs, 1, 1)], shape, [before], after, LOW, HIGH, after, name, {})
    return _as_layer(step, replace(loop, shape=shape, attributes={}), name)


def once(step: Step) -> Step:
    """A layer at one of its positions."""
    if step.positions == 1:
        return step
    outputs, inputs = (step.shape[2], 1, 1), (step.shapes[0][2], 1, 1)
    return replace(step, shapes=[inputs], shape=outputs, map=outputs, positions=1)


def _numbers(loop: Loop) -> np.ndarray:
    """Values of a constant or of a table, scale and shift of a norm, slopes."""
    weights = loop.weights
    assert weights is not None
    if loop.op in ("constant", "embedding"):
        return weights.codes * weights.scale
    return np.stack([weights.scale, weights.bias]) if loop.op in NORMS else weights.scale


def applied(after: list[Node], values: np.ndarray) -> np.ndarray:
    """Functions of single values one behind the other, float32."""
    found = torch.from_numpy(values.astype(np.float32))
    for node in after:
        found = run_node(node, [found], {})
    return found.numpy()


def _bounds(after: list[Node], grid: Grid) -> tuple[int, int]:
    """The least and the most that clamps leave of a grid."""
    ends = applied(after, grid.values(EVERY))
    return grid.code(float(ends.min())), grid.code(float(ends.max()))


def _table(after: list[Node], grid: Grid, out: Grid) -> np.ndarray:
    values = applied(after, grid.values(EVERY)).astype(np.float64)
    return out.codes(np.nan_to_num(values, nan=0.0))
