"""Bit widths as Louizos et al. 2017 read them off the posterior, for comparison with their tables.

Their figures are computed, not measured: 32 bits per value of the whole network against the bits of the weights that
are left, with no biases, no header and no index of where the survivors lie. No file of this program is written so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_compress.compression.precision import size_of
from pyro_compress.compression.prune import kept
from pyro_compress.compression.shrink import trace_shrink
from pyro_compress.types import Masks, Posterior, count, nonzero

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
        pruned: values of the whole network per weight that is left; None where none is.
        reduced: the same in bits, at 32 before and `bits` after.
    """

    bits: list[int]
    pruned: float | None
    reduced: float | None


def significant_bits(variance: float) -> int:
    """Bits of a significand whose unit round-off ½·2^(1-t) is at most a layer's mean marginal variance.

    Louizos et al. 2017, sections 3.3 and 5; the marginal variance is that of their equation 6.
    """
    return min(max(math.ceil(-math.log2(variance)), 1), MOST_SIGNIFICANT)


def occupied(weight: Tensor) -> int:
    """Values of a weight, `(out, in, ...)`, in columns that hold anything but zeros: those of inputs that are read.

    Inputs of the whole network stay in the shape of a smaller network's first weight, dead or not.
    """
    live = int((weight.any(0) if weight.dim() == 2 else weight.any(0).flatten(1).any(1)).sum())
    return live * count(weight.shape) // weight.shape[1]


def bit_widths(posterior: Posterior, masks: Masks) -> list[int]:
    """Bits per weight, layer by layer, sign and exponent included, from the mean variance of what the masks keep."""
    bits = list[int]()
    for name, layer in posterior.layers.items():
        variance = size_of(layer.std, masks[name]).mean_square
        bits.append(significant_bits(variance) + EXPONENT_AND_SIGN if variance else FLOAT32)
    return bits


def counted(posterior: Posterior, left: Mapping[str, Tensor], bits: list[int], by_units: bool) -> FixedPoint:
    """Ratios of a smaller network.

    Args:
        posterior: what it came from.
        left: its tensors by name, in their smaller shapes; a layer may be missing.
        bits: per weight, layer by layer.
        by_units: count what lies in rows and columns that are left (`occupied`), as for priors with groups; if not, the
            survivors themselves, as for priors on single weights, whose published ratios leave out where they lie.
    """
    weights = [left[name] if name in left else torch.zeros(1, 1) for name in posterior.layers]
    counts = [occupied(weight) if by_units else nonzero(weight) for weight in weights]
    total = posterior.parameters_total
    spent = sum(number * width for number, width in zip(counts, bits, strict=True))
    return FixedPoint(bits, total / sum(counts), FLOAT32 * total / spent) if spent else FixedPoint(bits, None, None)


@torch.no_grad()
def fixed_point(posterior: Posterior, masks: Masks, by_units: bool) -> FixedPoint:
    """What masks and the posterior's variances would save, without rounding; arguments as in `counted`."""
    weights = {name: torch.where(masks[name], layer.mean, 0.0) for name, layer in posterior.layers.items()}
    small = trace_shrink(posterior.graph, posterior.dense | weights)
    return counted(posterior, small.tensors, bit_widths(posterior, masks), by_units)


@torch.no_grad()
def fixed_point_of(posterior: Posterior, tensors: Mapping[str, Tensor], criterion: str) -> FixedPoint:
    """What a compressed network would save if its survivors were kept at widths that the posterior's variances ask for.

    The variances are averaged over the weights that the literature's threshold keeps (`prune.THRESHOLDS`), or over all
    of a layer of which it keeps none.

    Args:
        posterior: what the network came from.
        tensors: the network's, by name.
        criterion: how it was pruned; units are counted for a group criterion, single weights for others.
    """
    rule = kept(posterior.layers, criterion)
    masks = {name: mask if mask.any() else torch.ones_like(mask) for name, mask in rule.items()}
    return counted(posterior, tensors, bit_widths(posterior, masks), criterion.startswith("group-"))
