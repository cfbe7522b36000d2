"""What must be said of a compressed file in the last lines of its report: where it is no success, and what to try."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyro_compress.compression.rounding import Rounding
from pyro_compress.compression.target import Target
from pyro_compress.data.several import task_named
from pyro_compress.metrics import constant_scores
from pyro_compress.scores import Quality
from pyro_compress.settings import Goal
from pyro_compress.types import Splits

SURE = 2.0
"""Standard errors by which a network must beat a constant answer, so as not to be at chance level."""


def outside(target: Target, after: Quality, hints: Sequence[str]) -> str:
    """That a file is outside of what was asked for, in words; empty if it is not.

    Args:
        target: what had to be reached on validation.
        after: validation scores of the file.
        hints: what to try.
    """
    if target.reached(after):
        return ""
    return (
        f"outside the tolerance: validation {target.counted(after)} and {after.nll_nats:.4f} nats, where {target} were "
        f"asked for; try {', '.join([*hints[:-1], f'or {hints[-1]}' if len(hints) > 1 else hints[-1]])}"
    )


def larger(file_bytes: int, dense_bytes: int) -> str:
    """That a file is larger than the network's values as they are, in words; empty if it is not."""
    if file_bytes < dense_bytes:
        return ""
    return (
        f"the file takes {file_bytes:,} bytes, the network's values as float32 {dense_bytes:,}: so small a network is "
        "no smaller as a file, whose header says what it is"
    )


def hints_of(
    goal: Goal, rounding: Rounding | None = None, finetuned: bool = False, lam: float | None = None
) -> list[str]:
    """What brings a file back into the tolerance, by the options that took it out.

    Args:
        goal: as it was asked for, its rule not yet a sparsity.
        rounding: how integers were made of the weights, where nothing else made them.
        finetuned: whether fine-tuning did.
        lam: its λ, where it was given.
    """
    found = []
    if goal.sparsity is not None:
        found.append("a smaller --sparsity (or none: it is searched for)")
    if goal.rule:
        found.append("leaving out --rule (a sparsity is searched for)")
    if goal.max_bytes is not None:
        found.append("more --max-bytes")
    if rounding and rounding.relative_step is not None:
        found.append("a smaller --relative-step (or none: it is searched for)")
    if rounding and rounding.bits:
        found.append("more --bits (or none)")
    if rounding and min(rounding.lams, default=0.0) > 0:
        found.append("a smaller --lambda (or none)")
    if lam is not None:
        found.append("a lower --finetune-lambda (or none: it is searched for)")
    found.append("more epochs of --finetune" if finetuned else "--finetune EPOCHS")
    return found if goal.max_bytes is not None else [*found, "more --tolerance"]


def at_chance(before: Quality, splits: Splits, elsewhere: bool) -> str:
    """That a network does no better on validation than a constant answer, in words; empty if it does.

    Args:
        before: validation scores of the uncompressed network.
        splits: validation labels, or targets in standard deviations.
        elsewhere: whether it was trained elsewhere; else a fit of this package was to teach it.
    """
    y = splits.validation.y
    task = task_named(splits.task)
    if task.noisy and task.outputs is None:
        wrong = float((task.constant(y) - y).square().mean().sqrt()) if splits.targets else 1.0
        error = wrong / math.sqrt(2 * y.numel())
    else:
        wrong = constant_scores(splits.task, y).error
        error = math.sqrt(max(wrong * (1 - wrong), 0.0) / task.counted(y))  # bits per token have none of this kind
    if before.error < wrong - SURE * error:
        return ""
    measure, cell = next(iter(before.cells.items()))
    advice = (
        "weights from elsewhere may want --input-mean and --input-std, or number the classes in another way"
        if elsewhere
        else "nothing was learned, or all of it given up: fit again, with a smaller --kl-weight, other rates or more "
        "--epochs"
    )
    said = f"validation {measure} {cell}, no better than one answer for everything"
    return f"at chance level before compression: {said}; {advice}"
