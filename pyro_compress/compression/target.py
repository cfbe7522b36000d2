"""What a search must reach on the validation split, and the candidates it has seen.

A target bounds the NLL beside the accuracy: on a few hundred examples accuracy alone is a coarse ruler, and a search
over it finds its gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pyro_compress.data.several import task_named
from pyro_compress.graph.network import Network
from pyro_compress.metrics import evaluate
from pyro_compress.scores import Quality, SeveralScores, TextScores
from pyro_compress.settings import Goal
from pyro_compress.types import Posterior, Splits

NLL_PER_ACCURACY = 2.0
"""Nats per example that may be lost, by default, for each unit of accuracy that may: 0.01 for half a point."""
LARGE_SPLIT = 3000
"""Below this many validation examples the default allowance in nats shrinks with the root of their number."""


@dataclass(frozen=True)
class Trial:
    """One candidate of a search: a point of the size-against-error curve.

    Attributes:
        sparsity: share of the weights that the criterion removed.
        relative_step: of the weights, in units of each layer's own scale; 0 where fine-tuning chose the integers, or
            bits are given.
        lam: λ of fine-tuning or of rounding; 0 without.
        bytes: size of the file before its units are put in another order (`order.py`); without fine-tuning an upper
            bound, as the context coder is left out.
        validation_error: share of validation examples that it gets wrong, or what else the task calls its error.
        validation_nll_nats: per example.
    """

    sparsity: float
    relative_step: float
    lam: float
    bytes: int
    validation_error: float
    validation_nll_nats: float


@dataclass(frozen=True)
class SearchCallbacks:
    """Who is told while a compression runs.

    Attributes:
        trial: progress of a search, called with (done, total).
        candidate: called with every candidate; None spares what nobody else asks, the size of those that miss. Where it
            returns True, the search ends with what it has found, once that is good enough.
        epoch: called after every epoch of fine-tuning with (epoch, epochs, non-zero values).
    """

    trial: Callable[[int, int], None] = lambda done, total: None
    candidate: Callable[[Trial], object] | None = None
    epoch: Callable[[int, int, int], None] = lambda epoch, epochs, kept: None


@dataclass(frozen=True)
class Target:
    """What a candidate must reach.

    Attributes:
        reference: scores of the uncompressed network.
        tolerance: what may be lost of them (`Quality.within`).
        nll_tolerance: nats per example that may be lost.
        error: the largest error, instead of a tolerance; None: the tolerance counts.
    """

    reference: Quality
    tolerance: float
    nll_tolerance: float
    error: float | None = None

    def reached(self, scores: Quality) -> bool:
        """Whether scores are good enough."""
        near = scores.within(self.reference, self.tolerance) if self.error is None else scores.reaches(self.error)
        return near and scores.nll_nats <= self.reference.nll_nats + self.nll_tolerance

    def counted(self, scores: Quality) -> str:
        """What scores are by the measure that the target is of, in the same words: of several outputs, of each."""
        if self.error is None:
            return scores.bound(0.0)
        parts = scores.parts if isinstance(scores, SeveralScores) else {"": scores}
        return ", ".join(f"{name}{': ' * bool(name)}error of {part.error:.4g}" for name, part in parts.items())

    @property
    def nats(self) -> float:
        """NLL that may be lost, as far as the numbers say: of a text its bits are bounded, too."""
        before, most = self.reference, math.inf
        if isinstance(before, TextScores):
            most = (
                before.nll_nats * self.tolerance if self.error is None else self.error * math.log(2) - before.nll_nats
            )
        return min(self.nll_tolerance, most)

    def __str__(self) -> str:
        """In words."""
        wanted = self.reference.bound(self.tolerance) if self.error is None else f"error of {self.error:g}"
        most = self.reference.nll_nats + self.nll_tolerance
        return f"a validation {wanted}" + (f" and an NLL of {most:.4f} nats" if math.isfinite(most) else "")


def target_of(posterior: Posterior, splits: Splits, goal: Goal, device: str = "cpu") -> Target:
    """What a candidate must reach: the reference's validation scores less a tolerance, or a given error.

    Raises:
        ValueError: a tolerance or an error out of range.
    """
    tolerance, nll_tolerance, target_error = goal.tolerance, goal.nll_tolerance, goal.target_error
    if target_error is not None and target_error > 1 and splits.task != "next-token":
        raise ValueError(f"target_error {target_error}: allowed are values from 0 to 1 (0.02 is two points)")
    given = goal.reference or posterior
    network = Network(given.graph, given.tensors, own=True).eval().to(device)
    reference = evaluate(network, splits, "validation", device, given.noise)
    if target_error is not None:
        return Target(reference, tolerance, math.inf if nll_tolerance is None else nll_tolerance, target_error)
    counted = task_named(splits.task).counted(splits.validation.y)
    nll = default_nll_tolerance(tolerance, counted) if nll_tolerance is None else nll_tolerance
    return Target(reference, tolerance, nll)


def default_nll_tolerance(tolerance: float, examples: int) -> float:
    """Nats per example that may be lost beside a tolerance of accuracy.

    On a small split chance moves the difference of two networks by more than the tolerance, and a search among many
    candidates finds the lucky ones: the allowance shrinks as the standard error of the difference grows.
    """
    return NLL_PER_ACCURACY * tolerance * min(1.0, (examples / LARGE_SPLIT) ** 0.5)
