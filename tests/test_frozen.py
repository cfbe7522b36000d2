"""What is frozen (`requires_grad=False`) keeps its value, and has neither prior nor posterior."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from test_checkpoint import check_stopped
from torch import nn

import pyro_compress as pc
import pyro_compress.bayes.fit
from pyro_compress.bayes.capture import captured
from pyro_compress.bayes.layers import bayes_layers
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.settings import FitConfig
from pyro_compress.types import Data, Splits


def network() -> nn.Module:
    """A backbone, frozen whole, and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    for part in net[:2]:
        part.requires_grad_(False)
    return net


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(400, 16)).astype("float32")
    return x, (x[:, 0] > 0).astype(int)


FROZEN = ("0.weight", "0.bias", "1.weight", "1.bias")
WAYS: list[dict[str, Any]] = [
    *({"prior": prior} for prior in (*PRIORS, "none")),
    *({"prior": "gaussian", "estimator": one} for one in ("weight", "local", "flipout")),
    {"prior": "gaussian", "bias_prior": "same"},
    {"prior": "gaussian", "optimizer": "natural"},
    {"prior": "gaussian", "guide": "auto-normal"},
    {"prior": "gaussian", "guide": "auto-diagonal"},
    {"prior": "log-uniform", "shrink_every": 1, "epochs": 4},
    {"prior": "none", "pruning": "gradual", "prune_to": 0.5},
    {"prior": "none", "optimizer": "sgd", "weight_decay": 0.01, "lr": 0.1},
]


def check(posterior: pc.Posterior, net: nn.Module) -> None:
    """Frozen tensors are those of the network, bit by bit, without spread; others have moved."""
    own = net.state_dict()
    for name in FROZEN:
        assert torch.equal(posterior.tensors[name], own[name]), name
    assert not posterior.layers["0.weight"].std.any()
    assert not torch.equal(posterior.layers["5.weight"].mean, own["5.weight"])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_keeps_its_value(way: dict[str, Any]) -> None:
    net = network()
    fitted = pc.fit(net, data(), **({"epochs": 2, "lr": 3e-2} | way))
    check(fitted.posterior, net)
    if way["prior"] == "none":
        return
    assert (fitted.posterior.layers["5.weight"].std > 0).all()
    drawn = [shape.name for layer in bayes_layers(fitted.fit.model.net) for shape, _ in layer.parts]
    biases = ["3.bias", "5.bias"] if way.get("bias_prior") == "same" else []
    assert sorted(drawn) == sorted(["3.weight", "5.weight", *biases])
    said = [text for text in fitted.doubts if "frozen" in text]
    assert said == ["frozen (requires_grad=False), so without a prior: 0"]


def test_captured_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step as one graph leaves it where it is too, and does what the eager step does."""
    monkeypatch.setattr(pyro_compress.bayes.fit, "captured", functools.partial(captured, compiled=False))
    found = []
    for compiled in ("off", "on"):
        net = network()
        fitted = pc.fit(net, data(), prior="gaussian", epochs=2, compile=compiled)
        check(fitted.posterior, net)
        found.append(fitted.posterior)
    one, other = found
    for name in ("3.weight", "5.weight"):
        assert torch.allclose(one.layers[name].mean, other.layers[name].mean, rtol=1e-3, atol=1e-4)


def test_a_bias_alone() -> None:
    """Its weight has a prior, it has none, though biases do."""
    net = network().requires_grad_(True)
    net[0].bias.requires_grad_(False)
    fitted = pc.fit(net, data(), prior="gaussian", bias_prior="same", epochs=2)
    assert torch.equal(fitted.posterior.tensors["0.bias"], net[0].bias)
    assert (fitted.posterior.layers["0.weight"].std > 0).all()


def test_units_that_leave() -> None:
    """Units of a frozen layer that nothing reads leave; the rows that stay are what they were."""
    net = network()
    with torch.no_grad():
        net[3].weight[:, :4] = 0
    fitted = pc.fit(
        net, data(), prior="log-uniform", epochs=4, shrink_every=1, pretrain_epochs=0, init_scale=0.1, lr=1e-3
    )
    kept = fitted.posterior.tensors["0.weight"]
    assert 0 < len(kept) < 8
    rows = [bool((net[0].weight == row).all(1).any()) for row in kept]
    assert all(rows)
    assert not fitted.posterior.layers["0.weight"].std.any()


def test_attention_that_is_split() -> None:
    """What was frozen in torch's own attention is so in the layers that it becomes."""
    given = nn.MultiheadAttention(4, 2, batch_first=True)
    given.in_proj_weight.requires_grad_(False)
    given.out_proj.bias.requires_grad_(False)
    split = pc.split_attention(nn.Sequential(given))[0]
    frozen = {name for name, one in split.named_parameters() if not one.requires_grad}
    assert frozen == {"q.weight", "k.weight", "v.weight", "out_proj.bias"}


def test_shared_and_embedded() -> None:
    """Tensors that are drawn before the network runs."""
    table = nn.Embedding(9, 4)
    net = nn.Sequential(table, nn.Flatten(), nn.Linear(12, 2))
    table.weight.requires_grad_(False)
    x = np.random.default_rng(0).integers(0, 9, (200, 3))
    fitted = pc.fit(net, (x, (x[:, 0] > 4).astype(int)), prior="gaussian", epochs=2)
    assert torch.equal(fitted.posterior.tensors["0.weight"], table.weight)
    assert (fitted.posterior.layers["2.weight"].std > 0).all()


def backbone(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """By its name, for fits that go on."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, classes))
    net[1].requires_grad_(False)
    return net


@pytest.mark.parametrize("shrink_every", [0, 1])
def test_stopped_anywhere_it_ends_the_same(shrink_every: int, tmp_path: Path) -> None:
    config = FitConfig(prior="log-uniform", net=f"{__name__}:backbone", epochs=4, shrink_every=shrink_every, lr=3e-2)
    full = pc.load_splits("digits")
    splits = Splits(Data(full.train.x[:320], full.train.y[:320]), full.validation, full.test, full.classes)
    check_stopped(config, splits, tmp_path, [3, 11])


@pytest.mark.parametrize("prior", ["gaussian", "none"])
def test_nothing_left_to_fit(prior: str) -> None:
    with pytest.raises(ValueError, match="every parameter of the network is frozen"):
        pc.fit(network().requires_grad_(False), data(), prior=prior, epochs=1)


def test_no_weight_left_for_a_prior() -> None:
    net = network().requires_grad_(False)
    net[5].bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"without a prior: 0, 3, 5; no other weight could have one"):
        pc.fit(net, data(), prior="gaussian", epochs=1)


def test_pruning_while_training_needs_weights() -> None:
    net = network().requires_grad_(False)
    net[5].bias.requires_grad_(True)
    with pytest.raises(ValueError, match="every weight is frozen"):
        pc.fit(net, data(), prior="none", pruning="gradual", prune_to=0.5, epochs=1)


def test_a_program_of_ones_own() -> None:
    """`pyro.infer.SVI` finds no parameter of what is frozen."""
    net = network()
    before = copy.deepcopy(net.state_dict())
    model, guide = pc.program(net, data(), prior="gaussian")
    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    x, y = model.example
    for _ in range(5):
        svi.step(x, y)
    own = model.net.state_dict()
    assert all(torch.equal(own[name], before[name]) for name in FROZEN)
    assert not any("net.0." in name for name in pyro.get_param_store())


def test_compresses() -> None:
    """As any tensor without a posterior: it is rounded by what the data say, and its zeros stay."""
    net = network()
    fitted = pc.fit(net, data(), prior="gaussian", epochs=3)
    small = fitted.compress(tolerance=0.05)
    assert small.module().state_dict().keys()
    assert small.bytes < 4 * sum(one.numel() for one in net.parameters())
