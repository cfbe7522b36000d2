"""The order of hidden units: the same function in fewer bytes, in every kind of network."""

import random

import pytest
import torch
from test_shrink import PROBLEMS, close, prepared
from torch import Tensor, nn

from pyro_compress.compression import order
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.order import moved, reordered
from pyro_compress.compression.shrink import free_units, shrink
from pyro_compress.graph.capture import capture
from pyro_compress.pcn import file, runner
from pyro_compress.types import Compressed, Graph, Quantized


def packed(graph: Graph, tensors: dict[str, Tensor]) -> Compressed:
    """A network without its dead units, weights in steps of a sixteenth; everything else stays float32."""
    graph, small = shrink(graph, tensors)
    return Compressed(graph, {name: in_steps(t) if t.dim() > 1 else t.numpy() for name, t in small.items()}, {})


def in_steps(tensor: Tensor) -> Quantized:
    return Quantized(torch.round(16 * tensor).int().numpy(), 0.0625)


def perceptron() -> Compressed:
    """64-40-30, a tenth of the weights kept."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 30))
    tensors = {k: torch.where(torch.rand_like(t) < 0.1, t, 0.0) for k, t in net.state_dict().items()}
    return packed(capture(net, (1, 8, 8)), tensors)


LARGE = ("resnet-20", "resnet-18", "resnet-50", "vgg-16", "vit-tiny", "inverted", "lenet-300-100")
"""Networks with so many values that a few passes over them are many moves."""


@pytest.mark.parametrize("name", PROBLEMS)
def test_another_order_computes_the_same(name: str) -> None:
    _, x, graph, tensors = prepared(name, 0.2, 0.2)
    network = packed(graph, tensors)
    found = reordered(network, 30 if name not in LARGE else 4)
    assert found.graph == network.graph
    before, after = (to_module(one).double()(x.double()) for one in (network, found))
    close(after, before)
    decoded = file.loads(file.dumps(found)[0])
    close(torch.from_numpy(runner.run(decoded, x.numpy())), before, 1e-5)


def test_it_takes_fewer_bytes_and_says_the_same_twice() -> None:
    network = perceptron()
    size = len(file.dumps(network)[0])
    first, second = (file.dumps(reordered(network, 200))[0] for _ in range(2))
    assert first == second
    assert len(first) < size
    assert reordered(network, 0) is network


def test_a_network_that_is_too_large_for_the_context_coder_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    network = perceptron()
    monkeypatch.setattr(order.streams, "MAX_VALUES", 10)
    assert reordered(network, 100) is network


def test_without_the_compiled_coder_nobody_waits_and_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = perceptron()
    monkeypatch.setattr(order.streams, "COMPILED", False)
    assert reordered(network) is network
    assert "the compiled coder is missing" in caplog.text


def test_units_that_are_free_to_move() -> None:
    _, _, graph, tensors = prepared("mlp", 0, 0)
    first, second = free_units(graph, tensors)
    assert (first.count, second.count) == (12, 9)
    assert first.axes == (("1.weight", 0, 1), ("1.bias", 0, 1), ("3.weight", 1, 1))


@pytest.mark.parametrize("count", [2, 3, 50])
def test_a_move_is_a_permutation(count: int) -> None:
    chance = random.Random(1)
    orders = [moved(count, chance) for _ in range(200)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
