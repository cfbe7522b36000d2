"""How to fine-tune: the settings of `finetune.py`, told apart from what it does with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_compress.data.augment import AUGMENTATIONS

NUMBERS = {
    "rate": False, "ramp": False, "step": True, "bias_step": True, "noise": False, "sam_rho": False, "lr": False,
    "teacher_weight": False, "temperature": True,
}  # fmt: skip
"""Real numbers of a recipe -> whether 0 is refused as well."""


@dataclass(frozen=True)
class FineTune:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training set through rounding.
        masked_epochs: passes before, on the masked means in float32.
        rate: price of a bit in nats of the training set's log-likelihood, over ln 2; 1 is the description length.
        ramp: share of the epochs over which the price rises to `rate`.
        step: step of the weights, in units of the root mean square of what the mask kept in a layer.
        bias_step: step of the biases, as a power of two.
        noise: standard deviation of Gaussian noise on the surviving weights while training, in units of the step: they
            are to be as insensitive as their precision says (Hinton & van Camp 1993).
        sam_rho: radius of sharpness-aware minimisation (Foret et al. 2021, eq. 2 and algorithm 1), in the L2 norm of
            all surviving weights: a step climbs that far up the loss and descends with the gradient found there; it
            takes twice the time. 0 does without.
        svi: learn a spread for every weight, from the posterior's, never more than a step; `noise` is for weights
            without a posterior then.
        batch_size: examples per step.
        lr: Adam's learning rate; falls linearly to 0 in both stages.
        teacher_weight: share of the loss that is the teacher's.
        temperature: of the softmax under which teacher and network are compared.
        augment: name in `AUGMENTATIONS`, or `none`: how training images are changed every time they are seen.
        seed: shuffles.

    Raises:
        ValueError: a number that is negative or not finite, an augmentation that does not exist.
    """

    epochs: int = 30
    masked_epochs: int = 2
    rate: float = 1.0
    ramp: float = 0.3
    step: float = 1.0
    bias_step: float = 0.125
    noise: float = 0.0
    sam_rho: float = 0.0
    svi: bool = False
    batch_size: int = 256
    lr: float = 3e-3
    teacher_weight: float = 0.7
    temperature: float = 2.0
    augment: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, positive in NUMBERS.items():
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                raise ValueError(
                    f"{name} {value} of fine-tuning: it must be finite and {'above' if positive else 'at least'} 0"
                )
        if self.augment not in ("none", *AUGMENTATIONS):
            raise ValueError(f"no augmentation {self.augment!r}; allowed: none, {', '.join(AUGMENTATIONS)}")
