"""Posterior -> file -> report: written only after an independent decoder agreed, measured as it lies on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.compensated import Compensation, compress_compensated
from pyro_compress.compression.finetuned import FineTuning, Teacher, beaten, compress_finetuned
from pyro_compress.compression.fixed_point import fixed_point_of
from pyro_compress.compression.order import reordered
from pyro_compress.compression.packing import folded
from pyro_compress.compression.prune import ruled
from pyro_compress.compression.rounding import Rounding
from pyro_compress.compression.search import compress, rounding_in
from pyro_compress.compression.shrink import stuck_units
from pyro_compress.compression.smallest import Smallest, compress_smallest
from pyro_compress.compression.target import SearchCallbacks, Target, target_of
from pyro_compress.compression.verdict import at_chance, hints_of, larger, outside
from pyro_compress.graph.ir import widths
from pyro_compress.graph.network import Network
from pyro_compress.machine import give_back
from pyro_compress.metrics import evaluate, logits_of
from pyro_compress.pcn import file, runner
from pyro_compress.pcn.gate import MAX_MEMORY_MIB, UNLIMITED, check, limited
from pyro_compress.places import check_file
from pyro_compress.scores import Quality
from pyro_compress.settings import CompressConfig, Goal
from pyro_compress.types import Compressed, Graph, Posterior, Splits

CHECKED = 2000
"""Validation examples on which every file is run by numpy before it is written."""

FOLDED = 1e-3
"""Largest difference, relative to the largest output, that the rounding of scales and shifts to float32 explains."""


@dataclass(frozen=True)
class FineTuned:
    """How what pruning left was trained on.

    Attributes:
        epochs: of fine-tuning; 0 where the posterior, threshold and rounding did it alone.
        lam: λ of it: nats of log-likelihood that a nat of code may cost.
        teacher: network that was distilled into this one; empty for none.
        augment: how training images were changed; empty for not at all.
        svi: whether it went on with SVI under the mask.
    """

    epochs: int = 0
    lam: float = 0.0
    teacher: str = ""
    augment: str = ""
    svi: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Flat JSON values."""
        return {
            "finetune_epochs": self.epochs, "finetune_lambda": self.lam, "teacher": self.teacher,
            "finetune_augment": self.augment, "finetune_svi": self.svi,
        }  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What compression did; sizes are counted by the file system.

    Attributes:
        criterion: pruning criterion.
        sparsity: share of the weights that the criterion removed; with compensation, that were rounded to zero.
        validation_before: scores of the reference: the uncompressed posterior mean, or the weights that were given.
        validation_after: scores of the file, decoded.
        test_before: as above, on the test split.
        test_after: as above, on the test split.
        parameters_total: values of the uncompressed network.
        parameters_kept: non-zero values in the file.
        units_before: widths from input to output.
        units_kept: widths from input to output that are still there; inputs count if anything reads them.
        units_stuck: operation -> units without weights that stay because their channels meet it.
        bits_per_kept_weight: 8 × bytes of the whole file / `parameters_kept`, biases among them.
        file_bytes: size of the file.
        dense_bytes: size of the uncompressed network as float32.
        sections_bytes: bytes of each part of the file.
        spelled_out_bytes: what the file would have without the templates and the preset dictionary of its readers, to
            be set beside sizes of formats that have neither.
        fixed_point_bits: bits per weight, layer by layer, as the posterior's variances have them (`fixed_point_of`).
        fixed_point_ratio: what the file's network would save at these, counted as Louizos et al. 2017 do; None where
            no weight is left.
        finetuned: how it was fine-tuned.
        rounding: `compensated`, where that chose every integer and no criterion anything; else empty.
        relative_step: of the weights, in units of each layer's own scale, where a search or an option chose it.
        lam: λ of rounding, likewise; 0 is to the nearest.
        within_tolerance: whether the file reaches on validation what was asked for (whatever else was: a sparsity, a
            λ, a bound on its bytes); None where nobody asked.
        warnings: what must be said of it in the last lines, and what to try; empty if all is well.
    """

    criterion: str
    sparsity: float
    validation_before: Quality
    validation_after: Quality
    test_before: Quality
    test_after: Quality
    parameters_total: int
    parameters_kept: int
    units_before: list[int]
    units_kept: list[int]
    bits_per_kept_weight: float
    file_bytes: int
    dense_bytes: int
    sections_bytes: dict[str, int]
    spelled_out_bytes: int = 0
    units_stuck: dict[str, int] = field(default_factory=dict)
    fixed_point_bits: list[int] = field(default_factory=list)
    fixed_point_ratio: float | None = None
    finetuned: FineTuned = field(default_factory=FineTuned)
    rounding: str = ""
    relative_step: float | None = None
    lam: float | None = None
    within_tolerance: bool | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Dense bytes per file byte."""
        return self.dense_bytes / self.file_bytes

    def to_dict(self) -> dict[str, Any]:
        """Flat JSON values: `test_accuracy_before` and the like, `lambda`, and the ratio."""
        fields = {"lambda" if name == "lam" else name: value for name, value in asdict(self).items()}
        for name in ("validation_before", "validation_after", "test_before", "test_after"):
            split, when = name.split("_")
            fields |= {f"{split}_{metric}_{when}": number for metric, number in fields.pop(name).items()}
        del fields["finetuned"]
        return fields | self.finetuned.to_dict() | {"ratio": self.ratio}


def load(path: str | Path, max_memory: float = MAX_MEMORY_MIB) -> Network:
    """Read a `.pcn` file as an ordinary `nn.Module`, in evaluation mode.

    Args:
        path: the file.
        max_memory: MiB that it may ask for, to be read and run; more is refused before anything is allocated.

    Raises:
        ValueError: not such a file, or a damaged one.

    Examples:
        >>> import pyro_compress as pc
        >>> pc.load("missing.pcn")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.pcn'
    """
    if Path(path).is_dir():
        raise ValueError(
            f"{path} is a folder; give the .pcn file in it (network.pcn, in a run folder that was compressed)"
        )
    return to_module(file.read(Path(path), limited(max_memory)))


def way_of(
    config: CompressConfig, seed: int = 0, teacher: Teacher | None = None
) -> Rounding | Compensation | Smallest | FineTuning:
    """How a configuration makes integers of the weights.

    Args:
        config: the configuration.
        seed: of the calibration examples of compensation.
        teacher: the networks of `config.teacher`.

    Raises:
        ValueError: a teacher is named, and not given.
    """
    if config.finetuning:
        if len(config.teacher) > 0 and teacher is None:
            raise ValueError(f"teacher {', '.join(config.teacher)}: give its network, `Teacher.of(...)`")
        return FineTuning(config.finetuning, config.finetune_lambda, teacher)
    compensation = Compensation(seed=seed) if config.repair is None else Compensation(seed=seed, repair=config.repair)
    if config.rounding == "compensated":
        return compensation
    if config.rounding == "smallest" or config.rounds_only:
        return Smallest(compensation)
    return rounding_in(config)


def compress_run(
    posterior: Posterior, splits: Splits, path: Path, goal: Goal | None = None,
    how: Rounding | Compensation | Smallest | FineTuning | None = None, device: str = "cpu",
    callbacks: SearchCallbacks | None = None, passes: int | None = None,
) -> Report:  # fmt: skip
    """Compress into a file and report on it.

    Args:
        posterior: moments of every weight, and the network.
        splits: where it was fitted.
        path: the file to write.
        goal: how much to prune, or what to reach; a `CompressConfig` says also how, and in how many passes.
        how: round the means to the nearest, with compensation, or whichever makes the smaller file, or fine-tune them.
        device: `cpu` or `cuda`; fine-tuning runs on the CPU.
        callbacks: told of progress.
        passes: spent on the order of hidden units, as in `reordered`.

    Raises:
        ValueError: as `compress`; nothing is written.
        OSError: the file cannot be written.
    """
    if isinstance(goal, CompressConfig):
        how, passes = how or way_of(goal), goal.reorder if passes is None else passes
    check_file(path, "pcn", force=True)
    asked, goal = goal or Goal(), ruled(posterior, goal or Goal())
    if isinstance(how, Rounding) and any(how.lams) and posterior.criterion == "magnitude":
        raise ValueError("--lambda weighs bits against a posterior's spread, and these are point weights")
    if not isinstance(how, FineTuning):
        give_back(posterior.largest_bytes)
    target, compensated = target_of(posterior, splits, goal, device), isinstance(how, Compensation)
    if isinstance(how, FineTuning):
        network, removed = compress_finetuned(posterior, splits, how, goal, device, callbacks, passes)
    elif isinstance(how, Compensation):
        network, removed = compress_compensated(posterior, splits, how, goal, device, callbacks)
        network = reordered(network, passes)
    elif isinstance(how, Smallest):
        made = compress_smallest(posterior, splits, how, goal, device, callbacks, passes)
        network, removed, compensated = made.network, made.removed, made.compensated
    else:
        network, removed = compress(posterior, splits, goal, how, device, callbacks, passes)
    sections = save(path, network, splits)
    step, lam = network.rounded or (None, None)
    del network  # what counts from here on is what lies on disk
    found = report(goal.reference or posterior, path, splits, removed, sections)
    found = replace(found, rounding="compensated" if compensated else "")
    found = replace(found, relative_step=step or None, lam=lam)
    given = how.lam if isinstance(how, FineTuning) else None
    hints = hints_of(asked, how if isinstance(how, Rounding) else None, isinstance(how, FineTuning), given)
    found = judged(found, splits, target, hints, goal.reference is not None)
    if isinstance(how, FineTuning) and (goal.max_bytes is not None or found.within_tolerance):
        worse = beaten(posterior, splits, goal, found.file_bytes, found.validation_after, device)
        found = replace(found, warnings=[*found.warnings, *([worse] if worse else [])])
    return found


def judged(found: Report, splits: Splits, target: Target, hints: list[str], elsewhere: bool) -> Report:
    """A report that says whether its file reaches a target, and what else its reader must know.

    Args:
        found: the report.
        splits: the data.
        target: what the file has to reach on validation.
        hints: what to try where it does not.
        elsewhere: whether the network was trained elsewhere.
    """
    warnings = [
        at_chance(found.validation_before, splits, elsewhere),
        outside(target, found.validation_after, hints),
        larger(found.file_bytes, found.dense_bytes),
    ]
    reached = target.reached(found.validation_after)
    return replace(found, within_tolerance=reached, warnings=[text for text in warnings if text])


def save(path: str | Path, network: Compressed, splits: Splits) -> dict[str, int]:
    """Write the file, but only after its bytes, decoded and run by numpy alone, gave torch's predictions.

    Where batch norm became scale and shift, these are first held against the network before.

    Returns:
        Bytes of each part.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: the decoded network disagrees: a defect of this program.
    """
    network = with_its_lengths(network)
    data, parts = file.dumps(network)
    decoded = file.loads(data, UNLIMITED)
    x = splits.validation.x[:CHECKED]
    if network.unfolded is not None:
        graph, before = network.unfolded
        weights = {n: torch.from_numpy(file.dense(t)) for n, t in network.tensors.items() if n not in before}
        _check_folded(graph, weights | before, x)
        del weights
    wanted = logits_of(to_module(network), x).numpy()
    got = runner.run(decoded, x.numpy())
    scale = max(float(np.abs(wanted).max()), 1.0)
    if not np.allclose(got, wanted, rtol=1e-4, atol=1e-5 * scale):
        raise RuntimeError(f"the decoded network is off by {np.abs(got - wanted).max():.2g}; nothing was written")
    write_atomically(Path(path), data)
    return parts


def with_its_lengths(network: Compressed) -> Compressed:
    """A network that says that it takes shorter sequences only where, after all that was done to it, it does."""
    graph, shapes = network.graph, file.shapes_of(network)
    if graph.least:
        try:
            for length in {graph.least, graph.input_shape[0] - 1}:
                check(graph.at((length,)), shapes, UNLIMITED)
        except ValueError:
            return replace(network, graph=replace(graph, least=0))
    return network


def _check_folded(graph: Graph, tensors: dict[str, Tensor], x: Tensor) -> None:
    wanted, got = (logits_of(Network(graph, given, own=True).eval(), x) for given in (tensors, folded(graph, tensors)))
    gap, scale = float((got - wanted).abs().max()), max(float(wanted.abs().max()), 1e-6)
    if not gap <= FOLDED * scale:
        raise RuntimeError(f"with batch norm as scale and shift the network is off by {gap:.2g}; nothing was written")


def report(posterior: Posterior, path: Path, splits: Splits, sparsity: float, sections: dict[str, int]) -> Report:
    """Read the file back and measure it beside what it came from; reads the test split."""
    network = file.read(path, UNLIMITED)
    before, after = Network(posterior.graph, posterior.tensors, own=True).eval(), to_module(network)
    total = network.meta["parameters_total"]
    size = os.path.getsize(path)
    first = posterior.removals[0] if posterior.removals else None
    criterion = network.meta["criterion"]
    values = after.state_dict()
    fixed = fixed_point_of(posterior, values, criterion)
    return Report(
        criterion=criterion,
        sparsity=sparsity,
        validation_before=evaluate(before, splits, "validation", noise=posterior.noise),
        validation_after=evaluate(after, splits, "validation", noise=network.noise),
        test_before=evaluate(before, splits, "test", noise=posterior.noise),
        test_after=evaluate(after, splits, "test", noise=network.noise),
        parameters_total=total,
        parameters_kept=network.parameters,
        units_before=first.widths_before if first else widths(posterior.graph, posterior.tensors),
        units_kept=widths(network.graph, values),
        units_stuck=stuck_units(network.graph, values),
        bits_per_kept_weight=8 * size / max(network.parameters, 1),
        file_bytes=size,
        dense_bytes=4 * total,
        sections_bytes=sections,
        spelled_out_bytes=file.spelled_out_bytes(network, sections["header"], size),
        fixed_point_bits=fixed.bits,
        fixed_point_ratio=fixed.reduced,
        finetuned=_finetuned(network.meta),
    )


def _finetuned(meta: Mapping[str, Any]) -> FineTuned:
    """What a file's metadata say of its fine-tuning; λ stands there as `rate`."""
    return FineTuned(
        meta.get("finetune_epochs", 0), meta.get("rate", 0.0), meta.get("teacher", ""),
        meta.get("finetune_augment", ""), meta.get("finetune_svi", False),
    )  # fmt: skip
