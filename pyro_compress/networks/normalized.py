"""What a network does to its inputs first: minus a mean, divided by a standard deviation, per channel.

It is part of the network, so that every file and every export of it does the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

INPUTS = ("input_mean", "input_std")
"""Names of the tensors that a network has for it, where it has several channels."""


def normalized(net: nn.Module, mean: Sequence[float], std: Sequence[float], input_shape: tuple[int, ...]) -> nn.Module:
    """Let a network begin with `(x - mean) / std`, in place; the names of its tensors stay as they are.

    Args:
        net: the network.
        mean: one number per channel, or one for all; none: 0.
        std: likewise, positive; none: 1.
        input_shape: shape of one example, the channels first.

    Raises:
        ValueError: another number of values, or an `std` that is not positive.

    Examples:
        >>> net = normalized(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), [0.5], [0.25], (1, 2, 2))
        >>> sorted(net.state_dict())
        ['1.bias', '1.weight']
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (0, 1, input_shape[0]):
            raise ValueError(
                f"input_{name} has {len(values)} values, one example of the data the shape {input_shape}: give one "
                f"number, or one per channel ({input_shape[0]})"
            )
    if any(not value > 0 for value in std):
        raise ValueError(f"input_std {', '.join(map(str, std))}: it must be positive")
    for name in INPUTS:
        if hasattr(net, name):
            raise ValueError(f"the network has a {name} of its own: let it normalise its inputs itself, or rename that")
    shape = (-1, *[1] * (len(input_shape) - 1))
    plain: type[nn.Module] = type(net)
    for name, values in zip(INPUTS, (mean, std), strict=True):
        if len(values) > 1:
            net.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(shape))

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if mean:
            x = x - (self.get_buffer("input_mean") if len(mean) > 1 else mean[0])
        if std:
            x = x / (self.get_buffer("input_std") if len(std) > 1 else std[0])
        found: Tensor = plain.forward(self, x)
        return found

    net.__class__ = type(f"Normalized{plain.__name__}", (plain,), {"forward": forward})
    return net
