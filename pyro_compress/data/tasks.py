"""Tasks: what a network's outputs mean, in plain torch.

Classification: outputs are logits `(n, classes)`, labels `(n,)`. Regression: outputs are the means `(n, targets)` of a
Gaussian over the standardised targets `(n, targets)`, with one standard deviation for all of them, the noise.
Next-token prediction, tagging and segmentation: logits `(n, classes, *positions)`, labels `(n, *positions)`, of which
`IGNORED` ones count in no loss and in no score. Multi-label: logits `(n, labels)`, each of a Bernoulli, and 0 or 1 as
float32 `(n, labels)`. Reconstruction: outputs are means of the inputs' own shape, with one noise.

Several outputs with a loss each are a task of their own, made of these (`several`).

To add a task, add a row here, its likelihood to `pyro_compress.bayes.model.LIKELIHOODS`, its scores to
`pyro_compress.metrics.SCORES` and `pyro_compress.scores`, its labels to `pyro_compress.data.npz.LABELS`, its name to
`pyro_compress.pcn.meta.TASKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.outputs import Outputs

SMALLEST_NOISE = 1e-3
"""Noise below this, in standard deviations of the targets, is not believed: data that exact are not measured."""
IGNORED = -100
"""Label of a position that has none."""
EXACT_TARGETS = 16
"""A regression's Fisher information is exact up to so many targets; of more, as many random directions stand for it."""
CHUNK = 256
"""Examples of which constant answers are worked on at a time."""


@dataclass(frozen=True)
class Task:
    """A likelihood without Pyro; `noise` is that of regression, any other task ignores it.

    Attributes:
        loss: (outputs, y, noise) -> what point weights minimise: nats per counted thing, up to a constant.
        log_likelihood: (outputs, y, noise) -> nats of every example, `(n,)`.
        predicted: outputs -> what people read: class probabilities, or the outputs themselves.
        sample: (outputs, noise) -> drawn labels or targets.
        mixture: outputs of several networks -> outputs of their mixture.
        uniform_nats: outputs -> nats per counted thing that knowing nothing costs.
        constant: labels or targets -> outputs `(n, classes)` or `(n, targets)` of the network that fits them best
            without looking at its input.
        fisher: (outputs `(n, ...)`, noise, generator) -> directions v in the space of the outputs, `(n, rows, ...)`,
            whose outer products, summed over rows, are in expectation the Fisher information of the outputs, the
            expected `∇ log p(y | f) ∇ log p(y | f)ᵀ` over labels drawn from the network's own prediction.
        divergence: (outputs, others of the same inputs, noise) -> mean KL divergence of what the first say from what
            the others say, in nats per example, or per position or value as `loss` counts them.
        counted: labels or targets -> how many things the mean NLL is taken over: examples, positions with a label, or
            values of all examples.
        noisy: whether the likelihood has a noise that is learned.
        positions: whether every position of an example has a class of its own.
        outputs: of a network with several, what they are; None: there is one.
    """

    loss: Callable[[Tensor, Tensor, float], Tensor]
    log_likelihood: Callable[[Tensor, Tensor, float | None], Tensor]
    predicted: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor, float | None], Tensor]
    mixture: Callable[[Sequence[Tensor]], Tensor]
    uniform_nats: Callable[[int], float]
    constant: Callable[[Tensor], Tensor]
    fisher: Callable[[Tensor, float | None, torch.Generator], Tensor]
    divergence: Callable[[Tensor, Tensor, float], Tensor]
    counted: Callable[[Tensor], int] = len
    noisy: bool = False
    positions: bool = False
    outputs: Outputs | None = None


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


def _class_divergence(logits: Tensor, others: Tensor, noise: float) -> Tensor:
    nats = F.kl_div(logits.log_softmax(1), others.log_softmax(1), log_target=True, reduction="none")
    return nats.sum(1).mean()


def _label_divergence(logits: Tensor, others: Tensor, noise: float) -> Tensor:
    chances = others.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, chances, reduction="none")
    return (cross - F.binary_cross_entropy_with_logits(others, chances, reduction="none")).sum(1).mean()


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


def labelled(y: Tensor) -> int:
    """Positions that have a label; at least 1, as means are taken over them."""
    return max(int((y != IGNORED).sum()), 1)


def position_nats(logits: Tensor, y: Tensor) -> Tensor:
    """NLL of every position, `(n, *positions)`; 0 where there is no label."""
    return F.cross_entropy(logits, y, ignore_index=IGNORED, reduction="none")


def _positions_loss(logits: Tensor, y: Tensor, noise: float) -> Tensor:
    return position_nats(logits, y).sum() / (y != IGNORED).sum().clamp(min=1)


def _positions_log_probability(logits: Tensor, y: Tensor, noise: float | None) -> Tensor:
    return -position_nats(logits, y).flatten(1).sum(1)


def _position_frequencies(y: Tensor) -> Tensor:
    counts = y[y != IGNORED].bincount().double().clamp(min=0.5).log()
    return counts.view(1, -1, *(1 for _ in y.shape[1:])).expand(len(y), -1, *y.shape[1:])


def _draw_positions(logits: Tensor, noise: float | None) -> Tensor:
    return _draw_classes(logits.movedim(1, -1), noise)


def _labels_loss(logits: Tensor, y: Tensor, noise: float) -> Tensor:
    return -_labels_log_probability(logits, y, noise).mean()


def _labels_log_probability(logits: Tensor, y: Tensor, noise: float | None) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none").sum(1)


def _mean_label_probability(logits: Sequence[Tensor]) -> Tensor:
    """Log-odds of the mean probability over networks, `(n, labels)`."""
    yes = torch.stack([F.logsigmoid(one) for one in logits]).logsumexp(0)
    return yes - torch.stack([F.logsigmoid(-one) for one in logits]).logsumexp(0)


def _drawn_label_scores(logits: Tensor, noise: float | None, generator: torch.Generator) -> Tensor:
    """One row, `y - p` of drawn labels, whose outer product has the mean `diag(p (1 - p))`."""
    chances = logits.sigmoid()
    return (torch.bernoulli(chances, generator=generator) - chances)[:, None]


def _values_loss(outputs: Tensor, y: Tensor, noise: float) -> Tensor:
    return 0.5 * ((outputs - y) / noise).square().mean()


def _values_log_density(outputs: Tensor, y: Tensor, noise: float | None) -> Tensor:
    return log_density(outputs.flatten(1), y.flatten(1), noise)


def constant_nats(task: Task, y: Tensor) -> float:
    """NLL per counted thing of the best answer that looks at no input."""
    parts = zip(task.constant(y).split(CHUNK), y.split(CHUNK), strict=True)
    if task.noisy:
        return -float(task.log_likelihood(task.constant(y), y, None).sum()) / task.counted(y)
    return -sum(float(task.log_likelihood(outputs, part, None).sum()) for outputs, part in parts) / task.counted(y)


POSITIONS = Task(
    loss=_positions_loss,
    log_likelihood=_positions_log_probability,
    predicted=lambda logits: logits.softmax(1),
    sample=_draw_positions,
    mixture=mean_probability,
    uniform_nats=math.log,
    constant=_position_frequencies,
    fisher=_drawn_scores,
    divergence=_class_divergence,
    counted=labelled,
    positions=True,
)
"""A class per position."""

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
        divergence=_class_divergence,
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
        divergence=squared_error,
        noisy=True,
    ),
    "next-token": POSITIONS,
    "tagging": POSITIONS,
    "segmentation": POSITIONS,
    "multi-label": Task(
        loss=_labels_loss,
        log_likelihood=_labels_log_probability,
        predicted=torch.sigmoid,
        sample=lambda logits, noise: torch.bernoulli(logits.sigmoid()).short(),
        mixture=_mean_label_probability,
        uniform_nats=lambda labels: labels * math.log(2),
        constant=lambda y: y.double().mean(0).clamp(1e-6, 1 - 1e-6).logit().expand_as(y),
        fisher=_drawn_label_scores,
        divergence=_label_divergence,
    ),
    "reconstruction": Task(
        loss=_values_loss,
        log_likelihood=_values_log_density,
        predicted=lambda outputs: outputs,
        sample=_draw_targets,
        mixture=lambda outputs: torch.stack(list(outputs)).mean(0),
        uniform_nats=lambda values: 0.5 * math.log(2 * math.pi * math.e),
        constant=lambda y: y.mean(0).expand_as(y),
        fisher=_scaled_axes,
        divergence=_values_loss,
        counted=Tensor.numel,
        noisy=True,
    ),
}


def class_weights(y: Tensor, classes: int) -> Tensor:
    """Weights `(classes,)` that give every class the same total, and the examples mean 1: N / (classes · count)."""
    counts = y.bincount(minlength=classes).clamp(min=1)
    weights = counts.reciprocal()
    return weights / weights[y].mean()
