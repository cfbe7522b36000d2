"""A captured network is the network: random networks of everything that is supported, held against their modules."""

import copy

import numpy as np
import pytest
import torch
from random_networks import (
    OUTPUTS,
    activation,
    batch_norm,
    conv,
    draw,
    linear,
    norm,
    normed_linear,
    padding,
    part,
    pool,
    prelu,
    reduced,
    reshaped,
    residual,
    with_tensor,
)
from torch import Tensor, nn

from pyro_compress.compression.packing import folded
from pyro_compress.compression.shrink import shrink
from pyro_compress.networks.graph import WEIGHTED, Network, capture
from pyro_compress.networks.layered import Layered
from pyro_compress.pcn import file, runner
from pyro_compress.types import Compressed, Graph

SEQUENCES = [(5, 5), (4, 6), (6, 4), (3, 8)]
ON_SEQUENCES = [linear, normed_linear, normed_linear, batch_norm, norm, activation, prelu, padding, pool, reduced,
                reshaped, part, conv, residual, with_tensor]  # fmt: skip
Networks = dict[str, tuple[int, ...]]


def held(seed: int, net: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Module against graph in both modes, and everything that is made of the graph against the graph."""
    graph = capture(net, input_shape, OUTPUTS)
    x = torch.randn(5, *input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        assert exact.train()(x).shape == (5, OUTPUTS)
        exact = copy.deepcopy(net).double().eval()
        wanted = exact(x)
        tensors = used(graph, exact)
        close(Network(graph, tensors).eval()(x), wanted, 1e-9)
        close(Layered(graph, tensors).eval()(x), wanted, 1e-9)
        flat = {name: tensor.double() for name, tensor in folded(graph, tensors).items()}
        close(Network(graph, flat)(x), wanted, 1e-4)
        dead = cut(graph, tensors, seed)
        wanted = Network(graph, dead)(x)
        small_graph, small = shrink(graph, dead)
        close(Network(small_graph, small)(x), wanted, 1e-9)
        single = {name: tensor.float() for name, tensor in small.items()}
        network = Compressed(small_graph, {name: tensor.numpy() for name, tensor in single.items()}, {})
        got = runner.run(file.loads(file.dumps(network, in_context=False)[0]), x.float().numpy())
        assert np.isfinite(got).all()
        close(torch.from_numpy(got), Network(small_graph, single)(x.float()), 1e-4)


def used(graph: Graph, net: nn.Module) -> dict[str, Tensor]:
    names = {name for node in graph.nodes for name in node.parameters.values()}
    return {name: tensor.detach().double() for name, tensor in net.state_dict().items() if name in names}


def cut(graph: Graph, tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """With dead rows and columns in every weight."""
    generator, found = torch.Generator().manual_seed(seed), {name: tensor.clone() for name, tensor in tensors.items()}
    weights = [node.parameters["weight"] for node in graph.nodes if node.op in WEIGHTED]
    for name in weights:
        weight = found[name]
        if name != weights[-1]:
            weight[torch.rand(len(weight), generator=generator) < 0.5] = 0
        weight[:, torch.rand(weight.shape[1], generator=generator) < 0.3] = 0
    return found


def close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert float((got.double() - wanted.double()).abs().max()) <= tolerance * max(float(wanted.abs().max()), 1.0)


@pytest.mark.parametrize("tens", range(20))
def test_module_and_graph_are_the_same(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        held(seed, *draw(seed))


@pytest.mark.parametrize("tens", range(4))
def test_networks_on_sequences(tens: int) -> None:
    """Linear layers have their channels last there, batch norm behind the batch."""
    for seed in range(10 * tens, 10 * tens + 10):
        held(seed, *draw(seed, SEQUENCES, ON_SEQUENCES))
