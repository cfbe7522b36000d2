"""Distributions that neither torch nor Pyro has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints

from pyro_compress.data.tasks import IGNORED, position_nats


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


class GroupRelevance(TorchDistribution):
    """Normal prior N(0, 1 / α_g) on the weights of a group, whose α_g is always the most probable one (MacKay 1995).

    Improper: with α_g integrated out under `p(α) ∝ 1 / α`, `p(w_g) ∝ ‖w_g‖^-n` for n weights. `log_prob` gives every
    weight its share of that.

    Args:
        axes: along which a group's weights lie.
        batch_shape: shape of the weight.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own protocol
    support = constraints.real

    def __init__(self, axes: tuple[int, ...], batch_shape: tuple[int, ...] = ()):
        self.axes = axes
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> GroupRelevance:
        """The same prior for a tensor of this shape."""
        return GroupRelevance(self.axes, batch_shape)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Always fails: nothing can be drawn from an improper prior."""
        raise ValueError("the relevance prior is improper: it has no draws, only posteriors under it have")

    def power(self, squares: Tensor) -> Tensor:
        """Mean of every group, `1 / α_g` where these are E[w²]; of the given shape, one along the group."""
        return squares.mean(self.axes, keepdim=True) if self.axes else squares

    def log_prob(self, value: Tensor) -> Tensor:
        """`-½ log mean(w_g²)` of every weight, bounded at 1e-30."""
        return -0.5 * self.power(value.square()).clamp_min(1e-30).log().expand_as(value)


class ScaleMixture(TorchDistribution):
    """Spike-and-slab scale mixture `pi N(0, sigma1²) + (1 - pi) N(0, sigma2²)` (Blundell et al. 2015, eq. 7).

    One fused density: with `a` and `b` the log-densities of the wider and the narrower term, each with its weight,
    `log p = log(e^a + e^b) = a + softplus(b - a)`, with the derivative
    `-w (1 / σa² + sigmoid(b - a) (1 / σb² - 1 / σa²))`: no two large numbers are ever subtracted. The other way round,
    `b + softplus(a - b)`, the wider term is a difference of numbers as large as `w² / σb²`, of which float32 keeps
    nothing where `σb = e^-8`.

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
        return self.log_sum(0.5 * value.square()) - 0.5 * math.log(2 * math.pi)

    def log_sum(self, x: Tensor) -> Tensor:
        """`log Σ_k pi_k exp(-x / sigma_k²) / sigma_k` for x ≥ 0, elementwise, from the wider term up."""
        terms = (self.sigma1, math.log(self.pi)), (self.sigma2, math.log1p(-self.pi))
        (narrow, log_narrow), (wide, log_wide) = sorted(terms)
        logit = log_narrow - log_wide + math.log(wide / narrow) - x * (1 / narrow**2 - 1 / wide**2)
        return log_wide - math.log(wide) - x * (1 / wide**2) + F.softplus(logit)


class ScaleMixtureBound(ScaleMixture):
    """The scale mixture, whose KL is replaced by a closed-form upper bound: another objective, named apart.

    `-log Σ_k pi_k exp(-KL(q ‖ N(0, sigma_k²)))` (variational bound on the KL to a mixture, Hershey & Olsen 2007,
    eq. 20). It exceeds the KL by 0.5 to 2.5 nats per weight near zero, exactly where pruning happens.
    """


class SoftSharing(TorchDistribution):
    """Mixture of Gaussians `Σ_k π_k N(μ_k, 1/λ_k)` whose components all weights share (Nowlan & Hinton 1992, eq. 2).

    Args:
        log_weights: log π_k, `(components,)`.
        means: μ_k, `(components,)`.
        precisions: λ_k, `(components,)`.
        batch_shape: shape of independent copies.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own protocol
    support = constraints.real

    def __init__(self, log_weights: Tensor, means: Tensor, precisions: Tensor, batch_shape: tuple[int, ...] = ()):
        self.log_weights, self.means, self.precisions = log_weights, means, precisions
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> SoftSharing:
        """The same prior for a batch of weights."""
        return SoftSharing(self.log_weights, self.means, self.precisions, batch_shape)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draw weights of shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        which = Categorical(logits=self.log_weights).sample(shape)
        noise = torch.randn(shape, device=self.means.device)
        drawn: Tensor = self.means[which] + noise * self.precisions[which].rsqrt()
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, elementwise."""
        constants = self.log_weights + 0.5 * self.precisions.log() - 0.5 * math.log(2 * math.pi)
        terms = constants - 0.5 * self.precisions * (value.unsqueeze(-1) - self.means).square()
        return terms.logsumexp(-1)


class PositionLabels(TorchDistribution):
    """A class for every position of an example, independent of each other: one event `(*positions)` per example.

    Positions whose label is `pyro_compress.data.tasks.IGNORED` have probability 1.

    Args:
        logits: `(n, classes, *positions)`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own protocol
    support = constraints.independent(constraints.integer_interval(IGNORED, torch.inf), 1)

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(logits.shape[:1], torch.Size((*logits.shape[2:],)), validate_args=False)

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> PositionLabels:
        """The same for a batch of examples."""
        return PositionLabels(self.logits.expand(*batch_shape, *self.logits.shape[1:]))

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Classes, `sample_shape + (n, *positions)`."""
        drawn: Tensor = Categorical(logits=self.logits.movedim(1, -1)).sample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats of every example, `(n,)`."""
        return -position_nats(self.logits, value).flatten(1).sum(1)


class Together(TorchDistribution):
    """Independent observations of one example, one behind the other: one event `(columns,)` per example.

    Args:
        parts: of each a distribution over `n` examples; events are numbers, or rows of them.
        columns: of each.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own protocol
    support = constraints.real_vector

    def __init__(self, parts: Sequence[Any], columns: Sequence[int]):
        self.parts, self.columns = list(parts), list(columns)
        super().__init__(self.parts[0].batch_shape, torch.Size((sum(self.columns),)), validate_args=False)

    def expand(self, batch_shape: tuple[int, ...], _instance: Any = None) -> Together:
        """The same for a batch of examples."""
        return Together([part.expand(batch_shape) for part in self.parts], self.columns)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Observations, `sample_shape + (n, columns)`."""
        drawn = [part.sample(torch.Size(sample_shape)).float() for part in self.parts]
        return torch.cat(
            [one if part.event_shape else one[..., None] for one, part in zip(drawn, self.parts, strict=True)], -1
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats of every example, `(n,)`."""
        own = zip(self.parts, value.split(self.columns, -1), strict=True)
        return torch.stack([part.log_prob(one if part.event_shape else one[..., 0]) for part, one in own]).sum(0)
