"""Augmentation: training images, changed a little every time they are seen.

The draws come from the minibatches' generator, one per image (torchvision's transforms draw once per call: on a
minibatch all images would move alike). To add one, write a function `(images, generator) -> images` and a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.types import Data

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(images `(n, channels, height, width)`, generator) -> images of the same shape."""


def check_images(augment: Augment | None, data: Data) -> None:
    """Refuse to augment what is no image.

    Raises:
        ValueError: its examples have no height and width, or their pixels have labels or are targets.
    """
    if augment and len(data.x.shape) != 4:
        shape = tuple(data.x.shape[1:])
        raise ValueError(f"augmentation is for images (channels, height, width); one example has shape {shape}")
    if augment and data.y.dim() > 2:
        raise ValueError("augmentation changes images, and not what is said of their pixels: leave --augment out")


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


def affine(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turned by up to 10 degrees, scaled by up to a tenth, moved by up to a pixel and a half: small images of digits.

    Bilinear, the border black; uniform draws, one of each per image.
    """
    n, _, height, width = x.shape
    drawn = 2 * torch.rand(n, 4, generator=generator).to(x.device) - 1
    turn, scale = math.radians(10) * drawn[:, 0], 1 + 0.1 * drawn[:, 1]
    cos, sin = torch.cos(turn) * scale, torch.sin(turn) * scale
    shift = drawn[:, 2:] * 3 / torch.tensor([width, height], device=x.device)  # the image is 2 wide
    flat = height / width  # of pixels, in units where every image is square
    rows = [torch.stack([cos, -sin * flat, shift[:, 0]], 1), torch.stack([sin / flat, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


AUGMENTATIONS: dict[str, Augment] = {
    "shift": shift,
    "crop-flip": crop_flip,
    "affine": affine,
}
