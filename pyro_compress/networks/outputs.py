"""What a network returns, as the data have it: a column per class or target, classes before positions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_compress.graph.checked import evaluating, examples
from pyro_compress.networks.spelling import plainly_named
from pyro_compress.outputs import Outputs
from pyro_compress.types import Graph, Node

ENDS = ("softmax", "sigmoid")
"""Operations that turn what a classifier should return into probabilities."""


def with_one_output(net: nn.Module, outputs: Outputs | None) -> nn.Module:
    """A network that gives its outputs one behind the other, where it returns a dict of them; else itself.

    Args:
        net: stays as it is; the result shares its tensors.
        outputs: what the data have labels for; None: one output.
    """
    if outputs is None:
        return net
    plain: type[nn.Module] = type(net)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return joined(plain.forward(self, x), outputs)

    whole = copy.copy(net)
    whole.__class__ = type(f"Joined{plain.__name__}", (plain,), {"forward": forward})
    return whole


def joined(found: Any, outputs: Outputs) -> Tensor:
    """What a network returns as rows `(n, values)`.

    Raises:
        ValueError: it is neither that nor a dict of what the data have labels for, or one has another size.
    """
    if isinstance(found, Tensor):
        return found
    names = ", ".join(one.name for one in outputs.each)
    if not isinstance(found, Mapping):
        raise ValueError(f"forward returns a {type(found).__name__}; the data have labels for {names}: return a dict")
    if {*found} != {one.name for one in outputs.each}:
        raise ValueError(f"forward returns {', '.join(map(str, found))}; the data have labels for {names}")
    for one in outputs.each:
        if (size := math.prod(found[one.name].shape[1:])) != one.size:
            raise ValueError(f"forward returns {one.name} with {size} values; the data want {one.size} ({one.task})")
    return torch.cat([found[one.name].reshape(-1, one.size).float() for one in outputs.each], 1)


def with_columns(
    net: nn.Module, input_shape: tuple[int, ...], outputs: int | tuple[int, ...], kind: str = "float32"
) -> nn.Module:
    """A network whose outputs have the shape that the data ask for, where theirs stands for the same.

    Those are `(n,)` for `(n, 1)`; one logit, `(n,)` or `(n, 1)`, for two classes, as the logits `(0, f)`, which are the
    same Bernoulli; classes that come last, `(n, *positions, classes)`; and values in another order of axes or flat,
    where an autoencoder returns as many as it was given. Any other network is returned as it is, but for names of
    modules that no file may hold (`plainly_named`).

    Args:
        net: stays as it is; the result shares its tensors.
        input_shape: shape of one example.
        outputs: shape of one example's outputs that the data ask for, or how many.
        kind: type of its inputs, as `Graph.kind`.

    Raises:
        ValueError: it cannot be told on which axis the classes are.
    """
    net = plainly_named(net)
    wanted = (outputs,) if isinstance(outputs, int) else tuple(outputs)
    try:
        with evaluating(net), torch.random.fork_rng(), torch.no_grad():
            found = net(examples(net, Graph((Node("input"),), input_shape, kind), 2))
    except Exception:  # whatever is wrong with it, capturing it says so
        return net
    if not isinstance(found, Tensor) or (turned := _turned(tuple(found.shape[1:]), wanted, input_shape)) is None:
        return net
    plain: type[nn.Module] = type(net)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return turned(plain.forward(self, x))

    column = copy.copy(net)
    column.__class__ = type(f"Column{plain.__name__}", (plain,), {"forward": forward})
    return column


def _turned(
    found: tuple[int, ...], wanted: tuple[int, ...], input_shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor] | None:
    """What turns outputs of one shape into those of another; None: nothing has to, or nothing can."""
    last = (*wanted[1:], wanted[0])
    if len(wanted) > 1 and wanted != input_shape and found == wanted == last:
        raise ValueError(
            f"outputs of shape {found}: whether classes or positions come first cannot be told, as there are as many; "
            "choose another --context"
        )
    if found == wanted:
        return None
    if wanted == (2,) and found in ((), (1,)):
        return lambda one: F.pad(one.reshape(one.shape[0], 1), (1, 0))
    if len(wanted) > 1 and found == last:
        return lambda outputs: outputs.permute(0, outputs.dim() - 1, *range(1, outputs.dim() - 1))
    if (found, wanted) == ((), (1,)) or (wanted == input_shape and math.prod(found) == math.prod(wanted)):
        return lambda outputs: outputs.reshape(outputs.shape[0], *wanted)
    return None


def doubtful_end(graph: Graph, task: str) -> str:
    """What is doubtful about the last operation of a classifier; empty if nothing is."""
    last = graph.nodes[-1]
    while last.op == "reshape":
        last = graph.nodes[last.inputs[0]]
    if task == "multi-label" and last.op == "sigmoid":
        return (
            "the network ends in a sigmoid, and its outputs are taken for logits, of which another sigmoid is taken: "
            "leave the sigmoid out"
        )
    if task in ("regression", "reconstruction", "multi-label") or last.op not in ENDS:
        return ""
    return (
        f"the network ends in a {last.op}, and its outputs are taken for logits, of which another softmax is taken: "
        f"leave the {last.op} out"
    )
