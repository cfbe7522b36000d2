"""Networks drawn from a posterior's moments, and what they predict together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyro_compress.data.several import task_named
from pyro_compress.graph.network import Network
from pyro_compress.types import Masks, Posterior


def has_spread(posterior: Posterior) -> bool:
    """Whether weights can be drawn independently from their moments: a spread, and no shared scales."""
    layers = posterior.layers.values()
    return all(layer.unit_mean is None for layer in layers) and any(bool((layer.std > 0).any()) for layer in layers)


def masked(posterior: Posterior, masks: Masks) -> Posterior:
    """The posterior with pruned weights at exactly zero, mean and standard deviation."""
    layers = {
        name: replace(layer, mean=layer.mean * masks[name], std=layer.std * masks[name])
        for name, layer in posterior.layers.items()
    }
    return replace(posterior, layers=layers)


def drawn(posterior: Posterior, generator: torch.Generator) -> Network:
    """One network: every weight an independent Normal draw, everything else at its mean."""
    weights = {
        name: layer.mean + layer.std * torch.randn(layer.mean.shape, generator=generator)
        for name, layer in posterior.layers.items()
    }
    return Network(posterior.graph, weights | posterior.dense).eval()


class Ensemble:
    """The predictive distribution of several drawn classifiers, as logits: log of the mean probability.

    Args:
        posterior: without group scales (`has_spread`).
        draws: number of networks.
        seed: seeds them.
    """

    def __init__(self, posterior: Posterior, draws: int = 10, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.networks = [drawn(posterior, generator) for _ in range(draws)]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits `(n, classes)` of inputs `(n, *input_shape)`."""
        return mixture(self.networks, x)


def mixture(networks: Sequence[nn.Module], x: Tensor, task: str = "classification") -> Tensor:
    """Outputs of several networks together, as their task mixes them."""
    return task_named(task).mixture([network(x) for network in networks])
