"""An integer network as one C file: comment, declarations, tables, a function per step, and the one that runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_compress.deploy.c.source import named, told
from pyro_compress.deploy.integer import layers, loops, sequences, tables
from pyro_compress.deploy.integer.arena import Arena, planned
from pyro_compress.deploy.integer.arithmetic import needed
from pyro_compress.deploy.integer.steps import Step, entry_grid, entry_size, once
from pyro_compress.graph.faces.c_text import comment, identifier, indented, integer_type, number, table
from pyro_compress.types import count

HOW_TO = """\
Compile this file as it is. Where it is used, take its declarations alone, which end at NAME_HEADER:

    #define NAME_HEADER
    #include {file}

    name_run_int8(input, output);

with {given},
and room for NAME_OUTPUTS of them: value = NAME_OUTPUT_SCALE * (integer - NAME_OUTPUT_ZERO_POINT).

It computes in integers alone, needs no library and allocates nothing. Its NAME_ARENA bytes of memory are static:
one run at a time. -DNAME_FLOAT adds name_run, which {floats}."""
INTEGERS = "NAME_INPUTS integers of 8 bits, value / NAME_INPUT_SCALE + NAME_INPUT_ZERO_POINT, rounded{raw}"
TOKENS = "NAME_INPUTS tokens, whole numbers from 0 to NAME_TOKENS - 1"

DECLARATIONS = """
#ifndef NAME_INPUTS
#include <stdint.h>

#define NAME_INPUTS {inputs}
#define NAME_OUTPUTS {outputs}
#define NAME_INPUT_SCALE {input_scale}
#define NAME_INPUT_ZERO_POINT {input_zero}
#define NAME_OUTPUT_SCALE {output_scale}
#define NAME_OUTPUT_ZERO_POINT {output_zero}
#define NAME_ARENA {arena}
{tokens}
#ifdef __cplusplus
extern "C" {
#endif
void name_run_int8(const {value} *input, int8_t *output);
#ifdef NAME_FLOAT
void name_run(const {float} *input, float *output);
#endif
#ifdef __cplusplus
}
#endif
#endif

#ifndef NAME_HEADER
#if (-1 >> 1) != -1
#error "negative numbers must be shifted to the right as two's complement"
#endif
"""

APART = """
#if defined(__GNUC__)
#define APART __attribute__((noinline))
#else
#define APART
#endif
"""

FLOATS = """
#ifdef NAME_FLOAT
void name_run(const float *input, float *output)
{
static int8_t codes[NAME_INPUTS], found[NAME_OUTPUTS];
for (int32_t i = 0; i < NAME_INPUTS; i++) {
const float v = input[i] / NAME_INPUT_SCALE + NAME_INPUT_ZERO_POINT;
codes[i] = (int8_t)((int32_t)((v < -128 ? -128 : v > 127 ? 127 : v) + 128.5f) - 128);
}
name_run_int8(codes, found);
for (int32_t i = 0; i < NAME_OUTPUTS; i++)
output[i] = NAME_OUTPUT_SCALE * (float)(found[i] - NAME_OUTPUT_ZERO_POINT);
}
#endif
#endif
"""


FLOATS_OF_TOKENS = """
#ifdef NAME_FLOAT
void name_run(const {value} *input, float *output)
{
static int8_t found[NAME_OUTPUTS];
name_run_int8(input, found);
for (int32_t i = 0; i < NAME_OUTPUTS; i++)
output[i] = NAME_OUTPUT_SCALE * (float)(found[i] - NAME_OUTPUT_ZERO_POINT);
}
#endif
#endif
"""


@dataclass(frozen=True)
class Program:
    """An integer network in C.

    Attributes:
        code: all but the comment at its top.
        arena: its memory.
        steps: what it does.
    """

    code: str
    arena: Arena
    steps: list[Step]

    @property
    def tables(self) -> int:
        """Bytes of its constant arrays."""
        found = re.findall(r"^static const u?int(\d+)_t \w+\[(\d+)\]", self.code, re.MULTILINE)
        return sum(int(bits) // 8 * int(length) for bits, length in found)


def program(steps: list[Step], stem: str) -> Program:
    """The code of a network.

    Args:
        steps: in order.
        stem: name of the file without its suffix; from it come the names inside.
    """
    arena = planned(steps)
    inside = "\n".join(_functions(steps))
    helpers = [APART, *needed(inside)]
    memory = f"static int8_t arena[{arena.bytes}];\n" if arena.bytes else ""
    memory += f"static int32_t work[{arena.work}];\n" if arena.work else ""
    floats = FLOATS_OF_TOKENS.replace("{value}", value_type(steps)) if tokens_of(steps) else FLOATS
    code = "\n".join([_declarations(steps, arena), memory, *helpers, inside, _run(steps, arena), floats])
    return Program(named(indented(code), identifier(stem)), arena, steps)


def tokens_of(steps: list[Step]) -> int:
    """Kinds of tokens that a program reads; 0: its inputs are none."""
    rows = [len(step.numbers) for step in steps if step.op == "embedding" and step.numbers is not None]
    return min(rows, default=0)


def value_type(steps: list[Step]) -> str:
    """Type of an input value: of tokens the smallest that holds them."""
    tokens = tokens_of(steps)
    return integer_type(np.array([tokens - 1])) if tokens else "int8_t"


def text(built: Program, card: Mapping[str, Any], stem: str, report: list[str]) -> str:
    """The whole file: a comment, the code.

    Args:
        built: the code.
        card: `pyro_compress.deploy.card.card`.
        stem: as for `program`.
        report: lines on memory and accuracy.
    """
    lines = [f"A compressed network in integers, as one C99 file, written by {card['producer']}.", ""]
    tokens = tokens_of(built.steps)
    lines += told(card, value_type(built.steps).removesuffix("_t"), count(built.steps[-1].shape))
    entry = entry_grid(built.steps)
    raw = f"\n(an image's byte - {-entry.zero})" if card["input"]["range"] == [0, 1] and not tokens else ""
    given = TOKENS if tokens else INTEGERS.format(raw=raw)
    floats = "gives floats" if tokens else "takes and gives floats"
    how = named(HOW_TO.replace("{given}", given), identifier(stem)).format(file=f'"{stem}.c"', floats=floats)
    return comment([*lines, "", *report, "", *how.splitlines()]) + built.code


def _declarations(steps: list[Step], arena: Arena) -> str:
    entry, out = entry_grid(steps), steps[-1].out
    values = {
        "inputs": entry_size(steps), "outputs": count(steps[-1].shape), "arena": arena.whole,
        "input_scale": number(entry.scale), "input_zero": _signed(entry.zero),
        "output_scale": number(out.scale), "output_zero": _signed(out.zero), "value": value_type(steps),
        "float": value_type(steps) if tokens_of(steps) else "float",
        "tokens": f"#define NAME_TOKENS {tokens_of(steps)}\n" if tokens_of(steps) else "",
    }  # fmt: skip
    found = DECLARATIONS
    for key, value in values.items():
        found = found.replace(f"{{{key}}}", str(value))
    return found


def _signed(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def described(step: Step) -> str:
    """One line about a step."""
    shapes = " and ".join("x".join(map(str, shape)) for shape in step.shapes)
    told = f"{step.name if step.layer else step.op}: {shapes} -> {'x'.join(map(str, step.shape))}"
    if step.layer:
        codes = step.layer.codes
        told += f", {np.count_nonzero(codes):,} of {codes.size:,} weights are not zero"
    return (
        told + (", pooled" if step.layer and step.window else "") + (", then a table" if step.table is not None else "")
    )


def _functions(steps: list[Step]) -> Iterator[str]:
    for index, step in enumerate(steps):
        tag = f"step{index}"
        write = "{}"
        yield f"/* {described(step)} */"
        if step.table is not None:
            yield table("int8_t", f"{tag}_table", map(str, step.table.tolist()))
            write = f"{tag}_table[{{}} + 128]"
        kinds = [value_type(steps) if source < 0 else "int8_t" for source in step.inputs]
        inputs = [f"const {kind} *x{i if len(kinds) > 1 else ''}" for i, kind in enumerate(kinds)]
        if step.layer:
            alone = once(step)
            yield tables.tables(tag, alone)
            yield layers.functions(tag, alone)
            inside = layers.body(tag, step, write.format(tables.finished(tag, alone, "{}")))
        else:
            yield loops.tables(tag, step)
            if step.given:
                yield sequences.recurrent_functions(tag, step)
            inside = loops.body(tag, step, write)
        yield f"static void {tag}({', '.join([*inputs, 'int8_t *y'])})\n{{\n{inside.strip()}\n}}\n"


def _run(steps: list[Step], arena: Arena) -> str:
    places = [f"arena + {place}" for place in arena.places[:-1]] + ["output"]
    calls = [
        f"step{index}({', '.join([*('input' if i < 0 else places[i] for i in step.inputs), places[index]])});"
        for index, step in enumerate(steps)
    ]
    signature = f"void name_run_int8(const {value_type(steps)} *input, int8_t *output)"
    return "\n".join([signature, "{", *calls, "}", ""])
