"""Which tensors of a checkpoint are a network's: prefixes that wrappers left, tensors that were saved in parts.

Nothing is taken off a name, and no parts are put together, except where that makes more names fit the network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from pyro_compress.doubts import doubt
from pyro_compress.networks.checkpoints import Entry
from pyro_compress.networks.composed import composed
from pyro_compress.networks.spelling import spelled

log = logging.getLogger(__name__)

WRAPPERS = (
    "module", "model", "_orig_mod", "net", "network", "_forward_module",
    "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
)  # fmt: skip
"""Parts of names that DataParallel, Lightning, `torch.compile`, FSDP and people's own wrappers put in, anywhere."""
IGNORED = ("total_ops", "total_params", "num_batches_tracked", "n_averaged")
"""What profilers, batch norm and averages count: no values of the network."""
AVERAGED = ("ema", "swa", "teacher", "shadow", "averag")
"""In a prefix: a second copy of the weights, which is taken only where no other one fits."""


class _Match(NamedTuple):
    """What fits under one prefix: entries by the network's names, and those beside them that are none of its own."""

    prefix: str
    entries: dict[str, Entry]
    unknown: list[Entry]


def ignored(name: str) -> bool:
    """Whether a network is complete without this tensor."""
    return name.rpartition(".")[2] in IGNORED


def unwrapped(name: str) -> str:
    """A name without the parts that wrappers put in."""
    return ".".join(part for part in spelled(name).split(".") if part not in WRAPPERS)


Form = Callable[[str], str]
ROUNDS: tuple[tuple[Callable[[list[Entry]], list[Entry]], Form], ...] = (
    (list, spelled), (composed, spelled), (list, unwrapped), (composed, unwrapped),
)  # fmt: skip
"""How tensors and names are read, until all of a network's fit: the least change first."""


def named_for(entries: Iterable[Entry], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under a network's names.

    Args:
        entries: of the file.
        own: the network's tensors.

    Returns:
        Tensors by name; those that lie beside the network's and are none of its own keep the names that they have.

    Raises:
        ValueError: parts of a tensor that cannot be put together.
    """
    entries = list(entries)
    needed, best = sum(not ignored(name) for name in own), _Match("", {}, [])
    for parts, form in ROUNDS:
        if sum(not ignored(name) for name in best.entries) < needed:
            best = max(best, _fitting(parts(entries), own, form), key=lambda match: len(match.entries))
    if not best.entries:
        return {entry.name: entry.tensor for entry in entries if not ignored(entry.name)}
    unknown = {entry.full.removeprefix(best.prefix): entry.tensor for entry in best.unknown}
    return unknown | {name: entry.tensor for name, entry in best.entries.items()}


def _fitting(entries: list[Entry], own: Mapping[str, Tensor], form: Form) -> _Match:
    """Most tensors that have a name and a shape of the network's under one prefix."""
    names, found = {form(name): name for name in own}, dict[str, dict[str, Entry]]()
    if len(names) < len(own):  # two of the network's own names have the same form
        return _Match("", {}, [])
    for entry in entries:
        parts = form(entry.full).split(".")
        for cut in range(len(parts)):
            name = names.get(".".join(parts[cut:]), "")
            if name and entry.tensor.shape == own[name].shape:
                prefix = "".join(f"{part}." for part in parts[:cut])
                found.setdefault(prefix, {}).setdefault(name, entry)
    most = max(map(len, found.values()), default=0)
    prefixes = sorted((p for p, one in found.items() if len(one) == most), key=lambda p: any(w in p for w in AVERAGED))
    if not prefixes:
        return _Match("", {}, [])
    if len(prefixes) > 1 and most > len(own) / 2:
        listed = ", ".join(repr(prefix.removesuffix(".")) for prefix in prefixes)
        doubt(log, f"weights under {listed} fit the network, the first are taken; to choose, save one state dict alone")
    chosen = found[prefixes[0]]
    return _Match(prefixes[0], chosen, _beside(entries, chosen, prefixes[0], form))


def _beside(entries: list[Entry], chosen: Mapping[str, Entry], prefix: str, form: Form) -> list[Entry]:
    """What lies in the same state dict under the same prefix, is not chosen, and counts."""
    places, full = {entry.place for entry in chosen.values()}, {entry.full for entry in chosen.values()}
    return [
        entry
        for entry in entries
        if entry.place in places and entry.full not in full
        and form(entry.full).startswith(prefix) and not ignored(entry.name)
    ]  # fmt: skip
