"""How fast, how large: the original, the masked and the shrunken network on every engine at hand, in one table.

All rows of a table are timed in turns within one run, so that what else the machine does hits all of them alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_compress.advance import advanced
from pyro_compress.deploy import arrays, onnx_files, torch_files
from pyro_compress.deploy.c import library as c_library
from pyro_compress.deploy.c import source as c_source
from pyro_compress.deploy.card import card
from pyro_compress.deploy.engines import ENGINES, Call
from pyro_compress.deploy.measured import Bench, Cell, Row
from pyro_compress.deploy.memory import peak_memory
from pyro_compress.deploy.wasm import build as wasm_build
from pyro_compress.deploy.wasm import node as wasm_node
from pyro_compress.graph.ir import widths
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.machine import prepare
from pyro_compress.pcn import file
from pyro_compress.pcn.gate import MAX_MEMORY_MIB, Limits, limited
from pyro_compress.runs.folder import load_run
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed, Posterior

CHUNK_NS = 2_000_000
"""Time that one row takes before it is the next one's turn."""
CALIBRATION = 200
"""Random examples for 8-bit quantisation; speed does not depend on them."""
UNSCORED = Scores(0.0, 0.0, 0.0, 0.0)
"""Stands in the card of the temporary exports."""


@dataclass(frozen=True)
class _Entry:
    variant: str
    engine: str
    label: str
    path: Path

    @property
    def bytes(self) -> int:
        """Size of the file, or of all files in the folder."""
        return sum(part.stat().st_size for part in [self.path, *self.path.rglob("*")] if part.is_file())


def bench(
    paths: str | Path | Sequence[str | Path],
    dense: str | Path | None = None,
    batches: str | Sequence[int] = (1, 16, 256),
    seconds: float = 1.0,
    no_memory: bool = False,
    data_dir: str = "",
    device: str = "auto",
    threads: int = 0,
    max_memory: float = MAX_MEMORY_MIB,
) -> list[Bench]:
    """Measure every file beside its original network.

    Args:
        paths: a `.pcn` file, or several.
        dense: run folder of the original; None: the folder a file lies in, if it is one.
        batches: batch sizes, or words of them separated by commas.
        seconds: time per row and batch size.
        no_memory: leave out peak memory.
        data_dir: not read; speed does not depend on the inputs' values.
        device: with CUDA there, torch is measured on it too.
        threads: CPU threads; 0 measures one thread and all of them.
        max_memory: MiB that a file may ask for, at the largest batch.

    Raises:
        ValueError: bad batch sizes, a file or run folder that cannot be read.
    """
    sizes = _sizes(batches)
    device = prepare(device, threads or 1)
    every = [threads] if threads else sorted({1, torch.multiprocessing.cpu_count()})
    results = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        folder = Path(dense) if dense else path.parent if (path.parent / "posterior.safetensors").is_file() else None
        posterior = load_run(folder).posterior if folder else None
        with tempfile.TemporaryDirectory() as place:
            network = _read(path, limited(max_memory), max(sizes))
            variants = _variants(network, posterior)
            entries, missing = _entries(variants, Path(place), device)
            rows = list[Row]()
            for count in every:
                rows += _measure(entries, variants["shrunken"], count, sizes, seconds)
            if not no_memory:
                rows = _with_memory(rows, entries, (max(sizes), *variants["shrunken"].graph.input_shape))
        results.append(_result(path, variants, rows, missing))
    return results


def _read(path: Path, limits: Limits, batch: int) -> Compressed:
    """A file, if batches of its network stay within the limits too."""
    network = file.read(path, limits)
    plan = file.plan_of(network)
    if plan.values + batch * plan.held > limits.values:
        raise ValueError(f"{path}: batches of {batch} hold {batch * plan.held} values; take smaller --batches")
    return network


def _sizes(batches: str | Sequence[int]) -> list[int]:
    try:
        sizes = [int(part) for part in (batches.split(",") if isinstance(batches, str) else batches)]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise ValueError(f"batches {batches!r}: give positive sizes separated by commas, like 1,16,256")
    return sizes


def _variants(network: Compressed, posterior: Posterior | None) -> dict[str, Compressed]:
    """The shrunken network as the file holds it; with its posterior also the original, with and without zeros."""
    if posterior is None:
        return {"shrunken": network}
    tensors = posterior.tensors
    kept = sum(int(np.count_nonzero(file.dense(network.tensors[name]))) for name in _weights(network))
    sizes = torch.cat([layer.mean.abs().flatten() for layer in posterior.layers.values()])
    threshold = sizes.topk(min(kept, len(sizes))).values[-1]
    means = {name: layer.mean for name, layer in posterior.layers.items()}
    masked = {name: torch.where(mean.abs() >= threshold, mean, 0.0) for name, mean in means.items()}
    return {
        "dense": _as_file(posterior, tensors, network),
        "masked dense": _as_file(posterior, tensors | masked, network),
        "shrunken": network,
    }


def _as_file(posterior: Posterior, tensors: dict[str, torch.Tensor], network: Compressed) -> Compressed:
    return Compressed(posterior.graph, {name: t.numpy() for name, t in tensors.items()}, network.meta)


def _weights(network: Compressed) -> list[str]:
    return [node.parameters["weight"] for node in network.graph.nodes if is_weighted(node.op)]


def _entries(variants: dict[str, Compressed], place: Path, device: str) -> tuple[list[_Entry], list[str]]:
    """Export every variant for every engine at hand; says what is missing."""
    entries, missing = [], []
    if "dense" not in variants:
        missing.append("no run folder beside the file: name the original network with --dense RUN to compare with it")
    try:
        onnx_files.need_onnx()
    except ValueError as error:
        missing.append(str(error))
        onnx = False
    else:
        onnx = True
    for variant, network in variants.items():
        about = card(network, UNSCORED, 0)
        stem = place / variant.replace(" ", "-")
        torch_files.write_safetensors(network, about, path := stem.with_suffix(".safetensors"))
        entries.append(_Entry(variant, "torch", "torch", path))
        if device == "cuda":
            entries.append(_Entry(variant, "torch CUDA", "torch CUDA", path))
        if onnx:
            entries += _onnx_entries(variant, network, about, stem)
        if variant != "dense":
            try:
                entries.append(_c_entry(variant, network, about, stem.with_suffix(".c")))
            except ValueError as error:
                missing.append(f"no C row of the {variant} network: {error}")
    shrunken = variants["shrunken"]
    try:
        entries.append(_wasm_entry(shrunken, place / "shrunken.wasm"))
    except ValueError as error:
        missing.append(f"no WebAssembly row: {error}")
    if any(is_weighted(node.op) and node.op != "linear" for node in shrunken.graph.nodes):
        missing.append("no CSR row: scipy has no sparse convolution")
    else:
        (folder := place / "csr").mkdir()
        arrays.write_folder(shrunken, card(shrunken, UNSCORED, 0), folder, sparse_below=1.1, smallest=0)
        entries.append(_Entry("shrunken", "scipy CSR", "scipy CSR", folder))
    return entries, missing


def _c_entry(variant: str, network: Compressed, about: dict[str, Any], path: Path) -> _Entry:
    c_library.compiler()
    c_source.write_c(network, about, path)
    return _Entry(variant, "C", "C, compiled", path)


def _wasm_entry(network: Compressed, path: Path) -> _Entry:
    wasm_build.need_zig()
    wasm_node.node()
    wasm_build.write_wasm(network, card(network, UNSCORED, 0), path)
    return _Entry("shrunken", "WebAssembly", "WebAssembly, node", path)


def _onnx_entries(variant: str, network: Compressed, about: dict[str, Any], stem: Path) -> Iterator[_Entry]:
    path = stem.with_suffix(".onnx")
    onnx_files.write_onnx(network, about, path, crop=variant == "shrunken")
    yield _Entry(variant, "ONNX Runtime", "ONNX Runtime", path)
    if variant != "masked dense":
        examples = _inputs(network, CALIBRATION)
        onnx_files.write_int8(network, about, path := stem.with_suffix(".int8.onnx"), examples)
        yield _Entry(variant, "ONNX Runtime", "ONNX Runtime int8", path)


def _inputs(network: Compressed, batch: int) -> np.ndarray:
    return np.random.default_rng(0).random((batch, *network.graph.input_shape), np.float32)


def _measure(
    entries: list[_Entry], network: Compressed, threads: int, sizes: list[int], seconds: float
) -> Iterator[Row]:
    """Time all rows in turns, one batch size after the other."""
    few = [e for e in entries if threads == 1 or e.engine in ("torch", "ONNX Runtime")]
    loaded = [ENGINES[entry.engine](entry.path, threads) for entry in few]
    cells: list[list[Cell]] = [[] for _ in few]
    what = f"measuring latencies, {threads} thread{'s' * (threads > 1)}"
    advanced(what, 0, len(sizes))
    for done, size in enumerate(sizes, 1):
        x = _inputs(network, size)
        for mine, times in zip(cells, in_turns([ready(x) for ready in loaded], seconds), strict=True):
            mine.append(Cell(size, float(np.median(times)) / 1e3, float(np.quantile(times, 0.95)) / 1e3, len(times)))
        advanced(what, done, len(sizes))
    for entry, mine in zip(few, cells, strict=True):
        yield Row(entry.variant, entry.label, threads, entry.bytes, None, None, tuple(mine))


def in_turns(calls: Sequence[Call], seconds: float) -> list[list[int]]:
    """Nanoseconds of every call, each given as long as `seconds`, in short turns so that disturbances hit all alike."""
    times: list[list[int]] = [[] for _ in calls]
    spent = [0] * len(calls)
    for call in calls:
        for _ in range(3):
            call()
    while min(spent) < 1e9 * seconds:
        for index, call in enumerate(calls):
            spent[index] += _turn(call, times[index])
    return times


def _turn(call: Call, times: list[int]) -> int:
    if isinstance(call, wasm_node.Timed):
        times += (told := call.turn(CHUNK_NS))
        return sum(told)
    start = before = time.perf_counter_ns()
    while True:
        call()
        now = time.perf_counter_ns()
        times.append(now - before)
        if now - start >= CHUNK_NS:
            return now - start
        before = now


def _with_memory(rows: list[Row], entries: list[_Entry], shape: tuple[int, ...]) -> list[Row]:
    peaks = dict[tuple[str, str], tuple[float, float] | None]()
    for done, e in enumerate(entries, 1):
        peaks[e.variant, e.label] = peak_memory(e.engine, e.path, shape)
        advanced("measuring memory", done, len(entries))
    found = [(row, peaks[row.variant, row.engine] or (None, None)) for row in rows]
    return [replace(row, peak_mib=total, added_mib=added) for row, (total, added) in found]


def _result(path: Path, variants: dict[str, Compressed], rows: list[Row], missing: list[str]) -> Bench:
    shrunken = variants["shrunken"]
    weights = [file.dense(shrunken.tensors[name]) for name in _weights(shrunken)]
    return Bench(
        file=str(path),
        file_bytes=path.stat().st_size,
        density=sum(np.count_nonzero(w) for w in weights) / sum(w.size for w in weights),
        widths=_widths(shrunken),
        dense_widths=_widths(variants["dense"]) if "dense" in variants else [],
        rows=tuple(rows),
        missing=tuple(missing),
    )


def _widths(network: Compressed) -> list[int]:
    return widths(network.graph, {name: file.dense(tensor) for name, tensor in network.tensors.items()})
