"""The functions of a C program: one per step; `lanes` is the number of values side by side per place, empty for one."""

from __future__ import annotations

import numpy as np

from pyro_compress.deploy.c.layers import body, tables
from pyro_compress.deploy.c.plan import is_layer
from pyro_compress.graph.faces.c import Body, Single, Step, Stepped, each
from pyro_compress.graph.faces.c_text import integers, number
from pyro_compress.graph.rules.norms import c_scale_and_bias
from pyro_compress.graph.rules.table import RULES
from pyro_compress.types import Node, count


def function(tag: str, step: Step, lanes: str) -> str:
    """The function of a step: `tag(x0, ..., y)`, or `tag_lanes` for a block."""
    inputs = [f"const float *RESTRICT x{i if len(step.inputs) > 1 else ''}" for i in range(len(step.inputs))]
    signature = f"static void {tag}{'_lanes' if lanes else ''}({', '.join(inputs)}, float *RESTRICT y)"
    inside = body(tag, step, lanes) if is_layer(step) else _body(step)(tag, step, _per(lanes))
    return "\n".join(
        [signature, "{", inside.strip(), *(_after(node, step, _per(lanes)) for node in step.after), "}", ""]
    )


def _body(step: Step) -> Body:
    if step.op in BODIES:
        return BODIES[step.op]
    face = RULES[step.op].c
    assert isinstance(face, Stepped)
    assert face.body is not None
    return face.body


def constants(tag: str, step: Step) -> str:
    """The arrays of a step."""
    if is_layer(step):
        return tables(tag, step)
    if step.op == "affine":
        return c_scale_and_bias(tag, step)
    if step.op == "pad":
        return "" if _is_border(step) else _places(tag, step)
    face = RULES[step.op].c if step.op in RULES else None
    return face.tables(tag, step) if isinstance(face, Stepped) else ""


def _places(tag: str, step: Step) -> str:
    return "".join(
        integers(f"{tag}_{side}", np.array(places))
        for side, places in zip(("rows", "columns"), step.attributes["sources"], strict=True)
    )


def described(step: Step) -> str:
    """One line about a step, for the comment above it."""
    shapes = " and ".join("x".join(map(str, shape)) for shape in step.shapes)
    told = f"{step.op}: {shapes} -> {'x'.join(map(str, step.shape))}"
    if is_layer(step) and step.weights is not None:
        kept, size = np.count_nonzero(step.weights.codes), step.weights.codes.size
        told += f", {kept:,} of {size:,} weights are not zero"
    return told + "".join(f", then {node.op}" for node in step.after)


def _per(lanes: str) -> str:
    return f" * {lanes}" if lanes else ""


def _after(node: Node, step: Step, per: str) -> str:
    face = RULES[node.op].c
    assert isinstance(face, Single)
    return f"""for (size_t i = 0; i < {count(step.shape)}{per}; i++) {{
        const float v = y[i];
        y[i] = {face.expression(node.attributes)};
        }}"""


def _copy(tag: str, step: Step, per: str) -> str:
    return f"for (size_t i = 0; i < {count(step.shape)}{per}; i++)\ny[i] = x[i];"


def _affine(tag: str, step: Step, per: str) -> str:
    assert step.weights is not None
    channels, pixels = step.shape[0], count(step.shape[1:])
    return f"""
        for (size_t o = 0; o < {channels}; o++)
        for (size_t i = 0; i < {pixels}{per}; i++)
        y[o * {pixels}{per} + i] = x[o * {pixels}{per} + i] * {tag}_scale[o] + {tag}_bias[o];"""


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
        {each(per)}
        y[((c * {height} + r) * {width} + q){per} + l] = row < 0 || column < 0 ? {fill} : p[l];
        }}"""


BODIES: dict[str, Body] = {"copy": _copy, "affine": _affine, "pad": _pad}
"""Steps that are no operation of a network, or not only."""
