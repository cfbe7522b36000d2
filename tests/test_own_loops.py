"""A network as a Pyro program, and what loops of one's own leave: against exact posteriors, whatever made them."""

import sys
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import nn

import pyro_compress as pc
from pyro_compress.bayes.elbo import build_objective
from pyro_compress.bayes.matched import Moments, gaussian
from pyro_compress.bayes.program import ProgramGuide

X, Y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
SPREAD, NOISE = 0.8, 0.5
"""Of the prior over the weights of a linear network, and of its targets."""


@pytest.fixture(autouse=True)
def _store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def linear_data(orthogonal: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(40, 3)
    x = torch.linalg.qr(x).Q * 4 if orthogonal else x
    return x, x @ torch.tensor([[1.0], [-0.5], [0.2]]) + NOISE * torch.randn(40, 1)


def exact(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and precision of the posterior of a linear network with a Gaussian prior and known noise."""
    precision = x.T.double() @ x.double() / NOISE**2 + torch.eye(3).double() / SPREAD**2
    return torch.linalg.solve(precision, x.T.double() @ y.double() / NOISE**2)[:, 0], precision


def linear_program(x: torch.Tensor, y: torch.Tensor, guide: object = None):
    net = nn.Linear(3, 1, bias=False)
    return pc.program(net, (x, y), prior="gaussian", prior_options={"scale": SPREAD}, guide=guide, noise=NOISE)


def run(model, guide, x, y, elbo, steps: int = 250) -> None:
    optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, elbo)
    for _ in range(steps):
        svi.step(x, y)


@pytest.mark.parametrize(
    "kind",
    [
        None,
        AutoNormal,
        *(pytest.param(k, marks=pytest.mark.slow) for k in (AutoDiagonalNormal, AutoLowRankMultivariateNormal)),
    ],
)
def test_svi_finds_the_exact_posterior_of_a_linear_network(kind: type | None) -> None:
    """Its mean and its variances, which are those of the best factorised one too where x is orthogonal."""
    x, y = linear_data(orthogonal=True)
    model, guide = linear_program(x, y, kind)
    run(model, guide, x, y, TraceMeanField_ELBO(2) if kind is None else Trace_ELBO(2))
    layer = pc.posterior(guide).layers["weight"]
    mean, precision = exact(x, y)
    std = precision.diagonal().rsqrt()
    assert (layer.mean[0].double() - mean).abs().max() < 0.3 * std.min()
    assert layer.std[0].double().numpy() == pytest.approx(std.numpy(), rel=0.2)


def test_the_point_estimate_is_the_posteriors_mode() -> None:
    x, y = linear_data()
    model, guide = linear_program(x, y, AutoDelta)
    run(model, guide, x, y, Trace_ELBO(), 300)
    layer = pc.posterior(model, guide).layers["weight"]
    assert layer.mean[0].double().numpy() == pytest.approx(exact(x, y)[0].numpy(), abs=2e-3)
    assert not layer.std.any()


def test_nuts_draws_from_the_exact_posterior() -> None:
    """Of 200 draws the mean is within four standard errors, if these were independent a tenth as often."""
    x, y = linear_data()
    model, _ = linear_program(x, y)
    mcmc = MCMC(NUTS(model), num_samples=200, warmup_steps=50, disable_progbar=True)
    mcmc.run(x, y)
    layer = pc.posterior(mcmc).layers["weight"]
    mean, precision = exact(x, y)
    std = precision.inverse().diagonal().sqrt()
    assert ((layer.mean[0].double() - mean).abs() / std).max() < 4 / 20**0.5
    assert layer.std[0].double().numpy() == pytest.approx(std.numpy(), rel=0.3)
    again = pc.posterior(nn.Linear(3, 1, bias=False), mcmc.get_samples(), (x, y)).layers["weight"]
    assert torch.allclose(again.mean, layer.mean)


@pytest.mark.parametrize("prior", ["gaussian", "horseshoe", "normal-jeffreys", "log-uniform", "spike-and-slab"])
def test_its_elbo_is_ours_for_the_same_draws(prior: str) -> None:
    """The loss of Pyro's own estimator on the program, number by number, minibatch and whole set."""
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model, guide = pc.program(net, (x, y), prior=prior, bias_prior="same")
    ours = build_objective(model, guide, "weight", 1)
    for rows in (60, 20):
        torch.manual_seed(3)
        with pyro.validation_enabled(False):
            wanted = float(ours(x[:rows], y[:rows], 1.0)[0].detach()) * 60
        torch.manual_seed(3)
        found = TraceMeanField_ELBO().loss(model, guide, x[:rows], y[:rows])
        assert found == pytest.approx(wanted, rel=1e-5)


def test_its_posterior_is_that_of_a_fit(digits) -> None:
    """The mean-field guide's moments, by `extract`'s formulas and by its own draws, to five standard errors."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model, guide = pc.program(net, digits, prior="horseshoe", prior_options={"tau0": 1e-3})
    found, drawn = pc.posterior(model, guide), pc.posterior(model, lambda *args: guide(*args), draws=300)
    one, other = found.layers["1.weight"], drawn.layers["1.weight"]
    assert ((one.mean - other.mean).abs() / (one.std / 300**0.5)).max() < 5
    assert other.std.mean() == pytest.approx(float(one.std.mean()), rel=0.05)
    assert other.unit_mean.flatten().numpy() == pytest.approx(one.unit_mean.flatten().numpy(), rel=0.1)
    assert found.criterion == "group-mode"
    assert found.provenance.prior == "horseshoe"
    assert found.provenance.data == "digits"


def test_predictive_and_what_a_draw_of_an_improper_prior_is() -> None:
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    for prior in ("horseshoe", "log-uniform"):
        model, guide = pc.program(nn.Linear(4, 3), (x, y), prior=prior)
        assert Predictive(model, guide=guide, num_samples=5)(x[:7])["y"].shape == (5, 7)


class Two(nn.Module):
    """Reads numbers and words."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.words, self.end = nn.Linear(4, 3), nn.Embedding(5, 2), nn.Linear(7, 2)

    def forward(self, numbers: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.end(torch.cat([self.numbers(numbers), self.words(words).flatten(1)], 1))


def test_several_inputs_by_name_and_a_guide_of_ones_own() -> None:
    inputs, y = {"numbers": torch.randn(50, 4), "words": torch.randint(0, 5, (50, 2))}, torch.arange(50) % 2

    def guide(x, y=None):
        for name, shape in (("words", (5, 2)), ("numbers", (3, 4)), ("end", (2, 7))):
            loc = pyro.param(f"{name}.loc", torch.full(shape, 0.5))
            scale = pyro.param(f"{name}.scale", torch.full(shape, 0.25), pyro.distributions.constraints.positive)
            pyro.sample(f"{name}.weight.raw", pyro.distributions.Normal(loc, scale).to_event(2))

    model, own = pc.program(Two(), (inputs, y), prior="gaussian", guide=guide)
    assert own is guide
    SVI(model, own, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO()).step(inputs, y)
    layers = pc.posterior(model, own, draws=400).layers
    assert float(layers["words.weight"].mean.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(layers["end.weight"].std.mean()) == pytest.approx(0.25, rel=0.1)


def test_shapes_are_enough() -> None:
    model, guide = pc.program(nn.Linear(4, 3), pc.Shapes((4,), 3, 1000), guide=lambda model: AutoNormal(model))
    assert model.size == 1000
    loss = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(torch.randn(10, 4), torch.arange(10) % 3)
    assert loss > 1000 * 0.5  # ten rows stand for a thousand


def test_the_curvature_around_trained_weights_is_the_exact_posteriors() -> None:
    """Of a linear network the Fisher information is the precision, less the prior that our approximation adds."""
    x, y = linear_data(orthogonal=True)
    net = nn.Linear(3, 1, bias=False)
    net.weight.data = torch.linalg.lstsq(x, y).solution.T
    found = pc.posterior(net, "laplace", (x, y))
    noise = found.provenance.noise
    precision = x.square().sum(0) / noise**2 + 1 / net.weight.detach().square().mean()
    assert found.layers["weight"].std[0].numpy() == pytest.approx(precision.rsqrt().numpy(), rel=1e-4)
    assert torch.equal(found.layers["weight"].mean, net.weight)


@pytest.mark.parametrize("trainer", ["lightning", "hugging_face"])
def test_a_trainer_hands_its_network_over(trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hook of either, with a class of their own as its base."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

    theirs = type("Theirs", (), {"on_train_end": lambda *a, **k: None})
    packages = {"lightning": ("lightning.pytorch", "Callback"), "hugging_face": ("transformers", "TrainerCallback")}
    package, base = packages[trainer]
    for name in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    after = pc.AfterTraining(lambda net: pc.posterior(net, "laplace", (X, Y)), part=lambda whole: whole.net)
    with pytest.raises(ValueError, match="which is not installed"):
        getattr(after, trainer)()
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(**{base: theirs}))
    callback, whole = getattr(after, trainer)(), Whole()
    assert isinstance(callback, theirs)
    callback.on_train_end(
        *((None, whole) if trainer == "lightning" else (None, None, None)),
        **({} if trainer == "lightning" else {"model": whole}),
    )
    assert torch.equal(after.result.layers["weight"].mean, whole.net.weight)
    assert after.net is not whole.net


def test_shapes_are_no_data(tmp_path) -> None:
    shapes = pc.Shapes((4,), 3, 60)
    model, guide = pc.program(nn.Linear(4, 3), shapes, prior="gaussian")
    with pytest.raises(ValueError, match="a run folder has data, of which the program knows shapes: give data"):
        pc.save_run(tmp_path / "run", model, guide)
    splits = pc.splits_from((X, Y))
    run = pc.save_run(tmp_path / "run", model, guide, splits)
    assert torch.equal(run.splits().train.x, splits.train.x)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    model, guide = pc.program(net, shapes, prior="gaussian")
    with pytest.raises(ValueError, match="batch norm takes its statistics from the data"):
        pc.posterior(model, guide)
    found = pc.posterior(model, guide, (X, Y))
    hidden = X @ found.layers["0.weight"].mean.T + found.dense["0.bias"]
    assert torch.allclose(found.dense["1.running_mean"], hidden.mean(0), atol=1e-5)


MEAN, STD = torch.linspace(-1, 1, 12).reshape(3, 4), torch.linspace(0.1, 0.4, 12).reshape(3, 4)


class Laplace:
    """What `laplace-torch` leaves."""

    def __init__(self, net: nn.Module, **variances: object) -> None:
        self.model, self.mean = net, torch.cat([MEAN.flatten(), torch.arange(3.0)])
        vars(self).update(variances)


def sources(net: nn.Module) -> dict[str, object]:
    draws = MEAN + STD * (torch.tensor([-1.0, 1.0]) / 2**0.5)[:, None, None]
    variance = torch.cat([STD.flatten() ** 2, torch.ones(3)])
    return {
        "mean and std": {"weight": (MEAN, STD), "bias": (torch.arange(3.0), torch.ones(3))},
        "arrays": {"weight": [MEAN.numpy(), STD.numpy()], "bias": (np.arange(3.0), np.ones(3))},
        "draws": {"weight.raw": draws, "bias": torch.arange(3.0).expand(2, 3)},
        "MCMC": SimpleNamespace(get_samples=lambda: {"weight": draws.numpy(), "bias": np.tile(np.arange(3.0), (2, 1))}),
        "Laplace": Laplace(net, posterior_variance=variance),
        "full Laplace": Laplace(net, posterior_covariance=torch.diag(variance)),
        "Kronecker": Laplace(net, posterior_precision=SimpleNamespace(diag=lambda exponent: variance)),
    }


@pytest.mark.parametrize("kind", sources(nn.Linear(4, 3)))
def test_whatever_was_inferred_is_a_posterior(kind: str) -> None:
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    net = nn.Linear(4, 3)
    found = pc.posterior(net, sources(net)[kind], (x, y))
    assert torch.allclose(found.layers["weight"].mean, MEAN, atol=1e-6)
    assert torch.allclose(found.layers["weight"].std, STD, atol=1e-6)
    assert found.dense["bias"].tolist() == [0.0, 1.0, 2.0]
    assert (found.criterion, found.task) == ("snr", "classification")
    _, removed = pc.compress(found, pc.splits_from((x, y)), pc.Goal(sparsity=0.5))
    assert removed == 0.5


def test_a_laplace_approximation_of_the_last_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, bias=False))
    net.last_layer = net[1]
    whole = SimpleNamespace(model=net, mean=MEAN.flatten(), posterior_variance=STD.flatten() ** 2)
    whole.model.named_parameters = nn.Sequential(net[0], net[1]).named_parameters
    found = pc.posterior(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), whole, (torch.randn(60, 4), torch.arange(60) % 3)
    )
    assert torch.allclose(found.layers["1.weight"].std, STD)
    assert not found.layers["0.weight"].std.any()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"fc.weight": (MEAN, STD)}, "the network has no tensor 'fc.weight'; it has weight, bias"),
        ({"weight": (MEAN[:2], STD)}, r"weight: mean \(2, 4\) and std \(3, 4\) must be finite"),
        ({"weight": (MEAN, -STD)}, "std not negative"),
        ({}, "nothing was inferred"),
        ({"weight": MEAN.expand(3, 3, 4), "bias": torch.zeros(2, 3)}, "of as many draws each"),
        (lambda x, y: None, "a guide goes with the model that program made"),
        (3, "a int is no posterior"),
        (Laplace(nn.Linear(4, 3)), "has neither posterior_variance nor posterior_covariance"),
        (Laplace(nn.Linear(4, 2), posterior_variance=torch.ones(15)), "has 15 means and 15 variances, the parameters"),
    ],
)
def test_what_is_no_posterior(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pc.posterior(nn.Linear(4, 3), source, (torch.randn(60, 4), torch.arange(60) % 3))


def test_what_a_program_refuses() -> None:
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    model, _ = pc.program(nn.Linear(4, 3), (x, y), prior="gaussian")
    for call, message in (
        (lambda: pc.program(nn.Linear(4, 3), (x, y), prior="none"), "a program has a prior"),
        (lambda: pc.program(nn.Linear(4, 3), (x, y), priors="horseshoe"), "did you mean prior"),
        (lambda: pc.program(nn.Linear(4, 3), (x, y), guide=3), "a guide is a Pyro function, an AutoGuide"),
        (lambda: pc.posterior(nn.Linear(4, 3)), "a Linear does not say of which network: give"),
        (lambda: pc.posterior(nn.Linear(4, 3), {}), "a plain network's posterior needs its data"),
        (lambda: pc.posterior(model, {"bias": torch.zeros(5, 3)}), "nothing is known of site weight.raw"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_moments_and_marginals_that_are_exact() -> None:
    values = torch.randn(50, 3).double() * 1e-3 + 1e3
    found = Moments()
    for value in values:
        found.add(value)
    assert torch.allclose(found.mean, values.mean(0), rtol=1e-14)
    assert torch.allclose(found.std, values.std(0), rtol=1e-6)
    x, y = linear_data()
    _, guide = linear_program(x, y, AutoMultivariateNormal)
    assert isinstance(linear_program(x, y)[1], ProgramGuide)
    assert gaussian(guide) is None  # nothing is known before it has seen its model
    guide(x, y)
    one = gaussian(guide).marginal("weight.raw")
    assert torch.allclose(one.stddev.flatten(), guide.get_posterior().variance.sqrt(), atol=1e-6)
