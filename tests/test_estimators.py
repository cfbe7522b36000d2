"""Local reparameterization and flipout against brute-force weight sampling, for every operation and grouping."""

import math

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from pyro_compress.bayes.estimators import ESTIMATORS
from pyro_compress.bayes.guides import MeanField
from pyro_compress.bayes.layers import BayesLayer, bayes_layers, bayesianize, multiplied
from pyro_compress.bayes.priors import PRIORS, Start
from pyro_compress.types import WeightDraw

MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(3, 4), (3,)),
    "linear on sequences": (nn.Linear(3, 4), (2, 3)),
    "conv1d": (nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), (3, 5)),
    "conv2d": (nn.Conv2d(3, 4, 2, stride=2, padding=1), (3, 4, 4)),
    "conv2d dilated": (nn.Conv2d(2, 4, 2, dilation=2, padding="same", padding_mode="reflect"), (2, 4, 4)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 3, 3, 2)),
}
PRIOR_CASES = [
    ("gaussian", "weight", "none"),
    ("gaussian", "weight", "same"),
    ("spike-and-slab", "weight", "none"),
    ("normal-jeffreys", "input", "none"),
    ("horseshoe", "input", "none"),
    ("horseshoe", "output", "same"),
    ("horseshoe", "weight", "none"),
]
DRAWS = 600
BRUTE = 20_000


def problem(name: str, prior: str, grouping: str, bias: str) -> tuple[BayesLayer, MeanField, Tensor]:
    """A layer, a guide with visible spread in every site, and two examples."""
    torch.manual_seed(5)
    module, shape = MODULES[name]
    net = bayesianize(module, PRIORS[prior], grouping, None if bias == "none" else PRIORS[prior])
    assert isinstance(net, BayesLayer)
    starts: dict[str, Start] = {}
    for part, row in net.parts:
        for site, start in row.start(part, torch.randn(part.weight), 0.3).items():
            scale = 0.1 + 0.1 * torch.rand_like(start.scale)
            starts[site] = Start(start.family, start.loc, scale * (start.loc.abs() if site.endswith(".scale") else 1))
    return net, MeanField(starts), torch.randn(2, *shape)


def brute_force(net: BayesLayer, guide: MeanField, x: Tensor) -> Tensor:
    """Outputs `(BRUTE, 2, ...)` of independent whole-weight draws, through the prior's own formula."""

    def drawn(shape, prior):
        values = {
            site: guide.marginal(site).sample((BRUTE,)) for site in guide.families if site.startswith(f"{shape.name}.")
        }
        return pyro.poutine.block(pyro.poutine.condition(prior.draw, values))(shape)

    weight = multiplied(drawn(*net.parts[0]))
    if len(net.parts) == 1:
        return torch.vmap(lambda w: net.op.function(x, w, net.bias))(weight).detach()
    bias = multiplied(drawn(*net.parts[1]))
    return torch.vmap(lambda w, b: net.op.function(x, w, b))(weight, bias).detach()


@torch.no_grad()
def estimated(estimator: str, net: BayesLayer, guide: MeanField, x: Tensor) -> Tensor:
    """Outputs `(DRAWS, 2, ...)` of the estimator, the whole program run anew each time."""
    outputs = []
    with pyro.validation_enabled(False):
        for _ in range(DRAWS):
            with ESTIMATORS[estimator](guide.marginal, bayes_layers(net), len(x)):
                trace = pyro.poutine.trace(guide).get_trace(x)
                outputs.append(pyro.poutine.replay(net, trace=trace)(x))
    return torch.stack(outputs)


@pytest.mark.parametrize("estimator", ["weight", "local", "flipout"])
@pytest.mark.parametrize(("prior", "grouping", "bias"), PRIOR_CASES)
@pytest.mark.parametrize("name", MODULES)
def test_mean_and_variance_of_outputs(name: str, prior: str, grouping: str, bias: str, estimator: str) -> None:
    """600 draws against 20,000: means within 5 standard errors, standard deviations within 30 % (5 × 1/√(2·600) × 2).

    The factor 2 stands for the heavier-than-normal tails of products of log-normals.
    """
    net, guide, x = problem(name, prior, grouping, bias)
    wanted, got = brute_force(net, guide, x), estimated(estimator, net, guide, x)
    assert got.shape[1:] == wanted.shape[1:]
    error = (got.mean(0) - wanted.mean(0)).abs() / (wanted.std(0) * math.sqrt(1 / DRAWS + 1 / BRUTE))
    assert error.max() < 5
    assert (got.std(0) / wanted.std(0) - 1).abs().max() < 0.3


POSITIONS = {"conv": (nn.Conv1d(1, 1, 1), (1, 8)), "sequence": (nn.Linear(1, 1), (8, 1))}


@pytest.mark.parametrize(("estimator", "together"), [("weight", True), ("flipout", True), ("local", False)])
@pytest.mark.parametrize("name", POSITIONS)
def test_positions_share_a_weight_except_under_local_reparameterization(
    name: str, estimator: str, together: bool
) -> None:
    """The mean of eight positions with the same input: one weight has all of its variance there, eight an eighth."""
    module, shape = POSITIONS[name]
    net = bayesianize(module, PRIORS["gaussian"])
    assert isinstance(net, BayesLayer)
    guide = MeanField(
        {"weight.raw": Start(Normal, torch.ones_like(module.weight), torch.full_like(module.weight, 0.5))}
    )
    means = estimated(estimator, net, guide, torch.ones(2, *shape)).flatten(2).mean(2)[:, 0]
    # 600 draws: four standard errors of a variance are 4 · √(2 / 600), a quarter
    assert float(means.var()) == pytest.approx(0.25 if together else 0.25 / 8, rel=0.25)


@pytest.mark.parametrize(("prior", "grouping", "per_example"), [
    ("gaussian", "weight", False), ("horseshoe", "input", True), ("horseshoe", "output", True),
    ("horseshoe", "weight", False),
])  # fmt: skip
def test_which_draws_are_per_example(prior: str, grouping: str, per_example: bool) -> None:
    """Equal examples get outputs of their own; group scales too, where a weight per example is not needed for it."""
    net, guide, x = problem("linear", prior, grouping, "none")
    same, outputs = x[:1].repeat(6, 1), []
    for spread in (0.3, 1e-9):  # without the raw weights' noise only the scales' is left, and the floor's, 1e-8
        guide.log_scale["weight/raw"].data.fill_(math.log(spread))
        with pyro.validation_enabled(False), ESTIMATORS["local"](guide.marginal, bayes_layers(net), 6):
            trace = pyro.poutine.trace(guide).get_trace()
            outputs.append(pyro.poutine.replay(net, trace=trace)(same))
    assert len(outputs[0].unique(dim=0)) == 6
    assert (outputs[1].std(0).max() > 1e-3) == per_example


def second_moment(net: BayesLayer, guide: MeanField, x: Tensor) -> Tensor:
    """Sum of E[y²] over the outputs of a linear layer without a random bias, in closed form."""
    q, bias = guide.marginal("weight.raw"), net.bias
    factors = net.prior.factors("weight", guide.marginal) if net.prior.factors else ()
    shared = [factor for factor in factors if factor.loc.numel() == 1]
    own = [factor for factor in factors if factor.loc.numel() > 1]
    first, second = torch.ones(1, 1), torch.ones(1, 1)  # of the groups' own scale
    for factor in own:
        first, second = factor.mean, factor.mean.square() + factor.variance
    power, level = torch.ones(1), torch.ones(1)  # of the layer's
    for factor in shared:
        level, power = factor.mean.flatten(), (factor.mean.square() + factor.variance).flatten()
    squares = q.loc.square() + q.scale.square()
    if net.shape.grouping == "output":
        mean = x @ q.loc.T
        linear = second.T * (x.square() @ q.scale.square().T + mean.square())
        mean = mean * first.T
    else:
        mean = x @ (first * q.loc).T
        linear = x.square() @ (second * squares - (first * q.loc).square()).T + mean.square()
    return (power * linear + 2 * level * mean * bias + bias.square()).sum()


@pytest.mark.parametrize("estimator", ["weight", "local", "flipout"])
@pytest.mark.parametrize(("prior", "grouping"), [
    ("gaussian", "weight"), ("normal-jeffreys", "input"), ("normal-jeffreys", "output"), ("horseshoe", "input"),
    ("horseshoe", "output"), ("horseshoe", "weight"),
])  # fmt: skip
def test_gradients_are_unbiased(prior: str, grouping: str, estimator: str) -> None:
    """600 gradients of Σ y² against that of its expectation, in closed form: every parameter, 5 standard errors."""
    net, guide, x = problem("linear", prior, grouping, "none")
    parameters = list(guide.parameters())
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(second_moment(net, guide, x), parameters)])
    drawn = []
    with pyro.validation_enabled(False):
        for _ in range(DRAWS):
            with ESTIMATORS[estimator](guide.marginal, bayes_layers(net), len(x)):
                trace = pyro.poutine.trace(guide).get_trace(x)
                y = pyro.poutine.replay(net, trace=trace)(x)
            found = torch.autograd.grad(y.square().sum(), parameters)
            drawn.append(torch.cat([g.flatten() for g in found]))
    got = torch.stack(drawn)
    error = (got.mean(0) - wanted).abs() / (got.std(0) / math.sqrt(DRAWS) + 1e-6)
    assert error.max() < 5


def test_multiplied() -> None:
    raw = torch.ones(2, 3)
    assert multiplied(WeightDraw(None, raw)) is raw
    assert multiplied(WeightDraw(torch.full((1, 3), 2.0), raw)).tolist() == [[2.0] * 3] * 2
