"""What a file may say of itself beside the network: a kind for every entry that this program looks at.

Entries without a row are free, as JSON goes: they are shown, and nothing depends on them. A new entry that something
depends on gets a row in `ENTRIES`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from pyro_compress.graph.operations.row import Kind, is_number, is_whole
from pyro_compress.outputs import is_several, outputs_of
from pyro_compress.pcn.names import shortened
from pyro_compress.types import Column, Quantity

MAX_TEXT = 1 << 16
"""Characters of one text."""
ANY = re.compile("[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]*")
"""Text without what a terminal obeys, and without halves of letters, which nobody can write down."""
ON_ONE_LINE = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
SMALLEST = 1e-38
"""Standard deviation, of float32."""
MAX_DEPTH = 16
"""Lists and objects inside each other."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and ANY.fullmatch(value) is not None


def _is_line(value: Any) -> bool:
    return _is_text(value) and ON_ONE_LINE.fullmatch(value) is not None


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _share(value: Any) -> bool:
    return value is None or (is_number(value) and 0 < value < 1)


def _positive(value: Any) -> bool:
    return is_number(value) and value >= SMALLEST


def _records(record: type, kinds: Mapping[str, Callable[[Any], bool]]) -> Callable[[Any], bool]:
    """Objects with a name and, of the fields of `record`, those they need."""
    known = {one.name: kinds.get(one.name, lambda value: True) for one in fields(record)}

    def is_record(value: Any) -> bool:
        named = isinstance(value, dict) and "name" in value and value.keys() <= known.keys()
        return named and all(known[key](part) for key, part in value.items())

    return lambda value: isinstance(value, list) and all(map(is_record, value))


COLUMN: dict[str, Callable[[Any], bool]] = {"name": _is_text, "mean": is_number, "std": _positive, "categories": _texts}
TEXT = Kind(_is_line, f"a text of at most {MAX_TEXT} characters without control characters")
WHOLE = Kind(lambda value: is_whole(value), "a whole number")
SEED = Kind(lambda value: type(value) is int and abs(value) < 1 << 64, "a whole number")
COUNT = Kind(lambda value: is_whole(value, 1), "a positive whole number")
NUMBER = Kind(is_number, "a finite number")
POSITIVE = Kind(_positive, "a positive number")
BOOL = Kind(lambda value: isinstance(value, bool), "true or false")
TEXTS = Kind(_texts, f"a list of texts of at most {MAX_TEXT} characters")

TASKS = ("classification", "regression", "next-token", "tagging", "segmentation", "multi-label", "reconstruction")
"""Names of `pyro_compress.data.tasks.TASKS`, which needs torch."""
VOCABULARIES = ("bytes", "characters")

ENTRIES: dict[str, Kind] = {
    "prior": TEXT,
    "data": TEXT,
    "calibration": TEXT,
    "seed": SEED,
    "validation": Kind(_share, "a number between 0 and 1, or null"),
    "criterion": TEXT,
    "parameters_total": COUNT,
    "task": Kind(lambda value: value in TASKS or is_several(value), f"one of {', '.join(TASKS)}, or several outputs"),
    "noise": Kind(lambda value: value is None or _positive(value), "a positive number, or null"),
    "target": TEXTS,
    "test_data": TEXT,
    "image_size": WHOLE,
    "series": BOOL,
    "limit": WHOLE,
    "vocabulary": Kind(lambda value: value in VOCABULARIES, f"one of {', '.join(VOCABULARIES)}"),
    "context": COUNT,
    "tokens": WHOLE,
    "pad": WHOLE,
    "ignore": WHOLE,
    "scale": POSITIVE,
    "classes": TEXTS,
    "columns": Kind(_records(Column, COLUMN), "a list of columns: name, mean and std, or categories"),
    "targets": Kind(_records(Quantity, COLUMN), "a list of targets: name, mean, std"),
    "dropout": NUMBER,
    "augment": TEXT,
    "members": COUNT,
    "draw_seed": SEED,
    "finetune_epochs": WHOLE,
    "rate": NUMBER,
    "teacher": TEXT,
    "finetune_augment": TEXT,
    "finetune_svi": BOOL,
}
"""Entry -> what it may be."""


def check_meta(meta: Any, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> dict[str, Any]:
    """A file's metadata, if everything in it is of its kind and fits the network.

    Args:
        meta: what the file holds, from JSON.
        inputs: shape of one input.
        outputs: shape of one output; none where it is not known.

    Raises:
        ValueError: an entry of another kind, or for another network.
    """
    if not isinstance(meta, dict):
        raise ValueError(f"the metadata are {shortened(meta)}, not an object")
    for name, value in meta.items():
        if not _is_text(name) or not _is_json(value):
            raise ValueError(f"the metadata hold {shortened(name)}, which has no value that is allowed")
        if name in ENTRIES and not ENTRIES[name].allows(value):
            raise ValueError(f"the metadata say that {name} is {shortened(value)}, not {ENTRIES[name].name}")
    wanted = sum(len(column.get("categories", ())) or 1 for column in meta.get("columns", ()))
    if wanted and inputs != (wanted,):
        raise ValueError(f"the metadata tell of columns for {wanted} inputs; the network takes {inputs}")
    several = outputs_of(str(meta.get("task", "")))
    if several and outputs and outputs != (several.size,):
        raise ValueError(f"the metadata tell of outputs with {several.size} values; the network gives {outputs}")
    numbers = (several.targets,) if several else outputs
    if (targets := len(meta.get("targets", ()))) and numbers != (targets,):
        raise ValueError(f"the metadata tell of {targets} targets; the network gives {outputs}")
    if (size := meta.get("image_size")) and (size, size) != inputs[-2:]:
        raise ValueError(f"the metadata tell of images of {size} pixels; the network takes {inputs}")
    return meta


def _is_json(value: Any, depth: int = 0) -> bool:
    """Whether a free value is finite, not deep, and of texts that can be written down."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, dict):
        return all(_is_text(name) and _is_json(part, depth + 1) for name, part in value.items())
    if isinstance(value, list):
        return all(_is_json(part, depth + 1) for part in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_text(value) or value is None or (isinstance(value, int) and abs(value) < 1 << 64)
