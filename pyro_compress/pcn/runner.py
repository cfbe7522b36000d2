"""Runs a decoded network with numpy alone: the path by which every written file is checked, independent of torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyro_compress.graph.operations.row import Parameters
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.pcn.file import dense, plan_of, shapes_of
from pyro_compress.pcn.gate import check
from pyro_compress.types import Compressed, count

BATCH_VALUES = 1 << 18
"""Input values that are run at a time, at least one example: a convolution holds a hundred times as many."""
HELD_VALUES = 1 << 26
"""Values that a run holds at a time, unless a single example holds more."""


def run(network: Compressed, x: np.ndarray, batch: int | None = None) -> np.ndarray:
    """Outputs of the network for inputs `(n, *input_shape)` of its graph's kind; `batch` of them at a time.

    Sequences may be shorter, where the graph takes shorter ones (`Graph.least`).

    Raises:
        ValueError: inputs of another shape, an operation that is not known, shapes that do not fit, or outputs that
            are no numbers.
    """
    graph = network.graph.at(x.shape[1:])
    plan = plan_of(network) if graph is network.graph else check(graph, shapes_of(network))
    network = replace(network, graph=graph)
    batch = batch or max(1, min(BATCH_VALUES // count(network.graph.input_shape), HELD_VALUES // plan.peak))
    tensors = {name: dense(tensor) for name, tensor in network.tensors.items()}
    with np.errstate(all="ignore"):  # what is no number at the end is said there
        parts = [_run(network, tensors, x[i : i + batch].astype(network.graph.kind)) for i in range(0, len(x), batch)]
    outputs = np.concatenate(parts)
    if broken := int((~np.isfinite(outputs.reshape(len(x), -1))).any(1).sum()):
        raise ValueError(f"{broken} of {len(x)} examples have outputs that are not finite (NaN or infinity)")
    return outputs


def _run(network: Compressed, tensors: Parameters, x: np.ndarray) -> np.ndarray:
    values, finished = {0: x}, network.graph.finished
    for index, node in enumerate(network.graph.nodes[1:], 1):
        if node.op not in OPERATIONS:
            raise ValueError(f"unknown operation {node.op!r}; known: {', '.join(OPERATIONS)}")
        parameters = {role: tensors[name] for role, name in node.parameters.items()}
        values[index] = OPERATIONS[node.op].run(*(values[i] for i in node.inputs), parameters, node.attributes)
        for i in finished[index]:
            del values[i]
    return values[len(network.graph.nodes) - 1]
