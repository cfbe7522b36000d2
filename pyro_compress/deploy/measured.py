"""What a benchmark finds: the numbers, and in plain words which kind of pruning gained what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

LOSS = 0.01
"""Accuracy (share of another error above 1) that an engine may lose against the best and still be advised."""


@dataclass(frozen=True)
class Cell:
    """Latency of one batch size: median and 95th percentile in microseconds, over `calls` calls."""

    batch: int
    median_us: float
    p95_us: float
    calls: int

    @property
    def per_second(self) -> float:
        """Examples per second at the median."""
        return 1e6 * self.batch / self.median_us


@dataclass(frozen=True)
class Row:
    """One network on one engine.

    Attributes:
        variant: `dense`, `masked dense` or `shrunken`.
        engine: name in `ENGINES`, with `int8` or `compiled` added.
        threads: CPU threads.
        bytes: of the file that the engine reads.
        peak_mib: peak memory of a process that does nothing else, and `added_mib` what came after the import.
        cells: one per batch size.
        score: of the engine's own outputs on the test split, in words; empty where the data are not at hand.
        error: the same as one number of which less is better.
    """

    variant: str
    engine: str
    threads: int
    bytes: int
    peak_mib: float | None
    added_mib: float | None
    cells: tuple[Cell, ...]
    score: str = ""
    error: float | None = None


@dataclass(frozen=True, repr=False)
class Bench:
    """Everything measured for one file.

    Attributes:
        file: the `.pcn` file, of `file_bytes` bytes.
        density: share of non-zeros among the weights of the shrunken network.
        widths: units of the shrunken network; `dense_widths` of the original.
        rows: the table.
        missing: what was left out, and why.
        measure: what `score` of the rows is; empty where there is none.
        examples: on how many of the test split.
    """

    file: str
    file_bytes: int
    density: float
    widths: list[int]
    dense_widths: list[int]
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    measure: str = ""
    examples: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def __repr__(self) -> str:
        """Which kind of pruning gained what."""
        return "\n  ".join([f"{self.file}: {self.file_bytes:,} bytes, {len(self.rows)} rows", *findings(self)])

    def row(self, variant: str, engine: str) -> Row | None:
        """The row with the fewest threads."""
        return next((r for r in self.rows if (r.variant, r.engine) == (variant, engine)), None)

    def baseline(self, row: Row) -> Row | None:
        """What a row is compared with: the dense network in torch or in ONNX Runtime, with as many threads."""
        engine = row.engine if row.engine.startswith("torch") else "ONNX Runtime"
        same = (r for r in self.rows if (r.variant, r.engine, r.threads) == ("dense", engine, row.threads))
        return next(same, None)

    def gain(self, row: Row | None, batch: int, against: Row | None = None) -> float | None:
        """How many times faster a row is than another (its baseline), at one batch size."""
        against = against or (self.baseline(row) if row else None)
        if row is None or against is None:
            return None
        medians = [next(cell.median_us for cell in r.cells if cell.batch == batch) for r in (against, row)]
        return medians[0] / medians[1]


def findings(bench: Bench) -> list[str]:
    """Sentences about the rows with the fewest threads, each with its numbers."""
    return [
        sentence for part in (_zeros, _units, _csr, _compiled, _webassembly, _int8, _advice) for sentence in part(bench)
    ]


def _times(bench: Bench, row: Row | None, against: Row | None = None) -> str:
    """`2.9× at batch 1, 5.1× at batch 256`; empty without something to compare with."""
    if row is None:
        return ""
    gains = [(cell.batch, bench.gain(row, cell.batch, against)) for cell in row.cells]
    return ", ".join(f"{gain:.1f}× at batch {batch}" for batch, gain in gains if gain is not None)


def _zeros(bench: Bench) -> Iterator[str]:
    for engine in ("ONNX Runtime", "torch"):
        if gains := _times(bench, row := bench.row("masked dense", engine)):
            dense = bench.row("dense", engine)
            assert row is not None
            assert dense is not None
            size = "a file as large" if row.bytes > 0.99 * dense.bytes else f"{dense.bytes / row.bytes:.1f}× smaller"
            yield f"Zeros left in place, {engine}: {gains}; {size}. A runtime multiplies them like any number."
            return


def _units(bench: Bench) -> Iterator[str]:
    path = f"{'-'.join(map(str, bench.dense_widths))} -> {'-'.join(map(str, bench.widths))}"
    for engine in ("ONNX Runtime", "torch"):
        if gains := _times(bench, row := bench.row("shrunken", engine)):
            dense = bench.row("dense", engine)
            assert row is not None
            assert dense is not None
            yield f"Units removed ({path}), {engine}: {gains}; file {dense.bytes / row.bytes:.1f}× smaller."


def _csr(bench: Bench) -> Iterator[str]:
    if gains := _times(bench, row := bench.row("shrunken", "scipy CSR"), bench.row("shrunken", "ONNX Runtime")):
        assert row is not None
        verdict = f"{gains} as fast as the same network dense in ONNX Runtime"
        yield f"The zeros that remain, used through CSR ({100 * bench.density:.0f} % non-zero): {verdict}."


def _compiled(bench: Bench) -> Iterator[str]:
    masked, shrunken = bench.row("masked dense", "C, compiled"), bench.row("shrunken", "C, compiled")
    if gains := _times(bench, masked):
        yield f"The same zeros in compiled C, which leaves them out: {gains} as fast as dense in ONNX Runtime."
    if gains := _times(bench, shrunken):
        yield f"Units removed and zeros left out, compiled C: {gains} as fast as dense in ONNX Runtime."
    elif gains := _times(bench, shrunken, bench.row("shrunken", "ONNX Runtime")):
        yield f"The zeros that remain, left out by compiled C: {gains} as fast as the same network in ONNX Runtime."


def _webassembly(bench: Bench) -> Iterator[str]:
    row, compiled = bench.row("shrunken", "WebAssembly, node"), bench.row("shrunken", "C, compiled")
    if gains := _times(bench, row, compiled):
        yield f"The same C as WebAssembly in node: {gains} as fast as compiled for this machine."


def _int8(bench: Bench) -> Iterator[str]:
    shrunken = bench.row("shrunken", "ONNX Runtime")
    if gains := _times(bench, bench.row("shrunken", "ONNX Runtime int8"), shrunken):
        yield f"8-bit integers on top of removed units: {gains}."


def _advice(bench: Bench) -> Iterator[str]:
    """Two sentences: which to take for speed, which for size, among those that lose no more than `LOSS`."""
    fewest = min(row.threads for row in bench.rows)
    every = [row for row in bench.rows if row.variant == "shrunken" and row.threads == fewest]
    errors = [row.error if row.error is not None and math.isfinite(row.error) else math.inf for row in every]
    most = min(errors, default=0.0)
    most += LOSS * max(most, 1.0)
    few = [row for row, error in zip(every, errors, strict=True) if not bench.measure or error <= most < math.inf]
    if len(every) < 2 or not few:
        return
    columns = zip(*(row.cells for row in few), strict=True)
    best = [min(zip(column, few, strict=True), key=lambda pair: pair[0].median_us) for column in columns]
    parts = [f"{row.engine} at batch {cell.batch} ({_seen(f'{cell.median_us:,.1f} µs', row)})" for cell, row in best]
    left = [row.engine for row in every if row not in few]
    lost = f"; not {', '.join(left)}, which lose more" if left else ""
    yield f"Fastest for the compressed network, take: {', '.join(parts)}{lost}."
    small = min(few, key=lambda row: row.bytes)
    yield f"Smallest for it, take: {small.engine} ({_seen(f'{small.bytes:,} bytes', small)})."


def _seen(number: str, row: Row) -> str:
    return f"{number}, {row.score}" if row.score else number
