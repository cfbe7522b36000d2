"""A compressed network as one C file: comment, tables, a function per loop, and the function that runs them.

In all pieces of code `name_` and `NAME_` stand for what the names in this file begin with.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_compress.atomic import write_atomically
from pyro_compress.deploy.c import templates, whole
from pyro_compress.deploy.c.functions import functions
from pyro_compress.deploy.c.layers import read
from pyro_compress.deploy.c.layout import Layout, laid_out
from pyro_compress.deploy.c.operations import constants, described, function
from pyro_compress.deploy.c.plan import planned
from pyro_compress.deploy.c.positions import side_by_side
from pyro_compress.graph.faces.c_text import WIDTH, comment, identifier, indented, integers, number, string
from pyro_compress.pcn.file import plan_of
from pyro_compress.types import Compressed, count

TYPES = {"uint8": "unsigned char", "int64": "int32_t"}
"""In C, of input values that are not float."""
LANES = 16
"""Examples of a block, unless the compiler is told otherwise."""
GATHER = 0.85
"""Of a value of which a larger share is read, a block takes all."""
MOST_VALUES = 1 << 24
"""Values of a network that are written down as text, and read by a compiler."""
INCLUDES = "#include <math.h>\n#include <stddef.h>\n#include <stdint.h>\n"


@dataclass(frozen=True)
class Sizes:
    """Numbers of values per example.

    Attributes:
        inputs: that it is made of, and `outputs`.
        raw: inputs that are bytes or tokens, and become floats in the workspace: all or none.
        front: values of the loops that run example by example.
        crossing: values that are handed over to a block.
        back: values of the loops that run on blocks.
    """

    inputs: int
    outputs: int
    raw: int
    front: int
    crossing: int
    back: int


def source(network: Compressed, card: Mapping[str, Any], stem: str) -> str:
    """The whole file.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`; an input of type `uint8` is divided by its scale inside.
        stem: name of the file without its suffix; from it come the names inside.

    Raises:
        ValueError: an operation that is not supported in C, or a network that is too large for it.
    """
    if (values := plan_of(network).values) > MOST_VALUES:
        raise ValueError(f"{values} values are too many for a C file (at most {MOST_VALUES}); export to model.onnx")
    layout = laid_out(side_by_side(planned(network)))
    inputs, shapes = count(network.graph.input_shape), [loop.shape for loop in layout.loops]
    crossing = inputs if layout.crossing < 0 else count(shapes[layout.crossing])
    raw = inputs if card["input"]["dtype"] in TYPES else 0
    sizes = Sizes(inputs, count(shapes[-1]), raw, layout.sizes[0], crossing, layout.sizes[1])
    steps = "\n".join(_steps(layout))
    code = [INCLUDES, _macros(card, sizes), _declarations(card, sizes), functions(steps)]
    code += [whole.TYPES if "WIDE" in steps else "", steps, _floats(card, sizes)]
    code += [*_chains(layout), _taking(card, layout, sizes), _run(sizes), _program(card, sizes)]
    text = indented("\n".join(code))
    return comment(_about(card, sizes, stem)) + named(text, identifier(stem))


def write_c(network: Compressed, card: Mapping[str, Any], path: Path) -> None:
    """Write the file; arguments as for `source`."""
    write_atomically(path, source(network, card, path.stem).encode("ascii"))


def named(text: str, name: str) -> str:
    """Code with its real names; what stands in quotation marks stays."""

    def real(found: re.Match[str]) -> str:
        return {"name_": f"{name}_", "NAME_": f"{name.upper()}_"}.get(found[0], found[0])

    return re.sub(r'"(?:[^"\\\n]|\\.)*"|\bname_|(?:\b|(?<=-D))NAME_', real, text)


def _about(card: Mapping[str, Any], sizes: Sizes, stem: str) -> list[str]:
    """What the comment at the top says."""
    lines = [f"A compressed network as one C99 file, written by {card['producer']}.", ""]
    kind = card["input"]["dtype"]
    lines += told(card, {"uint8": "bytes", "int64": "int32"}.get(kind, "float32"), sizes.outputs)
    name, value = identifier(stem), TYPES.get(kind, "float")
    how = named(templates.HOW_TO, name).format(file=shlex.quote(f"{stem}.c"), program=name, value=value)
    return [*lines, "", *how.splitlines()]


def told(card: Mapping[str, Any], kind: str, outputs: int) -> list[str]:
    """The lines of a comment that repeat the card.

    Args:
        card: `pyro_compress.deploy.card.card`.
        kind: type of an input value, in words.
        outputs: how many.
    """
    entry, lines = card["input"], []
    entries = {
        "origin": json.dumps(card["origin"]),
        "scores" if "scores" in card else "accuracy": json.dumps(card.get("scores") or card["accuracy"]),
        "input": f"{count(tuple(entry['shape']))} values ({kind}, {'x'.join(map(str, entry['shape']))}): "
        f"{entry['meaning']}",
        "inputs": json.dumps(entry["inputs"]) if "inputs" in entry else "",
        "columns": json.dumps(entry["columns"]) if "columns" in entry else "",
        "output": f"{outputs} values: {card['output']}",
        "outputs": json.dumps(card["outputs"]) if "outputs" in card else "",
        "classes": json.dumps(card["classes"]) if card["classes"] else "",
        "targets": json.dumps(card["targets"]) if "targets" in card else "",
    }
    for key, text in entries.items():
        if text:
            lines += textwrap.wrap(f"{key + ':':<10}{text}", WIDTH, subsequent_indent=" " * 10)
    return lines


def _macros(card: Mapping[str, Any], sizes: Sizes) -> str:
    known, tokens = sizes.raw + sizes.front, f"#define NAME_TOKENS {_tokens(card)}\n" if _tokens(card) else ""
    return f"""
#define NAME_INPUTS {sizes.inputs}
#define NAME_OUTPUTS {sizes.outputs}
{tokens}#ifndef NAME_LANES
#define NAME_LANES {LANES}
#endif
#define NAME_WORKSPACE ({known} + {sizes.crossing + sizes.back} * NAME_LANES)
#if NAME_LANES < 1 || (NAME_LANES > 1 && NAME_LANES % 8)
#error "LANES must be 1 or a multiple of 8"
#endif

/* an input is {card["input"]["meaning"]} */
typedef {TYPES.get(card["input"]["dtype"], "float")} name_value;
"""


def _tokens(card: Mapping[str, Any]) -> int:
    """Kinds of tokens; 0: inputs are none."""
    entry = card["input"]
    return entry["range"][1] + 1 if entry["dtype"] == "int64" and entry["range"] else 0


def _declarations(card: Mapping[str, Any], sizes: Sizes) -> str:
    """Everything public: the function, sizes, and the names and units of the outputs."""
    scale = number(card["input"]["scale"])
    labels = [f"const float name_scale = {scale};"]
    declared = []
    if card["input"]["dtype"] == "int64":
        labels.append(f"const size_t name_tokens = {_tokens(card)};")
        declared.append("extern const size_t name_tokens;")
    if "targets" not in card or "outputs" in card:
        names, places = _names(card, sizes.outputs), _places(card, sizes.outputs)
        number_of = f"NAME_OUTPUTS / {places}" if places > 1 else "NAME_OUTPUTS"
        declared += [f"extern const char *const name_classes[{number_of}];"]
        words = ",\n".join(map(string, names))
        labels.append(f"const char *const name_classes[{number_of}] = {{\n{words}\n}};")
    units = _units(card)
    for key in ("mean", "std") if units else ():
        values = ", ".join(number(target[key]) for target in units)
        declared.append(f"extern const float name_target_{key}[NAME_OUTPUTS];")
        labels.append(f"const float name_target_{key}[NAME_OUTPUTS] = {{{values}}};")
    text = templates.DECLARATIONS.replace("{declared}", "\n".join([*declared, ""]))
    return text.replace("{labels}", "\n".join([*labels, ""]))


def _names(card: Mapping[str, Any], outputs: int) -> list[str]:
    """Of every output; of a class per position those of the classes."""
    if "outputs" in card:
        return [name for one in card["outputs"] for name in one.get("classes") or [t["name"] for t in one["targets"]]]
    known = card["classes"]
    return list(known if len(known) * _places(card, outputs) == outputs else map(str, range(outputs)))


def _units(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean and standard deviation of what every output stands for: 0 and 1 beside a regression; empty without one."""
    if "outputs" not in card:
        return list(card.get("targets", []))
    plain = {"mean": 0.0, "std": 1.0}
    found = [unit for one in card["outputs"] for unit in one.get("targets") or [plain] * one["size"]]
    return found if any("targets" in one for one in card["outputs"]) else []


def _places(card: Mapping[str, Any], outputs: int) -> int:
    """Positions of which each has a class; their scores lie class by class. 1: the example has one."""
    classes = 0 if "outputs" in card else len(card["classes"])
    return outputs // classes if classes and outputs % classes == 0 else 1


def _steps(layout: Layout) -> Iterator[str]:
    """Arrays and functions of every loop; behind the border for one example and for a block."""
    for index, loop in enumerate(layout.loops):
        tag = f"step{index}"
        yield f"/* {described(loop)} */"
        yield constants(tag, loop)
        yield function(tag, loop, "")
        if index >= layout.border:
            yield f"#if LANES > 1\n{function(tag, loop, 'LANES')}#endif\n"


def _chains(layout: Layout) -> Iterator[str]:
    """The loops in order: those before the border, and those behind it for one example and for a block."""
    for chain, first, last, lanes in (
        ("front", 0, layout.border, ""),
        ("back", layout.border, len(layout.loops), ""),
        ("back_lanes", layout.border, len(layout.loops), " * LANES"),
    ):
        places = {index: f"w + {layout.places[index]}{lanes}" for index in range(first, last)}
        calls = []
        for index in range(first, last):
            values = [places.get(i, "x") for i in layout.loops[index].inputs]
            calls.append(f"step{index}{'_lanes' if lanes else ''}({', '.join([*values, places[index]])});")
        kept = layout.crossing if chain == "front" else len(layout.loops) - 1
        lines = [*calls, f"return {places[kept]};"] if calls else ["(void)w;", "return x;"]
        text = "\n".join([f"static const float *run_{chain}(const float *x, float *w)", "{", *lines, "}", ""])
        yield f"#if LANES > 1\n{text}#endif\n" if lanes else text


def _floats(card: Mapping[str, Any], sizes: Sizes) -> str:
    """An example as floats: where it lies, or in the workspace."""
    lines = ["(void)w;", "return input;"]
    if sizes.raw:
        value = "(float)input[i]" + " / name_scale" * (card["input"]["dtype"] == "uint8")
        lines = ["for (size_t i = 0; i < NAME_INPUTS; i++)", f"w[i] = {value};", "return w;"]
    return "\n".join(["static const float *as_floats(const name_value *input, float *w)", "{", *lines, "}", ""])


def _taking(card: Mapping[str, Any], layout: Layout, sizes: Sizes) -> str:
    """The values that a block begins with, one example per lane; lanes without an example are zero."""
    loop = next((one for one in layout.loops[layout.border :] if layout.crossing in one.inputs), None)
    alone = sum(layout.crossing in one.inputs for one in layout.loops[layout.border :]) == 1
    used = np.flatnonzero(read(loop)) if loop and alone and loop.op == "linear" else np.arange(sizes.crossing)
    some = 0 < len(used) < GATHER * sizes.crossing
    total, place = (len(used), "taken[i]") if some else (sizes.crossing, "i")
    if layout.border:
        copied = f"""
for (size_t l = 0; l < n; l++) {{
const float *x = run_front(as_floats(input + l * NAME_INPUTS, workspace), workspace + {sizes.raw});
for (size_t i = 0; i < {total}; i++)
block[{place} * LANES + l] = x[{place}];
}}"""
    else:
        kind, value = card["input"]["dtype"], f"input[l * NAME_INPUTS + {place}]"
        value = {"uint8": f"{value} * (1 / name_scale)", "int64": f"(float){value}"}.get(kind, value)
        copied = f"""
for (size_t i = 0; i < {total}; i++)
for (size_t l = 0; l < n; l++)
block[{place} * LANES + l] = {value};"""
    return f"""
#if LANES > 1
{integers("taken", used) if some else ""}
static void take_block(const name_value *input, size_t n, float *workspace)
{{
float *const block = workspace + {sizes.raw + sizes.front};
if (n < LANES)
for (size_t i = 0; i < {sizes.crossing} * LANES; i++)
block[i] = 0;
{copied.strip()}
}}
#endif
"""


def _run(sizes: Sizes) -> str:
    text = templates.RUN
    for key, value in (("raw", sizes.raw), ("front", sizes.raw + sizes.front), ("crossing", sizes.crossing)):
        text = text.replace(f"{{{key}}}", str(value))
    return text


def _program(card: Mapping[str, Any], sizes: Sizes) -> str:
    """The program that the file becomes with -DNAME_MAIN."""
    said = "".join(_printed(card, sizes))
    return templates.MAIN.replace("{check}", "".join(_checks(card))).replace("{print}", said)


def _checks(card: Mapping[str, Any]) -> Iterator[str]:
    """What refuses an example that is out of the range of its inputs."""
    entry, start = card["input"], 0
    if _tokens(card):
        yield templates.CHECK_TOKENS
        return
    for one in entry.get("inputs", [entry]):
        end, within = start + count(tuple(one["shape"])), one["range"] if one["dtype"] != "uint8" else None
        known = {"start": start, "end": end, "name": one["name"] if "inputs" in entry else "this network"}
        if within and one["dtype"] == "float32":
            yield _filled(templates.CHECK, scale=f"(double){number(one['scale'])}", **known)
        elif within:
            yield _filled(templates.CHECK_WHOLE, low=within[0], high=within[1], **known)
        start = end


def _printed(card: Mapping[str, Any], sizes: Sizes) -> Iterator[str]:
    """What prints what the network says of an example."""
    start, several = 0, card.get("outputs", [])
    for index, one in enumerate(several):
        end = start + one["size"]
        yield f'fputs("{chr(92) + "t" if index else ""}{one["name"]}=", stdout);\n'
        yield _filled(SAYING[one["task"]], start=start, end=end, **UNITS)
        start = end
    if several:
        return
    places, kind = _places(card, sizes.outputs), card["input"]["dtype"]
    template = SAYING.get(card.get("task", "classification"), templates.CLASSES)
    template = templates.CLASSES if template == templates.CLASS and places > 1 else template
    value = {"uint8": "(float)example[i] / name_scale"}.get(kind, "example[i]")
    there = f"example[i] != {card['pad']}" if "pad" in card else "1"
    yield _filled(template, start=0, end="NAME_OUTPUTS", places=places, value=value, there=there, **UNITS)


SAYING = {
    "classification": templates.CLASS,
    "regression": templates.TARGET,
    "multi-label": templates.LABELS,
    "next-token": templates.NEXT,
    "reconstruction": templates.ERROR,
}
"""Task -> what prints its outputs; others have a class per position."""
UNITS = {"mean": "(double)name_target_mean[i]", "std": "(double)name_target_std[i]"}


def _filled(template: str, **values: Any) -> str:
    for key, value in values.items():
        template = template.replace(f"{{{key}}}", str(value))
    return template.lstrip("\n")
