"""The SVI loop: exact bookkeeping, a conjugate truth, the guides against each other, reproducibility."""

import math

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import TraceMeanField_ELBO
from test_estimators import OutOfPlace
from torch import Tensor, nn

from pyro_compress.bayes.elbo import ElboTerms, StaticELBO, kl_nats
from pyro_compress.bayes.estimators import ESTIMATORS
from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior, minibatch_weight
from pyro_compress.bayes.guides import GUIDES, MeanField, starts_of
from pyro_compress.bayes.layers import bayes_layers, bayesianize
from pyro_compress.bayes.model import Fit, classifier
from pyro_compress.bayes.predict import predictive
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.graph.network import Network
from pyro_compress.metrics import logits_of
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.training.baselines import point_plan
from pyro_compress.training.checkpoint import Checkpointer
from pyro_compress.training.point import AfterStep
from pyro_compress.training.progress import Progress
from pyro_compress.types import Data, Splits


def toy(n: int = 240) -> Splits:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 3
    x = torch.randn(n, 5, generator=generator)
    x[:, 0] += 3 * (y == 1)
    x[:, 1] += 3 * (y == 2)
    data = Data(x, y)
    return Splits(data, data, data, ("a", "b", "c"))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def fitted(**options) -> Fit:
    config = FitConfig(**({"prior": "gaussian", "epochs": 6, "batch_size": 60, "lr": 1e-2, "device": "cpu"} | options))
    return fit_posterior(net(), toy(), resolve(config, 240))


def loss_and_likelihood(fit: Fit, x: Tensor, y: Tensor, kl_weight: float, draws: int = 1) -> tuple[float, float]:
    terms = ElboTerms(kl_weight)
    with torch.no_grad(), pyro.validation_enabled(False), terms:
        torch.manual_seed(0)
        loss = TraceMeanField_ELBO(draws).differentiable_loss(fit.model, fit.guide, x, y)
    return float(loss), float(terms.log_likelihood_nats)


@pytest.mark.parametrize("prior", ["gaussian", "log-uniform", "horseshoe"])
def test_negative_elbo_is_nll_plus_kl(prior: str) -> None:
    """Exactly: Pyro's loss equals the scaled NLL plus the weighted closed-form KL, for any KL weight."""
    fit, data = fitted(prior=prior), toy().train
    kl = kl_nats(fit.model.net, fit.guide)
    by_hand = 0.0
    values = {site: fit.guide.marginal(site).mean.detach() for site in fit.guide.families}
    nodes = pyro.poutine.trace(pyro.poutine.condition(fit.model.net, values)).get_trace(data.x).nodes
    for site in fit.guide.families:
        q = fit.guide.marginal(site)
        kl_of_site = torch.distributions.kl_divergence(q.to_event(q.loc.dim()), nodes[site]["fn"])
        by_hand += kl_of_site.item()
    assert kl == pytest.approx(by_hand, rel=1e-6)
    for weight in (0.0, 0.3, 1.0):
        loss, likelihood = loss_and_likelihood(fit, data.x, data.y, weight)
        assert loss == pytest.approx(weight * kl - likelihood, rel=1e-5)


def test_minibatches_partition_without_bias() -> None:
    """At fixed weights (tiny posterior scales) the mean over a partition equals the full batch."""
    fit, data = fitted(epochs=2, init_scale=1.3e-4, lr_scale=1e-9), toy().train
    full, full_likelihood = loss_and_likelihood(fit, data.x, data.y, 1.0)
    parts = [loss_and_likelihood(fit, x, y, 1.0) for x, y in zip(data.x.split(60), data.y.split(60), strict=True)]
    assert sum(loss for loss, _ in parts) / 4 == pytest.approx(full, rel=1e-4)
    assert sum(likelihood for _, likelihood in parts) / 4 == pytest.approx(full_likelihood, rel=1e-2)


@pytest.mark.parametrize("batches", [1, 4, 469, 2000])
@pytest.mark.parametrize("schedule", ["uniform", "blundell"])
def test_kl_shares_sum_to_one_epoch(schedule: str, batches: int) -> None:
    """The mean weight over an epoch is 1; the study's 2^(M-i) / 2^(M-1) would give about 2 for a sum of 1."""
    weights = [minibatch_weight(schedule, index, batches) for index in range(batches)]
    assert sum(weights) / batches == pytest.approx(1, rel=1e-9)
    assert all(math.isfinite(weight) for weight in weights)


def test_history_is_consistent() -> None:
    history = fitted(epochs=10, pretrain_epochs=3, kl_warmup=4.0).history
    assert [epoch.phase for epoch in history] == ["point"] * 3 + ["svi"] * 7
    assert [epoch.step for epoch in history] == [4 * i for i in range(1, 11)]
    svi = history[3:]
    assert [epoch.kl_weight for epoch in svi] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])
    for epoch in svi:
        assert epoch.negative_elbo_nats == pytest.approx(epoch.kl_nats - epoch.expected_log_likelihood_nats)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_conjugate_linear_regression(estimator: str) -> None:
    """Known posterior N(m, Λ⁻¹): the mean-field optimum has the exact mean and variances 1 / Λ_ii.

    Tolerances: means within 0.1 posterior standard deviations, scales within 5 % (10 % for the noisier estimators).
    """
    torch.manual_seed(0)
    noise, x = 0.5, torch.randn(80, 4) @ torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.3], [0, 0, 0, 1]])
    y = x @ torch.tensor([1.0, -2, 0.5, 0]) + noise * torch.randn(80)
    precision = x.T @ x / noise**2 + torch.eye(4)
    exact = torch.linalg.solve(precision, x.T @ y / noise**2)
    layer = bayesianize(nn.Linear(4, 1, bias=False), PRIORS["gaussian"])

    def model(x: Tensor, y: Tensor) -> None:
        mean = layer(x).squeeze(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("y", Normal(mean, noise), obs=y)

    guide = MeanField(starts_of(layer, {"weight": torch.zeros(1, 4)}, 0.1))
    elbo, optimizer = StaticELBO(), torch.optim.Adam(guide.parameters())

    def particle(_: Tensor) -> Tensor:
        with ESTIMATORS[estimator](guide.marginal, bayes_layers(layer), len(y)):
            return elbo.differentiable_loss(model, guide, x, y)

    with pyro.validation_enabled(False), OutOfPlace():
        for step in range(250):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 250)
            optimizer.zero_grad()
            torch.vmap(particle, randomness="different")(torch.arange(64)).mean().backward()
            optimizer.step()
    q = guide.marginal("weight.raw")
    scale = precision.diagonal() ** -0.5
    assert ((q.loc[0] - exact).abs() / scale).max() < 0.1
    assert (q.scale[0] / scale - 1).abs().max() < (0.05 if estimator == "local" else 0.1)


@pytest.mark.parametrize("guide", list(GUIDES))
@pytest.mark.parametrize("prior", ["gaussian", "horseshoe", "spike-and-slab"])
def test_guides_fit_and_extract(prior: str, guide: str) -> None:
    fit = fitted(prior=prior, guide=guide, epochs=4, kl_warmup=0.0)
    assert not list(pyro.get_param_store().keys())
    posterior = extract(fit)
    assert all((layer.std > 0).all() for layer in posterior.layers.values())
    draws = predictive(fit, toy().test.x, draws=3)
    assert draws.shape == (3, 240, 3)
    assert torch.allclose(draws.sum(2), torch.ones(3, 240), atol=1e-5)


@pytest.mark.slow
def test_auto_normal_reaches_the_same_elbo() -> None:
    """Gaussian prior: 120 steps each; the negative ELBOs agree within 3 %, each a mean over 100 draws."""
    found = {}
    for guide in GUIDES:
        fit = fitted(guide=guide, estimator="weight", epochs=30, kl_warmup=0.0, lr=3e-2, lr_scale=3e-2, samples=2)
        found[guide], _ = loss_and_likelihood(fit, toy().train.x, toy().train.y, 1.0, draws=100)
    assert found["auto-normal"] == pytest.approx(found["mean-field"], rel=0.03)
    assert found["auto-diagonal"] == pytest.approx(found["mean-field"], rel=0.03)


def test_auto_guides_refuse_what_they_cannot_serve() -> None:
    with pytest.raises(ValueError, match="estimator 'local' needs the marginal of every weight"):
        fitted(guide="auto-normal", estimator="local")


@pytest.mark.parametrize("guide", ["mean-field", "auto-normal"])
def test_fits_are_reproducible_and_independent(guide: str) -> None:
    """The same seed gives the same bits, whatever ran in between and whatever the global seed."""
    first = fitted(guide=guide, seed=3)
    torch.manual_seed(99)
    fitted(guide=guide, seed=4, prior="horseshoe")
    second = fitted(guide=guide, seed=3)
    other = fitted(guide=guide, seed=4)
    same = [torch.equal(a, b) for a, b in zip(first.guide.parameters(), second.guide.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(iter(first.guide.parameters())), next(iter(other.guide.parameters())))


def test_fitting_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    fitted(epochs=2)
    assert torch.equal(torch.rand(1), wanted)


def test_predictive_mean_resembles_the_mean_network() -> None:
    fit = fitted(epochs=30, kl_warmup=0.0)
    posterior, x = extract(fit), toy().test.x
    mean_network = logits_of(Network(posterior.graph, posterior.tensors), x).softmax(1)
    draws = predictive(fit, x, draws=50)
    assert torch.equal(draws, predictive(fit, x, draws=50))
    assert (draws.mean(0).argmax(1) == mean_network.argmax(1)).float().mean() > 0.95
    assert draws.std(0).max() > 0.01


def test_extract_matches_draws() -> None:
    """Moments of every weight against 20,000 draws of guide and prior, five standard errors."""
    fit = fitted(prior="horseshoe", epochs=10)
    posterior = extract(fit)
    for layer in bayes_layers(fit.model.net):
        prefix = f"{layer.shape.name}."
        values = {s: fit.guide.marginal(s).sample((20_000,)) for s in fit.guide.families if s.startswith(prefix)}
        draw = pyro.poutine.block(pyro.poutine.condition(layer.prior.draw, values))(layer.shape)
        weights = draw.gate * draw.raw
        found = posterior.layers[layer.shape.name]
        assert ((weights.mean(0) - found.mean).abs() / (found.std / math.sqrt(20_000))).max() < 5
        assert torch.allclose(weights.std(0), found.std, rtol=0.15)
        assert torch.allclose(draw.gate.mean(0), found.unit_mean, rtol=0.05)
        assert torch.allclose(draw.gate.std(0), found.unit_std, rtol=0.15)


def test_model_is_a_pyro_program() -> None:
    """It can be traced, replayed and sampled from like any other."""
    bayes = bayesianize(net(), PRIORS["gaussian"])
    trace = pyro.poutine.trace(classifier(bayes, 240)).get_trace(toy().train.x)
    assert {"0.weight.raw", "2.weight.raw", "y"} <= set(trace.nodes)
    assert trace.nodes["y"]["value"].shape == (240,)


STILL = {"epochs": 60, "lr": 1e-30, "lr_scale": 1e-30, "kl_warmup": 0.0}


def test_patience_ends_a_constant_rate_at_once_and_lets_another_fall() -> None:
    at_once = len(fitted(**STILL, patience=3, lr_schedule="constant").history)
    assert 4 <= at_once <= 20
    assert len(fitted(**STILL, patience=3).history) == at_once + 3


def test_rates_fall_to_nothing_once_patience_has_run_out() -> None:
    """Linearly over the last two epochs, four steps each; until then they are what they were."""
    config = resolve(FitConfig(prior="none", epochs=60, batch_size=60, lr=1e-30, patience=2, device="cpu"), 240)
    progress, rates = Progress(toy(), config, lambda epoch: None, Checkpointer()), list[float]()

    def remembered(done: int) -> AfterStep:
        return lambda step, optimizer: rates.append(optimizer.param_groups[0]["lr"] / 1e-30)

    progress.train_point(net(), point_plan(config), remembered)
    turned = 4 * (len(progress.history) - 2)
    assert turned >= 12
    assert rates[:turned] == pytest.approx([1.0] * turned)
    assert rates[turned:] == pytest.approx([1 - step / 8 for step in range(8)])


def test_divergence_is_named() -> None:
    with pytest.raises(ValueError, match="try a smaller --lr"):
        fitted(lr=1e30, epochs=3)
