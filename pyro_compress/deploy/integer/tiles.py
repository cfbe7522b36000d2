"""A layer in integer C that keeps a tile of sums in registers, which is pooled where pooling follows.

Where windows reach over the edge of the input, every weight looks at its row and its columns once per tile; outside,
the zero of the input counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyro_compress.deploy.integer.parts import SUMS
from pyro_compress.deploy.integer.steps import Step
from pyro_compress.deploy.integer.tables import bias_of, channel, is_bordered, is_whole, walk, weights_of
from pyro_compress.types import count


@dataclass(frozen=True)
class Tile:
    """Outputs computed together: windows of pooling side by side, or single ones.

    Attributes:
        rows: of a window; `columns` likewise.
        stride: columns from one window to the next.
        side_by_side: windows.
    """

    rows: int
    columns: int
    stride: int
    side_by_side: int

    @property
    def names(self) -> dict[tuple[int, int, int], str]:
        """Window, row and column in it -> the name of the sum."""
        places = [(u, i, j) for u in range(self.side_by_side) for i in range(self.rows) for j in range(self.columns)]
        return {place: f"s{''.join(map(str, place))}" for place in places}

    @property
    def span(self) -> int:
        """Columns of the map that it covers."""
        return (self.side_by_side - 1) * self.stride + self.columns


def tile_of(step: Step) -> Tile:
    """The tile of a layer."""
    (rows, columns), stride = (step.window.kernel, step.window.stride[1]) if step.window else ((1, 1), 1)
    return Tile(rows, columns, stride, _even(step.shape[2], SUMS // (rows * columns)))


def _even(total: int, most: int) -> int:
    """Size of the parts that a total is cut into, none larger than `most` and all about as large."""
    parts = -(-total // max(most, 1))
    return -(-total // parts)


def function(tag: str, step: Step) -> str:
    """The function that computes one tile: sums that are alone with their weights stay in registers."""
    tile, ends = tile_of(step), []
    names = tile.names
    first, *others = names.values()
    for (u, i, j), name in names.items():
        most = names[u, 0, 0]
        if name != most:
            ends.append(f"if ({name} > {most})\n{most} = {name};")
        if (i, j) == (tile.rows - 1, tile.columns - 1):
            ends.append(f"most[{u}] = {most};")
    bordered = is_bordered(step)
    given = "const int8_t *x, int32_t row, int32_t left" if bordered else "const int8_t *from"
    inside = _over_the_edge(tag, step, tile) if bordered else walk(tag, step, "from", _within(step, tile))
    lines = "\n".join(ends)
    return f"""
        static APART void {tag}_tile({given}, int32_t o, int32_t *most)
        {{
        int32_t {first} = {bias_of(tag, step)}{"".join(f", {name} = {first}" for name in others)};
        {inside}
        {lines}
        }}
        """


def _within(step: Step, tile: Tile) -> str:
    """A weight added to every sum, where all of its values are there."""
    down, aside = step.strides[0] * step.shapes[0][2], step.strides[1]
    return "\n".join(
        f"{name} += w * p[{i * down + (u * tile.stride + j) * aside}];" for (u, i, j), name in tile.names.items()
    )


def _over_the_edge(tag: str, step: Step, tile: Tile) -> str:
    """Every weight added to every sum, row by row of the tile, with a look at the edge."""
    (_, height, width), codes, aside = step.shapes[0], weights_of(step).codes, step.strides[1]
    zero, lines = step.grids[0].zero, []
    for line in range(tile.rows):
        names = {u * tile.stride + j: name for (u, i, j), name in tile.names.items() if i == line}
        start = f"base + {line * step.strides[0] * width}" if line else "base"
        inside = "\n".join(f"{name} += w * p[{column * aside}];" for column, name in names.items())
        some = "\n".join(
            f"{name} += w * ({column} >= first && {column} < last ? x[{start} + {column * aside}] : {zero});"
            for column, name in names.items()
        )
        outside = "".join(f"{name} += w * {zero};\n" for name in names.values()) if zero else ""
        at = f"at + {line * step.strides[0]}" if line else "at"
        lines.append(f"""
            if ({at} < 0 || {at} >= {height}) {{
            {outside}
            }} else if (first <= 0 && last >= {tile.span}) {{
            const int8_t *p = x + {start};
            {inside}
            }} else {{
            {some}
            }}""")
    body = f"""
        const int32_t at = row + {tag}_rows[t], first = {tag}_first[t] - left, last = {tag}_last[t] - left;
        const int32_t base = CHANNEL * {count(step.shapes[0][1:])} + row * {width} + left * {aside} + {tag}_offsets[t];
        {chr(10).join(lines)}"""
    if is_whole(step):
        return f"""
            const int8_t *code = {tag}_codes + o * {codes[0].size};
            for (int32_t c = 0; c < {codes.shape[1]}; c++)
            for (int32_t t = 0; t < {codes[0, 0].size}; t++) {{
            const int32_t w = *code++;
            {body.replace("CHANNEL", channel(step))}
            }}"""
    return f"""
        for (int32_t k = {tag}_starts[o]; k < {tag}_starts[o + 1]; k++) {{
        const int32_t w = {tag}_codes[k], t = {tag}_taps[k];
        {body.replace("CHANNEL", f"{tag}_channels[k]")}
        }}"""


def body(tag: str, step: Step, write: str) -> str:
    """All tiles, and what becomes of their sums; the last of a row may repeat outputs of the one before."""
    tile, width, (outputs, rows, columns) = tile_of(step), step.shapes[0][2], step.shape
    number, down = tile.side_by_side, (step.window.stride[0] if step.window else 1) * step.strides[0]
    last, aside = columns - number, tile.stride * step.strides[1]
    left = f"q < {last} ? q : {last}" if columns % number else "q"
    where = f"x + r * {down * width} + left * {aside}"
    if is_bordered(step):
        where = f"x, r * {down}, left * {tile.stride}"
    return f"""
        for (int32_t o = 0; o < {outputs}; o++)
        for (int32_t r = 0; r < {rows}; r++)
        for (int32_t q = 0; q < {columns}; q += {number}) {{
        const int32_t left = {left};
        int32_t most[{number}];
        {tag}_tile({where}, o, most);
        for (int32_t u = 0; u < {number}; u++)
        y[(o * {rows} + r) * {columns} + left + u] = {write.format("most[u]")};
        }}"""
