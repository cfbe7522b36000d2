"""Exports for places with torch: a `torch.export` program, and safetensors with the architecture in its metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.search import to_module
from pyro_compress.networks.graph import Network
from pyro_compress.pcn.file import dense
from pyro_compress.types import Compressed, Graph, Node

KEY = "pyro_compress"
"""Under this key both formats hold the card (and the graph) as JSON; several keys would come in random order."""


def write_program(network: Compressed, card: Mapping[str, Any], path: Path) -> None:
    """Write a `.pt2` program with a free batch dimension."""
    example = torch.zeros(2, *network.graph.input_shape)
    program = torch.export.export(to_module(network), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    content = io.BytesIO()  # torch's own writer ends in a C++ stack where the disk is full
    torch.export.save(program, content, extra_files={f"{KEY}.json": json.dumps(card)})
    write_atomically(path, content.getvalue())


def load_program(path: Path) -> nn.Module:
    """The program as a module; needs torch only."""
    return torch.export.load(path).module()


def write_safetensors(network: Compressed, card: Mapping[str, Any], path: Path) -> None:
    """Write float32 tensors under the names of the original network, card and graph as metadata."""
    from safetensors.torch import save

    tensors = {name: torch.from_numpy(dense(tensor)) for name, tensor in network.tensors.items()}
    about = {**card, "graph": asdict(network.graph)}
    write_atomically(path, save(tensors, {KEY: json.dumps(about)}))


def load_safetensors(path: str | Path) -> Network:
    """Rebuild the network of a safetensors export, in evaluation mode.

    Raises:
        ValueError: not a file of this kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            graph = json.loads(file.metadata()[KEY])["graph"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        nodes = tuple(Node(**(node | {"inputs": tuple(node["inputs"])})) for node in graph["nodes"])
        return Network(Graph(nodes, tuple(graph["input_shape"])), tensors).eval()
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no safetensors export of this program: {error}") from error
