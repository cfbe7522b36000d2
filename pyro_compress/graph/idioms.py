"""What networks write in several operations and is one in a graph: entries picked in front of the batch, recurrence."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Protocol

from torch import fx

from pyro_compress.graph.calls import Call, axes_of
from pyro_compress.graph.keeping import name_of, value_of
from pyro_compress.graph.operations.row import Value
from pyro_compress.graph.operations.sequences import GATES
from pyro_compress.types import Node


class Nodes(Protocol):
    """What was read so far, as `reading` keeps it."""

    nodes: list[Node]
    flows: list[Value]

    def where(self, source: fx.Node) -> int | None:
        """Index of the node that computes a value."""

    def named(self, role: str, source: fx.Node) -> str:
        """Name of the tensor that a layer has in a role."""

    def add(self, node: Node) -> int:
        """Append a node; returns its index."""

    def append(self, fx_node: fx.Node, node: Node) -> None:
        """Append a node that gives what the program says."""

    def put(self, fx_node: fx.Node, index: int) -> None:
        """Note where a value is computed."""

    def forget(self, length: int) -> None:
        """Take back what was appended."""


def picked(reading: Nodes, fx_node: fx.Node, source: fx.Node, part: list[int], name: str) -> bool:
    """Read an entry of an axis that was moved in front of the batch, as attention picks queries, keys and values.

    Picked first and moved afterwards, the batch stays where it is.
    """
    moved = source.args[0] if source.args else None
    if name not in ("select", "unbind") or not isinstance(moved, fx.Node) or bool(part) != (name == "unbind"):
        return False
    axes = axes_of(moved)
    call = Call(source)
    if axes is None or call["dim"] != 0 or axes[0] == 0 or axes[1] != 0:
        return False
    whole = reading.where(moved.args[0])  # type: ignore[arg-type]
    if whole is None:
        return False
    axis, size = axes[0], reading.flows[whole].shape[axes[0] - 1]
    index = part[0] if part else int(call["index"]) % size
    order = [place - (place > axis) for place in axes[1:]]
    pick = Node("select", (whole,), {}, {"axis": axis, "index": index})
    if order == sorted(order):
        reading.append(fx_node, pick)
        return True
    before = reading.add(pick)
    try:
        reading.append(fx_node, Node("permute", (before,), {}, {"axes": order[1:]}))
    except ValueError:
        reading.forget(before)
        raise
    return True


def recurrent(reading: Nodes, fx_node: fx.Node, source: fx.Node, part: list[int], name: str) -> bool:
    """Read a recurrent layer that begins with zeros, batch first: a node per layer and direction.

    Of the last states, those that are picked layer by layer, as entries of the outputs.
    """
    layer = None
    if name == "select" and not part and isinstance(state := source.args[0], fx.Node):
        call = Call(source)
        if state.target is not operator.getitem or state.args[1] != 1 or call["dim"] != 0:
            return False
        layer, source, part = int(call["index"]), state.args[0], [0]  # type: ignore[assignment]
        name = str(source.target).removeprefix("aten.").partition(".")[0]
    if name not in GATES or part != [0] or name_of(source.target) is None:
        return False
    call = Call(source)
    call.without_effect("dropout", "train")  # it is read in evaluation mode
    states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
    zeros = all(str(state.target).startswith(("aten.zeros", "aten.new_zeros")) for state in states)
    one, both, layers = call["input"], bool(call["bidirectional"]), int(call["num_layers"])
    start = reading.where(one)
    if not zeros or not call["batch_first"] or start is None or (layer is not None and both):
        return False
    roles = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if call["has_biases"] else 2]
    given = [
        reading.named(role, tensor) for tensor, role in zip(call["params"], roles * layers * (1 + both), strict=True)
    ]
    wanted = layers if layer is None else range(layers)[layer] + 1
    before, value = len(reading.nodes), start
    try:
        for depth in range(wanted):
            made = []
            for way in range(1 + both):
                first = len(roles) * (depth * (1 + both) + way)
                tensors = dict(zip(roles, given[first : first + len(roles)], strict=True))
                made.append(reading.add(Node(name, (value,), tensors, {"reverse": True} if way else {})))
            value = reading.add(Node("concat", tuple(made), {}, {"axis": 2})) if both else made[0]
        if layer is not None:
            last = {"axis": 1, "index": reading.flows[value].shape[0] - 1}
            value = reading.add(Node("select", (value,), {}, last))
        if reading.flows[value] != value_of(fx_node.meta["val"]):
            raise ValueError("it gives another shape")
    except ValueError:
        reading.forget(before)
        raise
    reading.put(fx_node, value)
    return True


Idiom = Callable[[Nodes, fx.Node, fx.Node, list[int], str], bool]
"""(what was read so far, a value, its operation, which of several results, its name) -> whether it is one."""
IDIOMS: tuple[Idiom, ...] = (picked, recurrent)
