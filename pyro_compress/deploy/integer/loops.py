"""Loop nests without weights in integer C."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyro_compress.deploy.c.operations import is_border, moving, offsets
from pyro_compress.deploy.integer import sequences
from pyro_compress.deploy.integer.grids import HIGH, LOW
from pyro_compress.deploy.integer.sequences import by
from pyro_compress.deploy.integer.steps import Step
from pyro_compress.graph.faces.c import Loop
from pyro_compress.graph.faces.c_text import integers, table
from pyro_compress.graph.rules.resizing import neighbours
from pyro_compress.types import count

ADDED_BITS = 21
"""Of the larger factor of a sum of two values, so that the sum stays within 32 bits."""
MOST_SHIFT = 30


def tables(tag: str, step: Step) -> str:
    """The arrays of a loop."""
    if step.op == "prelu":
        return integers(f"{tag}_slopes", slopes(step)[0])
    if step.op == "constant":
        assert step.numbers is not None
        codes = step.grid.codes(step.numbers.astype(np.float64)).ravel()
        return table("int8_t", f"{tag}_values", map(str, codes.tolist()))
    if step.op == "moved":
        return offsets(tag, step.attributes)
    if step.op == "resize":
        first, share = shares(step)
        return integers(f"{tag}_first", first) + integers(f"{tag}_share", share)
    if step.op in sequences.TABLES:
        return sequences.TABLES[step.op](tag, step)
    if step.op != "pad" or is_border(_loop(step)):
        return ""
    sides = zip(("rows", "columns"), step.attributes["sources"], strict=True)
    return "".join(integers(f"{tag}_{side}", np.array(places)) for side, places in sides)


def _loop(step: Step) -> Loop:
    return Loop(step.op, step.inputs, step.shapes, step.shape, attributes=step.attributes)


def body(tag: str, step: Step, write: str) -> str:
    """What a loop's function does; `write` makes an output of a value on the grid of the sums."""
    return BODIES[step.op](tag, step, write)


def _copy(tag: str, step: Step, write: str) -> str:
    return f"for (int32_t i = 0; i < {count(step.shape)}; i++)\ny[i] = {write.format('x[i]')};"


def _pooled(start: str, more: str, end: Callable[[Step], str]) -> Callable[[str, Step, str], str]:
    """Pooling; windows that reach over the edge are cut off there."""

    def body(tag: str, step: Step, write: str) -> str:
        (channels, rows, columns), (_, height, width) = step.shape, step.shapes[0]
        whole = step.shapes[0][1:]
        kernel, stride = (step.window.kernel, step.window.stride) if step.window else (whole, whole)
        (top, left), checks = step.border, ["", ""]
        ends = [
            (size - 1) * by + k - before
            for size, by, k, before in zip(step.shape[1:], stride, kernel, step.border, strict=True)
        ]
        if top or ends[0] > height:
            checks[0] = f"if (row + i < 0 || row + i >= {height})\ncontinue;"
        if left or ends[1] > width:
            checks[1] = f"if (column + j < 0 || column + j >= {width})\ncontinue;"
        return f"""
            for (int32_t c = 0; c < {channels}; c++)
            for (int32_t r = 0; r < {rows}; r++)
            for (int32_t q = 0; q < {columns}; q++) {{
            const int32_t row = r * {stride[0]} - {top}, column = q * {stride[1]} - {left};
            int32_t found = {start};
            for (int32_t i = 0; i < {kernel[0]}; i++) {{
            {checks[0]}
            for (int32_t j = 0; j < {kernel[1]}; j++) {{
            {checks[1]}
            const int32_t v = x[(c * {height} + row + i) * {width} + column + j];
            {more.format(step.grids[0].zero)}
            }}
            }}
            y[(c * {rows} + r) * {columns} + q] = {write.format(end(step))};
            }}"""

    return body


def _mean(step: Step) -> str:
    size = np.prod(step.window.kernel) if step.window else count(step.shapes[0][1:])
    return by(step, step.grids[0].scale / (step.grid.scale * (1 if step.op == "sum" else float(size))), "found")


def slopes(step: Step) -> tuple[np.ndarray, int, int]:
    """Factors of what is negative, per channel, and of what is not, and the shift behind both."""
    assert step.numbers is not None
    ratio = step.grids[0].scale / step.grid.scale
    factors = np.concatenate([step.numbers.astype(np.float64), [1.0]]) * ratio
    shift = _shift(float(np.abs(factors).max()))
    found = np.rint(factors * 2.0**shift).astype(np.int64)
    return found[:-1], int(found[-1]), shift


def _shift(largest: float) -> int:
    return min(ADDED_BITS - int(np.frexp(largest)[1]), MOST_SHIFT)


def _prelu(tag: str, step: Step, write: str) -> str:
    (_, one, shift), zero, pixels = slopes(step), step.grids[0].zero, count(step.shape[1:])
    value = f"shifted(v * (v < 0 ? {tag}_slopes[c] : {one}), {shift}, {step.grid.zero}, {step.low}, {step.high})"
    return f"""
        for (int32_t c = 0; c < {step.shape[0]}; c++)
        for (int32_t i = c * {pixels}; i < (c + 1) * {pixels}; i++) {{
        const int32_t v = x[i] - {zero};
        y[i] = {write.format(value)};
        }}"""


def _constant(tag: str, step: Step, write: str) -> str:
    value = write.format(f"{tag}_values[i]")
    return f"(void)x;\nfor (int32_t i = 0; i < {count(step.shape)}; i++)\ny[i] = {value};"


def _extreme(tag: str, step: Step, write: str) -> str:
    """Both on the grid of the output, and the larger or the smaller of them."""
    parts = zip(_indices(step), step.grids, strict=True)
    one, two = (by(step, grid.scale / step.grid.scale, f"{x} - {grid.zero}") for x, grid in parts)
    return _nested(step, write.format(f"{'larger' if step.op == 'maximum' else 'smaller'}({one}, {two})"))


def _two(tag: str, step: Step, write: str) -> str:
    """Two values, of which one may be repeated along a dimension where it has size 1."""
    x0, x1 = _indices(step)
    zeros = [grid.zero for grid in step.grids]
    a, b = (f"({x} - {zero})" if zero else x for x, zero in zip((x0, x1), zeros, strict=True))
    if step.op == "multiply":
        factor = step.grids[0].scale * step.grids[1].scale / step.grid.scale
        return _nested(step, write.format(by(step, factor, f"(int32_t){a} * {b}")))
    factors = [grid.scale / step.grid.scale for grid in step.grids]
    shift = _shift(max(factors))
    one, two = (round(factor * 2.0**shift) for factor in factors)
    two = -two if step.op == "subtract" else two
    return _nested(
        step, write.format(f"shifted({a} * {one} + {b} * {two}, {shift}, {step.grid.zero}, {step.low}, {step.high})")
    )


def _indices(step: Step) -> tuple[str, str]:
    if step.shapes[0] == step.shapes[1]:
        return "x0[i]", "x1[i]"
    found = []
    for index, (k, h, w) in enumerate(step.shapes):
        steps = (h * w if k > 1 else 0, w if h > 1 else 0, 1 if w > 1 else 0)
        found.append(f"x{index}[c * {steps[0]} + r * {steps[1]} + q * {steps[2]}]")
    return found[0], found[1]


def _nested(step: Step, value: str) -> str:
    if step.shapes[0] == step.shapes[1]:
        return f"for (int32_t i = 0; i < {count(step.shape)}; i++)\ny[i] = {value};"
    channels, height, width = step.shape
    return f"""
        for (int32_t c = 0; c < {channels}; c++)
        for (int32_t r = 0; r < {height}; r++)
        for (int32_t q = 0; q < {width}; q++)
        y[(c * {height} + r) * {width} + q] = {value};"""


def _concat(tag: str, step: Step, write: str) -> str:
    lines, start, rows = [], 0, step.attributes["rows"]
    whole = count(step.shape) // rows
    for number, (shape, grid) in enumerate(zip(step.shapes, step.grids, strict=True)):
        size = count(shape) // rows
        to, source = f"{start} + i", "i"
        if rows > 1:
            lines.append(f"for (int32_t r = 0; r < {rows}; r++)")
            to, source = f"r * {whole} + {start} + i", f"r * {size} + i"
        x = f"x{number if len(step.shapes) > 1 else ''}[{source}]"
        same = grid == step.grid and (step.low, step.high) == (LOW, HIGH)
        value = x if same else by(step, grid.scale / step.grid.scale, f"{x} - {grid.zero}")
        lines.append(f"for (int32_t i = 0; i < {size}; i++)\ny[{to}] = {write.format(value)};")
        start += size
    return "\n".join(lines)


def _moved(tag: str, step: Step, write: str) -> str:
    loops, place, source = moving(tag, step.attributes, "int32_t")
    return f"{loops}\ny[{place}] = {write.format(f'x[{source}]')};"


def shares(step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Per place of an axis of another size, the first of two neighbours, and 256ths of the second."""
    first, share = neighbours(_loop(step))
    return first, np.rint(256 * share).astype(np.int64)


def _resize(tag: str, step: Step, write: str) -> str:
    (rows, size, columns), before = step.shape, step.shapes[0][1]
    value = "(int8_t)((p[i] * (256 - share) + q[i] * share + 128) >> 8)"
    return f"""
        for (int32_t o = 0; o < {rows}; o++)
        for (int32_t r = 0; r < {size}; r++) {{
        const int32_t share = {tag}_share[r];
        const int8_t *const p = x + (o * {before} + {tag}_first[r]) * {columns};
        const int8_t *const q = share > 0 ? p + {columns} : p;
        for (int32_t i = 0; i < {columns}; i++)
        y[(o * {size} + r) * {columns} + i] = {write.format(value)};
        }}"""


def _pad(tag: str, step: Step, write: str) -> str:
    channels, height, width = step.shape
    _, rows, columns = step.shapes[0]
    row, column = f"{tag}_rows[r]", f"{tag}_columns[q]"
    if is_border(_loop(step)):
        top, left = (places.index(0) for places in step.attributes["sources"])
        row, column = (
            f"({i} - {before} < {size} ? {i} - {before} : -1)"
            for i, before, size in (("r", top, rows), ("q", left, columns))
        )
    fill = step.grids[0].zero if step.attributes["fill"] == 0 else -128
    value = f"row < 0 || column < 0 ? {fill} : x[(c * {rows} + row) * {columns} + column]"
    return f"""
        for (int32_t c = 0; c < {channels}; c++)
        for (int32_t r = 0; r < {height}; r++)
        for (int32_t q = 0; q < {width}; q++) {{
        const int32_t row = {row}, column = {column};
        const int8_t v = (int8_t)({value});
        y[(c * {height} + r) * {width} + q] = {write.format("v")};
        }}"""


_LARGEST = _pooled("-128", "if (v > found)\nfound = v;", lambda step: "(int8_t)found")
_SUMMED = _pooled("0", "found += v - {0};", _mean)
BODIES: dict[str, Callable[[str, Step, str], str]] = {
    "copy": _copy,
    "max_pool": _LARGEST,
    "amax": _LARGEST,
    "amin": _pooled("127", "if (v < found)\nfound = v;", lambda step: "(int8_t)found"),
    "avg_pool": _SUMMED,
    "mean": _SUMMED,
    "sum": _SUMMED,
    "add": _two,
    "subtract": _two,
    "multiply": _two,
    "maximum": _extreme,
    "minimum": _extreme,
    "prelu": _prelu,
    "constant": _constant,
    "concat": _concat,
    "moved": _moved,
    "resize": _resize,
    "pad": _pad,
    **sequences.BODIES,
}
"""Loops by operation."""
