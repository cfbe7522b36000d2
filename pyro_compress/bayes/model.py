"""The Pyro program of a network, and what fitting it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import Bernoulli, Categorical, Distribution, Normal
from torch import Tensor, nn

from pyro_compress.bayes.distributions import PositionLabels, Together
from pyro_compress.bayes.guides import Guide
from pyro_compress.data.several import parted, task_named
from pyro_compress.outputs import outputs_of
from pyro_compress.settings import FitConfig
from pyro_compress.training.history import Epoch
from pyro_compress.types import Graph, Removal


def _classes(logits: Tensor, log_noise: Tensor) -> Distribution:
    return Categorical(logits=logits)


def _targets(means: Tensor, log_noise: Tensor) -> Distribution:
    return Normal(means, log_noise.exp()).to_event(1)


def _positions(logits: Tensor, log_noise: Tensor) -> Distribution:
    return PositionLabels(logits)


def _labels(logits: Tensor, log_noise: Tensor) -> Distribution:
    return Bernoulli(logits=logits).to_event(1)


def _values(means: Tensor, log_noise: Tensor) -> Distribution:
    return Normal(means, log_noise.exp()).to_event(means.dim() - 1)


LIKELIHOODS: dict[str, Callable[[Tensor, Tensor], Distribution]] = {
    "classification": _classes,
    "regression": _targets,
    "next-token": _positions,
    "tagging": _positions,
    "segmentation": _positions,
    "multi-label": _labels,
    "reconstruction": _values,
}
"""Task -> (outputs, log noise) -> distribution of what was observed."""


def likelihood(task: str, outputs: Tensor, log_noise: Tensor) -> Distribution:
    """The distribution of what is observed, given the outputs of a network, `(n, ...)`."""
    several = outputs_of(task)
    if several is None:
        return LIKELIHOODS[task](outputs, log_noise)
    parts = [LIKELIHOODS[one.task](part, log_noise) for one, part, _ in parted(several, outputs, None)]
    return Together(parts, [one.labels for one in several.each])


LOG_NOISE_BOUNDS = (-7.0, 3.0)
"""Bounds on the log of the noise, in standard deviations of the targets (`tasks.SMALLEST_NOISE`)."""


class Likelihood(nn.Module):
    """The observed end of the Pyro program: what the outputs of a network say about labels or targets.

    Args:
        task: name in `LIKELIHOODS`.
        size: examples in the training set.
        noise: where a learned noise starts; a point estimate, one for all targets and examples.
        weights: of the classes, `(classes,)`: factors on each example's log-likelihood; None: all 1.
        learned: whether that noise is learned; else it is known.
    """

    weights: Tensor | None

    log_noise: Tensor | None

    def __init__(self, task: str, size: int, noise: float = 1.0, weights: Tensor | None = None, learned: bool = True):
        super().__init__()
        self.task, self.size = task, size
        log_noise = torch.tensor(noise).log() if task_named(task).noisy else None
        if learned:
            self.log_noise = None if log_noise is None else nn.Parameter(log_noise)
        else:
            self.register_buffer("log_noise", log_noise)
        self.register_buffer("weights", weights)

    @property
    def noise(self) -> float | None:
        """The learned noise; None where the task has none."""
        return None if self.log_noise is None else float(self.log_noise.detach().exp())

    def forward(self, outputs: Tensor, x: Tensor, y: Tensor | None) -> None:
        """Sample the site `y`, or observe it."""
        log_noise = outputs.new_zeros(()) if self.log_noise is None else self.log_noise
        weight = 1.0 if self.weights is None or y is None else self.weights[y]
        with pyro.plate("data", self.size, subsample=x), pyro.poutine.scale(scale=weight):
            pyro.sample("y", likelihood(self.task, outputs, log_noise), obs=y)


class Model(nn.Module):
    """The Pyro model: a network with priors, and a likelihood over a plate of training examples."""

    def __init__(self, net: nn.Module, likelihood: Likelihood):
        super().__init__()
        self.net, self.likelihood = net, likelihood

    @property
    def size(self) -> int:
        """Examples in the training set."""
        return self.likelihood.size

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Outputs `(batch, ...)`; with labels or targets given, the site `y` observes them."""
        outputs = self.net(x).float()  # under autocast they may be bfloat16
        self.likelihood(outputs, x, y)
        return outputs


def classifier(net: nn.Module, size: int) -> Model:
    """A network with priors under a categorical likelihood over `size` training examples."""
    return Model(net, Likelihood("classification", size))


@dataclass(frozen=True)
class Fit:
    """A fitted posterior, still in Pyro.

    Attributes:
        model: the Pyro model.
        guide: its variational posterior.
        net: the plain network it came from.
        graph: the network that was fitted, as data: the same, less the units that left.
        config: what determined the fit, resolved.
        history: one entry per epoch.
        removals: units that left.
    """

    model: Model
    guide: Guide
    net: nn.Module
    graph: Graph
    config: FitConfig
    history: tuple[Epoch, ...]
    removals: tuple[Removal, ...] = ()
