"""A posterior file: moments and its network in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pyro_compress.foreign import json_of, of_type, record, shown, table
from pyro_compress.graph.ir import graph_of
from pyro_compress.pcn import gate
from pyro_compress.pcn.meta import check_meta
from pyro_compress.provenance import Provenance
from pyro_compress.tensorfile import TensorFile, write_tensors
from pyro_compress.types import LayerPosterior, LayerShape, Posterior, Removal, blocks

GROUPINGS = ("weight", "input", "output")
MAX_DIMENSIONS = 8


def write_posterior(file: IO[bytes], posterior: Posterior) -> None:
    """A posterior as safetensors: `mean/NAME`, `std/NAME`, `unit_mean/NAME`, `unit_std/NAME`, `dense/NAME`."""
    write_tensors(file, *_stored(posterior))


def _stored(posterior: Posterior) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, and what else there is to know."""
    tensors = {f"dense/{name}": tensor for name, tensor in posterior.dense.items()}
    for name, layer in posterior.layers.items():
        moments = {
            "mean": layer.mean,
            "std": layer.std,
            "unit_mean": layer.unit_mean,
            "unit_std": layer.unit_std,
        }
        tensors |= {f"{key}/{name}": tensor for key, tensor in moments.items() if tensor is not None}
    metadata = {
        "graph": posterior.graph.to_dict(),
        "layers": {name: layer.grouping for name, layer in posterior.layers.items()},
        "criterion": posterior.criterion,
        "provenance": dict(posterior.provenance.entries),
        "removals": [asdict(removal) for removal in posterior.removals],
    }
    return tensors, json.dumps(metadata)


def read_posterior(path: Path) -> Posterior:
    """Read what `write_posterior` wrote, checking everything before it is used.

    Raises:
        ValueError: a damaged or foreign file.
        OSError: it cannot be read.
    """
    try:
        header, tensors = read_tensors(path)
        check_tensors(tensors)
        groupings = of_type(header.get("layers"), dict[str, str], "layers")
        layers = {name: _layer(name, grouping, tensors) for name, grouping in groupings.items()}
        dense = {name.removeprefix("dense/"): t for name, t in tensors.items() if name.startswith("dense/")}
        graph = graph_of(header.get("graph"))
        posterior = Posterior(
            graph=graph,
            layers=layers,
            dense=dense,
            criterion=of_type(header.get("criterion"), str, "criterion"),
            provenance=Provenance(check_meta(header.get("provenance"), graph.input_shape, ())),
            removals=tuple(record(Removal, one, "removals") for one in header.get("removals", [])),
        )
        _check(posterior)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no posterior of this program: {error}") from error
    return posterior


def _layer(name: str, grouping: str, tensors: dict[str, Tensor]) -> LayerPosterior:
    """The moments of a layer, of shapes that belong together."""
    if missing := [key for key in ("mean", "std") if f"{key}/{name}" not in tensors]:
        raise ValueError(f"layer {name} has no {missing[0]}")
    found = {key: tensors.get(f"{key}/{name}") for key in ("mean", "std", "unit_mean", "unit_std")}
    mean = tensors[f"mean/{name}"]
    if grouping not in GROUPINGS or mean.dim() < 2:
        raise ValueError(f"layer {name} of shape {tuple(mean.shape)} with grouping {shown(grouping)}")
    gate = LayerShape(name, tuple(mean.shape), grouping).gate
    for key, tensor in found.items():
        wanted = gate if key.startswith("unit") else tuple(mean.shape)
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise ValueError(f"{key} of {name} has shape {tuple(tensor.shape)}; it must be {wanted}")
    if (found["unit_mean"] is None) != (found["unit_std"] is None):
        raise ValueError(f"layer {name} has one of unit_mean and unit_std without the other")
    if any(bool((t < 0).any()) for key, t in found.items() if key.endswith("std") and t is not None):
        raise ValueError(f"a standard deviation of {name} is negative")
    return LayerPosterior(mean, tensors[f"std/{name}"], found["unit_mean"], found["unit_std"], grouping)


def _check(posterior: Posterior) -> None:
    """What the parts of a posterior must have in common; then the gate that files of networks pass."""
    names = [*posterior.layers, *posterior.dense]
    if len(set(names)) < len(names):
        raise ValueError("a tensor is there with a posterior and without")
    shapes = {name: tuple(tensor.shape) for name, tensor in posterior.tensors.items()}
    size = sum(tensor.numel() for tensor in posterior.tensors.values())
    allowed = replace(gate.DEFAULT, values=gate.DEFAULT.values + 2 * size)  # the tensors are there already
    plan = gate.check(posterior.graph, shapes, allowed)
    if not plan.output:
        raise ValueError(f"the network gives outputs of shape {plan.output}")
    weights = {name for node in posterior.graph.nodes for name in node.parameters.values()}
    if unread := sorted(set(posterior.layers) - weights):
        raise ValueError(f"layer {unread[0]} is read by no operation")


def read_tensors(
    path: Path, kept: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file of ours, whose header bounds what is allocated by the file's size.

    Args:
        path: the file.
        kept: what to keep of a tensor by its name, before the next one is read; default: the tensor.

    Raises:
        ValueError: a damaged or foreign file.
        OSError: it cannot be read.
    """
    file = TensorFile(path)
    return table(json_of(file.metadata, "its metadata"), "its metadata"), {
        name: kept(name, file[name]) for name in sorted(file)
    }


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not finite float32 values.

    Raises:
        ValueError: such a tensor, by name.
    """
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.dim() > MAX_DIMENSIONS or not tensor.numel():
            raise ValueError(f"{shown(name)} holds {tensor.dtype} of shape {tuple(tensor.shape)}; float32 is wanted")
        if not all(bool(torch.isfinite(part).all()) for part in blocks(tensor)):
            raise ValueError(f"{shown(name)} holds values that are not finite")
