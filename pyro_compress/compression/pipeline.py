"""Posterior -> Compressed: criterion, threshold, precision, shrink, in that order; then the file, checked.

Everything is chosen on the validation split. With a tolerance, the search looks for the smallest file: for every
coarseness of the grid it bisects for the highest sparsity whose validation scores still reach the target, then
compares the coded bytes; at the end it coarsens the biases as far as the target allows. A target bounds the NLL beside
the accuracy: on a few hundred examples accuracy alone is a coarse ruler, and a search over it finds its gaps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_compress.compression import file, runner
from pyro_compress.compression.precision import bias_step, quantize, rounded, step_size
from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.compression.shrink import shrink
from pyro_compress.graph import WEIGHTED, Network, widths
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate
from pyro_compress.types import Compressed, Masks, Posterior, Quantized, Scores, Splits

COARSENESS = tuple(2.0 ** (-k / 2) for k in range(9))
"""Grid of step sizes, relative to each layer's own scale, coarsest first."""
KEPT = tuple(0.93**k for k in range(90))
"""Grid of kept shares of the weights."""
BIAS_LEVELS = (127, 63, 31, 15, 7, 3)
"""Codes of the largest bias, finest first."""
PRECISION_TOLERANCE = 0.001
"""Accuracy that rounding may cost where the sparsity is given."""
NLL_PER_ACCURACY = 2.0
"""Nats per example that may be lost, by default, for each unit of accuracy that may: 0.01 for half a point."""

OnTrial = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What compression did; sizes are counted by the file system.

    Attributes:
        criterion: pruning criterion.
        sparsity: share of the weights that the criterion removed.
        validation_before: scores of the uncompressed posterior mean.
        validation_after: scores of the file, decoded.
        test_before: as above, on the test split.
        test_after: as above, on the test split.
        parameters_total: values of the uncompressed network.
        parameters_kept: non-zero values in the file.
        units_before: widths from input to output.
        units_kept: widths from input to output that are still there; inputs count if anything reads them.
        bits_per_kept_weight: 8 × file bytes / parameters kept.
        file_bytes: size of the file.
        dense_bytes: size of the uncompressed network as float32.
        sections_bytes: bytes of each part of the file.
    """

    criterion: str
    sparsity: float
    validation_before: Scores
    validation_after: Scores
    test_before: Scores
    test_after: Scores
    parameters_total: int
    parameters_kept: int
    units_before: list[int]
    units_kept: list[int]
    bits_per_kept_weight: float
    file_bytes: int
    dense_bytes: int
    sections_bytes: dict[str, int]

    @property
    def ratio(self) -> float:
        """Dense bytes per file byte."""
        return self.dense_bytes / self.file_bytes

    def as_dict(self) -> dict[str, Any]:
        """Flat JSON values: `test_accuracy_before` and the like, and the ratio."""
        fields = asdict(self)
        for name in ("validation_before", "validation_after", "test_before", "test_after"):
            split, when = name.split("_")
            fields |= {f"{split}_{metric}_{when}": number for metric, number in fields.pop(name).items()}
        return fields | {"ratio": self.ratio}


class _Search:
    """Builds and scores candidates for one posterior."""

    def __init__(self, posterior: Posterior, splits: Splits, criterion: str, device: str):
        self.posterior, self.splits, self.device, self.criterion = posterior, splits, device, criterion
        self.scores = scores(posterior, criterion)

    def masks(self, sparsity: float) -> Masks:
        return masks_at(self.scores, sparsity)

    def candidate(self, masks: Masks, coarseness: float | None, levels: int) -> Compressed:
        """Mask, round, shrink; a coarseness of None keeps float32."""
        tensors, steps = dict(self.posterior.dense), dict[str, float]()
        for name, layer in self.posterior.layers.items():
            tensors[name] = torch.where(masks[name], layer.mean, 0.0)
            if coarseness is not None:
                steps[name] = step_size(layer, masks[name], coarseness)
                tensors[name] = rounded(tensors[name], steps[name])
        graph, small = shrink(self.posterior.graph, tensors)
        biases = {n.parameters["bias"] for n in graph.nodes if n.op in WEIGHTED and "bias" in n.parameters}
        packed: dict[str, Quantized | np.ndarray] = {}
        for name, tensor in small.items():
            if name in steps:
                packed[name] = quantize(tensor, steps[name])
            elif coarseness is not None and name in biases:
                packed[name] = quantize(tensor, bias_step(tensor, levels))
            else:
                packed[name] = tensor.numpy()
        return Compressed(graph, packed, self.meta())

    def meta(self) -> dict[str, Any]:
        total = sum(tensor.numel() for tensor in self.posterior.tensors.values())
        return self.posterior.provenance | {"criterion": self.criterion, "parameters_total": total}

    def scores_of(self, network: Compressed) -> Scores:
        return evaluate(to_module(network).to(self.device), self.splits, "validation", self.device)


@dataclass(frozen=True)
class _Target:
    """What a candidate must reach: the reference less the tolerance, in accuracy and in NLL."""

    reference: Scores
    tolerance: float
    nll_tolerance: float

    def reached(self, scores: Scores) -> bool:
        enough = scores.accuracy >= self.reference.accuracy - self.tolerance
        return enough and scores.nll_nats <= self.reference.nll_nats + self.nll_tolerance


def to_module(network: Compressed) -> Network:
    """An ordinary torch module with the file's values."""
    return Network(network.graph, {name: torch.from_numpy(file.dense(t)) for name, t in network.tensors.items()}).eval()


def load(path: str | Path) -> Network:
    """Read a `.pcn` file as an ordinary `nn.Module`, in evaluation mode.

    Raises:
        ValueError: not such a file, or a damaged one.
    """
    return to_module(file.read(Path(path)))


def compress(
    posterior: Posterior,
    splits: Splits,
    criterion: str | None = None,
    sparsity: float | None = None,
    tolerance: float = 0.005,
    nll_tolerance: float | None = None,
    device: str = "cpu",
    on_trial: OnTrial = lambda done, total: None,
) -> tuple[Compressed, float]:
    """Prune, round and shrink a posterior's mean network.

    Args:
        posterior: the waist, from `extract` or a baseline.
        splits: only `validation` is looked at.
        criterion: name in `CRITERIA`; the one that fits the prior if None.
        sparsity: share of the weights to remove; None searches for the smallest file within the tolerance.
        tolerance: validation accuracy that may be lost against the uncompressed posterior mean, in [0, 1].
        nll_tolerance: validation NLL that may be lost, in nats per example; twice the tolerance if None.
        device: where candidates are evaluated.
        on_trial: progress, called with (done, total).

    Returns:
        The network as it goes into the file, and the share of weights that the criterion removed.

    Raises:
        ValueError: unknown criterion, a sparsity or tolerance out of range, no candidate within the tolerance.
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance {tolerance}: allowed are values from 0 to 1 (0.005 is half a point)")
    if nll_tolerance is not None and not nll_tolerance >= 0:
        raise ValueError(f"nll_tolerance {nll_tolerance}: it must not be negative")
    search = _Search(posterior, splits, criterion or posterior.criterion, device)
    if sparsity is not None:
        tolerance, masks = PRECISION_TOLERANCE, search.masks(sparsity)
        reference = search.scores_of(search.candidate(masks, None, BIAS_LEVELS[0]))
        target = _Target(reference, tolerance, NLL_PER_ACCURACY * tolerance)
        trials = [(sparsity, coarseness) for coarseness in COARSENESS]
        chosen = next((t for t in trials if _reaches(search, t, target)), trials[-1])
    else:
        network = Network(posterior.graph, posterior.tensors).eval().to(device)
        nll = NLL_PER_ACCURACY * tolerance if nll_tolerance is None else nll_tolerance
        target = _Target(evaluate(network, splits, "validation", device), tolerance, nll)
        chosen = _smallest(search, target, on_trial)
    masks = search.masks(chosen[0])
    removed = 1 - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    best = search.candidate(masks, chosen[1], BIAS_LEVELS[0])
    for levels in BIAS_LEVELS[1:]:
        coarser = search.candidate(masks, chosen[1], levels)
        if not target.reached(search.scores_of(coarser)):
            break
        best = coarser
    return best, removed


def remove_units(
    posterior: Posterior, splits: Splits, criterion: str | None = None, tolerance: float = 0.001, device: str = "cpu"
) -> Compressed:
    """Only the structural part: the fewest weights, in float32, within a tolerance of validation accuracy.

    Args:
        posterior: the waist.
        splits: only `validation` is looked at.
        criterion: a group criterion; the one that fits the prior if None.
        tolerance: validation accuracy that may be lost.
        device: where candidates are evaluated.
    """
    search = _Search(posterior, splits, criterion or posterior.criterion, device)
    full = search.candidate(search.masks(0.0), None, BIAS_LEVELS[0])
    target = _Target(search.scores_of(full), tolerance, float("inf"))
    candidates = (search.candidate(search.masks(1 - kept), None, BIAS_LEVELS[0]) for kept in reversed(KEPT))
    return next((network for network in candidates if target.reached(search.scores_of(network))), full)


Trial = tuple[float, float]


def _reaches(search: _Search, trial: Trial, target: _Target) -> bool:
    sparsity, coarseness = trial
    network = search.candidate(search.masks(sparsity), coarseness, BIAS_LEVELS[0])
    return target.reached(search.scores_of(network))


def _smallest(search: _Search, target: _Target, on_trial: OnTrial) -> Trial:
    """(sparsity, coarseness) with the fewest coded bytes among those that reach the target."""
    best: tuple[int, Trial] | None = None
    for index, coarseness in enumerate(COARSENESS):
        low, high = -1, len(KEPT)  # KEPT[low] reaches the target, KEPT[high] does not
        while high - low > 1:
            middle = (low + high) // 2
            if _reaches(search, (1 - KEPT[middle], coarseness), target):
                low = middle
            else:
                high = middle
        if low >= 0:
            trial = (1 - KEPT[low], coarseness)
            size = len(file.dumps(search.candidate(search.masks(trial[0]), coarseness, BIAS_LEVELS[0]))[0])
            best = min(best or (size, trial), (size, trial))
        on_trial(index + 1, len(COARSENESS))
    if best is None:
        raise ValueError(
            f"no candidate stays within {target.tolerance} of the validation accuracy {target.reference.accuracy:.4f} "
            "of the posterior mean; allow more with --tolerance, or use --sparsity"
        )
    return best[1]


def compress_run(
    posterior: Posterior, splits: Splits, path: Path, device: str = "auto", threads: int = 0, **options: Any
) -> Report:
    """Compress into a file and report on it; options as for `compress`.

    Raises:
        ValueError: as `compress`; nothing is written.
        OSError: the file cannot be written.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; make it first, or choose another --out")
    network, removed = compress(posterior, splits, device=prepare(device, threads), **options)
    sections = save(path, network, splits)
    return report(posterior, path, splits, removed, sections)


def save(path: Path, network: Compressed, splits: Splits) -> dict[str, int]:
    """Write the file, but only after its bytes, decoded and run by numpy alone, gave torch's predictions.

    Returns:
        Bytes of each part.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: the decoded network disagrees: a defect of this program.
    """
    data, parts = file.dumps(network)
    decoded = file.loads(data)
    x = splits.validation.x
    with torch.no_grad():
        wanted = torch.cat([to_module(network)(part) for part in x.split(1000)]).numpy()
    got = runner.run(decoded, x.numpy())
    scale = max(float(np.abs(wanted).max()), 1.0)
    if not np.allclose(got, wanted, rtol=1e-4, atol=1e-5 * scale):
        raise RuntimeError(f"the decoded network is off by {np.abs(got - wanted).max():.2g}; nothing was written")
    file.write_atomically(path, data)
    return parts


def report(posterior: Posterior, path: Path, splits: Splits, sparsity: float, sections: dict[str, int]) -> Report:
    """Read the file back and measure it beside the uncompressed posterior mean; reads the test split."""
    network = file.read(path)
    before, after = Network(posterior.graph, posterior.tensors).eval(), to_module(network)
    total = network.meta["parameters_total"]
    size = os.path.getsize(path)
    return Report(
        criterion=network.meta["criterion"],
        sparsity=sparsity,
        validation_before=evaluate(before, splits, "validation"),
        validation_after=evaluate(after, splits, "validation"),
        test_before=evaluate(before, splits, "test"),
        test_after=evaluate(after, splits, "test"),
        parameters_total=total,
        parameters_kept=network.parameters,
        units_before=widths(posterior.graph, posterior.tensors),
        units_kept=widths(network.graph, {name: file.dense(t) for name, t in network.tensors.items()}),
        bits_per_kept_weight=8 * size / max(network.parameters, 1),
        file_bytes=size,
        dense_bytes=4 * total,
        sections_bytes=sections,
    )
