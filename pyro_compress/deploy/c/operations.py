"""Everything but layers in C; `lanes` is the number of values that lie side by side per place, empty for one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_compress.deploy.c.layers import body, tables
from pyro_compress.deploy.c.plan import LAYERS, Step
from pyro_compress.deploy.c.text import floats, integers, number
from pyro_compress.types import Node, count

HARD = "(v <= -3 ? 0 : v >= 3 ? 1 : (v + 3) / 6)"
SOFTPLUS = "((v > 0 ? v : 0) + log1pf(expf(-fabsf(v))))"
SINGLE: dict[str, Callable[[dict[str, Any]], str]] = {
    "relu": lambda a: "v < 0 ? 0 : v",
    "tanh": lambda a: "tanhf(v)",
    "sigmoid": lambda a: "1 / (1 + expf(-v))",
    "silu": lambda a: "v / (1 + expf(-v))",
    "hardsigmoid": lambda a: HARD,
    "hardswish": lambda a: f"v * {HARD}",
    "gelu": lambda a: (
        "0.5f * v * (1 + tanhf(0.79788456f * (v + 0.044715f * v * v * v)))"
        if a["tanh"]
        else "0.5f * v * (1 + erff(v * 0.70710678f))"
    ),
    "leaky_relu": lambda a: f"v < 0 ? v * {number(a['slope'])} : v",
    "elu": lambda a: f"v > 0 ? v * {number(a['scale'])} : {number(a['alpha'] * a['scale'])} * expm1f(v)",
    "softplus": lambda a: SOFTPLUS,
    "mish": lambda a: f"v * tanhf({SOFTPLUS})",
    "sin": lambda a: "sinf(v)",
    "scale": lambda a: f"v * {number(a['factor'])}" + (f" + {number(a['offset'])}" if "offset" in a else ""),
    "clip": lambda a: "v < {0} ? {0} : v > {1} ? {1} : v".format(number(a["low"]), number(a["high"])),
}
"""Functions of single values `v`, by the name of the operation."""


def function(tag: str, step: Step, lanes: str) -> str:
    """The function of a step: `tag(x0, ..., y)`, or `tag_lanes` for a block."""
    inputs = [f"const float *RESTRICT x{i if len(step.inputs) > 1 else ''}" for i in range(len(step.inputs))]
    signature = f"static void {tag}{'_lanes' if lanes else ''}({', '.join(inputs)}, float *RESTRICT y)"
    inside = body(tag, step, lanes) if step.op in LAYERS else BODIES[step.op](tag, step, _per(lanes))
    return "\n".join(
        [signature, "{", inside.strip(), *(_after(node, step, _per(lanes)) for node in step.after), "}", ""]
    )


def constants(tag: str, step: Step) -> str:
    """The arrays of a step."""
    if step.op in LAYERS:
        return tables(tag, step)
    if step.op == "constant":
        assert step.weights is not None
        return floats(f"{tag}_values", step.weights.codes.reshape(-1))
    if step.op == "prelu":
        assert step.weights is not None
        return floats(f"{tag}_scale", step.weights.scale)
    if step.op in ("affine", "group_norm"):
        assert step.weights is not None
        return floats(f"{tag}_scale", np.atleast_1d(step.weights.scale)) + floats(f"{tag}_bias", step.weights.bias)
    if step.op == "pad" and not _is_border(step):
        return "".join(
            integers(f"{tag}_{side}", np.array(places))
            for side, places in zip(("rows", "columns"), step.attributes["sources"], strict=True)
        )
    return ""


def described(step: Step) -> str:
    """One line about a step, for the comment above it."""
    shapes = " and ".join("x".join(map(str, shape)) for shape in step.shapes)
    told = f"{step.op}: {shapes} -> {'x'.join(map(str, step.shape))}"
    if step.op in LAYERS and step.weights is not None:
        kept, size = np.count_nonzero(step.weights.codes), step.weights.codes.size
        told += f", {kept:,} of {size:,} weights are not zero"
    return told + "".join(f", then {node.op}" for node in step.after)


def _per(lanes: str) -> str:
    return f" * {lanes}" if lanes else ""


def _after(node: Node, step: Step, per: str) -> str:
    return f"""for (size_t i = 0; i < {count(step.shape)}{per}; i++) {{
        const float v = y[i];
        y[i] = {SINGLE[node.op](node.attributes)};
        }}"""


def _each(per: str) -> str:
    """The loop over lanes, and what it adds to an index."""
    return f"for (size_t l = 0; l < 1{per}; l++)"


def _copy(tag: str, step: Step, per: str) -> str:
    return f"for (size_t i = 0; i < {count(step.shape)}{per}; i++)\ny[i] = x[i];"


def _affine(tag: str, step: Step, per: str) -> str:
    assert step.weights is not None
    channels, pixels = step.shape[0], count(step.shape[1:])
    return f"""
        for (size_t o = 0; o < {channels}; o++)
        for (size_t i = 0; i < {pixels}{per}; i++)
        y[o * {pixels}{per} + i] = x[o * {pixels}{per} + i] * {tag}_scale[o] + {tag}_bias[o];"""


def _prelu(tag: str, step: Step, per: str) -> str:
    channels, pixels = step.shape[0], count(step.shape[1:])
    return f"""
        for (size_t o = 0; o < {channels}; o++)
        for (size_t i = 0; i < {pixels}{per}; i++) {{
        const float v = x[o * {pixels}{per} + i];
        y[o * {pixels}{per} + i] = v < 0 ? v * {tag}_scale[o] : v;
        }}"""


def _group_norm(tag: str, step: Step, per: str) -> str:
    groups, pixels = step.attributes["groups"], count(step.shape[1:])
    size = count(step.shape) // groups
    return f"""
        for (size_t g = 0; g < {groups}; g++)
        {_each(per)} {{
        float mean = 0, spread = 0;
        for (size_t i = 0; i < {size}; i++)
        mean += x[(g * {size} + i){per} + l];
        mean /= {size};
        for (size_t i = 0; i < {size}; i++) {{
        const float v = x[(g * {size} + i){per} + l] - mean;
        spread += v * v;
        }}
        spread = 1 / sqrtf(spread / {size} + {number(step.attributes["eps"])});
        for (size_t i = g * {size}; i < (g + 1) * {size}; i++)
        y[i{per} + l] = (x[i{per} + l] - mean) * spread * {tag}_scale[i / {pixels}] + {tag}_bias[i / {pixels}];
        }}"""


def _constant(tag: str, step: Step, per: str) -> str:
    return f"""
        (void)x;
        for (size_t i = 0; i < {count(step.shape)}; i++)
        {_each(per)}
        y[i{per} + l] = {tag}_values[i];"""


def _is_border(step: Step) -> bool:
    """Whether a padding is a constant around values that stay together."""
    inside = [[i for i in places if i >= 0] for places in step.attributes["sources"]]
    return inside == [list(range(size)) for size in step.shapes[0][1:]]


def _pad(tag: str, step: Step, per: str) -> str:
    channels, height, width = step.shape
    _, rows, columns = step.shapes[0]
    fill = number(step.attributes["fill"])
    if _is_border(step):
        top, left = (places.index(0) for places in step.attributes["sources"])
        return f"""
            for (size_t i = 0; i < {count(step.shape)}{per}; i++)
            y[i] = {fill};
            for (size_t c = 0; c < {channels}; c++)
            for (size_t r = 0; r < {rows}; r++)
            for (size_t i = 0; i < {columns}{per}; i++)
            y[((c * {height} + r + {top}) * {width} + {left}){per} + i] = x[(c * {rows} + r) * {columns}{per} + i];"""
    return f"""
        for (size_t c = 0; c < {channels}; c++)
        for (size_t r = 0; r < {height}; r++)
        for (size_t q = 0; q < {width}; q++) {{
        const int row = {tag}_rows[r], column = {tag}_columns[q];
        const float *p = x + ((c * {rows} + (size_t)(row < 0 ? 0 : row)) * {columns}
        + (size_t)(column < 0 ? 0 : column)){per};
        {_each(per)}
        y[((c * {height} + r) * {width} + q){per} + l] = row < 0 || column < 0 ? {fill} : p[l];
        }}"""


def _pool(start: str, more: str, end: str) -> Callable[[str, Step, str], str]:
    def pool(tag: str, step: Step, per: str) -> str:
        kernel, stride = ([1] * (2 - len(step.attributes[k])) + step.attributes[k] for k in ("kernel", "stride"))
        (channels, height, width), (_, rows, columns) = step.shape, step.shapes[0]
        return f"""
            for (size_t c = 0; c < {channels}; c++)
            for (size_t r = 0; r < {height}; r++)
            for (size_t q = 0; q < {width}; q++)
            {_each(per)} {{
            const float *p = x + ((c * {rows} + r * {stride[0]}) * {columns} + q * {stride[1]}){per} + l;
            float found = {start};
            for (size_t i = 0; i < {kernel[0]}; i++)
            for (size_t j = 0; j < {kernel[1]}; j++) {{
            const float v = p[(i * {columns} + j){per}];
            found = {more};
            }}
            y[((c * {height} + r) * {width} + q){per} + l] = {end.format(kernel[0] * kernel[1])};
            }}"""

    return pool


def _reduced(start: str, more: str, end: str) -> Callable[[str, Step, str], str]:
    def reduced(tag: str, step: Step, per: str) -> str:
        pixels = count(step.shapes[0][1:])
        return f"""
            for (size_t c = 0; c < {step.shape[0]}; c++)
            {_each(per)} {{
            const float *p = x + c * {pixels}{per} + l;
            float found = {start};
            for (size_t i = 0; i < {pixels}; i++) {{
            const float v = p[i{per}];
            found = {more};
            }}
            y[c{per} + l] = {end.format(pixels)};
            }}"""

    return reduced


def _two(sign: str) -> Callable[[str, Step, str], str]:
    """Two values, of which one may be repeated along a dimension where it has size 1."""

    def two(tag: str, step: Step, per: str) -> str:
        if step.shapes[0] == step.shapes[1]:
            return f"for (size_t i = 0; i < {count(step.shape)}{per}; i++)\ny[i] = x0[i] {sign} x1[i];"
        channels, height, width = step.shape
        places = []
        for c, h, w in step.shapes:
            steps = (h * w if c > 1 else 0, w if h > 1 else 0, 1 if w > 1 else 0)
            places.append(f"(c * {steps[0]} + r * {steps[1]} + q * {steps[2]}){per} + l")
        return f"""
            for (size_t c = 0; c < {channels}; c++)
            for (size_t r = 0; r < {height}; r++)
            for (size_t q = 0; q < {width}; q++)
            {_each(per)}
            y[((c * {height} + r) * {width} + q){per} + l] = x0[{places[0]}] {sign} x1[{places[1]}];"""

    return two


def _concat(tag: str, step: Step, per: str) -> str:
    lines, start = [], 0
    for number_, shape in enumerate(step.shapes):
        name = f"x{number_ if len(step.shapes) > 1 else ''}"
        lines.append(f"for (size_t i = 0; i < {count(shape)}{per}; i++)\ny[{start}{per} + i] = {name}[i];")
        start += count(shape)
    return "\n".join(lines)


def _slice(tag: str, step: Step, per: str) -> str:
    """Part of an axis, in steps."""
    a, (_, rows, columns) = step.attributes, step.shapes[0]
    c, r, q = (
        f"({name} * {a['step']} + {a['start']})" if place == a["place"] else name for place, name in enumerate("crq")
    )
    channels, height, width = step.shape
    return f"""
        for (size_t c = 0; c < {channels}; c++)
        for (size_t r = 0; r < {height}; r++)
        for (size_t q = 0; q < {width}; q++)
        {_each(per)}
        y[((c * {height} + r) * {width} + q){per} + l] = x[(({c} * {rows} + {r}) * {columns} + {q}){per} + l];"""


def _softmax(log: bool) -> Callable[[str, Step, str], str]:
    def softmax(tag: str, step: Step, per: str) -> str:
        last = "x[i{0} + l] - most - logf(sum)" if log else "expf(x[i{0} + l] - most) / sum"
        return f"""
            {_each(per)} {{
            float most = x[l], sum = 0;
            for (size_t i = 0; i < {step.shape[0]}; i++)
            most = most > x[i{per} + l] ? most : x[i{per} + l];
            for (size_t i = 0; i < {step.shape[0]}; i++)
            sum += expf(x[i{per} + l] - most);
            for (size_t i = 0; i < {step.shape[0]}; i++)
            y[i{per} + l] = {last.format(per)};
            }}"""

    return softmax


def _mixture(tag: str, step: Step, per: str) -> str:
    """Log of the mean of the members' class probabilities."""
    members, classes = len(step.shapes), step.shape[0]
    names = ", ".join(f"x{i}" for i in range(members))
    return f"""
        const float *const members[{members}] = {{{names}}};
        {_each(per)} {{
        float total[{members}];
        for (size_t m = 0; m < {members}; m++) {{
        float most = members[m][l], sum = 0;
        for (size_t i = 0; i < {classes}; i++)
        most = most > members[m][i{per} + l] ? most : members[m][i{per} + l];
        for (size_t i = 0; i < {classes}; i++)
        sum += expf(members[m][i{per} + l] - most);
        total[m] = most + logf(sum);
        }}
        for (size_t i = 0; i < {classes}; i++) {{
        float most = members[0][i{per} + l] - total[0], sum = 0;
        for (size_t m = 1; m < {members}; m++)
        most = most > members[m][i{per} + l] - total[m] ? most : members[m][i{per} + l] - total[m];
        for (size_t m = 0; m < {members}; m++)
        sum += expf(members[m][i{per} + l] - total[m] - most);
        y[i{per} + l] = most + logf(sum) - {number(math.log(members))};
        }}
        }}"""


BODIES: dict[str, Callable[[str, Step, str], str]] = {
    "copy": _copy,
    "affine": _affine,
    "pad": _pad,
    "max_pool": _pool("p[0]", "found > v ? found : v", "found"),
    "avg_pool": _pool("0", "found + v", "found / {}"),
    "mean": _reduced("0", "found + v", "found / {}"),
    "sum": _reduced("0", "found + v", "found"),
    "amax": _reduced("p[0]", "found > v ? found : v", "found"),
    "add": _two("+"),
    "subtract": _two("-"),
    "multiply": _two("*"),
    "divide": _two("/"),
    "prelu": _prelu,
    "group_norm": _group_norm,
    "constant": _constant,
    "slice": _slice,
    "concat": _concat,
    "softmax": _softmax(log=False),
    "log_softmax": _softmax(log=True),
    "mixture": _mixture,
}
"""What the function of a step does, for every step without weights."""
