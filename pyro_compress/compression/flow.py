"""Forward through a network: which channels are the same everywhere, and which must agree.

A channel whose weights are all zero emits a constant; constants flow through activations and are folded into the
biases of the layers that read them. What an operation does to channels is in its row (`Operation.channels`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.axes import Batches, joined, permuted, regrouped, reshaped, taken
from pyro_compress.compression.channels import Spaces, Value, varying
from pyro_compress.compression.held import Held, is_by_channel, kind_of
from pyro_compress.compression.recurrence import silent
from pyro_compress.graph.operations.kept import attends
from pyro_compress.graph.operations.row import Channels
from pyro_compress.graph.operations.table import OPERATIONS, is_last
from pyro_compress.graph.rules.table import run_node
from pyro_compress.pcn import gate
from pyro_compress.types import Graph, Node, rows_of

MOVES = (Channels.FLATTENED, Channels.REGROUPED, Channels.MOVED, Channels.TAKEN)


class Flow:
    """What is known of a network's values.

    Attributes:
        graph: as it was.
        nodes: its operations; a layer may have got a bias.
        held: its tensors, constants folded in.
        values: the output of every node.
        read: layer whose channels are followed -> its input, as it reads it.
        spaces: all channels.
        why: what each of `spaces.stay` met.
    """

    def __init__(self, graph: Graph, tensors: dict[str, Tensor], spare: Collection[str] = ()):
        self.graph, self.nodes = graph, list(graph.nodes)
        self.held = Held(graph, tensors, spare)
        self.values: list[Value] = []
        self.whole: list[Batches] = []  # shape of every value for two numbers of examples
        self.read: dict[int, Value] = {}
        self.spaces = Spaces()
        self.why: list[Node] = []
        self.first: dict[str, Value] = {}  # tensor by channel -> the first output that it is read for

    def fold(self) -> None:
        """Find constants, fold them into the biases behind them, and join channels."""
        sizes = {name: tuple(tensor.shape) for name, tensor in self.held.tensors.items()}
        plan = gate.check(self.graph, sizes, gate.UNLIMITED)
        self.whole, shapes = [flow.at for flow in plan.flows], plan.shapes
        for index, (node, shape) in enumerate(zip(self.nodes, shapes, strict=True)):
            value = Value(self.graph.input_shape) if node.op == "input" else self.flow(index, node, shape)
            if is_by_channel(node) and value.axes:
                self.share(self.nodes[index], value)
            self.values.append(value)
            self.why += [node] * (len(self.spaces.stay) - len(self.why))
        self.spaces.fix(self.values[-1])
        self.spaces.settle(self.values)

    def share(self, node: Node, value: Value) -> None:
        """A tensor by channel that several operations read is cut once: their channels go together."""
        for name in node.parameters.values():
            if len(self.held.tensors[name]) == len(value.ids):
                first = self.first.setdefault(name, value)
                self.spaces.join(first.ids, value.ids)

    def flow(self, index: int, node: Node, shape: tuple[int, ...]) -> Value:
        """The output of a node."""
        sources = [self.values[i] for i in node.inputs]
        kind = kind_of(node)
        if kind is Channels.MADE:
            return self.weighted(index, node, sources[0], shape)
        if kind is Channels.MADE_ACROSS and node.attributes.get("groups", 1) == 1 and self.held.alone(node):
            return self.across(index, node, sources[0], shape)
        if kind is Channels.GATED and self.held.alone(node):
            return self.recurrent(index, node, sources[0], shape)
        if kind is Channels.LOOKED_UP and self.held.alone(node):
            table = self.held.tensors[node.parameters["weight"]]
            constant = torch.where((table == 0).all(0), 0.0, torch.nan).double()
            return Value(shape, (len(shape),), self.spaces.new(table.shape[1]), constant)
        if not shape or not all(value.shape for value in sources):  # a number per example has no channels
            return self.mixed(sources, shape)
        if kind is Channels.BEHIND and any(node.attributes["axis"] in value.axes for value in sources):
            return self.behind(sources, shape, node.attributes["axis"])
        if node.op == "aten" and len(sources) > 2 and attends(node.attributes, [value.shape for value in sources]):
            self.spaces.fix(*sources[3:])
            return self.matched(sources[:3], shape, False)  # of a mask nobody knows whether it leaves anything
        if kind in (Channels.MATCHED, Channels.ATTENDED):
            return self.matched(sources, shape, kind is Channels.ATTENDED)
        if kind is Channels.APART or (kind is Channels.BEHIND_BATCH and 1 in sources[0].axes):
            return self.apart(node, sources, shape, kind is Channels.BEHIND_BATCH)
        found = None
        if sources and sources[0].axes and kind in MOVES:
            found = self.moved(index, node, sources[0], shape)
        return found if found is not None and found.axes else self.mixed(sources, shape)

    def mixed(self, sources: list[Value], shape: tuple[int, ...]) -> Value:
        """The output of an operation that does not keep channels apart: all of them stay, on both sides."""
        self.spaces.fix(*sources)
        return Value(shape)

    def moved(self, index: int, node: Node, source: Value, shape: tuple[int, ...]) -> Value | None:
        """The output of an operation that moves values; None where their channels cannot be followed."""
        kind = kind_of(node)
        if kind is Channels.FLATTENED:
            return reshaped(source, shape)
        if kind is Channels.REGROUPED:
            return regrouped(source, self.whole[node.inputs[0]], self.whole[index])
        if kind is Channels.MOVED:
            return permuted(source, shape, node.attributes["axes"])
        if node.attributes["axis"] in source.axes:
            self.spaces.keep_order(source)
        return taken(node, source, shape)

    def behind(self, sources: list[Value], shape: tuple[int, ...], axis: int) -> Value:
        """Values joined along an axis of their channels."""
        axes = max((value.axes for value in sources), key=len)
        for place, value in enumerate(sources):
            if not value.axes and axes == (axis,):  # all of it stays, beside what may go
                sources[place] = self.opened(value, axis)
        if any(value.axes != axes for value in sources):
            return self.mixed(sources, shape)
        return joined(sources, shape, axis)

    def opened(self, value: Value, axis: int) -> Value:
        """A value all of which stays, with channels along an axis."""
        self.spaces.fix(value)
        size = value.shape[axis - 1]
        return Value(value.shape, (axis,), self.spaces.new(size, fixed=True), varying(size))

    def aligned(self, value: Value, axis: int) -> Value:
        """A layer's input with its channels where the layer has its inputs; if they are elsewhere, all stay."""
        return self.spaces.restrict(value, (axis,)) if axis in value.axes else self.opened(value, axis)

    def apart(self, node: Node, sources: list[Value], shape: tuple[int, ...], first: bool) -> Value:
        """An operation that keeps channels apart; those that meet go together.

        Args:
            node: the operation.
            sources: what it reads.
            shape: of its output.
            first: only where they are the first dimension behind the batch.
        """
        named = {*node.attributes.get("axes", ()), node.attributes.get("axis")}
        gone = [axis for axis in named if axis] if len(shape) < len(sources[0].shape) else []
        to = {axis: axis - sum(one < axis for one in gone) for axis in range(1, len(sources[0].shape) + 1)}
        if any(len(value.shape) != len(sources[0].shape) for value in sources):
            return self.mixed(sources, shape)
        common = list[int]()
        for axis in {axis for value in sources for axis in value.axes} - named:
            size = shape[to[axis] - 1]
            wide = [value for value in sources if value.shape[axis - 1] == size]
            repeated = all(value.shape[axis - 1] == 1 for value in sources if value.shape[axis - 1] != size)
            if wide and repeated and all(axis in value.axes for value in wide) and not (first and axis != 1):
                common.append(axis)
        axes = tuple(sorted(common))
        sources = [self.spaces.restrict(value, axes) for value in sources]
        if not axes:
            return Value(shape)
        sizes = [shape[to[axis] - 1] for axis in axes]
        followed = [value.spread(axes)[0].expand(sizes) for value in sources if value.axes]
        for ids in followed[1:]:
            self.spaces.join(followed[0], ids)
        nothing = torch.full(sizes, torch.nan, dtype=torch.float64)
        constants = [value.spread(axes)[1].expand(sizes) if value.axes else nothing for value in sources]
        known = self.known(node, [constant.flatten() for constant in constants]).reshape(sizes)
        return Value(shape, tuple(to[axis] for axis in axes), followed[0], known)

    def known(self, node: Node, constants: list[Tensor]) -> Tensor:
        """What becomes of channels that are the same everywhere."""
        if (known := OPERATIONS[node.op].known) is None:
            found = run_node(node, [constant[None] for constant in constants], self.held.of(node))[0]
            return torch.where(found.isfinite(), found, torch.nan)  # infinity is nothing that a bias could be
        with np.errstate(all="ignore"):
            values = known([constant.cpu().numpy() for constant in constants], node.attributes)
        return torch.from_numpy(values).to(constants[0].device)

    def matched(self, sources: list[Value], shape: tuple[int, ...], means: bool) -> Value:
        """Products of matrices for each of several heads, of which the last input's columns become the output's.

        Args:
            sources: what is multiplied.
            shape: of the output.
            means: whether they are means of that input's rows: what is the same in all of them stays the same.
        """
        rank = len(shape)
        heads = tuple(axis for axis in sources[0].axes if axis < rank - 1)
        alike = all(tuple(axis for axis in value.axes if axis < rank - 1) == heads for value in sources)
        if not heads or not alike or any(value.shape[:-2] != shape[:-2] for value in sources):
            return self.mixed(sources, shape)
        others = [self.spaces.restrict(value, heads) for value in sources[:-1]]
        last = self.spaces.restrict(sources[-1], (*heads, rank))
        if last.axes != heads:
            self.spaces.keep_order(last)
            self.spaces.along(last.ids, tuple(range(len(heads))))
        rows = [value.ids for value in others] + [last.ids if last.axes == heads else last.ids[..., 0]]
        for ids in rows[1:]:
            self.spaces.join(rows[0], ids)
        constant = last.constant if means else torch.where(last.constant == 0, 0.0, torch.nan)
        return Value(shape, last.axes, last.ids, constant)

    # --- layers

    def weighted(self, index: int, node: Node, source: Value, shape: tuple[int, ...]) -> Value:
        """A layer whose weight has a row for every channel that it makes."""
        name = node.parameters["weight"]
        axis = len(source.shape) if is_last(node.op) else 1
        source = self.read[index] = self.aligned(source, axis)
        out, into = self.held.tensors[name].shape[:2]
        if self.held.uses[name] > 1:  # a weight that is used elsewhere too: all channels stay on both sides
            return self.opened(self.mixed([source], shape), len(shape) if is_last(node.op) else 1)
        groups = node.attributes.get("groups", 1)
        known = source.constant
        if any(any(side) for side in node.attributes.get("padding", ())):
            known = torch.where(known == 0, 0.0, torch.nan)
        # entry (o, j) of the weight reads input channel j of the group that o belongs to
        reads = known.view(groups, 1, into).expand(-1, out // groups, -1).reshape(out, into)
        offset = torch.zeros(out, dtype=torch.float64)
        if not known.isnan().all():
            weight = self.held.changeable(name)
            for rows in rows_of(tuple(weight.shape)):
                part = weight[rows].double()
                offset[rows] = torch.nansum(reads[rows] * (part.flatten(2).sum(2) if part.dim() > 2 else part), 1)
                weight[rows].masked_fill_(~reads[rows].isnan().view(*part.shape[:2], *[1] * (part.dim() - 2)), 0)
        constant = torch.where(self.held.occupied(name)[0] > 0, torch.nan, self.bias(index, offset))
        if groups != 1 and into == 1:  # depthwise: channel i makes the outputs i·m, ..., i·m + m - 1
            return Value(shape, (1,), source.ids.repeat_interleave(out // groups), constant)
        if groups != 1:
            self.spaces.fix(source)
        axis = len(shape) if is_last(node.op) else 1
        return Value(shape, (axis,), self.spaces.new(out, fixed=groups != 1), constant)

    def bias(self, index: int, offset: Tensor) -> Tensor:
        """The layer's bias after adding an offset; a layer without one of its own gets one where it is needed."""
        node, tensors = self.nodes[index], self.held.tensors
        given = node.parameters.get("bias")
        if given is not None and (self.held.uses[given] == 1 or not offset.any()):
            tensors[given] += offset
            return tensors[given]
        if offset.any():
            name = node.parameters["weight"].removesuffix("weight") + "bias"
            while name in tensors:
                name += "_"
            self.nodes[index] = replace(node, parameters={**node.parameters, "bias": name})
            tensors[name] = offset if given is None else tensors[given] + offset
            return tensors[name]
        return offset

    def across(self, index: int, node: Node, source: Value, shape: tuple[int, ...]) -> Value:
        """A layer whose weight has a row for every channel that it reads.

        Constants are folded into the bias where every output reads all of its inputs once; else only zeros are known.
        """
        axis = len(shape) if is_last(node.op) else 1
        source = self.read[index] = self.aligned(source, axis)
        weight = self.held.tensors[node.parameters["weight"]]
        known = source.constant if is_last(node.op) else torch.where(source.constant == 0, 0.0, torch.nan)
        rows = known.nan_to_num(0.0).view(-1, *[1] * (weight.dim() - 1))
        offset = (rows * weight).transpose(0, 1).flatten(1).sum(1)
        weight[~known.isnan()] = 0
        dead = (weight == 0).transpose(0, 1).flatten(1).all(1)
        constant = torch.where(dead, self.bias(index, offset), torch.nan)
        return Value(shape, (axis,), self.spaces.new(weight.shape[1]), constant)

    def recurrent(self, index: int, node: Node, source: Value, shape: tuple[int, ...]) -> Value:
        """A recurrent layer: its units are channels of the output, and of its own recurrent weight."""
        source = self.read[index] = self.aligned(source, len(source.shape))
        tensors = self.held.of(node)
        tensors["weight_ih"][:, source.constant == 0] = 0  # it reads nothing there
        quiet = silent(tensors, shape[-1])
        tensors["weight_hh"][:, quiet] = 0
        constant = torch.where(quiet, 0.0, torch.nan).double()
        return Value(shape, (len(shape),), self.spaces.new(shape[-1]), constant)
