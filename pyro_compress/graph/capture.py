"""A module -> `Graph`: `torch.export` reads it, and module and graph are compared before anybody trusts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from pyro_compress.graph.checked import compare, compare_training, exported, refuse_unsupported
from pyro_compress.graph.keeping import refuse_rounded
from pyro_compress.graph.lengths import with_lengths
from pyro_compress.graph.operations.kept import whole_tensors
from pyro_compress.graph.packing import inputs_in, with_one_input
from pyro_compress.graph.reading import read
from pyro_compress.graph.rules.table import run_node
from pyro_compress.inputs import inputs_of, size_of
from pyro_compress.pcn import gate
from pyro_compress.types import Graph


def capture(
    net: nn.Module, input_shape: tuple[int, ...] | Mapping[str, Any], outputs: int | tuple[int, ...] | None = None,
    trained: bool = True, kind: str = "float32",
) -> Graph:  # fmt: skip
    """Read a network's operations, in evaluation mode, with a free batch dimension, and compare the two.

    Args:
        net: the network; it stays as it is.
        input_shape: shape of one example; of several inputs `{name: shape}` or `{name: (shape, kind)}`, by the names
            that `forward` gives them, with kind one of `float32`, `int64`, `bool`: the graph takes them packed in one
            row (`pyro_compress.inputs`).
        outputs: how many the data ask for, or the shape of one example's; None: any.
        trained: whether the network itself is to be trained, and must return the same shape in training mode.
        kind: type of the inputs: `float32`, or `int64` for numbers of words.

    Raises:
        ValueError: the network cannot be exported, uses an operation that is not supported, computes something else
            than what was read (operation and module path are named), or is none that a file could hold.
    """
    if isinstance(input_shape, Mapping):
        net = with_one_input(net, inputs_of(input_shape))
    inputs = inputs_in(net)
    shape = (size_of(inputs),) if inputs else cast(tuple[int, ...], tuple(input_shape))
    refuse_unsupported(net)
    found = read(exported(net, shape, kind), shape, kind)
    found = replace(found, graph=replace(found.graph, inputs=inputs))
    used = _used(net, found.graph)
    whole = whole_tensors(found.graph)
    for name, tensor in used:
        if name in whole:
            refuse_rounded(name, tensor)
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ValueError(f"{name} holds values that are no numbers (NaN), which no file can hold")
    gate.check(found.graph, {name: tuple(tensor.shape) for name, tensor in used}, gate.UNLIMITED)
    compare(net, found, run_node, (outputs,) if isinstance(outputs, int) else outputs)
    if trained:
        compare_training(net, found.graph)
    return with_lengths(net, found.graph)


def _used(net: nn.Module, graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors of a network that a graph names, all under those names."""
    held = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    return [(name, held[name]) for node in graph.nodes for name in node.parameters.values()]
