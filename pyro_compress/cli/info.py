"""The command `info`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyro_compress.cli.commands import Command, echo, one_line_errors
from pyro_compress.cli.console import table
from pyro_compress.cli.options import memory_option
from pyro_compress.cli.values import RunPath
from pyro_compress.foreign import name_shown, shown
from pyro_compress.length import shapes_taken
from pyro_compress.outputs import outputs_of
from pyro_compress.scores import ratio_text

if TYPE_CHECKING:
    from pyro_compress.runs.info import Info

MOST_NAMES = 12
"""Of classes, columns and operations so many are listed."""


@click.command(
    cls=Command, short_help="Say what a file, a run or an export holds.",
    examples=("info network.pcn", "info runs/digits-mlp-horseshoe-0 --json", "info model.onnx"),
)  # fmt: skip
@click.argument("file", metavar="FILE.pcn|RUN|EXPORT", type=RunPath())
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object and nothing else.")
@memory_option
def info(file: Path, as_json: bool, max_memory: float) -> None:
    """Say what a .pcn file, a run folder or an export holds: origin, task, inputs, classes, tensors, bytes.

    No data are needed, and nothing of the file is run.
    """
    with one_line_errors():
        from pyro_compress.runs.info import info as found_in

        found = found_in(file, max_memory)
    echo(json.dumps(found.to_dict()) if as_json else info_text(found))


def info_text(found: Info) -> str:
    """What a file holds, for people; whatever comes out of the file itself is spelled out."""
    facts = [*_facts(found)]
    width = max(len(name) for name, _ in facts) + 2
    size = f"{name_shown(found.path)}: {name_shown(found.format)}, {found.bytes:,} bytes"
    if found.kind == "pcn" and found.ratio is not None:
        size += f"; dense float32 {found.dense_bytes:,} bytes; {ratio_text(found.ratio)}"
    lines = [size, "", *(f"{name:<{width}}{value}" for name, value in facts)]
    return "\n".join(line.rstrip() for line in [*lines, *_tensors(found), *_parts(found)])


def _facts(found: Info) -> Iterator[tuple[str, str]]:
    yield from ((name_shown(name), shown(value)) for name, value in found.origin.items())
    yield "task", name_shown(found.task)
    shape = shapes_taken(found.input_shape, found.shortest)
    yield "input", f"{shape} {name_shown(found.input_kind)}: {name_shown(found.input_meaning)}"
    for one in found.inputs:
        divided = f": raw integers from 0 to {one.scale:g}, divided by {one.scale:g}" if one.scale not in (0, 1) else ""
        yield f"input {name_shown(one.name)}", f"{one.shape} {one.kind}{divided}"
    if outputs := outputs_of(found.task):
        yield from ((f"output {name_shown(one.name)}", f"{one.size} for {one.task}") for one in outputs.each)
    if found.output_shape:
        yield "output", f"{found.output_shape}"
    for name in ("columns", "classes", "targets"):
        if names := getattr(found, name):
            yield name, _listed([name_shown(one) for one in names])
    if found.operations:
        yield "operations", _listed([name_shown(one) for one in found.operations])
    if not found.claimed:
        yield "accuracy", "the file claims none; pyro-compress evaluate measures it"
    for name, value in found.claimed.items():
        yield f"claimed {name_shown(name)}", shown(value)


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names):,} in all)" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _tensors(found: Info) -> list[str]:
    if not found.tensors:
        return []
    rows = [("tensor", "shape", "values", "kept", "bits per kept", "bytes")]
    for one in found.tensors:
        kept = "" if one.kept is None else f"{one.kept:,}"
        bits = "" if one.bits is None else f"{one.bits:.2f}"
        size = "" if one.bytes is None else f"{one.bytes:,}"
        rows.append((name_shown(one.name), "×".join(map(str, one.shape)), f"{one.values:,}", kept, bits, size))
    if found.kind == "pcn":
        rows += [(name, "", "", "", "", f"{size:,}") for name, size in found.parts.items()]
    if found.tensors[0].kept is not None:
        values, kept = (sum(getattr(one, name) for one in found.tensors) for name in ("values", "kept"))
        each = f"{8 * found.bytes / kept:.2f}" if kept and found.kind == "pcn" else ""
        rows.append(("total", "", f"{values:,}", f"{kept:,}", each, f"{found.bytes:,}" if found.kind == "pcn" else ""))
    unknown = found.kind == "pcn" and not found.parts
    note = ["", "bytes of the parts are not told: an earlier version, or another program, wrote this file"]
    return ["", *table(rows), *(note if unknown else [])]


def _parts(found: Info) -> list[str]:
    if found.kind == "pcn" or not found.parts:
        return []
    return ["", *table([("file", "bytes"), *((name_shown(name), f"{size:,}") for name, size in found.parts.items())])]
