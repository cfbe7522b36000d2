"""Sequences of any length up to the longest: which numbers of a graph change with it, and by how much.

A network is read once for the longest sequences and once for sequences of one step less. Where both graphs have the
same nodes, every number that differs is taken to be linear in the length (`pyro_compress.length.Length`), and what
that gives is held against the module at other lengths before anybody trusts it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pyro_compress.graph.checked import BATCHES, close, evaluating, examples, exported, held_tensors, outputs_of
from pyro_compress.graph.network import run_graph
from pyro_compress.graph.reading import read
from pyro_compress.length import Length
from pyro_compress.types import Graph, Node

SHORTEST = 4
"""Sequences of fewer steps have no shorter ones."""
FEWEST = (1, 2, 4, 8, 16)
"""Lengths that may be the shortest: kernels and strides want some."""


def with_lengths(net: nn.Module, graph: Graph) -> Graph:
    """A network's graph, made for shorter sequences too where its module takes them and the graph can say how.

    Args:
        net: the network.
        graph: what was read from it, for tokens `(length,)`; another one stays as it is.
    """
    if graph.kind != "int64" or len(graph.input_shape) != 1 or graph.input_shape[0] < SHORTEST:
        return graph
    (longest,) = graph.input_shape
    half = longest // 2
    try:
        shorter = _read(net, graph, longest - 1)
        try:
            varying = _family(graph, shorter)
        except ValueError:  # what is read of a tensor is all of it for the longest alone
            varying = _family(_family(shorter, _read(net, graph, longest - 2)).lengthened(1), shorter)
    except ValueError:  # the module takes no other length, or computes something else for it
        return graph
    if not all(_holds(net, varying, length) for length in (longest, longest - 1, half)):
        return graph
    return replace(varying, least=next(n for n in (*FEWEST, half) if n >= half or _holds(net, varying, n)))


def _read(net: nn.Module, graph: Graph, length: int) -> Graph:
    return read(exported(net, (length,), graph.kind), (length,), graph.kind).graph


def _family(full: Graph, shorter: Graph) -> Graph:
    """The graph of the longer sequences, with what changes in that of one step less.

    Raises:
        ValueError: they differ in more than in numbers.
    """
    nodes = list[Node]()
    for one, other in zip(full.nodes, shorter.nodes, strict=True):
        if (one.op, one.inputs, one.parameters) != (other.op, other.inputs, other.parameters):
            raise ValueError("another operation for another length")
        nodes.append(replace(one, attributes=_varying(one.attributes, other.attributes)))
    return replace(full, nodes=tuple(nodes), least=1)


def _varying(full: Any, shorter: Any) -> Any:
    """An attribute whose numbers change from the longest sequences to those of one step less.

    Raises:
        ValueError: something else changes.
    """
    whole = [isinstance(value, int) and not isinstance(value, bool) for value in (full, shorter)]
    if all(whole):
        return full if full == shorter else Length(full, full - shorter)
    if isinstance(full, dict) and isinstance(shorter, dict) and full.keys() == shorter.keys():
        return {key: _varying(full[key], shorter[key]) for key in full}
    if isinstance(full, list) and isinstance(shorter, list):
        return [_varying(one, other) for one, other in zip(full, shorter, strict=True)]
    if full != shorter:
        raise ValueError("something else than a number changes with the length")
    return full


@torch.no_grad()
def _holds(net: nn.Module, graph: Graph, length: int) -> bool:
    """Whether a network computes at a length what its graph says."""
    at, tensors = graph.at((length,)), held_tensors(net)
    try:
        for batch in BATCHES:
            x = examples(net, at, batch)
            with evaluating(net):
                wanted = outputs_of(net, x, "at another length")
            if not close(run_graph(at, tensors, x), wanted):
                return False
    except (ValueError, RuntimeError, IndexError):  # of the module, or of shapes that do not fit
        return False
    return True
