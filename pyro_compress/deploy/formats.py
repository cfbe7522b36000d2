"""The formats of `export`: what writes each, what loads it again, what it needs and takes.

To add one, write a function `(network, card, path, request, splits) -> notes` and one that loads the result as a
function of numpy arrays, and add a row to `EXPORTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.deploy import arrays, onnx_files, onnx_four_bits, torch_files
from pyro_compress.deploy.c import library as c_library
from pyro_compress.deploy.c import source as c_source
from pyro_compress.deploy.integer import library as integer_library
from pyro_compress.deploy.integer.chosen import write_integer
from pyro_compress.deploy.phone import executorch, litert
from pyro_compress.deploy.said import Program
from pyro_compress.deploy.wasm import build as wasm_build
from pyro_compress.deploy.wasm import node as wasm_node
from pyro_compress.foreign import meant
from pyro_compress.pcn.gate import BYTES_PER_VALUE, UNLIMITED
from pyro_compress.settings.export import ExportConfig
from pyro_compress.types import Compressed, Splits

OPTIONS = ("int8", "int8_dynamic", "int4", "integer", "sparse", "raw", "float32")
"""Settings that go with some formats only."""
Predict = Callable[[np.ndarray], np.ndarray]
Write = Callable[[Compressed, Mapping[str, Any], Path, ExportConfig, Splits], list[str]]


@dataclass(frozen=True)
class Exporter:
    """A format.

    Attributes:
        write: writes it, returns notes.
        load: what was written as a function of arrays.
        takes: settings that it understands.
        need: raises one clear error where a package or a program is missing.
        beside: suffixes of the files that are written beside the one that is named.
        bytes: memory that writing and checking it takes per value of the network, about.
        program: what lies in it that takes examples as people have them and prints what the network says.
        lengths: whether it takes the shorter sequences that its network takes.
    """

    write: Write
    load: Callable[[Path], Predict]
    takes: tuple[str, ...] = ()
    need: Callable[[], object] = lambda: None
    beside: tuple[str, ...] = ()
    bytes: int = BYTES_PER_VALUE
    program: Callable[[Path], Program] | None = None
    lengths: bool = False


def _onnx(network: Compressed, card: Mapping[str, Any], path: Path, request: ExportConfig, splits: Splits) -> list[str]:
    dynamic = request.int8_dynamic
    if request.int4:
        examples = splits.train.x[: onnx_files.CALIBRATION]
        return onnx_four_bits.write_int4(network, card, path, splits, examples)
    if not (request.int8 or dynamic):
        onnx_files.write_onnx(network, card, path, integers=not request.float32)
        return []
    fed = onnx_files.fed(splits.train.x[: onnx_files.CALIBRATION].numpy(), card["input"])
    onnx_files.write_int8(network, card, path, fed, dynamic)
    return [f"8-bit integers, {'dynamic' if dynamic else 'static'} quantisation by ONNX Runtime"]


def _folder(
    network: Compressed, card: Mapping[str, Any], path: Path, request: ExportConfig, splits: Splits
) -> list[str]:
    sparse = arrays.write_folder(network, card, path, arrays.CSR_PAYS if request.sparse else 0.0)
    if not request.sparse:
        return []
    return [f"CSR: {', '.join(sparse)}" if sparse else "no layer is sparse enough for CSR to pay; all are dense"]


def _program(
    network: Compressed, card: Mapping[str, Any], path: Path, request: ExportConfig, splits: Splits
) -> list[str]:
    torch_files.write_program(network, card, path)
    return []


def _executorch(
    network: Compressed, card: Mapping[str, Any], path: Path, request: ExportConfig, splits: Splits
) -> list[str]:
    examples = splits.train.x[: onnx_files.CALIBRATION] if request.int8 else None
    return executorch.write_executorch(network, card, path, examples)


def _litert(
    network: Compressed, card: Mapping[str, Any], path: Path, request: ExportConfig, splits: Splits
) -> list[str]:
    examples = splits.train.x[: onnx_files.CALIBRATION] if request.int8 else None
    return litert.write_litert(network, card, path, examples)


def _safetensors(
    network: Compressed, card: Mapping[str, Any], path: Path, request: ExportConfig, splits: Splits
) -> list[str]:
    torch_files.write_safetensors(network, card, path)
    return []


def _c(network: Compressed, card: Mapping[str, Any], path: Path, request: ExportConfig, splits: Splits) -> list[str]:
    if request.integer:
        return write_integer(network, card, path, splits, splits.train.x[: onnx_files.CALIBRATION])
    c_source.write_c(network, card, path)
    return []


def _load_c(path: Path) -> Predict:
    return integer_library.load_integer(path) if integer_library.is_integer(path) else c_library.load_c(path)


def _wasm(network: Compressed, card: Mapping[str, Any], path: Path, request: ExportConfig, splits: Splits) -> list[str]:
    wasm_build.write_wasm(network, card, path)
    sizes = [(part, path.with_suffix(part).stat().st_size) for part in wasm_build.BESIDE]
    return ["beside it " + ", ".join(f"{path.stem}{part} ({size:,} bytes)" for part, size in sizes)]


def _need_wasm() -> None:
    wasm_build.need_zig()
    wasm_node.node()


def _with_torch(load: Callable[[Path], Callable[[Tensor], Tensor]]) -> Callable[[Path], Predict]:
    def loaded(path: Path) -> Predict:
        module = load(path)
        return lambda x: module(torch.from_numpy(x)).detach().numpy()

    return loaded


EXPORTERS: dict[str, Exporter] = {
    ".onnx": Exporter(
        _onnx, onnx_files.load_onnx, ("int8", "int8_dynamic", "int4", "raw", "float32"), onnx_files.need_onnx, bytes=32
    ),
    ".pt2": Exporter(_program, _with_torch(torch_files.program_of_rows), bytes=32),
    ".pte": Exporter(_executorch, executorch.load_executorch, ("int8",), executorch.need_executorch, bytes=64),
    ".tflite": Exporter(_litert, litert.load_litert, ("int8",), litert.need_litert, bytes=64),
    ".safetensors": Exporter(
        _safetensors, _with_torch(lambda path: torch_files.load_safetensors(path, UNLIMITED)), lengths=True
    ),
    ".c": Exporter(_c, _load_c, ("raw", "integer"), c_library.compiler),
    ".wasm": Exporter(_wasm, wasm_node.load_wasm, ("raw",), _need_wasm, wasm_build.BESIDE),
    "folder": Exporter(_folder, lambda path: arrays.load_runner(path).run, ("sparse",), program=arrays.load_runner),
}

SAME = {".js": ".wasm"}
"""Suffixes that name a format by a file that is written beside it."""
MEANT = {".pt": ".pt2", ".pth": ".pt2"}
"""Suffixes of torch's own files, and what is nearest to them."""
INTEGERS = ("int8", "integer")
"""Settings for 8-bit integers, of which a format has one at most."""


def exporter_of(out: Path, request: ExportConfig) -> Exporter:
    """The format that a name asks for.

    Raises:
        ValueError: there is none, an option does not go with it, or what it needs is missing.
    """
    kind = out.suffix or "folder"
    if out.name.startswith(".") and out.name in (*EXPORTERS, *SAME):
        raise ValueError(f"{out} is a suffix without a name; give one, as in {out.with_name(f'model{out.name}')}")
    if out.name.endswith(".") and out.name != "..":
        raise ValueError(f"{out} ends in a dot; name a suffix behind it, or leave it out for a folder")
    if kind not in EXPORTERS:
        known = f"{', '.join(EXPORTERS)} (a name without suffix)"
        near = f"; did you mean {MEANT[kind]}?" if kind in MEANT else meant(kind, EXPORTERS)
        raise ValueError(f"{out}: no export to {kind}; allowed: {known}{near}")
    exporter = EXPORTERS[kind]
    for option in OPTIONS:
        if getattr(request, option) and option not in exporter.takes:
            goes = [name for name, other in EXPORTERS.items() if option in other.takes]
            other = next((one for one in INTEGERS if one in exporter.takes), "") if option in INTEGERS else ""
            instead = f"; it has --{other}" if other else ""
            named = f"--{option.replace('_', '-')}"
            raise ValueError(f"{named} goes with {', '.join(goes)} only, not with {kind}{instead}")
    if (request.int8 or request.int8_dynamic) and request.float32:
        raise ValueError("--int8 and --float32 exclude each other")
    if request.int4 and (request.int8 or request.int8_dynamic or request.float32):
        raise ValueError("--int4 excludes --int8, --int8-dynamic and --float32: give one of them")
    if request.integer and request.raw:
        raise ValueError("--integer and --raw exclude each other: the integers of --integer are bytes less 128")
    exporter.need()
    return exporter
