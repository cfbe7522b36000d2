"""A call of an exported program -> a node that torch runs as it is, where `graph.operations.kept` allows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pyro_compress.graph.operations.kept import LEFT_OUT, MOST, MOST_EXACT, NAMES
from pyro_compress.graph.operations.row import BATCHES, KINDS, Value
from pyro_compress.types import Node

Located = Callable[[fx.Node], int | None]
"""Index of the node that computes a value; None: it is a tensor of the network."""
Named = Callable[[fx.Node], tuple[str, tuple[int, ...]]]
"""Name of the tensor of the network that a value is, and its shape there."""
Literal = Callable[[fx.Node], Tensor | None]
"""Values that forward writes down, where a value is that."""


def name_of(target: Any) -> str | None:
    """What `NAMES` calls an operation; None where it is none that may be kept."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = f"{target._schema.name.rpartition('::')[2]}.{target._overloadname}"
    return name if name in NAMES else None


def value_of(found: Tensor) -> Value:
    """The shape of a value for two batches, and its type.

    Raises:
        ValueError: a type that no value may have, or a size that depends on more than the batch.
    """
    kind = str(found.dtype).removeprefix("torch.")
    if kind not in KINDS:
        raise ValueError(f"it computes in {kind}; networks are float32")
    two, three = (tuple(size_at(size, batch) for size in found.shape) for batch in BATCHES)
    return Value((two, three), kind)


def size_at(size: Any, batch: int) -> int:
    """A size that may depend on the batch, for a batch of a given size.

    Raises:
        ValueError: it depends on the values of the input.
    """
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = list(expression.free_symbols)
    if len(symbols) > 1 or any(not str(symbol).startswith("s") for symbol in symbols):
        raise ValueError("its shape depends on the values of its input")
    return int(expression.subs(dict.fromkeys(symbols, batch)))


class Keeping:
    """Makes one node of a call.

    Args:
        located: where values are.
        named: which tensors they are.
        literal: which values are written down.
    """

    def __init__(self, located: Located, named: Named, literal: Literal):
        self.located, self.named, self.literal = located, named, literal
        self.inputs: list[int] = []
        self.parameters: dict[str, str] = {}
        self.batch = False

    def node(self, source: fx.Node, part: list[int]) -> Node:
        """The call as a node.

        Raises:
            ValueError: it may not be kept, or has arguments that cannot be written down.
        """
        name = name_of(source.target)
        if name is None:
            raise ValueError("it is no functional operation of torch that may be kept")
        given = [self.as_json(value) for value in source.args]
        names = [argument.name for argument in source.target._schema.arguments]  # type: ignore[union-attr]
        place = next((i for i, one in enumerate(names[: len(given)]) if one in LEFT_OUT), len(given))
        keywords = dict(zip(names[place:], given[place:], strict=False))
        keywords |= {key: self.as_json(value) for key, value in source.kwargs.items() if key not in LEFT_OUT}
        keywords = {key: value for key, value in keywords.items() if key not in LEFT_OUT}
        attributes: dict[str, Any] = {"call": name, "arguments": given[:place]}
        attributes |= {"keywords": keywords} if keywords else {}
        attributes |= {"part": part[0]} if part else {}
        if self.batch:
            attributes["batch"] = self.reads(0)
        return Node("aten", tuple(self.inputs), self.parameters, attributes)

    def reads(self, index: int) -> int:
        """Place of a node among those that are read."""
        if index not in self.inputs:
            self.inputs.append(index)
        return self.inputs.index(index)

    def as_json(self, value: Any) -> Any:
        """An argument as JSON."""
        if isinstance(value, fx.Node):
            return self.value_as_json(value)
        if isinstance(value, list | tuple):
            return [self.as_json(one) for one in value]
        if isinstance(value, torch.dtype):
            return {"kind": str(value).removeprefix("torch.")}
        if isinstance(value, float) and not math.isfinite(value):
            return {"number": str(value)}
        if isinstance(value, torch.device | torch.layout | torch.memory_format):
            return None
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ValueError(f"its argument {str(value)[:40]} cannot be written down")

    def value_as_json(self, value: fx.Node) -> Any:
        """A value, a tensor, values that are written down, or a size."""
        found = value.meta.get("val")
        if not isinstance(found, Tensor):
            return self.size_as_json(found)
        if (written := self.literal(value)) is not None:
            return self.literal_as_json(written)
        index = self.located(value)
        if index is not None:
            return {"value": self.reads(index)}
        name, own = self.named(value)
        role = next((role for role, other in self.parameters.items() if other == name), f"t{len(self.parameters)}")
        self.parameters[role] = name
        kind = value_of(found).kind
        shape = tuple(int(size) for size in found.shape)
        entry: dict[str, Any] = {"tensor": role}
        entry |= {"kind": kind} if kind != "float32" else {}
        return entry | ({"shape": list(shape)} if shape != own else {})

    def literal_as_json(self, written: Tensor) -> Any:
        """Values that forward writes down."""
        kind = str(written.dtype).removeprefix("torch.")
        if (
            kind not in KINDS
            or written.is_complex()
            or written.numel() > MOST
            or not bool(torch.isfinite(written.float()).all())
        ):
            raise ValueError("forward makes a tensor; make it in __init__, with register_buffer")
        return {"literal": written.flatten().tolist(), "kind": kind, "shape": list(written.shape)}

    def size_as_json(self, size: Any) -> Any:
        """A number, or a multiple of the batch plus a number."""
        if isinstance(size, int | float):
            return size
        if not isinstance(size, torch.SymInt):
            raise ValueError("it depends on the values of its input")
        two, three, four = (size_at(size, batch) for batch in (2, 3, 4))
        if four - three != three - two:
            raise ValueError("it depends on the batch in another way than a multiple of it")
        if three == two:
            return two
        self.batch = True
        return {"batch": three - two, "plus": two - 2 * (three - two)}


def refuse_rounded(name: str, tensor: Tensor) -> None:
    """Refuse whole numbers that float32, which tensors are stored in, does not hold.

    Raises:
        ValueError: with the tensor's name.
    """
    if not tensor.is_floating_point() and tensor.numel() and int(tensor.abs().max()) > MOST_EXACT:
        raise ValueError(f"{name} holds whole numbers beyond {MOST_EXACT}, which float32 does not hold")
