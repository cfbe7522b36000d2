"""The waist at rest: a posterior's moments and its network in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import IO

from torch import Tensor

from pyro_compress.networks.graph import graph_of
from pyro_compress.tensorfile import tensor_bytes, write_tensors
from pyro_compress.types import LayerPosterior, Posterior, Removal


def write_posterior(file: IO[bytes], posterior: Posterior) -> None:
    """A posterior as safetensors: `mean/NAME`, `std/NAME`, `unit_mean/NAME`, `unit_std/NAME`, `dense/NAME`."""
    write_tensors(file, *_stored(posterior))


def posterior_bytes(posterior: Posterior) -> bytes:
    """What `write_posterior` would write."""
    return tensor_bytes(*_stored(posterior))


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
        "graph": asdict(posterior.graph),
        "layers": {name: layer.grouping for name, layer in posterior.layers.items()},
        "criterion": posterior.criterion,
        "provenance": posterior.provenance,
        "removals": [asdict(removal) for removal in posterior.removals],
    }
    return tensors, json.dumps(metadata)


def read_posterior(path: Path) -> Posterior:
    """Read what `write_posterior` wrote.

    Raises:
        ValueError: a damaged or foreign file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["pyro_compress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        layers = {
            name: LayerPosterior(
                tensors[f"mean/{name}"], tensors[f"std/{name}"],
                tensors.get(f"unit_mean/{name}"), tensors.get(f"unit_std/{name}"), grouping,
            )
            for name, grouping in metadata["layers"].items()
        }  # fmt: skip
        return Posterior(
            graph=graph_of(metadata["graph"]),
            layers=layers,
            dense={name.removeprefix("dense/"): t for name, t in tensors.items() if name.startswith("dense/")},
            criterion=metadata["criterion"],
            provenance=metadata["provenance"],
            removals=tuple(Removal(**removal) for removal in metadata.get("removals", ())),
        )
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no posterior of this program: {error}") from error
