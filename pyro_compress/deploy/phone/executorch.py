"""ExecuTorch programs (`.pte`) for XNNPACK: float32 or 8-bit integers, written and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_compress.atomic import write_atomically
from pyro_compress.deploy.phone.traced import (
    Refused,
    card_behind,
    given,
    located,
    module_of,
    need,
    nothing,
    one_by_one,
    quiet,
    with_card,
)
from pyro_compress.deploy.refusals import reason, some
from pyro_compress.pcn.file import dense
from pyro_compress.types import Compressed, Node, Quantized

MODULES = (
    "executorch.exir",
    "executorch.runtime",
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    "executorch.backends.xnnpack.quantizer.xnnpack_quantizer",
    "torchao.quantization.pt2e.quantize_pt2e",
)
"""What it takes, imported once before any work, since that warns and says much."""
WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
"""Operations of torch with a weight, which integers must compute."""
QUANTISER = "XNNPACK's quantiser"


def need_executorch() -> None:
    """Raise one clear error where the packages are missing."""
    need(MODULES, "ExecuTorch", "executorch")


def write_executorch(
    network: Compressed, card: Mapping[str, Any], path: Path, examples: Tensor | None = None
) -> list[str]:
    """Write a program that takes one example at a time.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`; lies behind the program.
        path: where to.
        examples: `(n, *input_shape)` for calibration: layers compute in 8-bit integers, weights per output channel.

    Returns:
        What the user should know.

    Raises:
        ValueError: an operation that torch or ExecuTorch cannot export, or a layer that would stay in floats.
    """
    if examples is not None:
        network = symmetric(network)
    with quiet():
        try:
            lowered, content = _lowered(network, examples)
        except Refused as error:
            few = None if examples is None else examples[:1]
            raise located(network, error, lambda beginning: _lowered(beginning, few)) from error
    write_atomically(path, with_card(content, card))
    notes = ["one example at a time, XNNPACK" + (", 8-bit integers" if examples is not None else "")]
    if beside := _beside(lowered.exported_program().graph):
        notes.append(f"outside of XNNPACK, by ExecuTorch's own kernels: {some(beside)}")
    return notes


def _lowered(network: Compressed, examples: Tensor | None) -> tuple[Any, bytes]:
    """The program as ExecuTorch has it, of floats or calibrated on examples, and its bytes; raises `Refused`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = _exported(module_of(network), network)
    if examples is not None:
        program = _exported(_in_integers(program, network, examples), network)
    try:
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        content = lowered.to_executorch().buffer
        _ready(content).execute(nothing(network))
        return lowered, content
    except Exception as error:  # whatever the tool chain, or the runtime, says of an operation
        raise Refused("ExecuTorch", error, "to .onnx") from error


def _ready(program: bytes | Path) -> Any:
    """A program in ExecuTorch's runtime."""
    from executorch.runtime import Runtime

    return Runtime.get().load_program(program).load_method("forward")


def _exported(module: nn.Module, network: Compressed) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, nothing(network))
    except Exception as error:  # whatever the exporter says of an operation
        raise Refused("torch.export", error, "to .safetensors") from error


def _in_integers(program: torch.export.ExportedProgram, network: Compressed, examples: Tensor) -> nn.Module:
    """The program with quantised layers, ranges of activations taken from examples one by one."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e import quantize_pt2e as pt2e

    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    try:
        prepared = pt2e.prepare_pt2e(program.module(), quantizer)
        with torch.inference_mode():
            for place in range(len(examples)):
                prepared(*given(examples[place : place + 1], network))
        converted = pt2e.convert_pt2e(prepared)
    except Exception as error:  # whatever the quantiser says of an operation
        raise Refused(QUANTISER, error, "without --int8") from error
    if floats := in_floats(converted.graph):
        raise Refused(QUANTISER, f"{some(floats)} would stay in floats", "without --int8")
    return converted


def in_floats(graph: torch.fx.Graph) -> list[str]:
    """The layers of a quantised graph whose weight or input is no integer: operation and tensor."""
    found = list[str]()
    for node in graph.nodes:
        name = _named(node)
        if name in WEIGHTED and not all("dequantize" in str(part.target) for part in node.args[:2]):
            found.append(f"{name} {str(node.args[1]).removeprefix('p_')}")
    return found


def _named(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "_opname", "")) if node.op == "call_function" else ""


def _beside(graph: torch.fx.Graph) -> list[str]:
    """Operations that compute something and were not given to XNNPACK."""
    return sorted({
        str(node.target.name()).removeprefix("aten::")
        for node in graph.nodes
        if node.op == "call_function" and hasattr(node.target, "name") and "delegate" not in str(node.target)
    })  # fmt: skip


def symmetric(network: Compressed) -> Compressed:
    """The same function with as much padding before as behind: quantised convolutions of XNNPACK know no other.

    A kernel gets taps of zero on the side of the smaller padding.

    Raises:
        ValueError: a padding that a dilated kernel cannot make up for.
    """
    nodes, tensors = [], dict(network.tensors)
    for index, node in enumerate(network.graph.nodes):
        padding = node.attributes.get("padding")
        if node.op in ("conv1d", "conv2d", "conv3d") and padding and padding[0] != padding[1]:
            name = node.parameters["weight"]
            most = [max(pair) for pair in zip(*padding, strict=True)]
            own = _unused(f"{name}_padded_{index}", tensors)  # others may read the weight as it is
            tensors[own] = _widened(network.tensors[name], node, name)
            parameters = dict(node.parameters) | {"weight": own}
            node = replace(node, parameters=parameters, attributes=node.attributes | {"padding": [most, most]})
        nodes.append(node)
    read = {name for node in nodes for name in node.parameters.values()}
    kept = {name: tensor for name, tensor in tensors.items() if name in read}
    return Compressed(replace(network.graph, nodes=tuple(nodes)), kept, network.meta)


def _unused(name: str, tensors: Mapping[str, Any]) -> str:
    return _unused(f"{name}_", tensors) if name in tensors else name


def _widened(weight: np.ndarray | Quantized, node: Node, name: str) -> np.ndarray:
    taps = [(0, 0), (0, 0)]
    for before, behind, dilation in zip(*node.attributes["padding"], node.attributes["dilation"], strict=True):
        if (behind - before) % dilation:
            raise ValueError(
                f"{node.op} {name.removesuffix('.weight')} pads {before} before and {behind} behind, which quantised "
                "convolutions of XNNPACK do not; pad both sides alike, or export without --int8"
            )
        more = (behind - before) // dilation
        taps.append((max(more, 0), max(-more, 0)))
    return np.pad(dense(weight), taps)


def load_executorch(path: Path, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """The program as a function of inputs in the range the network was trained on.

    Args:
        path: the file.
        threads: of XNNPACK, for all programs of this process; 0 leaves them as they are.
    """
    entry = card_behind(path)["input"]
    if threads:
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

        _unsafe_reset_threadpool(threads)
    method: Any = None

    def run(*arguments: np.ndarray) -> np.ndarray:
        nonlocal method
        tensors = [torch.from_numpy(np.ascontiguousarray(one)) for one in arguments]
        try:
            if method is not None:
                return method.execute(tensors)[0].numpy().copy()
            with quiet():  # the first call looks for the processor's features, and says so
                method = _ready(path)
                return method.execute(tensors)[0].numpy().copy()
        except Exception as error:  # whatever the runtime says
            raise ValueError(f"ExecuTorch does not run the export: {reason(error)}") from error

    return one_by_one(run, entry)
