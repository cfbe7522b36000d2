"""Natural gradients: the paper's step, number by number, and what it stands still at, against closed forms."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from scipy.optimize import minimize
from test_checkpoint import check_stopped
from torch import Tensor, nn

import pyro_compress as pc
from pyro_compress.bayes.capture import captured
from pyro_compress.bayes.distributions import LogUniform
from pyro_compress.bayes.elbo import Objective, build_objective
from pyro_compress.bayes.guides import build_guide, starts_of
from pyro_compress.bayes.kl import normal_log_uniform
from pyro_compress.bayes.layers import bayesianize
from pyro_compress.bayes.model import Likelihood, Model, classifier
from pyro_compress.bayes.natural import Natural, natural_step
from pyro_compress.bayes.priors import PRIORS, Prior
from pyro_compress.bayes.step import Rule, State, Trained, eager, natural_pairs, trained_parameters
from pyro_compress.data.splits import load_splits
from pyro_compress.settings import FitConfig
from pyro_compress.types import Data, Splits

SIZE = 300
"""Examples of the networks' training set."""


@pytest.fixture(autouse=True)
def _no_validation():
    with pyro.validation_enabled(False):
        yield


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_a_step_is_the_papers(beta1: float) -> None:
    """Shen et al. 2024, algorithm 1, in m, h and g, to 1e-12; the prior's gradient is in g, which it is not there."""
    rng, size, delta, natural = np.random.default_rng(0), 50.0, 0.04, Natural(0.2, beta1, 0.95, 50)
    m, h, g = rng.normal(size=7), rng.uniform(0.1, 2, size=7), np.zeros(7)
    mean, log_scale = torch.tensor(m), -0.5 * torch.tensor(size * (h + delta)).log()
    first, bounds = torch.zeros_like(mean), (-20.0, 20.0)
    for count in range(1, 9):
        noise, gradient = rng.normal(size=7), rng.normal(size=7)
        std = 1 / np.sqrt(size * (h + delta))
        h_hat = gradient * noise * std * size * (h + delta)
        scaled = torch.tensor(noise * std * gradient + (delta / (h + delta) - 1) / size)
        given = (torch.tensor(gradient + delta * m), scaled)
        natural_step(mean, log_scale, first, given, natural.rates(count, 1.0), beta1, bounds)
        g = beta1 * g + (1 - beta1) * (gradient + delta * m)
        h = 0.95 * h + 0.05 * h_hat + 0.5 * 0.05**2 * (h - h_hat) ** 2 / (h + delta)
        m = m - 0.2 * g / (1 - beta1**count) / (h + delta)
        np.testing.assert_allclose(mean, m, rtol=1e-12)
        np.testing.assert_allclose(torch.exp(-2 * log_scale) / size - delta, h, rtol=1e-11, atol=1e-12)


def regression(
    prior: Prior, x: Tensor, start: Tensor, noise: float, estimator: str = "weight"
) -> tuple[Objective, list[Trained]]:
    """A linear map under a known noise; its weights start at `start`, `(targets, columns of x)`, ± 0.15."""
    targets, columns = start.shape
    bayes = bayesianize(nn.Linear(columns, targets, bias=False), prior)
    model = Model(bayes, Likelihood("regression", len(x), noise, learned=False))
    guide = build_guide("mean-field", model, starts_of(bayes, {"weight": start}, 0.15), None, (x, x @ start.T))
    objective = build_objective(model, guide, estimator, 1)
    return objective, trained_parameters(objective, 1e-3, 1e-3, 1e-3, natural=Natural(0.05, 0.9, 0.95, len(x)))


def moved(objective: Objective, trained: list[Trained], x: Tensor, y: Tensor, steps: int, batch: int) -> list[Tensor]:
    """Means and log-scales after so many steps, the last half of them at rates that fall to 0."""
    torch.manual_seed(1)
    step = captured(objective, trained, Rule(), State.of(objective, trained), (x[:batch], y[:batch]), compiled=False)
    for count in range(steps):
        if count % (len(x) // batch) == 0:
            order = iter(torch.randperm(len(x)).split(batch))
        rows = next(order)
        step(x[rows], y[rows], 1.0, min(1.0, 2 - 2 * count / steps))
    return [t.parameter.detach() for t in trained]


@pytest.mark.parametrize(("batch", "estimator"), [(40, "weight"), (10, "weight"), (10, "local"), (10, "flipout")])
def test_linear_regression_ends_at_its_closed_form(batch: int, estimator: str) -> None:
    """Means are the posterior's own, variances 1 over the diagonal of XᵀX/σ² + 1/s²; 1,000 targets share the latter.

    Tolerances: 3 % of a variance, averaged over the targets; 0.15 standard deviations of a mean, root mean square.
    """
    torch.manual_seed(0)
    x, noise, scale = torch.randn(40, 3) * torch.tensor([0.5, 1.0, 2.0]), 0.5, 0.7
    truth = torch.randn(1000, 3)
    y = x @ truth.T + noise * torch.randn(40, 1000)
    prior = PRIORS["gaussian"].with_options({"scale": scale})
    mean, log_scale = moved(*regression(prior, x, truth, noise, estimator), x, y, 300, batch)
    precision = x.T @ x / noise**2 + torch.eye(3) / scale**2
    wanted = torch.linalg.solve(precision, x.T @ y / noise**2).T
    torch.testing.assert_close((2 * log_scale).exp().mean(0), 1 / precision.diagonal(), rtol=0.03, atol=0)
    off = ((mean - wanted) * precision.diagonal().sqrt()).square().mean().sqrt()
    assert float(off) < 0.15


PI, SLAB, SPIKE = 0.3, 1.0, 0.2
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def mixture(w: np.ndarray) -> np.ndarray:
    """-log of the scale mixture, by its definition."""
    terms = ((share / std) * np.exp(-0.5 * (w / std) ** 2) for share, std in ((PI, SLAB), (1 - PI, SPIKE)))
    return -np.log(sum(terms))


def expected(function: Callable[[np.ndarray], np.ndarray], mean: float, std: float) -> float:
    """E f(w) under N(mean, std²), by Gauss and Hermite."""
    return float(WEIGHTS @ function(mean + std * POINTS)) / math.sqrt(2 * math.pi)


KLS: dict[str, tuple[dict[str, float], Callable[[float, float], float]]] = {
    "spike-and-slab": (
        {"pi": PI, "sigma1": SLAB, "sigma2": SPIKE}, lambda m, std: expected(mixture, m, std) - math.log(std),
    ),
    "log-uniform": ({}, lambda m, std: float(normal_log_uniform(Normal(m, std), LogUniform()))),
}  # fmt: skip
"""Prior -> its options, and (mean, standard deviation) -> KL, up to a constant."""


@pytest.mark.parametrize("batch", [20, 5])
@pytest.mark.parametrize("prior", KLS)
def test_a_quadratic_ends_where_integration_says(prior: str, batch: int) -> None:
    """-log likelihood ½ a (w - c)² for three c, 300 weights each; the best (m, log σ) by quadrature and scipy.

    Tolerance: 0.05 standard deviations of a mean, 0.02 of a log σ, averaged over the weights.
    """
    options, kl = KLS[prior]
    size, noise, centres = 20, 1.0, torch.tensor([0.3, 1.2, 2.0] if prior == "spike-and-slab" else [0.9, 1.2, 2.0])
    x, targets = torch.ones(size, 1), centres.repeat_interleave(300)
    y = targets + noise * torch.linspace(-0.1, 0.1, size)[:, None]  # rows differ, their mean is the centre
    objective, trained = regression(PRIORS[prior].with_options(options), x, targets[:, None], noise)
    mean, log_scale = (found.view(3, 300).mean(1) for found in moved(objective, trained, x, y, 300, batch))
    for c, found_mean, found_log in zip(centres.tolist(), mean.tolist(), log_scale.tolist(), strict=True):

        def negative_elbo(at: np.ndarray, c: float = c) -> float:
            return 0.5 * size / noise**2 * ((at[0] - c) ** 2 + math.exp(2 * at[1])) + kl(at[0], math.exp(at[1]))

        best = minimize(negative_elbo, np.array([c, -1.0]), method="Nelder-Mead", options={"xatol": 1e-6}).x
        assert abs(found_mean - best[0]) < 0.05 * math.exp(best[1])
        assert found_log == pytest.approx(best[1], abs=0.02)


# --- the step of a network: eager, captured, in a fit

X, Y = torch.rand(30, 1, 5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4


def network(prior: str, estimator: str) -> tuple[Objective, list[Trained]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    weights = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    bayes = bayesianize(net, PRIORS[prior])
    model = classifier(bayes, SIZE)
    guide = build_guide("mean-field", model, starts_of(bayes, weights, None), {"0.weight": 0.2}, (X, Y))
    objective = build_objective(model, guide, estimator, 1)
    return objective, trained_parameters(objective, 1e-3, 1e-2, 1e-2, natural=Natural(0.1, 0.9, 0.9, SIZE))


def halved(gradients: Sequence[Tensor]) -> None:
    """What another process with a gradient of zero would do."""
    for gradient in gradients:
        gradient.mul_(0.5)


CASES = [
    ("gaussian", "weight", Rule()),
    ("gaussian", "local", Rule(clip_norm=0.05, combine=halved)),
    ("spike-and-slab", "weight", Rule(accumulate=3)),
    ("log-uniform", "flipout", Rule()),
    ("horseshoe", "weight", Rule()),
    ("normal-jeffreys", "local", Rule()),
    ("relevance", "weight", Rule()),
    ("soft-weight-sharing", "weight", Rule()),
]


@pytest.mark.parametrize(("prior", "estimator", "rule"), CASES)
def test_captured_and_eager_steps_stay_together(prior: str, estimator: str, rule: Rule) -> None:
    """Eight steps under a schedule, a smaller minibatch among them: to 1e-4 of how far natural gradients moved.

    Of Adam's way 2 %: it divides by the root of tiny second moments, which magnifies rounding.
    """
    found = []
    for build in (eager, lambda *arguments: captured(*arguments, (X, Y), compiled=False)):
        objective, trained = network(prior, estimator)
        before = [t.parameter.detach().clone() for t in trained]
        step = build(objective, trained, rule, State.of(objective, trained))
        for count in range(8):
            torch.manual_seed(count)
            rows = slice(0, 18) if count == 4 and prior == "gaussian" else slice(None)
            step(X[rows], Y[rows], min(1.0, count / 4), 1 - count / 16)
        found.append([t.parameter.detach() - old for t, old in zip(trained, before, strict=True)])
    for t, a, b in zip(trained, *found, strict=True):
        assert float(a.norm()) > 0
        assert (a - b).norm() <= (1e-4 if t.natural else 0.02) * a.norm() + 1e-7


def test_raw_weights_move_naturally_and_scales_by_adam() -> None:
    """And what the step remembers of a weight is its mean gradient: 12 bytes with mean and log-scale, not 24."""
    _, trained = network("horseshoe", "weight")
    names = {t.name for t in trained if t.natural}
    assert names == {f"guide.{kind}.{layer}/weight/raw" for kind in ("loc", "log_scale") for layer in "03"}
    objective, trained = network("gaussian", "weight")
    state, pairs = State.of(objective, trained), natural_pairs(trained)
    assert [(trained[a].name.split(".")[-1], trained[b].name.split(".")[-1]) for a, b in pairs] == [
        (f"{layer}/weight/raw",) * 2 for layer in "03"
    ]
    weights = sum(t.parameter.numel() for t in trained if t.natural) // 2
    kept = [*state.parameters, *state.first, *state.second]
    biases = [t.parameter for t in trained if not t.natural]
    assert sum(t.nbytes for t in kept) == 12 * weights + 3 * sum(t.nbytes for t in biases)


@pytest.fixture(scope="module")
def splits() -> Splits:
    full = load_splits("digits")
    return Splits(Data(full.train.x[:320], full.train.y[:320]), full.validation, full.test, full.classes)


FITS = {
    "gaussian": FitConfig(prior="gaussian", hidden=(12,), epochs=4),
    "horseshoe": FitConfig(prior="horseshoe", hidden=(12,), epochs=6),
}


@pytest.mark.parametrize("name", FITS)
def test_stopped_anywhere_it_ends_the_same(name: str, splits: Splits, tmp_path: Path) -> None:
    check_stopped(replace(FITS[name], optimizer="natural"), splits, tmp_path, [3, 9, 7])


@pytest.mark.slow
def test_stopped_and_compiled_it_ends_the_same(splits: Splits, tmp_path: Path) -> None:
    check_stopped(replace(FITS["gaussian"], optimizer="natural", compile="on"), splits, tmp_path, [8])


def test_its_posterior_is_compressed_as_any_other(splits: Splits) -> None:
    """The stored spreads are those of the guide; pruned, rounded and written, a network is what it was."""
    fitted = pc.fit("mlp", splits, prior="gaussian", hidden=(12,), epochs=20, optimizer="natural")
    assert fitted.fit is not None
    layer, guide = fitted.posterior.layers["1.weight"], fitted.fit.guide
    assert torch.equal(layer.std, guide.log_scale["1/weight/raw"].detach().exp())
    assert float(layer.std.std() / layer.std.mean()) > 1e-3  # some are better known than others
    network, _ = pc.compress(fitted.posterior, splits, pc.Goal(sparsity=0.5))
    zeros = sum(int((network.tensors[name].codes == 0).sum()) for name in fitted.posterior.layers)
    left = sum(network.tensors[name].codes.size for name in fitted.posterior.layers)
    assert left - zeros <= 0.5 * sum(layer.mean.numel() for layer in fitted.posterior.layers.values())
