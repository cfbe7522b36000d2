"""The captured step is the eager step: same loss, same gradients, nothing baked in, nothing asked of the device."""

import logging

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

import pyro_compress.bayes.step
from pyro_compress.bayes.elbo import ElboTerms, Objective, build_objective
from pyro_compress.bayes.estimators import ESTIMATORS
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.guides import GUIDES, build_guide, starts_of
from pyro_compress.bayes.layers import bayesianize
from pyro_compress.bayes.model import Classifier
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.step import Tuned, capture_graph, captured, eager, tuned_parameters, with_fallback
from pyro_compress.config import resolve
from pyro_compress.data import load_splits
from pyro_compress.nets import build_net
from pyro_compress.types import FitConfig

CASES = [(prior, estimator) for prior in PRIORS for estimator in ESTIMATORS]
X, Y = torch.rand(30, 2, 5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4


@pytest.fixture(autouse=True)
def _no_validation():
    with pyro.validation_enabled(False):
        yield


def objective(prior: str, estimator: str, samples: int = 1, guide: str = "mean-field") -> tuple[Objective, list[Tuned]]:
    """A small convolutional network with batch norm (and no bias before it: its gradient would be pure rounding)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    weights = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    bayes = bayesianize(net, PRIORS[prior])
    model = Classifier(bayes, 300)
    built = build_guide(guide, model, starts_of(bayes, weights, None), 0.2, (X, Y))
    found = build_objective(model, built, estimator, samples)
    return found, tuned_parameters(found, 1e-3, 1e-2, 1e-2)


def graph_inputs(
    found: Objective, tuned: list[Tuned], count: float = 1.0, kl_weight: float = 0.5, factor: float = 1.0
) -> tuple:
    zeros = [[torch.zeros_like(t.parameter) for t in tuned] for _ in range(2)]
    scalars = (torch.tensor(value) for value in (count, kl_weight, factor))
    return ([t.parameter.data for t in tuned], *zeros, list(found.elbo.buffers()), *scalars, X, Y)


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
    found, tuned = objective(prior, estimator)
    torch.manual_seed(1)
    found(X, Y, 0.5)[0].backward()
    wanted = [t.parameter.grad.clone() for t in tuned]
    inputs = graph_inputs(found, tuned, factor=0.0)
    graph = capture_graph(found, tuned, inputs)
    torch.manual_seed(1)
    with torch.no_grad():
        graph(*inputs)
    for got, gradient in zip(inputs[1], wanted, strict=True):
        assert torch.allclose(got * 10, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize(("prior", "estimator"), CASES)
def test_twenty_steps_stay_together(prior: str, estimator: str) -> None:
    """Adam divides by the root of tiny second moments, which magnifies rounding: 2 % of what the parameters moved."""
    runs = []
    for build in (eager, lambda found, tuned: captured(found, tuned, compiled=False)):
        found, tuned = objective(prior, estimator)
        before = [t.parameter.detach().clone() for t in tuned]
        step = build(found, tuned)
        for index in range(20):
            torch.manual_seed(index)
            step(X, Y, min(1.0, index / 10), 1 - index / 40, index % 3 == 0)
        moved = [t.parameter.detach() - b for t, b in zip(tuned, before, strict=True)]
        runs.append(moved + [buffer.float() for buffer in found.elbo.buffers()])
    for a, b in zip(*runs, strict=True):
        assert (a - b).norm() <= 0.02 * a.norm() + 1e-7


def test_the_graph_bakes_nothing_in_and_never_synchronises() -> None:
    found, tuned = objective("horseshoe", "local")
    graph = capture_graph(found, tuned, graph_inputs(found, tuned))
    targets = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert not [
        t for t in targets if any(word in t for word in ("_local_scalar_dense", "aten.item", "nonzero", "is_nonzero"))
    ]
    # the prior's own parameters, scalars, are all that may be constant
    assert all(getattr(graph, n.target).numel() <= 1 for n in graph.graph.nodes if n.op == "get_attr")
    scalars = [node for node in graph.graph.nodes if node.op == "placeholder"][-5:]
    assert all(node.users for node in scalars), "step number, KL weight, factor, x and y must all be read"


def test_schedules_are_inputs() -> None:
    """One graph, other values: a factor of 0 moves nothing, the KL weight changes the gradient."""
    found, tuned = objective("gaussian", "local")
    still = graph_inputs(found, tuned, factor=0.0)
    graph = capture_graph(found, tuned, still)
    before = [p.clone() for p in still[0]]
    heavy = graph_inputs(found, tuned, kl_weight=5.0, factor=0.0)
    with torch.no_grad():
        for inputs in (still, heavy):
            torch.manual_seed(0)
            graph(*inputs)
    assert all(torch.equal(p, b) for p, b in zip(still[0], before, strict=True))
    assert not torch.allclose(still[1][-1], heavy[1][-1])


def test_capturing_leaves_no_trace() -> None:
    """Parameters, batch-norm statistics and the global generator are as before."""
    found, tuned = objective("log-uniform", "local")
    before = {name: value.clone() for name, value in found.elbo.state_dict().items()}
    torch.manual_seed(3)
    capture_graph(found, tuned, graph_inputs(found, tuned))
    assert all(torch.equal(value, before[name]) for name, value in found.elbo.state_dict().items())
    state = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), state)


def fit_with(compile: str) -> list[Tensor]:
    splits = load_splits("digits")
    config = FitConfig(prior="log-uniform", hidden=(20,), epochs=24, device="cpu", compile=compile)
    net = build_net("mlp", splits.input_shape, 10, config.hidden)
    fit = fit_posterior(net, splits, resolve(config, len(splits.train)))
    assert fit.history[-1].validation_accuracy > 0.6
    return [parameter.detach() for parameter in fit.guide.parameters()]


def test_compiled_fit_equals_eager_fit(caplog: pytest.LogCaptureFixture) -> None:
    """Through inductor, last minibatches of another size included; and the same bits twice."""
    torch.manual_seed(0)
    first = fit_with("on")
    assert not [record for record in caplog.records if record.name.startswith("pyro_compress")]
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(first, fit_with("on"), strict=True))
    torch.manual_seed(0)
    for a, b in zip(first, fit_with("off"), strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_what_cannot_be_captured_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(pyro_compress.bayes.step, "capture_graph", broken)
    with caplog.at_level(logging.WARNING):
        found, tuned = objective("gaussian", "local")
        step = with_fallback(captured(found, tuned), lambda: eager(found, tuned))
        assert step(X, Y, 1.0, 1.0, True) is not None
        assert step(X, Y, 1.0, 1.0, True) is not None
    (record,) = caplog.records
    assert record.getMessage() == "the step could not be compiled and runs eagerly: RuntimeError: no such luck"
