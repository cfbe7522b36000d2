"""A diagonal Laplace approximation: in one pass over some examples, how sharply a trained network's loss curves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from pyro_compress.networks.graph import run_graph
from pyro_compress.types import Data, Graph, LayerPosterior, Posterior

EXAMPLES = 2048
"""Training examples that the curvature is averaged over."""
CHUNK_VALUES = 1 << 27
"""Gradient values that are held at a time: half a gibibyte."""


def laplace(trained: Posterior, train: Data, device: str = "cpu", seed: int = 0) -> Posterior:
    """A Gaussian around trained weights: `mean = w`, `std = 1 / sqrt(N F + δ)` (MacKay 1992; Ritter et al. 2018).

    N is the size of the training set and F the diagonal of the Fisher information of one example: the mean of squared
    gradients of log p(y | x, w), with y drawn from the network's own prediction, which for a categorical likelihood is
    the diagonal of the generalised Gauss-Newton matrix in expectation (Martens 2020, section 9). δ is the precision of
    a zero-mean Gaussian prior as wide as the layer's weights are, `1 / mean(w²)`. `|mean| / std` then orders weights
    by their saliency in the sense of LeCun et al. 1990, `w² N F / 2`, with the prior where the data say nothing.

    Args:
        trained: the network as a posterior without spread; batch norm has its running statistics.
        train: the training set; `EXAMPLES` of it are looked at.
        device: where gradients are computed.
        seed: draws the examples and their labels.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(train), generator=generator)[:EXAMPLES]
    weights = {name: layer.mean.to(device) for name, layer in trained.layers.items()}
    fixed = {name: tensor.to(device) for name, tensor in trained.dense.items()}
    size = sum(weight.numel() for weight in weights.values())
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for part in rows.split(max(1, min(64, CHUNK_VALUES // size))):
        x = train.x[part].to(device)
        for name, total in squared_gradients(trained.graph, weights, fixed, x, generator).items():
            squares[name] += total
    layers = {}
    for name, weight in weights.items():
        fisher, precision = squares[name] / len(rows), 1 / weight.square().mean().clamp_min(1e-12)
        std = (len(train) * fisher + precision).rsqrt()
        layers[name] = LayerPosterior(trained.layers[name].mean, std.cpu())
    told: dict[str, Any] = trained.provenance | {"prior": "laplace"}
    return Posterior(trained.graph, layers, trained.dense, "snr", told)


def squared_gradients(
    graph: Graph, weights: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Squared gradients of the log-likelihood, summed over examples whose labels the network itself draws."""

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(run_graph(graph, weights | fixed, x[None]), y[None])

    with torch.no_grad():
        chances = run_graph(graph, weights | fixed, x).softmax(1).cpu()
        y = torch.multinomial(chances, 1, generator=generator)[:, 0].to(x.device)
    gradients = vmap(grad(loss), (None, 0, 0))(weights, x, y)
    return {name: gradient.square().sum(0) for name, gradient in gradients.items()}
