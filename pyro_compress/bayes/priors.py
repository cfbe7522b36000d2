"""Priors: a prior is a stochastic function `LayerShape -> WeightDraw`, plus what is known about fitting it.

The weight is `gate * raw`. Sites are named after the tensor: `1.weight.raw` for the raw weight, `1.weight.scale` and
the like for group scales. To add a prior, write the function and its start, and add a row to `PRIORS`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import Distribution, Gamma, InverseGamma, LogNormal, Normal
from torch import Tensor

import pyro_compress.bayes.kl  # noqa: F401 - registers the closed forms
from pyro_compress.bayes.distributions import (
    GroupRelevance,
    LogUniform,
    ScaleMixture,
    ScaleMixtureBound,
    SoftSharing,
)
from pyro_compress.foreign import unknown
from pyro_compress.types import LayerShape, WeightDraw

MOST_COMPONENTS = 1 << 10
"""Components that a learned mixture may have beside the one at 0."""


@dataclass(frozen=True)
class Start:
    """Where the posterior of one site starts: `family(loc, scale)`, `LogNormal` for positive sites."""

    family: type[Distribution]
    loc: Tensor
    scale: Tensor


Marginal = Callable[[str], Distribution]
"""Site name -> its posterior marginal."""


@dataclass(frozen=True)
class Prior:
    """A prior and how to fit it.

    Attributes:
        draw: the stochastic function; its keyword arguments are the prior's options.
        groupings: the groupings it allows, its default first.
        closed_form: whether every site's KL to its mean-field posterior is closed-form.
        start: `(shape, weight, std) -> {site: Start}` from trained weights and an initial standard deviation.
        factors: `(name, marginal) -> ` the posteriors of independent factors whose product is the gate; several are all
            log-normal. None for priors without scales.
        shared_spread: whether the weights of a group are judged together, though they have no scale with a posterior.
        criterion: name of the pruning criterion that fits.
        estimator: default estimator.
        init_scale: default initial standard deviation of a raw weight.
        pretrain: default share of the epochs spent on point weights.
        warmup: default share of the remaining epochs over which the KL weight rises.
        lr: default learning rate of raw weights and of everything deterministic.
        lr_scale: default learning rate of log-scales.
        lr_group: default learning rate of group and layer scales.
        max_scale: default bound on the first layer's raw standard deviations, 0 for none (the code of Louizos et al.
            clips that layer's variance at 0.04; without it the inputs' noise alone costs about a point).
        proper: whether it has a finite mass; if not, KL and target density are known up to a constant.
    """

    draw: Callable[..., WeightDraw]
    groupings: tuple[str, ...]
    closed_form: bool
    start: Callable[..., dict[str, Start]]
    factors: Callable[[str, Marginal], tuple[Distribution, ...]] | None = None
    shared_spread: bool = False
    criterion: str = "snr"
    estimator: str = "local"
    init_scale: float = 0.01
    pretrain: float = 0.0
    warmup: float = 0.2
    lr: float = 1e-3
    lr_scale: float = 1e-2
    lr_group: float = 1e-3
    max_scale: float = 0.0
    proper: bool = True

    def gate(self, name: str, marginal: Marginal) -> Distribution:
        """Posterior of the gate of the tensor `name`, one group at a time."""
        assert self.factors
        factors = self.factors(name, marginal)
        return functools.reduce(_product, factors)

    @property
    def options(self) -> list[str]:
        """Names of its options."""
        return [key for key in inspect.signature(self.draw).parameters if key != "shape"]

    def with_options(self, options: dict[str, float]) -> Prior:
        """The same prior with options bound.

        Raises:
            ValueError: an option that the prior does not have, or a value it refuses.
        """
        for name in sorted(set(options) - set(self.options)):
            raise unknown("prior option", name, self.options)
        if bad := sorted(key for key, value in options.items() if not (value > 0 and math.isfinite(value))):
            raise ValueError(f"prior option {bad[0]}={options[bad[0]]}: it must be positive and finite")
        if "pi" in options and options["pi"] >= 1:
            raise ValueError(f"prior option pi={options['pi']}: it must lie between 0 and 1")
        components = options.get("components", 1)
        if components != round(components) or components > MOST_COMPONENTS:
            raise ValueError(f"prior option components={components}: it must be a whole number up to {MOST_COMPONENTS}")
        for_start = {k: v for k, v in options.items() if k in inspect.signature(self.start).parameters}
        bound = {
            "draw": functools.partial(self.draw, **options),
            "start": functools.partial(self.start, **for_start),
        }
        return Prior(**(self.__dict__ | bound))


def _joint(distribution: Distribution, shape: tuple[int, ...]) -> Distribution:
    """Independent copies of a distribution as one event of this shape."""
    return distribution.expand(shape).to_event(len(shape))


def _ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * len(shape)


def _normal(shape: LayerShape, scale: float = 1.0) -> Distribution:
    value = torch.tensor(float(scale), device=shape.device)
    return _joint(Normal(torch.zeros_like(value), value), shape.raw)


def gaussian(shape: LayerShape, scale: float = 1.0) -> WeightDraw:
    """Normal prior N(0, scale²) on every weight."""
    return WeightDraw(None, pyro.sample(shape.site, _normal(shape, scale)))


def spike_and_slab(
    shape: LayerShape, pi: float = 0.25, sigma1: float = 1.0, sigma2: float = math.exp(-6)
) -> WeightDraw:
    """Scale mixture of two Gaussians on every weight (Blundell et al. 2015, eq. 7); its KL is a one-sample estimate."""
    mixture = ScaleMixture(pi, sigma1, sigma2, device=shape.device)
    return WeightDraw(None, pyro.sample(shape.site, _joint(mixture, shape.raw)))


def spike_and_slab_bound(
    shape: LayerShape, pi: float = 0.25, sigma1: float = 1.0, sigma2: float = math.exp(-6)
) -> WeightDraw:
    """The scale mixture with an upper bound in place of its KL: a different, closed-form objective."""
    mixture = ScaleMixtureBound(pi, sigma1, sigma2, device=shape.device)
    return WeightDraw(None, pyro.sample(shape.site, _joint(mixture, shape.raw)))


def log_uniform(shape: LayerShape) -> WeightDraw:
    """Improper log-uniform prior on every weight (sparse variational dropout, Molchanov et al. 2017)."""
    return WeightDraw(None, pyro.sample(shape.site, _joint(LogUniform(), shape.raw)))


def relevance(shape: LayerShape) -> WeightDraw:
    """Automatic relevance determination: N(0, 1 / α_g) on the weights of a group, its α_g learned (MacKay 1995)."""
    axes = tuple(axis for axis, size in enumerate(shape.gate) if size == 1)
    prior = GroupRelevance(axes if shape.grouping != "weight" else ())
    return WeightDraw(None, pyro.sample(shape.site, _joint(prior, shape.raw)))


def normal_jeffreys(shape: LayerShape) -> WeightDraw:
    """Group scale z with prior ∝ 1/|z|, raw weights N(0, 1) (BC-GNJ, Louizos et al. 2017, section 4.1)."""
    gate = pyro.sample(f"{shape.name}.scale", _joint(LogUniform(), shape.gate))
    return WeightDraw(gate, pyro.sample(shape.site, _normal(shape)))


def horseshoe(shape: LayerShape, tau0: float = 1e-5) -> WeightDraw:
    """Group horseshoe (BC-GHS, Louizos et al. 2017, section 4.2): z_i = s·z̃_i, s ~ C⁺(0, tau0), z̃_i ~ C⁺(0, 1).

    A half-Cauchy C⁺(0, k) is the root of a product of Gamma(½, scale k²) and InvGamma(½, 1) (appendix A); the layer's
    global scale s is shared by all groups; raw weights are N(0, 1).
    """
    half = torch.tensor(0.5, device=shape.device)
    rate = torch.tensor(1 / tau0**2, device=shape.device)
    one = torch.ones_like(half)
    single = _ones(shape.weight)
    global_a = pyro.sample(f"{shape.name}.global_a", _joint(Gamma(half, rate), single))
    global_b = pyro.sample(f"{shape.name}.global_b", _joint(InverseGamma(half, one), single))
    local_a = pyro.sample(f"{shape.name}.local_a", _joint(Gamma(half, one), shape.gate))
    local_b = pyro.sample(f"{shape.name}.local_b", _joint(InverseGamma(half, one), shape.gate))
    # square roots one by one: the product of four scales under- and overflows float32 long before its root does
    gate = (global_a.sqrt() * local_b.sqrt()) * (global_b.sqrt() * local_a.sqrt())
    return WeightDraw(gate, pyro.sample(shape.site, _normal(shape)))


def soft_weight_sharing(shape: LayerShape, components: float = 16, pi: float = 0.999) -> WeightDraw:
    """Mixture whose components are learned: one at 0, others where the weights gather (Ullrich et al. 2017, section 4).

    Component 0 has mean 0 and mixing proportion `pi`, fixed, and precision ~ Gamma(5000, rate 2); the others have
    precisions ~ Gamma(250, rate 0.1), means ~ N(0, 1), and share the rest of the proportions by a softmax of
    standard normal numbers. Each tensor has a mixture of its own. Their τ is the fit's KL weight.
    """
    others, device = (round(components),), shape.device
    zero, one = torch.zeros((), device=device), torch.ones((), device=device)
    logits = pyro.sample(f"{shape.name}.logits", _joint(Normal(zero, one), others))
    means = pyro.sample(f"{shape.name}.means", _joint(Normal(zero, one), others))
    precisions = pyro.sample(f"{shape.name}.precisions", _joint(Gamma(250 * one, 0.1 * one), others))
    precision = pyro.sample(f"{shape.name}.zero_precision", _joint(Gamma(5000 * one, 2 * one), (1,)))
    log_rest = math.log1p(-pi) + logits.log_softmax(0)
    mixture = SoftSharing(
        torch.cat([torch.full((1,), math.log(pi), device=device), log_rest]),
        torch.cat([zero.expand(1), means]),
        torch.cat([precision, precisions]),
    )
    return WeightDraw(None, pyro.sample(shape.site, _joint(mixture, shape.raw)))


def soft_weight_sharing_start(
    shape: LayerShape, weight: Tensor, std: float, components: float = 16
) -> dict[str, Start]:
    """Means even over ±0.6, every component as wide as 0.25 (Ullrich et al. 2017, section 6.1)."""
    places = torch.linspace(-0.6, 0.6, round(components), device=weight.device)
    narrow = torch.full_like(places, math.exp(-2.5))
    wide = torch.full_like(places, math.log(1 / 0.25**2))
    return weight_start(shape, weight, std) | {
        f"{shape.name}.logits": Start(Normal, torch.zeros_like(places), narrow),
        f"{shape.name}.means": Start(Normal, places, 0.1 * narrow),
        f"{shape.name}.precisions": Start(LogNormal, wide, narrow),
        f"{shape.name}.zero_precision": Start(LogNormal, wide[:1], narrow[:1]),
    }


def weight_start(shape: LayerShape, weight: Tensor, std: float) -> dict[str, Start]:
    """Posterior centred on the given weights."""
    return {shape.site: Start(Normal, weight, torch.full_like(weight, std))}


def _group_rms(shape: LayerShape, weight: Tensor) -> Tensor:
    """Root mean square of each group, in gate shape; dead groups count as a thousandth of the largest."""
    axes = [axis for axis, size in enumerate(shape.gate) if size == 1 and weight.shape[axis] != 1]
    rms = weight.square().mean(axes, keepdim=True).sqrt() if axes else weight.abs()
    return rms.clamp_min(max(1e-3 * float(rms.max()), 1e-6))


def normal_jeffreys_start(shape: LayerShape, weight: Tensor, std: float) -> dict[str, Start]:
    """Z starts at the rms of its group with alpha = 1e-4, the raw weights at weight / z: nothing is damaged at once."""
    rms = _group_rms(shape, weight)
    return {
        f"{shape.name}.scale": Start(Normal, rms, 0.01 * rms),
        shape.site: Start(Normal, weight / rms, torch.full_like(weight, std)),
    }


def horseshoe_start(shape: LayerShape, weight: Tensor, std: float, tau0: float = 1e-5) -> dict[str, Start]:
    """Global scale at tau0, every group far out in its Cauchy tail, raw weights at weight / rms of their group.

    With all locations at 0 the Gamma term costs 1e5 nats or more at once and training stalls; with the global scale
    at 1 no group ever separates from the others.
    """
    rms = _group_rms(shape, weight)
    single, log_tau = weight.new_zeros(_ones(shape.weight)), math.log(tau0)
    locations = {
        "global_a": single + 2 * log_tau,
        "global_b": single,
        "local_a": torch.zeros_like(rms),
        "local_b": 2 * (rms.log() - log_tau),
    }
    scales = {
        f"{shape.name}.{site}": Start(LogNormal, loc, torch.full_like(loc, math.exp(-2.5)))
        for site, loc in locations.items()
    }
    return scales | {shape.site: Start(Normal, weight / rms, torch.full_like(weight, std))}


def _normal_jeffreys_factors(name: str, marginal: Marginal) -> tuple[Distribution, ...]:
    return (marginal(f"{name}.scale"),)


def _horseshoe_factors(name: str, marginal: Marginal) -> tuple[Distribution, ...]:
    """The layer's scale and the groups' own: the root of a product of independent log-normals is log-normal."""
    pairs = [_product(marginal(f"{name}.{level}_a"), marginal(f"{name}.{level}_b")) for level in ("global", "local")]
    return tuple(LogNormal(pair.loc / 2, pair.scale / 2) for pair in pairs)


def _product(a: Distribution, b: Distribution) -> LogNormal:
    """The distribution of a product of two independent log-normal variables."""
    return LogNormal(a.loc + b.loc, (a.scale.square() + b.scale.square()).sqrt())


PRIORS: dict[str, Prior] = {
    "gaussian": Prior(gaussian, ("weight",), True, weight_start),
    "spike-and-slab": Prior(
        spike_and_slab, ("weight",), False, weight_start, estimator="weight", init_scale=0.02, lr=2e-3, lr_scale=1e-3
    ),
    "spike-and-slab-bound": Prior(
        spike_and_slab_bound, ("weight",), True, weight_start, init_scale=0.02, lr=2e-3, lr_scale=1e-3
    ),
    "log-uniform": Prior(
        log_uniform,
        ("weight",),
        True,
        weight_start,
        init_scale=0.0067,
        pretrain=0.2,
        warmup=0.75,
        lr=3e-3,
        lr_scale=3e-3,
        proper=False,
    ),
    "soft-weight-sharing": Prior(
        soft_weight_sharing,
        ("weight",),
        False,
        soft_weight_sharing_start,
        estimator="weight",
        init_scale=0.01,
        pretrain=0.2,
        lr=2e-3,
        lr_scale=1e-3,
        lr_group=3e-3,
    ),
    "relevance": Prior(
        relevance,
        ("input", "output", "filter"),
        True,
        weight_start,
        shared_spread=True,
        criterion="group-relevance",
        init_scale=0.0067,
        pretrain=0.2,
        lr=3e-3,
        lr_scale=1e-2,
        max_scale=0.2,
        proper=False,
    ),
    "normal-jeffreys": Prior(
        normal_jeffreys,
        ("input", "output", "filter", "weight"),
        True,
        normal_jeffreys_start,
        factors=_normal_jeffreys_factors,
        criterion="group-snr",
        pretrain=0.2,
        warmup=0.2,
        lr=3e-3,
        lr_scale=5e-3,
        lr_group=3e-3,
        max_scale=0.2,
        proper=False,
    ),
    "horseshoe": Prior(
        horseshoe,
        ("input", "output", "filter", "weight"),
        True,
        horseshoe_start,
        factors=_horseshoe_factors,
        criterion="group-mode",
        pretrain=0.2,
        warmup=0.2,
        lr=4e-3,
        lr_scale=1e-2,
        lr_group=3e-2,
        max_scale=0.2,
    ),
}
