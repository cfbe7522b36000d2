"""Layers with weights in integer C.

Three ways: one sum per output, a tile of sums in registers (`tiles`), and a row of sums in the arena (`rows`).
"""

from __future__ import annotations

from pyro_compress.deploy.integer import tiles
from pyro_compress.deploy.integer.rows import row
from pyro_compress.deploy.integer.steps import Step
from pyro_compress.deploy.integer.tables import bias_of, is_vector, is_whole, places_of
from pyro_compress.graph.faces.c_text import integer_type
from pyro_compress.types import count


def sums(step: Step) -> int:
    """32-bit sums in the arena that a layer's function needs."""
    if step.layer is None or is_vector(step) or tiles.tile_of(step):
        return 0
    return step.map[2] + (step.shape[2] if step.window else 0)


def functions(tag: str, step: Step) -> str:
    """What a layer's function calls."""
    tile = None if is_vector(step) else tiles.tile_of(step)
    return tiles.function(tag, step, tile) if tile else ""


def body(tag: str, step: Step, write: str) -> str:
    """What a layer's function does; `write` makes an output of a sum, given the sum and the output's index `o`."""
    if is_vector(step):
        return _vector(tag, step, write)
    tile = tiles.tile_of(step)
    return tiles.body(tag, step, tile, write) if tile else row(tag, step, write)


def _vector(tag: str, step: Step, write: str) -> str:
    if is_whole(step):
        term, size = "*code++ * x[i]", count(step.shapes[0])
        before, inside = f"const int8_t *code = {tag}_codes;", f"for (int32_t i = 0; i < {size}; i++)"
    else:
        term, places = "*code++ * x[*place++]", integer_type(places_of(step))
        before = f"const int8_t *code = {tag}_codes;\nconst {places} *place = {tag}_places;"
        inside = f"for (const int8_t *const end = {tag}_codes + {tag}_starts[o + 1]; code < end;)"
    return f"""
        {before}
        for (int32_t o = 0; o < {step.shape[0]}; o++) {{
        int32_t sum = {bias_of(tag, step)};
        {inside}
        sum += (int32_t){term};
        y[o] = {write.format("sum")};
        }}"""
