"""What goes: scores per weight (high = keep), one global threshold or one per layer, masks.

To add a criterion, write a function `LayerPosterior -> score`, broadcastable to the weight, and a row in `CRITERIA`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_compress.types import LayerPosterior, Masks, Posterior

Sparsity = float | Mapping[str, float]
"""Share of the weights to remove: of all layers together, or of each by the name of its weight tensor."""


def signal_to_noise(layer: LayerPosterior) -> Tensor:
    """|mean| / std of every weight (Graves 2011; Blundell et al. 2015, section 5.1); infinite where std is 0."""
    return _ratio(layer.mean.abs(), layer.std)


def magnitude(layer: LayerPosterior) -> Tensor:
    """|mean| of every weight."""
    return layer.mean.abs()


def group_signal_to_noise(layer: LayerPosterior) -> Tensor:
    """|mean| / std of the group's scale: -½ log alpha of Louizos et al. 2017, section 4.1, up to monotony."""
    if layer.unit_mean is None or layer.unit_std is None:
        return _keep_all(layer)
    return _ratio(layer.unit_mean.abs(), layer.unit_std)


def group_mode(layer: LayerPosterior) -> Tensor:
    """Mode of the group's log-normal scale, exp(m - s²) (Louizos et al. 2017, section 4.2).

    Moments give the parameters back: s² = log(1 + std²/mean²), m = log mean - s²/2. What underflowed is 0.

    Raises:
        ValueError: a negative mean, which no log-normal scale has.
    """
    if layer.unit_mean is None or layer.unit_std is None:
        return _keep_all(layer)
    if (layer.unit_mean < 0).any():
        raise ValueError("criterion 'group-mode' is for log-normal scales, and some of these are negative")
    variance_of_log = torch.log1p((layer.unit_std / layer.unit_mean.clamp_min(1e-30)).square())
    return layer.unit_mean * torch.exp(-1.5 * variance_of_log)


def _ratio(signal: Tensor, noise: Tensor) -> Tensor:
    """Signal / noise, where 0 / 0 counts as no signal."""
    return torch.where(signal > 0, signal / noise, 0.0)


def _keep_all(layer: LayerPosterior) -> Tensor:
    return torch.full([1] * layer.mean.dim(), torch.inf)


CRITERIA: dict[str, Callable[[LayerPosterior], Tensor]] = {
    "snr": signal_to_noise,
    "magnitude": magnitude,
    "group-snr": group_signal_to_noise,
    "group-mode": group_mode,
}


def refuse_unfit(criterion: str, own: str, groups: bool) -> None:
    """Refuse a criterion that says nothing about a posterior.

    `group-snr` orders scales of either kind: of a log-normal one it is `1 / sqrt(exp(s²) - 1)`. `group-mode` orders
    log-normal ones only; a Gaussian scale's mode is its mean, of either sign.

    Args:
        criterion: name in `CRITERIA`.
        own: the criterion that fits the posterior's prior (`Posterior.criterion`).
        groups: whether the posterior has group scales.

    Raises:
        ValueError: unknown criterion, a group criterion without groups, `group-mode` of Gaussian scales.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; allowed: {', '.join(CRITERIA)}")
    if criterion == "group-mode" and own == "group-snr":
        raise ValueError(
            "criterion 'group-mode' is for log-normal scales (horseshoe); these are Gaussian, where a negative one "
            "counts as much as a positive one: take group-snr, snr or magnitude"
        )
    if criterion.startswith("group-") and not groups:
        raise ValueError(f"criterion {criterion!r} needs a prior with group scales; this posterior has none")


def scores(posterior: Posterior, criterion: str) -> dict[str, Tensor]:
    """Score of every weight, in weight shape, by weight tensor name.

    Raises:
        ValueError: a criterion that does not fit (`refuse_unfit`).
    """
    groups = any(layer.unit_mean is not None for layer in posterior.layers.values())
    refuse_unfit(criterion, posterior.criterion, groups)
    found = {name: CRITERIA[criterion](layer) for name, layer in posterior.layers.items()}
    return {name: score.expand_as(posterior.layers[name].mean) for name, score in found.items()}


def masks_at(scores: dict[str, Tensor], sparsity: Sparsity) -> Masks:
    """Drop the given share of all weights, lowest scores first, over all layers together or in each by its own share.

    Weights that tie with the last one to go (a group, say) stay.

    Raises:
        ValueError: a share out of range, shares that do not name exactly the layers there are.
    """
    if isinstance(sparsity, Mapping):
        if sparsity.keys() != scores.keys():
            raise ValueError(
                f"shares for {', '.join(sparsity) or 'no layer'}: give one for each of {', '.join(scores)}"
            )
        return {name: masks_at({name: score}, float(sparsity[name]))[name] for name, score in scores.items()}
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: allowed are values from 0 up to, but not including, 1")
    everything = torch.cat([score.flatten() for score in scores.values()])
    drop = round(sparsity * len(everything))
    if drop == 0:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    threshold = everything.kthvalue(drop + 1).values if drop < len(everything) else torch.inf
    return {name: score >= threshold for name, score in scores.items()}


def removed_share(masks: Masks) -> float:
    """Share of the weights that the masks remove."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


THRESHOLDS = {
    "snr": math.exp(-1.5),
    "group-snr": math.exp(1.5),
    "group-mode": math.exp(-6.0),
    "magnitude": 0.0,
}
"""Score above which `inspect` counts a weight as kept; `compress` searches for its own threshold.

`snr`: log alpha < 3 (Molchanov et al. 2017, section 5.1). `group-snr`: log alpha < -3, as in the code of Louizos et al.
2017. `group-mode`: far from either cluster of scores that the horseshoe leaves behind. `magnitude`: not exactly zero.
"""


def kept(layers: dict[str, LayerPosterior], criterion: str) -> Masks:
    """Weights whose score is above the criterion's rule of thumb (`THRESHOLDS`)."""
    score, threshold = CRITERIA[criterion], THRESHOLDS[criterion]
    return {name: (score(layer) > threshold).expand_as(layer.mean) for name, layer in layers.items()}
