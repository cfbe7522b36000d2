"""Graphs: from plain values, and what is read off them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyro_compress.foreign import of_type, record, shown, table
from pyro_compress.graph.operations.kept import multiplies, whole_tensors
from pyro_compress.graph.operations.table import OPERATIONS, is_last, is_weighted
from pyro_compress.inputs import inputs_of
from pyro_compress.length import Length
from pyro_compress.pcn.gate import kind_of, least_of
from pyro_compress.types import Graph, Node


def head_of(graph: Graph) -> list[str]:
    """Names of the tensors of the last layer with weights."""
    last = [node for node in graph.nodes if is_weighted(node.op)][-1:]
    return [name for node in last for name in node.parameters.values()]


def convolves(graph: Graph) -> bool:
    """Whether a layer's channels lie before its positions, as a convolution's do."""
    return any(is_weighted(node.op) and not is_last(node.op) for node in graph.nodes)


def graph_of(document: Any) -> Graph:
    """A graph from what `dataclasses.asdict` made of one, after a detour through JSON.

    Raises:
        ValueError: it is none: other fields or types, a node that reads one that comes later.
    """
    given = table(document, "graph")
    nodes = [record(Node, node, "node") for node in of_type(given.get("nodes"), list[Any], "nodes")]
    shape = of_type(given.get("input_shape"), list[int], "input_shape")
    if not nodes or nodes[0] != Node("input", []):  # type: ignore[arg-type]
        raise ValueError("the first node must be the input")
    for index, node in enumerate(nodes[1:], 1):
        if not all(0 <= i < index for i in node.inputs):
            raise ValueError(f"node {index} reads {shown(list(node.inputs))}; it may read nodes before it only")
    kind, inputs = kind_of(given.get("kind", "float32")), given.get("inputs") or []
    least = least_of(given.get("least", 0), tuple(shape))
    listed = [list(one.values()) if isinstance(one, dict) else one for one in of_type(inputs, list[Any], "inputs")]
    nodes = [replace(node, inputs=tuple(node.inputs)) for node in nodes]
    if least:
        nodes = [replace(node, attributes=Length.read(node.attributes, shape[0])) for node in nodes]
    return Graph(tuple(nodes), tuple(shape), kind, inputs_of(listed), least)


def tables(graph: Graph) -> list[str]:
    """Names of the tensors that inputs of whole numbers are looked up in."""
    found = []
    for node in graph.nodes:
        if node.op == "embedding" and (node.inputs == (0,) or graph.nodes[node.inputs[0]].op == "whole"):
            found.append(node.parameters["weight"])
        if node.attributes.get("call") in ("embedding.default", "index.Tensor") and 0 in node.inputs:
            found += [node.parameters[role] for role in ("t0",) if role in node.parameters]
    return found


def lookups(graph: Graph) -> dict[str, slice | None]:
    """Table -> where in a row its tokens lie, None where the whole input is tokens; those that nothing else changes."""
    found: dict[str, slice | None] = {}
    for node in graph.nodes:
        if node.op != "embedding":
            continue
        at, where = node.inputs[0], None
        while at and graph.nodes[at].op in ("whole", "reshape", "slice") and where is None:
            one = graph.nodes[at]
            if one.op == "slice" and one.inputs == (0,) and one.attributes.get("step", 1) == 1:
                where = slice(one.attributes["start"], one.attributes["stop"])
            at = one.inputs[0]
        if at == 0 and (where or not graph.inputs):
            found[node.parameters["weight"]] = where
    return found


def multiplied(graph: Graph) -> list[str]:
    """Names of the tensors that a network multiplies by, in its order: those whose zeros make it smaller.

    Weights of layers, tables of embeddings, weights of recurrent layers, and whatever else goes into a product, also
    behind operations that only move it. Some may have one dimension, or be no parameter.
    """
    passed: dict[int, set[str]] = {}  # node that moves tensors of the network alone -> which
    found: dict[str, None] = {}
    for index, node in enumerate(graph.nodes[1:], 1):
        names = {name for i in node.inputs for name in passed.get(i, ())}
        call = str(node.attributes.get("call", ""))
        if is_weighted(node.op):
            names.add(node.parameters["weight"])
        elif node.op == "aten" or OPERATIONS[node.op].multiplies:
            names |= set(node.parameters.values())
        if node.op != "aten" or multiplies(call):
            found |= dict.fromkeys(sorted(names))
        elif all(i in passed for i in node.inputs):
            passed[index] = names
    whole = whole_tensors(graph)
    return [name for name in found if name not in whole]


def first_weights(graph: Graph) -> list[str]:
    """Names of the weights that read the input and nothing that another weight made."""
    reads = {0: (True, False)}  # node -> whether it comes from the input, whether a weight lies between
    found = []
    for index, node in enumerate(graph.nodes[1:], 1):
        sources = [reads[i] for i in node.inputs] if "value" not in node.parameters else []
        from_input, weighted = any(one for one, _ in sources), any(two for _, two in sources)
        if is_weighted(node.op) and from_input and not weighted:
            found.append(node.parameters["weight"])
        reads[index] = from_input, weighted or is_weighted(node.op)
    return found


def widths(graph: Graph, tensors: Mapping[str, Any]) -> list[int]:
    """Live inputs of the first layer with weights, then the number of outputs of every such layer; none: empty."""
    weights = [tensors[node.parameters["weight"]] for node in graph.nodes if is_weighted(node.op)]
    if not weights:
        return []
    first = weights[0]
    live = (first != 0).reshape(first.shape[0], first.shape[1], math.prod(first.shape[2:])).any(2).any(0)
    return [int(live.sum()), *(int(weight.shape[0]) for weight in weights)]
