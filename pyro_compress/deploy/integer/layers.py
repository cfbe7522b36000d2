"""Layers with weights in integer C.

Two ways: one sum per output, or a tile of sums in registers (`tiles`).
"""

from __future__ import annotations

from pyro_compress.deploy.integer import tiles
from pyro_compress.deploy.integer.steps import Step, once
from pyro_compress.deploy.integer.tables import bias_of, gaps_of, is_vector, is_whole
from pyro_compress.graph.faces.c_text import integer_type
from pyro_compress.types import count


def functions(tag: str, step: Step) -> str:
    """What a layer's function calls."""
    return "" if is_vector(step) else tiles.function(tag, step)


def body(tag: str, step: Step, write: str) -> str:
    """What a layer's function does; `write` makes an output of a sum, given the sum and the output's index `o`."""
    alone = once(step)
    if not is_vector(alone):
        return tiles.body(tag, step, write)
    if step.positions == 1:
        return _vector(tag, step, write)
    inputs, outputs = step.shapes[0][2], step.shape[2]
    return f"""
        for (int32_t t = 0; t < {step.positions}; t++, x += {inputs}, y += {outputs}) {{
        {_vector(tag, alone, write)}
        }}"""


def _vector(tag: str, step: Step, write: str) -> str:
    """One sum per output; what is stored whole is read from one end to the other."""
    if is_whole(step):
        size = count(step.shapes[0])
        before = f"const int8_t *code = {tag}_codes;"
        inside = f"for (int32_t i = 0; i < {size}; i++)\nsum += (int32_t)*code++ * x[i];"
    else:
        kind = integer_type(gaps_of(step).gaps)
        before = f"const int8_t *code = {tag}_codes;\nconst {kind} *gap = {tag}_gaps;"
        inside = f"""
            const int8_t *p = x, *const end = {tag}_codes + {tag}_starts[o + 1];
            while (code < end) {{
            p += *gap++;
            sum += (int32_t)*code++ * *p;
            }}"""
    return f"""
        {before}
        for (int32_t o = 0; o < {step.shape[0]}; o++) {{
        int32_t sum = {bias_of(tag, step)};
        {inside}
        y[o] = {write.format("sum")};
        }}"""
