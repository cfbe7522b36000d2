"""Names that files may hold, for networks whose own may not: `block1-0` becomes `block1_0`."""

from __future__ import annotations

import copy
import re

from torch import nn

OTHER = re.compile(r"[^A-Za-z0-9_.]")


def spelled(name: str) -> str:
    """A name with an underscore in place of everything that is no letter, digit or point.

    Examples:
        >>> spelled("block1.block1-0.weight")
        'block1.block1_0.weight'
    """
    return OTHER.sub("_", name)


def plainly_named(net: nn.Module) -> nn.Module:
    """A network whose modules have names that a file may hold, with the same tensors; `net` stays as it is.

    A forward method that asks for a module by a name that is none of Python's finds it no more; capturing says so.
    """
    if all(spelled(name) == name for name, _ in net.named_modules()):
        return net
    return _renamed(net, {})


def _renamed(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    found = done[module] = copy.copy(module)
    found._modules = {}
    for name, child in module._modules.items():
        own = spelled(name)
        while own in found._modules or (own != name and own in module._modules):
            own += "_"
        found._modules[own] = None if child is None else _renamed(child, done)
    return found
