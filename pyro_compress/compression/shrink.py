"""Structural removal: a smaller network that computes the same function as the masked one.

Two passes over the graph. Forward: a channel whose weights are all zero emits a constant; constants flow through
activations and are folded into the biases of the layers that read them. Backward: a channel that nobody reads is
dead, and so is the row that makes it. Channels that must agree (both sides of an addition) form one *space* and go
together. Where folding would not be exact (a non-zero constant entering a zero-padded convolution) the channel stays.
So do all channels that meet an operation that mixes them or moves them (layer norm, attention, a transposition), and
those around a grouped convolution whose groups are wider than one channel: there the dead weights just stay zeros. A
depthwise convolution keeps channels apart like batch norm does. What an operation does to channels is in its row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.channels import Spaces, Value, varying
from pyro_compress.compression.recurrence import needed, rows_of_units, silent
from pyro_compress.graph.operations.row import Channels
from pyro_compress.graph.operations.table import OPERATIONS, is_flattening, is_last, is_weighted
from pyro_compress.graph.rules.table import run_node
from pyro_compress.pcn import gate
from pyro_compress.types import CACHED, Graph, Node, blocks, rows_of


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
    work = _Work(graph, tensors)
    work.fold()
    return work.free()


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
    work = _Work(graph, tensors, spare)
    for name in spare:
        del tensors[name]
    work.fold()
    while work.sweep():
        pass
    return work.cut(dtypes)


class _Work:
    """The tensors while they are changed: weights as they came, copied before the first change, all else in double."""

    def __init__(self, graph: Graph, tensors: dict[str, Tensor], spare: Collection[str] = ()):
        self.nodes, self.graph, self.input_shape = list(graph.nodes), graph, graph.input_shape
        self.uses = Counter(name for node in graph.nodes for name in node.parameters.values())
        weights = {node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)}
        self.tensors = {n: tensor if n in weights else tensor.double().clone() for n, tensor in tensors.items()}
        self.shared = weights - set(spare)
        self.values: list[Value] = []
        self.read: dict[int, Value] = {}  # layer with weights -> its input, as it reads it
        self.first: dict[str, Value] = {}  # tensor by channel -> the first output that it is read for
        self.spaces = Spaces()
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    # --- forward: constants and spaces

    def fold(self) -> None:
        """Find constants, fold them into the biases behind them, and name the spaces."""
        sizes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        shapes = gate.check(self.graph, sizes, gate.UNLIMITED).shapes
        for index, (node, shape) in enumerate(zip(self.nodes, shapes, strict=True)):
            if node.op == "input":
                channels = self.input_shape[0]
                value = Value(self.input_shape, varying(channels), self.spaces.new(channels, fixed=True))
            else:
                value = self.flow(index, node, shape)
            if _is_by_channel(node):
                self.share(self.nodes[index], value)
            self.values.append(value)
        self.spaces.fix(self.values[-1])

    def share(self, node: Node, value: Value) -> None:
        """A tensor by channel that several operations read is cut once: their channels go together."""
        for name in node.parameters.values():
            if len(self.tensors[name]) == len(value.constant):
                self.spaces.join(self.first.setdefault(name, value), value)

    def flow(self, index: int, node: Node, shape: tuple[int, ...]) -> Value:
        sources = [self.values[i] for i in node.inputs]
        if is_weighted(node.op):
            self.read[index] = self.aligned(node, sources[0])
            if self.uses[node.parameters["weight"]] > 1:
                return self.flow_shared(node, self.read[index], shape)
            return self.flow_weighted(index, node, self.read[index], shape)
        kind = OPERATIONS[node.op].channels
        if kind is Channels.FLATTENED:
            return self.reshaped(sources[0], shape)
        if kind is Channels.BEHIND and shape and all(value.axis == node.attributes["axis"] for value in sources):
            constant = torch.cat([value.constant for value in sources])
            return Value(shape, constant, self.spaces.behind(sources), sources[0].axis)
        if kind is Channels.GATED and not any(self.uses[name] > 1 for name in node.parameters.values()):
            return self.flow_recurrent(index, node, sources[0], shape)
        if kind is Channels.LOOKED_UP and self.uses[node.parameters["weight"]] == 1:
            table = self.tensors[node.parameters["weight"]]
            constant = torch.where((table == 0).all(0), 0.0, torch.nan).double()
            return Value(shape, constant, self.spaces.new(table.shape[1]), len(shape))
        apart = kind is Channels.APART or (kind is Channels.BEHIND_BATCH and sources[0].axis == 1)
        if not shape or not all(value.shape for value in sources):  # a number per example has no channels
            return self.mixed(sources, shape)
        sizes = {(value.axis, value.shape[value.axis - 1]) for value in sources}
        axes = (*node.attributes.get("axes", ()), node.attributes.get("axis"))
        apart = apart and 1 not in axes  # a mean over the channels, or some of them
        if not apart or sizes != {(sources[0].axis, shape[sources[0].axis - 1])}:
            return self.mixed(sources, shape)
        value = replace(sources[0], shape=shape)
        for other in sources[1:]:
            self.spaces.join(sources[0], other)
        value.constant = self.known(node, [source.constant for source in sources])
        return value

    def known(self, node: Node, constants: list[Tensor]) -> Tensor:
        """What becomes of channels that are the same everywhere."""
        if (known := OPERATIONS[node.op].known) is None:
            parameters = {role: self.tensors[name] for role, name in node.parameters.items()}
            found = run_node(node, [constant[None] for constant in constants], parameters)[0]
            return torch.where(found.isfinite(), found, torch.nan)  # infinity is nothing that a bias could be
        with np.errstate(all="ignore"):
            values = known([constant.cpu().numpy() for constant in constants], node.attributes)
        return torch.from_numpy(values).to(constants[0].device)

    def mixed(self, sources: list[Value], shape: tuple[int, ...]) -> Value:
        """The output of an operation that does not keep channels apart: all of them stay, on both sides."""
        self.spaces.fix(*sources)
        channels = shape[0] if shape else 1
        return Value(shape, varying(channels), self.spaces.new(channels, fixed=True))

    def aligned(self, node: Node, source: Value) -> Value:
        """A layer's input with its channels where the layer has its inputs; if they are elsewhere, all stay."""
        axis = len(source.shape) if is_last(node.op) else 1
        if source.axis == axis:
            return source
        self.spaces.fix(source)
        size = source.shape[axis - 1]
        return replace(source, constant=varying(size), parts=self.spaces.new(size, fixed=True), axis=axis)

    def flow_weighted(self, index: int, node: Node, source: Value, shape: tuple[int, ...]) -> Value:
        name = node.parameters["weight"]
        out, into = self.tensors[name].shape[:2]
        groups = node.attributes.get("groups", 1)
        known = source.constant
        if any(any(side) for side in node.attributes.get("padding", ())):
            known = torch.where(known == 0, 0.0, torch.nan)
        # entry (o, j) of the weight reads input channel j of the group that o belongs to
        reads = known.view(groups, 1, into).expand(-1, out // groups, -1).reshape(out, into)
        offset = torch.zeros(out, dtype=torch.float64)
        if not known.isnan().all():
            weight = self.changeable(name)
            for rows in rows_of(tuple(weight.shape)):
                part = weight[rows].double()
                offset[rows] = torch.nansum(reads[rows] * (part.flatten(2).sum(2) if part.dim() > 2 else part), 1)
                weight[rows].masked_fill_(~reads[rows].isnan().view(*part.shape[:2], *[1] * (part.dim() - 2)), 0)
        bias = self.bias(index, offset)
        constant = torch.where(self.occupied(name)[0] > 0, torch.nan, bias)
        if groups != 1 and into == 1:  # depthwise: channel i makes the outputs i·m, ..., i·m + m - 1
            return Value(shape, constant, tuple((space, factor * (out // groups)) for space, factor in source.parts))
        if groups != 1:
            self.spaces.fix(source)
        axis = len(shape) if is_last(node.op) else 1
        return Value(shape, constant, self.spaces.new(out, fixed=groups != 1), axis)

    def flow_recurrent(self, index: int, node: Node, source: Value, shape: tuple[int, ...]) -> Value:
        """A recurrent layer: its units are channels of the output, and of its own recurrent weight."""
        if source.axis != len(source.shape):
            self.spaces.fix(source)
            size = source.shape[-1]
            source = replace(source, constant=varying(size), parts=self.spaces.new(size, fixed=True), axis=len(shape))
        self.read[index] = source
        into = self.tensors[node.parameters["weight_ih"]]
        into[:, source.constant == 0] = 0  # it reads nothing there
        tensors = {role: self.tensors[name] for role, name in node.parameters.items()}
        quiet = silent(tensors, shape[-1])
        tensors["weight_hh"][:, quiet] = 0
        constant = torch.where(quiet, 0.0, torch.nan).double()
        return Value(shape, constant, self.spaces.new(shape[-1]), len(shape))

    def flow_shared(self, node: Node, source: Value, shape: tuple[int, ...]) -> Value:
        """A layer whose weight is used elsewhere too: all channels stay on both sides."""
        self.spaces.fix(source)
        channels = len(self.tensors[node.parameters["weight"]])
        axis = len(shape) if is_last(node.op) else 1
        return Value(shape, varying(channels), self.spaces.new(channels, fixed=True), axis)

    def occupied(self, name: str) -> tuple[Tensor, Tensor]:
        """`_occupied` of a weight, looked at anew only where it has changed."""
        if name not in self.seen:
            self.seen[name] = _occupied(self.tensors[name])
        return self.seen[name]

    def changeable(self, name: str) -> Tensor:
        """A weight that is about to be changed in place."""
        self.seen.pop(name, None)
        if name in self.shared:
            self.tensors[name] = self.tensors[name].clone()
            self.shared.remove(name)
        return self.tensors[name]

    def bias(self, index: int, offset: Tensor) -> Tensor:
        """The layer's bias after adding an offset; a layer without one of its own gets one where it is needed."""
        node = self.nodes[index]
        given = node.parameters.get("bias")
        if given is not None and (self.uses[given] == 1 or not offset.any()):
            self.tensors[given] += offset
            return self.tensors[given]
        if offset.any():
            name = node.parameters["weight"].removesuffix("weight") + "bias"
            while name in self.tensors:
                name += "_"
            self.nodes[index] = replace(node, parameters={**node.parameters, "bias": name})
            self.tensors[name] = offset if given is None else self.tensors[given] + offset
            return self.tensors[name]
        return offset

    def reshaped(self, source: Value, shape: tuple[int, ...]) -> Value:
        """Flattening keeps channels, each as several entries; any other reshape fixes both sides."""
        if not shape or not source.shape:
            return self.mixed([source], shape)
        flattens = len(shape) == 1 or shape[0] == source.shape[0]
        if not flattens or source.axis != 1 or shape[0] % source.shape[0]:
            return self.mixed([source], shape)
        times = shape[0] // source.shape[0]
        parts = tuple((space, factor * times) for space, factor in source.parts)
        return Value(shape, source.constant.repeat_interleave(times), parts)

    # --- backward: who is read

    def sweep(self) -> bool:
        """One pass from the output to the input; True if something died."""
        spaces = self.spaces
        read = {
            space: torch.full_like(alive, space in spaces.fixed)
            for space, alive in spaces.alive.items()
            if spaces.find(space) == space
        }
        died = False
        for index in reversed(range(1, len(self.nodes))):
            node, value = self.nodes[index], self.values[index]
            kind = OPERATIONS[node.op].channels
            if index in self.read and kind is Channels.GATED:
                died |= self.silence(node, ~spaces.live(value))
                spaces.mark(read, self.read[index], (self.tensors[node.parameters["weight_ih"]] != 0).any(0))
            elif kind is Channels.LOOKED_UP and value.axis == len(value.shape) and not self.mixes(value):
                table, dead = self.tensors[node.parameters["weight"]], ~spaces.live(value)
                died |= bool((table[:, dead] != 0).any())
                table[:, dead] = 0
            if not is_weighted(node.op):
                continue
            name, source = node.parameters["weight"], self.read[index]
            dead = ~spaces.live(value)
            if ((self.occupied(name)[0] > 0) & dead).any():
                self.changeable(name)[dead] = 0
                died = True
            if node.attributes.get("groups", 1) == 1:
                spaces.mark(read, source, self.occupied(name)[1])
        self.close(read)
        for space, channels in read.items():
            channels &= spaces.alive[space]
            if not channels.any():  # no operation takes an empty tensor: one channel stays
                channels[int(spaces.alive[space].to(torch.uint8).argmax())] = True
            if not torch.equal(spaces.alive[space], channels):
                spaces.alive[space] = channels
                died = True
        return died

    def mixes(self, value: Value) -> bool:
        """Whether a value's channels were not followed."""
        return all(self.spaces.is_fixed(space) for space, _ in value.parts)

    def silence(self, node: Node, dead: Tensor) -> bool:
        """Zero all rows of dead units of a recurrent layer, and its columns that read them; True if any was not."""
        changed = False
        for role, name in node.parameters.items():
            rows = self.tensors[name].view(-1, len(dead), *self.tensors[name].shape[1:])
            changed |= bool((rows[:, dead] != 0).any())
            rows[:, dead] = 0
            if role == "weight_hh":
                self.tensors[name][:, dead] = 0
        return changed

    def close(self, read: dict[int, Tensor]) -> None:
        """Of units of recurrent layers those are read, too, whom a unit that is read needs."""
        gated = [index for index in self.read if OPERATIONS[self.nodes[index].op].channels is Channels.GATED]
        while True:
            before = {space: channels.clone() for space, channels in read.items()}
            for index in gated:
                ((space, _),) = self.values[index].parts
                space = self.spaces.find(space)
                read[space] = needed(read[space], self.tensors[self.nodes[index].parameters["weight_hh"]])
            if all(torch.equal(before[space], channels) for space, channels in read.items()):
                return

    # --- the smaller network

    def cut(self, dtypes: dict[str, torch.dtype]) -> Shrunk:
        orders = self.orders()
        nodes = []
        rows, columns, tensors = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
        last = {name: index for index, node in enumerate(self.nodes) for name in node.parameters.values()}
        for index, (node, value) in enumerate(zip(self.nodes, self.values, strict=True)):
            keep = self.spaces.kept(value, orders)
            kind = OPERATIONS[node.op].channels if node.op in OPERATIONS else None
            gated, looked_up = kind is Channels.GATED and index in self.read, kind is Channels.LOOKED_UP
            for role, name in node.parameters.items():
                if self.tensors[name].dim() == 0:  # a number has no rows
                    tensors[name] = self.tensors[name].to(dtypes[name])
                    continue
                size = len(self.tensors[name])
                by_channel = _is_by_channel(node) and size == len(value.constant)
                rows[name] = keep if by_channel else torch.arange(size)
                if gated:
                    rows[name] = rows_of_units(keep, len(value.constant), size)
                if (gated and role == "weight_hh") or (looked_up and not self.mixes(value)):
                    columns[name] = keep
                if gated and role == "weight_ih":
                    columns[name] = self.spaces.kept(self.read[index], orders)
                if is_weighted(node.op) and role == "weight" and node.attributes.get("groups", 1) == 1:
                    source = self.read[index]
                    columns[name] = self.spaces.kept(source, orders)
                tensor = _cut(self.tensors[name], rows[name], columns.get(name))
                tensors[name] = tensor.to(dtypes[name] if name in dtypes else dtypes[node.parameters["weight"]])
            for name in {name for name in node.parameters.values() if last[name] == index}:
                del self.tensors[name]
            if is_flattening(node.op):
                shape = [len(keep), *value.shape[1:]] if value.shape else []
                node = replace(node, attributes={"shape": shape})
            elif is_weighted(node.op) and node.attributes.get("groups", 1) != 1:
                source = self.read[index]
                channels = len(self.spaces.kept(source, orders))
                each = len(source.constant) // node.attributes["groups"]
                node = replace(node, attributes=node.attributes | {"groups": channels // each})
            nodes.append(node)
        return Shrunk(replace(self.graph, nodes=tuple(nodes)), tensors, rows, columns)

    def free(self) -> list[Units]:
        """The spaces that are not fixed, with their tensors."""
        axes: dict[int, list[tuple[str, int, int]]] = {}
        stay = {self.spaces.find(space) for space in self.spaces.fixed | self.spaces.several}
        for index, (node, value) in enumerate(zip(self.nodes, self.values, strict=True)):
            kind = OPERATIONS[node.op].channels if node.op in OPERATIONS else None
            if kind in (Channels.GATED, Channels.LOOKED_UP):  # theirs lie on other axes than `Units` tells
                read = self.read[index].parts if index in self.read else ()
                stay |= {self.spaces.find(space) for space, _ in (*value.parts, *read)}
            if _is_by_channel(node) and len(value.parts) == 1:
                ((space, factor),) = value.parts
                made = axes.setdefault(self.spaces.find(space), [])
                names = (n for n in node.parameters.values() if len(self.tensors[n]) == len(value.constant))
                made += [(name, 0, factor) for name in names]
            if is_weighted(node.op) and node.attributes.get("groups", 1) == 1 and len(self.read[index].parts) == 1:
                ((space, factor),) = self.read[index].parts
                axes.setdefault(self.spaces.find(space), []).append((node.parameters["weight"], 1, factor))
        free = {space: dict.fromkeys(found) for space, found in axes.items() if space not in stay}  # each once
        return [Units(len(self.spaces.alive[space]), tuple(found)) for space, found in free.items()]

    def orders(self) -> dict[int, Tensor]:
        """Live channels of every space; free ones by the number of non-zero weights that make them, most first."""
        spaces = self.spaces
        made = {spaces.find(space): torch.zeros(len(alive)) for space, alive in spaces.alive.items()}
        for node, value in zip(self.nodes, self.values, strict=True):
            if is_weighted(node.op):
                spaces.count(made, value, self.occupied(node.parameters["weight"])[0])
        found = {}
        for space, counts in made.items():
            live = spaces.alive[space].nonzero().flatten()
            order = torch.argsort(counts[live], descending=True, stable=True)
            found[space] = live if space in spaces.fixed else live[order]
        return found


def _occupied(weight: Tensor) -> tuple[Tensor, Tensor]:
    """How many values of every row of a weight are not zero, and which columns hold any that is not."""
    counts, columns = [], np.zeros(weight.shape[1], bool)
    for part in blocks(weight, CACHED):
        used = (part != 0).numpy().reshape(len(part), weight.shape[1], -1)
        counts += [np.count_nonzero(row) for row in used]
        columns |= used.any((0, 2))
    return torch.tensor(counts), torch.from_numpy(columns)


def _cut(tensor: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """Some rows of a tensor, and of these some columns: a copy."""
    width = () if columns is None else (len(columns),)
    found = tensor.new_empty((len(rows), *width, *tensor.shape[1 + len(width) :]))
    for part in rows_of((len(rows), *tensor.shape[1:]), CACHED):
        taken = tensor[rows[part]]
        found[part] = taken if columns is None else taken.index_select(1, columns)
    return found


def _is_by_channel(node: Node) -> bool:
    return node.op in OPERATIONS and OPERATIONS[node.op].by_channel
