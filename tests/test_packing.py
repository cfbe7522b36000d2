"""What is not a weight becomes integers too; batch norm as scale and shift, and back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_shrink import PROBLEMS, prepared
from torch import nn

import pyro_compress as pc
from pyro_compress.compression.packing import folded, packed, vector_step
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.graph.statistics import batch_statistics, renewed_statistics
from pyro_compress.pcn import file
from pyro_compress.runs.config import resolve
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import FitConfig
from pyro_compress.training.baselines import fit_baseline
from pyro_compress.types import Compressed, Quantized

NORMED = [
    name
    for name in PROBLEMS
    if any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in PROBLEMS[name][0].modules())
]


def test_there_are_networks_with_batch_norm() -> None:
    assert {"residual", "depthwise", "inverted", "vgg-16", "resnet-18", "fcn-1d"} <= set(NORMED)


@pytest.mark.parametrize("name", NORMED)
def test_folded_batch_norm_computes_the_same_and_finds_its_statistics_again(name: str) -> None:
    _, x, graph, tensors = prepared(name, 0.0, 0.0)
    tensors |= batch_statistics(graph, tensors, x)
    wanted = Network(graph, tensors)(x).detach()
    scale = max(float(wanted.abs().max()), 1.0)
    few = folded(graph, tensors)
    assert torch.allclose(Network(graph, few)(x), wanted, atol=1e-4 * scale)
    assert all((t == float(key.endswith("var"))).all() for key, t in few.items() if "running_" in key)
    renewed = renewed_statistics(graph, few, x)
    assert torch.allclose(Network(graph, few | renewed)(x), wanted, atol=1e-4 * scale)
    own = batch_statistics(graph, few | renewed, x)
    read = [key for node in graph.nodes for key in node.parameters.values()]
    assert name == "twice" or all(read.count(key) == 1 for key in own)
    for key, value in own.items():
        if read.count(key) > 1:  # one pair of statistics for two values: there are none that fit both
            continue
        assert torch.allclose(renewed[key], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


@pytest.mark.parametrize("name", PROBLEMS)
def test_everything_but_the_weights_is_rounded_finely(name: str) -> None:
    _, x, graph, tensors = prepared(name, 0.0, 0.0)
    tensors |= batch_statistics(graph, tensors, x)
    weights = [node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)]
    steps = {key: float(tensors[key].abs().max() or 1) / 8000 for key in weights}
    found = packed(graph, tensors, steps)
    dense = [key for key, tensor in found.items() if not isinstance(tensor, Quantized)]
    assert len(dense) < 0.1 * len(found)  # of seven random images, some channels vary by next to nothing
    rounded = {key: torch.from_numpy(file.dense(tensor)) for key, tensor in found.items()}
    wanted, got = Network(graph, tensors)(x), Network(graph, rounded)(x)
    assert (got - wanted).norm() <= 0.1 * wanted.norm()
    values = sum(t.numel() for t in tensors.values()) - sum(tensors[key].numel() for key in weights)
    empty = {key: replace(t, codes=np.zeros_like(t.codes)) for key, t in found.items() if key in weights}
    coarse, whole = (
        found | empty,
        {key: tensors[key].numpy() for key in found} | empty,
    )  # what the weights take is the same
    sizes = [len(file.dumps(Compressed(graph, held, {}))[0]) for held in (coarse, whole)]
    assert sizes[0] < sizes[1] or values < 40


def test_values_too_far_apart_for_one_step_stay_as_they_are() -> None:
    assert vector_step(torch.tensor([0.0, 1e-6, 1.0, 2.0]), 127) == pytest.approx(1 / 127, rel=0.1)
    assert vector_step(torch.zeros(3), 127) == 1.0
    assert vector_step(torch.tensor([1.0, 1.0, 1e4]), 127) is None
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    net[1].bias.data[:] = torch.tensor([1.0, 1.0, 1e4])
    tensors = {key: value.detach() for key, value in net.state_dict().items()}
    found = packed(capture(net, (3,)), tensors, {"0.weight": 0.01, "2.weight": 0.01})
    assert [key for key, value in found.items() if not isinstance(value, Quantized)] == ["1.bias"]


class Twice(nn.Module):
    """One batch norm behind two layers with biases, and one without scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.plain, self.head = nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.plain(self.norm(self.b(torch.relu(self.norm(self.a(x)))))))


def test_batch_norm_used_twice_or_without_scale() -> None:
    torch.manual_seed(0)
    net, x = Twice(), 3 * torch.randn(200, 3) + 1
    for _ in range(20):
        net(x)
    net.plain.running_var[0] = 1e-4  # far from the others
    tensors = {key: value.detach().clone() for key, value in net.eval().state_dict().items()}
    graph = capture(net, (3,))
    used = {name for node in graph.nodes for name in node.parameters.values()}
    tensors = {key: value for key, value in tensors.items() if key in used}
    wanted = Network(graph, tensors)(x)
    assert torch.allclose(Network(graph, folded(graph, tensors))(x), wanted, rtol=1e-4, atol=1e-4)
    renewed = renewed_statistics(graph, tensors, x)
    assert torch.allclose(Network(graph, tensors | renewed)(x), wanted, rtol=1e-3, atol=1e-3)
    found = packed(graph, tensors, {f"{name}.weight": 1e-3 for name in ("a", "b", "head")})
    assert [key for key, value in found.items() if not isinstance(value, Quantized)] == [
        "plain.running_mean", "plain.running_var"
    ]  # fmt: skip


def test_a_channel_that_never_varies_is_constant() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    tensors = {key: value.detach().clone() for key, value in net.state_dict().items()}
    tensors["0.weight"][0] = 0
    tensors["1.bias"][0] = 3
    graph, x = capture(net, (2,)), torch.randn(50, 2)
    tensors |= batch_statistics(graph, tensors, x)
    few = folded(graph, tensors)
    assert few["1.weight"][0] == 0
    assert few["1.bias"][0] == pytest.approx(3)
    assert few["0.bias"].tolist() == [0, 0]
    assert torch.allclose(Network(graph, few)(x), Network(graph, tensors)(x), atol=1e-5)


def test_a_channel_that_varied_little_may_vary() -> None:
    """A variance of 0 is what the statistics' examples had; the weights tell whether others can have more."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    tensors = {key: value.detach().clone() for key, value in net.state_dict().items()}
    tensors |= {"0.bias": torch.tensor([-9.0, 1]), "2.weight": torch.tensor([[1.0, 0], [0, 1]])}
    graph, x = capture(net, (2,)), torch.rand(50, 2)
    tensors |= batch_statistics(graph, tensors, x)
    assert tensors["3.running_var"][0] == 0
    far = torch.tensor([[30.0, 0], [0, 30], [-30, 0], [0, -30]])
    wanted = Network(graph, tensors)(far)
    assert wanted[:, 0].abs().max() > 100
    torch.testing.assert_close(Network(graph, folded(graph, tensors))(far), wanted)


@pytest.mark.slow
def test_a_fit_that_starts_at_a_file_trains_with_real_statistics(tmp_path: Path) -> None:
    """Batch norm's training mode must not change what the network computes by more than a minibatch's noise."""
    splits = pc.load_splits("digits")
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip
    config = FitConfig(prior="none", epochs=4, device="cpu")
    fitted, _ = fit_baseline(net, splits, resolve(config, len(splits.train)))
    network, _ = pc.compress(fitted, splits)
    pc.save(tmp_path / "n.pcn", network, splits)
    start = initial_net(FitConfig(net=str(tmp_path / "n.pcn"), init=str(tmp_path / "n.pcn")), splits)
    x = splits.train.x[:512]
    loaded = pc.load(tmp_path / "n.pcn")
    with torch.no_grad():
        wanted, eval_mode, train_mode = loaded(x), start.eval()(x), start.train()(x)
    assert torch.allclose(eval_mode, wanted, atol=1e-3)
    assert (train_mode - wanted).norm() < 0.15 * wanted.norm()
