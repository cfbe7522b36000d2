"""A network's tensors -> integers and steps, as its file holds them.

Weights have the steps of their grid. What else a network has is a few values per channel (biases, batch norm, layer
norm) or per position, and is rounded finely: in a network that lost most of its units it would be most of the file as
float32.

In evaluation batch norm is `scale · x + shift`: two of its four vectors say everything. Its variances become 1 and its
means 0, which takes a byte or two, and its weight and bias scale and shift. Training that goes on from a file takes the
statistics anew (`graph.statistics.renewed_statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.precision import MAX_CODE, bias_step, quantize, snapped
from pyro_compress.graph.operations.kept import whole_tensors
from pyro_compress.graph.operations.norms import STATISTICS_ROLES
from pyro_compress.graph.operations.table import has_statistics, is_last, is_weighted
from pyro_compress.graph.statistics import foldable_norms
from pyro_compress.pcn import gate
from pyro_compress.types import Graph, Node, Quantized

LEVELS = 127
"""Code of the largest bias, where nothing coarser is known to do."""
SCALE_LEVELS = 4
"""Scales of channels are rounded so many times as finely: what they multiply is large where they are small."""
CONSTANT = 1e-6
"""A channel of less variance than this share of batch norm's eps comes out with a spread of 0.001 at most."""


def packed(
    graph: Graph, tensors: Mapping[str, Tensor], steps: Mapping[str, float], levels: int = LEVELS,
    names: Collection[str] | None = None,
) -> dict[str, Quantized | np.ndarray]:  # fmt: skip
    """Tensors as integers; float32 where values are too far apart for one step.

    Args:
        graph: the network.
        tensors: its tensors; those with a step are multiples of it already, or are rounded to one.
        steps: of the weights, and of biases that were trained on a grid.
        levels: code of the largest bias, and of the typical value of every other vector.
        names: of those that are wanted; None: all.
    """
    biases = {node.parameters["bias"] for node in graph.nodes if is_weighted(node.op) and "bias" in node.parameters}
    scales = {node.parameters["weight"] for node in foldable_norms(graph)}
    statistics = (node.parameters[role] for node in foldable_norms(graph) for role in STATISTICS_ROLES)
    known: dict[str, float | None] = {
        node.parameters[role]: None for node in graph.nodes if has_statistics(node.op) for role in STATISTICS_ROLES
    }
    whole = {name: 1.0 for name in whole_tensors(graph)}
    known |= {name: 1.0 for name in statistics} | dict(steps) | whole
    found: dict[str, Quantized | np.ndarray] = {}
    for name, tensor in folded(graph, tensors).items():
        if names is not None and name not in names:
            continue
        if name in known:
            step = known[name]
        elif name in biases:
            step = bias_step(tensor, levels)
        else:
            step = vector_step(tensor, levels * SCALE_LEVELS if name in scales else levels)
        found[name] = tensor.numpy() if step is None else quantize(tensor, step)
    return found


def before_folding(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[Graph, dict[str, Tensor]] | None:
    """What `folded` changes, to be held against it later (`Compressed.unfolded`); None where it changes nothing.

    Weights are left out: folding leaves them alone, and the file has them.
    """
    if all(node.op != "batch_norm" for node in graph.nodes):
        return None
    weights = {node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)}
    return graph, {name: tensor for name, tensor in tensors.items() if name not in weights}


def folded(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with batch norm's means 0 and variances 1; in evaluation the network computes the same.

    The bias of a layer that batch norm alone reads goes into its shift, where both have the same channels. Channels
    whose weights are all 0 are constant; any other may vary, however little it did over the examples that the
    statistics were taken from. Batch norm without scale and shift of its own stays as it is.
    """
    found, ranks = dict(tensors), _ranks(graph, tensors)
    for node in foldable_norms(graph):
        p, eps = node.parameters, node.attributes["eps"]
        weight, bias, mean, variance = (
            tensors[p[role]].double() for role in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / (variance + eps).sqrt()
        if (dead := _without_weights(graph, node, tensors, ranks)) is not None:
            scale = torch.where((variance < CONSTANT * eps) & dead, 0.0, scale)
        shift = bias - mean * scale
        if before := _bias_for_it_alone(graph, node, ranks):
            shift = shift + scale * tensors[before].double()
            found[before] = torch.zeros_like(tensors[before])
        found[p["weight"]], found[p["bias"]] = (scale * math.sqrt(1 + eps)).float(), shift.float()
        found[p["running_mean"]], found[p["running_var"]] = torch.zeros(len(mean)), torch.ones(len(mean))
    return found


def _without_weights(graph: Graph, norm: Node, tensors: Mapping[str, Tensor], ranks: list[int]) -> Tensor | None:
    """Which channels of the layer before batch norm have no weight but 0, `(channels,)`; None where it is no layer."""
    (source,) = norm.inputs
    layer = graph.nodes[source]
    weight = tensors.get(layer.parameters["weight"]) if is_weighted(layer.op) else None
    elsewhere = is_last(layer.op) and ranks[source] != 2  # on sequences a linear layer's axis is the last
    if weight is None or elsewhere or len(weight) != len(tensors[norm.parameters["weight"]]):
        return None
    return (weight == 0).flatten(1).all(1)


def vector_step(values: Tensor, levels: int) -> float | None:
    """Step that puts the typical value (the median of those that are not 0) at code `levels`.

    Returns:
        None where the largest value would be too many steps away.
    """
    sizes = values[values != 0].abs()
    if not len(sizes):
        return 1.0
    step = snapped(float(sizes.median()) / levels)
    return step if float(sizes.max()) / step < MAX_CODE - 1 else None


def _bias_for_it_alone(graph: Graph, norm: Node, ranks: list[int]) -> str | None:
    """Name of the bias of the layer before batch norm, if these two meet nobody else and lie on the same axis."""
    (source,) = norm.inputs
    layer = graph.nodes[source]
    name = layer.parameters.get("bias") if is_weighted(layer.op) else None
    if name is None or (is_last(layer.op) and ranks[source] != 2):  # on sequences a linear layer's axis is the last
        return None
    readers = sum(node.inputs.count(source) for node in graph.nodes)
    uses = sum(node.parameters == norm.parameters for node in graph.nodes)
    biases = sum(name in node.parameters.values() for node in graph.nodes)
    return name if readers == uses == biases == 1 else None


def _ranks(graph: Graph, tensors: Mapping[str, Tensor]) -> list[int]:
    """Number of dimensions of every node's value, the batch included; nothing is computed."""
    if not any(has_statistics(node.op) for node in graph.nodes):
        return []
    plan = gate.check(graph, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, gate.UNLIMITED)
    return [1 + len(shape) for shape in plan.shapes]
