"""How fast, how large: the original, the masked and the shrunken network on every engine at hand, in one table.

All rows of a table are timed in turns within one run, so that what else the machine does hits all of them alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pyro_compress.advance import advanced
from pyro_compress.data.held_out import rows_of
from pyro_compress.deploy.engines import ENGINES, MANY, Call
from pyro_compress.deploy.entries import Entry, entries_of, random_inputs, told
from pyro_compress.deploy.export import splits_of
from pyro_compress.deploy.formats import EXPORTERS, Predict
from pyro_compress.deploy.measured import Bench, Cell, Row
from pyro_compress.deploy.memory import peak_memory
from pyro_compress.deploy.wasm import node as wasm_node
from pyro_compress.graph.ir import widths
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate, examples_of
from pyro_compress.networks.bounded import bounded, check_inputs, check_outputs
from pyro_compress.pcn import file
from pyro_compress.pcn.gate import MAX_MEMORY_MIB, Limits, limited
from pyro_compress.runs.folder import load_run
from pyro_compress.types import Compressed, Posterior, Splits

CHUNK_NS = 2_000_000
"""Time that one row takes before it is the next one's turn."""
SCORED = 2_000
"""Examples of the test split that every engine is scored on, at most, in even steps: some run them one by one."""


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
        data_dir: folder of the data sets; without the data of a file its rows have no scores.
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
            splits, unscored = _data(network, data_dir)
            entries, missing = entries_of(variants, Path(place), device, splits)
            rows = list[Row]()
            for count in every:
                rows += _measure(entries, variants["shrunken"], count, sizes, seconds)
            if not rows:
                raise ValueError(f"{path}: no engine runs it: {'; '.join(missing)}")
            if not no_memory:
                graph = variants["shrunken"].graph
                rows = _with_memory(rows, entries, (max(sizes), *graph.input_shape), graph.kind)
            found = Scored(rows)
            if splits is not None:
                found = _scored(rows, entries, network, splits)
        results.append(_result(path, variants, found, unscored + missing))
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


def _data(network: Compressed, data_dir: str) -> tuple[Splits | None, list[str]]:
    """The data of a file, or why they are not at hand or do not go with its network."""
    name = str(network.meta.get("data") or network.meta.get("calibration", ""))
    try:
        splits = splits_of(network, None, data_dir)
        check_inputs(network.graph, splits.input_shape, splits.kind, name, splits.inputs)
        check_outputs(file.plan_of(network), splits.output_shape, splits.task, name)
    except (OSError, ValueError) as error:
        return None, [f"no scores: {error}"]
    return splits, []


@dataclass(frozen=True)
class Scored:
    """The rows, what their scores are and on how many examples, and which have none."""

    rows: list[Row]
    measure: str = ""
    examples: int = 0
    missing: tuple[str, ...] = ()


def _scored(rows: list[Row], entries: list[Entry], network: Compressed, splits: Splits) -> Scored:
    """The rows with what each engine's own outputs score on `SCORED` examples of the test split."""
    plan, test, measure = file.plan_of(network), examples_of(splits, "test"), ""
    count = min(len(test), SCORED)
    few = replace(splits, test=rows_of(test, np.arange(count) * len(test) // count))
    found, missing = dict[tuple[str, str], tuple[str, float | None]](), list[str]()
    for done, entry in enumerate(entries, 1):
        try:
            predict = EXPORTERS[entry.path.suffix or "folder"].load(entry.path)

            def outputs(x: torch.Tensor, predict: Predict = predict) -> torch.Tensor:
                return torch.from_numpy(predict(x.numpy())).reshape(len(x), *plan.output)

            scores = evaluate(bounded(outputs, plan), few, "test", noise=network.noise)
            measure, text = next(iter(scores.cells.items()))
            found[entry.variant, entry.label] = (text, scores.error)
        except Exception as error:  # whatever an engine or its outputs raise
            found[entry.variant, entry.label] = ("none", None)
            missing.append(f"{entry.variant}, {entry.label}: no score: {told(error)}")
        advanced("scoring", done, len(entries))
    scored = [(row, found[row.variant, row.engine]) for row in rows]
    return Scored(
        [replace(row, score=text, error=error) for row, (text, error) in scored], measure, count, tuple(missing)
    )


def _measure(
    entries: list[Entry], network: Compressed, threads: int, sizes: list[int], seconds: float
) -> Iterator[Row]:
    """Time all rows in turns, one batch size after the other."""
    few = [e for e in entries if threads == 1 or e.engine in MANY]
    loaded = [ENGINES[entry.engine](entry.path, threads) for entry in few]
    cells: list[list[Cell]] = [[] for _ in few]
    what = f"measuring latencies, {threads} thread{'s' * (threads > 1)}"
    advanced(what, 0, len(sizes))
    for done, size in enumerate(sizes, 1):
        x = random_inputs(network, size)
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


def _with_memory(rows: list[Row], entries: list[Entry], shape: tuple[int, ...], kind: str) -> list[Row]:
    peaks = dict[tuple[str, str], tuple[float, float] | None]()
    for done, e in enumerate(entries, 1):
        peaks[e.variant, e.label] = peak_memory(e.engine, e.path, shape, kind)
        advanced("measuring memory", done, len(entries))
    found = [(row, peaks[row.variant, row.engine] or (None, None)) for row in rows]
    return [replace(row, peak_mib=total, added_mib=added) for row, (total, added) in found]


def _result(path: Path, variants: dict[str, Compressed], found: Scored, missing: list[str]) -> Bench:
    shrunken = variants["shrunken"]
    weights = [file.dense(shrunken.tensors[name]) for name in _weights(shrunken)]
    return Bench(
        file=str(path),
        file_bytes=path.stat().st_size,
        density=sum(np.count_nonzero(w) for w in weights) / sum(w.size for w in weights),
        widths=_widths(shrunken),
        dense_widths=_widths(variants["dense"]) if "dense" in variants else [],
        rows=tuple(found.rows),
        missing=(*missing, *found.missing),
        measure=found.measure,
        examples=found.examples,
    )


def _widths(network: Compressed) -> list[int]:
    return widths(network.graph, {name: file.dense(tensor) for name, tensor in network.tensors.items()})
