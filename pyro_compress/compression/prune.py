"""What goes: scores per weight (high = keep), one global threshold or one per layer, masks.

To add a criterion, write a function `LayerPosterior -> score`, broadcastable to the weight, and a row in `CRITERIA`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.foreign import unknown
from pyro_compress.settings import Goal
from pyro_compress.types import BLOCK, CACHED, LayerPosterior, Masks, Posterior, nonzero, rows_of

Sparsity = float | Mapping[str, float]
"""Share of the weights to remove: of all layers together, or of each by the name of its weight tensor."""


def signal_to_noise(layer: LayerPosterior) -> Tensor:
    """|mean| / std of every weight (Graves 2011; Blundell et al. 2015, section 5.1); infinite where std is 0."""
    return _ratio(layer.mean.abs(), layer.std)


def magnitude(layer: LayerPosterior) -> Tensor:
    """|mean| of every weight."""
    return layer.mean.abs()


def group_signal_to_noise(layer: LayerPosterior) -> Tensor:
    """|mean| / std of the group's scale: -½ log alpha of Louizos et al. 2017, section 4.1, up to monotony.

    Under automatic relevance determination the root mean square of a group's means, by that of its deviations.
    """
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


def model_reduction(layer: LayerPosterior) -> Tensor:
    """log(1 + Bayes factor) of keeping a weight against leaving it out: log 2 where the evidence says neither.

    Bayesian model reduction (Friston & Penny 2011; Beckers et al. 2022; Marković et al. 2023): the evidence of the
    model without the weight follows from the posterior with it, and for a point at 0 it is the ratio of densities there
    (Savage & Dickey). Of a posterior N(m, s²) under a prior N(0, p²) that is

        ΔF = log q(0) - log p(0) = log(p / s) - m² / 2s².

    The prior is the layer's own: `p²` is the mean of m² + s², which maximises the ELBO among Gaussians that all weights
    of a layer share. Where ΔF is positive the model without the weight is the better one: a rule without a threshold.
    """
    scale = math.sqrt(max((layer.whole or layer).power, 1e-60))
    kept = 0.5 * (layer.mean / layer.std).square() + (layer.std / scale).log()
    certain = torch.where(layer.mean == 0, 0.0, torch.inf)
    return torch.where(layer.std > 0, torch.nn.functional.softplus(kept), certain)


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
    "group-relevance": group_signal_to_noise,
    "model-reduction": model_reduction,
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
        ValueError: unknown criterion, a group criterion without groups, `group-mode` of Gaussian scales, `snr` of
            point weights.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    if criterion == "group-mode" and own in ("group-snr", "group-relevance"):
        raise ValueError(
            "criterion 'group-mode' is for log-normal scales (horseshoe); these are Gaussian, where a negative one "
            "counts as much as a positive one: take group-snr, snr or magnitude"
        )
    if criterion in ("snr", "model-reduction") and own == "magnitude":
        raise ValueError(
            f"criterion {criterion!r} needs a posterior's spread, and these are point weights: take magnitude"
        )
    if criterion.startswith("group-") and not groups:
        raise ValueError(f"criterion {criterion!r} needs a prior with group scales; this posterior has none")


def scores(posterior: Posterior, criterion: str) -> dict[str, Tensor]:
    """Score of every weight, in weight shape, by weight tensor name.

    Raises:
        ValueError: a criterion that does not fit (`refuse_unfit`).
    """
    _refuse_unfit(posterior, criterion)
    found = {name: CRITERIA[criterion](layer) for name, layer in posterior.layers.items()}
    return {name: score.expand_as(posterior.layers[name].mean) for name, score in found.items()}


def _parts(layer: LayerPosterior, most: int = BLOCK) -> Iterator[tuple[slice, LayerPosterior]]:
    """A layer in blocks of rows, each with the scales that belong to it."""
    out = len(layer.mean)

    def of(scale: Tensor | None, rows: slice) -> Tensor | None:
        return scale if scale is None or len(scale) != out else scale[rows]

    for rows in rows_of(tuple(layer.mean.shape), most):
        units = of(layer.unit_mean, rows), of(layer.unit_std, rows)
        yield rows, LayerPosterior(layer.mean[rows], layer.std[rows], *units, layer.grouping, layer)


def _marked(layer: LayerPosterior, criterion: str, mark: Callable[[Tensor], Tensor]) -> Tensor:
    """What `mark` says of every weight's score, in weight shape."""
    found = torch.empty(layer.mean.shape, dtype=torch.bool, device=layer.mean.device)
    for rows, part in _parts(layer):
        found[rows] = mark(CRITERIA[criterion](part))
    return found


def unit_scores(layer: LayerPosterior, criterion: str) -> Tensor:
    """Score of every output unit, that of its best weight, `(out,)`."""
    scored = (CRITERIA[criterion](part).expand_as(part.mean) for _, part in _parts(layer))
    return torch.cat([score.flatten(1).amax(1) for score in scored])


def mean_signal_to_noise(layer: LayerPosterior) -> float:
    """Mean of `signal_to_noise` over a layer's weights."""
    if layer.mean.numel() <= BLOCK:
        return float(signal_to_noise(layer).mean())
    return sum(float(signal_to_noise(part).double().sum()) for _, part in _parts(layer)) / layer.mean.numel()


class Ranking:
    """All weights of a posterior in the order of their scores; a byte per weight is kept of it.

    Args:
        posterior: moments of every weight, and the network.
        criterion: name in `CRITERIA`.
        shares: of the weights to remove that will be asked for, 255 at most: what falls where is found in one go.

    Raises:
        ValueError: as `scores`.
    """

    def __init__(self, posterior: Posterior, criterion: str, shares: Iterable[float] = ()):
        _refuse_unfit(posterior, criterion)
        self.layers, self.criterion, self.shares = posterior.layers, criterion, tuple(shares)
        self.found: dict[tuple[tuple[str, ...], int], float] = {}
        self.drops: list[int] = []
        self.survived: dict[str, Tensor] = {}

    def masks(self, sparsity: Sparsity) -> Masks:
        """As `masks_at` on the scores."""
        if isinstance(sparsity, Mapping):
            _check_shares(sparsity, self.layers)
            thresholds = {name: self._threshold((name,), float(share)) for name, share in sparsity.items()}
        elif known := self._known(sparsity):
            return known
        else:
            thresholds = dict.fromkeys(self.layers, self._threshold(tuple(self.layers), sparsity))
        return {name: self._mask(layer, thresholds[name]) for name, layer in self.layers.items()}

    def _mask(self, layer: LayerPosterior, least: float | None) -> Tensor:
        if least is None:
            return torch.ones_like(layer.mean, dtype=torch.bool)
        return _marked(layer, self.criterion, lambda score: score >= least)

    def _known(self, share: float) -> Masks | None:
        """Masks at one of the shares that were announced: of each weight it is known how many of these it survives."""
        _check_share(share)
        total = sum(layer.mean.numel() for layer in self.layers.values())
        if share not in self.shares or not 0 < round(share * total) < total:
            return None
        if not self.survived:
            ordered = self._ordered(tuple(self.layers), total)
            self.drops = sorted({drop for each in self.shares if 0 < (drop := round(each * total)) < total})
            thresholds = torch.from_numpy(ordered[self.drops])
            del ordered
            for name, layer in self.layers.items():
                self.survived[name] = torch.empty(layer.mean.shape, dtype=torch.uint8)
                for rows, part in _parts(layer, CACHED):
                    score = CRITERIA[self.criterion](part).expand_as(part.mean).contiguous()
                    self.survived[name][rows] = torch.bucketize(score, thresholds, out_int32=True, right=True)
        least = self.drops.index(round(share * total)) + 1
        return {name: survived >= least for name, survived in self.survived.items()}

    def _threshold(self, names: tuple[str, ...], share: float) -> float | None:
        """The least score that stays in the named layers together; None: all stay."""
        _check_share(share)
        total = sum(self.layers[name].mean.numel() for name in names)
        drop = round(share * total)
        if drop == 0:
            return None
        if drop >= total:
            return math.inf
        if (names, drop) not in self.found:
            self.found[names, drop] = float(self._ordered(names, total)[drop])
        return self.found[names, drop]

    def _ordered(self, names: tuple[str, ...], total: int) -> np.ndarray:
        found, place = np.empty(total, np.float32), 0
        for name in names:
            for _, part in _parts(self.layers[name]):
                score = CRITERIA[self.criterion](part).expand_as(part.mean)
                found[place : place + score.numel()] = score.flatten().numpy()
                place += score.numel()
        found.sort()
        return found


def masks_at(scores: dict[str, Tensor], sparsity: Sparsity) -> Masks:
    """Drop the given share of all weights, lowest scores first, over all layers together or in each by its own share.

    Weights that tie with the last one to go (a group, say) stay.

    Raises:
        ValueError: a share out of range, shares that do not name exactly the layers there are.
    """
    if isinstance(sparsity, Mapping):
        _check_shares(sparsity, scores)
        return {name: masks_at({name: score}, float(sparsity[name]))[name] for name, score in scores.items()}
    _check_share(sparsity)
    everything = torch.cat([score.flatten() for score in scores.values()])
    drop = round(sparsity * len(everything))
    if drop == 0:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    threshold = everything.kthvalue(drop + 1).values if drop < len(everything) else torch.inf
    return {name: score >= threshold for name, score in scores.items()}


def _refuse_unfit(posterior: Posterior, criterion: str) -> None:
    groups = any(layer.unit_mean is not None for layer in posterior.layers.values())
    refuse_unfit(criterion, posterior.criterion, groups)


def _check_shares(shares: Mapping[str, float], layers: Mapping[str, Any]) -> None:
    if shares.keys() != layers.keys():
        raise ValueError(f"shares for {', '.join(shares) or 'no layer'}: give one for each of {', '.join(layers)}")


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"sparsity {share}: allowed are values from 0 up to, but not including, 1")


def removed_share(masks: Masks) -> float:
    """Share of the weights that the masks remove."""
    return 1 - sum(nonzero(mask) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


THRESHOLDS = {
    "snr": math.exp(-1.5),
    "group-snr": math.exp(1.5),
    "group-mode": math.exp(-6.0),
    "group-relevance": math.exp(-1.5),
    "magnitude": 0.0,
    "model-reduction": math.log(2),
}
"""Score above which `inspect` counts a weight as kept; `compress` searches for its own threshold.

`snr`: log alpha < 3 (Molchanov et al. 2017, section 5.1). `group-snr`: log alpha < -3, as in the code of Louizos et al.
2017. `group-relevance`: as `snr`, of the group. `group-mode`: far from either cluster of scores that the horseshoe
leaves behind. `magnitude`: not exactly zero. `model-reduction`: the evidence is larger with the weight.
"""


def ruled(posterior: Posterior, goal: Goal) -> Goal:
    """A goal that asks for the criterion's own rule, with the share of the weights that the rule removes.

    Raises:
        ValueError: a criterion that does not fit, or a rule that leaves nothing.
    """
    if not goal.rule:
        return goal
    criterion = goal.criterion or posterior.criterion
    _refuse_unfit(posterior, criterion)
    share = removed_share(kept(posterior.layers, criterion))
    if share >= 1:
        raise ValueError(f"the rule of criterion {criterion!r} removes every weight; give --sparsity or a tolerance")
    return replace(goal, rule=False, sparsity=share)


def kept(layers: dict[str, LayerPosterior], criterion: str) -> Masks:
    """Weights whose score is above the criterion's rule of thumb (`THRESHOLDS`)."""
    threshold = THRESHOLDS[criterion]
    return {name: _marked(layer, criterion, lambda score: score > threshold) for name, layer in layers.items()}
