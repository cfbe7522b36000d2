"""The captured step is the eager step: same loss, same gradients, nothing baked in, nothing asked of the device."""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.fx import GraphModule

import pyro_compress.bayes.capture
import pyro_compress.bayes.fit
from pyro_compress.bayes.capture import capture_graph, captured, set_scalars
from pyro_compress.bayes.elbo import ElboTerms, Objective, build_objective
from pyro_compress.bayes.estimators import ESTIMATORS
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.guides import GUIDES, build_guide, starts_of
from pyro_compress.bayes.layers import bayesianize
from pyro_compress.bayes.model import Fit, classifier
from pyro_compress.bayes.noise import Noise, lift_noise
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.step import Rule, State, Step, Trained, eager, trained_parameters
from pyro_compress.data.splits import load_splits
from pyro_compress.networks.nets import build_net
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.types import Data

CASES = [(prior, estimator) for prior in PRIORS for estimator in ESTIMATORS]
X, Y = torch.rand(30, 2, 5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4


@pytest.fixture(autouse=True)
def _no_validation():
    with pyro.validation_enabled(False):
        yield


def convolutional() -> nn.Module:
    """With batch norm, and no bias before it: its gradient would be pure rounding."""
    return nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))


def objective(
    prior: str, estimator: str, samples: int = 1, guide: str = "mean-field",
    make: Callable[[], nn.Module] = convolutional,
) -> tuple[Objective, list[Trained]]:  # fmt: skip
    torch.manual_seed(0)
    net = make()
    weights = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    bayes = bayesianize(net, PRIORS[prior])
    model = classifier(bayes, 300)
    built = build_guide(guide, model, starts_of(bayes, weights, None), {"0.weight": 0.2}, (X, Y))
    found = build_objective(model, built, estimator, samples)
    return found, trained_parameters(found, 1e-3, 1e-2, 1e-2)


@cache
def plain_graph(prior: str, estimator: str) -> GraphModule:
    """A step of one sample, captured once; whatever it works on are its inputs."""
    found, trained = objective(prior, estimator)
    scalars = (torch.zeros(()), torch.zeros(()), torch.zeros(()))
    return capture_graph(found, trained, Rule(), State.of(found, trained), scalars, X, Y)


class Graph:
    """A captured step at hand: its graph, its inputs, its noise."""

    def __init__(
        self, found: Objective, trained: list[Trained], rule: Rule | None = None, graph: GraphModule | None = None
    ):
        self.state = State.of(found, trained)
        self.scalars = tuple(torch.zeros(()) for _ in range(3))
        self.graph = graph or capture_graph(found, trained, rule or Rule(), self.state, self.scalars, X, Y)
        self.noise: Noise = lift_noise(self.graph, X.device)

    def run(self, seed: int, count: int = 1, kl_weight: float = 0.5, factor: float = 1.0) -> None:
        set_scalars(self.scalars, count, kl_weight, factor)
        torch.manual_seed(seed)
        self.noise.fill_reference()
        state = self.state
        with torch.no_grad():
            self.graph(
                state.parameters, state.first, state.second, state.buffers, state.noted, self.scalars, X, Y,
                self.noise.normal, self.noise.coin,
            )  # fmt: skip


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
def test_static_elbo_is_pyros(prior: str, guide: str, samples: int) -> None:
    """The same number from the same draws, closed-form or not, to 1e-5 relative (sums in another order)."""
    found, _ = objective(prior, "weight", samples, guide)
    torch.manual_seed(1)
    ours = found.elbo(X, Y).item()
    torch.manual_seed(1)
    stock = TraceMeanField_ELBO(num_particles=samples)
    with ElboTerms(1.0):
        theirs = stock.differentiable_loss(found.elbo.model, found.elbo.guide, X, Y).item()
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(("prior", "estimator"), CASES)
def test_captured_gradients_are_the_eager_ones(prior: str, estimator: str) -> None:
    """First moments of one captured step (0.1 × gradient) against autograd, to 1e-5 of the largest gradient."""
    found, trained = objective(prior, estimator)
    torch.manual_seed(1)
    loss, log_likelihood = found(X, Y, 0.5)
    loss.backward()
    wanted = [t.parameter.grad.clone() for t in trained]
    graph = Graph(found, trained, graph=deepcopy(plain_graph(prior, estimator)))
    graph.run(seed=1, factor=0.0)
    assert float(graph.state.noted) == pytest.approx(float(log_likelihood), rel=1e-5)
    for got, gradient in zip(graph.state.first, wanted, strict=True):
        assert torch.allclose(got * 10, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def halved(gradients: Sequence[Tensor]) -> None:
    """What another process with a gradient of zero would do."""
    for gradient in gradients:
        gradient.mul_(0.5)


RULES = {"plain": Rule(), "clipped": Rule(clip_norm=0.05), "accumulated": Rule(accumulate=3)}
SHARED = {"shared": Rule(clip_norm=0.02, combine=halved)}


@pytest.mark.parametrize("rule", [*RULES, *SHARED])
def test_captured_and_eager_steps_note_the_same(rule: str) -> None:
    """The expected log-likelihood, of a minibatch at once or in parts, to 1e-5."""
    how, noted = (RULES | SHARED)[rule], []
    for build in (eager, lambda *arguments: captured(*arguments, (X, Y), compiled=False)):
        found, trained = objective("gaussian", "weight", 2)
        step = build(found, trained, how, State.of(found, trained))
        torch.manual_seed(3)
        noted.append(float(step(X, Y, 1.0, 1.0)))
    assert noted[1] == pytest.approx(noted[0], rel=1e-5)


def eight_steps(prior: str, estimator: str, samples: int, build: Callable[..., Step], last: int) -> list[Tensor]:
    found, trained = objective(prior, estimator, samples)
    before = [t.parameter.detach().clone() for t in trained]
    step = build(found, trained)
    for index in range(8):
        torch.manual_seed(index)
        rows = slice(0, last) if index == 4 else slice(None)  # the last minibatch of an epoch may be smaller
        step(X[rows], Y[rows], min(1.0, index / 4), 1 - index / 16)
    moved = [t.parameter.detach() - b for t, b in zip(trained, before, strict=True)]
    return moved + [buffer.float() for buffer in found.elbo.buffers()]


@pytest.mark.parametrize(
    ("prior", "estimator", "samples", "rule"),
    [(*case, 1, "plain") for case in CASES]
    + [
        ("gaussian", "weight", 2, "clipped"),
        pytest.param("horseshoe", "local", 2, "clipped", marks=pytest.mark.slow),
        pytest.param("log-uniform", "local", 1, "accumulated", marks=pytest.mark.slow),
        pytest.param("gaussian", "weight", 1, "shared", marks=pytest.mark.slow),
    ],
)
def test_eight_steps_stay_together(
    prior: str, estimator: str, samples: int, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam divides by the root of tiny second moments, which magnifies rounding: 2 % of what the parameters moved."""
    how, last = (RULES | SHARED)[rule], 17 if prior == "gaussian" else len(X)

    def graph_at_hand(*arguments: Any) -> GraphModule:
        plain = samples == 1 and rule == "plain" and len(arguments[-1]) == len(Y)
        return deepcopy(plain_graph(prior, estimator)) if plain else capture_graph(*arguments)

    monkeypatch.setattr(pyro_compress.bayes.capture, "capture_graph", graph_at_hand)
    one = eight_steps(
        prior, estimator, samples, lambda found, trained: eager(found, trained, how, State.of(found, trained)), last
    )
    two = eight_steps(
        prior,
        estimator,
        samples,
        lambda found, trained: captured(found, trained, how, State.of(found, trained), (X, Y), compiled=False),
        last,
    )
    for a, b in zip(one, two, strict=True):
        assert (a - b).norm() <= 0.02 * a.norm() + 1e-7


@pytest.mark.slow
def test_rules_change_the_gradient_as_they_say() -> None:
    """Clipping leaves the direction and bounds the norm; parts of a minibatch average to the whole."""
    gradients = {}
    for name, rule in (RULES | {"tight": Rule(clip_norm=1e-3)}).items():
        found, trained = objective("gaussian", "weight")
        for t in trained:
            if "log_scale" in t.name:
                t.parameter.data.fill_(-40.0)  # no noise: every part sees the same weights
        net = found.elbo.model.net.eval()  # batch norm would see other statistics in every part
        assert not net.training
        graph = Graph(found, trained, rule)
        graph.run(seed=1, factor=0.0)
        gradients[name] = (
            torch.cat([m.flatten() for t, m in zip(trained, graph.state.first, strict=True) if "loc" in t.name]) * 10
        )
    assert torch.allclose(gradients["accumulated"], gradients["plain"], rtol=1e-3, atol=1e-5)
    assert float(gradients["tight"].norm()) < 1e-3 * 1.001
    cosine = torch.nn.functional.cosine_similarity(gradients["tight"], gradients["plain"], dim=0)
    assert float(cosine) > 0.9999


def test_the_graph_bakes_nothing_in_and_never_synchronises() -> None:
    found, trained = objective("horseshoe", "local")
    graph = Graph(found, trained).graph
    targets = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    forbidden = ("_local_scalar_dense", "aten.item", "nonzero", "is_nonzero", "normal", "rand", "bernoulli")
    assert not [target for target in targets if any(word in target for word in forbidden)]
    assert not [node for node in graph.graph.nodes if node.op == "get_attr" and getattr(graph, node.target).numel() > 0]
    *scalars, x, y, normal, _coin = [node for node in graph.graph.nodes if node.op == "placeholder"][-7:]
    assert all(node.users for node in (*scalars, x, y, normal)), "scalars, x, y and the noise must all be read"


def test_schedules_are_inputs() -> None:
    """One graph, other values: a factor of 0 moves nothing, the KL weight changes the gradient."""
    found, trained = objective("gaussian", "local")
    graph = Graph(found, trained)
    before = [p.clone() for p in graph.state.parameters]
    graph.run(seed=0, kl_weight=0.5, factor=0.0)
    light = graph.state.first[-1].clone()
    graph.state.first[-1].zero_()
    graph.run(seed=0, kl_weight=5.0, factor=0.0)
    assert all(torch.equal(p, b) for p, b in zip(graph.state.parameters, before, strict=True))
    assert not torch.allclose(light, graph.state.first[-1])


def test_capturing_leaves_no_trace() -> None:
    """Parameters, batch-norm statistics and the global generator are as before."""
    found, trained = objective("log-uniform", "local")
    before = {name: value.clone() for name, value in found.elbo.state_dict().items()}
    torch.manual_seed(3)
    Graph(found, trained)
    assert all(torch.equal(value, before[name]) for name, value in found.elbo.state_dict().items())
    state = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), state)


def test_a_failure_puts_the_state_back() -> None:
    """The eager step that takes over must not start from a half-done one."""
    found, trained = objective("gaussian", "local")
    state = State.of(found, trained)
    before = [tensor.clone() for tensor in state.tensors().values()]

    def fail() -> None:
        with state.kept():
            for tensor in state.parameters:
                tensor.add_(1.0)
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(state.tensors().values(), before, strict=True))


@pytest.mark.parametrize("build", ["eager", "graph"])
def test_bfloat16_products(build: str) -> None:
    """Matrix products in bfloat16 (8 bits of mantissa): gradients stay float32, near the exact ones."""
    found, trained = objective("log-uniform", "local")
    mixed = replace(found, precision="bfloat16")
    seen = []
    for one in (found, mixed):
        if build == "graph":
            graph = Graph(one, trained)
            graph.run(seed=1, factor=0.0)
            targets = [node for node in graph.graph.graph.nodes if node.target is torch.ops.aten._to_copy.default]
            assert (one is mixed) == any(node.kwargs.get("dtype") is torch.bfloat16 for node in targets)
            seen.append(torch.cat([m.flatten() for m in graph.state.first]))
        else:
            torch.manual_seed(1)
            gradients = torch.autograd.grad(one(X, Y, 0.5)[0], [t.parameter for t in trained])
            seen.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert seen[1].dtype == torch.float32
    assert 0 < (seen[0] - seen[1]).norm() < 0.1 * seen[0].norm()


def fit_with(compile: str, seed: int = 0, epochs: int = 24, **options: Any) -> Fit:
    full = load_splits("digits")
    splits = replace(full, train=Data(full.train.x[:256], full.train.y[:256]))
    config = FitConfig(
        prior="log-uniform", hidden=(20,), epochs=epochs, device="cpu", compile=compile, seed=seed, **options
    )
    torch.manual_seed(seed)
    net = build_net("mlp", splits.input_shape, 10, config.hidden)
    return fit_posterior(net, splits, resolve(config, len(splits.train)))


def test_both_steps_average_the_same_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of an epoch, whichever way the step runs: uncompiled, its noise is the eager step's."""
    monkeypatch.setattr(pyro_compress.bayes.fit, "captured", lambda *arguments: captured(*arguments, compiled=False))
    ways = [[epoch.expected_log_likelihood_nats for epoch in fit_with(way, epochs=3).history] for way in ("off", "on")]
    assert ways[1] == [found and pytest.approx(found, rel=1e-4) for found in ways[0]]


@pytest.mark.slow
def test_compiled_fits_reach_the_eager_elbo(caplog: pytest.LogCaptureFixture) -> None:
    """Through inductor, with fast noise: the same bits twice; an ELBO within three standard deviations of seeds."""
    first = fit_with("on")
    assert not [record for record in caplog.records if record.name.startswith("pyro_compress")]
    for a, b in zip(first.guide.parameters(), fit_with("on").guide.parameters(), strict=True):
        assert torch.equal(a, b)
    eager_elbos = torch.tensor([fit_with("off", seed).history[-1].negative_elbo_nats for seed in range(4)])
    compiled = torch.tensor([first.history[-1].negative_elbo_nats, fit_with("on", 1).history[-1].negative_elbo_nats])
    assert float((compiled.mean() - eager_elbos.mean()).abs()) < 3 * float(eager_elbos.std())


def statistics_after(build: Callable[..., Step]) -> list[Tensor]:
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 4, bias=False), nn.BatchNorm1d(4))  # noqa: E731
    found, trained = objective("gaussian", "local", make=make)
    step = build(found, trained)
    for _ in range(40):
        step(X, Y, 1.0, 0.0)  # the rates are 0: only the statistics move
    return [buffer.clone() for name, buffer in found.elbo.named_buffers()]


@pytest.mark.slow
def test_a_compiled_step_updates_batch_norm() -> None:
    """Through inductor, with noise of its own: means and variances within 1 % of the eager ones, after 40 steps."""
    one = statistics_after(lambda found, trained: eager(found, trained, Rule(), State.of(found, trained)))
    two = statistics_after(lambda found, trained: captured(found, trained, Rule(), State.of(found, trained), (X, Y)))
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=0.01, atol=0.003)
    assert int(two[2]) == 40


def test_what_cannot_be_captured_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(pyro_compress.bayes.fit, "captured", broken)
    with caplog.at_level(logging.WARNING):
        broken_fit = fit_with("on")
    (record,) = [record for record in caplog.records if record.name.startswith("pyro_compress")]
    assert record.getMessage() == "the step could not be compiled and runs eagerly: RuntimeError: no such luck"
    for a, b in zip(broken_fit.guide.parameters(), fit_with("off").guide.parameters(), strict=True):
        assert torch.equal(a, b)
