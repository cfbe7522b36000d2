"""Networks of a regression that were trained elsewhere, on targets as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_compress.doubts import keep
from pyro_compress.metrics import logits_of
from pyro_compress.types import Splits

NOTE = (
    "the network predicts targets as they are; what is made of it predicts standardised ones, as every file does, and "
    "predict gives their units back"
)


class Standardized(nn.Module):
    """A network whose outputs are less the targets' mean, over their standard deviation."""

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor):
        super().__init__()
        self.net = net
        self.register_buffer("target_mean", mean)
        self.register_buffer("target_std", std)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, *input_shape)` -> `(batch, targets)`."""
        return (self.net(x) - self.target_mean) / self.target_std


def in_standard_units(net: nn.Module, splits: Splits) -> nn.Module:
    """A network that predicts standardised targets, as the data have them; says so where the given one does not.

    Which of both it predicts is told by its errors on the validation split: trained on one, it is off by the other's
    mean and spread.

    Args:
        net: in evaluation mode; it is part of the result.
        splits: its data.
    """
    if splits.task != "regression" or not splits.targets:
        return net
    mean, std = (torch.tensor([getattr(one, name) for one in splits.targets]) for name in ("mean", "std"))
    found, y = logits_of(net, splits.validation.x, "cpu"), splits.validation.y
    if found.shape != y.shape:
        return net
    standard, plain = ((values - y).square().mean() for values in (found, (found - mean) / std))
    if not plain < min(1.0, 0.5 * float(standard)):  # 1 is what the mean of the targets scores
        return net
    keep(NOTE)
    return Standardized(net, mean, std).eval()
