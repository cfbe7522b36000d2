"""What a benchmark measures: every variant of a network, exported for every engine at hand.

To add an engine, write a function `Subject -> entries` here, a row in `MAKERS`, and what runs its files in
`pyro_compress.deploy.engines.ENGINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_compress.deploy import arrays, onnx_files, onnx_four_bits, torch_files
from pyro_compress.deploy.c import library as c_library
from pyro_compress.deploy.c import source as c_source
from pyro_compress.deploy.card import card, tokens_of
from pyro_compress.deploy.engines import ENGINES
from pyro_compress.deploy.integer.chosen import write_integer
from pyro_compress.deploy.phone import executorch, litert
from pyro_compress.deploy.wasm import build as wasm_build
from pyro_compress.deploy.wasm import node as wasm_node
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed, Splits

CALIBRATION = 200
"""Examples for 8-bit quantisation: random ones where there are no data, on which speed does not depend."""
UNSCORED = Scores(0.0, 0.0, 0.0, 0.0)
"""Stands in the card of the temporary exports."""


@dataclass(frozen=True)
class Entry:
    """One network in one file for one engine.

    Attributes:
        variant: `dense`, `masked dense` or `shrunken`.
        engine: name in `ENGINES`.
        label: what the table calls it.
        path: file or folder.
    """

    variant: str
    engine: str
    label: str
    path: Path

    @property
    def bytes(self) -> int:
        """Size of the file, or of all files in the folder."""
        return sum(part.stat().st_size for part in [self.path, *self.path.rglob("*")] if part.is_file())


@dataclass(frozen=True)
class Subject:
    """One variant, and what its exports need.

    Attributes:
        variant: its name.
        network: what is exported.
        about: its card.
        place: folder for the files.
        splits: its data, where they are at hand.
        device: `cuda` measures torch on it too.
    """

    variant: str
    network: Compressed
    about: dict[str, Any]
    place: Path
    splits: Splits | None
    device: str

    def file(self, ending: str) -> Path:
        """Where an export of this variant lies."""
        return self.place / f"{self.variant.replace(' ', '_')}{ending}"

    @property
    def examples(self) -> torch.Tensor:
        """Training examples for calibration, or random numbers."""
        if self.splits is not None:
            return self.splits.train.x[:CALIBRATION]
        return torch.from_numpy(random_inputs(self.network, CALIBRATION))


Make = Callable[[Subject], Iterator[Entry]]


def entries_of(
    variants: dict[str, Compressed], place: Path, device: str, splits: Splits | None
) -> tuple[list[Entry], list[str]]:
    """Export every variant for every engine at hand and run one example; says what is missing."""
    entries, missing, example = list[Entry](), list[str](), random_inputs(variants["shrunken"], 1)
    if "dense" not in variants:
        missing.append("no run folder beside the file: name the original network with --dense RUN to compare with it")
    for variant, network in variants.items():
        subject = Subject(variant, network, card(network, UNSCORED, 0), place, splits, device)
        for what, make in MAKERS[variant].items():
            try:
                for entry in make(subject):
                    ENGINES[entry.engine](entry.path, 1)(example)()
                    entries.append(entry)
            except Exception as error:  # whatever an engine or its tool chain raises
                row = f"no {what} row{'' if variant == 'shrunken' else f' of the {variant} network'}"
                missing += [f"{row}: {told(error)}"] * (told(error) not in " ".join(missing))
    return entries, missing


def told(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def random_inputs(network: Compressed, batch: int) -> np.ndarray:
    """Inputs `(batch, *input_shape)` between 0 and 1, or tokens."""
    rng, shape, tokens = np.random.default_rng(0), (batch, *network.graph.input_shape), tokens_of(network)
    return rng.integers(0, tokens, shape) if tokens else rng.random(shape, np.float32)


def _torch(subject: Subject) -> Iterator[Entry]:
    torch_files.write_safetensors(subject.network, subject.about, path := subject.file(".safetensors"))
    yield Entry(subject.variant, "torch", "torch", path)
    if subject.device == "cuda":
        yield Entry(subject.variant, "torch CUDA", "torch CUDA", path)


def _onnx(subject: Subject) -> Iterator[Entry]:
    onnx_files.need_onnx()
    path = subject.file(".onnx")
    onnx_files.write_onnx(subject.network, subject.about, path, crop=subject.variant == "shrunken")
    yield Entry(subject.variant, "ONNX Runtime", "ONNX Runtime", path)


def _onnx_int8(subject: Subject) -> Iterator[Entry]:
    onnx_files.need_onnx()
    examples = subject.examples.numpy()
    onnx_files.write_int8(subject.network, subject.about, path := subject.file(".int8.onnx"), examples)
    yield Entry(subject.variant, "ONNX Runtime", "ONNX Runtime int8", path)


def _onnx_int4(subject: Subject) -> Iterator[Entry]:
    onnx_files.need_onnx()
    if subject.splits is None:
        raise ValueError("its data are not at hand, and its layers are chosen on them")
    path = subject.file(".int4.onnx")
    onnx_four_bits.write_int4(subject.network, subject.about, path, subject.splits, subject.examples)
    yield Entry(subject.variant, "ONNX Runtime", "ONNX Runtime int4", path)


def _c(subject: Subject) -> Iterator[Entry]:
    c_library.compiler()
    c_source.write_c(subject.network, subject.about, path := subject.file(".c"))
    yield Entry(subject.variant, "C", "C, compiled", path)


def _integer_c(subject: Subject) -> Iterator[Entry]:
    c_library.compiler()
    if subject.splits is None:
        raise ValueError("its data are not at hand, and its ranges come from them")
    path = subject.file("_integers.c")
    write_integer(subject.network, subject.about, path, subject.splits, subject.examples)
    yield Entry(subject.variant, "C integers", "C, integers", path)


def _webassembly(subject: Subject) -> Iterator[Entry]:
    wasm_build.need_zig()
    wasm_node.node()
    wasm_build.write_wasm(subject.network, subject.about, path := subject.file(".wasm"))
    yield Entry(subject.variant, "WebAssembly", "WebAssembly, node", path)


def _csr(subject: Subject) -> Iterator[Entry]:
    if any(is_weighted(node.op) and node.op != "linear" for node in subject.network.graph.nodes):
        raise ValueError("scipy has no sparse convolution")
    (folder := subject.file("_csr")).mkdir()
    arrays.write_folder(subject.network, subject.about, folder, sparse_below=1.1, smallest=0)
    yield Entry(subject.variant, "scipy CSR", "scipy CSR", folder)


def _phone(engine: str, ending: str, need: Callable[[], None], write: Callable[..., Any], int8: bool) -> Make:
    """What exports for a phone's engine, in float32 or in 8-bit integers."""

    def make(subject: Subject) -> Iterator[Entry]:
        need()
        path = subject.file(".int8" * int8 + ending)
        write(subject.network, subject.about, path, subject.examples if int8 else None)
        yield Entry(subject.variant, engine, engine + " int8" * int8, path)

    return make


RUNTIMES: dict[str, Make] = {"torch": _torch, "ONNX": _onnx, "8-bit ONNX": _onnx_int8}
PHONES: dict[str, Make] = {
    ("8-bit " if int8 else "") + engine: _phone(engine, ending, need, write, int8)
    for engine, ending, need, write in (
        ("ExecuTorch", ".pte", executorch.need_executorch, executorch.write_executorch),
        ("LiteRT", ".tflite", litert.need_litert, litert.write_litert),
    )
    for int8 in (False, True)
}
MAKERS: dict[str, dict[str, Make]] = {
    "dense": RUNTIMES | PHONES,
    "masked dense": {"torch": _torch, "ONNX": _onnx, "C": _c},
    "shrunken": RUNTIMES
    | {"4-bit ONNX": _onnx_int4, "C": _c, "integer C": _integer_c, "WebAssembly": _webassembly, "CSR": _csr}
    | PHONES,
}
"""Variant -> what is exported, by the name that a missing one has."""
