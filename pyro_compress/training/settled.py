"""Whether a fit had come to rest when it ended: what -ELBO did over its last epochs at full KL weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SETTLED = 0.01
"""Relative change of -ELBO over the last quarter of the epochs that counts as none."""
FEWEST = 4
"""Epochs at full KL weight below which nothing can be said."""


class Drift(NamedTuple):
    """What -ELBO did at the end.

    Attributes:
        full: epochs at full KL weight.
        epochs: the last quarter of them, at least two.
        fell: share of itself by which -ELBO fell over these; negative where it rose. None: too few to tell.
    """

    full: int
    epochs: int
    fell: float | None

    @property
    def verdict(self) -> str:
        """In words."""
        assert self.fell is not None
        return "has settled" if abs(self.fell) < SETTLED else "was still falling" if self.fell > 0 else "was rising"


def drift(history: Sequence[Mapping[str, Any]], kl_weight: float) -> Drift:
    """The end of a fit's history.

    Args:
        history: one entry per epoch, as in `history.jsonl`.
        kl_weight: the full one.
    """
    losses = [epoch["negative_elbo_nats"] for epoch in history if epoch["kl_weight"] == kl_weight]
    tail = losses[-max(2, len(losses) // 4) :]
    fell = (tail[0] - tail[-1]) / abs(tail[-1]) if len(losses) >= FEWEST else None
    return Drift(len(losses), len(tail), fell)


def unsettled(history: Sequence[Mapping[str, Any]], kl_weight: float) -> str:
    """That a fit had not come to rest, in words; empty if it had, or has no posterior.

    Args:
        history: one entry per epoch.
        kl_weight: the full one.
    """
    if not history or history[-1]["negative_elbo_nats"] is None:
        return ""
    found = drift(history, kl_weight)
    if found.fell is None:
        of = "" if found.full == len(history) else f" of {len(history)}"
        seen = f"only {found.full}{of} {'epoch' if found.full == 1 and not of else 'epochs'} ran at the full KL weight"
    elif abs(found.fell) >= SETTLED:
        way = "fell" if found.fell > 0 else "rose"
        seen = f"over its last {found.epochs} epochs -ELBO still {way} by {100 * abs(found.fell):.1f} %"
    else:
        return ""
    return f"the fit had not settled: {seen}; more --epochs may make a smaller and a better file"
