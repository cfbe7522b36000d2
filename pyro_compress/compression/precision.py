"""How fine: step sizes from the posterior, and rounding to integers."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_compress.pcn.codec import nearest_exponent, quarter_power
from pyro_compress.types import CACHED, Quantized, blocks

MAX_CODE = 1 << 14


class Size(NamedTuple):
    """How large the values are that a mask keeps of a tensor: their mean square, and the largest magnitude."""

    mean_square: float
    largest: float


def size_of(values: Tensor, kept: Tensor) -> Size:
    """Measure what a mask keeps; 0 and 0 if that is nothing.

    Args:
        values: a tensor.
        kept: mask of the values that stay.
    """
    number, squares, largest = 0, 0.0, 0.0
    for part, mask in zip(blocks(values), blocks(kept), strict=True):
        found = torch.from_numpy(part.numpy()[mask.numpy()])  # torch's own indexing holds the place of every one
        if len(found):
            number, squares = number + len(found), squares + float(found.double().square().sum())
            largest = max(largest, float(max(found.max(), -found.min())))
    return Size(squares / max(number, 1), largest)


def step_size(size: Size, relative_step: float) -> float:
    """Step of a layer's uniform grid: `relative_step` times the root mean square of what it holds.

    Args:
        size: of the weights that stay.
        relative_step: 1 rounds at the scale of the weights themselves, 1/16 is fine.
    """
    if not size.largest:
        return 1.0
    return float(np.float32(max(relative_step * math.sqrt(size.mean_square), size.largest / MAX_CODE)))


def finest(size: Size) -> float:
    """The smallest relative step at which the largest value is no larger an integer than any may be."""
    return size.largest / MAX_CODE / math.sqrt(size.mean_square) if size.largest else 0.0


def bits_step(size: Size, bits: int) -> float:
    """Step at which the largest kept weight is the largest integer of so many bits, sign included."""
    return float(np.float32(size.largest / (2 ** (bits - 1) - 1))) if size.largest else 1.0


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
    for source, target in zip(blocks(values, CACHED), blocks(codes, CACHED), strict=True):
        near = torch.round(source / step)
        if not torch.equal(near * step, source):  # weights on their grid are multiples; for others this is too coarse
            near = torch.round(source.double() / step)
        target.copy_(near)
    return Quantized(codes.numpy(), step)


def rounded(values: Tensor, step: float) -> Tensor:
    """The values after quantisation, as a decoder computes them: float32 code times float32 step."""
    return torch.round(values.double() / step).float() * step
