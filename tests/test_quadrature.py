"""KL without a closed form, against scipy's adaptive quadrature and against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from pyro.distributions import HalfCauchy, Laplace, LogNormal, MixtureSameFamily, MultivariateNormal, Normal, StudentT
from scipy import integrate, stats
from torch.distributions import Categorical, kl_divergence

from pyro_compress.bayes.distributions import ScaleMixture
from pyro_compress.bayes.quadrature import kl_by_quadrature

SCALES = (math.exp(-9), 1e-3, 0.02, 0.3, 1.0, math.exp(3))
"""The narrowest and the widest that a guide allows among them."""


def expected(log_density, loc: float, scale: float) -> float:
    """E[log p] by scipy, in pieces that get small towards w = 0."""
    near = [sign * step for sign in (1, -1) for step in np.geomspace(1e-7, 10, 25)]
    edges = sorted({-12.0, 12.0, *np.clip([-3.0, 0.0, 3.0, *(-loc / scale + one for one in (0.0, *near))], -12, 12)})
    height = lambda t: math.exp(-t * t / 2) / math.sqrt(2 * math.pi) * log_density(loc + scale * t)  # noqa: E731
    return sum(
        integrate.quad(height, *piece, epsabs=1e-12, epsrel=1e-11, limit=200)[0] for piece in itertools.pairwise(edges)
    )


def mixture(pi: float, sigma1: float, sigma2: float):
    terms = [(math.log(part / sigma), sigma) for part, sigma in ((pi, sigma1), (1 - pi, sigma2))]
    return lambda w: np.logaddexp(*(a - (w / s) ** 2 / 2 for a, s in terms)) - math.log(2 * math.pi) / 2


PRIORS = {
    "blundell": (ScaleMixture(0.25, 1.0, math.exp(-6)), mixture(0.25, 1.0, math.exp(-6))),
    "narrow": (ScaleMixture(0.5, 1.0, math.exp(-8)), mixture(0.5, 1.0, math.exp(-8))),
    "very narrow": (ScaleMixture(0.99, 3.0, 1e-5), mixture(0.99, 3.0, 1e-5)),
    "laplace": (Laplace(0.0, 0.1), lambda w: -abs(w) / 0.1 - math.log(0.2)),
    "student": (StudentT(2.0, 0.0, 0.05), stats.t(2, 0, 0.05).logpdf),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", PRIORS)
def test_against_scipy(name: str, scale: float) -> None:
    """Within 1e-6 nats or 1e-6 of each, from 0 out to eight standard deviations."""
    prior, log_density = PRIORS[name]
    for loc in (0.0, -0.003, 0.3, 8 * scale):
        q = Normal(torch.tensor([loc]).double(), torch.tensor([scale]).double())
        entropy = math.log(scale) + math.log(2 * math.pi * math.e) / 2
        wanted = -entropy - expected(log_density, loc, scale)
        assert kl_by_quadrature(q, prior.expand((1,)).to_event(1)) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_every_element_has_its_own() -> None:
    """Scales per element, and many elements at once: the sum of what single ones give."""
    torch.manual_seed(0)
    q = Normal(torch.randn(3, 4).double(), 0.1 + torch.rand(3, 4).double())
    prior = Laplace(torch.randn(3, 4).double(), 0.1 + torch.rand(3, 1).double().expand(3, 4))
    wanted = 0.0
    numbers = torch.stack([q.loc, q.scale, prior.loc, prior.scale]).flatten(1).T.tolist()
    for loc, scale, centre, width in numbers:
        entropy = math.log(scale) + math.log(2 * math.pi * math.e) / 2
        cut = (centre - loc) / scale  # E|w - centre| of a normal is closed
        mean = scale * (2 * stats.norm.pdf(cut) + cut * (2 * stats.norm.cdf(cut) - 1))
        wanted += mean / width + math.log(2 * width) - entropy
    assert kl_by_quadrature(q, prior.to_event(2)) == pytest.approx(wanted, rel=1e-6)
    mixed = MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), Normal(torch.zeros(2), torch.tensor([1.0, 0.05])))
    same = kl_by_quadrature(q, ScaleMixture(0.3, 1.0, 0.05))
    assert kl_by_quadrature(q, mixed.expand((3, 4)).to_event(2)) == pytest.approx(same, rel=1e-5)


def test_closed_forms() -> None:
    q = LogNormal(torch.tensor([0.3, -2.0]).double(), torch.tensor([0.5, 0.1]).double())
    p = LogNormal(torch.zeros(2).double(), torch.ones(2).double())
    assert kl_by_quadrature(q, p) == pytest.approx(float(kl_divergence(q, p).sum()), rel=1e-9)
    half = HalfCauchy(torch.tensor([1.0, 1.0]).double())
    wanted = sum(
        integrate.quad(
            lambda t, m=m, s=s: stats.norm.pdf(t) * (stats.lognorm(s, 0, math.exp(m)).logpdf(math.exp(m + s * t))
            - stats.halfcauchy.logpdf(math.exp(m + s * t))), -12, 12,
        )[0]
        for m, s in ((0.3, 0.5), (-2.0, 0.1))
    )  # fmt: skip
    assert kl_by_quadrature(q, half.to_event(1)) == pytest.approx(wanted, rel=1e-6)


def test_joint_densities_are_not_integrated() -> None:
    q = Normal(torch.zeros(4, 2), torch.ones(4, 2))
    assert kl_by_quadrature(q, MultivariateNormal(torch.zeros(2), torch.eye(2)).expand((4,)).to_event(1)) is None

    class Together(Normal):
        """Every element gets the mean of all."""

        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return super().log_prob(value).mean().expand_as(value)

    assert kl_by_quadrature(q, Together(torch.zeros(4, 2), torch.ones(4, 2))) is None


def test_impossible_values_cost_everything() -> None:
    """A prior that allows no part of what the posterior does."""

    class Positive(Normal):
        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return torch.where(value > 0, super().log_prob(value), -math.inf)

    q = Normal(torch.zeros(2), torch.ones(2))
    assert kl_by_quadrature(q, Positive(torch.zeros(2), torch.ones(2))) == math.inf
