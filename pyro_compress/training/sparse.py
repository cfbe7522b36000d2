"""Pruning while training: what the weights that stay can still learn after the others have gone.

A rule says how sparse the network is to be after a share of the training: `(progress, target) -> sparsity`. Whenever
the rule asks for more, the smallest weights of all layers together go, and stay at zero. With surgery they may come
back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pyro_compress.compression.prune import masks_at
from pyro_compress.training.point import AfterStep, no_change
from pyro_compress.training.surgery import Surgery

STAGES = 5
"""Prunings of the iterative rules, evenly spaced over the second part of training."""
RENEW_STEPS = 100
"""Steps between two prunings of the gradual rule (Zhu & Gupta 2017 use 100 to 1000)."""

Rule = Callable[[float, float], float]
"""(share of training that is done, target sparsity) -> sparsity."""


def iterative(progress: float, target: float) -> float:
    """Train, then prune and retrain in turns (Han et al. 2015, section 3): half of the training is dense.

    Every stage removes the same share of what is left.
    """
    stage = 0 if progress < 0.5 else min(int((2 * progress - 1) * STAGES) + 1, STAGES)
    return 1 - (1 - target) ** (stage / STAGES)


def gradual(progress: float, target: float) -> float:
    """Cubic from dense at 20 % of the training to the target at 70 % (Zhu & Gupta 2017, eq. 1)."""
    ramp = min(max((progress - 0.2) / 0.5, 0.0), 1.0)
    return target * (1 - (1 - ramp) ** 3)


def rewind(progress: float, target: float) -> float:
    """Rounds of equal length, each trained from the first weights (Frankle & Carbin 2019, algorithm 2)."""
    stage = min(int(progress * (STAGES + 1)), STAGES)
    return 1 - (1 - target) ** (stage / STAGES)


def sparsity_at(pruning: str, step: int, total: int, target: float) -> float:
    """Sparsity after a step: the gradual rule prunes every so many steps, the others as soon as they ask for it.

    Args:
        pruning: name in `RULES`.
        step: steps done.
        total: training steps.
        target: sparsity at the end.
    """
    rule = RULES[pruning]
    due = step if pruning != "gradual" or rule(step / total, target) >= target else step - step % RENEW_STEPS
    return rule(due / total, target)


RULES: dict[str, Rule] = {
    "iterative": iterative,
    "gradual": gradual,
    "rewind": rewind,
}


@dataclass(frozen=True)
class Task:
    """What a way of pruning is told.

    Attributes:
        net: the network, before its first step.
        weights: names of its weight tensors.
        target: sparsity at the end, over all `weights`.
        total: training steps.
    """

    net: nn.Module
    weights: list[str]
    target: float
    total: int

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weight tensors."""
        return {name: self.net.get_parameter(name) for name in self.weights}


Begin = Callable[[int], AfterStep]
"""Steps done -> what is to happen after each further training step, the network being there already."""


def by_magnitude(pruning: str, task: Task) -> Begin:
    """Pruning by a rule of `RULES`.

    Nothing but the network needs to be kept to go on later: pruned weights are those that are zero, and how many there
    are to be follows from the step.
    """
    sparsity = partial(sparsity_at, pruning, total=task.total, target=task.target)
    parameters = task.parameters
    first = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}

    def begin(done: int) -> AfterStep:
        masks = {name: (parameter != 0).float() for name, parameter in parameters.items()} if sparsity(done) else {}

        @torch.no_grad()
        def after_step(step: int, optimizer: torch.optim.Optimizer) -> None:
            if (wanted := sparsity(step)) > sparsity(step - 1):
                kept = masks_at({name: parameter.abs() for name, parameter in parameters.items()}, wanted)
                masks.update({name: mask.float() for name, mask in kept.items()})
                if pruning == "rewind":
                    task.net.load_state_dict(first)
                    optimizer.state.clear()
            for name, mask in masks.items():
                parameters[name].mul_(mask)

        return after_step

    return begin


def by_surgery(task: Task) -> Begin:
    """Dynamic network surgery; what it keeps of a weight lies with the optimizer."""
    return Surgery(list(task.parameters.values()), task.target, task.total).begin


PRUNING: dict[str, Callable[[Task], Begin]] = {
    "iterative": partial(by_magnitude, "iterative"),
    "gradual": partial(by_magnitude, "gradual"),
    "rewind": partial(by_magnitude, "rewind"),
    "surgery": by_surgery,
}


def pruned_while_training(pruning: str, task: Task) -> Begin:
    """What happens after each training step.

    Args:
        pruning: name in `PRUNING`, or `none`.
        task: what is trained, and how sparse it shall be.
    """
    return no_change if pruning == "none" else PRUNING[pruning](task)
