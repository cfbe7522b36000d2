"""Structural removal: a smaller network that computes the same function as the masked one.

Two passes over the graph. Forward (`flow`): constants are folded into biases, and channels that must agree are joined.
Backward (`sweep`): a channel that nobody reads is dead, and so is the row that makes it. A head of attention is the
channels of its queries, keys and values: they are joined, and go together. Where folding would not be exact (a non-zero
constant entering a zero-padded convolution) the channel stays. So do all channels that meet an operation that mixes
them (layer norm), and those around a grouped convolution whose groups are wider than one channel: there the dead
weights just stay zeros. A depthwise convolution keeps channels apart like batch norm does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_compress.compression.axes import renamed, without_idle
from pyro_compress.compression.channels import Value
from pyro_compress.compression.flow import Flow
from pyro_compress.compression.held import cut, is_by_channel, kind_of
from pyro_compress.compression.recurrence import rows_of_units
from pyro_compress.compression.sweep import swept
from pyro_compress.graph.operations.row import Channels
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.types import Graph, Node

Kept = Callable[[Value], Tensor]
"""Tells which entries along the channels' axis of a value stay, in their new order."""


@dataclass(frozen=True)
class Shrunk:
    """A smaller network, and where its parts come from.

    Attributes:
        graph: its operations.
        tensors: its tensors.
        rows: tensor name -> indices of the first axis that were kept, in their new order.
        columns: weight tensor name -> the same for the second axis; absent where it stays as it is.
    """

    graph: Graph
    tensors: dict[str, Tensor]
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]


@dataclass(frozen=True)
class Units:
    """Hidden units that may change places with each other, and what moves with them.

    Attributes:
        count: how many.
        axes: (tensor name, axis, entries along it per unit) of every tensor that has something of each.
    """

    count: int
    axes: tuple[tuple[str, int, int], ...]


def free_units(graph: Graph, tensors: dict[str, Tensor]) -> list[Units]:
    """Sets of units whose order does not matter: hidden, and met by operations alone that keep channels apart.

    Args:
        graph: the network.
        tensors: its tensors; not changed.
    """
    flow = Flow(graph, tensors)
    flow.fold()
    return _free(flow)


def stuck_units(graph: Graph, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Channels that no weight makes any more, and that stay because of an operation that they meet.

    Args:
        graph: the network.
        tensors: its tensors; not changed.

    Returns:
        Operation -> how many.
    """
    flow = Flow(graph, tensors)
    flow.fold()
    spaces, found = flow.spaces, dict[str, int]()
    made = torch.zeros(len(spaces.root))
    layers = torch.zeros(len(spaces.root), dtype=torch.bool)
    for node, value in zip(flow.nodes, flow.values, strict=True):
        counts = _made(flow, node, value)
        if counts is not None:
            spaces.count(made, value, counts)
            layers[spaces.root[value.ids]] = True
    empty = layers & (made == 0) & spaces.fixed
    empty[spaces.root[flow.values[-1].ids]] = False  # outputs are no units
    met = sorted(zip(flow.why, spaces.stay, strict=False), key=lambda one: kind_of(one[0]) is not Channels.MIXED)
    for node, ids in met:  # those that mix channels first: what they meet beside is the less telling
        roots = spaces.root[ids].unique()
        if number := int(empty[roots].sum()):
            name = str(node.attributes["call"]).partition(".")[0] if node.op == "aten" else node.op
            found[name] = found.get(name, 0) + number
            empty[roots] = False
    return found


def shrink(graph: Graph, tensors: dict[str, Tensor], spare: Collection[str] = ()) -> tuple[Graph, dict[str, Tensor]]:
    """Remove dead units and fold constants; zero weights are what a mask left behind.

    Hidden units are put in the order of their non-zero weights, most first: any order computes the same, and this one
    takes the fewest bytes.

    Args:
        graph: the network.
        tensors: its tensors, pruned weights zero; not changed.
        spare: those that nobody needs any more: changed, and taken out of `tensors` one by one, to save memory.

    Returns:
        The smaller network. The number of inputs and outputs stays; so do channels around grouped convolutions, except
        depthwise ones.
    """
    small = trace_shrink(graph, tensors, spare)
    return small.graph, small.tensors


def trace_shrink(graph: Graph, tensors: dict[str, Tensor], spare: Collection[str] = ()) -> Shrunk:
    """As `shrink`, telling which rows and columns of every tensor are left."""
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    flow = Flow(graph, tensors, spare)
    for name in spare:
        del tensors[name]
    flow.fold()
    while swept(flow):
        pass
    return _cut(flow, dtypes)


def _cut(flow: Flow, dtypes: dict[str, torch.dtype]) -> Shrunk:
    """The smaller network; takes the tensors out of `flow` one by one."""
    spaces, held = flow.spaces, flow.held.tensors
    kept = functools.cache(functools.partial(spaces.kept, ranks=_ranks(flow)))
    nodes = []
    rows, columns, tensors = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    last = {name: index for index, node in enumerate(flow.nodes) for name in node.parameters.values()}
    for index, (node, value) in enumerate(zip(flow.nodes, flow.values, strict=True)):
        for role, name in node.parameters.items():
            if held[name].dim() == 0:  # a number has no rows
                tensors[name] = held[name].to(dtypes[name])
                continue
            stay, across = _staying(flow, index, role, kept)
            rows[name] = torch.arange(len(held[name])) if stay is None else stay
            if across is not None:
                columns[name] = across
            tensor = cut(held[name], rows[name], columns.get(name))
            tensors[name] = tensor.to(dtypes[name] if name in dtypes else dtypes[node.parameters["weight"]])
        for name in {name for name in node.parameters.values() if last[name] == index}:
            del held[name]
        attributes = renamed(spaces, node, flow.values[node.inputs[0]], value) if node.inputs else node.attributes
        if is_weighted(node.op) and node.attributes.get("groups", 1) != 1:
            source = flow.read[index]
            each = len(source.ids) // node.attributes["groups"]
            attributes = {**attributes, "groups": int(spaces.live(source).sum()) // each}
        nodes.append(replace(node, attributes=attributes))
    nodes = without_idle(spaces, nodes, flow.values)
    return Shrunk(replace(flow.graph, nodes=tuple(nodes)), tensors, rows, columns)


def _staying(flow: Flow, index: int, role: str, kept: Kept) -> tuple[Tensor | None, Tensor | None]:
    """Rows and columns that stay of a tensor of a node, in their new order; None: all, as they are."""
    node, value, spaces, source = flow.nodes[index], flow.values[index], flow.spaces, flow.read.get(index)
    size = len(flow.held.tensors[node.parameters[role]])
    kind = kind_of(node)
    if kind is Channels.LOOKED_UP:
        return None, kept(value) if value.axes and not spaces.is_fixed(value) else None
    if kind is Channels.GATED and source is not None:
        units = kept(value)
        reads = {"weight_ih": kept(source), "weight_hh": units}
        return rows_of_units(units, len(value.ids), size), reads.get(role)
    if kind is Channels.MADE_ACROSS and source is not None:
        made = kept(value)
        return (kept(source), made) if role == "weight" else (made, None)
    by_channel = is_by_channel(node) and value.axes and size == len(value.ids)
    rows = kept(value) if by_channel else None
    reads_all = is_weighted(node.op) and role == "weight" and node.attributes.get("groups", 1) == 1
    return rows, kept(source) if reads_all and source is not None else None


def _ranks(flow: Flow) -> Tensor:
    """Order of channels that may change places: by the number of non-zero weights that make them, most first."""
    made = torch.zeros(len(flow.spaces.root))
    for node, value in zip(flow.nodes, flow.values, strict=True):
        if is_weighted(node.op) and value.axes:
            flow.spaces.count(made, value, flow.held.occupied(node.parameters["weight"])[0])
    return flow.spaces.ranks(made)


def _free(flow: Flow) -> list[Units]:
    """The ranges whose channels may change places, with their tensors."""
    spaces = flow.spaces
    axes: dict[int, list[tuple[str, int, int]]] = {}
    stay = {-1}

    def note(value: Value, names: list[str], axis: int) -> None:
        groups = spaces.group[spaces.root[value.ids]].unique().tolist()
        if len(groups) > 1 or spaces.runs(value).any():
            stay.update(groups)
            return
        start, end = spaces.ranges[groups[0]]
        axes.setdefault(groups[0], []).extend((name, axis, len(value.ids) // (end - start)) for name in names)

    for index, (node, value) in enumerate(zip(flow.nodes, flow.values, strict=True)):
        if kind_of(node) in (Channels.GATED, Channels.LOOKED_UP, Channels.MADE_ACROSS):
            read = [flow.read[index]] if index in flow.read else []
            for one in (value, *read):  # theirs lie on other axes than `Units` tells
                stay |= set(spaces.group[spaces.root[one.ids.flatten()]].tolist())
        if is_by_channel(node) and value.axes:
            names = [name for name in node.parameters.values() if len(flow.held.tensors[name]) == len(value.ids)]
            note(value, names, 0)
        if is_weighted(node.op) and node.attributes.get("groups", 1) == 1:
            note(flow.read[index], [node.parameters["weight"]], 1)
    free = {group: dict.fromkeys(found) for group, found in axes.items() if group not in stay}  # each once
    return [Units(spaces.ranges[group][1] - spaces.ranges[group][0], tuple(found)) for group, found in free.items()]


def _made(flow: Flow, node: Node, value: Value) -> Tensor | None:
    """Weights that are not zero behind every channel that a layer makes; None: it is none, or makes them elsewhere."""
    kind, size = kind_of(node), len(value.ids)
    if kind is Channels.MADE and value.axes:
        return flow.held.occupied(node.parameters["weight"])[0]
    if kind in (Channels.MADE_ACROSS, Channels.LOOKED_UP) and value.axes:
        return (flow.held.tensors[node.parameters["weight"]] != 0).transpose(0, 1).flatten(1).sum(1)
    if kind is Channels.GATED and value.axes:
        return (flow.held.tensors[node.parameters["weight_ih"]] != 0).any(1).view(-1, size).sum(0)
    return None
