"""Trained weights: safetensors, a state dict that torch saved, torchvision's, a compressed file; and whether they fit.

Nothing is unpickled: `torch.load` reads tensors and containers only (`weights_only`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_compress.networks.decoded import SUFFIX, decoded_weights

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads that torchvision's networks have while they are trained."""
NAMED = 4
"""Tensors that a message names before it only counts."""


def read_weights(source: str) -> dict[str, Tensor]:
    """Tensors by name from a `.safetensors`, `.pt`, `.pth` or `.pcn` file, or `torchvision:WEIGHTS`.

    Raises:
        ValueError: an unknown kind of file, a damaged one, or weights that torchvision does not have or cannot fetch.
    """
    if source.startswith("torchvision:"):
        return _torchvision(source.removeprefix("torchvision:"))
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{source}: no such file or run folder (weights also come as torchvision:WEIGHTS)")
    if path.suffix == SUFFIX:
        return decoded_weights(path)
    return _torch_file(path) if path.suffix in (".pt", ".pth") else _safetensors(path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file (weights also come as .pt, .pth or .pcn file, or run folder): {error}"
        ) from error
    return found


def _torch_file(path: Path) -> dict[str, Tensor]:
    """A state dict, bare or under `state_dict` or `model`; the prefix `module.` of DataParallel is dropped."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or a foreign file fails in many ways
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} holds no plain state dict (nothing else is read from it): {reason}") from error
    for key in ("state_dict", "model"):
        found = found.get(key, found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no state dict: tensors by name")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def _torchvision(name: str) -> dict[str, Tensor]:
    import torchvision

    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"torchvision has no weights {name!r}; an example: ResNet18_Weights.IMAGENET1K_V1") from error
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # no connection, or a broken download
        raise ValueError(f"torchvision cannot fetch {name} from {weights.url}: {error}") from error


def torchvision_inputs(source: str) -> dict[str, tuple[float, ...]]:
    """`input_mean` and `input_std` that weights `torchvision:WEIGHTS` were trained with."""
    import torchvision

    try:
        preset = torchvision.models.get_weight(source.removeprefix("torchvision:")).transforms()
    except (ValueError, AttributeError, KeyError):  # `read_weights` says so
        return {}
    return {"input_mean": tuple(preset.mean), "input_std": tuple(preset.std)}


def put_weights(
    net: nn.Module, given: Mapping[str, Tensor], source: str, name: str, keeping: Collection[str] = ()
) -> None:
    """Load weights into a network, in place.

    Only batch norm's counters of minibatches may be missing; auxiliary heads are left out.

    Args:
        net: the network.
        given: tensors by name.
        source: where they come from, for messages.
        name: of the network, likewise.
        keeping: tensors of the network that stay as they are.

    Raises:
        ValueError: tensors that are missing, unknown, or of another shape; the first few are named.
    """
    given = {key: t for key, t in given.items() if not key.startswith(AUXILIARY) and key not in keeping}
    try:
        missing, unknown = net.load_state_dict(given, strict=False)
    except RuntimeError:  # sizes; torch tells of them in many lines
        own = net.state_dict()
        wrong = [
            f"{key} has shape {tuple(tensor.shape)}, the network's {tuple(own[key].shape)}"
            for key, tensor in given.items()
            if key in own and own[key].shape != tensor.shape
        ]
        hint = "; for other classes, start a fit from it with --new-head" if len(wrong) <= 2 else ""
        if source.endswith(SUFFIX):
            hint = "; units of this file are gone: give it as --net too"
        raise ValueError(f"{source} does not fit network {name}: {_few(wrong, '; ')}{hint}") from None
    missing = [key for key in missing if not key.endswith("num_batches_tracked") and key not in keeping]
    parts = [f"{what} {_few(keys, ', ')}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
    if parts:
        raise ValueError(f"{source} does not fit network {name}: {'; '.join(parts)}")


def _few(items: list[str], comma: str) -> str:
    rest = f"{comma}and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return comma.join(items[:NAMED]) + rest
