"""An exported program -> a `Graph`, operation by operation; what cannot be read is named with its module's path."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions

from pyro_compress.graph.calls import Call, Mixes, Parsed
from pyro_compress.graph.changes import changes_views, described, owners, refuse_changed_tensors
from pyro_compress.graph.idioms import IDIOMS
from pyro_compress.graph.keeping import Keeping, name_of, value_of
from pyro_compress.graph.operations.row import Value, in_rows
from pyro_compress.graph.rules.table import RULES, part_readers, readers
from pyro_compress.pcn import gate
from pyro_compress.types import Graph, Node

PASSED_ON = tuple(getattr(torch.ops.aten, name).default for name in ("lift_fresh_copy", "detach", "detach_", "alias"))
"""What stands between values that forward writes down and whatever reads them."""
UNKNOWN = "unsupported operation"
ROUNDS = 8
"""How often a program is taken apart further."""


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


def read(program: torch.export.ExportedProgram, input_shape: tuple[int, ...], kind: str = "float32") -> Read:
    """Read a program; where it changes a value in place that is also read under another shape, without such changes.

    What has a row becomes a node of it; what has none, or has arguments that its row does not know, is kept for torch
    to run (`graph.operations.kept`); what may not be kept is taken apart as torch decomposes it, and read again.

    Args:
        program: the exported network.
        input_shape: shape of one example.
        kind: type of its values.

    Raises:
        ValueError: an operation, an argument or an output that is not supported; it is named.
    """
    spec = program.call_spec.out_spec
    if spec is not None and not spec.is_leaf():
        raise ValueError(f"the network returns a {spec.type.__name__}; it must return one tensor")
    refuse_changed_tensors(program)
    if changes_views(program.graph):
        program = program.run_decompositions({})
    called, reasons = {node.name: node for node in program.graph.nodes}, dict[str, str]()
    for left in reversed(range(ROUNDS)):
        try:
            if unknown := list(_unknown(program.graph)):
                missing = {node.target for node in unknown}
                raise _Unreadable(UNKNOWN, unknown[0], missing)  # type: ignore[arg-type]
            return _Reading(program, kind).read(input_shape)
        except _Unreadable as error:
            if not left or (parts := _in_parts(program, error.missing)) is None:
                raise ValueError(error.told(called, reasons)) from error
            reasons.setdefault(error.node.name, str(error))
            program = parts
    raise AssertionError


class _Unreadable(ValueError):
    """Operations that neither have a row nor may be kept.

    Attributes:
        node: the first of them.
        missing: all.
    """

    def __init__(self, reason: str, node: fx.Node, missing: set[torch._ops.OpOverload]):
        super().__init__(reason)
        self.node, self.missing = node, missing

    def told(self, called: Mapping[str, fx.Node], reasons: Mapping[str, str]) -> str:
        """A message that names the operation as the network calls it.

        Args:
            called: calls of the network by name.
            reasons: why those that torch took apart could not be read, by name.
        """
        node, reason = self.node, str(self)
        sources = list(node.meta.get("from_node", ()))
        while sources:
            node, sources = called.get(sources[0].name, node), list(sources[0].from_node)
        if (first := reasons.get(node.name, UNKNOWN)) != UNKNOWN:
            return f"{described(node)}: {first}"
        what = described(node)
        if node.target != self.node.target:
            what += f", which torch makes of {self.node.target}"
        return f"{what}: {reason}" if reason != UNKNOWN else f"{UNKNOWN} {what}; see docs/reference/networks.md"


def _unknown(graph: fx.Graph) -> Iterator[fx.Node]:
    """Operations whose name alone says that they cannot be read."""
    known = readers().keys() | part_readers().keys()
    for node in graph.nodes:
        target = node.target
        if node.op == "call_function" and isinstance(target, torch._ops.OpOverload):
            name = target._schema.name.rpartition("::")[2]
            computes = isinstance(node.meta.get("val"), Tensor | tuple | list)
            read = target.namespace == "aten" and (name in known or name.removesuffix("_") in known)
            if computes and not read and name_of(target) is None and target not in PASSED_ON:
                yield node


def _in_parts(
    program: torch.export.ExportedProgram, missing: set[torch._ops.OpOverload]
) -> torch.export.ExportedProgram | None:
    """A program whose operations that nobody can read are spelled out as torch decomposes them; None: it does not."""
    implicit = torch.export.default_decompositions()
    table: dict[Any, Any] = {op: op.decompose for op in missing if op._can_decompose()}
    table |= get_decompositions(list(missing)) | {op: implicit[op] for op in missing if op in implicit}
    if table or any(op._schema.is_mutable for op in missing):
        return program.run_decompositions(table)
    return None


class _Reading:
    """One pass over an exported program.

    Attributes:
        nodes: what was read so far.
        flows: what they give.
        place: name of a value in the program -> index of the node that computes it, as things stand.
        made: the same, as it was when the value was computed.
        names: name of a value in the program -> name of the tensor in the network that it is.
        shapes: theirs.
        cuts: name of a value in the program -> the parts of axes that it is of such a tensor.
    """

    def __init__(self, program: torch.export.ExportedProgram, kind: str):
        self.program, self.signature, self.kind = program, program.graph_signature, kind
        self.names = self.signature.inputs_to_parameters | self.signature.inputs_to_buffers
        self.owners = owners(program.graph)
        self.readers, self.parts = readers(), part_readers()
        held = (node for node in program.graph.nodes if node.op == "placeholder" and node.name in self.names)
        self.shapes = {self.names[node.name]: tuple(map(int, node.meta["val"].shape)) for node in held}
        self.nodes, self.place, self.made = [Node("input")], dict[str, int](), dict[str, int]()
        self.flows, self.cuts = list[Value](), dict[str, tuple[_Cut, ...]]()

    def read(self, input_shape: tuple[int, ...]) -> Read:
        """The whole program as a graph, without what its output does not need."""
        last = 0
        self.flows.append(in_rows(input_shape, kind=self.kind))
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.signature.user_inputs:
                self.place[node.name] = 0
            elif node.op == "call_function":
                self.operation(node)
            elif node.op == "output":
                last = self.output(node.args[0])
        graph, kept = _needed(self.nodes, last, input_shape, self.kind)
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
        if self.literal(fx_node) is not None:  # written down where it is read
            return
        name = called.partition(".")[0]
        reshapes = not part and aten == "aten" and name in RULES["reshape"].reads
        if reshapes and (tensor := self.tensor_of(source.args[0])) and self.keeps_cuts(fx_node, source.args[0]):
            self.names[fx_node.name] = tensor  # where it is read like a value, its node gives it this shape
            return
        if source.target is torch.ops.aten.slice.Tensor and self.cut(fx_node):
            return
        try:
            if not any(idiom(self, fx_node, source, part, name) for idiom in IDIOMS):
                self.by_row(fx_node, source, part, name)
            return
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            reason = error if isinstance(error, ValueError) else ValueError("its arguments are not those of a layer")
        try:
            self.keep(fx_node, source, part)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            overload = isinstance(source.target, torch._ops.OpOverload) and not isinstance(reason, Mixes)
            missing = {source.target} if overload else set()
            raise _Unreadable(str(reason), source, missing) from error  # type: ignore[arg-type]

    def by_row(self, fx_node: fx.Node, source: fx.Node, part: list[int], name: str) -> None:
        """Append an operation that has a row.

        Raises:
            ValueError: it has none, or other arguments, values or shapes than the row knows.
        """
        op, inputs, parameters, attributes = self.reading(source, part, name)
        if op == "identity" and (tensor := self.tensor_as_it_is(fx_node, inputs[0])):
            self.names[fx_node.name] = tensor
            return
        self.check(fx_node, inputs)
        before = len(self.nodes)
        tensors = {role: self.named(role, given) for role, given in parameters.items() if given is not None}
        try:
            sources = self.all_located(inputs)
            if op == "identity":
                if self.flows[sources[0]] != value_of(fx_node.meta["val"]):
                    raise ValueError("it changes the type of values")
                self.put(fx_node, sources[0])
                return
            if op == "reshape" and self.nodes[sources[0]].attributes.get("shape") == []:
                sources = self.nodes[sources[0]].inputs  # squeezed away, and back again
            self.append(fx_node, Node(op, sources, tensors, attributes))
        except ValueError:
            self.forget(before)
            raise

    def add(self, node: Node) -> int:
        """Append a node; returns its index."""
        self.flows.append(gate.flowing(node, [self.flows[i] for i in node.inputs], self.shapes)[0])
        self.nodes.append(node)
        return len(self.nodes) - 1

    def append(self, fx_node: fx.Node, node: Node) -> None:
        """A node that gives what the program says.

        Raises:
            ValueError: the rule of shapes says something else, or refuses.
        """
        wanted = value_of(fx_node.meta["val"])
        flow, _, _ = gate.flowing(node, [self.flows[i] for i in node.inputs], self.shapes)
        if flow != wanted:
            raise ValueError(f"it gives {wanted.kind} of shape {wanted.at[0]}, not {flow.kind} of shape {flow.at[0]}")
        self.put(fx_node, len(self.nodes))
        self.nodes.append(node)
        self.flows.append(flow)

    def keep(self, fx_node: fx.Node, source: fx.Node, part: list[int]) -> None:
        """Append a call that torch runs as it is.

        Raises:
            ValueError: it may not be kept.
        """
        if isinstance(source.target, torch._ops.OpOverload) and source.target._schema.is_mutable:
            raise ValueError("it changes a value in place")
        self.append(fx_node, Keeping(self.where_kept, self.tensor_named, self.literal).node(source, part))

    def forget(self, length: int) -> None:
        """Take back what was appended for an operation that is read otherwise."""
        del self.nodes[length:], self.flows[length:]
        self.place = {name: index for name, index in self.place.items() if index < length}

    def where(self, source: fx.Node) -> int | None:
        """Index of the node that computes a value; None: it is a tensor of the network."""
        return self.place.get(self.owners[source.name])

    def where_kept(self, source: fx.Node) -> int | None:
        """The same for what torch runs as it is: a part of a tensor is a node of its own."""
        if source.name in self.cuts and self.where(source) is None:
            self.keep(source, source, [])
        return self.where(source)

    def cut(self, fx_node: fx.Node) -> bool:
        """Note that a value is a part of a tensor of the network, where it is one without gaps."""
        call = Call(fx_node)
        if (tensor := self.tensor_of(call.first)) is None or call["step"] != 1:
            return False
        axis = int(call["dim"]) % len(call.before)
        start, stop, _ = slice(call["start"], call["end"]).indices(call.before[axis])
        self.names[fx_node.name] = tensor
        self.cuts[fx_node.name] = self.cuts.get(call.first.name, ())
        if call.shape != call.before:
            self.cuts[fx_node.name] += (_Cut(axis - len(call.before), start, stop, call.before[axis]),)
        return True

    def keeps_cuts(self, fx_node: fx.Node, source: Any) -> bool:
        """Whether a value of another shape is the same part of a tensor: axes of 1 may come in front."""
        cuts, shape, before = self.cuts.get(source.name, ()), fx_node.meta["val"].shape, source.meta["val"].shape
        more = len(shape) - len(before)
        if cuts and (more < 0 or tuple(shape) != (1,) * more + tuple(before)):
            return False
        self.cuts |= {fx_node.name: cuts} if cuts else {}
        return True

    def literal(self, source: fx.Node) -> Tensor | None:
        """Values that forward writes down, where a value is that."""
        name = self.signature.inputs_to_lifted_tensor_constants.get(source.name)
        if name is None and source.target in PASSED_ON:
            return self.literal(source.args[0])  # type: ignore[arg-type]
        found = self.program.constants.get(name) if name else None
        return found if isinstance(found, Tensor) else None

    def tensor_named(self, source: fx.Node) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the tensor of the network that a value is.

        Raises:
            ValueError: it is none.
        """
        if source.name not in self.names:
            raise ValueError(f"it reads {source.name}, which is neither parameter nor buffer: use register_buffer")
        name = self.names[source.name]
        return name, self.shapes[name]

    def reading(self, source: fx.Node, part: list[int], called: str) -> Parsed:
        """What the operation's reader makes of it."""
        known_readers: Mapping[str, Any] = self.parts if part else self.readers
        known = isinstance(source.target, torch._ops.OpOverload) and source.target.namespace == "aten"
        name = called if called in known_readers else called.removesuffix("_")
        if not known or name not in known_readers:
            raise ValueError(UNKNOWN)
        call = Call(source, self.names)
        found: Parsed = known_readers[name](call, *part)
        call.refuse_unread()
        return found

    def put(self, fx_node: fx.Node, index: int) -> None:
        """Note where a value is computed; after a change in place the changed value is there too."""
        self.place[fx_node.name] = self.place[self.owners[fx_node.name]] = self.made[fx_node.name] = index

    def tensor_as_it_is(self, fx_node: fx.Node, source: fx.Node) -> str | None:
        """Name of the tensor of the network that a value is, in its own shape and perhaps another type."""
        same = fx_node.meta["val"].shape == source.meta["val"].shape
        return self.names.get(source.name) if same and source.name not in self.place else None

    def check(self, fx_node: fx.Node, inputs: list[fx.Node]) -> None:
        """Refuse what no row reads: tensors of the network alone."""
        if all(given.name in self.names for given in inputs) and fx_node.target is not torch.ops.aten.expand.default:
            raise ValueError("it reads tensors of the network alone: store what it computes as a parameter or buffer")

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

    def all_located(self, inputs: list[fx.Node]) -> tuple[int, ...]:
        """Indices of values that meet; parameters among them become nodes of their own, with as many rows."""
        rank = max(given.meta["val"].dim() for given in inputs)
        there = [self.where(given) for given in inputs]
        rows = [index for index in there if index is not None and self.flows[index].rows != 0]
        partner = rows[0] if rows and self.flows[rows[0]].rows != 1 else 0
        return tuple(
            self.constant(given, rank, partner) if index is None else index
            for given, index in zip(inputs, there, strict=True)
        )

    def constant(self, source: fx.Node, rank: int, partner: int) -> int:
        """Index of a parameter that is read like a value (a class token, say): a node of its own.

        Args:
            source: what is read.
            rank: dimensions of what it meets; torch puts dimensions of 1 in front of a parameter that has fewer.
            partner: a value with as many rows.
        """
        cuts = self.cuts.get(source.name, ())
        key = f"{source.name if cuts else self.owners[source.name]} {rank} {partner}"
        if key in self.place:
            return self.place[key]
        tensor, _ = self.tensor_named(source)
        own = list(source.meta["val"].shape)
        for cut in reversed(cuts):
            own[cut.axis] = cut.before
        batch, *shape = [1] * (rank - len(own)) + own
        if batch != 1:
            raise ValueError(f"{tensor} of shape {tuple(own)} is read as a value; its first dimension must be 1")
        node = Node("constant", (partner,), {"value": tensor}, {"shape": shape})
        self.place[key] = self.add(node)
        for cut in cuts:
            attributes = {"axis": rank + cut.axis, "start": cut.start, "stop": cut.stop}
            self.place[key] = self.add(Node("slice", (self.place[key],), {}, attributes))
        return self.place[key]


class _Cut(NamedTuple):
    """A part of an axis of a tensor.

    Attributes:
        axis: counted from the last, which is -1.
        start: where the part begins.
        stop: where it ends.
        before: size of the axis.
    """

    axis: int
    start: int
    stop: int
    before: int


def _needed(nodes: list[Node], last: int, input_shape: tuple[int, ...], kind: str) -> tuple[Graph, dict[int, int]]:
    """The nodes that the last one needs, and where each of them went."""
    wanted = {0, last}
    for index in range(last, 0, -1):
        if index in wanted:
            wanted.update(nodes[index].inputs)
    kept = {old: new for new, old in enumerate(sorted(wanted))}
    moved = (replace(nodes[old], inputs=tuple(kept[i] for i in nodes[old].inputs)) for old in kept)
    return Graph(tuple(moved), tuple(input_shape), kind), kept
