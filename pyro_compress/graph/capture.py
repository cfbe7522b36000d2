"""A module -> `Graph`: `torch.export` reads it, and module and graph are compared before anybody trusts it."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_compress.graph.checked import compare, compare_training, exported, refuse_unsupported
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.graph.reading import read
from pyro_compress.graph.rules.table import run_node
from pyro_compress.pcn import gate
from pyro_compress.types import Graph


def capture(net: nn.Module, input_shape: tuple[int, ...], outputs: int | None = None, trained: bool = True) -> Graph:
    """Read a network's operations, in evaluation mode, with a free batch dimension, and compare the two.

    Args:
        net: the network; it stays as it is.
        input_shape: shape of one example.
        outputs: how many the data ask for; None: any.
        trained: whether the network itself is to be trained, and must return the same shape in training mode.

    Raises:
        ValueError: the network cannot be exported, uses an operation that is not supported, computes something else
            than what was read (operation and module path are named), or is none that a file could hold.
    """
    refuse_unsupported(net)
    found = read(exported(net, input_shape), input_shape)
    used = [(node.op, role, name) for node in found.graph.nodes for role, name in node.parameters.items()]
    weights = [name for op, role, name in used if is_weighted(op) and role == "weight"]
    if twice := sorted({name for name in weights if [name for *_, name in used].count(name) > 1}):
        raise ValueError(f"{twice[0]} is used by several layers; networks that share weights are not supported")
    gate.check(found.graph, {name: tuple(tensor.shape) for name, tensor in _used(net, found.graph)}, gate.UNLIMITED)
    compare(net, found, run_node, outputs)
    if trained:
        compare_training(net, input_shape)
    return found.graph


def _used(net: nn.Module, graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors of a network that a graph names, all under those names."""
    held = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    return [(name, held[name]) for node in graph.nodes for name in node.parameters.values()]
