"""Networks from outside while they run: in parts that fit into memory, to outputs that are numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_compress.graph.ir import lookups
from pyro_compress.inputs import Input
from pyro_compress.outputs import outputs_of
from pyro_compress.pcn.gate import Plan
from pyro_compress.types import Data, Graph

MAY_HAVE_MORE = ("classification", "next-token", "tagging", "segmentation")
"""Tasks whose networks may know classes that the data do not show."""
THINGS = {"regression": "targets", "multi-label": "labels", "reconstruction": "values"}
"""Task -> what a network has an output for; of others classes."""
READ = {"float32": "numbers", "int64": "tokens (whole numbers)"}
"""What inputs of a type are called."""
HELD_VALUES = 1 << 28
"""Values that a run holds at a time, unless a single example holds more: a gibibyte."""


def bounded(predict: Callable[[Tensor], Tensor], plan: Plan) -> Callable[[Tensor], Tensor]:
    """The same function, which works off large batches part by part, and refuses to return what is no number.

    Args:
        predict: inputs -> outputs.
        plan: what is known of the network behind it.
    """
    most = max(1, HELD_VALUES // plan.peak)

    def run(x: Tensor) -> Tensor:
        try:
            outputs = torch.cat([predict(part) for part in x.split(most)])
        except IndexError as error:
            raise ValueError("the inputs name tokens that the network has no row for in its table") from error
        if broken := int((~outputs.isfinite()).flatten(1).any(1).sum()):
            raise ValueError(
                f"the network's outputs are not finite (NaN or infinity) for {broken} of {len(x)} examples"
            )
        return outputs

    return run


def check_inputs(graph: Graph, shape: tuple[int, ...], kind: str, data: str, inputs: tuple[Input, ...] = ()) -> None:
    """Check that examples are what a network reads.

    Args:
        graph: the network.
        shape: of one example.
        kind: type of its values, as `Graph.kind`.
        data: name of the data, for the message.
        inputs: of several, what lies in a row.

    Raises:
        ValueError: they have other inputs or another shape, or are numbers where it reads tokens, or the other way
            round.
    """
    if inputs != graph.inputs:
        both = [", ".join(f"{one.name} {one.shape} {one.kind}" for one in each) for each in (inputs, graph.inputs)]
        raise ValueError(f"{data}: examples are {both[0] or 'one array'}; this network takes {both[1] or 'one array'}")
    if not graph.fits(shape):
        raise ValueError(f"{data}: one example has shape {shape}; this network takes {graph.takes}")
    if kind != graph.kind:
        both = [READ.get(each, each) for each in (kind, graph.kind)]
        raise ValueError(f"{data}: examples are {both[0]}; this network reads {both[1]}")


def check_tokens(graph: Graph, tensors: Mapping[str, Tensor], x: Tensor, what: str) -> None:
    """Check that every token has its row in the table that it is looked up in.

    Args:
        graph: the network.
        tensors: its own.
        x: examples; what stays on disk is not looked at.
        what: names them in messages.

    Raises:
        ValueError: one has none.
    """
    for name, where in lookups(graph).items():
        tokens, rows = x[:, where] if isinstance(where, slice) else x, len(tensors[name])
        if isinstance(x, Tensor) and tokens.numel() and not 0 <= tokens.min() <= tokens.max() < rows:
            raise ValueError(
                f"{what}: tokens from {int(tokens.min())} to {int(tokens.max())}; the network's table {name} has rows "
                f"for 0 to {rows - 1}"
            )


def check_outputs(plan: Plan, wanted: int | tuple[int, ...], task: str, data: str) -> None:
    """Check that a network gives one value per class (or more), or one per target, at every position.

    Args:
        plan: what is known of the network.
        wanted: classes or targets of the data, or the shape of one example's outputs.
        task: of the data.
        data: their name, for the message.

    Raises:
        ValueError: it does not.
    """
    got, shape = plan.output, (wanted,) if isinstance(wanted, int) else tuple(wanted)
    more = task in MAY_HAVE_MORE and got[:1] >= shape[:1]
    if got[1:] != shape[1:] or len(got) != len(shape) or (got[0] != shape[0] and not more):
        kind = THINGS.get(task, "classes")
        outputs = f"{shape[0]} {kind}" if len(shape) == 1 else f"outputs of shape {shape}"
        raise ValueError(f"{data} has {outputs}; this network gives outputs of shape {got}")


def shape_of(examples: Data, task: str) -> tuple[int, ...]:
    """Shape of one example's outputs that examples of unknown origin ask for at least."""
    if task == "reconstruction":
        return tuple(examples.x.shape[1:])
    if outputs := outputs_of(task):
        return (outputs.size,)
    y = examples.y
    return (y.shape[1],) if task == "multi-label" else (int(y.max()) + 1, *y.shape[1:])


def shown(y: Tensor) -> tuple[int, str]:
    """How many classes or targets examples of unknown origin show, and their task."""
    if y.dim() > 1:
        return y.shape[1], "regression"
    return (int(y.max()) + 1 if len(y) else 0), "classification"
