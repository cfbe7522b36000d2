"""Backward through a network: a channel that nobody reads is dead, and so is the row that makes it."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_compress.compression.flow import Flow
from pyro_compress.compression.held import kind_of
from pyro_compress.compression.recurrence import needed
from pyro_compress.graph.operations.row import Channels


def swept(flow: Flow) -> bool:
    """One pass from the output to the input; True if something died.

    Args:
        flow: folded; channels that are dead get zero weights, and are marked.
    """
    spaces, tensors = flow.spaces, flow.held.tensors
    read, died = spaces.fixed.clone(), False
    for index in reversed(range(1, len(flow.nodes))):
        node, value = flow.nodes[index], flow.values[index]
        kind = kind_of(node)
        if kind is Channels.LOOKED_UP and value.axes:
            died |= _zeroed(tensors[node.parameters["weight"]].T, ~spaces.live(value))
        if index not in flow.read:
            continue
        source, dead = flow.read[index], ~spaces.live(value)
        if kind is Channels.GATED:
            for role, name in node.parameters.items():
                died |= _zeroed(tensors[name].view(-1, len(dead), *tensors[name].shape[1:]).transpose(0, 1), dead)
                if role == "weight_hh":
                    tensors[name][:, dead] = 0
            spaces.mark(read, source, (tensors[node.parameters["weight_ih"]] != 0).any(0))
        elif kind is Channels.MADE_ACROSS:
            weight = tensors[node.parameters["weight"]]
            died |= _zeroed(weight.transpose(0, 1), dead)
            spaces.mark(read, source, (weight != 0).flatten(1).any(1))
        else:
            name = node.parameters["weight"]
            if ((flow.held.occupied(name)[0] > 0) & dead).any():
                flow.held.changeable(name)[dead] = 0
                died = True
            if node.attributes.get("groups", 1) == 1:
                spaces.mark(read, source, flow.held.occupied(name)[1])
    _close(flow, read)
    read &= spaces.alive
    for start, end in spaces.ranges:
        _keep_one(flow, read, spaces.root[start:end])
    for value in flow.values:
        if value.axes:
            _keep_one(flow, read, spaces.root[value.ids.flatten()])
    read = read[spaces.root]
    died |= not torch.equal(read, spaces.alive[spaces.root])
    spaces.alive = read
    return died


def _zeroed(rows: Tensor, dead: Tensor) -> bool:
    """Set the rows of dead channels to zero; True if any was not."""
    changed = bool((rows[dead] != 0).any())
    rows[dead] = 0
    return changed


def _keep_one(flow: Flow, read: Tensor, roots: Tensor) -> None:
    """No operation takes an empty tensor: one channel stays."""
    if not read[roots].any():
        read[roots[int(flow.spaces.alive[roots].to(torch.uint8).argmax())]] = True


def _close(flow: Flow, read: Tensor) -> None:
    """Of units of recurrent layers those are read, too, whom a unit that is read needs."""
    gated = [index for index in flow.read if kind_of(flow.nodes[index]) is Channels.GATED]
    while True:
        before = read.clone()
        for index in gated:
            roots = flow.spaces.root[flow.values[index].ids]
            read[roots[needed(read[roots], flow.held.tensors[flow.nodes[index].parameters["weight_hh"]])]] = True
        if torch.equal(before, read):
            return
