"""One trial: a fit, made once and found again by its configuration, and a file made of it. Reads train and validation.

runs/               the store of the fits (`pyro_compress.runs.store`): two workers never fit the same thing
files/HASH.pcn      one file per configuration of fit and compression
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.finetuned import FineTuning, compress_finetuned
from pyro_compress.compression.pipeline import save
from pyro_compress.compression.rounding import Rounding
from pyro_compress.compression.search import compress
from pyro_compress.doubts import gathered
from pyro_compress.metrics import evaluate
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.runs.store import store_of
from pyro_compress.settings import CompressConfig
from pyro_compress.tuning.plan import Point
from pyro_compress.types import Compressed, Posterior, Splits


@dataclass(frozen=True)
class Measured:
    """What a trial found.

    Attributes:
        error: share of the validation examples that the file gets wrong.
        nll_nats: validation NLL per example.
        bytes: of the file, as it lies on disk.
        parameters: non-zero values in it.
        fit_seconds: spent on the fit; 0 where it was there already.
        seconds: spent on everything else.
    """

    error: float
    nll_nats: float
    bytes: int
    parameters: int
    fit_seconds: float
    seconds: float


def measure(point: Point, splits: Splits, out: Path) -> Measured:
    """Fit what is missing, compress, write and verify the file, score it on the validation split.

    Args:
        point: the configuration.
        splits: its data.
        out: folder of the study.

    Raises:
        ValueError: the fit or the compression failed on this configuration.
        OSError: the folder cannot be written.
    """
    started = time.perf_counter()
    with gathered():  # a trial is no result yet
        run = _loaded(store_of(out).fitted(point.config))
    after_fit = time.perf_counter()
    network = compressed(run.posterior, splits, point.settings)
    path = file_of(point, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, network, splits)
    scores = evaluate(to_module(network), splits, "validation", noise=network.noise)
    return Measured(
        error=scores.error,
        nll_nats=scores.nll_nats,
        bytes=path.stat().st_size,
        parameters=network.parameters,
        fit_seconds=after_fit - started,
        seconds=time.perf_counter() - after_fit,
    )


def file_of(point: Point, out: Path) -> Path:
    """Where its file lies."""
    return out / "files" / f"{point.hash}.pcn"


@lru_cache(maxsize=2)
def _loaded(folder: Path) -> Run:
    return load_run(folder)


def compressed(posterior: Posterior, splits: Splits, settings: dict[str, Any]) -> Compressed:
    """Compress by settings, which are options of the command `compress`."""
    config = CompressConfig.of(settings)
    if how := config.finetuning:
        lam = how.lam if config.finetune_lambda is None else config.finetune_lambda
        return compress_finetuned(posterior, splits, FineTuning(how, lam), config)[0]
    return compress(posterior, splits, config, Rounding(config.relative_step))[0]
