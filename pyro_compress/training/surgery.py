"""Dynamic network surgery (Guo et al. 2016): weights are cut while training, and spliced back where they grow again.

The loss sees W ∘ T, with a mask T; all of W moves by the gradient at W ∘ T (equations 2 and 3). T is 0 where |w| < a
and 1 where |w| ≥ b, and stays as it is between (equation 3); a and b are 0.9 and 1.1 times a layer's
max(μ + c·σ, 0), with mean and deviation of its |w| when surgery begins. Here one c serves all layers: the one with
which the target's share of the weights lies below its layer's threshold at that moment. Masks are looked at with
probability 1 / (1 + γ t), t steps after the beginning, and no more in the last quarter of the training; at its start
the smallest of the weights that are left over the target go.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_compress.compression.prune import masks_at
from pyro_compress.training.point import AfterStep

ONSET, END = 0.3, 0.75
"""Shares of the training between which masks change: the network is trained first, and trained on at the end."""
LOW, HIGH = 0.9, 1.1
"""Below and above a layer's threshold: the gap keeps weights from going back and forth."""
SLOWING = 1e-4
"""γ of the probability of a look, per step (as the authors' LeNet-5)."""


class Surgery:
    """Masks that change while training.

    What a weight tensor keeps lies with the optimizer's memory of it, and so in checkpoints: `dense` is W, `mask` is T,
    `threshold` the layer's.

    Args:
        parameters: the weight tensors; they hold W ∘ T after each step.
        target: share of the weights that is cut at the end, or more.
        total: training steps.
    """

    def __init__(self, parameters: list[nn.Parameter], target: float, total: int):
        self.parameters, self.target, self.total = parameters, target, total

    def begin(self, done: int) -> AfterStep:
        """What happens after each further step."""
        return self._after_step

    @torch.no_grad()
    def _after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        onset = int(ONSET * self.total)
        if step < onset:
            return
        if "dense" not in optimizer.state[self.parameters[0]]:
            self._open(optimizer)
        states = [optimizer.state[parameter] for parameter in self.parameters]
        for parameter, state in zip(self.parameters, states, strict=True):
            state["dense"] += parameter - state["dense"] * state["mask"]
        if step == int(END * self.total) + 1:
            left = {str(index): parameter.abs() for index, parameter in enumerate(self.parameters)}
            for state, kept in zip(states, masks_at(left, self.target).values(), strict=True):
                state["mask"] *= kept
        elif step <= END * self.total and _drawn(step) < 1 / (1 + SLOWING * (step - onset)):
            for state in states:
                size, threshold = state["dense"].abs(), state["threshold"]
                state["mask"].masked_fill_(size < LOW * threshold, 0.0).masked_fill_(size >= HIGH * threshold, 1.0)
        for parameter, state in zip(self.parameters, states, strict=True):
            torch.mul(state["dense"], state["mask"], out=parameter.data)

    def _open(self, optimizer: torch.optim.Optimizer) -> None:
        """Thresholds from the weights as they are now; nothing is cut yet."""
        sizes = [parameter.abs() for parameter in self.parameters]
        moments = [(float(size.mean()), max(float(size.std(correction=0)), 1e-30)) for size in sizes]
        ordered = torch.cat([((size - mean) / std).flatten() for size, (mean, std) in zip(sizes, moments, strict=True)])
        c = float(ordered.kthvalue(max(round(self.target * len(ordered)), 1)).values)
        for parameter, (mean, std) in zip(self.parameters, moments, strict=True):
            optimizer.state[parameter] |= {
                "dense": parameter.detach().clone(),
                "mask": torch.ones_like(parameter),
                "threshold": torch.tensor(max(mean + c * std, 0.0)),
            }


def _drawn(step: int) -> float:
    """A number in [0, 1) that belongs to the step: the same in every process, and in a fit that goes on."""
    drawn: Tensor = torch.rand((), generator=torch.Generator().manual_seed(step))
    return float(drawn)
