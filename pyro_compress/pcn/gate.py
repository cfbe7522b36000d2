"""The one gate for networks that come from outside: names, then a schema, then shapes, before anything is allocated.

`check` judges a graph by the shapes of its tensors alone. It takes time in proportion to the graph, allocates nothing,
and whatever it refuses is one `ValueError` of one line. Behind it torch, numpy and every export find what they expect.
The reader of `.pcn` files calls it; whoever reads a network from elsewhere (a run folder, a safetensors export) does:

    graph = gate.built(nodes, input_shape)       # [[operation, inputs, {role: tensor}, {attribute: value}], ...]
    plan = gate.check(graph, {name: shape}, limits=gate.limited(mib))

`plan.output` is the shape of one output, `plan.peak` what running one example holds. `pcn.meta.check_meta` does the
same for metadata; `names.check_names` judges names alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_compress.graph.operations.kept import MOST_CALLS, inferred
from pyro_compress.graph.operations.row import (
    BATCHES,
    MAX_RANK,
    MAX_SIZE,
    Attributes,
    Made,
    Operation,
    Roles,
    Value,
    in_rows,
)
from pyro_compress.graph.operations.table import OPERATIONS, is_weighted, weighted
from pyro_compress.inputs import inputs_of, size_of
from pyro_compress.length import Length
from pyro_compress.pcn.names import check_names, shortened
from pyro_compress.pcn.schema import check_node
from pyro_compress.types import Graph, Node

MAX_NODES = 1 << 13
"""Operations of a network."""
MAX_MEMORY_MIB = 4096
"""Memory that a file may ask for unless the caller allows more: what `--max-memory` is by default."""
BYTES_PER_VALUE = 16
"""A value is held as the file has it, as float32, and as torch's copy of that, some of them twice for a moment."""
WORK_PER_BYTE = 1 << 4
"""Multiply-adds per example that go with a byte of allowed memory: 7 · 10^10 by default, a fourfold VGG-16."""


@dataclass(frozen=True)
class Limits:
    """What a network may ask for.

    Attributes:
        values: of its tensors, and of what one example needs while it runs, together.
        work: multiply-adds per example.
    """

    values: int
    work: int


def limited(mib: float = MAX_MEMORY_MIB) -> Limits:
    """Limits that keep reading and running a network within so much memory."""
    size = int(mib * (1 << 20))
    return Limits(size // BYTES_PER_VALUE, size * WORK_PER_BYTE)


DEFAULT = limited()
UNLIMITED = Limits(1 << 62, 1 << 62)
"""For networks that this program has made itself."""


@dataclass(frozen=True)
class Plan:
    """What is known of a network before it runs.

    Attributes:
        flows: the value behind every node.
        peak: values that running one example holds at a time.
        held: those of them that lie between two operations.
        work: multiply-adds per example.
        values: of all tensors.
    """

    flows: tuple[Value, ...]
    peak: int
    held: int
    work: int
    values: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of a row of every value: of all behind its first dimension."""
        return tuple(flow.shape for flow in self.flows)

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of one example's output."""
        return self.shapes[-1]


def built(nodes: Iterable[Any], input_shape: Any, kind: Any = "float32", several: Any = (), least: Any = 0) -> Graph:
    """A graph from JSON values, `[operation, inputs, {role: tensor}, {attribute: value}]` per node behind the input.

    Raises:
        ValueError: a value of another type, or a node that reads a later one.
    """
    found, shape = [Node("input")], shape_of(input_shape)
    least = least_of(least, shape)
    for entry in nodes:
        op, inputs, parameters, attributes = entry
        if not isinstance(op, str) or not isinstance(attributes, dict) or not isinstance(parameters, dict):
            raise ValueError(f"node {len(found)} is not an operation, its inputs, tensors and attributes")
        if not isinstance(inputs, list) or not all(type(i) is int and 0 <= i < len(found) for i in inputs):
            raise ValueError(f"a node reads one that comes later, or none: node {len(found)} ({shortened(op)})")
        if not all(isinstance(name, str) for name in parameters.values()):
            raise ValueError(f"a tensor of node {len(found)} ({shortened(op)}) has a name that is no text")
        if len(found) > MAX_NODES:
            raise ValueError(f"more than the {MAX_NODES} operations that a network may have")
        attributes = Length.read(attributes, shape[0]) if least else attributes
        found.append(Node(op, tuple(inputs), parameters, attributes))
    return Graph(tuple(found), shape, kind_of(kind), inputs_of(several), least)


def least_of(value: Any, shape: tuple[int, ...]) -> int:
    """The shortest sequences that a network takes (`Graph.least`), from a JSON value.

    Raises:
        ValueError: no whole number, or none below the longest of inputs `(length,)`.
    """
    if type(value) is not int or value < 0 or (value and not (len(shape) == 1 and value < shape[0])):
        raise ValueError(f"sequences from {shortened(value)} steps on, in inputs of shape {shape}")
    return value


def kind_of(kind: Any) -> str:
    """The type of a network's inputs.

    Raises:
        ValueError: none that a network may have.
    """
    if kind not in ("float32", "int64"):
        raise ValueError(f"inputs of type {shortened(kind)}; they are float32 or int64")
    return str(kind)


def shape_of(values: Any, most: int = MAX_RANK + 1) -> tuple[int, ...]:
    """A shape from a list of JSON values.

    Raises:
        ValueError: something else.
    """
    whole = isinstance(values, list | tuple) and len(values) <= most
    if not whole or not all(type(size) is int and 0 <= size < MAX_SIZE for size in values):
        raise ValueError(f"impossible shape {str(values)[:60] if whole else shortened(values)}")
    return tuple(values)


def check(graph: Graph, tensors: Mapping[str, tuple[int, ...]], limits: Limits = DEFAULT) -> Plan:
    """Judge a network by its graph and the shapes of its tensors.

    Args:
        graph: the operations; node 0 is the input.
        tensors: shape of every tensor, also of those that no node names.
        limits: what it may ask for.

    Returns:
        What is known of it before it runs.

    Raises:
        ValueError: a name that is none, an operation that is unknown or not as its row in `OPERATIONS` says,
            shapes that do not fit, or more than the limits.
    """
    check_names(tensors)
    values = sum(map(math.prod, tensors.values()))
    _within(values, limits.values, "values declared")
    if not any(is_weighted(node.op) or node.op == "aten" for node in graph.nodes):
        raise ValueError(f"the network has no layer with weights ({', '.join(weighted())})")
    _positive("the input", graph.input_shape)
    if graph.inputs and (graph.kind != "float32" or graph.input_shape != (size_of(graph.inputs),)):
        raise ValueError(f"inputs of {size_of(graph.inputs)} values lie in a row of shape {graph.input_shape}")
    first = in_rows(graph.input_shape, kind=graph.kind)
    flows, work, held, finished = [first], 0, first.size, graph.finished
    peak = most = held
    _within(sum(node.op == "aten" for node in graph.nodes), MOST_CALLS, "operations of torch")
    for index, node in enumerate(graph.nodes[1:], 1):
        try:
            flow, cost, scratch = flowing(node, [flows[i] for i in node.inputs], tensors)
            if node.op != "aten" or len(flow.at[0]) > MAX_RANK + 1:  # torch's own operations pass nothing on as well
                _positive("its output", flow.at[0])
            work, held = work + cost, held + flow.size
            _within(values + held + scratch, limits.values, "values held at a time")
            _within(work, limits.work, "multiply-adds per example")
        except ValueError as error:
            raise ValueError(f"node {index} ({node.op if node.op in OPERATIONS else 'unknown'}): {error}") from None
        peak, most = max(peak, held + scratch), max(most, held)
        held -= sum(flows[i].size for i in finished[index])
        flows.append(flow)
    if flows[-1].rows != 1 or flows[-1].kind != "float32":
        output = f"{flows[-1].kind} of shape {flows[-1].at[0]} for {BATCHES[0]} examples"
        raise ValueError(f"the network's output is {output}; it must be float32 with a row per example")
    return Plan(tuple(flows), peak, most, work, values)


def flowing(node: Node, inputs: Sequence[Value], tensors: Mapping[str, tuple[int, ...]]) -> tuple[Value, int, int]:
    """What one operation makes of such values, its work per example, and what it holds beside.

    Raises:
        ValueError: not as its row says, or values that do not fit.
    """
    row, parameters = _parameters(node, tensors)
    if node.op == "aten":
        return inferred(node.attributes, inputs, parameters)
    if any(0 in value.at[0] for value in inputs):
        raise ValueError("it reads a value of no size")
    if other := [value.kind for value in inputs if value.kind not in row.takes]:
        raise ValueError(f"it reads {other[0]}, not {' or '.join(row.takes)}")
    rows = [value.rows for value in inputs]
    most = max((number for number in rows if number is not None), default=0)
    if None in rows:
        return _loose(row, inputs, parameters, node.attributes)
    if any(number != most and not (row.broadcasts and number == 0) for number in rows):
        raise ValueError(f"values with {' and '.join(map(str, rows))} rows for every example")
    shape, cost, scratch = row.shape([value.shape for value in inputs], parameters, node.attributes)
    each = max(most, 1)
    if row.regroups:
        most, rest = divmod(each * math.prod(inputs[0].shape), math.prod(shape))
        if rest or rows[0] == 0:
            raise ValueError(f"{each} rows of shape {inputs[0].shape} for every example as rows of shape {shape}")
    return in_rows(shape, most, row.gives), each * cost, each * scratch


def _loose(row: Operation, inputs: Sequence[Value], p: Roles, a: Attributes) -> tuple[Value, int, int]:
    """An operation on values whose first dimension is not the batch: it runs row by row all the same."""
    found = list[tuple[int, ...]]()
    each = work = scratch = 0
    for place in (0, 1):
        shapes = [value.at[place] for value in inputs]
        length = max((shape[0] for shape in shapes if shape), default=0)
        if row.regroups or any(not shape or shape[0] != length for shape in shapes):
            raise ValueError(f"values of shapes {' and '.join(map(str, shapes[:4]))}")
        shape, work, scratch = row.shape([shape[1:] for shape in shapes], p, a)
        found.append((length, *shape))
        each = max(each, length)
    return Value((found[0], found[1]), row.gives), each * work, each * scratch


def made(node: Node, inputs: Sequence[tuple[int, ...]], tensors: Mapping[str, tuple[int, ...]]) -> Made:
    """What one operation makes of rows of these shapes.

    Raises:
        ValueError: not as its row says, or shapes that do not fit.
    """
    row, parameters = _parameters(node, tensors)
    return row.shape(inputs, parameters, node.attributes)


def _parameters(node: Node, tensors: Mapping[str, tuple[int, ...]]) -> tuple[Operation, dict[str, tuple[int, ...]]]:
    row = check_node(node)
    if missing := [name for name in node.parameters.values() if name not in tensors]:
        raise ValueError(f"the graph uses tensors that the file does not hold: {shortened(missing[0])}")
    parameters = {role: tensors[name] for role, name in node.parameters.items()}
    for role, shape in parameters.items():
        _positive(f"its {role}", shape)
    return row, parameters


def _positive(what: str, shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_RANK + 1 or 0 in shape:
        raise ValueError(f"{what} has the impossible shape {shape}")


def _within(found: int, most: int, what: str) -> None:
    if found > most:
        raise ValueError(f"{found} {what}, more than the {most} allowed; allow more with --max-memory (max_memory=)")
