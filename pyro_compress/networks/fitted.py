"""What every fit begins with: a network as its data have it, and its graph."""

from __future__ import annotations

from torch import nn

from pyro_compress.graph.capture import capture
from pyro_compress.graph.packing import with_one_input
from pyro_compress.metrics import SPLITS, examples_of
from pyro_compress.networks.bounded import check_tokens
from pyro_compress.networks.outputs import with_columns, with_one_output
from pyro_compress.outputs import outputs_of
from pyro_compress.types import Graph, Splits


def with_graph(net: nn.Module, splits: Splits) -> tuple[nn.Module, Graph]:
    """A network that takes and returns what the data have, and its graph; the given one stays as it is.

    Raises:
        ValueError: what `capture` refuses, other inputs than the data's, tokens without a row in their table.
    """
    net = shaped(net, splits)
    graph = capture(net, splits.input_shape, splits.output_shape, kind=splits.kind)
    check_all_tokens(net, graph, splits)
    return net, graph


def frozen_of(net: nn.Module) -> set[str]:
    """Names of the parameters that no training may change (`requires_grad=False`), of shared ones all."""
    return {name for name, one in net.named_parameters(remove_duplicate=False) if not one.requires_grad}


def check_trainable(net: nn.Module) -> None:
    """Refuse a network that no training may change.

    Raises:
        ValueError: it has parameters, and all of them are frozen.
    """
    if any(True for _ in net.parameters()) and not any(one.requires_grad for one in net.parameters()):
        raise ValueError(
            "every parameter of the network is frozen (requires_grad=False), so there is nothing to fit: unfreeze "
            "some; weights that are to stay as they are go to compress as they are"
        )


def check_all_tokens(net: nn.Module, graph: Graph, splits: Splits) -> None:
    """Refuse tokens without a row in their table; of the test split it is asked whether it can be read, nothing else.

    Raises:
        ValueError: as said.
    """
    for name in SPLITS:
        check_tokens(graph, net.state_dict(), examples_of(splits, name).x, f"{name} examples")


def shaped(net: nn.Module, splits: Splits) -> nn.Module:
    """A network that takes and returns what the data have; the given one stays as it is.

    Raises:
        ValueError: other inputs than the data's, tensors without values.
    """
    if any(tensor.is_meta for tensor in net.state_dict().values()):
        raise ValueError("tensors of the network are on the meta device, without values: load its weights first")
    net = with_one_output(with_one_input(net, splits.inputs), outputs_of(splits.task))
    return with_columns(net, splits.input_shape, splits.output_shape, splits.kind)
