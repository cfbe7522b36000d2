"""Every prior with every grouping: its sites, its closed forms, its draws, a short fit."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import LogNormal, Normal
from scipy import integrate, stats
from torch import nn
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_compress.bayes.distributions import LogUniform, ScaleMixture, ScaleMixtureBound, SoftSharing
from pyro_compress.bayes.elbo import closed_form_sites
from pyro_compress.bayes.elementary import ELEMENTARY
from pyro_compress.bayes.extract import extract, moments
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.guides import MeanField, starts_of
from pyro_compress.bayes.layers import BayesLayer, bayes_layers, bayesianize
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.compression.prune import CRITERIA, scores
from pyro_compress.graph.capture import capture
from pyro_compress.provenance import Provenance
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.types import Data, LayerPosterior, LayerShape, Posterior, Splits

CASES = [(name, grouping) for name, prior in PRIORS.items() for grouping in prior.groupings]
SHAPES = [(4, 3), (4, 3, 2, 2), (1, 1, 3)]
GROUP_SITES = {
    "normal-jeffreys": ("scale",),
    "horseshoe": ("global_a", "global_b", "local_a", "local_b"),
    "soft-weight-sharing": ("logits", "means", "precisions", "zero_precision"),
}


def toy(classes: int = 3, n: int = 300) -> Splits:
    """Gaussian blobs in five dimensions, two of which carry the class."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % classes
    x = torch.randn(n, 5, generator=generator)
    x[:, 0] += 3 * (y == 1)
    x[:, 1] += 3 * (y == 2)
    data = Data(x, y)
    return Splits(data, data, data, tuple(str(i) for i in range(classes)))


def start_trace(name: str, shape: LayerShape) -> tuple[pyro.poutine.Trace, dict]:
    """Trace of the prior, its sites replayed at the posterior's starting locations."""
    prior = PRIORS[name]
    starts = prior.start(shape, torch.randn(shape.weight), prior.init_scale)
    values = {site: start.family(start.loc, start.scale).mean for site, start in starts.items()}
    return pyro.poutine.trace(pyro.poutine.condition(prior.draw, values)).get_trace(shape), starts


@pytest.mark.parametrize("weight", SHAPES)
@pytest.mark.parametrize(("name", "grouping"), [case for case in CASES if case[1] != "filter"])
def test_sites_shapes_and_closed_forms(name: str, grouping: str, weight: tuple[int, ...]) -> None:
    shape = LayerShape("1.weight", weight, grouping)
    trace, starts = start_trace(name, shape)
    sites = {site for site, node in trace.nodes.items() if node["type"] == "sample"}
    assert sites == set(starts) == {"1.weight.raw", *(f"1.weight.{part}" for part in GROUP_SITES.get(name, ()))}
    draw = trace.nodes["_RETURN"]["value"]
    assert draw.raw.shape == weight
    assert draw.gate is None or draw.gate.shape == shape.gate
    closed = []
    for site, start in starts.items():
        q = start.family(start.loc, start.scale)
        try:
            kl = kl_divergence(q.to_event(q.loc.dim()), trace.nodes[site]["fn"])
            assert kl.shape == ()
            assert torch.isfinite(kl)
            closed.append(True)
        except NotImplementedError:
            closed.append(False)
    assert all(closed) == PRIORS[name].closed_form


@pytest.mark.parametrize(("name", "grouping"), CASES)
def test_posterior_starts_at_the_given_weights(name: str, grouping: str) -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    bayes = bayesianize(net, PRIORS[name], grouping)
    guide = MeanField(starts_of(bayes, dict(net.state_dict()), None))
    for layer in bayes_layers(bayes):
        wanted = net.get_parameter(layer.shape.name)
        got = moments(layer.shape, layer.prior, guide).mean
        # a log-normal scale's mean lies exp(s²/2) above its median; its four sites start at s = exp(-2.5)
        assert torch.allclose(got, wanted, rtol=0.01, atol=1e-6)
    assert closed_form_sites(guide, bayes) == (frozenset(guide.families) if PRIORS[name].closed_form else frozenset())


@pytest.mark.parametrize("bias_prior", ["none", "same"])
@pytest.mark.parametrize(("name", "grouping"), CASES)
def test_elbo_falls_and_nothing_global_is_left(name: str, grouping: str, bias_prior: str) -> None:
    splits = toy()
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    config = FitConfig(
        prior=name, grouping=grouping, bias_prior=bias_prior, epochs=10, pretrain_epochs=2, kl_warmup=0.0,
        batch_size=100, lr=3e-2, device="cpu",
    )  # fmt: skip
    fit = fit_posterior(net, splits, resolve(config, len(splits.train)))
    assert not list(pyro.get_param_store().keys())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    elbo = [epoch.negative_elbo_nats for epoch in fit.history if epoch.phase == "svi"]
    assert len(elbo) == 8
    assert elbo[-1] < elbo[0]
    posterior = extract(fit)
    assert list(posterior.layers) == ["0.weight", "2.weight"]
    assert all((layer.std > 0).all() and layer.mean.isfinite().all() for layer in posterior.layers.values())
    assert fit.history[-1].validation_accuracy > 0.6  # a third is chance


def test_a_missing_closed_form_fails_loudly() -> None:
    """The placeholder densities of closed-form sites must not turn into a silent zero."""
    from pyro.infer import TraceMeanField_ELBO

    from pyro_compress.bayes.elbo import ElboTerms

    net = bayesianize(nn.Linear(3, 2), PRIORS["spike-and-slab"])
    assert isinstance(net, BayesLayer)
    guide = MeanField(starts_of(net, {"weight": torch.randn(2, 3)}, None))
    with ElboTerms(1.0, frozenset({"weight.raw"})), pytest.raises((AttributeError, TypeError)):
        TraceMeanField_ELBO().differentiable_loss(lambda: net.draw("cpu"), guide)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", PRIORS)
def test_every_criterion_orders_a_posterior_or_is_refused(name: str, criterion: str) -> None:
    """No score is negative or no number, the sign of a group's scale and of its weights says nothing."""
    prior, gate = PRIORS[name], None
    shape = LayerShape("1.weight", (4, 3), prior.groupings[0])
    if prior.factors is not None or prior.shared_spread:
        kind = LogNormal if prior.criterion == "group-mode" else Normal
        gate = kind(torch.tensor([[-2.0, 0.4, 1.0]]), torch.tensor([[0.3, 0.5, 0.2]]))
    mean, std = torch.randn(4, 3), torch.rand(4, 3) + 0.1
    unit = (None, None) if gate is None else (gate.mean, gate.stddev)
    graph = capture(nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), (3,))
    layer = LayerPosterior(mean, std, *unit, shape.grouping)
    posterior = Posterior(graph, {shape.name: layer}, {}, prior.criterion, Provenance())
    if (criterion.startswith("group-") and gate is None) or (
        criterion == "group-mode" and name in ("normal-jeffreys", "relevance")
    ):
        with pytest.raises(ValueError, match=r"group scales|take group-snr"):
            scores(posterior, criterion)
        return
    found = scores(posterior, criterion)[shape.name]
    assert found.shape == mean.shape
    assert (found >= 0).all()
    flipped = replace(layer, mean=-mean, unit_mean=None if gate is None else gate.mean.abs())
    again = replace(posterior, layers={shape.name: flipped})
    assert torch.equal(scores(again, criterion)[shape.name], found)
    if criterion == "group-mode":
        assert isinstance(gate, LogNormal)
        assert torch.allclose(found, torch.exp(gate.loc - gate.scale.square()).expand(4, 3), rtol=1e-4)


def test_the_mode_of_a_negative_scale_and_of_one_that_underflowed() -> None:
    units = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    assert CRITERIA["group-mode"](LayerPosterior(torch.ones(1, 2), torch.ones(1, 2), *units))[0, 1] == 0
    with pytest.raises(ValueError, match="negative"):
        CRITERIA["group-mode"](LayerPosterior(torch.ones(1, 2), torch.ones(1, 2), -units[0], units[1]))


@pytest.mark.parametrize(("pi", "sigma1", "sigma2"), [(0.25, 1.0, math.exp(-6)), (0.5, 1.0, 0.1), (0.9, 3.0, 2.0)])
def test_scale_mixture_density_and_draws(pi: float, sigma1: float, sigma2: float) -> None:
    prior = ScaleMixture(pi, sigma1, sigma2)

    def density(w: float) -> float:
        return math.exp(prior.log_prob(torch.tensor(w, dtype=torch.float64)).item())

    total = 2 * sum(integrate.quad(density, a, b)[0] for a, b in ((0, sigma2), (sigma2, 9 * sigma2), (9 * sigma2, 40)))
    assert total == pytest.approx(1, abs=1e-6)
    wanted = pi * stats.norm(0, sigma1).pdf(0.02) + (1 - pi) * stats.norm(0, sigma2).pdf(0.02)
    assert density(0.02) == pytest.approx(wanted, rel=1e-6)
    # Kolmogorov-Smirnov on 20,000 draws: the critical value at p = 1e-4 is about 2.2 / sqrt(n)
    draws = prior.expand((20_000,)).sample().double().numpy()
    cdf = lambda w: pi * stats.norm.cdf(w, 0, sigma1) + (1 - pi) * stats.norm.cdf(w, 0, sigma2)  # noqa: E731
    assert stats.kstest(draws, cdf).pvalue > 1e-4


NARROW = [1e-5, math.exp(-8), math.exp(-7), math.exp(-6), 1e-3, 1e-2, 0.1, 0.5, 1.0]


def both(pi: float, sigma1: float, sigma2: float, x: torch.Tensor) -> torch.Tensor:
    """log Σ pi_k exp(-x / sigma_k²) / sigma_k in double precision, term by term."""
    slab, spike = (math.log(p) - math.log(s) - x / s**2 for p, s in ((pi, sigma1), (1 - pi, sigma2)))
    return torch.logaddexp(slab, spike)


class Inlined(TorchDispatchMode):
    """Every operation as the compiled step has it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in ELEMENTARY and (found := ELEMENTARY[func](*args)) is not NotImplemented:
            return found
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("inlined", [False, True])
@pytest.mark.parametrize("sigma2", NARROW)
def test_scale_mixture_in_single_precision(sigma2: float, inlined: bool, swapped: bool) -> None:
    """Density, bound and their gradients against double precision, of weights from 1e-9 to 3, both signs.

    Relative 1e-5: the logistic of a difference of up to 30 nats is off by some 30 roundings of 6e-8. The gradient in a
    posterior's spread is a difference by nature; it is held to the size of its terms. `inlined`: with the elementary
    functions of the compiled step.
    """
    sigmas = (sigma2, 1.0) if swapped else (1.0, sigma2)
    w = torch.cat([sign * torch.logspace(-9, 0.5, 1200) for sign in (1, -1)])
    scale = torch.logspace(-6, 0.5, 1200).flip(0).repeat(2)

    def ours(w: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        density = ScaleMixture(0.25, *sigmas).log_prob(w)
        q = Normal(w, scale, validate_args=False)
        return density, kl_divergence(q, ScaleMixtureBound(0.25, *sigmas))

    def exact(w: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        density = both(0.25, *sigmas, w.square() / 2) - 0.5 * math.log(2 * math.pi)
        return density, -both(0.25, *sigmas, (w.square() + scale.square()) / 2) - scale.log() - 0.5

    def everything(function: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[..., tuple[torch.Tensor, ...]]:
        def run(w: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
            w, scale = w.detach().requires_grad_(), scale.detach().requires_grad_()
            density, bound = function(w, scale)
            by_w = torch.autograd.grad(density.sum(), w)
            return density.detach(), bound.detach(), *by_w, *torch.autograd.grad(bound.sum(), (w, scale))

        return run

    with Inlined() if inlined else contextlib.nullcontext():
        results = everything(ours)(w, scale)
    true = everything(exact)(w.double(), scale.double())
    sizes = (true[0].abs() + 1, true[1].abs() + 1, true[2].abs(), true[3].abs(), true[4].abs() + 1 / scale)
    for name, found, wanted, size in zip(("p", "KL", "dp", "dKL/dw", "dKL/ds"), results, true, sizes, strict=True):
        assert ((found - wanted).abs() <= 1e-5 * size).all(), name


def test_horseshoe_gate_is_half_cauchy() -> None:
    """The global scale times the local one: draws of the gate against draws of C⁺(0, tau0) · C⁺(0, 1)."""
    shape = LayerShape("w", (1, 40_000), "input")
    gate = pyro.poutine.block(PRIORS["horseshoe"].with_options({"tau0": 0.5}).draw)(shape).gate
    local = (gate / gate.median()).flatten().double().numpy()
    # given the layer's global scale, the local scales are half-Cauchy: |Cauchy|, median 1
    assert stats.kstest(local, stats.halfcauchy.cdf).pvalue > 1e-4


def test_soft_sharing_is_the_mixture_of_torch() -> None:
    logits, means = torch.tensor([0.5, -1.0, 0.1]), torch.tensor([0.0, 0.6, -0.4])
    ours = SoftSharing(logits.log_softmax(0), means, torch.tensor([2500.0, 100.0, 30.0]), (5, 4))
    parts = Normal(means, torch.tensor([2500.0, 100.0, 30.0]).rsqrt())
    wanted = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logits), parts)
    w = 0.5 * torch.randn(5, 4)
    assert torch.allclose(ours.log_prob(w), wanted.log_prob(w), atol=1e-4)
    torch.manual_seed(0)
    drawn = ours.expand((200_000,)).sample()
    assert float(drawn.mean()) == pytest.approx(float(wanted.mean), abs=3e-3)
    assert float(drawn.var()) == pytest.approx(float(wanted.variance), rel=0.02)


def test_log_uniform_has_no_draws() -> None:
    with pytest.raises(ValueError, match="improper"):
        LogUniform().sample()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sigma": 1.0}, "unknown prior option 'sigma'; allowed: pi, sigma1, sigma2"), ({"pi": 1.5}, "between 0 and 1"),
     ({"sigma1": -1.0}, "positive"), ({"sigma2": math.nan}, "positive and finite")],
)  # fmt: skip
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PRIORS["spike-and-slab"].with_options(options)


def test_model_reduction_is_the_ratio_of_densities_at_zero() -> None:
    """Against scipy; the prior is that of the whole layer, whatever the blocks; certain weights are kept or go."""
    from scipy import stats

    from pyro_compress.compression.prune import Ranking, kept, unit_scores

    mean, std = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64) + 0.05
    layer = LayerPosterior(mean, std)
    p = float((mean.square() + std.square()).mean().sqrt())
    change = stats.norm.logpdf(0, mean.numpy(), std.numpy()) - stats.norm.logpdf(0, 0, p)  # ΔF of leaving a weight out
    found = CRITERIA["model-reduction"](layer)
    np.testing.assert_allclose(found.numpy(), np.log1p(np.exp(-change)), rtol=1e-9)
    assert torch.equal(kept({"w": layer}, "model-reduction")["w"], torch.from_numpy(change < 0))
    np.testing.assert_allclose(unit_scores(layer, "model-reduction"), found.amax(1))
    certain = CRITERIA["model-reduction"](LayerPosterior(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)))
    assert certain.tolist() == [[0.0, math.inf]]
    graph = capture(nn.Sequential(nn.Flatten(), nn.Linear(5, 6)), (5,))
    posterior = Posterior(graph, {"1.weight": LayerPosterior(mean.float(), std.float())}, {}, "snr", Provenance())
    share = float((torch.from_numpy(change) >= 0).double().mean())
    masks = Ranking(posterior, "model-reduction").masks(share)["1.weight"]
    assert torch.equal(masks, torch.from_numpy(change < 0))


def test_the_criterions_own_rule_is_a_share(digits) -> None:
    import pyro_compress as pc
    from pyro_compress.compression.prune import removed_share

    fitted = pc.fit("mlp", digits, hidden=(12,), epochs=6, prior="gaussian", compile="off")
    report = fitted.compress(criterion="model-reduction", rule=True).report
    wanted = {n: CRITERIA["model-reduction"](layer) > math.log(2) for n, layer in fitted.posterior.layers.items()}
    assert 0.1 < report.sparsity == pytest.approx(removed_share(wanted), abs=1e-6)
    with pytest.raises(ValueError, match="--sparsity and --rule exclude each other"):
        fitted.compress(rule=True, sparsity=0.5)
    point = pc.fit("mlp", digits, hidden=(12,), epochs=1, prior="none")
    with pytest.raises(ValueError, match="'model-reduction' needs a posterior's spread"):
        point.compress(criterion="model-reduction", rule=True)


@pytest.mark.parametrize("components", [0.2, 2.5, 5000.0])
def test_components_are_counted_in_whole_numbers(components: float) -> None:
    with pytest.raises(ValueError, match="must be a whole number up to 1024"):
        PRIORS["soft-weight-sharing"].with_options({"components": components})
