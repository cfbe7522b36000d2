"""Priors that neither torch nor Pyro has."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class LogUniform(TorchDistribution):
    """Improper prior `p(w) ∝ 1 / |w|` on the real line (Kingma et al. 2015; Molchanov et al. 2017).

    Its density has no normalising constant; `log_prob` is `-log |w|`, and the KL to it is defined up to a constant
    that makes it 0 for an infinitely wide posterior.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own protocol
    support = constraints.real

    def __init__(self, batch_shape: tuple[int, ...] = ()):
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> LogUniform:
        """The same prior for a batch of weights."""
        return LogUniform(batch_shape)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Always fails: nothing can be drawn from an improper prior."""
        raise ValueError("the log-uniform prior is improper: it has no draws, only posteriors under it have")

    def log_prob(self, value: Tensor) -> Tensor:
        """`-log |w|`, bounded at |w| = 1e-30."""
        return -value.abs().clamp_min(1e-30).log()


class ScaleMixture(TorchDistribution):
    """Spike-and-slab scale mixture `pi N(0, sigma1²) + (1 - pi) N(0, sigma2²)` (Blundell et al. 2015, eq. 7).

    One fused density: with `a` and `b` the log-densities of the two terms, `log p = b + softplus(a - b)`.

    Args:
        pi: weight of the first term, in (0, 1).
        sigma1: standard deviation of the first term (the slab).
        sigma2: standard deviation of the second (the spike).
        batch_shape: shape of independent copies.
        device: device of draws.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own protocol
    support = constraints.real

    def __init__(self, pi: float, sigma1: float, sigma2: float, batch_shape: tuple[int, ...] = (), device: str = "cpu"):
        if not 0 < pi < 1 or sigma1 <= 0 or sigma2 <= 0:
            raise ValueError(
                f"scale mixture: pi={pi}, sigma1={sigma1}, sigma2={sigma2}; needed are 0 < pi < 1 and positive sigmas"
            )
        self.pi, self.sigma1, self.sigma2, self.device = pi, sigma1, sigma2, device
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> ScaleMixture:
        """The same prior for a batch of weights."""
        return type(self)(self.pi, self.sigma1, self.sigma2, batch_shape, self.device)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draw weights of shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        slab = torch.rand(shape, device=self.device) < self.pi
        return torch.randn(shape, device=self.device) * torch.where(slab, self.sigma1, self.sigma2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, elementwise."""
        square = value.square()
        spike = math.log1p(-self.pi) - math.log(self.sigma2 * math.sqrt(2 * math.pi)) - square / (2 * self.sigma2**2)
        offset = math.log(self.pi * self.sigma2 / ((1 - self.pi) * self.sigma1))
        logit = offset + square * (0.5 / self.sigma2**2 - 0.5 / self.sigma1**2)
        return spike + F.softplus(logit)


class ScaleMixtureBound(ScaleMixture):
    """The scale mixture, whose KL is replaced by a closed-form upper bound: another objective, named apart.

    `-log Σ_k pi_k exp(-KL(q ‖ N(0, sigma_k²)))` (variational bound on the KL to a mixture, Hershey & Olsen 2007,
    eq. 20). It exceeds the KL by 0.5 to 2.5 nats per weight near zero, exactly where pruning happens.
    """
