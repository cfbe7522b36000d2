"""What bayesianize does to a module tree, and what it refuses."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.guides import MeanField, starts_of
from pyro_compress.bayes.layers import BayesLayer, bayes_layers, bayesianize
from pyro_compress.bayes.model import classifier
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.graph.network import Network
from pyro_compress.graph.statistics import batch_statistics
from pyro_compress.metrics import evaluate
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.types import Data, Splits

HORSESHOE, GAUSSIAN = PRIORS["horseshoe"], PRIORS["gaussian"]


class Block(nn.Module):
    """A residual block with functional calls, batch norm and a nested container."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 3, padding=1), "norm": nn.BatchNorm2d(2)})
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.body["norm"](self.body["conv"](x)))
        return self.head(x.mean((2, 3)).flatten(1))


def test_only_supported_layers_change_and_the_original_stays() -> None:
    net = Block()
    before = copy.deepcopy(net.state_dict())
    bayes = bayesianize(net, HORSESHOE)
    assert [layer.shape.name for layer in bayes_layers(bayes)] == ["body.conv.weight", "head.weight"]
    assert type(bayes.get_submodule("body.norm")) is nn.BatchNorm2d
    assert type(net.head) is nn.Linear
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    # every tensor that has no prior keeps its name
    assert set(bayes.state_dict()) == set(before) - {"body.conv.weight", "head.weight"}
    assert bayes.get_parameter("head.bias") is not net.head.bias


def test_keep_and_bias_prior() -> None:
    bayes = bayesianize(Block(), GAUSSIAN, bias_prior=GAUSSIAN, keep=("body.*",))
    assert [layer.shape.name for layer in bayes_layers(bayes)] == ["head.weight"]
    (head,) = bayes_layers(bayes)
    assert head.bias is None
    assert [shape.name for shape, _ in head.parts] == ["head.weight", "head.bias"]


def test_a_single_layer_is_a_network() -> None:
    bayes = bayesianize(nn.Linear(3, 2), GAUSSIAN)
    assert isinstance(bayes, BayesLayer)
    assert bayes.shape.name == "weight"


SHARED = nn.Linear(3, 3)
TIED = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
TIED[1].weight = TIED[0].weight


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (nn.Sequential(nn.ReLU()), {}, "no layer to put a prior on .supported: Conv1d, Conv2d, Conv3d, Linear"),
        (nn.Linear(3, 2), {"keep": ("*",)}, "no layer to put a prior on"),
        (nn.Sequential(SHARED, SHARED), {}, "0 and 1 share their weight"),
        (TIED, {}, "0 and 1 share their weight"),
        (nn.Linear(3, 2), {"grouping": "column"}, "allowed: input, output, filter, weight"),
    ],
)
def test_refusals(net: nn.Module, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bayesianize(net, HORSESHOE, **options)


def test_a_grouped_convolution_takes_groups_of_outputs() -> None:
    """Entry (o, j) of its weight reads channel j of o's own group: the second axis is no input channel."""
    net = bayesianize(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8)), HORSESHOE, "input")
    assert [layer.shape.gate for layer in bayes_layers(net)] == [(1, 4, 1, 1), (8, 1, 1, 1)]


def test_filters_are_outputs_of_convolutions_and_inputs_of_linear_layers() -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(5, 6))
    found = bayes_layers(bayesianize(net, HORSESHOE, "filter"))
    assert [layer.shape.gate for layer in found] == [(3, 1, 1), (8, 1, 1, 1), (8, 1, 1, 1), (1, 5)]
    assert [layer.shape.grouping for layer in found] == ["output", "output", "output", "input"]


def test_state_round_trips() -> None:
    net = bayesianize(Block(), HORSESHOE)
    weights = dict(Block().state_dict())
    model, guide = classifier(net, 10), MeanField(starts_of(net, weights, None))
    state = {**model.state_dict(), **{f"guide.{key}": value for key, value in guide.state_dict().items()}}
    other = MeanField(starts_of(net, dict(Block().state_dict()), None))
    other.load_state_dict(guide.state_dict())
    assert all(
        torch.equal(other.state_dict()[key.removeprefix("guide.")], v) for key, v in state.items() if "guide" in key
    )


@pytest.mark.parametrize("net", ["residual", "depthwise"])
@pytest.mark.parametrize("prior", ["horseshoe", "log-uniform", "spike-and-slab"])
@pytest.mark.parametrize("estimator", ["weight", "local", "flipout"])
def test_a_convolutional_network_fits(prior: str, estimator: str, net: str) -> None:
    y = torch.arange(240) % 3
    x = torch.randn(240, 2, 6, 6) * 0.5 + torch.stack([y == 1, y == 2], 1)[:, :, None, None]
    data = Data(x, y)
    splits = Splits(data, data, data, ("a", "b", "c"))
    config = FitConfig(prior=prior, estimator=estimator, epochs=4, batch_size=60, lr=3e-2, device="cpu", samples=2)
    module = ConvBlock() if net == "residual" else depthwise()
    fit = fit_posterior(module, splits, resolve(config, 240))
    assert fit.history[-1].validation_accuracy > 0.7  # a third is chance


def test_batch_norm_that_is_not_there_cannot_be_frozen(digits: Splits) -> None:
    config = resolve(FitConfig(batch_norm="frozen", epochs=1), len(digits.train))
    with pytest.raises(ValueError, match="has no batch norm whose statistics could be frozen: leave --batch-norm out"):
        fit_posterior(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, config)


@pytest.mark.parametrize("batch_norm", ["update", "frozen"])
def test_batch_norm_has_the_statistics_of_the_posterior_mean(batch_norm: str) -> None:
    """With `update` those of the training set under the posterior mean; with `frozen` those it came with."""
    x = torch.randn(300, 2, 6, 6) + 1
    data = Data(x, torch.arange(300) % 3)
    splits, net = Splits(data, data, data, ("a", "b", "c")), ConvBlock()
    net.norm.running_mean.fill_(0.7)
    config = FitConfig(prior="log-uniform", epochs=2, device="cpu", batch_norm=batch_norm, pretrain_epochs=0)
    fit = fit_posterior(net, splits, resolve(config, 300))
    posterior = extract(fit)
    wanted = net.state_dict() if batch_norm == "frozen" else batch_statistics(fit.graph, posterior.tensors, x)
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.allclose(posterior.dense[name], wanted[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(posterior.dense[name], fit.model.net.state_dict()[name])
    scored = evaluate(Network(fit.graph, posterior.tensors).eval(), splits, "validation")
    assert scored.nll_nats == pytest.approx(fit.history[-1].validation_nll_nats, rel=1e-5)


def depthwise() -> nn.Module:
    """Two outputs per channel, then groups of four."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(16, 8, 1, groups=4), nn.Flatten(), nn.Linear(288, 3),
    )  # fmt: skip


class ConvBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + torch.relu(self.norm(self.conv(x)))).flatten(1))
