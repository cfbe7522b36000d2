"""Uses of weights as products of rows: against the operations themselves; compensation of every kind of weight."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_compress.compression.calibrated import OperatingPoint, calibrated
from pyro_compress.compression.compensation import problem_of
from pyro_compress.compression.curvature import Sensitivity, drawn_of, moments, sensitivities, stepped
from pyro_compress.compression.uses import (
    ACROSS,
    LOOKED_UP,
    ROWS,
    SINGLE,
    STATE,
    TURNED,
    Use,
    before_steps,
    patches,
    uses_of,
)
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.types import Graph

TRANSPOSED = {
    "plain": (nn.ConvTranspose2d(3, 4, 3), (3, 5, 4)),
    "strided": (nn.ConvTranspose2d(3, 4, (3, 2), stride=(2, 3)), (3, 4, 5)),
    "padded, more places": (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 4, 3)),
    "padded beyond its kernel": (nn.ConvTranspose1d(2, 3, 2, padding=2), (2, 9)),
    "dilated": (nn.ConvTranspose1d(2, 3, 3, dilation=2, stride=2), (2, 6)),
    "grouped": (nn.ConvTranspose2d(4, 6, 2, groups=2, stride=2), (4, 3, 3)),
    "three dimensions": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2)),
}


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def taken(net: nn.Module, shape: tuple[int, ...], kind: str = "float32") -> tuple[Graph, dict[str, Tensor]]:
    graph = capture(net.eval(), shape, kind=kind)
    held = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers())
    names = dict.fromkeys(name for node in graph.nodes for name in node.parameters.values())
    return graph, {name: held[name].detach() for name in names}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_rows_of_transposed_convolutions(name: str) -> None:
    """Patches times rows are the outputs; rows go back into the weight."""
    layer, shape = TRANSPOSED[name]
    node = capture(nn.Sequential(layer, nn.Linear(layer(torch.zeros(1, *shape)).shape[-1], 2)), shape).nodes[1]
    use = Use(1, node, "weight", ACROSS, tuple(layer.weight.shape))
    x, weight = torch.randn(2, *shape), layer.weight.detach().numpy()
    rows = use.rows(weight)
    got = torch.einsum("pgn,gon->pgo", patches(x, use), torch.from_numpy(rows)).flatten(1)
    wanted = (layer(x) - layer.bias.view(-1, *[1] * (len(shape) - 1))).movedim(1, -1)
    torch.testing.assert_close(got, wanted.reshape(got.shape).detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(use.tensor(rows), weight)


@pytest.mark.parametrize(("kind", "shape", "size"), [
    (TURNED, (3, 5), (1, 5, 3)), (LOOKED_UP, (3, 5), (3, 5, 1)), (SINGLE, (3, 5), (15, 1, 1)),
    (ROWS, (3, 5), (1, 3, 5)),
])  # fmt: skip
def test_rows_go_back(kind: str, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    node = capture(nn.Linear(5, 3), (5,)).nodes[1]
    use, values = Use(1, node, "weight", kind, shape), np.arange(15).reshape(shape)
    assert use.size == size == use.rows(values).shape
    np.testing.assert_array_equal(use.tensor(use.rows(values)), values)
    assert use.rows(values)[:, 0, 0].tolist() == {SINGLE: [*range(15)], LOOKED_UP: [0, 5, 10]}.get(kind, [0])


class Memory(nn.Module):
    """A recurrent layer and what its outputs mean."""

    def __init__(self, kind: type[nn.RNNBase], bias: bool = True, backwards: bool = False):
        super().__init__()
        self.memory = kind(4, 6, batch_first=True, bias=bias)
        self.last, self.backwards = nn.Linear(6, 3), backwards

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(1) if self.backwards else x
        found, _ = self.memory(x)
        return self.last(found.flip(1) if self.backwards else found)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("bias", "backwards"), [(True, False), (False, True)])
def test_recurrent_layers_step_by_step(kind: type[nn.RNNBase], bias: bool, backwards: bool) -> None:
    """The same outputs as torch's; what reaches the gates is what the uses' rows make of their inputs."""
    net = Memory(kind, bias, backwards)
    graph, tensors = taken(net, (7, 4))
    names = [name for name in tensors if name.startswith("memory.weight")]
    (index, uses), _ = uses_of(graph, shapes_of(tensors), names).items()
    assert [use.kind for use in uses] == [ROWS, STATE]
    node, x = graph.nodes[index], torch.randn(5, 7, 4)
    p = {role: tensors[name] for role, name in node.parameters.items()}
    outputs, into, across = stepped(node, x, p)
    with torch.no_grad():
        wanted = net.memory(x.flip(1))[0].flip(1) if node.attributes.get("reverse") else net.memory(x)[0]
    torch.testing.assert_close(outputs.detach(), wanted, rtol=1e-4, atol=1e-5)
    order = range(6, -1, -1) if node.attributes.get("reverse") else range(7)
    kept = torch.stack([across[place] for place in sorted(range(7), key=lambda i: order[i])], 1)
    for use, found, given in zip(uses, (into, kept), (x, before_steps(outputs, node)), strict=True):
        rows = torch.from_numpy(use.rows(tensors[use.name].numpy()))[0]
        got = patches(given.detach(), use)[:, 0] @ rows.T + p.get(use.role.replace("weight", "bias"), torch.zeros(()))
        torch.testing.assert_close(got, found.detach().flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_the_fisher_information_of_single_values() -> None:
    """Of a weight that is used twice, against Jacobians."""
    first = nn.Linear(3, 3, bias=False)
    net = nn.Sequential(first, nn.Tanh(), first)
    graph, tensors = taken(net, (3,))
    uses = uses_of(graph, shapes_of(tensors), tensors)
    assert [use.kind for parts in uses.values() for use in parts] == [SINGLE]
    x = torch.randn(40_000, 3)
    (found,) = sensitivities(graph, tensors, x, uses, drawn_of("regression", 0.5)).values()
    weight = first.weight.detach()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda w, x: w @ torch.tanh(w @ x)), (None, 0))(weight, x[:4000])
    exact = jacobian.square().sum(1).mean(0) / 0.5**2  # E[g gᵀ] = Jᵀ J / noise²
    assert found.positions == 1
    torch.testing.assert_close(found.squares.float(), exact.flatten(), rtol=0.15, atol=0)  # 900 draws: 5 % each


class Placed(nn.Module):
    """Words and their places, which are looked up once for all examples, or for each."""

    def __init__(self, once: bool):
        super().__init__()
        self.words, self.places, self.last, self.once = nn.Embedding(6, 4), nn.Embedding(5, 4), nn.Linear(4, 3), once

    def forward(self, x: Tensor) -> Tensor:
        where = torch.arange(x.shape[1])
        return self.last((self.words(x) + self.places(where if self.once else where + 0 * x)).tanh().mean(1))


def test_what_is_the_same_for_all_examples_counts_as_for_each() -> None:
    """The table of places is worth the same, in one chunk of examples and in several."""
    torch.manual_seed(0)
    nets = [Placed(True), Placed(False)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, found = torch.randint(6, (20_000, 5)), list[torch.Tensor]()
    for net in nets:
        graph = capture(net, (5,), kind="int64")
        tensors = {name: tensor.detach() for name, tensor in net.state_dict().items()}
        uses = uses_of(graph, shapes_of(tensors), ["places.weight"])
        worth = sensitivities(graph, tensors, x, uses, drawn_of("regression", 0.5))["places.weight"]
        assert worth.positions == 5
        found.append(worth.squares)
    torch.testing.assert_close(*found, rtol=0.2, atol=0)  # of 157 chunks of 128: 20 % are some four deviations


def test_rows_that_nobody_looks_up_are_kept() -> None:
    """Words are worth what they are looked up; one that no example has still is worth something."""
    node = capture(nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2)), (3,), kind="int64").nodes[1]
    use = Use(1, node, "weight", LOOKED_UP, (4, 2))
    seen = moments([torch.tensor([[0, 0, 1], [0, 2, 1]])], [torch.zeros(2, 3)], use)
    np.testing.assert_allclose(seen.second.flatten().numpy(), [1 / 2, 1 / 3, 1 / 6, 0])
    weight = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    worth = Sensitivity(torch.tensor([2.0, 3]).double(), 5)
    problem = problem_of(weight, use, seen, worth, (4, 2, 1, 1), 1.0, 0.1, False)
    np.testing.assert_array_equal(problem.target[..., 0], weight.numpy())
    np.testing.assert_allclose(problem.factor.flatten() ** -2, np.array([1 / 2, 1 / 3, 1 / 6, 0]) + 0.1 / 4, rtol=1e-6)
    np.testing.assert_allclose(problem.worth, np.tile([2.0 * 5 / 2, 3.0 * 5 / 2], (4, 1)), rtol=0.1)


class Words(nn.Module):
    """A table that words are looked up in, read step by step; with `tied` the table is the last layer, too."""

    def __init__(self, kind: type[nn.RNNBase], tied: bool = False):
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.memory = kind(12, 12, batch_first=True)
        self.last = nn.Linear(12, 20)
        if tied:
            self.last.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.memory(self.table(x))[0])


def up() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 3, 3, stride=2))


NETWORKS = {
    "lstm": (lambda: Words(nn.LSTM), (9,), "int64"),
    "gru, tied": (lambda: Words(nn.GRU, tied=True), (9,), "int64"),
    "up": (up, (2, 7, 7), "float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_kept_better_than_by_rounding_to_the_nearest(name: str) -> None:
    """Every weight on a grid, at the same steps; even of networks and inputs that are drawn at random."""
    build, shape, kind = NETWORKS[name]
    torch.manual_seed(0)
    graph, tensors = taken(build(), shape, kind)
    x = torch.randint(0, 20, (400, *shape)) if kind == "int64" else torch.randn(400, *shape)
    weights = [n for n, t in tensors.items() if t.dim() > 1]
    network = calibrated(graph, tensors, x[:300], weights, "regression", 1.0)
    found = network.rounded(OperatingPoint(1e-7))
    assert found.steps.keys() == set(weights)
    nearest = dict(found.tensors)
    for weight, step in found.steps.items():
        nearest[weight] = torch.round(tensors[weight] / step) * step
        assert torch.equal(torch.round(found.tensors[weight] / step) * step, found.tensors[weight])

    def off(values: dict[str, Tensor]) -> float:
        wanted, got = (Network(graph, t).eval()(x[300:]) for t in (tensors, values))
        return float((wanted - got).detach().square().mean())

    assert off(found.tensors) < off(nearest)
