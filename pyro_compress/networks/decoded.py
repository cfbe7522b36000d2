"""The network of a compressed file, to go on training: its architecture, or its architecture and its weights."""

from __future__ import annotations

import math
import operator
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_compress.foreign import ordinary
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.networks.layered import Layered
from pyro_compress.pcn import file
from pyro_compress.types import Compressed

SUFFIX = ".pcn"


def decoded_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its name in the network, in float32; what was pruned is zero.

    Raises:
        ValueError: not such a file, or a damaged one.
    """
    return _tensors(_read(path))


def decoded_net(path: Path, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A file's network with new random weights, in torch's own layers and under the file's names.

    Every layer starts as torch starts it, norms at the identity. What belongs to no layer (a class token,
    positions) keeps the file's values.

    Args:
        path: the file.
        input_shape: shape of one example of the data.
        outputs: how many they ask for; at every position, where each has a class.

    Raises:
        ValueError: not such a file, a damaged one, or a network for other data.
    """
    found = _read(path)
    if found.graph.input_shape != tuple(input_shape):
        raise ValueError(f"{path} takes inputs of shape {found.graph.input_shape}, the data have {tuple(input_shape)}")
    net = Layered(found.graph, _tensors(found))
    try:
        with torch.no_grad():
            made = tuple(net.eval()(torch.zeros(1, *input_shape, dtype=getattr(torch, found.graph.kind))).shape)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{path} holds no network that runs: {' '.join(str(error).split())}") from error
    if made[1:2] != (outputs,) and math.prod(made) != outputs:  # classes before positions, or as many values
        raise ValueError(f"{path} gives outputs of shape {made[1:]}, the data ask for {outputs}")
    _restart(net)
    return net.train()


def compressed_bytes(path: Path) -> bytes:
    """A file as it is.

    Raises:
        ValueError: there is none.
    """
    _check(path)
    return path.read_bytes()


def parameters_before(path: Path) -> int | None:
    """Values of the network that a file was made from, where it says so."""
    total = _read(path).meta.get("parameters_total")
    return total if isinstance(total, int) and total > 0 else None


def _restart(net: Layered) -> None:
    for node, path in zip(net._captured_graph.nodes, net._captured_paths, strict=True):
        if path:
            net.get_submodule(path).reset_parameters()  # type: ignore[operator]
        elif node.op in OPERATIONS:
            for role, value in OPERATIONS[node.op].starts.items():
                if role in node.parameters:
                    nn.init.constant_(operator.attrgetter(node.parameters[role])(net), value)


def _read(path: Path) -> Compressed:
    _check(path)
    return file.read(path)


def _check(path: Path) -> None:
    if not ordinary(path).is_file():
        raise ValueError(f"{path}: there is no such file")


def _tensors(found: Compressed) -> dict[str, Tensor]:
    """Values that are read as they are (a class token, positions) in the shape in which they meet a batch."""
    tensors = {name: torch.from_numpy(file.dense(tensor)).clone() for name, tensor in found.tensors.items()}
    for node in found.graph.nodes:
        if "value" in node.parameters:
            name = node.parameters["value"]
            tensors[name] = tensors[name].reshape(1, *node.attributes["shape"])
    return tensors
