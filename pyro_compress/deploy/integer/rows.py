"""A layer in integer C that keeps a row of sums in the arena, and looks at the border of its input."""

from __future__ import annotations

from pyro_compress.deploy.integer.steps import Step
from pyro_compress.deploy.integer.tables import bias_of, channel, is_bordered, is_whole, walk, weights_of
from pyro_compress.types import count


def row(tag: str, step: Step, write: str) -> str:
    """A row of sums at a time; where a window reaches over the edge, the zero of the input counts."""
    (outputs, rows, columns), wide = step.shape, step.map[2]
    window, zero = step.window, step.grids[0].zero
    add = f"for (int32_t q = 0; q < {wide}; q++)\nsums[q] += w * {zero};\n" if zero else ""
    once = f"""
        for (int32_t q = 0; q < {wide}; q++)
        sums[q] = {bias_of(tag, step)};
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
    (_, height, width), codes, aside = step.shapes[0], weights_of(step).codes, step.strides[1]
    zero, wide, size = step.grids[0].zero, step.map[2], count(step.shapes[0][1:])
    times = f" * {aside}" if aside > 1 else ""
    if not is_bordered(step):
        return walk(
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
            {inside.replace("CHANNEL", channel(step))}
            }}"""
    return f"""
        for (int32_t k = {tag}_starts[o]; k < {tag}_starts[o + 1]; k++) {{
        const int32_t w = {tag}_codes[k], t = {tag}_taps[k];
        {inside.replace("CHANNEL", f"{tag}_channels[k]")}
        }}"""
