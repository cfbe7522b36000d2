"""How fine: step sizes from the posterior, and rounding to integers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_compress.pcn.codec import nearest_exponent, quarter_power
from pyro_compress.types import LayerPosterior, Quantized

MAX_CODE = 1 << 14


def step_size(layer: LayerPosterior, kept: Tensor, coarseness: float) -> float:
    """Step of a layer's uniform grid: `coarseness` times the typical size of what it holds.

    The typical size is the root mean square of the kept weights.

    Args:
        layer: posterior moments.
        kept: mask of the weights that stay.
        coarseness: 1 rounds at the scale of the weights themselves, 1/16 is fine.
    """
    values = layer.mean[kept]
    if not len(values) or not values.any():
        return 1.0
    typical = float(values.double().square().mean().sqrt())
    return float(np.float32(max(coarseness * typical, float(values.abs().max()) / MAX_CODE)))


def bits_step(layer: LayerPosterior, kept: Tensor, bits: int) -> float:
    """Step at which the largest kept weight is the largest integer of so many bits, sign included."""
    values = layer.mean[kept]
    largest = float(values.abs().max()) if len(values) else 0.0
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
    return Quantized(torch.round(values.double() / step).to(torch.int32).numpy(), step)


def rounded(values: Tensor, step: float) -> Tensor:
    """The values after quantisation, as a decoder computes them: float32 code times float32 step."""
    return torch.round(values.double() / step).float() * step
