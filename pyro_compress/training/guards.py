"""What stops a fit that has gone wrong: where, why, and what to try.

A loss is looked at every `LOOK_EVERY` steps, not every step: reading it back makes a CUDA device wait. A checkpoint is
looked at before it is written, so that a fit never goes on from numbers that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_compress.data.several import task_named
from pyro_compress.data.tasks import constant_nats
from pyro_compress.settings import FitConfig
from pyro_compress.training.history import Diverged, Epoch
from pyro_compress.types import Splits

REWINDS = 3
"""How often a fit is put back before it is given up."""
SLOWER = 0.5
"""Factor on every learning rate when it is."""
EXPLODED = 100.0
"""Growth of the KL from one epoch to the next, or factor on the NLL of knowing nothing, that no healthy fit shows."""
FORGOTTEN = 0.5
"""Share of what validation gained over a constant answer that no healthy fit loses again."""


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of floating-point tensors that hold a NaN or an infinity."""
    return [name for name, t in tensors if t.is_floating_point() and not bool(torch.isfinite(t).all())]


def diverged(term: str, step: int, tensors: Iterable[tuple[str, Tensor]], config: FitConfig) -> Diverged:
    """The error of a fit whose loss is not to be believed any more.

    Args:
        term: what was seen, in words.
        step: after how many steps.
        tensors: parameters, to say which of them are broken.
        config: names the rates to lower.
    """
    names = [name.replace("/", ".") for name in not_finite(tensors)]
    where = f"not finite: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    first = {"natural-lr": config.natural_lr} if config.optimizer == "natural" else {}
    rates = first | {"lr": config.lr} | ({} if config.prior == "none" else {"lr-scale": config.lr_scale})
    smaller = " or ".join(f"--{name} (now {rate:g})" for name, rate in rates.items() if rate)
    clip = "" if config.clip_norm or config.prior == "none" else ", --clip-norm 1"
    again = "" if config.nan_policy == "rewind" else ", or --nan-policy rewind"
    return Diverged(
        f"{term} after step {step:,}; {where if names else 'all parameters are finite'}: "
        f"try a smaller {smaller}{clip}{again}"
    )


def exploded(kl_nats: float, log_likelihood_nats: float, before: Epoch | None, splits: Splits) -> str:
    """What is wrong with the terms of the ELBO at the end of an epoch; empty if nothing is.

    The measure is the NLL of the training set under uniform guessing, U: at an optimum the KL is paid for by the
    log-likelihood it gains, so it exceeds U only on the way there. A KL above both 100 U and 100 times that of the
    epoch before, or a log-likelihood below -100 U, is no way there. The first epoch with a posterior, which may
    start anywhere, is not judged.

    Args:
        kl_nats: KL at the end of the epoch.
        log_likelihood_nats: of the training set, averaged over the epoch.
        before: the epoch before.
        splits: size of the training set, and the task.
    """
    if before is None or before.kl_nats is None:
        return ""
    task = task_named(splits.task)
    uniform = task.counted(splits.train.y) * task.uniform_nats(max(splits.outputs, 2))
    if kl_nats > EXPLODED * max(abs(before.kl_nats), uniform):
        return f"KL rose from {before.kl_nats:,.0f} to {kl_nats:,.0f} nats"
    if log_likelihood_nats < -EXPLODED * uniform:
        return f"expected log-likelihood fell to {log_likelihood_nats:,.0f} nats, guessing has {-uniform:,.0f}"
    return ""


def over_pruned(history: Sequence[Epoch], splits: Splits) -> str:
    """Whether the KL took away what the likelihood had learned, in words; empty if it did not.

    A mean-field posterior over many more weights than the data can pay for gives up units that the network needs,
    in the end all of them: over-pruning (Trippe & Turner 2018, "Overpruning in variational Bayesian neural networks").
    Validation NLL then goes back towards that of an answer that ignores the input. More than `FORGOTTEN` of the way,
    counted from the best epoch, is said.

    Args:
        history: one entry per epoch.
        splits: validation labels or targets, and their units.
    """
    task, y = task_named(splits.task), splits.validation.y
    constant = constant_nats(task, y)
    constant += sum(math.log(target.std) for target in splits.targets)
    best = min(history, key=lambda epoch: epoch.validation_nll_nats)
    lowest, last = best.validation_nll_nats, history[-1].validation_nll_nats
    if not 0 < FORGOTTEN * (constant - lowest) < last - lowest:
        return ""
    return (
        f"the posterior gave up what it had learned: validation NLL is {last:.4f} nats, was "
        f"{lowest:.4f} after epoch {best.epoch}, and ignoring the input costs {constant:.4f}; "
        "the KL outweighs what so few examples say: try smaller layers, fewer --epochs, or --kl-weight 0.1"
    )


def rates_of(config: FitConfig) -> dict[str, float]:
    """Settings of a resolved configuration that say how fast the fit moves."""
    names = ("lr", "lr_scale", "lr_group", *(("natural_lr", "natural_beta2") if config.optimizer == "natural" else ()))
    return {name: getattr(config, name) for name in names}


def slower(config: FitConfig) -> FitConfig:
    """A resolved configuration with every learning rate scaled by `SLOWER`; 1 - natural_beta2 is one."""
    rates: dict[str, Any] = {
        name: 1 - SLOWER * (1 - rate) if name == "natural_beta2" else SLOWER * rate
        for name, rate in rates_of(config).items()
        if rate is not None
    }
    return replace(config, **rates)
