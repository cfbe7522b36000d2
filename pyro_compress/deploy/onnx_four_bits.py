"""ONNX below 8 bits: linear layers with weights of 4 bits in blocks (`MatMulNBits`), convolutions in 8-bit integers.

How large the blocks are, and which layers go to 4 bits, is chosen on the validation split.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.candidates import to_module
from pyro_compress.deploy.onnx_files import fed, load_onnx, quantized_layers
from pyro_compress.deploy.onnx_model import build, describe
from pyro_compress.deploy.onnx_torch import has_kept
from pyro_compress.deploy.refusals import kept_of
from pyro_compress.metrics import evaluate
from pyro_compress.networks.bounded import bounded
from pyro_compress.pcn.file import plan_of
from pyro_compress.scores import Quality
from pyro_compress.types import Compressed, Splits

if TYPE_CHECKING:
    import onnx

BLOCKS = (128, 64, 32, 16)
"""Weights that share a scale, largest first: larger ones take fewer bytes."""
LOSS = 0.005
"""Validation accuracy (share of another score) that 4 bits may cost."""
DOMAIN = "com.microsoft"
"""Whose operation `MatMulNBits` is: ONNX Runtime's own."""
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class _Layer:
    """A linear layer of a model: its node, its weights `(out, in)` and their name."""

    node: str
    name: str
    weight: np.ndarray


@dataclass(frozen=True)
class _Tried:
    block: int
    layers: tuple[_Layer, ...]
    model: onnx.ModelProto
    scores: Quality


def write_int4(
    network: Compressed, card: Mapping[str, Any], path: Path, splits: Splits, examples: torch.Tensor
) -> list[str]:
    """Write the model with the largest blocks, and as many layers in them, as the validation split allows.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`.
        path: where to.
        splits: the data; block size and layers are chosen on the validation split.
        examples: `(n, *input_shape)`, of the training split, for the ranges of what stays in 8 bits.

    Returns:
        What the user should know.

    Raises:
        ValueError: no linear layer, or none that may go to 4 bits.
    """
    if has_kept(network):
        raise ValueError(
            f"4 bits are for networks whose operations this program writes itself, and torch writes "
            f"{kept_of(network.graph)}; leave it out of the network, or export with --int8"
        )
    model = build(network, card, integers=False)
    layers = _layers(model)
    if not layers:
        raise ValueError("no linear layer, which 4 bits are for; export with --int8")
    plan = plan_of(network)
    before = evaluate(bounded(to_module(network), plan), splits, "validation", noise=network.noise)
    measure, wanted = next(iter(before.cells.items()))
    calibration = fed(examples.numpy(), card["input"])
    best = None
    with tempfile.TemporaryDirectory() as folder:
        for block, chosen in _choices(layers):
            made = in_four_bits(model, chosen, block, layers, card["input"], calibration)
            describe(made, card)
            write_atomically(place := Path(folder, "model.onnx"), made.SerializeToString(deterministic=True))
            scores = _scores(place, network, splits)
            best = _Tried(block, tuple(chosen), made, scores)
            if scores.within(before, LOSS):
                break
        else:
            assert best is not None
            raise ValueError(
                f"4 bits change the validation {measure} from {wanted} to {best.scores.cells[measure]} even with "
                f"{best.layers[0].name} alone in blocks of {best.block}; nothing was written (export with --int8)"
            )
    write_atomically(path, best.model.SerializeToString(deterministic=True))
    return [*_lines(best, layers, model), f"validation {measure}: {wanted} in floats, {best.scores.cells[measure]}"]


def _choices(layers: Sequence[_Layer]) -> Iterator[tuple[int, Sequence[_Layer]]]:
    """All layers in ever smaller blocks, then ever fewer, the largest ones last."""
    yield from ((block, layers) for block in BLOCKS)
    largest = sorted(layers, key=lambda layer: -layer.weight.size)
    yield from ((BLOCKS[-1], largest[:count]) for count in range(len(layers) - 1, 0, -1))


def _lines(best: _Tried, layers: Sequence[_Layer], model: onnx.ModelProto) -> list[str]:
    lines = [f"4 bits in blocks of {best.block}: {', '.join(layer.name for layer in best.layers)}"]
    rest = [layer.name for layer in layers if layer not in best.layers]
    convolutions = [node.input[1].removesuffix(".weight") for node in model.graph.node if node.op_type in CONVOLUTIONS]
    if rest or convolutions:
        lines.append(f"8-bit integers: {', '.join(rest + convolutions)}")
    return lines


def _scores(path: Path, network: Compressed, splits: Splits) -> Quality:
    plan, run = plan_of(network), load_onnx(path)

    def outputs(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(run(x.numpy())).reshape(len(x), *plan.output)

    return evaluate(bounded(outputs, plan), splits, "validation", noise=network.noise)


def _layers(model: onnx.ModelProto) -> list[_Layer]:
    """Its linear layers: products with a constant, plain or behind a transposition."""
    from onnx import numpy_helper

    constants = {one.name: one for one in model.graph.initializer}
    turned = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Gemm", "MatMul"):
            continue
        name = turned.get(node.input[1], node.input[1])
        if name in constants and (node.op_type == "Gemm" or node.input[1] in turned):
            weight = numpy_helper.to_array(constants[name])
            found.append(_Layer(node.name, name.removesuffix(".weight"), weight))
    return found


def in_four_bits(
    model: onnx.ModelProto, chosen: Sequence[_Layer], block: int, layers: Sequence[_Layer], entry: Mapping[str, Any],
    calibration: np.ndarray,
) -> onnx.ModelProto:  # fmt: skip
    """The model with 4 bits for the chosen layers, and 8 bits for its convolutions and other linear layers."""
    from onnx import ModelProto, helper

    rest = [node.name for node in model.graph.node if node.op_type in CONVOLUTIONS]
    rest += [layer.node for layer in layers if layer not in chosen]
    made = (
        quantized_layers(model, rest, entry, calibration) if rest else ModelProto.FromString(model.SerializeToString())
    )
    by_node, nodes = {layer.node: layer for layer in chosen}, list(made.graph.node)
    del made.graph.node[:]
    for node in nodes:
        made.graph.node.extend(_product(node, by_node[node.name], block, made) if node.name in by_node else [node])
    used = {name for node in made.graph.node for name in node.input} | {one.name for one in made.graph.output}
    kept = [node for node in made.graph.node if node.op_type != "Transpose" or node.output[0] in used]
    del made.graph.node[:]
    made.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    constants = [one for one in made.graph.initializer if one.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend(constants)
    if DOMAIN not in {one.domain for one in made.opset_import}:
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made


def _product(node: onnx.NodeProto, layer: _Layer, block: int, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """A product with weights of 4 bits, and the sum with its bias, for a product of floats."""
    from onnx import helper, numpy_helper

    packed, scales = blocks_of(layer.weight, block)
    constants = {f"{node.name}.packed": packed, f"{node.name}.scales": scales}
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    bias = list(node.input[2:])
    output = f"{node.output[0]}.product" if bias else node.output[0]
    outputs, inputs = layer.weight.shape
    made = helper.make_node(
        "MatMulNBits", [node.input[0], *constants], [output], name=node.name, domain=DOMAIN,
        K=inputs, N=outputs, bits=4, block_size=block,
    )  # fmt: skip
    return [made, *[helper.make_node("Add", [output, *bias], [node.output[0]], name=f"{node.name}.bias")] * len(bias)]


def blocks_of(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights on grids of 16 levels, one grid for each block of a row; zero is a level of all of them.

    Args:
        weight: `(out, in)`.
        block: weights that share a scale.

    Returns:
        Levels `(out, blocks, block / 2)`, two to a byte, the first one in the lower half, and scales `(out, blocks)`:
        a weight is `scale * (level - 8)`.
    """
    rows, columns = weight.shape
    count = -(-columns // block)
    cut = np.pad(weight, [(0, 0), (0, count * block - columns)]).reshape(rows, count, block)
    place = np.abs(cut).argmax(2, keepdims=True)
    scales = -np.take_along_axis(cut, place, 2) / 8  # the largest weight lies at the end that has one level more
    levels = np.clip(np.rint(cut / np.where(scales == 0, 1, scales)) + 8, 0, 15).astype(np.uint8)
    return levels[..., ::2] | (levels[..., 1::2] << 4), scales[..., 0].astype(np.float32)
