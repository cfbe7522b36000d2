"""Posterior -> Compressed by fine-tuning: masks, then integers at λ nats per nat of code, chosen on validation.

The masks are those of the sparsity that is given, or the fewest weights with which the unrounded posterior mean is
still within the tolerance; with a bound on the bytes, as many as rounding alone has room for. A given λ is used as it
is. Without one a grid is bisected: for the highest λ whose scores reach the target, or, with a bound on the bytes, for
the lowest whose file fits, and between that and its neighbour for what fills the bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_compress.compression.candidates import origin_of, to_module
from pyro_compress.compression.finetune import Teach, finetuned
from pyro_compress.compression.order import reordered
from pyro_compress.compression.packing import before_folding
from pyro_compress.compression.rounding import Rounding
from pyro_compress.compression.search import compress, prune
from pyro_compress.compression.target import SearchCallbacks, Target, Trial, target_of
from pyro_compress.graph.network import Network
from pyro_compress.machine import require
from pyro_compress.metrics import evaluate, logits_of
from pyro_compress.pcn import file
from pyro_compress.scores import Quality
from pyro_compress.settings import FineTune, Goal
from pyro_compress.types import Compressed, Masks, Posterior, Splits, nonzero

LAMBDAS = tuple(2.0 ** (k / 2) for k in range(-4, 9))
"""Grid of λ, in nats per nat of the description length."""
LOWER = tuple(2.0 ** (k / 2) for k in range(-14, -4))
"""What is tried where the lowest of them is too high: of many examples, or tokens, few nats may be lost."""
PER_WEIGHT, PER_SURVIVOR = 28, 70
"""Bytes that fine-tuning holds beside the posterior: of every weight, dense as a step computes with it, and of every
weight that is left, with gradient, moments and place."""
SOON = 1 << 20
"""Weights up to which a search that trains nothing takes seconds."""
FILLED = 2
"""Halvings of the step between two λ of the grid, one of which fits into a bound on the bytes."""


@dataclass(frozen=True)
class Teacher:
    """Whose class probabilities are matched: one network's, or the mean of several.

    Attributes:
        posteriors: theirs.
        name: under which the file tells of it.
    """

    posteriors: tuple[Posterior, ...]
    name: str

    @classmethod
    def of(cls, networks: Sequence[tuple[Posterior, str]]) -> Teacher:
        """From posteriors and the names of their networks."""
        counts = Counter(name for _, name in networks)
        names = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())
        return cls(tuple(posterior for posterior, _ in networks), names)


@dataclass(frozen=True)
class FineTuning:
    """Fine-tuning in place of rounding.

    Attributes:
        how: the recipe; its λ is replaced.
        lam: λ, what a bit may cost; None searches for one.
        teacher: distil from these networks.
    """

    how: FineTune
    lam: float | None = None
    teacher: Teacher | None = None


def compress_finetuned(
    posterior: Posterior, splits: Splits, finetuning: FineTuning, goal: Goal | None = None, device: str = "cpu",
    callbacks: SearchCallbacks | None = None, passes: int | None = 0,
) -> tuple[Compressed, float]:  # fmt: skip
    """Prune, fine-tune and shrink a posterior's mean network.

    Args:
        posterior: moments of every weight, and the network.
        splits: trained on `train`; `validation` chooses.
        finetuning: how, and at which λ.
        goal: how much to prune, or what to reach.
        device: where pruned candidates are evaluated; fine-tuning runs on the CPU.
        callbacks: told of every epoch and of every fine-tuned network.
        passes: spent on the order of hidden units, as in `reordered`; with a bound on the bytes of every candidate.

    Returns:
        The network as it goes into the file, and the share of weights that the criterion removed.

    Raises:
        ValueError: no λ reaches the target.
    """
    goal, callbacks, how = goal or Goal(), callbacks or SearchCallbacks(), finetuning.how
    target = target_of(posterior, splits, goal, device)
    masks, removed = prune(posterior, splits, goal, target, device)
    _check_memory(masks)
    teacher = finetuning.teacher
    teach = None if teacher is None else logits_by(teacher, splits)
    meta = origin_of(posterior, splits, goal.criterion or posterior.criterion)
    meta |= {"finetune_epochs": how.masked_epochs + how.epochs}
    meta |= {} if teacher is None else {"teacher": teacher.name}
    meta |= {} if how.augment == "none" else {"finetune_augment": how.augment}
    meta |= {"finetune_svi": True} if how.svi else {}

    ended = False

    def train_at(lam: float) -> tuple[Compressed, Trial, bool]:
        nonlocal ended
        recipe = replace(how, lam=lam)
        work = finetuned(posterior, masks, splits.train, recipe, teach, callbacks.epoch)
        before = before_folding(work.graph, work.unfolded())
        network = Compressed(work.graph, work.packed(), meta | {"rate": lam}, before)
        network = network if goal.max_bytes is None else reordered(network, passes)
        trial, reached = measured(network, splits, target, removed, lam)
        if callbacks.candidate is not None:
            ended = callbacks.candidate(trial) is True or ended
        return network, trial, reached if goal.max_bytes is None else trial.bytes <= goal.max_bytes

    if finetuning.lam is not None:
        network, trial, fits = train_at(finetuning.lam)
        if goal.max_bytes is not None and not fits:
            raise ValueError(
                f"lambda {finetuning.lam:g} makes {trial.bytes:,} bytes, more than {goal.max_bytes:,}; leave "
                "--finetune-lambda out to search for one, or allow more with --max-bytes"
            )
    elif goal.max_bytes is not None:
        network = _fullest(train_at, lambda: ended)
    else:
        network = _highest(train_at, lambda: ended)
    return (network if goal.max_bytes is not None else reordered(network, passes)), removed


def beaten(posterior: Posterior, splits: Splits, goal: Goal, size: int, scored: Quality, device: str = "cpu") -> str:
    """That rounding to the nearest, which takes no training, makes the better file, in words; empty where it does not.

    Of what a search is to find, and of networks whose search takes seconds.

    Args:
        posterior: moments of every weight, and the network.
        splits: as fine-tuning had them.
        goal: what was to be reached.
        size: bytes of the fine-tuned file.
        scored: validation scores of it.
        device: where candidates are evaluated.
    """
    if goal.sparsity is not None or sum(layer.mean.numel() for layer in posterior.layers.values()) > SOON:
        return ""
    try:
        network, _ = compress(posterior, splits, goal, Rounding(), device, passes=0)
    except ValueError:  # nothing rounded reaches it
        return ""
    other, bytes_ = evaluate(to_module(network), splits, "validation", noise=network.noise), len(file.dumps(network)[0])
    better = other.nll_nats < scored.nll_nats if goal.max_bytes is not None else bytes_ < size
    told = (
        f"{bytes_:,} bytes at a validation NLL of {other.nll_nats:.4f} nats, this one {size:,} at {scored.nll_nats:.4f}"
    )
    return f"rounding alone makes the better file ({told}): more epochs of --finetune, or none" if better else ""


def _check_memory(masks: Masks) -> None:
    """Refuse to train what does not fit, now that it is known how many weights are left."""
    network = PER_WEIGHT * sum(mask.numel() for mask in masks.values())
    left = PER_SURVIVOR * sum(nonzero(mask) for mask in masks.values())
    remedy = "remove more weights with --sparsity, or use a machine with more memory"
    require({"network": network, "kept weights": left}, "cpu", "fine-tuning", remedy)


def measured(network: Compressed, splits: Splits, target: Target, removed: float, lam: float) -> tuple[Trial, bool]:
    """A point of the curve, and whether its scores reach the target."""
    scored = evaluate(to_module(network), splits, "validation", noise=network.noise)
    size = len(file.dumps(network)[0])
    return Trial(removed, 0.0, lam, size, scored.error, scored.nll_nats), target.reached(scored)


def logits_by(teacher: Teacher, splits: Splits) -> Teach:
    """Inputs -> a teacher's logits; of several networks the logarithm of their mean probability.

    Raises:
        ValueError: the teacher takes other inputs.
    """
    if splits.task != "classification":
        raise ValueError(f"a teacher is matched in its class probabilities; leave --teacher out with {splits.task}")
    for graph in (posterior.graph for posterior in teacher.posteriors):
        if (graph.input_shape, graph.kind) != (splits.input_shape, splits.kind):
            raise ValueError(
                f"the teacher takes inputs of shape {graph.input_shape} ({graph.kind}), these data have "
                f"{splits.input_shape} ({splits.kind})"
            )
    networks = [Network(posterior.graph, posterior.tensors).eval() for posterior in teacher.posteriors]

    def logits(x: Tensor) -> Tensor:
        found = [logits_of(network, x) for network in networks]
        return found[0] if len(found) == 1 else torch.stack([each.log_softmax(1) for each in found]).logsumexp(0)

    return logits


TrainAt = Callable[[float], tuple[Compressed, Trial, bool]]
"""λ -> a fine-tuned network, what it measures, whether it is good enough (or small enough)."""


def _highest(train_at: TrainAt, ended: Callable[[], bool]) -> Compressed:
    """The highest λ of the grid whose scores reach the target; errors grow with λ."""
    best: Compressed | None = None

    def misses(lam: float) -> bool:
        nonlocal best
        network, _, good = train_at(lam)
        best = network if good else best
        return not good

    for grid in (LAMBDAS, LOWER):
        _boundary(grid, misses, lambda: best is not None and ended())
        if best is not None:
            return best
    raise ValueError(
        f"no lambda from {LOWER[0]:g} to {LAMBDAS[-1]:g} reaches the target; give --finetune-lambda, or allow more"
    )


def _fullest(train_at: TrainAt, ended: Callable[[], bool]) -> Compressed:
    """The lowest validation NLL among the files that fit; files shrink with λ.

    Two λ of the grid are about a fifth of the bytes apart; between the last that does not fit and the first that
    does, `FILLED` more are tried.
    """
    best: tuple[float, Compressed] | None = None

    def fits(lam: float) -> bool:
        nonlocal best
        network, trial, small = train_at(lam)
        if small and (best is None or trial.validation_nll_nats < best[0]):
            best = trial.validation_nll_nats, network
        return small

    grid = LAMBDAS
    low, high = _boundary(grid, fits, lambda: best is not None and ended())
    if best is None:
        raise ValueError(
            f"no lambda from {LAMBDAS[0]:g} to {LAMBDAS[-1]:g} fits; give --finetune-lambda, or allow more"
        )
    if low < 0 and high == 0:
        grid = (*LOWER, LAMBDAS[0])
        low, high = _boundary(grid[:-1], fits, ended)
    if low >= 0:
        loose, tight = grid[low], grid[high]
        for _ in range(0 if ended() else FILLED):
            lam = (loose * tight) ** 0.5
            loose, tight = (loose, lam) if fits(lam) else (lam, tight)
    return best[1]


def _boundary(grid: Sequence[float], holds: Callable[[float], bool], ended: Callable[[], bool]) -> tuple[int, int]:
    """Places of the last λ of which something does not hold yet (-1: none) and of the next, by bisection."""
    low, high = -1, len(grid)
    while high - low > 1 and not ended():
        middle = (low + high) // 2
        low, high = (low, middle) if holds(grid[middle]) else (middle, high)
    return low, high
