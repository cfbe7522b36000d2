"""Units that leave exactly: across the gates of recurrent layers, columns of embeddings, behind concatenations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_compress.compression.shrink import shrink, trace_shrink
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.types import Graph


class Speech(nn.Module):
    """A table, recurrent layers one upon the other, a head."""

    def __init__(self, kind: type[nn.RNNBase], both: bool = False, bias: bool = True):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.memory = kind(6, 5, 2, batch_first=True, bidirectional=both, bias=bias)
        self.head = nn.Linear(5 * (1 + both), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(self.table(x))[0].mean(1))


class Joined(nn.Module):
    """Two branches of different widths, one behind the other, twice; batch norm on both together, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 3, 1)
        self.norm, self.three = nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3, padding=1)
        self.last = nn.Linear(12 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.one(x), self.two(x)], 1)
        y = torch.cat([torch.relu(self.three(torch.relu(self.norm(y)))), y], 1)
        return self.last(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "lstm": (lambda: Speech(nn.LSTM), (7,), "int64"),
    "gru": (lambda: Speech(nn.GRU), (7,), "int64"),
    "lstm both ways": (lambda: Speech(nn.LSTM, both=True), (7,), "int64"),
    "gru without biases": (lambda: Speech(nn.GRU, bias=False), (7,), "int64"),
    "joined": (Joined, (1, 4, 4), "float32"),
}


def taken(name: str, seed: int) -> tuple[Graph, dict[str, Tensor], Tensor]:
    build, shape, kind = NETWORKS[name]
    torch.manual_seed(seed)
    net = build().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    graph = capture(net.float(), shape, kind=kind)
    net.double()
    used = {one for node in graph.nodes for one in node.parameters.values()}
    tensors = {n: t.detach().clone() for n, t in net.state_dict().items() if n in used}
    x = torch.randint(0, 11, (4, *shape)) if kind == "int64" else torch.randn(4, *shape, dtype=torch.float64)
    return graph, tensors, x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(6))
def test_smaller_networks_compute_the_same(name: str, seed: int) -> None:
    """Random rows and columns of everything are zero; what is left is exact in double precision, and no larger."""
    graph, tensors, x = taken(name, seed)
    for key, tensor in tensors.items():
        if key != "last.weight" and key != "head.weight" and tensor.dim() > 1:
            tensor[torch.rand(len(tensor)) < 0.4] = 0
        if tensor.dim() > 1:
            tensor[:, torch.rand(tensor.shape[1]) < 0.4] = 0
    small, left = shrink(graph, tensors)
    wanted = Network(graph, tensors)(x)
    torch.testing.assert_close(Network(small, left)(x), wanted, rtol=1e-11, atol=1e-12)
    assert sum(t.numel() for t in left.values()) <= sum(t.numel() for t in tensors.values())


def test_unread_units_of_a_recurrent_layer_leave_with_their_gates() -> None:
    """Nobody but themselves reads two of them; a third is read by one that is needed."""
    graph, tensors, x = taken("lstm", 0)
    tensors["memory.weight_ih_l1"][:, [1, 2, 4]] = 0
    across = tensors["memory.weight_hh_l0"]
    rest = torch.tensor([0, 3])
    for unit in (1, 2):  # they read each other, and are read by nobody else
        across.view(4, 5, 5)[:, [*rest, 4], unit] = 0
    traced = trace_shrink(graph, tensors)
    assert traced.tensors["memory.weight_ih_l0"].shape == (12, 6)
    assert traced.tensors["memory.weight_hh_l0"].shape == (12, 3)
    assert traced.tensors["memory.weight_ih_l1"].shape == (20, 3)
    assert traced.rows["memory.bias_ih_l0"].tolist() == [0, 3, 4, 5, 8, 9, 10, 13, 14, 15, 18, 19]
    assert traced.columns["memory.weight_hh_l0"].tolist() == [0, 3, 4]
    torch.testing.assert_close(
        Network(traced.graph, traced.tensors)(x), Network(graph, tensors)(x), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_unit_without_a_candidate_is_silent(name: str) -> None:
    graph, tensors, x = taken(name, 1)
    gates = len(tensors["memory.bias_ih_l0"]) // 5
    for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        tensors[f"memory.{key}_l0"].view(gates, 5, -1)[2, 3] = 0
    small, left = shrink(graph, tensors)
    assert left["memory.weight_hh_l0"].shape == (gates * 4, 4)
    torch.testing.assert_close(Network(small, left)(x), Network(graph, tensors)(x), rtol=1e-11, atol=1e-12)


def test_columns_of_a_table_leave() -> None:
    graph, tensors, x = taken("gru", 2)
    tensors["memory.weight_ih_l0"][:, [0, 4]] = 0  # nobody reads them
    tensors["table.weight"][:, 5] = 0  # they say nothing
    small, left = shrink(graph, tensors)
    assert left["table.weight"].shape == (11, 3)
    assert left["memory.weight_ih_l0"].shape == (15, 3)
    torch.testing.assert_close(Network(small, left)(x), Network(graph, tensors)(x), rtol=1e-11, atol=1e-12)


def test_channels_behind_a_concatenation_leave() -> None:
    """A dead filter of either branch goes, with its part of the norm and of every layer behind."""
    graph, tensors, x = taken("joined", 3)
    tensors["one.weight"][2], tensors["two.weight"][0] = 0, 0
    tensors["three.weight"][1] = 0
    small, left = shrink(graph, tensors)
    assert left["one.weight"].shape[0] == 3 or left["norm.weight"].shape[0] < 7
    assert left["last.weight"].shape[1] < 48
    torch.testing.assert_close(Network(small, left)(x), Network(graph, tensors)(x), rtol=1e-11, atol=1e-12)
