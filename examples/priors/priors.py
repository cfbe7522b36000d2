"""Priors of one's own: Pyro functions of a shape and a name, and their options.

    pyro-compress fit --prior priors:laplace --prior-option scale=0.05

The weight is sampled at `name`; sites beside it are called `f"{name}.anything"` and lie on the reals or on the positive
numbers.
"""

import math

import pyro
import torch
from pyro.distributions import Gamma, HalfCauchy, HalfNormal, InverseGamma, Laplace, Normal, StudentT
from torch import Tensor

Shape = tuple[int, ...]


def laplace(shape: Shape, name: str, scale: float = 0.1) -> Tensor:
    """Double exponential: the prior behind L1."""
    return pyro.sample(name, Laplace(0.0, scale).expand(shape).to_event(len(shape)))


def student_t(shape: Shape, name: str, df: float = 3.0, scale: float = 0.1) -> Tensor:
    """Heavier tails than a Gaussian: most weights small, a few large."""
    return pyro.sample(name, StudentT(df, 0.0, scale).expand(shape).to_event(len(shape)))


def learned_scale(shape: Shape, name: str, typical: float = 0.3) -> Tensor:
    """Gaussian whose standard deviation is learned, one per layer (hierarchical, half-normal on top)."""
    ones = (1,) * len(shape)
    scale = pyro.sample(f"{name}.scale", HalfNormal(typical).expand(ones).to_event(len(ones)))
    return pyro.sample(name, Normal(0.0, scale).expand(shape).to_event(len(shape)))


def regularised_horseshoe(shape: Shape, name: str, tau: float = 0.2, slab: float = 0.5) -> Tensor:
    """A half-Cauchy scale per input, bounded by a slab (Piironen & Vehtari 2017, eq. 2.8)."""
    groups = (1, *shape[1:]) if len(shape) > 1 else shape
    local = pyro.sample(f"{name}.local", HalfCauchy(1.0).expand(groups).to_event(len(groups)))
    wide = pyro.sample(f"{name}.slab", InverseGamma(2.0, 2.0 * slab**2).expand((1,) * len(shape)).to_event(len(shape)))
    scale = (wide * (tau * local) ** 2 / (wide + (tau * local) ** 2)).sqrt()
    return pyro.sample(name, Normal(0.0, scale).expand(shape).to_event(len(shape)))


def group_spike_and_slab(shape: Shape, name: str, pi: float = 0.25, slab: float = 0.5, spike: float = 0.01) -> Tensor:
    """A mixture of a wide and a narrow Gaussian, the wide one's scale learned for every input of a layer."""
    groups = (1, *shape[1:]) if len(shape) > 1 else shape
    width = pyro.sample(f"{name}.width", Gamma(2.0, 2.0 / slab).expand(groups).to_event(len(groups)))
    return pyro.sample(name, SpikeAndSlab(pi, width, spike).expand(shape).to_event(len(shape)))


class SpikeAndSlab(Normal):
    """(1 - pi) N(0, spike²) + pi N(0, slab²); draws are the slab's, which a posterior never asks for."""

    def __init__(self, pi: float, slab: Tensor, spike: float) -> None:
        super().__init__(torch.zeros_like(slab), slab)
        self.parts = (pi, spike)

    def expand(self, shape: Shape, _instance: object = None) -> "SpikeAndSlab":
        """One for every weight."""
        return SpikeAndSlab(self.parts[0], self.scale.expand(shape), self.parts[1])

    def log_prob(self, value: Tensor) -> Tensor:
        """Of the mixture, by logsumexp."""
        pi, spike = self.parts
        narrow = Normal(0.0, spike).log_prob(value) + math.log1p(-pi)
        return torch.logaddexp(narrow, super().log_prob(value) + math.log(pi))
