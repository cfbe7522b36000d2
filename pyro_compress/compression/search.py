"""Posterior -> Compressed: criterion, threshold, precision, shrink, chosen on the validation split.

With a tolerance, the search looks for the smallest file: for every coarseness of the grid it bisects for the highest
sparsity whose validation scores still reach the target, then compares the coded bytes; at the end it coarsens the
biases as far as the target allows. A target bounds the NLL beside the accuracy: on a few hundred examples accuracy
alone is a coarse ruler, and a search over it finds its gaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyro_compress.compression import file
from pyro_compress.compression.precision import bias_step, quantize, rounded, step_size
from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.compression.shrink import shrink
from pyro_compress.data import told
from pyro_compress.graph import WEIGHTED, Network
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
LARGE_SPLIT = 3000
"""Below this many validation examples the default allowance in nats shrinks with the root of their number."""

OnTrial = Callable[[int, int], None]


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
        origin = self.posterior.provenance
        inputs = told(str(origin.get("data", "")), self.splits)
        return origin | inputs | {"criterion": self.criterion, "parameters_total": total}

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
        nll_tolerance: validation NLL that may be lost, in nats per example; `default_nll_tolerance` if None.
        device: where candidates are evaluated.
        on_trial: progress, called with (done, total).

    Returns:
        The network as it goes into the file, and the share of weights that the criterion removed.

    Raises:
        ValueError: unknown criterion, a sparsity or tolerance out of range, no candidate within the tolerance.

    Example:
        >>> import pyro_compress as pc
        >>> splits = pc.load_splits("digits")
        >>> net = pc.build_net("mlp", splits.input_shape, len(splits.classes), (20,))
        >>> config = pc.resolve(pc.FitConfig(prior="log-uniform", epochs=4), len(splits.train))
        >>> fit = pc.fit_posterior(net, splits, config)
        >>> network, removed = pc.compress(pc.extract(fit), splits, sparsity=0.5)
        >>> round(removed, 2)
        0.5
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance {tolerance}: allowed are values from 0 to 1 (0.005 is half a point)")
    if nll_tolerance is not None and not nll_tolerance >= 0:
        raise ValueError(f"nll_tolerance {nll_tolerance}: it must not be negative")
    search = _Search(posterior, splits, criterion or posterior.criterion, device)
    if sparsity is not None:
        tolerance, masks = PRECISION_TOLERANCE, search.masks(sparsity)
        reference = search.scores_of(search.candidate(masks, None, BIAS_LEVELS[0]))
        target = _Target(reference, tolerance, default_nll_tolerance(tolerance, len(splits.validation)))
        trials = [(sparsity, coarseness) for coarseness in COARSENESS]
        chosen = next((t for t in trials if _reaches(search, t, target)), trials[-1])
    else:
        network = Network(posterior.graph, posterior.tensors).eval().to(device)
        nll = default_nll_tolerance(tolerance, len(splits.validation)) if nll_tolerance is None else nll_tolerance
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


def default_nll_tolerance(tolerance: float, examples: int) -> float:
    """Nats per example that may be lost beside a tolerance of accuracy.

    On a small split chance moves the difference of two networks by more than the tolerance, and a search among many
    candidates finds the lucky ones: the allowance shrinks as the standard error of the difference grows.
    """
    return NLL_PER_ACCURACY * tolerance * min(1.0, (examples / LARGE_SPLIT) ** 0.5)


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
