"""Runs a decoded network with numpy alone: the path by which every written file is checked, independent of torch."""

from __future__ import annotations

import numpy as np

from pyro_compress.pcn.file import dense
from pyro_compress.pcn.operations import RUN, Parameters
from pyro_compress.types import Compressed, count

BATCH_VALUES = 1 << 18
"""Input values that are run at a time, at least one example: a convolution holds a hundred times as many."""


def run(network: Compressed, x: np.ndarray, batch: int | None = None) -> np.ndarray:
    """Outputs of the network for inputs `(n, *input_shape)`, float32; `batch` of them at a time.

    Raises:
        ValueError: inputs of another shape, an operation that is not known, or shapes that do not fit.
    """
    if x.shape[1:] != network.graph.input_shape:
        raise ValueError(f"inputs of shape {x.shape[1:]}; this network takes {network.graph.input_shape}")
    batch = batch or max(1, BATCH_VALUES // count(network.graph.input_shape))
    tensors = {name: dense(tensor) for name, tensor in network.tensors.items()}
    parts = [_run(network, tensors, x[i : i + batch].astype(np.float32)) for i in range(0, len(x), batch)]
    return np.concatenate(parts)


def _run(network: Compressed, tensors: Parameters, x: np.ndarray) -> np.ndarray:
    values, finished = {0: x}, network.graph.finished
    for index, node in enumerate(network.graph.nodes[1:], 1):
        if node.op not in RUN:
            raise ValueError(f"unknown operation {node.op!r}; known: {', '.join(RUN)}")
        parameters = {role: tensors[name] for role, name in node.parameters.items()}
        values[index] = RUN[node.op](*(values[i] for i in node.inputs), parameters, node.attributes)
        for i in finished[index]:
            del values[i]
    return values[len(network.graph.nodes) - 1]
