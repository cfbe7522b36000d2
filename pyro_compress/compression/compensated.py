"""A trained network as integers without training, at the highest λ that reaches what is asked for.

λ, the Lagrange multiplier of the bits, is searched for on a logarithmic scale: between one that reaches the goal and
one that does not, where the line through the two nearest candidates says. Then other dampings and the
other order of columns are tried around it, and at last the best of them with biases and norms that make up for it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace

from pyro_compress.compression.calibrated import OperatingPoint, Rounded, calibrated, work_of
from pyro_compress.compression.candidates import BIAS_LEVELS, origin_of, to_module
from pyro_compress.compression.packing import before_folding, packed
from pyro_compress.compression.prune import removed_share
from pyro_compress.compression.repair import affordable
from pyro_compress.compression.search import PRECISION_TOLERANCE
from pyro_compress.compression.shrink import shrink
from pyro_compress.compression.target import NLL_PER_ACCURACY, SearchCallbacks, Target, Trial, target_of
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.pcn.streams import COMPILED
from pyro_compress.scores import Quality
from pyro_compress.settings import Goal
from pyro_compress.types import Compressed, Posterior, Splits

LAMBDAS = (1e-10, 6e-6)
"""Range of the first search for λ, in nats per bit and example."""
OUTERMOST = (1e-13, 1e-3)
"""Values of λ that are tried where none of them reaches a tolerance (hardly anything is lost), or fits into a bound."""
STEPS, NEAR, NEAR_STEPS = 7, 0.8, 3
"""Candidates of that search at most; then, at other points, how far from the best λ so far, on a logarithmic
scale, and how many. No range of λ ends before so much lies above a good one."""
CLOSE = 0.04
"""Two values of λ whose logarithms differ by less are one: a file's size by a hundredth or two."""
INNER = 0.15
"""Share of an interval of λ that its next candidate stays away from both ends."""
SLOPE, BYTES = 0.9, 0.5
"""Powers of λ that nats lost grow with and bytes fall with, about, before two candidates have shown it."""
HOPELESS = 1.05
"""A point that would take so many times the best one's bytes, by these powers, is left."""

SEARCHED = 2e13
"""Multiply-adds of roundings after which dampings and orders, which are worth a tenth, are left as they are."""
BEHIND = 1.3
"""A file of so many times another's bytes is not caught up with by dampings and orders, which are worth a tenth."""


@dataclass(frozen=True)
class Compensation:
    """Rounding with compensation, in place of rounding to the nearest.

    Attributes:
        dampings: in rising order; the search begins with the second and climbs.
        orders: that are tried: columns by descending second moment, or as they lie.
        seed: draws the calibration examples and the labels for the sensitivity of outputs.
        repair: epochs in which, at last, biases and norms learn to make up for the rounding; 0: they stay.
    """

    dampings: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    orders: tuple[bool, ...] = (False, True)
    seed: int = 0
    repair: int = 6


def compress_compensated(
    posterior: Posterior, splits: Splits, how: Compensation | None = None, goal: Goal | None = None,
    device: str = "cpu", callbacks: SearchCallbacks | None = None, beside: int | None = None,
) -> tuple[Compressed, float]:  # fmt: skip
    """Round a network's weights with compensation, at the highest λ that reaches the goal.

    No label is looked at but those of the validation split, and nothing is trained. The smallest file among all
    candidates that reach the target is taken, with a bound on the bytes the one of the lowest validation NLL.

    Args:
        posterior: the network: its means.
        splits: inputs of `train` calibrate; `validation` chooses.
        how: what is tried.
        goal: what to reach; a sparsity is none.
        device: where candidates are evaluated; rounding runs on the CPU.
        callbacks: told of progress and candidates.
        beside: bytes of a file that is there already: the search ends where its first candidates are far behind.

    Returns:
        The network as it goes into the file, and the share of its weights that became 0.

    Raises:
        ValueError: a goal that names a sparsity, or that no candidate reaches.
    """
    how, goal, callbacks = how or Compensation(), goal or Goal(), callbacks or SearchCallbacks()
    if goal.sparsity is not None:
        raise ValueError("a sparsity is reached by pruning; rounding with compensation takes a tolerance or a size")
    search = _Search(posterior, splits, goal, device, callbacks, how.seed)
    with suppress(_EnoughError):
        search.run(how, beside)
    return search.finished()


class _EnoughError(Exception):
    """Who is told of candidates wants no more of them, and there is one that is good."""


@dataclass(frozen=True)
class _Candidate:
    """A rounded network, its point, bytes, validation scores, whether it reaches the goal."""

    rounded: Rounded
    point: OperatingPoint
    size: int
    scored: Quality
    good: bool


class _Search:
    """Candidates at many values of λ, and the best so far."""

    def __init__(
        self, posterior: Posterior, splits: Splits, goal: Goal, device: str, callbacks: SearchCallbacks, seed: int = 0
    ):  # fmt: skip
        self.posterior, self.splits, self.goal, self.device, self.callbacks = posterior, splits, goal, device, callbacks
        self.target = target_of(posterior, splits, goal, device)
        self.best: _Candidate | None = None
        self.stopped, self.looks = False, 0
        self.network = calibrated(
            posterior.graph,
            posterior.tensors,
            splits.train.x,
            posterior.layers,
            posterior.task,
            posterior.noise,
            seed,
            {
                name: 1 / (len(splits.train) * layer.std.square())
                for name, layer in posterior.layers.items()
                if bool((layer.std > 0).all())
            },
        )

    def candidate(self, rounded: Rounded, levels: int) -> Compressed:
        """The network as a file holds it."""
        graph, small = shrink(self.posterior.graph, dict(rounded.tensors))
        held = packed(graph, small, rounded.steps, levels)
        provenance = origin_of(self.posterior, self.splits, "magnitude")
        return Compressed(graph, held, provenance, before_folding(graph, small))

    def scores_of(self, network: Compressed) -> Quality:
        return evaluate(to_module(network).to(self.device), self.splits, "validation", self.device, network.noise)

    def look(self, point: OperatingPoint) -> _Candidate:
        """Round at a point."""
        self.looks += 1
        rounded = self.network.rounded(point)
        network, bound = self.candidate(rounded, BIAS_LEVELS[0]), self.goal.max_bytes
        size, scored = len(file.dumps(network, in_context=COMPILED)[0]), self.scores_of(network)
        if self.callbacks.candidate is not None:
            trial = Trial(_zeros(self, rounded), 0.0, point.lam, size, scored.error, scored.nll_nats)
            self.stopped = self.callbacks.candidate(trial) is True or self.stopped
        good = self.target.reached(scored) if bound is None else size <= bound
        found = _Candidate(rounded, point, size, scored, good)
        if good and (self.best is None or self.worth(found) < self.worth(self.best)):
            self.best = found
        if self.stopped and self.best is not None:
            raise _EnoughError
        return found

    def worth(self, candidate: _Candidate) -> float:
        """What is to become small."""
        return candidate.size if self.goal.max_bytes is None else candidate.scored.nll_nats

    def off(self, candidate: _Candidate) -> float | None:
        """How far a candidate is from the goal, as a logarithm that rises with λ; None where nothing says."""
        if self.goal.max_bytes is not None:
            return math.log(self.goal.max_bytes / candidate.size)
        lost, allowed = candidate.scored.nll_nats - self.target.reference.nll_nats, self.target.nats
        return math.log(lost / allowed) if lost > 0 and 0 < allowed < math.inf else None

    def run(self, how: Compensation, beside: int | None = None) -> None:
        """Climb along the dampings, then try the other orders; not where a file beside it is far smaller."""
        dampings, orders, (first, *others) = how.dampings, how.orders, how.orders
        place = min(1, len(dampings) - 1)
        total, done = len(dampings) + len(orders) - 1, 1
        self.between(OperatingPoint(1.0, dampings[place], first))
        self.callbacks.trial(done, total)
        if beside is not None and self.best is not None and self.best.size > BEHIND * beside:
            return
        if self.looks * work_of(self.network.graph, self.network.tensors, self.posterior.layers) > SEARCHED:
            self.callbacks.trial(total, total)
            return
        for way in (1, -1):
            moved = False
            while 0 <= place + way < len(dampings):
                before = self.best
                self.near(OperatingPoint(1.0, dampings[place + way], first))
                done += 1
                self.callbacks.trial(done, total)
                if self.best is before:
                    break
                place, moved = place + way, True
            if moved:
                break
        for descending in others:
            self.near(OperatingPoint(1.0, dampings[place], descending))
        repair = affordable(self.network.graph, self.network.tensors, len(self.network.x), how.repair)
        if repair and self.best is not None:
            self.near(replace(self.best.point, repair=repair))
        self.callbacks.trial(total, total)

    def between(self, point: OperatingPoint) -> None:
        """Look for the λ at the goal's border, in the whole range."""
        low, high = (math.log(lam) for lam in LAMBDAS)
        self.search(point, low, high, STEPS)
        if self.best is None:
            bound = self.goal.max_bytes is not None
            self.look(replace(point, lam=OUTERMOST[bound]))

    def near(self, point: OperatingPoint) -> None:
        """The same, around the best λ so far."""
        if self.best is not None:
            best = math.log(self.best.point.lam)
            self.search(point, best - NEAR, best + NEAR, NEAR_STEPS)

    def search(self, point: OperatingPoint, low: float, high: float, steps: int) -> None:
        """Look at so many values of λ between two logarithms, the first in the middle; the upper end gives way."""
        offs, middle, rises = dict[float, float | None](), (low + high) / 2, self.goal.max_bytes is None
        best = self.best  # of the points before
        for _ in range(steps):
            found = self.look(replace(point, lam=math.exp(middle)))
            offs[middle] = self.off(found)
            low, high = (middle, high) if found.good == rises else (low, middle)
            behind = rises and best is not None and low not in offs and self.hopeless(found, best)
            if high - low < CLOSE or behind:
                break
            if rises and high not in offs:
                high = min(max(high, low + NEAR), math.log(OUTERMOST[1]))
            middle = self.next_log_lam(offs, low, high)

    def next_log_lam(self, offs: dict[float, float | None], low: float, high: float) -> float:
        """Where the line through an interval's ends meets the goal, well inside of it; the middle where none does."""
        left, right = offs.get(low), offs.get(high)
        slope = SLOPE if self.goal.max_bytes is None else BYTES
        if left is not None and right is not None and right > left:
            wanted = low - left * (high - low) / (right - left)
        elif left is not None and high not in offs:
            wanted = low - left / slope
        elif right is not None and low not in offs:
            wanted = high - right / slope
        else:
            return (low + high) / 2
        return min(max(wanted, low + INNER * (high - low)), high - INNER * (high - low))

    def hopeless(self, found: _Candidate, best: _Candidate) -> bool:
        """Whether a candidate's point would take more bytes at the goal's border than the best one so far."""
        off = self.off(found)
        return off is not None and found.size * math.exp(off * BYTES / SLOPE) > HOPELESS * best.size

    def finished(self) -> tuple[Compressed, float]:
        """The best candidate, its biases as coarse as the target allows."""
        if self.best is None:
            wanted = f"fits into {self.goal.max_bytes} bytes" if self.goal.max_bytes else f"reaches {self.target}"
            raise ValueError(f"no candidate {wanted}; allow more, or try --rounding nearest or --finetune EPOCHS")
        rounded, target = self.best.rounded, self.target
        if self.goal.max_bytes is not None:
            target = Target(self.best.scored, PRECISION_TOLERANCE, NLL_PER_ACCURACY * PRECISION_TOLERANCE)
        best = self.candidate(rounded, BIAS_LEVELS[0])
        for levels in BIAS_LEVELS[1:]:
            coarser = self.candidate(rounded, levels)
            if not target.reached(self.scores_of(coarser)):
                break
            best = coarser
        return best, _zeros(self, rounded)


def _zeros(search: _Search, rounded: Rounded) -> float:
    return removed_share({name: rounded.tensors[name] != 0 for name in search.posterior.layers})
