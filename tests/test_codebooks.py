"""Deep compression's counting by hand; what shared weights do to a network."""

import numpy as np
import pytest
import torch

from pyro_compress.compression.codebooks import (
    centroids_of,
    huffman_bits,
    nearest,
    shared,
    sparse_bits,
    sparse_symbols,
)
from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.graph.network import Network
from pyro_compress.metrics import evaluate
from pyro_compress.networks.nets import mlp
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.training.baselines import fit_baseline
from pyro_compress.types import Splits


def test_huffman_bits() -> None:
    assert huffman_bits([]) == 0
    assert huffman_bits([7, 7, 7]) == 3
    assert huffman_bits("aaaabbc") == 4 * 1 + 2 * 2 + 1 * 2
    powers = [value for value in range(8) for _ in range(2**value)]  # dyadic but for the two smallest: entropy is close
    counts = np.bincount(powers)
    entropy = -(counts * np.log2(counts / counts.sum())).sum()
    assert entropy <= huffman_bits(powers) < entropy + 2


def test_gaps() -> None:
    row = np.zeros(100, int)
    row[[0, 3, 70]] = 5, -2, 9
    kept, gaps = sparse_symbols(row)
    assert (kept, gaps) == ([5, -2, 0, 0, 9], [1, 3, 31, 31, 5])
    assert sum(gaps) - 1 == 70
    assert sparse_bits(row.reshape(4, 25)) == huffman_bits(kept) + huffman_bits(gaps)
    assert sparse_bits(np.zeros(9, int)) == 0


def test_centroids_are_where_k_means_leaves_them() -> None:
    values = torch.cat([torch.full((5,), -1.0), torch.full((3,), 0.1), torch.tensor([0.3]), torch.full((4,), 2.0)])
    found = centroids_of(values, 2)
    index = nearest(values, found)
    for k in index.unique():
        assert float(found[k]) == pytest.approx(float(values[index == k].mean()))
    gaps = (values[:, None] - found).abs()
    assert torch.equal(gaps.argmin(1), index)


def test_a_network_with_shared_weights(digits: Splits) -> None:
    config = resolve(
        FitConfig(prior="none", epochs=20, hidden=(30,), pruning="iterative", prune_to=0.6, device="cpu"),
        len(digits.train),
    )
    posterior, _ = fit_baseline(mlp((1, 8, 8), 10, (30,)), digits, config)
    kept = masks_at(scores(posterior, "magnitude"), 0.6)
    assert all(torch.equal(kept[name], layer.mean != 0) for name, layer in posterior.layers.items())
    accuracy = []
    for bits in (1, 4):
        found = shared(posterior, digits.train, dict.fromkeys(posterior.layers, bits), epochs=3, lr=1e-3)
        for name, layer in posterior.layers.items():
            assert torch.equal(found.tensors[name] != 0, layer.mean != 0)
            assert len(found.tensors[name].unique()) <= 2**bits + 1
        left = sum(int(mask.sum()) for mask in kept.values())
        assert found.bits < left * (bits + 5) + 32 * len(kept) * 2**bits + 200
        accuracy.append(evaluate(Network(posterior.graph, found.tensors).eval(), digits, "validation").accuracy)
    plain = evaluate(Network(posterior.graph, posterior.tensors).eval(), digits, "validation").accuracy
    assert accuracy[0] <= accuracy[1] + 0.02
    assert accuracy[1] > plain - 0.03
