"""The card: what every export says about itself, in words and numbers that need no program of ours to read."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from pyro_compress.data.splits import preprocessing_of
from pyro_compress.pcn.file import plan_of
from pyro_compress.scores import Quality
from pyro_compress.types import Compressed, Preprocessing

INPUT_NAMES = {"uint8": "raw", "scaled": "scaled", "as is": "input"}
"""The input's name says what it takes, so that the one cannot be fed where the other is meant."""


def card(network: Compressed, scores: Quality, examples: int, raw: bool = False) -> dict[str, Any]:
    """Origin, accuracy, preprocessing and class names of a network, as JSON values.

    Args:
        network: as read from its file.
        scores: of the decoded network on the test split.
        examples: size of that split.
        raw: the export takes raw bytes and divides them itself.

    Raises:
        ValueError: raw bytes asked for, but the data had no integer scale.
    """
    known = preprocessing_of(network.meta)
    shape = network.graph.input_shape
    if raw and not 1 < known.scale <= 255:
        were = "taken as they are" if known.scale == 1 else f"of more than 8 bits, divided by {known.scale:g}"
        raise ValueError(f"raw bytes as input were asked for, but this network was trained on values {were}")
    scaled = known.scale != 1
    entry = {
        "name": INPUT_NAMES["uint8" if raw else "scaled" if scaled else "as is"],
        "shape": list(shape),
        "dtype": "uint8" if raw else network.graph.kind,
        "scale": known.scale,
        "range": [0, known.scale] if raw else [0, 1] if scaled else None,
        "meaning": _meaning(known, raw),
    }
    if known.columns:
        entry["columns"] = [asdict(column) for column in known.columns]
    outputs = plan_of(network).output[0]
    scored = {"split": "test", "examples": examples, **asdict(scores)}
    if known.targets:
        told = {"output": "standardized", "targets": [asdict(target) for target in known.targets]}
        return _origin(network) | {"scores": scored, "input": entry, "classes": []} | told
    if network.task == "reconstruction":
        return _origin(network) | {"scores": scored, "input": entry, "classes": [], "output": "values"}
    names = known.classes if len(known.classes) == outputs else tuple(str(i) for i in range(outputs))
    return _origin(network) | {"accuracy": scored, "input": entry, "output": "logits", "classes": list(names)}


def _origin(network: Compressed) -> dict[str, Any]:
    told_elsewhere = ("scale", "classes", "columns", "targets")
    origin = {key: value for key, value in network.meta.items() if key not in told_elsewhere}
    return {"producer": f"pyro-compress {version('pyro-compress')}", "origin": origin}


def _meaning(known: Preprocessing, raw: bool) -> str:
    scale = known.scale
    if known.columns:
        return "columns in this order: (value - mean) / std of a number, one input per category of a name (1 or 0)"
    if raw:
        return f"raw integers from 0 to {scale:g}; the model divides them by {scale:g} itself"
    if scale != 1:
        return f"raw integers from 0 to {scale:g}, divided by {scale:g} beforehand"
    return "values as in the training data"
