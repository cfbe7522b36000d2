"""Whether a node of a graph is what the row of its operation says: inputs, tensors, attributes. Nothing else passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_compress.graph.operations.row import Operation
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.pcn.names import shortened
from pyro_compress.types import Node


def check_node(node: Node) -> Operation:
    """The row of a node's operation, if the node has what the row asks for and nothing else.

    Raises:
        ValueError: an unknown operation, another number of inputs, a tensor or an attribute that is missing, unknown or
            of another kind.
    """
    if (row := OPERATIONS.get(node.op)) is None:
        raise ValueError(f"unknown operation {shortened(node.op)}; known: {', '.join(OPERATIONS)}")
    fewest, most = row.inputs
    if not fewest <= len(node.inputs) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"it reads {len(node.inputs)} values, not {wanted}")
    _check_keys("tensor", node.parameters, row.roles, row.may)
    _check_keys("attribute", node.attributes, row.attributes, row.options)
    for name, value in node.attributes.items():
        kind = row.attributes.get(name) or row.options[name]
        if not kind.allows(value):
            raise ValueError(f"its {name} is {shortened(value)}, not {kind.name}")
    return row


def _check_keys(what: str, given: Mapping[str, Any], must: Any, may: Any) -> None:
    if missing := [name for name in must if name not in given]:
        raise ValueError(f"its {what} {missing[0]} is missing")
    if other := [name for name in given if name not in must and name not in may]:
        raise ValueError(f"no such operation has the {what} {shortened(other[0])}")
