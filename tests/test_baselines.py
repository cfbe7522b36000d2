"""Baselines: torch's own pruning and optimisers as oracles, the rules of pruning while training by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune

from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.graph.capture import capture
from pyro_compress.graph.ir import convolves
from pyro_compress.networks.nets import build_net, mlp
from pyro_compress.runs.config import resolve
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import FitConfig
from pyro_compress.training.baselines import fit_baseline
from pyro_compress.training.minibatches import Minibatches
from pyro_compress.training.point import OPTIMIZERS, SCHEDULES, PointPlan, dropped_inputs, train_point
from pyro_compress.training.sparse import (
    PRUNING,
    RENEW_STEPS,
    RULES,
    Task,
    gradual,
    iterative,
    pruned_while_training,
    rewind,
)
from pyro_compress.types import Data, Splits


def zeros(tensors: dict[str, torch.Tensor]) -> float:
    return sum(int((t == 0).sum()) for t in tensors.values()) / sum(t.numel() for t in tensors.values())


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9, 0.98])
def test_magnitude_masks_are_those_of_torch(sparsity: float, digits: Splits) -> None:
    config = resolve(FitConfig(prior="none", epochs=2, hidden=(30, 20), device="cpu"), len(digits.train))
    posterior, _ = fit_baseline(mlp((1, 8, 8), 10, (30, 20)), digits, config)
    ours = masks_at(scores(posterior, "magnitude"), sparsity)
    net = mlp((1, 8, 8), 10, (30, 20))
    net.load_state_dict(posterior.tensors)
    layers = [(module, "weight") for module in net if isinstance(module, nn.Linear)]
    torch_prune.global_unstructured(layers, pruning_method=torch_prune.L1Unstructured, amount=sparsity)
    for path, module in net.named_children():
        if isinstance(module, nn.Linear):
            assert torch.equal(module.weight_mask.bool(), ours[f"{path}.weight"])


def test_rules() -> None:
    assert [gradual(p, 0.9) for p in (0, 0.2, 0.7, 1)] == pytest.approx([0, 0, 0.9, 0.9])
    assert gradual(0.45, 0.8) == pytest.approx(0.8 * (1 - 0.5**3))  # Zhu & Gupta 2017, eq. 1, half way
    assert iterative(0.499, 0.9) == 0
    kept = [1 - iterative(p, 0.9) for p in (0.51, 0.61, 0.71, 0.81, 0.91)]
    assert kept == pytest.approx([0.1 ** (k / 5) for k in range(1, 6)])
    assert [rewind(p, 0.9) for p in (0, 0.1666, 1)] == pytest.approx([0, 0, 0.9])
    for rule in RULES.values():
        values = [rule(i / 200, 0.95) for i in range(201)]
        assert values == sorted(values)
        assert values[-1] == pytest.approx(0.95)


@pytest.mark.parametrize("pruning", sorted(PRUNING))
def test_pruned_while_training(pruning: str, digits: Splits) -> None:
    schedule = "constant" if pruning == "rewind" else "late-decay"
    config = FitConfig(
        prior="none", epochs=30, hidden=(30, 20), pruning=pruning, prune_to=0.8, device="cpu", lr_schedule=schedule,
        lr=3e-3,
    )  # fmt: skip
    config = resolve(config, len(digits.train))
    posterior, history = fit_baseline(mlp((1, 8, 8), 10, (30, 20)), digits, config)
    assert zeros({name: layer.mean for name, layer in posterior.layers.items()}) == pytest.approx(0.8, abs=1e-3)
    assert all(float((t == 0).float().mean()) < 0.1 for name, t in posterior.dense.items())  # biases stay
    assert history[-1].validation_accuracy > 0.7  # chance is 0.1
    kept = masks_at(scores(posterior, "magnitude"), 0.8)  # pruning again at the same sparsity takes nothing more
    assert all(torch.equal(kept[name], layer.mean != 0) for name, layer in posterior.layers.items())


def test_rewinding_goes_back_to_the_first_weights() -> None:
    net = mlp((1, 2, 2), 3, (5,))
    first = copy.deepcopy(net.state_dict())
    after_step = pruned_while_training("rewind", Task(net, ["1.weight", "3.weight"], 0.8, 60))(0)
    optimizer = torch.optim.Adam(net.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    trained = copy.deepcopy(net.state_dict())
    optimizer.state[net[1].weight]["step"] = torch.tensor(9.0)
    after_step(1, optimizer)
    assert all(torch.equal(value, trained[name]) for name, value in net.state_dict().items())
    after_step(10, optimizer)
    assert not optimizer.state
    for name, value in net.state_dict().items():
        assert torch.equal(value, first[name] * (value != 0))
    weights = {name: net.get_parameter(name) for name in ("1.weight", "3.weight")}
    assert zeros(weights) == pytest.approx(1 - 0.2**0.2, abs=0.03)
    smallest = torch.cat([trained[n][weights[n] == 0].abs().flatten() for n in weights]).max()
    largest = torch.cat([trained[n][weights[n] != 0].abs().flatten() for n in weights]).min()
    assert smallest < largest  # chosen by the trained weights, not by the first ones


def test_surgery_by_hand() -> None:
    """All weights move by the gradient at W ∘ T; one that is cut comes back where it grows (Guo et al. 2016, eq. 3)."""
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 20, bias=False), nn.Linear(20, 3, bias=False))
    names, total = ["0.weight", "1.weight"], 200
    after_step = pruned_while_training("surgery", Task(net, names, 0.6, total))(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dense = {name: net.get_parameter(name).detach().clone() for name in names}
    mask, threshold, back, shares = {n: torch.ones_like(w) for n, w in dense.items()}, {}, 0, []
    for step in range(1, total + 1):
        gradients = {name: torch.randn(dense[name].shape, generator=generator) * 0.1 for name in names}
        for name in names:
            net.get_parameter(name).grad = gradients[name]
        optimizer.step()
        after_step(step, optimizer)
        dense = {name: dense[name] - 0.1 * gradients[name] for name in names}
        if step == 60:
            ordered = torch.cat(
                [((w.abs() - w.abs().mean()) / w.abs().std(correction=0)).flatten() for w in dense.values()]
            )
            c = ordered.sort().values[round(0.6 * len(ordered)) - 1]
            threshold = {n: (w.abs().mean() + c * w.abs().std(correction=0)).clamp_min(0) for n, w in dense.items()}
        for name in names:
            now = net.get_parameter(name).detach()
            assert torch.allclose(now, torch.where(now == 0, 0.0, dense[name]), atol=1e-6)
            if 60 <= step <= 150:  # the first looks are certain: γ t is under 0.01
                wanted = torch.where(dense[name].abs() < 0.9 * threshold[name], 0.0, mask[name])
                wanted = torch.where(dense[name].abs() >= 1.1 * threshold[name], 1.0, wanted)
                looked = torch.equal((now != 0).float(), wanted)
                assert looked or torch.equal((now != 0).float(), mask[name])
                back += int(((mask[name] == 0) & (now != 0)).sum())
            mask[name] = (now != 0).float()
        shares.append(zeros({name: net.get_parameter(name) for name in names}))
    assert shares[58] == 0
    assert shares[59] > 0.4
    assert back > 10
    assert shares[-1] >= 0.6 - 1 / 180
    assert len(set(shares[150:])) == 1  # the masks rest at the end


def test_gradual_renews_now_and_then() -> None:
    net = mlp((1, 2, 2), 3, (50,))
    after_step = pruned_while_training("gradual", Task(net, ["1.weight"], 0.9, 1000))(0)
    optimizer = torch.optim.SGD(net.parameters())
    seen = []
    for step in range(1, 1001):
        after_step(step, optimizer)
        seen.append(zeros({"": net[1].weight.detach()}))
    changes = [step for step in range(2, 1001) if seen[step - 1] != seen[step - 2]]
    assert all(step % RENEW_STEPS == 0 or step == 700 for step in changes)
    assert seen[-1] == pytest.approx(0.9)


@pytest.mark.parametrize("pruning", sorted(RULES))
def test_pruning_goes_on_from_the_network_alone(pruning: str) -> None:
    """Begun anew at any step, the same weights go at the same steps."""
    straight, generator = mlp((1, 2, 2), 3, (50,)), torch.Generator().manual_seed(0)
    weights, other = ["1.weight", "3.weight"], copy.deepcopy(straight)
    after_step = pruned_while_training(pruning, Task(straight, weights, 0.9, 1000))(0)
    begin = pruned_while_training(pruning, Task(other, weights, 0.9, 1000))
    for step in range(1, 1001):
        other.load_state_dict(straight.state_dict())
        went_on = begin(step - 1)
        for parameter in straight.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
        other.load_state_dict(straight.state_dict())
        for net, change in ((straight, after_step), (other, went_on)):
            change(step, torch.optim.SGD(net.parameters()))
        assert all(torch.equal(value, straight.state_dict()[name]) for name, value in other.state_dict().items())
    assert zeros({name: straight.get_parameter(name) for name in weights}) == pytest.approx(0.9, abs=0.01)


def test_sgd_is_that_of_torch(digits: Splits) -> None:
    data = Data(digits.train.x[:300], digits.train.y[:300])
    net = mlp((1, 8, 8), 10, (7,))
    other = copy.deepcopy(net)
    plan = PointPlan(3, 0.1, "sgd", 0.5, "constant")
    train_point(net, Minibatches(data, 100, torch.Generator().manual_seed(3)), plan)
    minibatches = Minibatches(data, 100, torch.Generator().manual_seed(3))
    velocity = [torch.zeros_like(p) for p in other.parameters()]
    for _ in range(3):
        for _, x, y in minibatches.epoch():
            gradients = torch.autograd.grad(F.cross_entropy(other(x), y), list(other.parameters()))
            with torch.no_grad():
                for p, v, g in zip(other.parameters(), velocity, gradients, strict=True):
                    v.mul_(0.5).add_(g)
                    p.sub_(0.1 * v)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-5)  # a step is 0.1 of a gradient


@pytest.mark.parametrize(
    ("rate", "input_rate", "expected"), [(0.5, None, (0.5, 0.5)), (0.5, 0.0, (0.0, 0.5)), (0.0, 0.2, (0.2, 0.0))]
)
def test_dropout_at_the_input_and_inside(rate: float, input_rate: float | None, expected: tuple[float, ...]) -> None:
    net = nn.Sequential(nn.Linear(4000, 4000, bias=False), nn.Linear(4000, 1, bias=False))
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4000))
    with dropped_inputs(net, capture(net, (4000,)), rate, input_rate), torch.no_grad():
        hooks = [layer.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for layer in net]
        net.train()(torch.ones(1, 4000))
    for hook in hooks:
        hook.remove()
    first = float((seen[0] == 0).float().mean())
    second = float((seen[1] == 0).float().mean())
    assert first == pytest.approx(expected[0], abs=0.04)
    assert second == pytest.approx(1 - (1 - expected[0]) * (1 - expected[1]), abs=0.04)


def test_uniform_start(digits: Splits) -> None:
    net = initial_net(FitConfig(hidden=(300,), init_range=0.2), digits)
    weights = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    assert weights.abs().max() <= 0.2
    assert float(weights.std()) == pytest.approx(0.4 / 12**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "none", "pruning": "gradual"}, "needs both a rule"),
        ({"prior": "none", "prune_to": 0.5}, "needs both a rule"),
        (
            {"prior": "none", "pruning": "gradual", "prune_to": 0.5, "patience": 3},
            "patience 3 could end pruning .gradual. early",
        ),
        ({"prior": "none", "pruning": "often", "prune_to": 0.5}, "unknown pruning 'often'; allowed: none, iterative"),
        ({"prior": "none", "optimizer": "sgd", "momentum": 1.0}, "momentum 1.0: allowed are values from 0"),
        ({"prior": "none", "dropout_input": 1.0}, "dropout_input 1.0: allowed"),
        ({"prior": "none", "lr_schedule": "cosine"}, "unknown lr_schedule 'cosine'; allowed: late-decay, constant"),
        ({"prior": "none", "weight_decay": -1.0}, "weight_decay -1.0: it must not be negative"),
        ({"prior": "gaussian", "weight_decay": 1e-4}, "the prior takes the place of weight decay"),
        ({"prior": "horseshoe", "optimizer": "sgd"}, "goes with --prior none"),
        ({"prior": "none", "optimizer": "natural"}, "optimizer 'natural' goes with a prior.* take adam or sgd"),
        (
            {"prior": "gaussian", "optimizer": "natural", "guide": "auto-normal"},
            "moves means and spreads of --guide mean-field; guide 'auto-normal' has others: use --optimizer adam",
        ),
        ({"prior": "horseshoe", "dropout_input": 0.5}, "a prior brings its own noise"),
        ({"prior": "none", "init_range": -1.0}, "init_range -1.0: it must not be negative"),
    ],
)
def test_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(FitConfig(**options), 1000)


def test_one_cycle_is_torchs() -> None:
    """Smith & Topin 2018; torch counts steps where we count shares of training, hence the tolerance."""
    optimizer, total = torch.optim.SGD([nn.Parameter(torch.zeros(()))], 1.0), 2000
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total, final_div_factor=1e9)
    for step in range(total - 1):
        assert SCHEDULES["one-cycle"](step / total) == pytest.approx(theirs.get_last_lr()[0], abs=2e-3)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay(optimizer: str) -> None:
    """One step by hand: SGD adds decay × w to the gradient, Adam shrinks w beside a step of the rate's length."""
    weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    plan = PointPlan(1, 0.1, optimizer, 0.0, weight_decay=0.5)
    weight.grad = torch.tensor([0.3, 0.4])
    OPTIMIZERS[optimizer]([weight], plan).step()
    start, gradient = torch.tensor([2.0, -1.0]), torch.tensor([0.3, 0.4])
    step = gradient + 0.5 * start if optimizer == "sgd" else 0.5 * start + gradient.sign()
    torch.testing.assert_close(weight.detach(), start - 0.1 * step)


def test_images_come_with_their_channels_last(digits: Splits) -> None:
    """The same numbers in the layout that convolutions want, where there are any; tables as they lie."""
    images = Data(torch.rand(6, 3, 4, 5), torch.arange(6))
    (_, x, y), *_ = Minibatches(images, 6, torch.Generator().manual_seed(0), convolved=True).epoch()
    assert x.stride() == (60, 1, 15, 3)
    assert torch.equal(x, images.x[y])
    (_, grey, _), *_ = Minibatches(digits.train, 6, torch.Generator(), convolved=True).epoch()
    assert grey.stride() == (64, 1, 8, 1)
    for other, convolved in ((torch.rand(6, 7), True), (images.x, False)):
        (_, x, _), *_ = Minibatches(Data(other, torch.arange(6)), 6, torch.Generator(), convolved=convolved).epoch()
        assert x.is_contiguous()


@pytest.mark.parametrize(("name", "expected"), [("mlp", False), ("lenet-5-caffe", True), ("vit-tiny", True)])
def test_only_networks_that_convolve_are_given_them(name: str, expected: bool) -> None:
    assert convolves(capture(build_net(name, (3, 32, 32), 4), (3, 32, 32))) == expected


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_without_a_prior(
    able: bool, digits: Splits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Products of 8 bits: weights stay float32 and end near those of float32; a processor without them is told of."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able}, raising=False)
    net, found = mlp((1, 8, 8), 10, (20,)), {}
    for precision in ("float32", "bfloat16"):
        config = resolve(
            FitConfig(prior="none", epochs=3, lr=0.02, device="cpu", precision=precision), len(digits.train)
        )
        posterior, history = fit_baseline(net, digits, config)
        found[precision] = posterior.layers["1.weight"].mean
        assert history[-1].validation_accuracy > 0.8
    plain, mixed = found.values()
    assert mixed.dtype == torch.float32
    assert 0 < (plain - mixed).norm() < 0.05 * plain.norm()
    assert ("--precision bfloat16 is likely slower" in caplog.text) is not able
