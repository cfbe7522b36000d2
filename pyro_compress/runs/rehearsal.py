"""What a fit would do, hold and take, found out without writing anything: `fit --print-config`, `fit --dry-run`."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import time
from dataclasses import replace

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


def prepared(config: FitConfig) -> tuple[FitConfig, Splits]:
    """A configuration with everything filled in, and its data.

    Raises:
        ValueError: what `load_splits` and `resolve` refuse.
    """
    splits = load_splits(config.data, config.data_dir, config.validation, reading=config.reading)
    return resolve(config, len(splits.train)), splits


def rehearsed(config: FitConfig) -> list[str]:
    """What a fit would do, in lines: network, data, steps, memory, and time by a few steps of each of its phases.

    Raises:
        ValueError: what the fit would refuse.
    """
    config, splits = prepared(config)
    net = initial_net(config, splits)
    check_memory(net, splits, config)
    assert config.batch_size
    assert config.epochs
    batches = math.ceil(len(splits.train) / config.batch_size)
    steps, needed, left = config.epochs * batches, needed_bytes(net, splits, config), available_bytes(config.device)
    point = config.epochs if config.prior == "none" else config.pretrain_epochs or 0
    epochs = {name: number for name, number in (("point", point), ("svi", config.epochs - point)) if number}
    seconds = {phase: batches * step_seconds(net, splits, config, phase) for phase in epochs}
    total = sum(seconds[phase] * number for phase, number in epochs.items())
    eager = "; the step would be compiled, and is measured as it is before" * (mode_of(config, steps) == "captured")
    times = ", ".join(f"{took:.2g} s an epoch ({phase})" for phase, took in seconds.items())
    phases = " and ".join(f"{number} {phase}" for phase, number in epochs.items())
    parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in needed.items())
    has = "" if left is None else f"; {config.device} has {left / GIB:.1f} left"
    return [
        f"network: {config.net}, {sum(p.numel() for p in net.parameters()):,} parameters; prior {config.prior}",
        f"data: {config.data}; examples: {', '.join(f'{size:,} {split}' for split, size in splits.sizes.items())}",
        f"steps: {config.epochs} epochs ({phases}) of {batches:,} steps of {config.batch_size} examples, {steps:,} "
        "in all",
        f"memory: about {sum(needed.values()) / GIB:.2f} GiB ({parts}){has}",
        f"time: {times}, about {total:.2g} s in all, without evaluation{eager}",
    ]


def step_seconds(net: nn.Module, splits: Splits, config: FitConfig, phase: str) -> float:
    """Seconds of a step of `point` or `svi`, the median of a few; warnings of so short a fit are not shown."""
    times, disabled = [time.perf_counter()], logging.root.manager.disable

    def on_step(step: Iteration) -> bool:
        times.append(time.perf_counter())
        return len(times) > STEPS or times[-1] - times[0] > SECONDS

    logging.disable(logging.WARNING)
    try:
        with gathered():
            if config.prior == "none":
                from pyro_compress.training.baselines import fit_baseline

                fit_baseline(net, splits, config, on_step=on_step)
            else:
                from pyro_compress.bayes.fit import fit_posterior

                first = config if phase == "point" else replace(config, pretrain_epochs=0)
                fit_posterior(net, splits, replace(first, compile="off"), on_step=on_step)
    finally:
        logging.disable(disabled)
    taken = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(taken[3:] or taken)
