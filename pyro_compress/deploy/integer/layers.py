"""Layers with weights in integer C: only the non-zeros are stored, unless all of them take fewer bytes.

Three ways: one sum per output (`_vector`), a tile of sums in registers (`_tiled`), which is pooled where pooling
follows, and a row of sums in the arena (`_row`), which looks at the border.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_compress.deploy.integer.fixed_point import IntegerLayer
from pyro_compress.deploy.integer.steps import Step
from pyro_compress.graph.faces.c_text import integers, table
from pyro_compress.types import count

SUMS = 8
"""Sums of a tile that are kept in registers."""


@dataclass(frozen=True)
class _Taps:
    """The non-zeros of a layer in the order of their outputs.

    Attributes:
        codes: of each; `channels` that it reads, and `taps`, its place in the window.
        starts: where each output begins.
    """

    codes: np.ndarray
    channels: np.ndarray
    taps: np.ndarray
    starts: np.ndarray


def _weights(step: Step) -> IntegerLayer:
    assert step.layer is not None
    return step.layer


def _taps(step: Step) -> _Taps:
    codes = _weights(step).codes
    out, channel, row, column = np.nonzero(codes)
    group = out // (len(codes) // step.groups)
    channels = channel + group * (step.shapes[0][0] // step.groups)
    starts = np.searchsorted(out, np.arange(len(codes) + 1))
    return _Taps(codes[codes != 0], channels, row * codes.shape[3] + column, starts)


def _kernel(step: Step) -> tuple[int, int]:
    return _weights(step).codes.shape[2], _weights(step).codes.shape[3]


def _offsets(step: Step) -> np.ndarray:
    """Per place of the window, what it adds to an index into one channel."""
    rows, columns = np.indices(_kernel(step)).reshape(2, -1)
    (top, left), (down, aside) = step.border, step.dilation
    return (rows * down - top) * step.shapes[0][2] + columns * aside - left


def _width(values: np.ndarray) -> int:
    """Bytes of an integer of a table."""
    return 1 if values.max(initial=0) < 256 else 2 if values.max(initial=0) < 65536 else 4


def is_whole(step: Step) -> bool:
    """Whether a layer is stored with its zeros: that takes no more bytes."""
    codes, taps = _weights(step).codes, _taps(step)
    if not _is_vector(step):
        each = 3 if _is_bordered(step) and step.shapes[0][0] < 257 else 4 if _is_bordered(step) else 1
        each += 0 if _is_bordered(step) else _width(_places(step, taps))
        return bool(len(taps.codes) * each + 2 * len(taps.starts) >= codes.size)
    readable = codes.shape[1:] == step.shapes[0]
    return readable and bool(len(taps.codes) * (1 + _width(_places(step, taps))) + 2 * len(taps.starts) >= codes.size)


def _is_bordered(step: Step) -> bool:
    """Whether a window reaches over the edge of the input."""
    _, height, width = step.shapes[0]
    (rows, columns), (_, high, wide) = _kernel(step), step.map
    ends = (
        (high - 1) * step.strides[0] - step.border[0] + (rows - 1) * step.dilation[0],
        (wide - 1) * step.strides[1] - step.border[1] + (columns - 1) * step.dilation[1],
    )
    return step.border != (0, 0) or ends[0] >= height or ends[1] >= width


def _is_vector(step: Step) -> bool:
    return step.map[1:] == (1, 1) and not _is_bordered(step) and step.window is None


def _places(step: Step, taps: _Taps) -> np.ndarray:
    return taps.channels * count(step.shapes[0][1:]) + _offsets(step)[taps.taps]


def sums(step: Step) -> int:
    """32-bit sums in the arena that a layer's function needs."""
    if step.layer is None or _is_vector(step) or _tile(step):
        return 0
    return step.map[2] + (step.shape[2] if step.window else 0)


def tables(tag: str, step: Step) -> str:
    """The arrays of a layer."""
    weights, taps = _weights(step), _taps(step)
    whole, bordered = is_whole(step), _is_bordered(step)
    codes = weights.codes.ravel() if whole else taps.codes
    parts = [table("int8_t", f"{tag}_codes", map(str, codes.tolist()))]
    if not whole:
        parts.append(integers(f"{tag}_starts", taps.starts))
        if bordered:
            parts += [integers(f"{tag}_channels", taps.channels), integers(f"{tag}_taps", taps.taps)]
        else:
            parts.append(integers(f"{tag}_places", _places(step, taps)))
    if bordered:
        parts.append(_border_tables(tag, step))
    if weights.bias.any():
        parts.append(integers(f"{tag}_bias", weights.bias))
    if len(weights.multipliers) > 1:
        parts += [integers(f"{tag}_multipliers", weights.multipliers), integers(f"{tag}_shifts", weights.shifts)]
    return "".join(parts)


def _border_tables(tag: str, step: Step) -> str:
    """Per place of the window: its row, its offset, and the first and last output that it has a value for."""
    (rows, columns), (_, _, width), aside = _kernel(step), step.shapes[0], step.strides[1]
    row, column = np.indices((rows, columns)).reshape(2, -1)
    row, column = row * step.dilation[0] - step.border[0], column * step.dilation[1] - step.border[1]
    first = np.clip(-(column // aside), 0, step.map[2])
    last = np.clip((width - 1 - column) // aside + 1, first, step.map[2])
    named = {"rows": row, "offsets": _offsets(step), "first": first, "last": last}
    return "".join(integers(f"{tag}_{name}", values) for name, values in named.items())


def body(tag: str, step: Step, write: str) -> str:
    """What a layer's function does; `write` makes an output of a sum, given the sum and the output's index `o`."""
    if _is_vector(step):
        return _vector(tag, step, write)
    return _tiled(tag, step, write) if _tile(step) else _row(tag, step, write)


def finished(tag: str, step: Step, value: str) -> str:
    """The call that makes 8 bits of a sum."""
    weights = _weights(step)
    several = len(weights.multipliers) > 1
    factor = f"{tag}_multipliers[o], {tag}_shifts[o]" if several else f"{weights.multipliers[0]}, {weights.shifts[0]}"
    return f"requantized({value}, {factor}, {step.grid.zero}, {step.low}, {step.high})"


def _bias(tag: str, step: Step) -> str:
    return f"{tag}_bias[o]" if _weights(step).bias.any() else "0"


def _vector(tag: str, step: Step, write: str) -> str:
    if is_whole(step):
        size = count(step.shapes[0])
        walk = f"for (int32_t i = 0; i < {size}; i++)\nsum += (int32_t)*code++ * x[i];"
        before = f"const int8_t *code = {tag}_codes;"
    else:
        walk = f"for (int32_t k = {tag}_starts[o]; k < end; k++)\nsum += (int32_t){tag}_codes[k] * x[{tag}_places[k]];"
        before = ""
    end = "" if is_whole(step) else f"const int32_t end = {tag}_starts[o + 1];"
    return f"""
        {before}
        for (int32_t o = 0; o < {step.shape[0]}; o++) {{
        {end}
        int32_t sum = {_bias(tag, step)};
        {walk}
        y[o] = {write.format("sum")};
        }}"""


@dataclass(frozen=True)
class _Tile:
    """Outputs computed together: windows of pooling side by side, or single ones."""

    rows: int
    columns: int
    side_by_side: int


def _tile(step: Step) -> _Tile | None:
    """The tile of a layer without a border; None where its windows are too large for registers."""
    if _is_bordered(step):
        return None
    rows, columns = step.window.kernel if step.window else (1, 1)
    most = SUMS // (rows * columns)
    return _Tile(rows, columns, _even(step.shape[2], most)) if most else None


def _even(total: int, most: int) -> int:
    """Size of the parts that a total is cut into, none larger than `most` and all about as large."""
    parts = -(-total // max(most, 1))
    return -(-total // parts)


def _tiled(tag: str, step: Step, write: str) -> str:
    tile = _tile(step)
    assert tile is not None
    width, (outputs, rows, columns) = step.shapes[0][2], step.shape
    steps = step.window.stride if step.window else (1, 1)
    down, aside = step.strides[0] * width, step.strides[1]
    names, places = [], []
    for u in range(tile.side_by_side):
        for i in range(tile.rows):
            for j in range(tile.columns):
                names.append(f"s{u}{i}{j}")
                places.append(i * down + (u * steps[1] + j) * aside)
    first, others = names[0], "".join(f", {name} = {names[0]}" for name in names[1:])
    adds = "\n".join(f"{name} += w * p[{place}];" for name, place in zip(names, places, strict=True))
    size = tile.rows * tile.columns
    ends = []
    for u in range(tile.side_by_side):
        mine = names[u * size : (u + 1) * size]
        ends += [f"if ({name} > {mine[0]})\n{mine[0]} = {name};" for name in mine[1:]]
        ends.append(f"to[{u}] = {write.format(mine[0])};")
    last = columns - tile.side_by_side
    left = (
        f"const int32_t left = q < {last} ? q : {last};" if columns % tile.side_by_side else "const int32_t left = q;"
    )
    return f"""
        for (int32_t o = 0; o < {outputs}; o++)
        for (int32_t r = 0; r < {rows}; r++)
        for (int32_t q = 0; q < {columns}; q += {tile.side_by_side}) {{
        {left}
        const int8_t *from = x + r * {steps[0] * down} + left * {steps[1] * aside};
        int8_t *to = y + (o * {rows} + r) * {columns} + left;
        int32_t {first} = {_bias(tag, step)}{others};
        {_walk(tag, step, "from", adds)}
        {chr(10).join(ends)}
        }}"""


def _walk(tag: str, step: Step, base: str, adds: str) -> str:
    """For every weight `w` of output `o` and the address `p` of what it multiplies for the first output of a tile."""
    (_, height, width), codes = step.shapes[0], _weights(step).codes
    if not is_whole(step):
        return f"""
            for (int32_t k = {tag}_starts[o]; k < {tag}_starts[o + 1]; k++) {{
            const int32_t w = {tag}_codes[k];
            const int8_t *p = {base} + {tag}_places[k];
            {adds}
            }}"""
    return f"""
        const int8_t *code = {tag}_codes + o * {codes[0].size};
        for (int32_t c = 0; c < {codes.shape[1]}; c++)
        for (int32_t i = 0; i < {codes.shape[2]}; i++)
        for (int32_t j = 0; j < {codes.shape[3]}; j++) {{
        const int32_t w = *code++;
        const int32_t line = {_channel(step)} * {height} + i * {step.dilation[0]};
        const int8_t *p = {base} + line * {width} + j * {step.dilation[1]};
        {adds}
        }}"""


def _channel(step: Step) -> str:
    """The channel that the `c`-th of a group is, of output `o`."""
    if step.groups == 1:
        return "c"
    each, outputs = _weights(step).codes.shape[1], step.shape[0] // step.groups
    group = "o" if outputs == 1 else f"o / {outputs}"
    return group if each == 1 and outputs == 1 else f"({group} * {each} + c)"


def _row(tag: str, step: Step, write: str) -> str:
    """A row of sums at a time; where a window reaches over the edge, the zero of the input counts."""
    (outputs, rows, columns), wide = step.shape, step.map[2]
    window, zero = step.window, step.grids[0].zero
    add = f"for (int32_t q = 0; q < {wide}; q++)\nsums[q] += w * {zero};\n" if zero else ""
    once = f"""
        for (int32_t q = 0; q < {wide}; q++)
        sums[q] = {_bias(tag, step)};
        {_taps_walk(tag, step, add)}"""
    if window is None:
        inside = f"""
            const int32_t row = r * {step.strides[0]};
            {once}
            for (int32_t q = 0; q < {columns}; q++)
            y[(o * {rows} + r) * {columns} + q] = {write.format("sums[q]")};"""
    else:
        inside = f"""
            int32_t *const most = sums + {wide};
            for (int32_t q = 0; q < {columns}; q++)
            most[q] = INT32_MIN;
            for (int32_t part = 0; part < {window.kernel[0]}; part++) {{
            const int32_t row = (r * {window.stride[0]} + part) * {step.strides[0]};
            {once}
            for (int32_t q = 0; q < {columns}; q++)
            for (int32_t j = 0; j < {window.kernel[1]}; j++)
            if (sums[q * {window.stride[1]} + j] > most[q])
            most[q] = sums[q * {window.stride[1]} + j];
            }}
            for (int32_t q = 0; q < {columns}; q++)
            y[(o * {rows} + r) * {columns} + q] = {write.format("most[q]")};"""
    return f"""
        int32_t *const sums = arena;
        for (int32_t o = 0; o < {outputs}; o++)
        for (int32_t r = 0; r < {rows}; r++) {{
        {inside}
        }}"""


def _taps_walk(tag: str, step: Step, add: str) -> str:
    """Every weight added to a row of sums, which may reach over the edge."""
    (_, height, width), codes, aside = step.shapes[0], _weights(step).codes, step.strides[1]
    zero, wide, size = step.grids[0].zero, step.map[2], count(step.shapes[0][1:])
    times = f" * {aside}" if aside > 1 else ""
    if not _is_bordered(step):
        return _walk(
            tag, step, f"x + row * {width}", f"for (int32_t q = 0; q < {wide}; q++)\nsums[q] += w * p[q{times}];"
        )
    edges = (
        f"for (int32_t q = 0; q < {tag}_first[t]; q++)\nsums[q] += w * {zero};\n"
        f"for (int32_t q = {tag}_last[t]; q < {wide}; q++)\nsums[q] += w * {zero};"
    )
    inside = f"""
        const int32_t at = row + {tag}_rows[t];
        if (at < 0 || at >= {height}) {{
        {add}continue;
        }}
        const int32_t base = CHANNEL * {size} + row * {width} + {tag}_offsets[t];
        for (int32_t q = {tag}_first[t]; q < {tag}_last[t]; q++)
        sums[q] += w * x[base + q{times}];
        {edges if zero else ""}"""
    if is_whole(step):
        return f"""
            const int8_t *code = {tag}_codes + o * {codes[0].size};
            for (int32_t c = 0; c < {codes.shape[1]}; c++)
            for (int32_t t = 0; t < {codes[0, 0].size}; t++) {{
            const int32_t w = *code++;
            {inside.replace("CHANNEL", _channel(step))}
            }}"""
    return f"""
        for (int32_t k = {tag}_starts[o]; k < {tag}_starts[o + 1]; k++) {{
        const int32_t w = {tag}_codes[k], t = {tag}_taps[k];
        {inside.replace("CHANNEL", f"{tag}_channels[k]")}
        }}"""
