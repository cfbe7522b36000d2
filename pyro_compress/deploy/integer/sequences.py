"""Loop nests of sequences in integer C: tables of words, norms, softmax, products, attention, recurrent layers.

What lies between two values of 8 bits has 32: gates and norms in 4096ths, units and shares in 32768ths or finer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyro_compress.deploy.integer import tables
from pyro_compress.deploy.integer.fixed_point import fixed
from pyro_compress.deploy.integer.steps import GATES, Step
from pyro_compress.graph.faces.c_text import integers, table

NORM_BITS = 22
"""Of the factors of a norm, so that they and its shifts stay within 32 bits."""
SHARE_BITS, UNIT_BITS = 20, 15
"""Of the shares of attention, and of the units of recurrent layers."""
MOST_SUM = 1 << 31
LOG2_E = 1.4426950408889634


def by(step: Step, factor: float, value: str) -> str:
    """The call that makes 8 bits of a sum in units of `factor` times the grid's."""
    multiplier, shift = fixed(factor)
    return f"requantized({value}, {multiplier}, {shift}, {step.grid.zero}, {step.low}, {step.high})"


def _too_large(step: Step) -> ValueError:
    return ValueError(f"the sums of {step.op} behind {step.name} do not fit into 32 bits; export without --integer")


def words(step: Step) -> np.ndarray:
    """The rows of a table on the grid of the output, with what follows behind them left out."""
    assert step.numbers is not None
    return np.clip(step.grid.codes(step.numbers), step.low, step.high)


def _embedding_table(tag: str, step: Step) -> str:
    return table("int8_t", f"{tag}_rows", map(str, words(step).ravel().tolist()))


def _embedding(tag: str, step: Step, write: str) -> str:
    """Tokens that the table does not have are taken for the last that it has."""
    rows, features = words(step).shape
    every = rows in (1 << 8, 1 << 16)  # of that many, the type of the input has no others
    row = "x[i]" if every else f"x[i] < {rows} ? (int32_t)x[i] : {rows - 1}"
    return f"""
        for (int32_t i = 0; i < {step.shape[0]}; i++) {{
        const int32_t row = {row};
        for (int32_t k = 0; k < {features}; k++)
        y[i * {features} + k] = {write.format(f"{tag}_rows[row * {features} + k]")};
        }}"""


def norm_of(step: Step) -> tuple[np.ndarray, np.ndarray, int]:
    """Of a norm: factors and shifts of what was made of mean 0 and variance 1, and `n² eps` in squares of its input."""
    assert step.numbers is not None
    scale, shift = step.numbers.astype(np.float64) / step.grid.scale
    numbers = np.rint(scale * GATES.scale * 2.0**NORM_BITS), np.rint(shift * 2.0**NORM_BITS)
    size = _norm_size(step)
    eps = round(size**2 * step.attributes["eps"] / step.grids[0].scale ** 2)
    if max(np.abs(one).max() for one in numbers) >= MOST_SUM or size >= 1 << 15 or eps >= 1 << 60:
        raise _too_large(step)
    return numbers[0].astype(np.int64), numbers[1].astype(np.int64), eps


def _norm_size(step: Step) -> int:
    if step.op == "layer_norm":
        return step.shape[2]
    return int(np.prod(step.shape)) // int(step.attributes["groups"])


def _norm_tables(tag: str, step: Step) -> str:
    scale, shift, _ = norm_of(step)
    return integers(f"{tag}_scale", scale) + integers(f"{tag}_bias", shift)


def _norm(tag: str, step: Step, write: str) -> str:
    """Rows, or groups of channels, of mean 0 and variance 1; then a factor and a shift per place, or per channel."""
    size, zero, eps = _norm_size(step), step.grids[0].zero, norm_of(step)[2]
    pixels = int(np.prod(step.shape[1:]))
    place = "i" if step.op == "layer_norm" else f"(r * {size} + i) / {pixels}"
    value = f"clamped((int32_t)(({tag}_scale[k] * (int64_t)v + {tag}_bias[k] + {1 << NORM_BITS - 1}) >> {NORM_BITS})"
    return f"""
        for (int32_t r = 0; r < {int(np.prod(step.shape)) // size}; r++) {{
        const int8_t *const p = x + r * {size};
        int32_t sum = 0, shift;
        int64_t squares = 0;
        for (int32_t i = 0; i < {size}; i++) {{
        const int32_t v = p[i] - {zero};
        sum += v;
        squares += v * v;
        }}
        const int32_t root = inverse_root(squares * {size} - (int64_t)sum * sum + {eps}, &shift);
        for (int32_t i = 0; i < {size}; i++) {{
        const int32_t k = {place}, v = normal((p[i] - {zero}) * {size} - sum, root, shift);
        y[r * {size} + i] = {write.format(f"{value} + {step.grid.zero}, {step.low}, {step.high})")};
        }}
        }}"""


def exponentials(step: Step) -> np.ndarray:
    """What a value that lies so many integers below the largest counts, of 65536."""
    return np.rint(65535 * np.exp(-step.grids[0].scale * np.arange(256))).astype(np.int64)


def _exponential_table(tag: str, step: Step) -> str:
    return table("uint16_t", f"{tag}_exp", map(str, exponentials(step).tolist()))


def _softmax(tag: str, step: Step, write: str) -> str:
    """Shares of 2^30; of their logarithms, what is below the largest, and the logarithm of the sum in 65536ths."""
    rows, size, columns = step.shape
    if size >= 1 << 16:
        raise _too_large(step)
    value = by(step, 2.0**-30 / step.grid.scale, f"(int32_t)(((uint64_t){tag}_exp[most - p[k * STEP]] * part) >> 16)")
    before = "const uint64_t part = ((uint64_t)1 << 46) / sum;"
    if step.op == "log_softmax":
        factor = step.grids[0].scale * 65536
        if factor >= 1 << 22:
            raise _too_large(step)
        multiplier, shift = fixed(factor)
        before = f"const int32_t total = logarithm(sum) - {LOG_65535};"
        value = by(step, 2.0**-16 / step.grid.scale, f"scaled(p[k * STEP] - most, {multiplier}, {shift}) - total")
    return f"""
        for (int32_t o = 0; o < {rows}; o++)
        for (int32_t i = 0; i < {columns}; i++) {{
        const int8_t *const p = x + o * {size * columns} + i;
        int32_t most = *p;
        uint32_t sum = 0;
        for (int32_t k = 1; k < {size}; k++)
        most = most > p[k * STEP] ? most : p[k * STEP];
        for (int32_t k = 0; k < {size}; k++)
        sum += {tag}_exp[most - p[k * STEP]];
        {before}
        for (int32_t k = 0; k < {size}; k++)
        y[o * {size * columns} + i + k * STEP] = {write.format(value)};
        }}""".replace("STEP", str(columns))


LOG_65535 = round(65536 * float(np.log(65535)))
"""In 65536ths."""


def _matmul(tag: str, step: Step, write: str) -> str:
    (parts, rows, inside), columns = step.shapes[0], step.shape[2]
    if inside >= 1 << 15:
        raise _too_large(step)
    one, two = step.grids
    value = by(step, one.scale * two.scale / step.grid.scale, "sum")
    return f"""
        for (int32_t b = 0; b < {parts}; b++)
        for (int32_t r = 0; r < {rows}; r++)
        for (int32_t q = 0; q < {columns}; q++) {{
        const int8_t *const p0 = x0 + (b * {rows} + r) * {inside}, *const p1 = x1 + b * {inside * columns} + q;
        int32_t sum = 0;
        for (int32_t k = 0; k < {inside}; k++)
        sum += (p0[k] - {one.zero}) * (p1[k * {columns}] - {two.zero});
        y[(b * {rows} + r) * {columns} + q] = {write.format(value)};
        }}"""


def sharpness(step: Step) -> tuple[int, int]:
    """Multiplier and shift that make of a difference of scores the logarithm to base 2, in 65536ths."""
    query, key, _ = step.grids
    return fixed(query.scale * key.scale * abs(step.attributes["scale"]) * LOG2_E * 65536)


def _attention(tag: str, step: Step, write: str) -> str:
    (heads, rows, size), (_, keys, _), width = step.shapes[0], step.shapes[1], step.shape[2]
    multiplier, shift = sharpness(step)
    if size >= 1 << 14 or keys >= 1 << 16 or shift < 1:
        raise _too_large(step)
    zeros, sign = [grid.zero for grid in step.grids], "-" if step.attributes["scale"] < 0 else ""
    value = by(step, step.grids[2].scale / step.grid.scale / 2.0**SHARE_BITS, "sum")
    seen = f"r < {keys} ? r + 1 : {keys}" if step.attributes["causal"] else str(keys)
    return f"""
        for (int32_t h = 0; h < {heads}; h++)
        for (int32_t r = 0; r < {rows}; r++) {{
        const int8_t *const query = x0 + (h * {rows} + r) * {size};
        const int32_t seen = {seen};
        for (int32_t j = 0; j < seen; j++) {{
        const int8_t *const key = x1 + (h * {keys} + j) * {size};
        int32_t sum = 0;
        for (int32_t k = 0; k < {size}; k++)
        sum += (query[k] - {zeros[0]}) * (key[k] - {zeros[1]});
        work[j] = {sign}sum;
        }}
        shared(work, seen, {multiplier}, {shift});
        for (int32_t k = 0; k < {width}; k++) {{
        const int8_t *const p = x2 + h * {keys * width} + k;
        int32_t sum = 0;
        for (int32_t j = 0; j < seen; j++)
        sum += work[j] * (p[j * {width}] - {zeros[2]});
        y[(h * {rows} + r) * {width} + k] = {write.format(value)};
        }}
        }}"""


def recurrent_layers(step: Step) -> dict[str, Step]:
    """The two layers of a recurrent one, by the end of the names of their tables."""
    assert step.given is not None
    assert step.inner is not None
    return {"given": step.given, "inner": step.inner}


def _recurrent_tables(tag: str, step: Step) -> str:
    return "".join(tables.tables(f"{tag}_{name}", layer) for name, layer in recurrent_layers(step).items())


def recurrent_functions(tag: str, step: Step) -> str:
    """What a vector adds to gate `o`, in 4096ths, for both layers."""
    found = []
    for name, layer in recurrent_layers(step).items():
        names, weights = f"{tag}_{name}", tables.weights_of(layer)
        several = len(weights.multipliers) > 1
        factor = f"{weights.multipliers[0]}, {weights.shifts[0]}"
        factor = f"{names}_multipliers[o], {names}_shifts[o]" if several else factor
        found.append(f"""
            static APART int32_t {names}(const int8_t *x, int32_t o)
            {{
            int32_t sum = {tables.bias_of(names, layer)};
            {tables.walk(names, layer, "x", "sum += w * *p;")}
            return scaled(sum, {factor});
            }}
            """)
    return "".join(found)


UNITS = {
    "lstm": """
        const int32_t take = logistic(GATE(0)), keep = logistic(GATE(1)), next = tangent(GATE(2));
        const int64_t cell = ((int64_t)work[i] * keep + (int64_t)take * next * 2 + 16384) >> 15;
        work[i] = (int32_t)(cell < -1073741824 ? -1073741824 : cell > 1073741824 ? 1073741824 : cell);
        const int32_t unit = (logistic(GATE(3)) * tangent((work[i] + 8) >> 4) + 16384) >> 15;""",
    "gru": """
        const int32_t reset = logistic(GATE(0)), keep = logistic(GATE(1));
        const int32_t gated = (int32_t)(((int64_t)reset * INNER(2) + 16384) >> 15);
        const int32_t unit = ((32768 - keep) * tangent(GIVEN(2) + gated) + keep * work[i] + 16384) >> 15;
        work[i] = unit;""",
}
"""What becomes of unit `i`: `work` has the cells of an LSTM in 65536ths, or the units of a GRU in 32768ths."""


def _recurrent(tag: str, step: Step, write: str) -> str:
    """A step reads the units of the step before where they lie in the output; at the first they are 0."""
    steps, _, units = step.shape
    inputs, zero = step.shapes[0][2], step.grid.zero
    order, before = (f"{steps - 1} - s", "t + 1") if step.attributes["reverse"] else ("s", "t - 1")
    inside = UNITS[step.op]
    for gate in range(4):
        given, inner = f"{tag}_given(p, {gate * units} + i)", f"{tag}_inner(h, {gate * units} + i)"
        for name, text in (("GATE", f"{given} + {inner}"), ("GIVEN", given), ("INNER", inner)):
            inside = inside.replace(f"{name}({gate})", text)
    value = by(step, 2.0**-UNIT_BITS / step.grid.scale, "unit")
    return f"""
        int8_t *const none = (int8_t *)(work + {units});
        for (int32_t i = 0; i < {units}; i++) {{
        none[i] = {zero};
        work[i] = 0;
        }}
        for (int32_t s = 0; s < {steps}; s++) {{
        const int32_t t = {order};
        const int8_t *const p = x + t * {inputs}, *const h = s > 0 ? y + ({before}) * {units} : none;
        for (int32_t i = 0; i < {units}; i++) {{
        {inside}
        y[t * {units} + i] = {write.format(value)};
        }}
        }}"""


Write = Callable[[str, Step, str], str]
BODIES: dict[str, Write] = {
    "embedding": _embedding, "layer_norm": _norm, "group_norm": _norm, "softmax": _softmax, "log_softmax": _softmax,
    "matmul": _matmul, "attention": _attention, "lstm": _recurrent, "gru": _recurrent,
}  # fmt: skip
"""Loops by operation."""
TABLES: dict[str, Callable[[str, Step], str]] = {
    "embedding": _embedding_table, "layer_norm": _norm_tables, "group_norm": _norm_tables,
    "softmax": _exponential_table, "log_softmax": _exponential_table, "lstm": _recurrent_tables,
    "gru": _recurrent_tables,
}  # fmt: skip
"""Their arrays."""
