"""Trained weights: checkpoints of every kind, torchvision's, a compressed file; and whether they fit.

Nothing is unpickled: `torch.load` reads tensors and containers only (`weights_only`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_compress.foreign import ordinary
from pyro_compress.networks.checkpoints import entries_of
from pyro_compress.networks.decoded import SUFFIX, decoded_weights
from pyro_compress.networks.naming import ignored, named_for
from pyro_compress.networks.spelling import spelled

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads that torchvision's networks have while they are trained."""
NAMED = 3
"""Tensors that a message names before it only counts."""


def read_weights(source: str, own: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Tensors by name from a file (safetensors, or what torch saved), a `.pcn` file, or `torchvision:WEIGHTS`.

    Args:
        source: the file, or torchvision's name.
        own: tensors of the network that they are for: where a file wraps its names, holds several state dicts, or
            tensors in parts, this says which are meant (`naming.py`). None: all, under the names they have.

    Raises:
        ValueError: an unknown kind of file, a damaged one, or weights that torchvision does not have or cannot fetch.
    """
    if source.startswith("torchvision:"):
        return _torchvision(source.removeprefix("torchvision:"))
    path = Path(source)
    if not ordinary(path).is_file():
        raise ValueError(f"{source}: no such file or run folder (weights also come as torchvision:WEIGHTS)")
    if path.suffix == SUFFIX:
        return decoded_weights(path)
    entries = entries_of(path)
    if own is None:
        return {entry.name: entry.tensor for entry in entries}
    try:
        return named_for(entries, own)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _torchvision(name: str) -> dict[str, Tensor]:
    import torchvision

    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"torchvision has no weights {name!r}; an example: ResNet18_Weights.IMAGENET1K_V1") from error
    try:
        found = weights.get_state_dict(progress=False, check_hash=True)
        return {spelled(name): tensor for name, tensor in found.items()}
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

    Only counters (of minibatches, say) may be missing, and all but one name of what layers share; auxiliary heads and
    counters that it lacks are left out. Half, double and sparse tensors become float32 ones.

    Args:
        net: the network.
        given: tensors by name.
        source: where they come from, for messages.
        name: of the network, likewise.
        keeping: tensors of the network that stay as they are.

    Raises:
        ValueError: tensors that are missing, unknown, of another shape, no real numbers or not finite; the first few
            are named.
    """
    own = net.state_dict()
    given = {key: t for key, t in given.items() if not key.startswith(AUXILIARY) and key not in keeping}
    given = {key: t for key, t in given.items() if key in own or not ignored(key)}
    places = {(own[key].data_ptr(), own[key].shape): tensor for key, tensor in given.items() if key in own}
    for key in own.keys() - given.keys():  # safetensors' save_model writes shared weights once
        if own[key].numel() and (shared := places.get((own[key].data_ptr(), own[key].shape))) is not None:
            given[key] = shared
    missing = [key for key in own if key not in given and not ignored(key) and key not in keeping]
    unknown = [key for key in given if key not in own]
    shapes = [
        f"{key} has shape {tuple(tensor.shape)}, the network's {tuple(own[key].shape)}"
        for key, tensor in given.items()
        if key in own and own[key].shape != tensor.shape
    ]
    if missing or unknown or shapes:
        parts = [
            f"{what} {_few(names, comma)}"
            for what, names, comma in (("missing", missing, ", "), ("unknown", unknown, ", "), ("", shapes, "; "))
            if names
        ]
        hint = "; for other classes, start a fit from it with --new-head" if 0 < len(shapes) <= 2 else ""
        if shapes and source.endswith(SUFFIX):
            hint = "; units of this file are gone: give it as --net too"
        if missing and unknown:
            hint = "; missing is what the network wants, unknown what the file holds instead"
        raise ValueError(f"{source} does not fit network {name}: {'; '.join(part.strip() for part in parts)}{hint}")
    net.load_state_dict({key: _value(t, own[key], f"{source}: {key}") for key, t in given.items()}, strict=False)


def _value(tensor: Tensor, own: Tensor, what: str) -> Tensor:
    """A tensor as the network holds it: dense, in its precision, finite but where its own is not (masks, bounds)."""
    if own.is_floating_point() and not tensor.is_floating_point():
        raise ValueError(f"{what} holds {tensor.dtype}, no real numbers; save the weights as float32")
    found = (tensor if tensor.layout is torch.strided else tensor.to_dense()).to(own.dtype)
    wrong = ~(torch.isfinite(found) | (found == own)) if found.is_floating_point() else torch.zeros(0, dtype=torch.bool)
    if broken := int(wrong.sum()):
        first = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{what} holds {broken:,} of {found.numel():,} values that are not finite, the first at {first}: "
            "the training that made it broke, or its numbers do not fit into float32"
        )
    return found


def _few(items: list[str], comma: str) -> str:
    rest = f"{comma}and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return comma.join(items[:NAMED]) + rest
