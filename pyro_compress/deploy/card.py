"""The card: what every export says about itself, in words and numbers that need no program of ours to read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro_compress.data.preprocessing import class_names, described, pad_of, preprocessing_of, reading_of, target_names
from pyro_compress.foreign import json_of, of_type, ordinary, table
from pyro_compress.graph.ir import lookups, tables
from pyro_compress.inputs import slices
from pyro_compress.outputs import outputs_of
from pyro_compress.pcn.file import plan_of, shapes_of
from pyro_compress.scores import Quality
from pyro_compress.tensorfile import TensorFile
from pyro_compress.types import Compressed, Preprocessing

LARGEST_CARD = 1 << 26
"""Bytes, where it stands in an archive that may say less of it than it is."""
SECTION = "pyro-compress"
"""Name of the section of WebAssembly that holds the card."""
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
    if raw and network.graph.inputs:
        raise ValueError(
            "raw bytes as input were asked for, but this network takes several inputs, as floats and tokens"
        )
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
        "meaning": meaning(known, raw),
    }
    if rows := tokens_of(network):
        entry |= {"range": [0, rows - 1], "meaning": _tokens(rows)}
    if network.graph.inputs:
        entry["inputs"] = _inputs(network)
        entry["meaning"] = "the inputs named here; in one row of float32, they lie one behind the other in this order"
    if known.columns:
        entry["columns"] = [asdict(column) for column in known.columns]
    scored = {"split": "test", "examples": examples, **asdict(scores)}
    about = _origin(network) | {"task": network.task, "input": entry}
    return about | _said(network, known) | {SCORED.get(network.task, "scores"): scored}


SCORED = dict.fromkeys(("classification", "next-token", "tagging", "segmentation", "multi-label"), "accuracy")
"""Task -> under what name its scores stand; others: `scores`."""


def _said(network: Compressed, known: Preprocessing) -> dict[str, Any]:
    """What the outputs are, and what they are called."""
    task, reading, size = network.task, reading_of(network.meta), plan_of(network).output[0]
    if outputs := outputs_of(task):
        listed = [
            asdict(one) | ({"targets": list(map(asdict, own))} if own else {"classes": list(names)})
            for one, names, own in described(outputs, known)
        ]
        said = {"output": "outputs", "outputs": listed, "classes": list(known.classes)}
        return said | {"targets": [asdict(one) for one in known.targets]}
    if task == "regression":
        units = target_names(known, size)
        return {"output": "standardized", "classes": [], "targets": [asdict(one) for one in units]}
    if task == "reconstruction":
        return {"output": "values", "classes": []}
    pad = {"pad": pad_of(reading)} if task == "next-token" and pad_of(reading) >= 0 else {}
    return {"output": "logits", "classes": list(class_names(known, size, reading))} | pad


def _inputs(network: Compressed) -> list[dict[str, Any]]:
    """What each of several inputs is."""
    rows = {
        (where.start, where.stop): shapes_of(network)[name][0]
        for name, where in lookups(network.graph).items()
        if where is not None
    }
    found = []
    for one, where in zip(network.graph.inputs, slices(network.graph.inputs), strict=True):
        scale, known = one.scale or 1.0, rows.get((where.start, where.stop), 0)
        within, meant = ([0, 1] if scale != 1 else None), meaning(Preprocessing(scale, ()))
        if one.kind == "int64":
            within, meant = ([0, known - 1], _tokens(known)) if known else (None, "tokens, whole numbers")
        if one.kind == "bool":
            within, meant = [0, 1], "yes and no, 1 and 0"
        entry = {"name": one.name, "shape": list(one.shape), "dtype": one.kind, "scale": scale}
        found.append(entry | {"range": within, "meaning": meant})
    return found


def _tokens(rows: int) -> str:
    return f"tokens, whole numbers from 0 to {rows - 1}"


def tokens_of(network: Compressed) -> int:
    """How many kinds of tokens a network reads, all of which every table has that they are looked up in; 0: none."""
    rows = [shapes_of(network)[name][0] for name in tables(network.graph)]
    return min(rows, default=0) if network.graph.kind != "float32" else 0


def _origin(network: Compressed) -> dict[str, Any]:
    told_elsewhere = ("scale", "classes", "columns", "targets")
    origin = {key: value for key, value in network.meta.items() if key not in told_elsewhere}
    return {"producer": f"pyro-compress {version('pyro-compress')}", "origin": origin}


def meaning(known: Preprocessing, raw: bool = False) -> str:
    """What inputs are, in words.

    Args:
        known: preprocessing of the network.
        raw: it takes raw bytes and divides them itself.
    """
    scale = known.scale
    if known.columns:
        return "columns in this order: (value - mean) / std of a number, one input per category of a name (1 or 0)"
    if raw:
        return f"raw integers from 0 to {scale:g}; the model divides them by {scale:g} itself"
    if scale != 1:
        return f"raw integers from 0 to {scale:g}, divided by {scale:g} beforehand"
    return "values as in the training data"


Shapes = dict[str, tuple[int, ...]]


def read_card(path: Path) -> tuple[dict[str, Any], Shapes]:
    """The card of an export, and the shapes of its tensors where it tells them; nothing of it is run.

    Raises:
        ValueError: it is no export of this program, or one whose card only people read.
    """
    reader = CARDS.get(path.suffix.lower() if not path.is_dir() else "folder")
    if reader is None:
        raise ValueError(f"{path}: of exports as {path.suffix} the card is not read; its first lines tell it")
    ordinary(path)
    try:
        found, shapes = reader(path)
        return table(found, "its card"), {name: tuple(shape) for name, shape in shapes.items()}
    except ValueError as error:
        raise ValueError(f"{path} is no export of this program: {error}") from error


def _folder_card(path: Path) -> tuple[Any, Shapes]:
    found = table(json_of(ordinary(path / "network.json").read_bytes(), "network.json"), "network.json")
    return found, of_type(found.get("tensors", {}), dict[str, list[int]], "tensors")


def _safetensors_card(path: Path) -> tuple[Any, Shapes]:
    held = TensorFile(path)
    return json_of(held.metadata, "its metadata"), held.shapes


def _program_card(path: Path) -> tuple[Any, Shapes]:
    try:
        with zipfile.ZipFile(path) as archive:
            (place,) = [one for one in archive.infolist() if one.filename.split("/")[-1] == "pyro_compress.json"]
            with archive.open(place) as held:
                text = held.read(LARGEST_CARD + 1)
    except OSError:
        raise
    except Exception as error:  # what is damaged or foreign fails in many ways
        raise ValueError("it is no archive with a card in it") from error
    if len(text) > LARGEST_CARD:
        raise ValueError(f"a card of more than {LARGEST_CARD} bytes")
    return json_of(text, "its card"), {}


def _onnx_card(path: Path) -> tuple[Any, Shapes]:
    try:
        import onnx
    except ImportError as error:
        raise ValueError(f"it needs one more package ({error}); pip install 'pyro-compress[onnx]'") from error
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # of protobuf, which has errors of its own
        raise ValueError("it cannot be read as ONNX") from error
    return {one.key: json_of(one.value, "its metadata") for one in model.metadata_props}, {}


def _wasm_card(path: Path) -> tuple[Any, Shapes]:
    return json_of(section_of(path.read_bytes()), "its card"), {}


def section_of(module: bytes) -> bytes:
    """The card in a WebAssembly module: the content of its section of the name `SECTION`.

    Raises:
        ValueError: there is none, or the module is damaged.
    """
    start = 8
    while module[:4] == b"\0asm" and start < len(module):
        size, begin = _number(module, start + 1)
        length, name = _number(module, begin)
        if module[start] == 0 and module[name : name + length] == SECTION.encode():
            return module[name + length : begin + size]
        start = begin + size
    raise ValueError("it is no WebAssembly with a card in it")


def _number(data: bytes, start: int) -> tuple[int, int]:
    """An unsigned number as LEB128, and where it ends."""
    value = 0
    for shift, byte in enumerate(data[start : start + 5]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, start + shift + 1
    raise ValueError("it is damaged WebAssembly")


CARDS: dict[str, Callable[[Path], tuple[Any, Shapes]]] = {
    "folder": _folder_card,
    ".safetensors": _safetensors_card,
    ".pt2": _program_card,
    ".pte": _program_card,
    ".tflite": _program_card,
    ".onnx": _onnx_card,
    ".wasm": _wasm_card,
}
"""Kind of export -> its card, and the shapes of its tensors."""
