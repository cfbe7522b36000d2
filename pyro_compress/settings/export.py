"""What determines an export: `ExportConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pyro_compress.settings.declared import Config, built, setting


@dataclass(frozen=True)
class MemoryConfig(Config):
    """How much a file that somebody sent may ask for."""

    max_memory: float = setting(
        4096.0, "Memory that a .pcn file may ask for; more, and the work that goes with it, is refused beforehand.",
        least=1, unit="MIB",
    )  # fmt: skip


@dataclass(frozen=True)
class Members(Config):
    """Draws from a posterior that become one network."""

    number: int = setting(
        10, "Export K draws from the posterior of a RUN as one network: calibrated uncertainty at K times the cost.",
        least=2, unit="K", option="ensemble", kind="switch",
    )  # fmt: skip
    sparsity: float | None = setting(
        None, "Share of an ensemble's weights to remove; default: those below the criterion's threshold.",
        least=0, below=1,
    )  # fmt: skip
    seed: int = setting(0, "Seeds the draws of an ensemble.")


@dataclass(frozen=True)
class ExportConfig(MemoryConfig):
    """What is asked for beside the format; `members`: export an ensemble of these draws."""

    int8: bool = setting(False, "ONNX, ExecuTorch, LiteRT: 8-bit integers, calibrated on training examples.")
    int8_dynamic: bool = setting(False, "ONNX: 8-bit integers, ranges found at run time.")
    int4: bool = setting(False, "ONNX: linear layers in blocks of 4 bits, convolutions in 8, chosen on validation.")
    integer: bool = setting(False, "C: 8-bit integers alone, for microcontrollers without a floating-point unit.")
    raw: bool = setting(False, "ONNX, C, WebAssembly: the model takes raw bytes and scales them itself.")
    float32: bool = setting(False, "ONNX: plain float32 weights, for runtimes that fold no constants.")
    sparse: bool = setting(False, "Folder: layers as CSR where that pays.")
    members: Members | None = field(default=None, metadata={"part": Members})

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From options by their names on the command line: `ensemble`, `sparsity`, ..."""
        return built(cls, options)
