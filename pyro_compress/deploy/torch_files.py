"""Exports for places with torch: a `torch.export` program, and safetensors with the architecture in its metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.candidates import to_module
from pyro_compress.deploy.refusals import named_in, reason, standing
from pyro_compress.graph.network import Network
from pyro_compress.graph.packing import parts_of, with_inputs
from pyro_compress.inputs import inputs_of, size_of
from pyro_compress.pcn.file import dense
from pyro_compress.pcn.gate import DEFAULT, Limits, built, check
from pyro_compress.pcn.names import check_names
from pyro_compress.types import Compressed

KEY = "pyro_compress"
"""Under this key both formats hold the card (and the graph) as JSON; several keys would come in random order."""

PARTS = ("op", "inputs", "parameters", "attributes")
"""Of a node, as it is written down."""


def write_program(network: Compressed, card: Mapping[str, Any], path: Path) -> None:
    """Write a `.pt2` program with a free batch dimension.

    Torch writes the names of tensors into Python code; a part that is a keyword (`class`) gets an underscore behind it.

    Raises:
        ValueError: torch cannot trace the network for batches of any size.
    """
    check_names(network.tensors)
    network = _without_keywords(network)
    batch = {0: torch.export.Dim.DYNAMIC}
    try:
        if inputs := network.graph.inputs:
            module: nn.Module = with_inputs(to_module(network), inputs)
            examples = parts_of(torch.zeros(2, size_of(inputs)), inputs)
            program = torch.export.export(module, (), examples, dynamic_shapes={name: batch for name in examples})
        else:
            example = torch.zeros(2, *network.graph.input_shape, dtype=getattr(torch, network.graph.kind))
            program = torch.export.export(to_module(network), (example,), dynamic_shapes=(batch,))
    except Exception as error:  # whatever the exporter says of an operation
        index = named_in(error, network.graph)
        what = "the network" if index is None else standing(network.graph, index)
        raise ValueError(f"torch.export refuses {what}: {reason(error)}; export to .safetensors (torch)") from error
    content = io.BytesIO()  # torch's own writer ends in a C++ stack where the disk is full
    torch.export.save(program, content, extra_files={f"{KEY}.json": json.dumps(card)})
    write_atomically(path, content.getvalue())


def _without_keywords(network: Compressed) -> Compressed:
    new = {name: ".".join(f"{p}_" if iskeyword(p) else p for p in name.split(".")) for name in network.tensors}
    if all(name == other for name, other in new.items()):
        return network
    nodes = [
        replace(node, parameters={role: new[name] for role, name in node.parameters.items()})
        for node in network.graph.nodes
    ]
    check_names(new.values())
    tensors = {new[name]: tensor for name, tensor in network.tensors.items()}
    return Compressed(replace(network.graph, nodes=tuple(nodes)), tensors, network.meta)


def load_program(path: Path) -> nn.Module:
    """The program as a module; needs torch only."""
    return torch.export.load(path).module()


def program_of_rows(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The program as a function of one tensor, in which several inputs lie one behind the other."""
    extra = {f"{KEY}.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    listed = json.loads(extra[f"{KEY}.json"])["input"].get("inputs", [])
    inputs = inputs_of([[one["name"], one["shape"], one["dtype"]] for one in listed])
    return (lambda x: program(**parts_of(x, inputs))) if inputs else program


def write_safetensors(network: Compressed, card: Mapping[str, Any], path: Path) -> None:
    """Write float32 tensors under the names of the original network, card and graph as metadata."""
    from safetensors.torch import save

    tensors = {name: torch.from_numpy(dense(tensor)) for name, tensor in network.tensors.items()}
    about = {**card, "graph": network.graph.to_dict()}
    write_atomically(path, save(tensors, {KEY: json.dumps(about)}))


def load_safetensors(path: str | Path, limits: Limits = DEFAULT) -> Network:
    """Rebuild the network of a safetensors export, in evaluation mode.

    Args:
        path: the file.
        limits: what it may ask for (`pcn.gate.limited`).

    Raises:
        ValueError: not a file of this kind, or one that does not pass the gate.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            listed = json.loads(file.metadata()[KEY])["graph"]
            nodes = [[node[part] for part in PARTS] for node in listed["nodes"][1:]]
            several = [list(one.values()) for one in listed.get("inputs", [])]
            kind, least = listed.get("kind", "float32"), listed.get("least", 0)
            graph = built(nodes, listed["input_shape"], kind, several, least)
            names = list(file.keys())
            check(graph, {name: tuple(file.get_slice(name).get_shape()) for name in names}, limits)
            tensors = {name: file.get_tensor(name).float() for name in names}
    except (SafetensorError, LookupError, TypeError, AttributeError, RecursionError, ValueError) as error:
        reason = error if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{path} is no safetensors export of this program: {reason}") from error
    return Network(graph, tensors).eval()
