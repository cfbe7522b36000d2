"""Local reparameterization and flipout against brute-force weight sampling, for every operation and grouping."""

import math

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from pyro_compress.bayes.estimators import COARSE, ESTIMATORS, estimator_of
from pyro_compress.bayes.guides import MeanField
from pyro_compress.bayes.layers import BayesLayer, bayes_layers, bayesianize, multiplied
from pyro_compress.bayes.priors import PRIORS, Start
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
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
DRAWS = 4_000
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


class OutOfPlace(TorchFunctionMode):
    """Random numbers as vmap takes them: it has none that are written into a tensor it does not map over."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.normal_:
            return torch.randn(args[0].shape)
        if func is Tensor.bernoulli_:
            return torch.bernoulli(torch.full(args[0].shape, args[1]))
        return func(*args, **(kwargs or {}))


class Once(nn.Module):
    """One run of the whole program, guide and network, as an estimator has it."""

    def __init__(self, estimator: str, net: BayesLayer, guide: MeanField):
        super().__init__()
        self.estimator, self.net, self.guide = estimator, net, guide

    def forward(self, x: Tensor) -> Tensor:
        name, _, precision = self.estimator.partition(" ")
        with estimator_of(name, precision)(self.guide.marginal, bayes_layers(self.net), len(x)):
            trace = pyro.poutine.trace(self.guide).get_trace(x)
            return pyro.poutine.replay(self.net, trace=trace)(x)


def estimated(
    estimator: str, net: BayesLayer, guide: MeanField, x: Tensor, own: dict[str, Tensor] | None = None
) -> Tensor:
    """Outputs `(DRAWS, 2, ...)` of as many runs at once, each with noise, and `own` parameters of the guide."""
    once = Once(estimator, net, guide)

    def run(index: Tensor, own: dict[str, Tensor]) -> Tensor:
        return functional_call(once, {f"guide.{name}": value for name, value in own.items()}, (x,))

    with OutOfPlace(), pyro.validation_enabled(False):
        return torch.vmap(run, randomness="different")(torch.arange(DRAWS), own or {})


@pytest.mark.parametrize("estimator", ["weight", "local", "flipout"])
@pytest.mark.parametrize(("prior", "grouping", "bias"), PRIOR_CASES)
@pytest.mark.parametrize("name", MODULES)
def test_mean_and_variance_of_outputs(name: str, prior: str, grouping: str, bias: str, estimator: str) -> None:
    """4,000 draws against 20,000: means and standard deviations within 5 standard errors, about 12 % for the latter.

    Those of standard deviations are taken as twice the normal ones: products of log-normals have heavier tails.
    """
    net, guide, x = problem(name, prior, grouping, bias)
    wanted, got = brute_force(net, guide, x), estimated(estimator, net, guide, x).detach()
    assert got.shape[1:] == wanted.shape[1:]
    errors = math.sqrt(1 / DRAWS + 1 / BRUTE)
    assert ((got.mean(0) - wanted.mean(0)).abs() / (wanted.std(0) * errors)).max() < 5
    assert (got.std(0) / wanted.std(0) - 1).abs().max() < 5 * 2 * errors / math.sqrt(2)


@pytest.mark.parametrize(("name", "prior", "grouping", "bias"), [
    ("linear", "horseshoe", "input", "none"), ("conv2d", "gaussian", "weight", "same"),
    ("linear on sequences", "horseshoe", "weight", "same"),
])  # fmt: skip
def test_variances_of_few_digits(name: str, prior: str, grouping: str, bias: str) -> None:
    """With the same noise: outputs and gradients are those of float32 within bfloat16's 8 bits, no closer than they."""
    net, guide, x = problem(name, prior, grouping, bias)
    found = []
    for precision in ("float32", COARSE):
        torch.manual_seed(0)
        x.requires_grad_()
        outputs = Once(f"local {precision}", net, guide)(x)
        assert outputs.dtype == torch.float32
        gradients = torch.autograd.grad(outputs.square().sum(), [x, *guide.parameters()], allow_unused=True)
        found.append([outputs.detach(), *(one for one in gradients if one is not None)])
    for fine, coarse in zip(*found, strict=True):
        assert float((coarse - fine).norm()) <= 2**-7 * float(fine.norm())
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("given", [{"estimator": "weight"}, {"estimator": "flipout"}, {"guide": "auto-normal"}])
def test_precision_of_variances_that_there_are_not(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="precision 'bfloat16-variances' is of the products of variances, and est"):
        resolve(FitConfig(prior="gaussian", precision=COARSE, **given), 1000)
    with pytest.raises(ValueError, match="precision 'bfloat16-variances' goes with a prior only"):
        resolve(FitConfig(prior="none", precision=COARSE), 1000)


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
    # 4,000 draws: four standard errors of a variance are 4 · √(2 / 4000), a tenth
    assert float(means.detach().var()) == pytest.approx(0.25 if together else 0.25 / 8, rel=0.1)


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
    """4,000 gradients of Σ y² against that of its expectation, in closed form: every parameter, 5 standard errors."""
    net, guide, x = problem("linear", prior, grouping, "none")
    parameters = list(guide.parameters())
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(second_moment(net, guide, x), parameters)])
    own = {name: p.detach().expand(DRAWS, *p.shape).clone().requires_grad_() for name, p in guide.named_parameters()}
    y = estimated(estimator, net, guide, x, own)
    got = torch.cat([g.flatten(1) for g in torch.autograd.grad(y.square().sum(), list(own.values()))], 1)
    error = (got.mean(0) - wanted).abs() / (got.std(0) / math.sqrt(DRAWS) + 1e-6)
    assert error.max() < 5


def test_multiplied() -> None:
    raw = torch.ones(2, 3)
    assert multiplied(WeightDraw(None, raw)) is raw
    assert multiplied(WeightDraw(torch.full((1, 3), 2.0), raw)).tolist() == [[2.0] * 3] * 2
