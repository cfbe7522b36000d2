"""Every closed-form KL against quadrature and Monte Carlo, over a grid with extremes: values and gradients."""

import functools
import math

import numpy as np
import pytest
import torch
from pyro.distributions import Gamma, InverseGamma, LogNormal, Normal
from scipy import integrate, special
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_compress.bayes.distributions import GroupRelevance, LogUniform, ScaleMixture, ScaleMixtureBound
from pyro_compress.bayes.kl import K1, K2, K3

SCALES = [1e-6, 1e-3, 0.1, 1.0, 1e3]
LOG_SCALES = [1e-6, 1e-3, 0.1, 1.0, 3.0]  # of log-normals: e^{s²/2} leaves float64 long before s = 1e3


HERMITE = functools.cache(np.polynomial.hermite_e.hermegauss)


def double(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def gauss_hermite(function, order: int = 400) -> float:
    """Expectation of a function of a standard normal variable."""
    nodes, weights = HERMITE(order)
    keep = weights > 0
    return float((weights[keep] * function(nodes[keep])).sum() / math.sqrt(2 * math.pi))


def numeric_gradient(function, x: float) -> float:
    step = 1e-5 * max(abs(x), 1e-3)
    return (function(x + step) - function(x - step)) / (2 * step)


def quadrature_log_normal(m: float, s: float, log_density) -> float:
    """KL(LogN(m, s²) ‖ p) by quadrature over log z; log_density is log p(z) as a function of log z."""
    entropy_of_log = 0.5 * math.log(2 * math.pi * math.e * s * s)
    # density of log z under p is p(z) z
    return -entropy_of_log - gauss_hermite(lambda e: log_density(m + s * e) + (m + s * e), 120)


@pytest.mark.parametrize("a", [0.5, 2.0])
@pytest.mark.parametrize("b", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("m", [-23.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("s", LOG_SCALES)
@pytest.mark.parametrize("inverse", [False, True])
def test_log_normal_against_quadrature(inverse: bool, s: float, m: float, b: float, a: float) -> None:
    """Relative tolerance 1e-7 of the larger of 1 and the KL."""
    sign = -1 if inverse else 1

    def log_density(u):
        # Gamma(a, rate b) in v = log z; an inverse gamma variable is the inverse of a gamma variable
        v = sign * u
        return a * math.log(b) - special.gammaln(a) + a * v - b * np.exp(v) - u

    wanted = quadrature_log_normal(m, s, log_density)
    q_m, q_s = double(m, s)
    prior = (InverseGamma if inverse else Gamma)(torch.tensor(a).double(), torch.tensor(b).double())
    got = kl_divergence(LogNormal(q_m, q_s), prior)
    assert got.item() == pytest.approx(wanted, rel=1e-7, abs=1e-7)
    got.backward()
    for parameter, wanted_at in ((q_m, lambda x: quadrature_log_normal(x, s, log_density)),):
        assert parameter.grad.item() == pytest.approx(
            numeric_gradient(wanted_at, m), rel=1e-4, abs=1e-4 * abs(wanted) + 1e-6
        )


@pytest.mark.parametrize(("m", "s"), [(0.3, 0.5), (-1.0, 0.1)])
@pytest.mark.parametrize("prior", [Gamma(0.5, 2.0), InverseGamma(torch.tensor(0.5), torch.tensor(1.0))])
def test_log_normal_against_monte_carlo(prior, m: float, s: float) -> None:
    """200,000 draws, five standard errors."""
    q = LogNormal(torch.tensor(m), torch.tensor(s))
    z = q.sample((200_000,))
    terms = q.log_prob(z) - prior.log_prob(z)
    assert abs(terms.mean() - kl_divergence(q, prior)) < 5 * terms.std() / math.sqrt(len(terms))


def true_log_uniform(t: float) -> float:
    """The true KL(N(mu, sigma²) ‖ log-uniform) as a function of t = mu²/sigma², shifted to 0 at mu = 0.

    It is E log|mu + sigma e| - log sigma - (its value at mu = 0); the expectation of log|.| of a non-central normal is
    known: E log((sqrt(t) + e)²) = log 2 + Σ_j Poisson(j; t/2) digamma(j + ½).
    """
    if t > 1e5:
        return 0.5 * math.log(t) - 0.5 * (math.log(2) + special.digamma(0.5))
    j = np.arange(int(t / 2 + 12 * math.sqrt(t / 2) + 60))
    log_poisson = -t / 2 + special.xlogy(j, t / 2) - special.gammaln(j + 1)
    return 0.5 * float((np.exp(log_poisson) * special.digamma(j + 0.5)).sum()) - 0.5 * special.digamma(0.5)


def test_true_log_uniform_against_quadrature() -> None:
    """The series that the next test leans on, against brute-force integration of log|.|."""
    for t in (0.3, 4.0, 50.0):
        root = math.sqrt(t)

        def integrand(e: float, root: float = root) -> float:
            return math.log(abs(root + e)) * math.exp(-e * e / 2) / math.sqrt(2 * math.pi)

        found = integrate.quad(integrand, -12, 12, points=[-root], limit=500)[0]
        at_zero = 0.5 * (math.log(2) + special.digamma(0.5))
        assert found - at_zero == pytest.approx(true_log_uniform(t), abs=1e-7)


def closed_log_uniform(mu: float, sigma: float) -> float:
    return kl_divergence(Normal(*[v.detach() for v in double(mu, sigma)]), LogUniform()).item()


def test_log_uniform_within_its_stated_error() -> None:
    """The docstring states the largest error of Molchanov's fit; the additive constant is the paper's, C = -k1."""
    log_alpha = np.linspace(-12, 12, 961)
    errors = [closed_log_uniform(math.exp(-la / 2), 1.0) - true_log_uniform(math.exp(-la)) for la in log_alpha]
    assert max(np.abs(errors)) < 0.0095
    assert max(np.abs(errors)) > 0.005  # the statement is not slack


@pytest.mark.parametrize("sigma", SCALES)
@pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.1, 1.0, 30.0, 1e6])
def test_log_uniform_formula_and_gradients(ratio: float, sigma: float) -> None:
    """Against the paper's own form with the original constants (eq. 14), and finite everywhere, also in float32."""
    mu, scale = double(ratio * sigma, sigma)
    got = kl_divergence(Normal(mu, scale), LogUniform())
    got.backward()
    assert torch.isfinite(mu.grad)
    assert torch.isfinite(scale.grad)
    if ratio:
        log_alpha = -2 * math.log(ratio)
        wanted = K1 - K1 / (1 + math.exp(-(K2 + K3 * log_alpha))) + 0.5 * math.log1p(math.exp(-log_alpha))
        assert got.item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)
        numeric = numeric_gradient(lambda s: closed_log_uniform(ratio * sigma, s), sigma) if sigma >= 1e-3 else None
        assert numeric is None or scale.grad.item() == pytest.approx(numeric, rel=1e-4, abs=1e-6 / sigma)
    else:
        assert got.item() < 1e-30
    single = torch.tensor([ratio * sigma], requires_grad=True)
    kl_divergence(Normal(single, torch.tensor([sigma])), LogUniform()).sum().backward()
    assert torch.isfinite(single.grad).all()


def test_constants_are_the_original_ones() -> None:
    assert (K1, K2, K3) == (0.63576, 1.87320, 1.48695)


def mixture_kl(mu: float, sigma: float, prior: ScaleMixture) -> float:
    """The true KL to the mixture by quadrature."""

    def integrand(e: float) -> float:
        log_p = prior.log_prob(torch.tensor(mu + sigma * e, dtype=torch.float64)).item()
        return -log_p * math.exp(-e * e / 2) / math.sqrt(2 * math.pi)

    breaks = sorted(
        {-mu / sigma + k * prior.sigma2 / sigma for k in (-8, 0, 8)} & {b for b in [-mu / sigma] if abs(b) < 10}
    )
    cross = integrate.quad(integrand, -10, 10, points=breaks or None, limit=400)[0]
    return cross - 0.5 * math.log(2 * math.pi * math.e * sigma**2)


@pytest.mark.parametrize("mu", [0.0, 0.003, 0.1, 2.0])
@pytest.mark.parametrize("sigma", [1e-3, 0.02, 0.5])
def test_mixture_bound_is_a_bound_and_the_sample_estimate_is_not_biased(mu: float, sigma: float) -> None:
    """100,000 draws of the one-sample estimate, five standard errors; the bound exceeds the KL by at most 3 nats."""
    arguments = (0.25, 1.0, math.exp(-6))
    q = Normal(torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
    true = mixture_kl(mu, sigma, ScaleMixture(*arguments))
    bound = kl_divergence(q, ScaleMixtureBound(*arguments)).item()
    assert true - 1e-6 <= bound <= true + 3
    w = q.sample((100_000,))
    terms = q.log_prob(w) - ScaleMixture(*arguments).log_prob(w)
    assert abs(terms.mean().item() - true) < 5 * terms.std().item() / math.sqrt(len(terms)) + 1e-9
    with pytest.raises(NotImplementedError):
        kl_divergence(q, ScaleMixture(*arguments))


@pytest.mark.parametrize("sigma", SCALES)
def test_mixture_bound_with_equal_components_is_the_gaussian_kl(sigma: float) -> None:
    mu, scale = double(0.3, sigma)
    got = kl_divergence(Normal(mu, scale), ScaleMixtureBound(0.4, 0.7, 0.7))
    wanted = kl_divergence(Normal(mu, scale), Normal(0.0 * mu, 0.7 + 0.0 * scale))
    assert got.item() == pytest.approx(wanted.item(), rel=1e-9)
    for a, b in zip(torch.autograd.grad(got, (mu, scale)), torch.autograd.grad(wanted, (mu, scale)), strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-9)


def test_derivative_of_the_log_uniform_kl() -> None:
    """The one written down against autograd's, through the formula, in double precision."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(200, dtype=torch.float64, generator=generator)
    loc[0] = 0.0
    log_scale = 4 * torch.randn(200, dtype=torch.float64, generator=generator) - 3

    def formula(loc: Tensor, scale: Tensor) -> Tensor:
        inverse_alpha = (loc / scale).square()
        rest = torch.sigmoid(K3 * inverse_alpha.clamp_min(1e-30).log() - K2)
        return K1 * rest + 0.5 * torch.log1p(inverse_alpha)

    found = []
    for function in (formula, lambda loc, scale: kl_divergence(Normal(loc, scale), LogUniform())):
        leaves = loc.clone().requires_grad_(), log_scale.exp().requires_grad_()
        found.append(torch.autograd.grad(function(*leaves).sum(), leaves))
    for ours, autograds in zip(*found, strict=True):
        assert torch.allclose(ours, autograds, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("axes", "groups"), [((0,), 4), ((1,), 3), ((), 12)])
def test_relevance_is_the_gaussian_kl_at_its_best_precision(axes: tuple[int, ...], groups: int) -> None:
    """MacKay's fixed point: no precision of a group gives less, and α ‖μ‖² is what the data determine."""
    generator = torch.Generator().manual_seed(3)
    loc = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    scale = torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.1
    q, p = Normal(loc, scale), GroupRelevance(axes, (3, 4))
    kl = kl_divergence(q, p)
    alpha = 1 / p.power(loc.square() + scale.square())
    assert alpha.numel() == groups

    def at(factor: float) -> Tensor:
        return kl_divergence(q, Normal(torch.zeros_like(loc), (factor * alpha).rsqrt().expand(3, 4))).sum()

    assert torch.allclose(kl.sum(), at(1.0), rtol=1e-12)
    assert min(at(0.9), at(1.1)) > kl.sum()
    if axes:
        members = 3 * 4 // groups
        determined = members - alpha * scale.square().sum(axes, keepdim=True)
        assert torch.allclose(alpha * loc.square().sum(axes, keepdim=True), determined, rtol=1e-12)
    else:
        assert torch.allclose(kl, 0.5 * torch.log1p((loc / scale).square()), rtol=1e-12)


def test_relevance_density_is_that_of_the_group() -> None:
    """∫ N(w_g; 0, 1/α) dα / α ∝ ‖w_g‖^-n, by quadrature: ratios of densities of two vectors."""
    two = torch.tensor([[0.3, -0.2, 0.5], [1.5, 0.1, -0.7]], dtype=torch.float64)
    p = GroupRelevance((1,), (2, 3))
    found = p.log_prob(two).sum(1)

    def marginal(square: float) -> float:
        inner = lambda t: math.exp(1.5 * t - 0.5 * math.exp(t) * square)  # noqa: E731 - α = e^t, n = 3
        return integrate.quad(inner, -30, 15, limit=200)[0]

    wanted = [math.log(marginal(float(row.square().sum()))) for row in two]
    assert float(found[0] - found[1]) == pytest.approx(wanted[0] - wanted[1], rel=1e-8)
