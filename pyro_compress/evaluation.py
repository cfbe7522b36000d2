"""Scoring what lies on disk: a run folder or a compressed file, on any data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from pyro_compress.compression import file
from pyro_compress.compression.search import to_module
from pyro_compress.data import PREPROCESSING, load_examples, load_splits, preprocessing_of
from pyro_compress.graph import Network
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate, logits_of, score
from pyro_compress.run import load_run
from pyro_compress.types import Scores


def evaluate_target(
    target: Path, data: str | None, split: str, data_dir: str = "", device: str = "auto", threads: int = 0
) -> tuple[Scores, int]:
    """Score a run folder (posterior mean) or a `.pcn` file.

    Args:
        target: run folder or file.
        data: data set name or `.npz` file (with `x` and `y`, or as for fitting); None: what it was fitted on.
        split: `train`, `validation` or `test`; a `.npz` file given as `data` is scored on `x_test` (or `x`).
        data_dir: folder of the torchvision data sets.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads; 0 leaves torch's default.

    Returns:
        The scores, and on how many examples.

    Raises:
        ValueError: a damaged file, missing data, inputs of another shape.
    """
    device = prepare(device, threads)
    loaded = _load(target)
    network, input_shape, origin = loaded.network.to(device), loaded.input_shape, loaded.data
    if data is not None and data.endswith(".npz"):
        examples = load_examples(Path(data), loaded.scale)
        _check_shape(data, tuple(examples.x.shape[1:]), input_shape)
        return score(logits_of(network, examples.x, device), examples.y), len(examples)
    splits = load_splits(data or origin, data_dir, loaded.validation)
    _check_shape(data or origin, splits.input_shape, input_shape)
    return evaluate(network, splits, split, device), splits.sizes[split]


class _Loaded(NamedTuple):
    """A network, and what is known of the data it was fitted on."""

    network: nn.Module
    input_shape: tuple[int, ...]
    data: str
    validation: float | None
    scale: float | None


def _load(target: Path) -> _Loaded:
    if target.is_dir():
        posterior, config = (run := load_run(target)).posterior, run.config
        network = Network(posterior.graph, posterior.tensors).eval()
        scale = PREPROCESSING[config.data].scale if config.data in PREPROCESSING else None
        return _Loaded(network, posterior.graph.input_shape, config.data, config.validation, scale)
    compressed = file.read(target)
    meta = compressed.meta
    return _Loaded(
        to_module(compressed),
        compressed.graph.input_shape,
        str(meta.get("data", "")),
        meta.get("validation"),
        preprocessing_of(meta).scale,
    )


def _check_shape(data: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ValueError(f"{data}: one example has shape {got}; this network takes {wanted}")
