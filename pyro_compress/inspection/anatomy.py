"""Where the bytes of a compressed file went: from dense to file in three steps, and layer by layer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyro_compress.inspection.summary import LayerSummary
from pyro_compress.pcn import file
from pyro_compress.types import Compressed, Quantized, nonzero


@dataclass(frozen=True)
class Steps:
    """Bytes of a network on its way into a file.

    Attributes:
        dense: every value of the whole network as float32.
        structure: the values of the units that are left, zeros among them, as float32.
        precision: the same as integers, each tensor's as wide as its largest.
        coding: the file: what the integers take once they are coded, names and operations with them.
    """

    dense: int
    structure: int
    precision: int
    coding: int

    @property
    def factors(self) -> dict[str, float]:
        """How many times smaller each step makes it."""
        sizes = (self.dense, self.structure, self.precision, self.coding)
        named = zip(("structure", "precision", "coding"), sizes[:-1], sizes[1:], strict=True)
        return {name: before / max(after, 1) for name, before, after in named}


def steps_of(network: Compressed, file_bytes: int) -> Steps:
    """The steps of a file.

    Args:
        network: what it holds.
        file_bytes: its size.
    """
    values = {name: _array(tensor).size for name, tensor in network.tensors.items()}
    bits = sum(values[name] * integer_bits(tensor) for name, tensor in network.tensors.items())
    total = int(network.meta.get("parameters_total", sum(values.values())))
    return Steps(4 * total, 4 * sum(values.values()), -(-bits // 8), file_bytes)


def integer_bits(tensor: Quantized | np.ndarray) -> int:
    """Bits of the widest integer of a tensor, sign included; 32 of float32, 0 where all are zero."""
    if not isinstance(tensor, Quantized):
        return 32
    largest = int(np.abs(tensor.codes.astype(np.int64)).max(initial=0))
    return (2 * largest).bit_length()  # of -largest ... largest


def step_rows(steps: Steps) -> list[tuple[str, ...]]:
    """Head and rows of the table of steps."""
    what = {
        "structure": "units that nothing needs are gone",
        "precision": "integers, as wide as the largest of their layer",
        "coding": "likely integers take few bits; operations and names come on top",
    }
    rows: list[tuple[str, ...]] = [("", "bytes", "times smaller", "")]
    rows.append(("dense, float32", f"{steps.dense:,}", "", "every weight in 32 bits"))
    for name, factor in steps.factors.items():
        size = getattr(steps, name)
        label = f"{name}: the file" if name == "coding" else name
        rows.append((label, f"{size:,}", f"{factor:.3g}", what[name]))
    return rows


def layer_rows(layers: Iterable[LayerSummary], network: Compressed, path: Path) -> list[tuple[str, ...]]:
    """Head and rows of the table of a file's layers; their bytes add up to the file's.

    Args:
        layers: of the run.
        network: what the file holds.
        path: the file.
    """
    size = os.path.getsize(path)
    parts = file.parts_of(path.read_bytes(), network)
    rows: list[tuple[str, ...]] = [
        ("layer", "inputs read", "units kept", "weights kept", "bits", "bytes", "share", "bits per weight kept")
    ]
    left = dict(parts)
    for layer in layers:
        tensor = network.tensors.get(layer.name)
        inputs, units = layer.in_file or (0, 0)
        kept = nonzero(_array(tensor)) if tensor is not None else 0
        spent = left.pop(layer.name, None)
        rows.append(
            (
                layer.name,
                f"{inputs:,}",
                f"{units:,} of {layer.width:,}",
                f"{kept:,} of {layer.weights:,}",
                str(integer_bits(tensor)) if tensor is not None else "gone",
                *_bytes(spent, size),
                f"{8 * spent / kept:.1f}" if spent is not None and kept else "",
            )
        )
    vectors = [left.pop(name) for name in [*left] if name in network.tensors]
    rest = {"biases and other vectors": sum(vectors), "operations, names, checksum": sum(left.values())}
    rows += [(name, "", "", "", "", *_bytes(spent, size), "") for name, spent in rest.items() if parts]
    rows.append(("the file", "", "", f"{network.parameters:,} values", "", *_bytes(size, size), ""))
    return rows


def _bytes(spent: int | None, size: int) -> tuple[str, str]:
    return ("", "") if spent is None else (f"{spent:,}", f"{100 * spent / size:.1f} %")


def _array(tensor: Quantized | np.ndarray) -> np.ndarray:
    return tensor.codes if isinstance(tensor, Quantized) else tensor
