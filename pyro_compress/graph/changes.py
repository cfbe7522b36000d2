"""What is asked of an exported program: what it changes in place and who reads that, what to call it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx


def described(node: fx.Node) -> str:
    """An operation and the path of the module that calls it, for messages."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]).removeprefix("L['self']").lstrip(".") if stack else ""
    return f"{node.target} in {path}" if path else str(node.target)


def _changes(graph: fx.Graph) -> Iterator[tuple[int, fx.Node, fx.Node]]:
    """Operations in place: where they stand, they, and what they change."""
    for index, node in enumerate(graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if node.target._schema.is_mutable and node.args and isinstance(node.args[0], fx.Node):
                yield index, node, node.args[0]


def _without_effect(node: fx.Node) -> bool:
    """Whether an operation in place leaves its value as it is."""
    return "dropout" in str(node.target) and not (node.args[1] and node.args[2])


def owners(graph: fx.Graph) -> dict[str, str]:
    """Name of every value -> name under which the same tensor was first known: an operation in place gives it back."""
    owners = {node.name: node.name for node in graph.nodes}
    for _, node, changed in _changes(graph):
        owners[node.name] = owners[changed.name]
    return owners


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def refuse_changed_tensors(program: torch.export.ExportedProgram) -> None:
    """A network must leave its input and its own tensors as they are."""
    signature = program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    names |= {name: "" for name in signature.user_inputs if isinstance(name, str)}
    own = {_storage(node): names[node.name] for node in program.graph.nodes if node.name in names}
    for _, node, changed in _changes(program.graph):
        if (place := _storage(changed)) in own and not _without_effect(node):
            raise ValueError(f"{described(node)}: it changes {own[place] or 'the input of the network'} in place")


def changes_views(graph: fx.Graph) -> bool:
    """Whether a value is changed in place that is read afterwards as another tensor on the same memory."""
    nodes, owned = list(graph.nodes), owners(graph)
    for index, node, changed in _changes(graph):
        if _without_effect(node):
            continue
        place = _storage(changed)
        views = {owned[node.name] for node in nodes[:index] if place is not None and _storage(node) == place}
        others = views - {owned[changed.name]}
        if any(owned[read.name] in others for node in nodes[index + 1 :] for read in node.all_input_nodes):
            return True
    return False
