"""How fine: step sizes from the posterior, and rounding to integers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_compress.pcn.codec import nearest_exponent, quarter_power
from pyro_compress.types import LayerPosterior, Quantized, blocks

MAX_CODE = 1 << 14


def step_size(layer: LayerPosterior, kept: Tensor, coarseness: float) -> float:
    """Step of a layer's uniform grid: `coarseness` times the typical size of what it holds.

    The typical size is the root mean square of the kept weights.

    Args:
        layer: posterior moments.
        kept: mask of the weights that stay.
        coarseness: 1 rounds at the scale of the weights themselves, 1/16 is fine.
    """
    values = chosen(layer.mean, kept)
    if not len(values) or not values.any():
        return 1.0
    typical = math.sqrt(sum_of_squares(values) / len(values))
    return float(np.float32(max(coarseness * typical, _largest(values) / MAX_CODE)))


def chosen(values: Tensor, mask: Tensor) -> Tensor:
    """Values under a mask, in a row; torch's own indexing holds the place of every one of them."""
    return torch.from_numpy(values.numpy()[mask.numpy()])


def sum_of_squares(values: Tensor) -> float:
    """In double precision."""
    return sum(float(part.double().square().sum()) for part in blocks(values))


def _largest(values: Tensor) -> float:
    return float(max(values.max(), -values.min()))


def bits_step(layer: LayerPosterior, kept: Tensor, bits: int) -> float:
    """Step at which the largest kept weight is the largest integer of so many bits, sign included."""
    values = chosen(layer.mean, kept)
    largest = _largest(values) if len(values) else 0.0
    return float(np.float32(largest / (2 ** (bits - 1) - 1))) if largest else 1.0


def snapped(step: float) -> float:
    """The nearest power of 2^(1/4), which takes one byte in a file."""
    return quarter_power(nearest_exponent(step))


def bias_step(bias: Tensor, levels: int) -> float:
    """Step that puts the largest bias at code `levels`."""
    largest = float(bias.abs().max()) if len(bias) else 0.0
    return snapped(largest / levels) if largest else 1.0


def quantize(values: Tensor, step: float) -> Quantized:
    """Round to the nearest multiple of a step."""
    codes = torch.empty(values.shape, dtype=torch.int32)
    for source, target in zip(blocks(values), blocks(codes), strict=True):
        target.copy_(torch.round(source.double() / step).to(torch.int32))
    return Quantized(codes.numpy(), step)


def rounded(values: Tensor, step: float) -> Tensor:
    """The values after quantisation, as a decoder computes them: float32 code times float32 step."""
    return torch.round(values.double() / step).float() * step
