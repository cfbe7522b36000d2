"""Scoring what lies on disk: a run folder or a compressed file, on any data."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from pyro_compress import metrics
from pyro_compress.compression.candidates import to_module
from pyro_compress.data.splits import (
    PREPROCESSING,
    filled,
    load_examples,
    load_splits,
    preprocessing,
    preprocessing_of,
    reading_of,
)
from pyro_compress.data.table_files import is_table
from pyro_compress.data.text import is_text
from pyro_compress.doubts import doubt
from pyro_compress.graph.network import Network
from pyro_compress.machine import prepare
from pyro_compress.networks.bounded import bounded, check_inputs, check_outputs, shape_of, shown
from pyro_compress.pcn import file
from pyro_compress.pcn.gate import MAX_MEMORY_MIB, Limits, Plan, limited
from pyro_compress.runs.command_budget import check_command
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.scores import Quality
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Graph, Preprocessing, Splits, kind_of

log = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """How good a network is, on so many examples."""

    scores: Quality
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self.scores) | {"examples": self.examples}

    def __repr__(self) -> str:
        """Scores for people."""
        cells = (
            f"{name.removesuffix(' (nats)')} {cell}{' nats' * name.endswith(' (nats)')}"
            for name, cell in self.scores.cells.items()
        )
        return f"{', '.join(cells)} on {self.examples:,} examples"


def evaluate(
    target: str | Path, data: str | None = None, split: str = "test", data_dir: str = "", device: str = "auto",
    threads: int = 0, max_memory: float = MAX_MEMORY_MIB,
) -> Evaluation:  # fmt: skip
    """Score a run folder (posterior mean) or a `.pcn` file.

    Args:
        target: run folder or file.
        data: data set name, `.npz` file (with `x` and `y`, or as for fitting), table or text; None: what it was fitted
            on, of which `split` counts.
        split: `train`, `validation` or `test`. A `.npz` file given as `data` is scored on `x_test` (or `x`), a table
            on all its rows, a text that the network was not fitted on from its beginning to its end: `test` alone. A
            warning says so where these are the very data of the fit, training rows among them.
        data_dir: folder of the torchvision data sets.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads; 0 leaves torch's default.
        max_memory: MiB that a `.pcn` file may ask for.

    Returns:
        The scores, and on how many examples.

    Raises:
        ValueError: a damaged file, missing data, inputs or outputs of another shape, outputs that are no numbers.

    Examples:
        >>> import pyro_compress as pc
        >>> pc.evaluate("missing.pcn")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.pcn'
    """
    device = prepare(device, threads)
    loaded = load_target(Path(target), data_dir, data, limited(max_memory))
    network = bounded(loaded.network.to(device), loaded.plan)
    if data is not None and _all_scored(data, loaded):
        if split != "test":
            raise ValueError(f"{data} is scored as a whole: it has no {split} split; leave --split out")
        examples = load_examples(Path(data), loaded.known, loaded.reading, loaded.graph.inputs)
        doubt(log, _fitted_sentence(data, loaded.data, len(examples)))
        check_inputs(loaded.graph, tuple(examples.x.shape[1:]), kind_of(examples.x), data, examples.inputs)
        if (task := loaded.reading.task) in ("classification", "regression"):
            check_outputs(loaded.plan, *shown(examples.y), data)
            found = metrics.scored(network, examples, loaded.known.targets, loaded.noise, device)
            return Evaluation(found, len(examples))
        check_outputs(loaded.plan, shape_of(examples, task), task, data)
        found = metrics.scored_as(task, network, examples, loaded.known.targets, loaded.noise, device)
        return Evaluation(metrics.in_units(found, loaded.reading.vocabulary), len(examples))
    splits = loaded.splits(data, data_dir)
    check_inputs(loaded.graph, splits.input_shape, splits.kind, data or loaded.data, splits.inputs)
    check_outputs(loaded.plan, splits.output_shape, splits.task, data or loaded.data)
    return Evaluation(metrics.evaluate(network, splits, split, device, loaded.noise), splits.sizes[split])


def _fitted_sentence(data: str, own: str, scored: int) -> str:
    """What is to be said of data that are scored whole, where they are those of the fit, or may be; empty if not."""
    given, known = Path(data), Path(own)
    if given.suffix.lower() == ".npz" and _has_test(given):
        return ""
    said = f"{data}: all {scored:,} rows were scored"
    if known.is_file():
        if not filecmp.cmp(given, known, shallow=False):
            return ""
        alone = "without --data (data= in Python) its test split alone is scored"
        return f"{said}, and it is what the network was fitted on: training rows are among them; {alone}"
    return f"{said}; if it is {own} of the fit, training rows are among them" if given.name == known.name else ""


def _has_test(path: Path) -> bool:
    """Whether a `.npz` file is scored on a part of its own, which no fit trains on."""
    with np.load(path, allow_pickle=False) as archive:
        names = {name.lower() for name in archive.files}
    return "x" not in names and any(name.endswith("_test") for name in names)


def _all_scored(data: str, loaded: Loaded) -> bool:
    """Whether data are one set of examples: a table, a `.npz` file, or a text other than the network's own."""
    path = Path(data)
    if is_table(path) or path.suffix.lower() == ".npz":
        return True
    return is_text(path, loaded.reading) and path.absolute() != Path(loaded.data).absolute()


class Loaded(NamedTuple):
    """A network, and what is known of the data it was fitted on."""

    network: nn.Module
    graph: Graph
    data: str
    known: Preprocessing
    reading: ReadConfig
    noise: float | None
    splits: Callable[[str | None, str], Splits]
    plan: Plan


def load_target(
    target: Path, data_dir: str, data: str | None, limits: Limits, command: str = "evaluate"
) -> Loaded:  # fmt: skip
    """Read a run folder (posterior mean) or a `.pcn` file.

    Args:
        target: run folder or file.
        data_dir: folder of the torchvision data sets.
        data: where the data are now, as for `evaluate`.
        limits: what a file may ask for.
        command: what it is for, a name in `command_budget.COMMANDS`.

    Raises:
        ValueError: neither, or a damaged one.
    """
    if target.is_dir():
        check_command(command, target)
        return _load_run(load_run(target), data_dir, data)
    compressed = file.read(target, limits)
    meta, shape, plan = compressed.meta, _expected(compressed.graph), file.plan_of(compressed)
    known, name = filled(preprocessing_of(meta), plan.output), str(meta.get("data", ""))
    how, share = reading_of(meta), meta.get("validation")
    takes = compressed.graph.inputs
    return Loaded(
        to_module(compressed), compressed.graph, name, known, how, compressed.noise,
        lambda other, folder: load_splits(other or name, folder, share, False, how, known, shape, takes), plan,
    )  # fmt: skip


def _load_run(run: Run, data_dir: str, data: str | None) -> Loaded:
    posterior, config = run.posterior, run.config
    if data and Path(config.data).is_absolute() and not Path(config.data).exists():
        run = replace(run, data=data)  # moved
    shape, plan = _expected(posterior.graph), run.plan
    own = run.known
    known = filled(own or PREPROCESSING.get(config.data) or _found(run, data_dir), plan.output)
    where, share, how = config.data_dir, config.validation, config.reading
    return Loaded(
        Network(posterior.graph, posterior.tensors, own=True).eval(), posterior.graph, config.data, known, how,
        posterior.noise,
        lambda other, folder: load_splits(
            other or config.data, folder or where, share, False, how, own, shape, posterior.graph.inputs
        ), plan,
    )  # fmt: skip


def _expected(graph: Graph) -> tuple[int, ...] | None:
    """Shape of an example, where the network takes one input; of several, their names say more."""
    return None if graph.inputs else graph.input_shape


def _found(run: Run, data_dir: str) -> Preprocessing:
    """What the data of an earlier version's run say themselves; nothing, where they are no table."""
    if run.config.task == "regression" or is_table(Path(run.config.data)):
        return preprocessing(run.splits(data_dir))
    return Preprocessing(0.0, ())
