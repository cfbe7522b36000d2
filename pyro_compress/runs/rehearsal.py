"""What a fit would do, hold and take, found out without writing anything: `fit --print-config`, `fit --dry-run`."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from pyro_compress.data.splits import load_splits
from pyro_compress.doubts import gathered
from pyro_compress.machine import GIB, available_bytes
from pyro_compress.runs.budget import check_memory, mode_of, needed_bytes
from pyro_compress.runs.config import resolve
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import FitConfig
from pyro_compress.training.history import Iteration
from pyro_compress.types import Splits

STEPS, SECONDS = 12, 5.0
"""A phase is measured for so many steps, or until so many seconds are over; the first three do not count."""


@dataclass(frozen=True)
class Rehearsal:
    """What a fit would do.

    Attributes:
        config: resolved.
        sizes: examples by split.
        parameters: values of the network.
        batches: steps of an epoch.
        needed: bytes that it would hold, part by part.
        available: bytes that the device has left; None where the system does not say.
        seconds: phase -> seconds of its epoch, evaluation left out.
    """

    config: FitConfig
    sizes: dict[str, int]
    parameters: int
    batches: int
    needed: dict[str, int]
    available: int | None
    seconds: dict[str, float]

    @property
    def epochs(self) -> dict[str, int]:
        """Epochs by phase."""
        point = self.config.epochs if self.config.prior == "none" else self.config.pretrain_epochs
        found = {"point": point or 0, "svi": (self.config.epochs or 0) - (point or 0)}
        return {phase: epochs for phase, epochs in found.items() if epochs}

    @property
    def lines(self) -> list[str]:
        """All of it in words."""
        config, steps = self.config, (self.config.epochs or 0) * self.batches
        sizes = ", ".join(f"{size:,} {split}" for split, size in self.sizes.items())
        phases = " and ".join(f"{epochs} {phase}" for phase, epochs in self.epochs.items())
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.needed.items())
        left = "" if self.available is None else f"; {config.device} has {self.available / GIB:.1f} left"
        times = ", ".join(f"{seconds:.2g} s an epoch ({phase})" for phase, seconds in self.seconds.items())
        total = sum(self.seconds[phase] * epochs for phase, epochs in self.epochs.items())
        eager = "; the step would be compiled, and is measured as it is before" * (mode_of(config, steps) == "captured")
        return [
            f"network: {config.net}, {self.parameters:,} parameters; prior {config.prior}",
            f"data: {config.data}; examples: {sizes}",
            f"steps: {config.epochs} epochs ({phases}) of {self.batches:,} steps of {config.batch_size} examples, "
            f"{steps:,} in all",
            f"memory: about {sum(self.needed.values()) / GIB:.2f} GiB ({parts}){left}",
            f"time: {times}, about {total:.2g} s in all, without evaluation{eager}",
        ]


def prepared(config: FitConfig) -> tuple[FitConfig, Splits]:
    """A configuration with everything filled in, and its data.

    Raises:
        ValueError: what `load_splits` and `resolve` refuse.
    """
    splits = load_splits(config.data, config.data_dir, config.validation, reading=config.reading)
    return resolve(config, len(splits.train)), splits


def rehearse(config: FitConfig) -> Rehearsal:
    """Find out what a fit would do, by a few steps of each of its phases.

    Raises:
        ValueError: what the fit would refuse.
    """
    config, splits = prepared(config)
    net = initial_net(config, splits)
    check_memory(net, splits, config)
    assert config.batch_size
    parameters, batches = sum(p.numel() for p in net.parameters()), math.ceil(len(splits.train) / config.batch_size)
    needed, available = needed_bytes(net, splits, config), available_bytes(config.device)
    found = Rehearsal(config, splits.sizes, parameters, batches, needed, available, {})
    seconds = {phase: found.batches * step_seconds(net, splits, config, phase) for phase in found.epochs}
    return replace(found, seconds=seconds)


@contextmanager
def unlogged() -> Iterator[None]:
    """No warnings: a fit of a few steps says nothing of the real one."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def step_seconds(net: nn.Module, splits: Splits, config: FitConfig, phase: str) -> float:
    """Seconds of a step, the median of a few."""
    times = [time.perf_counter()]

    def on_step(step: Iteration) -> bool:
        times.append(time.perf_counter())
        return len(times) > STEPS or times[-1] - times[0] > SECONDS

    with gathered(), unlogged():
        if config.prior == "none":
            from pyro_compress.training.baselines import fit_baseline

            fit_baseline(net, splits, config, on_step=on_step)
        else:
            from pyro_compress.bayes.fit import fit_posterior

            first = config if phase == "point" else replace(config, pretrain_epochs=0)
            fit_posterior(net, splits, replace(first, compile="off"), on_step=on_step)
    taken = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(taken[3:] or taken)
