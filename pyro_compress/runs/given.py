"""Networks and settings as a Python program gives them: what a network takes, which settings go with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from pyro_compress.data.sources import Takes
from pyro_compress.foreign import unknown
from pyro_compress.settings import FitConfig
from pyro_compress.settings.declared import declared

NAMED = ("hidden", "init", "init_range", "input_mean", "input_std", "new_head")
"""Settings that build a network from its name; one that is given is built already."""


def net_name(net: nn.Module | str) -> str:
    """What a configuration calls a network."""
    return net if isinstance(net, str) else type(net).__name__


def takes(net: nn.Module | str) -> Takes:
    """What a network takes: names of its inputs, rows of its embedding if it has one."""
    if isinstance(net, str):
        return Takes()
    if not isinstance(net, nn.Module):
        raise ValueError(f"the network is {net!r:.80}, no torch.nn.Module; give a module, or the name of a network")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = inspect.signature(net.forward).parameters.values()
    names = tuple(one.name for one in known if one.kind in positional)
    return Takes(names, next((one.num_embeddings for one in net.modules() if isinstance(one, nn.Embedding)), 0))


def named(given: dict[str, Any], known: Iterable[str], what: str) -> dict[str, Any]:
    """Settings, all of which something has.

    Raises:
        ValueError: one is not; says what was probably meant.
    """
    for name in given:
        if name not in (names := list(known)):
            raise unknown(f"setting {what}", name, names)
    return given


def settings_of(net: nn.Module | str, given: dict[str, Any], what: str) -> dict[str, Any]:
    """Settings of a fit that say something of this network.

    Args:
        net: the network, or its name.
        given: fields of `FitConfig`.
        what: what they are settings of, in messages.

    Raises:
        ValueError: an unknown one, or one that builds a network from its name beside a network that is built.
    """
    known = declared(FitConfig)
    named(given, known, what)
    built = [] if isinstance(net, str) else NAMED
    if useless := [one for one in built if one in given and given[one] != known[one].default]:
        raise ValueError(
            f"{', '.join(useless)}: goes with the name of a network; one that is given brings its layers, its weights "
            "and what it does to its inputs along: change the network itself"
        )
    return given
