"""Both ways of rounding, to the nearest and with compensation, of which the smaller file is kept.

Neither is always the smaller. A criterion of the posterior finds the few weights that a clear-cut posterior keeps;
compensation knows the data's curvature, which many a posterior does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pyro_compress.compression.calibrated import work_of
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.compensated import Compensation, compress_compensated
from pyro_compress.compression.order import reordered
from pyro_compress.compression.rounding import Rounding
from pyro_compress.compression.search import compress
from pyro_compress.compression.target import SearchCallbacks
from pyro_compress.doubts import keep
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.settings import Goal
from pyro_compress.types import Compressed, Posterior, Splits

MOST_WORK = 1e12
"""Multiply-adds for one candidate, above which compensation is only done where it is asked for: half a minute or so."""


@dataclass(frozen=True)
class Smallest:
    """Round to the nearest and with compensation, and keep the smaller file.

    Attributes:
        compensation: how the latter is done.
    """

    compensation: Compensation = field(default_factory=Compensation)


class Made(NamedTuple):
    """A network as it goes into a file.

    Attributes:
        network: the network.
        removed: share of its weights that went.
        compensated: whether compensation rounded it.
        bytes: of the file.
    """

    network: Compressed
    removed: float
    compensated: bool
    bytes: int


def spared(network: Posterior) -> bool:
    """Whether a network is spared compensation that nobody asked for, as it would take long, which is said."""
    if (work := work_of(network.graph, network.tensors, network.layers)) <= MOST_WORK:
        return False
    keep(
        f"rounded to the nearest: compensation takes {work:.0e} multiply-adds for each of a dozen candidates, "
        "and mostly makes smaller files: --rounding compensated"
    )
    return True


def compress_smallest(
    posterior: Posterior, splits: Splits, how: Smallest, goal: Goal, device: str = "cpu",
    callbacks: SearchCallbacks | None = None, passes: int | None = None,
) -> Made:  # fmt: skip
    """Compress both ways; arguments as in `compress`.

    With a bound on the bytes the network of the lower validation NLL is kept, else the one of the smaller file. The
    search for the second ends early where its first candidates are far behind the first's file.

    Raises:
        ValueError: as `compress`, where neither way reaches the goal.
    """
    found, error = list[Made](), None

    def keep_made(network: Compressed, removed: float, compensated: bool) -> None:
        found.append(Made(network, removed, compensated, file_bytes(network)))

    try:
        keep_made(*compress(posterior, splits, goal, Rounding(), device, callbacks, passes), False)
    except ValueError as raised:
        error = raised
    if not spared(posterior):
        beside = found[0].bytes if found and goal.max_bytes is None else None
        try:
            network, removed = compress_compensated(
                posterior, splits, how.compensation, goal, device, callbacks, beside
            )
            keep_made(reordered(network, passes), removed, True)
        except ValueError as raised:
            error = error or raised
    if not found:
        assert error
        raise error

    def worth(made: Made) -> float:
        if goal.max_bytes is None:
            return made.bytes
        module = to_module(made.network).to(device)
        return evaluate(module, splits, "validation", device, made.network.noise).nll_nats

    return min(found, key=worth) if len(found) > 1 else found[0]


def file_bytes(network: Compressed) -> int:
    """What its file takes."""
    return len(file.dumps(network)[0])
