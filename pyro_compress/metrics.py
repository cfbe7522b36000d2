"""How good a network is; the only reader of the test split."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.types import Data, Scores, Splits

SPLITS = ("train", "validation", "test")
BATCH_VALUES = 1 << 21
Predict = Callable[[Tensor], Tensor]


def evaluate(predict: Predict, splits: Splits, split: str, device: str = "cpu") -> Scores:
    """Score `predict` (inputs -> logits) on one split by name; what reads the test split says so by this call."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    data: Data = getattr(splits, split)
    return score(logits_of(predict, data.x, device), data.y)


@torch.no_grad()
def logits_of(predict: Predict, x: Tensor, device: str = "cpu", batch: int = 1000) -> Tensor:
    """Logits `(n, classes)` on the CPU, computed in batches, smaller ones where examples are large."""
    batch = max(1, min(batch, BATCH_VALUES // max(x[:1].numel(), 1)))
    return torch.cat([predict(part.to(device)).float().cpu() for part in x.split(batch)])


def score(logits: Tensor, y: Tensor) -> Scores:
    """Accuracy, NLL, expected calibration error and Brier score of logits `(n, classes)` against labels `(n,)`."""
    log_probs = F.log_softmax(logits.double(), 1)
    probs = log_probs.exp()
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
