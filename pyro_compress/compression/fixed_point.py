"""Bit widths as Louizos et al. 2017 read them off the posterior, for comparison with their tables.

Their figures are computed, not measured: 32 bits per value of the whole network against the bits of the weights that
are left, with no biases, no header and no index of where the survivors lie. No file of this program is written so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pyro_compress.compression.shrink import trace_shrink
from pyro_compress.types import Masks, Posterior

EXPONENT_AND_SIGN = 4
"""Bits beside the significand: three and one (Louizos et al. 2017, section 5)."""
MOST_SIGNIFICANT = 23
FLOAT32 = 32
"""Bits of a weight that has no posterior."""


@dataclass(frozen=True)
class FixedPoint:
    """Ratios as they are published.

    Attributes:
        bits: per weight, layer by layer, sign and exponent included; 32 without a posterior.
        pruned: values of the whole network per weight that is left.
        reduced: the same in bits, at 32 before and `bits` after.
    """

    bits: list[int]
    pruned: float
    reduced: float


def significant_bits(variance: float) -> int:
    """Bits of a significand whose unit round-off ½·2^(1-t) is at most a layer's mean marginal variance.

    Louizos et al. 2017, sections 3.3 and 5; the marginal variance is that of their equation 6.
    """
    return min(max(math.ceil(-math.log2(variance)), 1), MOST_SIGNIFICANT)


@torch.no_grad()
def fixed_point(posterior: Posterior, masks: Masks, by_units: bool) -> FixedPoint:
    """What the posterior's variances alone would save.

    Args:
        posterior: the waist.
        masks: weights to keep.
        by_units: count what lies in rows and columns that are left, as for priors with groups; if not, the survivors
            themselves, as for priors on single weights, whose published ratios leave out where they lie.
    """
    weights = {name: torch.where(masks[name], layer.mean, 0.0) for name, layer in posterior.layers.items()}
    small = trace_shrink(posterior.graph, posterior.dense | weights)
    bits, left = list[int](), list[int]()
    for name, layer in posterior.layers.items():
        variance = float(layer.std[masks[name]].double().square().sum() / max(int(masks[name].sum()), 1))
        bits.append(significant_bits(variance) + EXPONENT_AND_SIGN if variance else FLOAT32)
        left.append(small.tensors[name].numel() if by_units else int((small.tensors[name] != 0).sum()))
    total = posterior.parameters_total
    spent = sum(count * width for count, width in zip(left, bits, strict=True))
    return FixedPoint(bits, total / max(sum(left), 1), FLOAT32 * total / max(spent, 1))
