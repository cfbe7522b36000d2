"""A diagonal Laplace approximation: in one pass over some examples, how sharply a trained network's loss curves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, vmap

from pyro_compress.data.several import task_named
from pyro_compress.data.tasks import IGNORED
from pyro_compress.graph.network import run_graph
from pyro_compress.types import Data, Graph, LayerPosterior, Posterior

EXAMPLES = 2048
"""Training examples that the curvature is averaged over."""
CHUNK_VALUES = 1 << 27
"""Gradient values that are held at a time: half a gibibyte."""


def laplace(trained: Posterior, train: Data, device: str = "cpu", seed: int = 0) -> Posterior:
    """A Gaussian around trained weights: `mean = w`, `std = 1 / sqrt(N F + δ)` (MacKay 1992; Ritter et al. 2018).

    N is the size of the training set and F the diagonal of the Fisher information of one example under the task's own
    likelihood (`Task.fisher`): with the outputs' Jacobian J and their Fisher information `B = E[v vᵀ]`, the diagonal of
    `E_x[Jᵀ B J]`, which is `E_x E_v[(vᵀ J)²]` (Martens 2020, sections 8 and 9: for likelihoods in their natural
    parameters also the generalised Gauss-Newton matrix). That is `Σ_k (∂f_k/∂w)² / noise²` for regression and
    `Σ_c p_c (∂ log p_c/∂w)²` for classification. δ is the precision of a zero-mean Gaussian prior as wide as the
    layer's weights are, `1 / mean(w²)`. `|mean| / std` then orders weights by their saliency in the sense of LeCun et
    al. 1990, `w² N F / 2`, with the prior where the data say nothing.

    Args:
        trained: the network as a posterior without spread; it knows its task and, for regression, its noise; batch norm
            has its running statistics.
        train: the training set; `EXAMPLES` of it are looked at.
        device: where gradients are computed.
        seed: draws the examples, and what `Task.fisher` draws for them.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(train), generator=generator)[:EXAMPLES]
    weights = {name: layer.mean.to(device) for name, layer in trained.layers.items()}
    fixed = {name: tensor.to(device) for name, tensor in trained.dense.items()}
    number = _at_a_time(sum(weight.numel() for weight in weights.values()))
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for part in rows.split(number):
        x = train.x[part].to(device)
        with torch.no_grad():
            outputs = run_graph(trained.graph, weights | fixed, x).cpu()
        directions = task_named(trained.task).fisher(outputs, trained.noise, generator)
        if task_named(trained.task).positions:
            directions = directions * (train.y[part] != IGNORED)[:, None, None]
        directions = directions.to(device)
        for name, total in squared_gradients(trained.graph, weights, fixed, x, directions).items():
            squares[name] += total
    layers = {}
    for name, weight in weights.items():
        fisher, precision = squares[name] / len(rows), 1 / weight.square().mean().clamp_min(1e-12)
        std = (len(train) * fisher + precision).rsqrt()
        layers[name] = LayerPosterior(trained.layers[name].mean, std.cpu())
    provenance = trained.provenance.but(prior="laplace")
    return Posterior(trained.graph, layers, trained.dense, "snr", provenance)


def gradient_bytes(weights: int) -> int:
    """What `laplace` holds of gradients at most: of every example, their squares, and what becomes either."""
    return 4 * 4 * weights * _at_a_time(weights)


def _at_a_time(weights: int) -> int:
    """Examples whose gradients are worked on together."""
    return max(1, min(64, CHUNK_VALUES // weights))


def squared_gradients(
    graph: Graph, weights: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, directions: Tensor
) -> dict[str, Tensor]:
    """Squared gradients of the outputs along directions `(n, rows, *outputs)`, summed over examples and rows."""

    def along(weights: dict[str, Tensor], x: Tensor, direction: Tensor) -> Tensor:
        return (run_graph(graph, weights | fixed, x[None])[0] * direction).sum()

    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for direction in directions.unbind(1):
        for name, gradient in vmap(grad(along), (None, 0, 0))(weights, x, direction).items():
            total[name] += gradient.square().sum(0)
    return total
