"""What a running search says after every trial: how many are done, what is best so far, how long it will take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pyro_compress.tuning.front import Pair


@dataclass(frozen=True)
class Reported:
    """A trial that has ended, and the search as it stands then.

    Attributes:
        epochs: fidelity of the trial.
        trial: its number.
        seconds: what it took.
        found: validation error and bytes; None: it failed.
        failure: why.
        done: trials of this fidelity that count, of all workers.
        wanted: how many there are to be; 0: minutes count.
        best: validation error and bytes of what the objective would take now; None: nothing meets its bound.
        seconds_left: until this fidelity ends, as it went so far; None: not known yet.
    """

    epochs: int
    trial: int
    seconds: float
    found: Pair | None
    failure: str
    done: int
    wanted: int
    best: Pair | None
    seconds_left: float | None


OnTrial = Callable[[Reported], None]


@dataclass(frozen=True)
class Spent:
    """Where a fidelity stands: a clock in seconds, trials that count, and minutes of computing of all workers."""

    clock: float
    trials: int
    minutes: float


def seconds_left(first: Spent, now: Spent, trials: float, minutes: float) -> float | None:
    """Seconds until trials or minutes are used up, at the pace since `first`.

    Examples:
        >>> seconds_left(Spent(0.0, 2, 1.0), Spent(30.0, 5, 2.5), 10, math.inf)
        50.0
        >>> seconds_left(Spent(0.0, 2, 1.0), Spent(30.0, 5, 2.5), 10, 3.0)
        10.0
    """
    elapsed = now.clock - first.clock
    paces = [(now.trials - first.trials, trials - now.trials), (now.minutes - first.minutes, minutes - now.minutes)]
    left = [elapsed * max(open_, 0) / made for made, open_ in paces if made > 0 and open_ < math.inf]
    return min(left, default=None)
