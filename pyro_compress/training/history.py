"""What a fit tells of every epoch, and how it says that it broke."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pyro_compress.foreign import json_of, record, table
from pyro_compress.types import LayerPosterior


@dataclass(frozen=True)
class Epoch:
    """One line of the history. ELBO terms are None while point weights are trained.

    Attributes:
        epoch: 1, 2, ...
        epochs: how many are planned.
        phase: `point` (deterministic weights) or `svi`.
        step: optimiser steps so far.
        negative_elbo_nats: of the whole training set, at KL weight 1: KL minus expected log-likelihood.
        expected_log_likelihood_nats: of the training set, averaged over all minibatches of the epoch, each under a draw
            of its own.
        kl_nats: at the end of the epoch; where it has no closed form, of one draw, or of `samples` of them.
        kl_weight: at the end of the epoch.
        validation_accuracy: of the posterior mean; None for regression.
        validation_rmse: of the posterior mean, in the targets' units; None for classification.
        validation_nll_nats: per example, of the posterior mean.
        lr: base learning rate, which a rewind lowers.
        seconds: since the start of the fit.
        widths: of the network from here on, where dead units left it at the end of this epoch: from here on the KL
            counts what is left only.
    """

    epoch: int = 0
    epochs: int = 0
    phase: str = "point"
    step: int = 0
    negative_elbo_nats: float | None = None
    expected_log_likelihood_nats: float | None = None
    kl_nats: float | None = None
    kl_weight: float | None = None
    validation_accuracy: float | None = float("nan")
    validation_rmse: float | None = None
    validation_nll_nats: float = float("nan")
    lr: float | None = None
    seconds: float = 0.0
    widths: list[int] | None = None

    @property
    def validation(self) -> str:
        """The scores on validation, in words."""
        score = self.validation_accuracy
        quality = f"RMSE {self.validation_rmse:.5g}" if score is None else f"{100 * score:.2f} %"
        return f"{quality}, {self.validation_nll_nats:.4f} nats"

    def to_dict(self) -> dict[str, Any]:
        """Field name -> value."""
        return asdict(self)


def epoch_of(document: Any, where: str) -> Epoch:
    """An epoch from JSON; what other versions note beside is left out.

    Raises:
        ValueError: it is none.
    """
    known = {field.name for field in fields(Epoch)}
    return record(Epoch, {key: value for key, value in table(document, where).items() if key in known}, where)


def read_history(folder: Path) -> tuple[dict[str, Any], ...]:
    """Epochs of a run, empty if the folder has none.

    Raises:
        ValueError: a line that is no epoch.
        OSError: the file cannot be read.
    """
    file = folder / "history.jsonl"
    lines = file.read_bytes().splitlines() if file.is_file() else []
    return tuple(epoch_of(json_of(line, w), w).to_dict() for n, line in enumerate(lines, 1) if (w := f"{file}:{n}"))


@dataclass(frozen=True)
class Iteration:
    """One step of a running fit.

    Attributes:
        phase: `point` (deterministic weights) or `svi`.
        epoch: the running one: 1, 2, ...
        step: steps of the phase so far.
        noted: of `svi`, the expected log-likelihood of the training set as this minibatch has it; on the device.
    """

    phase: str
    epoch: int
    step: int
    noted: Any = None

    @property
    def expected_log_likelihood_nats(self) -> float | None:
        """What is noted, as a number: a CUDA device is waited for."""
        return None if self.noted is None else float(self.noted)


OnEpoch = Callable[[Epoch], object]
"""Called after every epoch; where it returns True, the fit ends there and its result is used."""

OnStep = Callable[[Iteration], object]
"""The same after every step."""

OnLayers = Callable[[int, dict[str, LayerPosterior]], None]
"""Called at the end of an epoch with a posterior: the epoch's number, and the moments of every weight."""


class Diverged(ValueError):
    """The loss became NaN or infinite, or a term of it exploded."""
