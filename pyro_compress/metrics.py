"""How good a network is; the only reader of the test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.data.several import parted, task_named
from pyro_compress.data.tasks import IGNORED, SMALLEST_NOISE, TASKS, position_nats
from pyro_compress.foreign import unknown
from pyro_compress.outputs import outputs_of
from pyro_compress.scores import (
    LabelScores,
    PositionScores,
    Quality,
    RegressionScores,
    Scores,
    SeveralScores,
    TextScores,
)
from pyro_compress.types import Data, Quantity, Splits

SPLITS = ("train", "validation", "test")
BATCH_VALUES = 1 << 21
TALLIED = 200
"""Examples with a class per position that are scored at a time, at most."""
MIXED_VALUES = 1 << 23
"""Outputs of every network that are mixed, where every position has a class."""
UNITS = {"bytes": "byte", "characters": "character"}
"""Vocabulary of a text -> what its tokens are."""
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
    found = scored_as(splits.task, predict, examples_of(splits, split), splits.targets, noise, device)
    return in_units(found, splits.origin.get("vocabulary", ""))


def examples_of(splits: Splits, split: str) -> Data:
    """The examples of one split by name, as `evaluate` reads them.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    data: Data = getattr(splits, split)
    return data


def in_units(scores: Quality, vocabulary: str) -> Quality:
    """Scores that call tokens what they are; those of other tasks as they are."""
    unit = UNITS.get(vocabulary)
    return replace(scores, unit=unit) if unit and isinstance(scores, TextScores) else scores


def scored_as(
    task: str, predict: Predict, data: Data, targets: Sequence[Quantity] = (), noise: float | None = None,
    device: str = "cpu",
) -> Quality:  # fmt: skip
    """Score `predict` on examples, as a task does; a class per position is counted batch by batch."""
    if not task_named(task).positions:
        return scores_of(task)(logits_of(predict, data.x, device), data.y, targets, noise)
    rows = torch.arange(len(data)).split(max(1, min(TALLIED, BATCH_VALUES // max(data.x[:1].numel(), 1))))
    tallies = [tally(logits_of(predict, data.x[part], device), data.y[part]) for part in rows]
    return POSITION_SCORES[task](*(torch.stack(parts).sum(0) for parts in zip(*tallies, strict=True)))


def evaluate_mixture(
    networks: Iterable[Predict], splits: Splits, names: Sequence[str], noise: float | None = None
) -> list[Quality]:
    """Score what networks predict together, on several splits: each network runs once, and none is kept.

    Where every position has a class, as many of the first examples are looked at as `MIXED_VALUES` outputs take.

    Args:
        networks: drawn from a posterior, say.
        splits: the data.
        names: of splits.
        noise: as for `evaluate`.
    """
    data: list[Data] = [getattr(splits, name) for name in names]
    found: list[list[Tensor]] = [[] for _ in names]
    most = max(1, MIXED_VALUES // math.prod(splits.output_shape)) if task_named(splits.task).positions else None
    for network in networks:
        for outputs, part in zip(found, data, strict=True):
            outputs.append(logits_of(network, part.x[:most]))
        del network  # the next one is as large
    task = task_named(splits.task)
    scores = []
    for outputs, part in zip(found, data, strict=True):
        mixed = [task.mixture(list(rows)) for rows in zip(*(each.split(1000) for each in outputs), strict=True)]
        found_scores = scores_of(splits.task)(torch.cat(mixed), part.y[: sum(map(len, mixed))], splits.targets, noise)
        scores.append(in_units(found_scores, splits.origin.get("vocabulary", "")))
    return scores


def scored(
    predict: Predict, data: Data, targets: Sequence[Quantity] = (), noise: float | None = None, device: str = "cpu"
) -> Quality:
    """Score `predict` on examples outside of any split; with targets as regression."""
    return scored_as("regression" if targets else "classification", predict, data, targets, noise, device)


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


def constant_scores(task: str, y: Tensor) -> Quality:
    """Scores of the best answer that looks at no input, of a task without noise."""
    constant = task_named(task).constant(y)
    if not task_named(task).positions:
        return scores_of(task)(constant, y, (), None)
    tallies = [tally(*part) for part in zip(constant.split(TALLIED), y.split(TALLIED), strict=True)]
    return POSITION_SCORES[task](*(torch.stack(parts).sum(0) for parts in zip(*tallies, strict=True)))


def tally(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What the scores of a class per position are made of, as sums over positions with a label.

    Args:
        outputs: logits `(n, classes, *positions)`.
        y: labels `(n, *positions)`.

    Returns:
        Nats `(1,)`; per class how often it was right, given, and there `(3, classes)`.

    Raises:
        ValueError: outputs that are no numbers.
    """
    if broken := int((~outputs.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"the network's outputs are not finite (NaN or infinity) for {broken} of {len(y)} examples")
    known, guess = y != IGNORED, outputs.argmax(1)
    classes, nats = outputs.shape[1], position_nats(outputs, y).double().sum()
    parts = guess[known & (guess == y)], guess[known], y[known]
    return nats[None], torch.stack([part.bincount(minlength=classes) for part in parts]).double()


def _text_scores(nats: Tensor, counts: Tensor) -> TextScores:
    nll = float(nats) / max(float(counts[2].sum()), 1)
    accuracy = float(counts[0].sum()) / max(float(counts[2].sum()), 1)
    return TextScores(nll / math.log(2), math.exp(min(nll, 700.0)), accuracy, nll)


def _position_scores(nats: Tensor, counts: Tensor) -> PositionScores:
    right, given, there = counts
    total, seen = max(float(there.sum()), 1), given + there > 0
    return PositionScores(
        accuracy=float(right.sum()) / total,
        mean_iou=float((right / (given + there - right))[seen].mean()),
        macro_f1=macro_f1(right, given, there),
        nll_nats=float(nats) / total,
    )


def macro_f1(right: Tensor, given: Tensor, there: Tensor) -> float:
    """F1 of every class that is there or was given, averaged; 0 where there is none.

    Args:
        right: how often a class was right, `(classes,)`.
        given: how often it was given.
        there: how often it is there.
    """
    seen = given + there > 0
    return float((2 * right / (given + there))[seen].mean()) if bool(seen.any()) else 0.0


POSITION_SCORES: dict[str, Callable[[Tensor, Tensor], TextScores | PositionScores]] = {
    "next-token": _text_scores,
    "tagging": _position_scores,
    "segmentation": lambda nats, counts: replace(_position_scores(nats, counts), judged="mean_iou"),
}
"""Task of a class per position -> what `tally` gives, summed -> scores."""


def _tallied(task: str) -> Callable[[Tensor, Tensor, Sequence[Quantity], float | None], Quality]:
    return lambda outputs, y, targets, noise: POSITION_SCORES[task](*tally(outputs, y))


def label_scores(outputs: Tensor, y: Tensor, targets: Sequence[Quantity], noise: float | None) -> LabelScores:
    """Scores of logits `(n, labels)` against labels of 0 and 1 of the same shape.

    Raises:
        ValueError: outputs that are no numbers.
    """
    if broken := int((~outputs.isfinite()).any(1).sum()):
        raise ValueError(f"the network's outputs are not finite (NaN or infinity) for {broken} of {len(y)} examples")
    given, there = outputs > 0, y > 0.5
    counts = [part.double().sum(0) for part in (given & there, given, there)]
    return LabelScores(
        accuracy=float((given == there).double().mean()),
        exact_match=float((given == there).all(1).double().mean()),
        macro_f1=macro_f1(*counts),
        nll_nats=-float(TASKS["multi-label"].log_likelihood(outputs.double(), y, None).mean()),
    )


def reconstruction_scores(
    outputs: Tensor, y: Tensor, targets: Sequence[Quantity], noise: float | None
) -> RegressionScores:
    """RMSE and NLL per value of inputs; the RMSE is relative to that of their mean."""
    outputs, y = outputs.double(), y.double()
    rmse, spread = (float(gap.square().mean().sqrt()) for gap in (outputs - y, y - y.mean(0)))
    nats = TASKS["reconstruction"].log_likelihood(outputs, y, noise or max(rmse, SMALLEST_NOISE))
    return RegressionScores(rmse, -float(nats.sum()) / y.numel(), rmse / max(spread, SMALLEST_NOISE))


SCORES: dict[str, Callable[[Tensor, Tensor, Sequence[Quantity], float | None], Quality]] = {
    "classification": _class_scores,
    "regression": regression_scores,
    "next-token": _tallied("next-token"),
    "tagging": _tallied("tagging"),
    "segmentation": _tallied("segmentation"),
    "multi-label": label_scores,
    "reconstruction": reconstruction_scores,
}
"""Task -> (outputs, y, targets, noise) -> scores."""


def scores_of(task: str) -> Callable[[Tensor, Tensor, Sequence[Quantity], float | None], Quality]:
    """The scores of a task by its name; of several outputs those of each."""
    if (outputs := outputs_of(task)) is None:
        return SCORES[task]

    def several(found: Tensor, y: Tensor, targets: Sequence[Quantity], noise: float | None) -> SeveralScores:
        known = targets or [Quantity("")] * outputs.targets
        own = zip(parted(outputs, found, y), outputs.of_numbers(known), strict=True)
        parts = {one.name: SCORES[one.task](part, labels, units, noise) for (one, part, labels), units in own}
        return SeveralScores(parts, sum(part.nll_nats for part in parts.values()))

    return several


def residual_noise(predict: Predict, splits: Splits, device: str = "cpu") -> float | None:
    """The noise that residuals on the validation split make most likely; None for tasks that have none."""
    if not task_named(splits.task).noisy:
        return None
    found: Any = evaluate(predict, splits, "validation", device)
    return max(found.relative_rmse if splits.targets else found.rmse, SMALLEST_NOISE)


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
