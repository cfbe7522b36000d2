"""What a network returns, as the data have it: one column per class or target."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pyro_compress.graph.checked import evaluating, examples
from pyro_compress.types import Graph, Node

ENDS = ("softmax", "sigmoid")
"""Operations that turn what a classifier should return into probabilities."""


def with_columns(net: nn.Module, input_shape: tuple[int, ...], outputs: int, kind: str = "float32") -> nn.Module:
    """A network of one output that returns `(n,)`, as one that returns `(n, 1)`; any other as it is.

    Beside targets `(n, 1)`, outputs `(n,)` would be compared each with each.

    Args:
        net: stays as it is; the result shares its tensors.
        input_shape: shape of one example.
        outputs: how many the data ask for.
        kind: type of its inputs, as `Graph.kind`.
    """
    if outputs != 1:
        return net
    try:
        with evaluating(net), torch.random.fork_rng(), torch.no_grad():
            found = net(examples(net, Graph((Node("input"),), input_shape, kind), 2))
    except Exception:  # whatever is wrong with it, capturing it says so
        return net
    if not isinstance(found, Tensor) or found.shape != (2,):
        return net
    plain: type[nn.Module] = type(net)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        one: Tensor = plain.forward(self, x)
        return one.reshape(x.shape[0], 1)

    column = copy.copy(net)
    column.__class__ = type(f"Column{plain.__name__}", (plain,), {"forward": forward})
    return column


def doubtful_end(graph: Graph, task: str) -> str:
    """What is doubtful about the last operation of a classifier; empty if nothing is."""
    last = graph.nodes[-1]
    while last.op == "reshape":
        last = graph.nodes[last.inputs[0]]
    if task != "classification" or last.op not in ENDS:
        return ""
    return (
        f"the network ends in a {last.op}, and its outputs are taken for logits, of which another softmax is taken: "
        f"leave the {last.op} out"
    )
