"""Augmentation: training images, changed a little every time they are seen.

The draws come from the feed's own generator, one per image (torchvision's transforms draw once per call: on a minibatch
all images would move alike). To add one, write a function `(images, generator) -> images` and a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(images `(n, channels, height, width)`, generator) -> images of the same shape."""


def moved(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Every image moved by up to `most` pixels in both directions, the border black."""
    n, channels, height, width = x.shape
    top, left = torch.randint(2 * most + 1, (2, n, 1), generator=generator).to(x.device)
    rows, columns = (first + torch.arange(size, device=x.device) for first, size in ((top, height), (left, width)))
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return F.pad(x, [most] * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image as it is or mirrored left to right, with equal probability."""
    drawn = torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device) < 0.5
    return torch.where(drawn, x.flip(3), x)


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Up to two pixels: digits and clothes, which must not be mirrored."""
    return moved(x, 2, generator)


def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Up to four pixels, and mirrored: the usual recipe of CIFAR (He et al. 2016, section 4.2)."""
    return mirrored(moved(x, 4, generator), generator)


AUGMENTATIONS: dict[str, Augment] = {
    "shift": shift,
    "crop-flip": crop_flip,
}
