"""Independent fits of the same data: how far they agree on what means the same thing in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyro_compress.bayes.diagnostics import Size, diagnose
from pyro_compress.bayes.marginals import read_marginals
from pyro_compress.inspection import arviz_compat
from pyro_compress.machine import prepare
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.declared import having


@dataclass(frozen=True)
class Agreement:
    """How far independent fits agree on one kind of quantity.

    Attributes:
        quantity: what was compared.
        items: how many of them.
        median_rhat: rank-normalised r-hat over the items, each fit a chain.
        share_above: share of the items with r-hat above 1.05.
        median_ess: bulk effective sample size of all draws together.
        draws: draws of all fits together.
    """

    quantity: str
    items: int
    median_rhat: float
    share_above: float
    median_ess: float
    draws: int


def compare_restarts(
    paths: Sequence[Path], data_dir: str = "", draws: int = 100, threads: int = 0, data: str = ""
) -> list[Agreement]:
    """Compare independent fits of the same data: quantities that mean the same thing in each of them.

    Weights and hidden units are not among them: another start numbers the units in another order.

    Args:
        paths: run folders that differ in their seed only.
        data_dir: folder of the torchvision data sets.
        draws: draws per fit.
        threads: CPU threads; 0 leaves torch's default.
        data: where their data lie now; empty: where they lay.

    Raises:
        ValueError: fewer than two runs, or runs that differ in more than seed, start and machine.
    """
    prepare("cpu", threads)
    runs = [load_run(path, data) for path in paths]
    _check_same(runs)
    splits, found = runs[0].splits(data_dir), []
    for index, run in enumerate(runs):
        marginals = read_marginals(run.path / "guide.safetensors", run.config, run.posterior)
        size = Size(draws=draws, weights=1000, prior_draws=0)
        found.append(diagnose(run.posterior, marginals, splits.train, size, seed=index).groups.values)
    first = next(iter(runs[0].posterior.layers))
    kinds = {
        "log-likelihood of training rows": [f["log_likelihood"]["y"] for f in found],
        "KL of each tensor": [f["sample_stats"]["kl"] for f in found],
    }
    if runs[0].posterior.layers[first].grouping == "input":
        kinds["scale of each input"] = [f["posterior"][f"{first}.group_scale"] for f in found]
    return [_agreement(name, np.concatenate(arrays)) for name, arrays in kinds.items()]


def _check_same(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise ValueError("comparing restarts takes two runs or more")
    if len({run.config.seed for run in runs}) < len(runs):
        raise ValueError("two of the runs have the same seed: they are no independent restarts")
    compared = [name for name in having(FitConfig, identity=True) if name not in ("seed", "init")]
    for other in runs[1:]:
        if differing := [name for name in compared if getattr(other.config, name) != getattr(runs[0].config, name)]:
            raise ValueError(f"{runs[0].path} and {other.path} differ in {', '.join(differing)}; only seeds may differ")


def _agreement(quantity: str, values: np.ndarray) -> Agreement:
    """Of values `(fits, draws, items)`."""
    rhat, ess = arviz_compat.rhat_and_ess(values)
    rhat = np.nan_to_num(np.atleast_1d(rhat), nan=1.0)  # a quantity that never moves agrees with itself
    return Agreement(
        quantity=quantity,
        items=len(rhat),
        median_rhat=float(np.median(rhat)),
        share_above=float((rhat > 1.05).mean()),
        median_ess=float(np.nanmedian(ess)),
        draws=values.shape[0] * values.shape[1],
    )
