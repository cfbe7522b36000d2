"""A layer in integer C that keeps a tile of sums in registers, which is pooled where pooling follows."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_compress.deploy.integer.steps import Step
from pyro_compress.deploy.integer.tables import bias_of, is_bordered, walk

SUMS = 8
"""Sums of a tile that are kept in registers."""


@dataclass(frozen=True)
class Tile:
    """Outputs computed together: windows of pooling side by side, or single ones."""

    rows: int
    columns: int
    side_by_side: int


def tile_of(step: Step) -> Tile | None:
    """The tile of a layer without a border; None where its windows are too large for registers."""
    if is_bordered(step):
        return None
    rows, columns = step.window.kernel if step.window else (1, 1)
    most = SUMS // (rows * columns)
    return Tile(rows, columns, _even(step.shape[2], most)) if most else None


def _even(total: int, most: int) -> int:
    """Size of the parts that a total is cut into, none larger than `most` and all about as large."""
    parts = -(-total // max(most, 1))
    return -(-total // parts)


def function(tag: str, step: Step, tile: Tile) -> str:
    """The function that computes one tile: sums that are alone with their weights stay in registers."""
    steps = step.window.stride if step.window else (1, 1)
    down, aside = step.strides[0] * step.shapes[0][2], step.strides[1]
    sums = [(u, i, j) for u in range(tile.side_by_side) for i in range(tile.rows) for j in range(tile.columns)]
    names = {one: f"s{''.join(map(str, one))}" for one in sums}
    first = names[sums[0]]
    adds = [f"{names[u, i, j]} += w * p[{i * down + (u * steps[1] + j) * aside}];" for u, i, j in sums]
    ends = []
    for u, i, j in sums:
        most = names[u, 0, 0]
        if (i, j) != (0, 0):
            ends.append(f"if ({names[u, i, j]} > {most})\n{most} = {names[u, i, j]};")
        if (i, j) == (tile.rows - 1, tile.columns - 1):
            ends.append(f"most[{u}] = {most};")
    lines = "\n".join(ends)
    return f"""
        static APART void {tag}_tile(const int8_t *from, int32_t o, int32_t *most)
        {{
        int32_t {first} = {bias_of(tag, step)}{"".join(f", {names[one]} = {first}" for one in sums[1:])};
        {walk(tag, step, "from", chr(10).join(adds))}
        {lines}
        }}
        """


def body(tag: str, step: Step, tile: Tile, write: str) -> str:
    """All tiles, and what becomes of their sums; the last of a row may repeat outputs of the one before."""
    width, (outputs, rows, columns), number = step.shapes[0][2], step.shape, tile.side_by_side
    steps = step.window.stride if step.window else (1, 1)
    down, aside = steps[0] * step.strides[0] * width, steps[1] * step.strides[1]
    last = columns - number
    left = f"q < {last} ? q : {last}" if columns % number else "q"
    return f"""
        for (int32_t o = 0; o < {outputs}; o++)
        for (int32_t r = 0; r < {rows}; r++)
        for (int32_t q = 0; q < {columns}; q += {number}) {{
        const int32_t left = {left};
        int32_t most[{number}];
        {tag}_tile(x + r * {down} + left * {aside}, o, most);
        for (int32_t u = 0; u < {number}; u++)
        y[(o * {rows} + r) * {columns} + left + u] = {write.format("most[u]")};
        }}"""
