"""The table: what torch makes of every operation, by name; and what it calls things that do nothing here."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.operations import table
from pyro_compress.graph.operations.row import Operation
from pyro_compress.graph.rules import (
    kept,
    layers,
    moves,
    norms,
    pools,
    reductions,
    resizing,
    sequences,
    several,
    single,
)
from pyro_compress.graph.rules.row import PartReader, Reader, Rule
from pyro_compress.types import Node

RULES: dict[str, Rule] = (
    layers.RULES
    | single.RULES
    | norms.RULES
    | pools.RULES
    | moves.RULES
    | resizing.RULES
    | several.RULES
    | reductions.RULES
    | sequences.RULES
    | kept.RULES
)


def _same(*without_effect: str) -> Reader:
    """What changes no value; a change of type shows in the type of its output."""

    def read(call: Call) -> Parsed:
        call.without_effect(*without_effect)
        before, after = call.first.meta["val"].dtype, call.node.meta["val"].dtype
        return TYPED.get((before, after), "identity"), [call.first], {}, {}

    return read


def _dropout(call: Call) -> Parsed:
    rate, train = call["p"], call["train"]
    if rate and train:
        raise ValueError("it drops values in evaluation mode too; give it training=self.training")
    return "identity", [call.first], {}, {}


TYPED = {(torch.float32, torch.int64): "whole", (torch.float32, torch.bool): "truth"}
"""Types before and after -> the operation that turns the one into the other."""
NOTHING: dict[str, Reader] = {
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "alias": _same(),
    "detach": _same(),
    "contiguous": _same("memory_format"),
    "clone": _same("memory_format"),
    "to": _same("dtype", "layout", "device", "other", "pin_memory", "non_blocking", "copy", "memory_format"),
    "_to_copy": _same("dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format"),
    "type_as": _same("other"),
}
"""What `torch.export` calls operations that compute nothing in evaluation mode."""


def readers() -> dict[str, Reader]:
    """What `torch.export` calls an operation of one value -> reader."""
    return NOTHING | {name: reader for rule in RULES.values() for name, reader in rule.reads.items()}


def part_readers() -> dict[str, PartReader]:
    """What it calls one of several values -> reader."""
    return {name: reader for rule in RULES.values() for name, reader in rule.parts.items()}


def register(name: str, row: Operation, rule: Rule) -> None:
    """Add an operation from outside of this package; from then on all that reads the table knows it.

    Args:
        name: of the operation in graphs and files.
        row: what it is without torch.
        rule: what torch makes of it.

    Raises:
        ValueError: there is an operation of that name already.
    """
    table.register(name, row)
    RULES[name] = rule


def run_node(node: Node, inputs: list[Tensor], parameters: dict[str, Tensor]) -> Tensor:
    """Apply one operation to its inputs, given its parameters by role."""
    return RULES[node.op].run(*inputs, parameters, node.attributes)
