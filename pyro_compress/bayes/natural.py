"""A natural-gradient step on means and log-scales of a normal posterior: variational online Newton.

With N examples and F the negative ELBO per example, the precision of a weight is 1/σ² = N (h + δ): h is a running
estimate of the Hessian of the mean loss, δ the prior's precision over N. Shen et al. 2024 (IVON, arXiv 2402.17641,
algorithm 1) estimate the Hessian from the draw w = m + σε by Price's theorem, ĥ = ĝ (w - m) / σ², and move h by
ρ = 1 - β₂ along the second-order retraction of Lin et al. 2020, which keeps h + δ positive:

    h + δ  <-  (h + δ) (1 + x + ½x²),   x = ρ (ĥ - h) / (h + δ)
    m  <-  m - α ḡ / (h + δ),           ḡ: mean of past gradients, by β₁, corrected for its start

Now N ∂F/∂log σ = N ε σ ĝ + ∂KL/∂log σ; under the Gaussian prior the second term is δ / (h + δ) - 1, and both together
are (ĥ - h) / (h + δ). So

    x = ρ N ∂F/∂log σ,   log σ  <-  log σ - ½ log(1 + x + ½x²),   m  <-  m - α N σ² ḡ

which asks nothing of the prior or of the estimator but the gradient that there is anyway: closed where the KL is, else
from the same draw. It stands still only where the gradient of the ELBO does, whatever α and ρ. Unlike the paper's, ḡ
holds the gradient of the prior, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Rates = tuple[Tensor | float, Tensor | float]
"""α N / (1 - β₁ᵗ) and ρ N, both with the schedule's factor on them."""


@dataclass(frozen=True)
class Natural:
    """Rates of a natural-gradient step.

    Attributes:
        lr: α, learning rate of the means; a quadratic loss is at its minimum after one step of rate 1.
        beta1: weight of the past in the mean of gradients.
        beta2: weight of the past in the precision; 1 - β₂ is its learning rate.
        size: N, examples in the training set.
    """

    lr: float
    beta1: float
    beta2: float
    size: int

    def rates(self, count: int, factor: float) -> tuple[float, float]:
        """The rates of step `count` (from 1), where the schedule has come to this factor."""
        by_mean = self.lr / (1 - self.beta1**count)
        return factor * by_mean * self.size, factor * (1 - self.beta2) * self.size


def natural_step(
    mean: Tensor, log_scale: Tensor, first: Tensor, gradients: tuple[Tensor, Tensor], rates: Rates, beta1: float,
    bounds: tuple[float, float],
) -> None:  # fmt: skip
    """Move the posterior of one tensor, in place.

    Args:
        mean: m.
        log_scale: log σ.
        first: ḡ, not yet corrected for its start.
        gradients: of the negative ELBO per example, in m and in log σ.
        rates: of this step.
        beta1: weight of the past in ḡ.
        bounds: (low, high) of log σ.
    """
    by_mean, by_log_scale = gradients
    mean_rate, precision_rate = rates
    x = precision_rate * by_log_scale
    log_scale.sub_(0.5 * (x * (0.5 * x + 1) + 1).log()).clamp_(*bounds)
    first.lerp_(by_mean, 1 - beta1)
    mean.sub_(mean_rate * first * (2 * log_scale).exp())
