"""The functions of a C program: one per loop; `lanes` is the number of values side by side per place, empty for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_compress.deploy.c.functions import WIDEST, is_vectorable, of_vectors
from pyro_compress.deploy.c.layers import body, tables
from pyro_compress.deploy.c.plan import is_even, is_layer
from pyro_compress.graph.faces.c import Body, Loop, LoopRule, Single, each
from pyro_compress.graph.faces.c_text import integers, number
from pyro_compress.graph.rules.norms import c_scale_and_bias
from pyro_compress.graph.rules.table import RULES
from pyro_compress.types import Node, count


def function(tag: str, loop: Loop, lanes: str) -> str:
    """The function of a loop, `tag(x0, ..., y)`, or `tag_lanes` for a block; behind that of the layer that it calls."""
    before = function(f"{tag}_inner", loop.inner, lanes) if loop.inner else ""
    inputs = [f"const float *RESTRICT x{i if len(loop.inputs) > 1 else ''}" for i in range(len(loop.inputs))]
    signature = f"static void {tag}{'_lanes' if lanes else ''}({', '.join(inputs)}, float *RESTRICT y)"
    inside = body(tag, loop, lanes) if is_layer(loop) else _body(loop)(tag, loop, _per(lanes))
    after = (_after(node, loop, _per(lanes)) for node in loop.after)
    return before + "\n".join([signature, "{", inside.strip(), *after, "}", ""])


def _body(loop: Loop) -> Body:
    if loop.op in BODIES:
        return BODIES[loop.op]
    face = RULES[loop.op].c
    assert isinstance(face, LoopRule)
    assert face.body is not None
    return face.body


def constants(tag: str, loop: Loop) -> str:
    """The arrays of a loop, and of the layer that it calls."""
    inner = constants(f"{tag}_inner", loop.inner) if loop.inner else ""
    return inner + _own_constants(tag, loop)


def _own_constants(tag: str, loop: Loop) -> str:
    if is_layer(loop):
        return tables(tag, loop)
    if loop.op == "moved":
        return offsets(tag, loop.attributes)
    if loop.op == "affine":
        return c_scale_and_bias(tag, loop)
    if loop.op == "pad":
        return "" if is_border(loop) else _places(tag, loop)
    face = RULES[loop.op].c if loop.op in RULES else None
    return face.tables(tag, loop) if isinstance(face, LoopRule) else ""


def _places(tag: str, loop: Loop) -> str:
    return "".join(
        integers(f"{tag}_{side}", np.array(places))
        for side, places in zip(("rows", "columns"), loop.attributes["sources"], strict=True)
    )


def described(loop: Loop) -> str:
    """One line about a loop, for the comment above it."""
    shapes = " and ".join("x".join(map(str, shape)) for shape in loop.shapes)
    text = f"{loop.op}: {shapes} -> {'x'.join(map(str, loop.shape))}"
    if is_layer(loop) and loop.weights is not None:
        kept, size = np.count_nonzero(loop.weights.codes), loop.weights.codes.size
        text += f", {kept:,} of {size:,} weights are not zero"
    return text + "".join(f", then {node.op}" for node in loop.after)


def _per(lanes: str) -> str:
    return f" * {lanes}" if lanes else ""


def _after(node: Node, loop: Loop, per: str) -> str:
    face = RULES[node.op].c
    assert isinstance(face, Single)
    text, size = face.expression(node.attributes), f"{count(loop.shape)}{per}"
    alone = f"const float v = y[i];\ny[i] = {text};"
    if not is_vectorable(text):
        return f"for (size_t i = 0; i < {size}; i++) {{\n{alone}\n}}"
    left = "" if per or count(loop.shape) % WIDEST == 0 else f"for (; i < {size}; i++) {{\n{alone}\n}}"
    return f"""{{
        size_t i = 0;
        for (; i + VECTOR <= {size}; i += VECTOR) {{
        const vector v = FROM(y + i);
        AT(y + i) = {of_vectors(text)};
        }}
        {left}
        }}"""


def _copy(tag: str, loop: Loop, per: str) -> str:
    return f"for (size_t i = 0; i < {count(loop.shape)}{per}; i++)\ny[i] = x[i];"


def _affine(tag: str, loop: Loop, per: str) -> str:
    assert loop.weights is not None
    channels, pixels = loop.shape[0], count(loop.shape[1:])
    return f"""
        for (size_t o = 0; o < {channels}; o++)
        for (size_t i = 0; i < {pixels}{per}; i++)
        y[o * {pixels}{per} + i] = x[o * {pixels}{per} + i] * {tag}_scale[o] + {tag}_bias[o];"""


def is_border(loop: Loop) -> bool:
    """Whether a padding is a constant around values that stay together."""
    inside = [[i for i in places if i >= 0] for places in loop.attributes["sources"]]
    return inside == [list(range(size)) for size in loop.shapes[0][1:]]


def _pad(tag: str, loop: Loop, per: str) -> str:
    channels, height, width = loop.shape
    _, rows, columns = loop.shapes[0]
    fill = number(loop.attributes["fill"])
    if is_border(loop):
        top, left = (places.index(0) for places in loop.attributes["sources"])
        return f"""
            for (size_t i = 0; i < {count(loop.shape)}{per}; i++)
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


def offsets(tag: str, attributes: Mapping[str, Any]) -> str:
    """What places of axes add to an index, where they follow each other in no equal steps."""
    axes = enumerate(attributes["axes"])
    return "".join(integers(f"{tag}_axis{k}", np.array(axis)) for k, axis in axes if not is_even(axis))


def moving(tag: str, attributes: Mapping[str, Any], kind: str) -> tuple[str, str, str]:
    """Loops over the places of an output in its order, the index of a place, and the index that it is read from."""
    axes, loops, place, source = attributes["axes"], [], "", str(attributes["base"])
    for k, axis in enumerate(axes):
        loops.append(f"for ({kind} i{k} = 0; i{k} < {len(axis)}; i{k}++)")
        place = f"({place}) * {len(axis)} + i{k}" if place else f"i{k}"
        step = axis[1] - axis[0] if len(axis) > 1 else 0
        even = f" + {axis[0]}" * (step < 0) + f" {'-' if step < 0 else '+'} i{k} * {abs(step)}"
        source += even if is_even(axis) else f" + {tag}_axis{k}[i{k}]"
    return "\n".join(loops), place, source


def _moved(tag: str, loop: Loop, per: str) -> str:
    loops, place, source = moving(tag, loop.attributes, "size_t")
    return f"""
        {loops}
        {each(per)}
        y[({place}){per} + l] = x[({source}){per} + l];"""


BODIES: dict[str, Body] = {"copy": _copy, "affine": _affine, "pad": _pad, "moved": _moved}
"""Steps that are no operation of a network, or not only."""
