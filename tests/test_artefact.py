"""The published artefact, rebuilt in a few lines of our own: docs/results/artefact.md in executable form."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_compress.bayes.fit import minibatch_weight
from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.graph.network import Network
from pyro_compress.metrics import evaluate, logits_of
from pyro_compress.networks.draws import masked
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.types import Posterior, Splits


class Gaussian:
    """A variational posterior that keeps the tensors it is given."""

    def __init__(self, mu: Tensor, rho: Tensor):
        self.mu, self.rho = mu, rho


class CapturedLinear(nn.Module):
    """A layer whose forward pass reads `self.weight.mu`, captured when it was built, never `self.weight_mu` again."""

    def __init__(self, mu: Tensor, std: Tensor, bias: Tensor):
        super().__init__()
        self.weight_mu = nn.Parameter(mu.clone())
        self.weight_rho = nn.Parameter(torch.log(torch.expm1(std)))
        self.weight = Gaussian(self.weight_mu, self.weight_rho)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.mu, self.bias)


@pytest.fixture(scope="module")
def posterior(tmp_path_factory: pytest.TempPathFactory) -> Posterior:
    config = FitConfig(prior="gaussian", hidden=(30,), epochs=12, device="cpu", threads=1)
    return fit_run(config, tmp_path_factory.mktemp("artefact") / "run").posterior


@pytest.fixture
def network(posterior: Posterior) -> nn.Sequential:
    (first, one), (second, two) = posterior.layers.items()
    bias = posterior.dense
    return nn.Sequential(
        nn.Flatten(), CapturedLinear(one.mean, one.std, bias[first.replace("weight", "bias")]),
        nn.ReLU(), CapturedLinear(two.mean, two.std, bias[second.replace("weight", "bias")]),
    )  # fmt: skip


def layers(network: nn.Sequential) -> list[CapturedLinear]:
    return [module for module in network if isinstance(module, CapturedLinear)]


def test_replacing_an_attribute_that_is_not_read_changes_nothing(
    network: nn.Sequential, posterior: Posterior, digits: Splits
) -> None:
    before = logits_of(network, digits.test.x)
    masks = masks_at(scores(posterior, "snr"), 0.98)
    for layer, mask in zip(layers(network), masks.values(), strict=True):
        layer.weight_mu = nn.Parameter(layer.weight_mu * mask)
    stored = torch.cat([layer.weight_mu.detach().flatten() for layer in layers(network)])
    assert float((stored == 0).float().mean()) == pytest.approx(0.98, abs=1e-3)  # what a sparsity report would say
    assert torch.equal(logits_of(network, digits.test.x), before)  # what was evaluated
    with torch.no_grad():
        for layer in layers(network):  # pruning in place reaches the forward pass
            layer.weight.mu.copy_(layer.weight_mu)
    assert not torch.equal(logits_of(network, digits.test.x), before)


def test_ours_evaluates_the_pruned_network(network: nn.Sequential, posterior: Posterior, digits: Splits) -> None:
    masks = masks_at(scores(posterior, "snr"), 0.9)
    pruned = masked(posterior, masks)
    ours = Network(pruned.graph, pruned.tensors).eval()
    with torch.no_grad():
        for layer, mask in zip(layers(network), masks.values(), strict=True):
            layer.weight.mu.mul_(mask)
    theirs, found = logits_of(network, digits.test.x), logits_of(ours, digits.test.x)
    assert (found - theirs).abs().max() < 1e-5 * theirs.abs().max()
    unpruned = Network(posterior.graph, posterior.tensors).eval()
    assert evaluate(ours, digits, "test").accuracy < evaluate(unpruned, digits, "test").accuracy - 0.1


def test_rho_in_place_of_sigma_removes_the_largest_weights(posterior: Posterior, digits: Splits) -> None:
    wrong = {
        name: layer.mean.abs() / torch.log(torch.expm1(layer.std.double())) for name, layer in posterior.layers.items()
    }
    assert all(bool((score <= 0).all()) for score in wrong.values())  # rho is negative as long as sigma < log 2
    right = scores(posterior, "snr")
    largest = {name: ~mask for name, mask in masks_at({n: -s for n, s in right.items()}, 0.1).items()}
    kept = masks_at(wrong, 0.5)
    lost = sum(int((largest[name] & ~kept[name]).sum()) for name in right)
    assert lost > 0.8 * sum(int(mask.sum()) for mask in largest.values())
    accuracy = {
        label: evaluate(Network(p.graph, p.tensors).eval(), digits, "test").accuracy
        for label, p in (("wrong", masked(posterior, kept)), ("right", masked(posterior, masks_at(right, 0.5))))
    }
    assert accuracy["wrong"] < 0.3 < 0.75 < accuracy["right"]


def test_a_pruned_rho_of_zero_is_a_wide_weight() -> None:
    assert float(F.softplus(torch.zeros(()))) == pytest.approx(0.6931, abs=1e-4)


def test_wrapping_a_result_in_a_new_tensor_drops_its_gradient() -> None:
    rho = torch.tensor(-3.0, requires_grad=True)
    entropy = torch.log(F.softplus(rho))
    assert torch.autograd.grad(entropy, rho)[0] > 0
    assert not torch.tensor(entropy.item()).requires_grad  # what `torch.tensor(log_prob)` leaves of it


def test_minibatch_weights_add_up_to_one_epoch() -> None:
    batches = 600
    published = [2.0 ** (batches - i) / 2.0 ** (batches - 1) for i in range(batches)]
    assert sum(published) == pytest.approx(4)
    for schedule in ("uniform", "blundell"):
        ours = math.fsum(minibatch_weight(schedule, i, batches) for i in range(batches)) / batches
        assert ours == pytest.approx(1)
