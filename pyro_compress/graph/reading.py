"""An exported program -> a `Graph`, operation by operation; what cannot be read is named with its module's path."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions

from pyro_compress.graph.calls import Call, Reading
from pyro_compress.graph.rules.table import RULES, part_readers, readers
from pyro_compress.types import Graph, Node

MADE = ("lift_fresh_copy", "ones", "zeros", "full", "arange", "eye", "linspace", "tril", "triu")
"""Operations that make a tensor out of nothing."""
ROUNDS = 4
"""How often what an operation was taken apart into is taken apart."""


@dataclass(frozen=True)
class Read:
    """A network that was read.

    Attributes:
        graph: its operations.
        program: what it was read from.
        places: name of a value in the program -> index of the node that computes it, of those that the graph has.
    """

    graph: Graph
    program: torch.export.ExportedProgram
    places: dict[str, int]


def read(program: torch.export.ExportedProgram, input_shape: tuple[int, ...]) -> Read:
    """Read a program; where it changes a value in place that is also read under another shape, without such changes.

    Raises:
        ValueError: an operation, an argument or an output that is not supported; it is named.
    """
    kind = program.call_spec.out_spec
    if kind is not None and not kind.is_leaf():
        raise ValueError(f"the network returns a {kind.type.__name__}; it must return one tensor")
    _refuse_changed_tensors(program)
    if _changes_views(program.graph):
        program = program.run_decompositions({})
    return _Reading(_in_parts(program)).read(input_shape)


def _in_parts(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program whose operations that nobody can read are spelled out as torch decomposes them, where it does."""
    parts = program
    for _ in range(ROUNDS):
        missing = set(_unreadable(parts.graph))
        if not missing:
            return parts
        implicit = torch.export.default_decompositions()
        table = get_decompositions(list(missing)) | {op: implicit[op] for op in missing if op in implicit}
        if not table:
            break
        parts = parts.run_decompositions(table)
    return program  # what cannot be read is named as the network calls it


def _unreadable(graph: fx.Graph) -> Iterator[torch._ops.OpOverload]:
    known = readers().keys() | part_readers().keys()
    for node in graph.nodes:
        target = node.target
        if node.op == "call_function" and isinstance(target, torch._ops.OpOverload):
            name = target._schema.name.rpartition("::")[2]
            computes = isinstance(node.meta.get("val"), Tensor | tuple | list)
            if computes and (target.namespace != "aten" or (name not in known and name.removesuffix("_") not in known)):
                yield target


def told(node: fx.Node) -> str:
    """An operation and the path of the module that calls it, for messages."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]).removeprefix("L['self']").lstrip(".") if stack else ""
    return f"{node.target} in {path}" if path else str(node.target)


# --- changes in place


def _changes(graph: fx.Graph) -> Iterator[tuple[int, fx.Node, fx.Node]]:
    """Operations in place: where they stand, they, and what they change."""
    for index, node in enumerate(graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if node.target._schema.is_mutable and node.args and isinstance(node.args[0], fx.Node):
                yield index, node, node.args[0]


def _without_effect(node: fx.Node) -> bool:
    """Whether an operation in place leaves its value as it is."""
    return "dropout" in str(node.target) and not (node.args[1] and node.args[2])


def _owners(graph: fx.Graph) -> dict[str, str]:
    """Name of every value -> name under which the same tensor was first known: an operation in place gives it back."""
    owners = {node.name: node.name for node in graph.nodes}
    for _, node, changed in _changes(graph):
        owners[node.name] = owners[changed.name]
    return owners


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _refuse_changed_tensors(program: torch.export.ExportedProgram) -> None:
    """A network must leave its input and its own tensors as they are."""
    signature = program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    names |= {name: "" for name in signature.user_inputs if isinstance(name, str)}
    own = {_storage(node): names[node.name] for node in program.graph.nodes if node.name in names}
    for _, node, changed in _changes(program.graph):
        if (place := _storage(changed)) in own and not _without_effect(node):
            raise ValueError(f"{told(node)}: it changes {own[place] or 'the input of the network'} in place")


def _changes_views(graph: fx.Graph) -> bool:
    """Whether a value is changed in place that is read afterwards as another tensor on the same memory."""
    nodes, owners = list(graph.nodes), _owners(graph)
    for index, node, changed in _changes(graph):
        if _without_effect(node):
            continue
        place = _storage(changed)
        views = {owners[node.name] for node in nodes[:index] if place is not None and _storage(node) == place}
        others = views - {owners[changed.name]}
        if any(owners[read.name] in others for node in nodes[index + 1 :] for read in node.all_input_nodes):
            return True
    return False


# --- operations


class _Reading:
    """One pass over an exported program.

    Attributes:
        nodes: what was read so far.
        place: name of a value in the program -> index of the node that computes it, as things stand.
        made: the same, as it was when the value was computed.
        names: name of a value in the program -> name of the tensor in the network that it is.
        shapes: theirs.
    """

    def __init__(self, program: torch.export.ExportedProgram):
        self.program, self.signature = program, program.graph_signature
        self.names = self.signature.inputs_to_parameters | self.signature.inputs_to_buffers
        self.owners = _owners(program.graph)
        self.readers, self.parts = readers(), part_readers()
        held = (node for node in program.graph.nodes if node.op == "placeholder" and node.name in self.names)
        self.shapes = {self.names[node.name]: node.meta["val"].shape for node in held}
        self.nodes, self.place, self.made = [Node("input")], dict[str, int](), dict[str, int]()

    def read(self, input_shape: tuple[int, ...]) -> Read:
        """The whole program as a graph, without what its output does not need."""
        last = 0
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.signature.user_inputs:
                self.place[node.name] = 0
            elif node.op == "call_function":
                self.operation(node)
            elif node.op == "output":
                last = self.output(node.args[0])
        graph, kept = _needed(self.nodes, last, input_shape)
        return Read(graph, self.program, {name: kept[index] for name, index in self.made.items() if index in kept})

    def output(self, found: Any) -> int:
        """Index of the one value that the network returns."""
        values = [value for value in found if isinstance(value, fx.Node)]
        if len(found) != 1 or not values or self.owners[values[0].name] not in self.place:
            raise ValueError(f"the network must return one tensor that it computes from its input, got {found}")
        return self.place[self.owners[values[0].name]]

    def operation(self, fx_node: fx.Node) -> None:
        """Append what an operation of the program does."""
        source: fx.Node
        part: list[int]
        source, *part = list[Any](fx_node.args) if fx_node.target is operator.getitem else list[Any]([fx_node])
        value = fx_node.meta.get("val")
        several = isinstance(value, tuple | list) and any(isinstance(one, Tensor) for one in value)
        if not several and not isinstance(value, Tensor):  # numbers, and checks of what torch.export assumed
            return
        aten, _, called = str(source.target).partition(".")
        if (several and aten == "aten") or (part and not fx_node.users):  # a part is read where somebody wants it
            return
        name = called.partition(".")[0]
        reshapes = not part and aten == "aten" and name in RULES["reshape"].reads
        if reshapes and (tensor := self.tensor_of(source.args[0])):
            self.names[fx_node.name] = tensor  # where it is read like a value, its node gives it this shape
            return
        op, inputs, parameters, attributes = self.reading(source, part, name)
        try:
            if op == "identity" and (tensor := self.tensor_as_it_is(fx_node, inputs[0])):
                self.names[fx_node.name] = tensor
                return
            self.check(fx_node, inputs)
            rank = max(given.meta["val"].dim() for given in inputs)
            sources = tuple(self.located(given, rank) for given in inputs)
            tensors = {role: self.named(role, given) for role, given in parameters.items() if given is not None}
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise _refused(source, error) from error
        if op == "identity":
            self.put(fx_node, sources[0])
            return
        if op == "reshape" and self.nodes[sources[0]].attributes.get("shape") == []:
            sources = self.nodes[sources[0]].inputs  # squeezed away, and back again
        self.put(fx_node, len(self.nodes))
        self.nodes.append(Node(op, sources, tensors, attributes))

    def reading(self, source: fx.Node, part: list[int], called: str) -> Reading:
        """What the operation's reader makes of it."""
        known_readers: Mapping[str, Any] = self.parts if part else self.readers
        known = isinstance(source.target, torch._ops.OpOverload) and source.target.namespace == "aten"
        name = called if called in known_readers else called.removesuffix("_")
        if known and name in MADE:
            raise ValueError(f"{told(source)}: forward makes a tensor; make it in __init__, with register_buffer")
        if not known or name not in known_readers:
            supported = sorted(name for name in {*self.readers, *self.parts} if not name.startswith("_"))
            raise ValueError(f"unsupported operation {told(source)}; supported: {', '.join(supported)}")
        call = Call(source, self.names)
        try:
            found: Reading = known_readers[name](call, *part)
            call.refuse_unread()
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise _refused(source, error) from error
        return found

    def put(self, fx_node: fx.Node, index: int) -> None:
        """Note where a value is computed; after a change in place the changed value is there too."""
        self.place[fx_node.name] = self.place[self.owners[fx_node.name]] = self.made[fx_node.name] = index

    def tensor_as_it_is(self, fx_node: fx.Node, source: fx.Node) -> str | None:
        """Name of the tensor of the network that a value is, in its own shape and perhaps another type."""
        same = fx_node.meta["val"].shape == source.meta["val"].shape
        return self.names.get(source.name) if same and source.name not in self.place else None

    def check(self, fx_node: fx.Node, inputs: list[fx.Node]) -> None:
        """Refuse values that are not float32 or lost the batch."""
        if all(given.name in self.names for given in inputs) and fx_node.target is not torch.ops.aten.expand.default:
            raise ValueError("it reads tensors of the network alone: store what it computes as a parameter or buffer")
        value, (batch,) = fx_node.meta["val"], self.batch
        if value.dtype != torch.float32:
            raise ValueError(f"it computes in {str(value.dtype).removeprefix('torch.')}; networks are float32")
        if value.dim() == 0 or str(value.shape[0]) not in (str(batch), "1"):
            raise ValueError("it moves the batch dimension, which is not supported")

    @property
    def batch(self) -> list[Any]:
        """The batch's size, a symbol."""
        return [n.meta["val"].shape[0] for n in self.program.graph.nodes if self.place.get(n.name) == 0][:1]

    def named(self, role: str, source: fx.Node) -> str:
        """Name of the tensor that a layer has in a role."""
        if source.name not in self.names:
            raise ValueError(f"its {role} is no tensor of the network, but computed from others")
        tensor = self.names[source.name]
        if source.meta["val"].shape != self.shapes[tensor]:
            raise ValueError(f"its {role} is {tensor} in another shape; store it in the shape in which it is used")
        return tensor

    def tensor_of(self, source: Any) -> str | None:
        """Name of the tensor of the network that a value is, perhaps in another shape."""
        held = isinstance(source, fx.Node) and source.name not in self.place
        return self.names.get(source.name) if held else None

    def located(self, source: fx.Node, rank: int) -> int:
        """Index of a value; a parameter that is read like one (a class token, say) becomes a node of its own.

        Args:
            source: what is read.
            rank: dimensions of what it meets; torch puts dimensions of 1 in front of a parameter that has fewer.
        """
        name = self.owners[source.name]
        if name in self.place:
            return self.place[name]
        if source.name not in self.names:
            raise ValueError(f"it reads {source.name}, which is neither parameter nor buffer: use register_buffer")
        tensor = self.names[source.name]
        if tensor in self.signature.non_persistent_buffers:
            raise ValueError(f"buffer {tensor} is not in the network's state_dict; register it as persistent")
        own = tuple(source.meta["val"].shape)
        batch, *shape = (1,) * (rank - len(own)) + own
        if batch != 1:
            raise ValueError(f"{tensor} of shape {own} is read as a value; its first dimension must be 1")
        self.place[name] = len(self.nodes)
        self.nodes.append(Node("constant", (0,), {"value": tensor}, {"shape": shape}))
        return self.place[name]


def _refused(source: fx.Node, error: Exception) -> ValueError:
    reason = error if isinstance(error, ValueError) else "its arguments are not those of a layer"
    return ValueError(f"{told(source)}: {reason}")


def _needed(nodes: list[Node], last: int, input_shape: tuple[int, ...]) -> tuple[Graph, dict[int, int]]:
    """The nodes that the last one needs, and where each of them went."""
    wanted = {0, last}
    for index in range(last, 0, -1):
        if index in wanted:
            wanted.update(nodes[index].inputs)
    kept = {old: new for new, old in enumerate(sorted(wanted))}
    moved = (replace(nodes[old], inputs=tuple(kept[i] for i in nodes[old].inputs)) for old in kept)
    return Graph(tuple(moved), tuple(input_shape)), kept
