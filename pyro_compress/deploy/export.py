"""`.pcn` -> a file or folder for another place, written only after it was loaded again and compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_compress.atomic import sync_folder, sync_tree
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.target import target_of
from pyro_compress.compression.verdict import outside
from pyro_compress.data.several import task_named
from pyro_compress.data.splits import filled, load_splits, preprocessing_of, reading_of
from pyro_compress.deploy.card import card
from pyro_compress.deploy.ensemble import ensemble
from pyro_compress.deploy.formats import SAME, Exporter, Predict, exporter_of
from pyro_compress.deploy.said import EXAMPLES, check_said
from pyro_compress.doubts import keep
from pyro_compress.kinds import foreign_to_export, is_export
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate, examples_of
from pyro_compress.networks.bounded import bounded, check_inputs, check_outputs
from pyro_compress.pcn import file
from pyro_compress.pcn.gate import Limits, Plan, limited
from pyro_compress.places import check_file, check_folder
from pyro_compress.placing import LOCK, emptied, located, making, put_in_place, recover
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.unlabelled import labelled_by
from pyro_compress.scores import Quality
from pyro_compress.settings import Goal
from pyro_compress.settings.export import ExportConfig, Members
from pyro_compress.types import Compressed, Graph, Splits

AGREEMENT = 1e-5
"""Largest difference of outputs that passes, relative to the largest output (or to 1)."""
INT8_LOSS = 0.01
"""Validation accuracy (share of the RMSE) that 8-bit arithmetic may cost before the export is refused."""


@dataclass(frozen=True, repr=False)
class Exported:
    """What was written, and how it compares with the decoded network on the test inputs.

    Attributes:
        path: file or folder.
        bytes: its size, without that of files beside it.
        difference: largest difference of outputs (logits).
        probability_difference: largest difference of class probabilities; of the outputs for regression.
        largest_output: largest absolute output of the decoded network.
        before: scores of the decoded network.
        after: scores of the export.
        examples: on how many.
        notes: what else the user should know.
    """

    path: Path
    bytes: int
    difference: float
    probability_difference: float
    largest_output: float
    before: Quality
    after: Quality
    examples: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"path": str(self.path)}

    def __repr__(self) -> str:
        """What was written, and how it compares."""
        measure, before = next(iter(self.before.cells.items()))
        return (
            f"{self.path}: {self.bytes:,} bytes; largest difference of outputs {self.difference:.2g}; "
            f"{measure} {before} decoded, {self.after.cells[measure]} exported"
        )


HINTS = ("a smaller --sparsity (or none: those below the threshold go)", "a larger --ensemble")
"""What to try where an ensemble is outside the tolerance of the posterior mean."""


def export(
    path: str | Path, out: str | Path, request: ExportConfig | None = None, data: str | None = None,
    data_dir: str = "", force: bool = False, threads: int = 0, **options: Any,
) -> Exported:  # fmt: skip
    """Export a `.pcn` file, or draws from a run; the suffix of `out` names the format, none means a folder.

    Args:
        path: the file; with `request.members` a run folder.
        out: what to write.
        request: options of the format.
        data: data set to compare on; None: what the network was fitted on.
        data_dir: folder of the torchvision data sets.
        force: replace `out`.
        threads: CPU threads; 0 leaves torch's default.
        **options: instead of a request, settings of `ExportConfig` by their options: `int8`, `raw`, `ensemble`, ...

    Raises:
        ValueError: unknown format, an option that does not go with it, missing data or packages, outputs that differ.
        OSError: the file cannot be read or written.
    """
    prepare("cpu", threads)
    path, out, request = Path(path), Path(out), request or ExportConfig.of(options)
    out = out.with_suffix(SAME[out.suffix]) if out.suffix in SAME else out
    exporter = exporter_of(out, request)
    if out.suffix:
        for part in (out.suffix, *exporter.beside):
            check_file(out.with_suffix(part), part, force)
    else:
        recover(out, is_export)
        check_folder(out, lambda folder: foreign_to_export(folder) if is_export(folder) else None, force, "export")
    network, splits = _source(path, data, data_dir, request.members, limited(request.max_memory))
    name = data or str(network.meta.get("data", ""))
    check_inputs(network.graph, splits.input_shape, splits.kind, name, splits.inputs)
    network = replace(network, graph=replace(network.graph, inputs=splits.inputs))  # with scales, in old files as well
    plan = file.plan_of(network)
    check_outputs(plan, splits.output_shape, splits.task, name)
    _check_room(plan, exporter, request)
    with replacing(out, exporter.beside) as temporary:
        scores = evaluate(bounded(to_module(network), plan), splits, "test", noise=network.noise)
        about = card(network, scores, splits.sizes["test"], request.raw)
        notes = [*exporter.write(network, about, temporary, request, splits), *_length(network.graph, exporter, path)]
        measured = _compare(network, exporter.load(temporary), splits, request)
        if exporter.program:
            check_said(network, exporter.program(temporary), examples_of(splits, "test").x[:EXAMPLES])
        parts = [part for part in (temporary, *temporary.rglob("*")) if part.is_file() and part.name != LOCK]
        size = sum(part.stat().st_size for part in parts)
    return Exported(path=out, bytes=size, examples=splits.sizes["test"], notes=tuple(notes), **measured)


def _length(graph: Graph, exporter: Exporter, path: Path) -> list[str]:
    """That an export takes sequences of one length alone, where its network takes shorter ones."""
    if not graph.least or exporter.lengths:
        return []
    return [f"sequences are of {graph.input_shape[0]} tokens here; {path.name} itself takes {graph.takes}"]


def _check_room(plan: Plan, exporter: Exporter, request: ExportConfig) -> None:
    """Refuse a network that a format would take more memory for than allowed: small files hold large networks."""
    mib = (plan.values + plan.peak) * exporter.bytes / (1 << 20)
    if mib > request.max_memory:
        raise ValueError(f"{plan.values} values take about {mib:.0f} MiB in this format; allow it with --max-memory")


def _source(
    path: Path, data: str | None, data_dir: str, members: Members | None, limits: Limits
) -> tuple[Compressed, Splits]:
    """What is exported, and the data it is compared on."""
    if members is None:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; export takes a .pcn file, or a run folder with --ensemble")
        network = file.read(path, limits)
        return network, splits_of(network, data, data_dir)
    if not path.is_dir():
        raise ValueError(f"{path} is no run folder; a file holds no posterior to draw an ensemble from")
    config = (run := load_run(path)).config
    where = data_dir or config.data_dir
    takes = run.posterior.graph.inputs
    splits = load_splits(data or config.data, where, config.validation, False, config.reading, run.known, takes=takes)
    drawn = ensemble(path, members.number, splits, members.sparsity, members.seed)
    scores = evaluate(to_module(drawn), splits, "validation", noise=drawn.noise)
    keep(outside(target_of(run.posterior, splits, Goal()), scores, HINTS))
    return drawn, splits


def splits_of(network: Compressed, data: str | None, data_dir: str) -> Splits:
    """The data that a decoded network is compared on: those named, or those that its file names.

    Raises:
        ValueError: neither is named, or the data cannot be read.
    """
    name, reading = data or str(network.meta.get("data", "")), reading_of(network.meta)
    if not name and (calibration := str(network.meta.get("calibration", ""))):
        return labelled_by(network, calibration, reading)
    known = filled(preprocessing_of(network.meta), file.plan_of(network).output)
    share, takes = network.meta.get("validation"), network.graph.inputs
    return load_splits(name, data_dir, share, reading=reading, known=known, takes=takes)


def _compare(network: Compressed, predict: Predict, splits: Splits, request: ExportConfig) -> dict[str, Any]:
    """Outputs of the export beside those of the decoded network, on every test input."""
    plan = file.plan_of(network)
    reference, predicted = bounded(to_module(network), plan), task_named(network.task).predicted
    seen = {"difference": 0.0, "probability_difference": 0.0, "largest_output": 0.0}

    def beside(x: Tensor) -> Tensor:
        wanted = reference(x)
        got = torch.from_numpy(predict(x.numpy())).reshape(wanted.shape)  # C knows of rows alone
        gaps = {
            "difference": wanted - got,
            "probability_difference": predicted(wanted) - predicted(got),
            "largest_output": wanted,
        }
        for name, gap in gaps.items():
            seen[name] = max(seen[name], float(gap.abs().max()))
        return got

    after = evaluate(bounded(beside, plan), splits, "test", noise=network.noise)
    if request.int8 or request.int8_dynamic or request.int4:
        _check_int8(reference, predict, splits)
    elif not request.integer and not seen["difference"] <= AGREEMENT * max(seen["largest_output"], 1.0):
        raise ValueError(f"the export is off by {seen['difference']:.2g}; nothing was written")
    return seen | {"before": evaluate(reference, splits, "test", noise=network.noise), "after": after}


def _check_int8(reference: Callable[[Tensor], Tensor], predict: Predict, splits: Splits) -> None:
    """Refuse 8-bit arithmetic that costs too much, judged on the validation split."""
    before = evaluate(reference, splits, "validation")
    after = evaluate(lambda x: torch.from_numpy(predict(x.numpy())), splits, "validation")
    if not after.within(before, INT8_LOSS):
        measure = next(iter(before.cells))
        raise ValueError(
            f"integers change the validation {measure} from {before.cells[measure]} to {after.cells[measure]}; "
            "nothing was written (export to .onnx with --int8-dynamic, or without integers)"
        )


@contextmanager
def replacing(out: Path, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Where a file or folder is written before it is checked; it becomes `out` on success, vanishes on failure.

    Args:
        out: what it becomes.
        beside: suffixes of files that are written with it, and put in place before it.

    Raises:
        ValueError: another process is writing it.
    """
    with making(out := located(out)) as folder:
        if folder is None:
            raise ValueError(f"another export is writing {out}; wait for its end, or choose another --out")
        emptied(folder)
        try:
            if out.suffix:
                yield folder / out.name
                sync_tree(folder)
                for part in (*beside, out.suffix):
                    os.replace((folder / out.name).with_suffix(part), out.with_suffix(part))
                sync_folder(out.parent)
            else:
                yield folder
                put_in_place(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
