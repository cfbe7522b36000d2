"""What torch makes of an operation: a row of `table.RULES`, beside the one of `graph.operations` that knows no torch.

A reader takes a call of an exported graph and tells the operation, the nodes it reads, its tensors by role, and its
attributes; the batch dimension is in none of them. `identity` stands for what does nothing in evaluation mode. An
operation in place is read as the one of the same name without an underscore. An operation that gives several values is
read once for each that is used. Whatever argument a reader does not look at must be its default (`calls.Call`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces.c import Face
from pyro_compress.graph.faces.onnx import Place

Reader = Callable[[Call], Parsed]
PartReader = Callable[[Call, int], Parsed]


@dataclass(frozen=True)
class Rule:
    """An operation's torch side.

    Attributes:
        run: `(inputs..., parameters, attributes) -> value` in torch; it must run where gradients are taken.
        reads: what `torch.export` calls it -> reader.
        parts: the same, for what gives several values.
        onnx: its nodes; None: it cannot be exported to ONNX.
        c: its loop nest; None: it cannot be exported to C.
    """

    run: Callable[..., Tensor]
    reads: Mapping[str, Reader] = field(default_factory=dict)
    parts: Mapping[str, PartReader] = field(default_factory=dict)
    onnx: Place | None = None
    c: Face | None = None


def elementwise(op: str) -> Reader:
    """An operation without attributes on one value."""
    return lambda call: (op, [call["self"]], {}, {})


def each(value: int | list[int], rank: int) -> list[int]:
    """A number per dimension, where one may stand for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def check_rank(call: Call, rank: int) -> None:
    """Refuse values without a batch dimension.

    Raises:
        ValueError: another number of dimensions.
    """
    if len(call.before) != rank + 2:
        raise ValueError(
            f"supported for values (batch, channels, ...) of {rank + 2} dimensions, got {len(call.before)}"
        )


def refuse_places(part: int) -> None:
    """Of an operation that tells values and their places, refuse the places.

    Raises:
        ValueError: it is asked for them.
    """
    if part:
        raise ValueError("the places of the largest values are not supported")


def is_number(value: Any) -> bool:
    """Whether an argument is a plain number."""
    return isinstance(value, int | float)
