"""Scoring what lies on disk: a run folder or a compressed file, on any data."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pyro_compress.compression import file
from pyro_compress.compression.search import to_module
from pyro_compress.data import load_examples, load_splits
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
    network, input_shape, origin, validation = _load(target, data_dir)
    network = network.to(device)
    if data is not None and data.endswith(".npz"):
        examples = load_examples(Path(data))
        _check_shape(data, tuple(examples.x.shape[1:]), input_shape)
        return score(logits_of(network, examples.x, device), examples.y), len(examples)
    splits = load_splits(data or origin, data_dir, validation)
    _check_shape(data or origin, splits.input_shape, input_shape)
    return evaluate(network, splits, split, device), splits.sizes[split]


def _load(target: Path, data_dir: str) -> tuple[nn.Module, tuple[int, ...], str, float | None]:
    """The network, its input shape, the data set it was fitted on and that set's validation share."""
    if target.is_dir():
        run = load_run(target)
        network = Network(run.posterior.graph, run.posterior.tensors).eval()
        return network, run.posterior.graph.input_shape, run.config.data, run.config.validation
    compressed = file.read(target)
    meta = compressed.meta
    return (
        to_module(compressed),
        compressed.graph.input_shape,
        str(meta.get("data", "")),
        meta.get("validation"),
    )


def _check_shape(data: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ValueError(f"{data}: one example has shape {got}; this network takes {wanted}")
