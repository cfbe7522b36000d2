"""How good a network is; the only reader of the test split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.data.tasks import SMALLEST_NOISE, TASKS
from pyro_compress.scores import Quality, RegressionScores, Scores
from pyro_compress.types import Data, Quantity, Splits

SPLITS = ("train", "validation", "test")
BATCH_VALUES = 1 << 21
Predict = Callable[[Tensor], Tensor]


def evaluate(predict: Predict, splits: Splits, split: str, device: str = "cpu", noise: float | None = None) -> Quality:
    """Score `predict` on one split by name; what reads the test split says so by this call.

    Args:
        predict: inputs -> outputs, as `pyro_compress.data.tasks` says what they mean.
        splits: the data.
        split: name in `SPLITS`.
        device: where to compute.
        noise: of regression; None: the one that makes this split most likely.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    data: Data = getattr(splits, split)
    return SCORES[splits.task](logits_of(predict, data.x, device), data.y, splits.targets, noise)


def evaluate_mixture(
    networks: Iterable[Predict], splits: Splits, names: Sequence[str], noise: float | None = None
) -> list[Quality]:
    """Score what networks predict together, on several splits: each network runs once, and none is kept.

    Args:
        networks: drawn from a posterior, say.
        splits: the data.
        names: of splits.
        noise: as for `evaluate`.
    """
    data: list[Data] = [getattr(splits, name) for name in names]
    found: list[list[Tensor]] = [[] for _ in names]
    for network in networks:
        for outputs, part in zip(found, data, strict=True):
            outputs.append(logits_of(network, part.x))
        del network  # the next one is as large
    task = TASKS[splits.task]
    scores = []
    for outputs, part in zip(found, data, strict=True):
        mixed = [task.mixture(list(rows)) for rows in zip(*(each.split(1000) for each in outputs), strict=True)]
        scores.append(SCORES[splits.task](torch.cat(mixed), part.y, splits.targets, noise))
    return scores


def scored(
    predict: Predict, data: Data, targets: Sequence[Quantity] = (), noise: float | None = None, device: str = "cpu"
) -> Quality:
    """Score `predict` on examples outside of any split; with targets as regression."""
    task = "regression" if targets else "classification"
    return SCORES[task](logits_of(predict, data.x, device), data.y, targets, noise)


@torch.no_grad()
def logits_of(predict: Predict, x: Tensor, device: str = "cpu", batch: int = 1000) -> Tensor:
    """Outputs `(n, ...)` on the CPU, computed in batches, smaller ones where examples are large."""
    batch = max(1, min(batch, BATCH_VALUES // max(x[:1].numel(), 1)))
    return torch.cat([predict(part.to(device)).float().cpu() for part in x.split(batch)])


def _class_scores(outputs: Tensor, y: Tensor, targets: Sequence[Quantity], noise: float | None) -> Quality:
    return score(outputs, y)


def regression_scores(outputs: Tensor, y: Tensor, targets: Sequence[Quantity], noise: float | None) -> RegressionScores:
    """RMSE and NLL in the targets' own units.

    Args:
        outputs: standardised means `(n, targets)`, or those of several networks `(n, networks, targets)`.
        y: standardised targets `(n, targets)`.
        targets: their units.
        noise: as for `evaluate`.
    """
    outputs, y = outputs.double(), y.double()
    gap = (outputs.mean(1) if outputs.dim() == 3 else outputs) - y
    spread = torch.tensor([target.std for target in targets], dtype=torch.float64)
    nats = TASKS["regression"].log_likelihood(outputs, y, noise)
    return RegressionScores(
        rmse=float((gap * spread).square().mean().sqrt()),
        nll_nats=float(-nats.mean() + spread.log().sum()),
        relative_rmse=float(gap.square().mean().sqrt()),
    )


SCORES: dict[str, Callable[[Tensor, Tensor, Sequence[Quantity], float | None], Quality]] = {
    "classification": _class_scores,
    "regression": regression_scores,
}
"""Task -> (outputs, y, targets, noise) -> scores."""


def residual_noise(predict: Predict, splits: Splits, device: str = "cpu") -> float | None:
    """The noise of a regression that its residuals on the validation split make most likely; None for other tasks."""
    if not splits.targets:
        return None
    return max(evaluate(predict, splits, "validation", device).error, SMALLEST_NOISE)


def score(logits: Tensor, y: Tensor) -> Scores:
    """Accuracy, NLL, expected calibration error and Brier score of logits `(n, classes)` against labels `(n,)`.

    Raises:
        ValueError: outputs that are no numbers.
    """
    log_probs = F.log_softmax(logits.double(), 1)
    probs = log_probs.exp()
    if broken := int((~probs.isfinite()).any(1).sum()):
        raise ValueError(f"the network's outputs are not finite (NaN or infinity) for {broken} of {len(y)} examples")
    onehot = F.one_hot(y, probs.shape[1])
    return Scores(
        accuracy=float((probs.argmax(1) == y).double().mean()),
        nll_nats=float(F.nll_loss(log_probs, y)),
        ece=calibration_error(probs, y),
        brier=float((probs - onehot).square().sum(1).mean()),
    )


def calibration_error(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error with equal-width bins of the top probability (Guo et al. 2017, eq. 3)."""
    confidence, predicted = probs.max(1)
    which = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, which, confidence.double() - (predicted == y).double())
    return float(gap.abs().sum() / len(y))


def out_of_domain_auroc(predict: Predict, splits: Splits, other: Splits, split: str) -> float:
    """How well predictive entropy tells inputs of another data set from this one's: area under the ROC curve.

    1 where every foreign input is less certain than every own one, 0.5 where entropy says nothing.
    """
    inside, outside = (entropy(logits_of(predict, getattr(data, split).x)) for data in (splits, other))
    return auroc(inside, outside)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted classes in nats, `(n,)`, of logits `(n, classes)`."""
    log_probs = F.log_softmax(logits.double(), 1)
    return -(log_probs.exp() * log_probs).sum(1)


def auroc(low: Tensor, high: Tensor) -> float:
    """Probability that a value of `high` exceeds one of `low`, ties counting half (Mann-Whitney U / (n m))."""
    _, inverse, counts = torch.cat([low, high]).unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts - 1).double() / 2  # mean rank of each distinct value, from 1
    ranks = rank[inverse[len(low) :]].sum()
    return float((ranks - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))
