"""Real factors as integers: a multiplier and a rounding shift, and layers whose sums become 8 bits by them.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 2.2: `M = 2^-shift * multiplier`. Here the whole 64-bit product is rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_compress.deploy.integer.grids import Grid
from pyro_compress.graph.faces.c import Weights

MOST_CODE = 127
MOST_BIAS = 1 << 29
BITS = 31
"""Of a multiplier: it lies in [2^30, 2^31)."""


@dataclass(frozen=True)
class IntegerLayer:
    """A layer: `(sum of code * x + bias) * multiplier >> shift`, rounded, + zero of the output.

    Attributes:
        codes: int8, `(out, in / groups, height, width)`.
        bias: int32 per output; the zero of the input is in it.
        multipliers: one, or one per output; `shifts` likewise.
        requantized: the codes of the file did not fit into 8 bits, or there were none.
    """

    codes: np.ndarray
    bias: np.ndarray
    multipliers: np.ndarray
    shifts: np.ndarray
    requantized: bool


def fixed(factor: float) -> tuple[int, int]:
    """Multiplier and shift of a positive factor; 0 and 1 for one that makes nothing of every 32-bit sum."""
    fraction, exponent = np.frexp(factor)
    multiplier, shift = round(float(fraction) * (1 << BITS)), BITS - int(exponent)
    if multiplier == 1 << BITS:
        multiplier, shift = multiplier >> 1, shift - 1
    if shift > 62:
        multiplier, shift = multiplier >> min(shift - 62, BITS), 62
    return (multiplier, shift) if multiplier else (0, 1)


def rounded(sums: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """What C computes of sums: the product, halves rounded up."""
    product = sums.astype(np.int64) * multiplier
    return (product + (np.int64(1) << (np.asarray(shift, np.int64) - 1))) >> shift


def integer_layer(weights: Weights, name: str, before: Grid, after: Grid) -> IntegerLayer:
    """The integers of a layer that maps one grid to another.

    Args:
        weights: of the loop.
        name: of the layer, for messages.
        before: grid of its input.
        after: grid of its sums.

    Raises:
        ValueError: 32 bits do not hold a sum.
    """
    outputs = len(weights.codes)
    step = np.broadcast_to(weights.scale, outputs).astype(np.float64)
    flat = weights.codes.reshape(outputs, -1).astype(np.float64) * np.sign(step)[:, None]
    step, most = np.abs(step), np.abs(flat).max(1, initial=0)
    fits = weights.codes.dtype.kind in "iu" and most.max(initial=0) <= MOST_CODE
    wanted = step if fits else most * step / MOST_CODE
    wanted = np.maximum(wanted, np.abs(weights.bias) / (before.scale * MOST_BIAS))
    wanted = np.where(wanted > 0, wanted, after.scale / before.scale)
    codes = np.rint(flat * (step / wanted)[:, None]).astype(np.int64)
    bias = np.rint(weights.bias / (wanted * before.scale)).astype(np.int64) - before.zero * codes.sum(1)
    largest = np.abs(bias) + 128 * np.abs(codes).sum(1)
    factors = wanted * (before.scale / after.scale)
    if largest.max(initial=0) >= 1 << 31 or (largest * factors).max(initial=0) >= 1 << 30:
        raise ValueError(f"the sums of {name} do not fit into 32 bits; export without --integer")
    pairs = np.array([fixed(factor) for factor in (factors if np.ptp(factors) else factors[:1])], np.int64)
    return IntegerLayer(
        codes.reshape(weights.codes.shape).astype(np.int8), bias, pairs[:, 0], pairs[:, 1], not fits
    )  # fmt: skip
