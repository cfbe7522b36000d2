"""What a file, a run folder or an export holds: origin, task, shapes, sizes; told without any data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyro_compress.data.preprocessing import filled, preprocessing_of, reading_of
from pyro_compress.deploy.card import CARDS, meaning, read_card
from pyro_compress.foreign import of_type, table
from pyro_compress.inputs import Input, inputs_of
from pyro_compress.kinds import is_pcn, is_run
from pyro_compress.pcn import file
from pyro_compress.pcn.gate import MAX_MEMORY_MIB, Plan, limited
from pyro_compress.runs.folder import load_run
from pyro_compress.training.history import read_history
from pyro_compress.types import Graph, Preprocessing, Quantized, nonzero

ELSEWHERE = ("scale", "classes", "columns", "targets", "task")
"""Entries of the metadata that have a place of their own."""
SEVERAL = "several inputs, one behind the other"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor.

    Attributes:
        name: in the network.
        shape: of its values.
        kept: how many of them are not zero; None: nobody counted.
        bytes: what it takes; None: the file's parts are not known, as an earlier version wrote it.
        step: its values are whole multiples of this; None: they are float32.
    """

    name: str
    shape: tuple[int, ...]
    kept: int | None = None
    bytes: int | None = None
    step: float | None = None

    @property
    def values(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float | None:
        """Bits per kept value."""
        return 8 * self.bytes / self.kept if self.bytes is not None and self.kept else None


@dataclass(frozen=True)
class Info:
    """What a file or folder holds.

    Attributes:
        path: where it lies.
        kind: `pcn`, `run` or `export`.
        format: what it is, with its version.
        bytes: its size.
        dense_bytes: size of the network that it came from as float32, before anything was removed; None: not told.
        origin: data, prior, seed, and how it was made, as it says itself.
        task: name in `pyro_compress.data.tasks.TASKS`.
        input_shape: of one example.
        shortest: sequences that it takes; 0: those of `input_shape` alone.
        input_kind: type of the inputs.
        input_meaning: what they are, in words.
        inputs: of several, what lies in a row; empty: there is one.
        output_shape: of one example's outputs; empty: not told.
        classes: their names, in the order of the outputs.
        columns: of a table, in the order of the inputs.
        targets: of regression, in the order of the outputs.
        noise: of regression, in standard deviations of the targets; None: there is none.
        operations: names of the network's operations, in order.
        tensors: what it holds.
        parts: bytes of what lies beside the tensors, or of the files of a folder.
        claimed: how good it says that it is, and on what; empty: it does not say.
    """

    path: str
    kind: str
    format: str
    bytes: int
    dense_bytes: int | None
    origin: dict[str, Any]
    task: str
    input_shape: tuple[int, ...]
    input_kind: str
    input_meaning: str
    inputs: tuple[Input, ...] = ()
    shortest: int = 0
    output_shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    noise: float | None = None
    operations: tuple[str, ...] = ()
    tensors: tuple[TensorInfo, ...] = ()
    parts: dict[str, int] = field(default_factory=dict)
    claimed: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Info({self.path!r}: {self.format}, {self.bytes:,} bytes, {self.task})"

    @property
    def ratio(self) -> float | None:
        """How many times smaller than float32 it is."""
        return self.dense_bytes / self.bytes if self.dense_bytes and self.bytes else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        tensors = [asdict(one) | {"values": one.values, "bits": one.bits} for one in self.tensors]
        return asdict(self) | {"tensors": tensors, "ratio": self.ratio}


def info(file: str | Path, max_memory: float = MAX_MEMORY_MIB) -> Info:
    """What a `.pcn` file, a run folder or an export of this program holds; needs no data, and runs nothing.

    Args:
        file: the file or folder.
        max_memory: MiB that a `.pcn` file may ask for.

    Raises:
        ValueError: none of these, or damaged.
        OSError: it cannot be read.

    Examples:
        >>> import pyro_compress as pc
        >>> pc.info("missing.pcn")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.pcn'
    """
    path = Path(file)
    if path.is_dir():
        run = is_run(path) or not (path / "network.json").is_file()
        return _of_run(path) if run else _of_export(path)
    exported = path.suffix.lower() in (*CARDS, ".c") and not is_pcn(path)
    return _of_export(path) if exported else _of_pcn(path, max_memory)


def _of_pcn(path: Path, max_memory: float) -> Info:
    network = file.read(path, limited(max_memory))
    data = path.read_bytes()
    plan, known = file.plan_of(network), filled(preprocessing_of(network.meta), file.plan_of(network).output)
    parts = file.parts_of(data, network)
    tensors = tuple(
        TensorInfo(name, values.shape, nonzero(values), parts.pop(name, None), step)
        for name, held in network.tensors.items()
        for values, step in [(held.codes, held.step) if isinstance(held, Quantized) else (held, None)]
    )
    return Info(
        str(path), "pcn", f".pcn file, format version {data[4]}", len(data),
        4 * int(network.meta.get("parameters_total", sum(one.values for one in tensors))),
        _less(network.meta), network.task, noise=network.noise, tensors=tensors, parts=parts,
        **_about(network.graph, plan, known, reading_of(network.meta).vocabulary),
    )  # fmt: skip


def _of_run(path: Path) -> Info:
    run = load_run(path)
    config, posterior, plan = run.config, run.posterior, run.plan
    sizes = {one.name: one.stat().st_size for one in sorted(path.iterdir()) if one.is_file()}
    tensors = tuple(
        TensorInfo(name, tuple(values.shape), nonzero(values), 4 * values.numel())
        for name, values in posterior.tensors.items()
    )
    entries = dict(posterior.provenance.entries)
    origin = _less(entries) | {
        "net": config.net,
        "epochs": config.epochs,
        "criterion": posterior.criterion,
    }
    last = (read_history(path) or ({},))[-1]
    claimed = {n: v for n, v in last.items() if n.startswith("validation_") and v is not None}
    known = filled(run.stored or preprocessing_of(entries), plan.output)
    return Info(
        str(path), "run", "run folder", sum(sizes.values()), 4 * posterior.parameters_total, origin, posterior.task,
        noise=posterior.noise, tensors=tensors, parts=sizes,
        claimed={"split": "validation"} | claimed if claimed else {},
        **_about(posterior.graph, plan, known, reading_of(entries).vocabulary),
    )  # fmt: skip


def _about(graph: Graph, plan: Plan, known: Preprocessing, vocabulary: str) -> dict[str, Any]:
    """Fields that a network at hand and its preprocessing fill in."""
    meant = f"tokens: {vocabulary or 'whole numbers'}" if graph.kind == "int64" else meaning(known)
    meant = SEVERAL if graph.inputs else meant
    operations = (str(node.attributes.get("call", node.op)) for node in graph.nodes[1:])
    return {
        "input_shape": graph.input_shape, "input_kind": graph.kind, "input_meaning": meant, "inputs": graph.inputs,
        "shortest": graph.least, "output_shape": plan.output, "classes": known.classes,
        "columns": tuple(one.name for one in known.columns), "targets": tuple(one.name for one in known.targets),
        "operations": tuple(operations),
    }  # fmt: skip


def _less(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if name not in ELSEWHERE}


def _of_export(path: Path) -> Info:
    card, shapes = read_card(path)
    try:
        return _from_card(card, shapes, path)
    except ValueError as error:
        raise ValueError(f"{path} is no export of this program: {error}") from error


def _from_card(card: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path) -> Info:
    """What a card tells, every part of the type that it has where this program wrote it."""
    producer = of_type(card.get("producer"), str, "producer")
    origin, given = table(card.get("origin"), "origin"), table(card.get("input"), "input")
    total = of_type(origin.get("parameters_total"), int | None, "parameters_total")
    columns, targets = (
        [table(one, what).get("name") for one in of_type(entries, list[Any], what)]
        for what, entries in (("columns", given.get("columns", [])), ("targets", card.get("targets", [])))
    )
    several = [table(one, "inputs") for one in of_type(given.get("inputs", []), list[Any], "inputs")]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    sizes = {one.name: one.stat().st_size for one in files if one.is_file()}
    return Info(
        path=str(path),
        kind="export",
        format=f"export ({path.suffix or 'folder'}) by {producer}",
        bytes=sum(sizes.values()),
        dense_bytes=4 * total if total and total > 0 else None,
        origin=_less(origin),
        task=of_type(origin.get("task", "classification"), str, "task"),
        input_shape=tuple(of_type(given.get("shape"), list[int], "shape")),
        input_kind=of_type(given.get("dtype"), str, "dtype"),
        input_meaning=SEVERAL if several else of_type(given.get("meaning"), str, "meaning"),
        inputs=inputs_of(
            [[*(one.get(part) for part in ("name", "shape", "dtype")), one.get("scale", 0)] for one in several]
        ),
        classes=_texts(card.get("classes"), "classes"),
        columns=_texts(columns, "columns"),
        targets=_texts(targets, "targets"),
        noise=of_type(origin.get("noise"), float | None, "noise"),
        tensors=tuple(TensorInfo(name, shape, bytes=4 * math.prod(shape)) for name, shape in shapes.items()),
        parts=sizes if path.is_dir() else {},
        claimed=table(card.get("accuracy", card.get("scores")), "accuracy"),
    )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """Names, which may hold what acts on a terminal: they are spelled out where they are shown."""
    found = of_type(value, list[Any], where)
    if not all(isinstance(one, str) for one in found):
        raise ValueError(f"{where}: names are wanted")
    return tuple(found)
