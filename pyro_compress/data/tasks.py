"""Tasks: what a network's outputs mean, in plain torch.

Classification: outputs are logits `(n, classes)`, labels `(n,)`. Regression: outputs are the means `(n, targets)` of a
Gaussian over the standardised targets `(n, targets)`, with one standard deviation for all of them, the noise. To add a
task, add a row here, its likelihood to `pyro_compress.bayes.model.LIKELIHOODS`, its scores to
`pyro_compress.metrics.SCORES` and `pyro_compress.scores`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NOISE = 1e-3
"""Noise below this, in standard deviations of the targets, is not believed: data that exact are not measured."""
EXACT_TARGETS = 16
"""A regression's Fisher information is exact up to so many targets; of more, as many random directions stand for it."""


@dataclass(frozen=True)
class Task:
    """A likelihood without Pyro; `noise` is that of regression, any other task ignores it.

    Attributes:
        loss: (outputs, y, noise) -> what point weights minimise: nats per example, up to a constant.
        log_likelihood: (outputs, y, noise) -> nats of every example, `(n,)`.
        predicted: outputs -> what people read: class probabilities, or the outputs themselves.
        sample: (outputs, noise) -> drawn labels or targets.
        mixture: outputs of several networks -> outputs of their mixture.
        uniform_nats: outputs -> nats per example that knowing nothing costs.
        constant: labels or targets -> outputs `(n, classes)` or `(n, targets)` of the network that fits them best
            without looking at its input.
        fisher: (outputs `(n, ...)`, noise, generator) -> directions v in the space of the outputs, `(n, rows, ...)`,
            whose outer products, summed over rows, are in expectation the Fisher information of the outputs, the
            expected `∇ log p(y | f) ∇ log p(y | f)ᵀ` over labels drawn from the network's own prediction.
    """

    loss: Callable[[Tensor, Tensor, float], Tensor]
    log_likelihood: Callable[[Tensor, Tensor, float | None], Tensor]
    predicted: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor, float | None], Tensor]
    mixture: Callable[[Sequence[Tensor]], Tensor]
    uniform_nats: Callable[[int], float]
    constant: Callable[[Tensor], Tensor]
    fisher: Callable[[Tensor, float | None, torch.Generator], Tensor]


def _cross_entropy(logits: Tensor, y: Tensor, noise: float) -> Tensor:
    return F.cross_entropy(logits, y)


def _log_probability(logits: Tensor, y: Tensor, noise: float | None) -> Tensor:
    return logits.log_softmax(1).gather(1, y[:, None])[:, 0]


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _draw_classes(logits: Tensor, noise: float | None) -> Tensor:
    return torch.distributions.Categorical(logits=logits).sample().short()


def mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """Log of the mean class probability over networks, `(n, classes)`."""
    log_probs = torch.stack([one.log_softmax(1) for one in logits])
    return log_probs.logsumexp(0) - torch.log(torch.tensor(float(len(logits))))


def _drawn_scores(logits: Tensor, noise: float | None, generator: torch.Generator) -> Tensor:
    """One row, the score of drawn labels: `e_y - p`, whose outer product has the mean `diag(p) - p pᵀ`.

    Classes stand on axis 1. Further axes are positions, each with a label of its own; their scores are independent, so
    one row holds for all of them.
    """
    chances = logits.softmax(1).movedim(1, -1)
    y = torch.multinomial(chances.flatten(0, -2), 1, generator=generator).view(chances.shape[:-1])
    return (F.one_hot(y, chances.shape[-1]) - chances).movedim(-1, 1)[:, None]


def _scaled_axes(outputs: Tensor, noise: float | None, generator: torch.Generator) -> Tensor:
    """`e_k / noise` for every target k: a Gaussian's Fisher information in its mean is `I / noise²`.

    Of more than `EXACT_TARGETS`, so many rows of random signs, which have the same in expectation.
    """
    targets = outputs[0].numel()
    if targets <= EXACT_TARGETS:
        rows = torch.eye(targets).expand(len(outputs), -1, -1)
    else:
        signs = torch.randint(0, 2, (len(outputs), EXACT_TARGETS, targets), generator=generator) * 2 - 1
        rows = signs / math.sqrt(EXACT_TARGETS)
    return (rows.to(outputs.dtype) / (noise or 1.0)).view(len(outputs), -1, *outputs.shape[1:])


def squared_error(outputs: Tensor, y: Tensor, noise: float) -> Tensor:
    """Half the squared error in units of the noise, summed over targets: minus the Gaussian's log-density."""
    return 0.5 * ((outputs - y) / noise).square().sum(1).mean()


def log_density(outputs: Tensor, y: Tensor, noise: float | None) -> Tensor:
    """Gaussian log-density of standardised targets, `(n,)`.

    Args:
        outputs: means `(n, targets)`, or those of several networks `(n, networks, targets)`: their equal mixture.
        y: standardised targets `(n, targets)`.
        noise: the standard deviation; None: the one that these targets make most likely.
    """
    if noise is None:
        centre = outputs.mean(1) if outputs.dim() == 3 else outputs
        noise = max(float((centre - y).square().mean().sqrt()), SMALLEST_NOISE)
    if outputs.dim() == 3:
        y = y[:, None]
    nats = -0.5 * ((y - outputs) / noise).square() - math.log(noise) - 0.5 * math.log(2 * math.pi)
    if outputs.dim() == 3:
        return nats.sum(2).logsumexp(1) - math.log(outputs.shape[1])
    return nats.sum(1)


def _draw_targets(outputs: Tensor, noise: float | None) -> Tensor:
    return (outputs + (noise or 0.0) * torch.randn(outputs.shape, dtype=outputs.dtype)).float()


TASKS: dict[str, Task] = {
    "classification": Task(
        loss=_cross_entropy,
        log_likelihood=_log_probability,
        predicted=_probabilities,
        sample=_draw_classes,
        mixture=mean_probability,
        uniform_nats=math.log,
        constant=lambda y: y.bincount().double().log().expand(len(y), -1),
        fisher=_drawn_scores,
    ),
    "regression": Task(
        loss=squared_error,
        log_likelihood=log_density,
        predicted=lambda outputs: outputs,
        sample=_draw_targets,
        mixture=lambda outputs: torch.stack(list(outputs), 1),
        uniform_nats=lambda targets: 0.5 * targets * math.log(2 * math.pi * math.e),
        constant=lambda y: y.mean(0).expand_as(y),
        fisher=_scaled_axes,
    ),
}


def class_weights(y: Tensor, classes: int) -> Tensor:
    """Weights `(classes,)` that give every class the same total, and the examples mean 1: N / (classes · count)."""
    counts = y.bincount(minlength=classes).clamp(min=1)
    weights = counts.reciprocal()
    return weights / weights[y].mean()
