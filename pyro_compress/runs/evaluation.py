"""Scoring what lies on disk: a run folder or a compressed file, on any data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import nn

from pyro_compress.compression.search import to_module
from pyro_compress.data.splits import (
    PREPROCESSING,
    load_examples,
    load_splits,
    preprocessing,
    preprocessing_of,
    reading_of,
)
from pyro_compress.data.tabular import SUFFIXES
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate, scored
from pyro_compress.networks.bounded import bounded, check_outputs, shown
from pyro_compress.networks.graph import Network
from pyro_compress.pcn import file
from pyro_compress.pcn.gate import MAX_MEMORY_MIB, UNLIMITED, Limits, Plan, check, limited
from pyro_compress.runs.folder import load_run
from pyro_compress.scores import Quality
from pyro_compress.settings import Reading
from pyro_compress.types import Preprocessing


def evaluate_target(
    target: Path, data: str | None, split: str, data_dir: str = "", device: str = "auto", threads: int = 0,
    max_memory: float = MAX_MEMORY_MIB,
) -> tuple[Quality, int]:  # fmt: skip
    """Score a run folder (posterior mean) or a `.pcn` file.

    Args:
        target: run folder or file.
        data: data set name, `.npz` file (with `x` and `y`, or as for fitting) or table; None: what it was fitted on.
        split: `train`, `validation` or `test`; a `.npz` file given as `data` is scored on `x_test` (or `x`), a table
            on all its rows.
        data_dir: folder of the torchvision data sets.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads; 0 leaves torch's default.
        max_memory: MiB that a `.pcn` file may ask for.

    Returns:
        The scores, and on how many examples.

    Raises:
        ValueError: a damaged file, missing data, inputs or outputs of another shape, outputs that are no numbers.
    """
    device = prepare(device, threads)
    loaded = _load(target, data_dir, data, limited(max_memory))
    network = bounded(loaded.network.to(device), loaded.plan)
    input_shape, origin = loaded.input_shape, loaded.data
    if data is not None and data.endswith((".npz", *SUFFIXES)):
        examples = load_examples(Path(data), loaded.known, loaded.reading)
        _check_shape(data, tuple(examples.x.shape[1:]), input_shape)
        check_outputs(loaded.plan, *shown(examples.y), data)
        return scored(network, examples, loaded.known.targets if loaded.known else (), loaded.noise, device), len(
            examples
        )
    splits = load_splits(data or origin, data_dir, loaded.validation, reading=loaded.reading)
    _check_shape(data or origin, splits.input_shape, input_shape)
    check_outputs(loaded.plan, splits.outputs, splits.task, data or origin)
    return evaluate(network, splits, split, device, loaded.noise), splits.sizes[split]


class _Loaded(NamedTuple):
    """A network, and what is known of the data it was fitted on."""

    network: nn.Module
    input_shape: tuple[int, ...]
    data: str
    validation: float | None
    known: Preprocessing | None
    reading: Reading
    noise: float | None
    plan: Plan


def _load(target: Path, data_dir: str, data: str | None, limits: Limits) -> _Loaded:
    if target.is_dir():
        posterior, config = (run := load_run(target)).posterior, run.config
        if data and Path(config.data).is_absolute() and not Path(config.data).exists():
            run = replace(run, data=data)  # moved
        network = Network(posterior.graph, posterior.tensors).eval()
        if run.config.task == "regression" or Path(config.data).suffix in SUFFIXES:
            known: Preprocessing | None = preprocessing(run.splits(data_dir))
        else:
            known = PREPROCESSING.get(config.data)
        shape = posterior.graph.input_shape
        plan = check(posterior.graph, {name: tuple(t.shape) for name, t in posterior.tensors.items()}, UNLIMITED)
        return _Loaded(network, shape, config.data, config.validation, known, config.reading, posterior.noise, plan)
    compressed = file.read(target, limits)
    meta = compressed.meta
    return _Loaded(
        to_module(compressed),
        compressed.graph.input_shape,
        str(meta.get("data", "")),
        meta.get("validation"),
        preprocessing_of(meta),
        reading_of(meta),
        compressed.noise,
        file.plan_of(compressed),
    )


def _check_shape(data: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ValueError(f"{data}: one example has shape {got}; this network takes {wanted}")
