"""Deep compression's last two stages (Han et al. 2016, sections 3 and 4): shared weights, and their Huffman codes.

For comparison with what is published: the bits are counted as there, and no file of this program is written so. The
weights of a layer that are left share 2^k values, found by k-means from centroids even over their range, and trained
on: the gradient of a centroid is the sum of its members' (figure 3). A layer is stored as the indices of its weights
and the gaps between them, both Huffman-coded, and its centroids as float32.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.several import task_named
from pyro_compress.graph.network import run_graph
from pyro_compress.types import Data, Posterior

LONGEST_GAP = 2**5 - 1
"""Between two weights that are left; a longer one is filled up with zeros (figure 1, with 5 bits)."""
ROUNDS = 50
"""Of k-means."""
FLOAT32 = 32


def huffman_bits(symbols: Iterable[int]) -> int:
    """Bits of a sequence in its own Huffman code, the code itself not counted; one bit each where all are alike."""
    counts = list(Counter(symbols).values())
    if len(counts) < 2:
        return sum(counts)
    heapq.heapify(counts)
    bits = 0
    while len(counts) > 1:
        merged = heapq.heappop(counts) + heapq.heappop(counts)
        bits += merged
        heapq.heappush(counts, merged)
    return bits


def sparse_symbols(values: np.ndarray) -> tuple[list[int], list[int]]:
    """Values that are left in a row of integers, and how far each is from the one before; zeros fill up long gaps."""
    kept, gaps, last = list[int](), list[int](), -1
    for place in np.flatnonzero(values).tolist():
        gap = place - last
        while gap > LONGEST_GAP:
            kept.append(0)
            gaps.append(LONGEST_GAP)
            gap -= LONGEST_GAP
        kept.append(int(values[place]))
        gaps.append(gap)
        last = place
    return kept, gaps


def sparse_bits(values: np.ndarray) -> int:
    """Huffman codes of what is left in an array of integers, and of the gaps."""
    kept, gaps = sparse_symbols(values.ravel())
    return huffman_bits(kept) + huffman_bits(gaps)


def centroids_of(values: Tensor, bits: int) -> Tensor:
    """Centroids of k-means, `(2**bits,)`, ascending, from a start even over the range of the values `(n,)`."""
    found = torch.linspace(float(values.min()), float(values.max()), 2**bits)
    for _ in range(ROUNDS):
        index = nearest(values, found)
        sums = torch.zeros_like(found).index_add_(0, index, values)
        counts = torch.bincount(index, minlength=len(found))
        now = torch.where(counts > 0, sums / counts.clamp_min(1), found)
        if torch.equal(now, found):
            break
        found = now.sort().values
    return found


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Index of the centroid next to every value; centroids ascend."""
    return torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)


@dataclass(frozen=True)
class Shared:
    """A network whose weights share a few values per layer.

    Attributes:
        tensors: all of it.
        bits: of indices, gaps and centroids; biases and whatever else has no codebook are not counted.
    """

    tensors: dict[str, Tensor]
    bits: int


def shared(
    posterior: Posterior, train: Data, bits: Mapping[str, int], epochs: int = 5, lr: float = 1e-4, seed: int = 0
) -> Shared:
    """Let the weights that are not zero share values, and train these.

    Args:
        posterior: of point weights, pruned.
        train: training examples.
        bits: k of every layer, by the name of its weight tensor.
        epochs: of the centroids; biases are trained with them.
        lr: Adam's.
        seed: of the order of the examples.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: tensor.clone() for name, tensor in posterior.tensors.items()}
    books, places, index = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for name in posterior.layers:
        places[name] = tensors[name].flatten().nonzero().squeeze(1)
        values = tensors[name].flatten()[places[name]]
        if not len(values):
            continue
        books[name] = centroids_of(values, bits[name]).requires_grad_()
        index[name] = nearest(values, books[name].detach())
    free = {name: t.requires_grad_() for name, t in tensors.items() if name not in books and t.is_floating_point()}
    optimizer = torch.optim.Adam([*books.values(), *free.values()], lr)
    task = task_named(posterior.task)

    def network() -> dict[str, Tensor]:
        made = {
            name: torch.zeros_like(tensors[name]).flatten().index_put((places[name],), books[name][index[name]])
            for name in books
        }
        return tensors | {name: weight.view_as(tensors[name]) for name, weight in made.items()}

    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=generator).split(128):
            optimizer.zero_grad()
            task.loss(run_graph(posterior.graph, network(), train.x[rows]), train.y[rows], 1.0).backward()
            optimizer.step()
    total = 0
    for name in books:
        whole = torch.zeros(tensors[name].numel(), dtype=torch.long)
        whole[places[name]] = index[name] + 1
        total += sparse_bits(whole.numpy()) + FLOAT32 * len(books[name])
    return Shared({name: tensor.detach() for name, tensor in network().items()}, total)
