"""Tensors that torch saves in parts, because it computes them anew in every pass: put together as it does.

To add a way, write a function `(parts) -> tensor` and add a row to `COMPOSED`: the endings of its parts' names.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_compress.networks.checkpoints import Entry


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    """`torch.nn.utils.prune`."""
    return weight * mask.to(weight.dtype)


def _scaled(length: Tensor, direction: Tensor) -> Tensor:
    """Weight norm: g v / |v|, the norm over all dimensions that g does not have."""
    if length.dim() not in (0, direction.dim()):
        raise ValueError(f"lengths of shape {tuple(length.shape)} for directions of shape {tuple(direction.shape)}")
    axes = [axis for axis in range(direction.dim()) if length.dim() == 0 or length.shape[axis] == 1]
    norm = direction.float().square().sum(axes, keepdim=True).sqrt()
    return direction.float() * (length.float() / norm)


def _normed(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Spectral norm in evaluation: W / (u' W v), with the vectors that the last step of training left."""
    for axis in range(weight.dim()):
        if len(u) == weight.shape[axis] and len(v) == math.prod(weight.shape) // len(u):
            matrix = weight.float().movedim(axis, 0).flatten(1)
            return weight.float() / torch.dot(u.float(), matrix @ v.float())
    raise ValueError(f"vectors of {len(u)} and {len(v)} numbers for a weight of shape {tuple(weight.shape)}")


COMPOSED: tuple[tuple[tuple[str, ...], Callable[..., Tensor]], ...] = (
    (("{}_orig", "{}_mask"), _masked),
    (("{}_g", "{}_v"), _scaled),
    (("parametrizations.{}.original0", "parametrizations.{}.original1"), _scaled),
    (("{}_orig", "{}_u", "{}_v"), _normed),
    (("parametrizations.{}.original", "parametrizations.{}.0._u", "parametrizations.{}.0._v"), _normed),
)
"""Names of the parts of a tensor, within its layer, and how it is made of them."""
LEFT = "parametrizations."
"""In a name: a parametrization that is none of these."""


def composed(entries: list[Entry]) -> list[Entry]:
    """The same tensors, those that lie there in parts put together.

    Raises:
        ValueError: parts that do not fit each other, or of a kind that is not known.
    """
    by_name = {entry.full: entry for entry in entries}
    for entry in entries:
        for parts, make in COMPOSED:
            layer, name = _of_part(entry.full, parts[0])
            keys = [layer + part.format(name) for part in parts]
            if not name or not all(key in by_name for key in keys):
                continue
            try:
                tensor = make(*(by_name.pop(key).tensor for key in keys))
            except ValueError as error:
                raise ValueError(f"{' and '.join(keys)} make no {name}: {error}") from error
            full = f"{layer}{name}"
            by_name[full] = Entry(entry.place, full.removeprefix(entry.place), tensor)
    if left := [name for name in by_name if LEFT in name]:
        raise ValueError(
            f"{left[0]} is a part of a parametrization that is not known here; before saving, call "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, name)"
        )
    return list(by_name.values())


def _of_part(full: str, pattern: str) -> tuple[str, str]:
    """Layer (with its dot) and name of the tensor whose first part this is; empty if it is none."""
    before, _, after = pattern.partition("{}")
    head, _, last = full.rpartition(".") if not before else ("", "", "")
    if not before:
        return (f"{head}." if head else "", last.removesuffix(after)) if last.endswith(after) else ("", "")
    at = full.rfind(before)
    if at < 0 or not full.endswith(after):
        return "", ""
    return full[:at], full[at + len(before) : len(full) - len(after)]
