"""Candidates of a search over one posterior: masked, rounded and shrunk; scored, counted in bytes, told to a curve.

Of a large network little stands in memory beside the posterior: a byte per weight that says which shares of a search it
survives, and one draft at a time. What a search asks of a draft is worked out when it asks: a score needs no integers
of the weights, and a candidate that misses its target no bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.packing import before_folding, packed
from pyro_compress.compression.precision import Size
from pyro_compress.compression.prune import Ranking, Sparsity, removed_share
from pyro_compress.compression.rounding import Grid, rounded_weights, sizes_of
from pyro_compress.compression.shrink import shrink
from pyro_compress.compression.target import SearchCallbacks, Target, Trial
from pyro_compress.data.splits import preprocessing_meta
from pyro_compress.graph.network import Network
from pyro_compress.graph.statistics import batch_statistics
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.pcn.streams import COMPILED
from pyro_compress.scores import Quality
from pyro_compress.types import Compressed, Graph, Masks, Posterior, Quantized, Splits

BIAS_LEVELS = (127, 63, 31, 15, 7, 3)
"""Codes of the largest bias, finest first."""


class Draft(NamedTuple):
    """A candidate before its vectors become integers.

    Attributes:
        graph: its operations.
        tensors: float32; weights with a step are multiples of it.
        steps: of the weights; empty where nothing is rounded.
        removed: share of the weights that the masks removed.
        rounded: as `Compressed.rounded`.
    """

    graph: Graph
    tensors: dict[str, Tensor]
    steps: dict[str, float]
    removed: float
    rounded: tuple[float, float] | None


class Candidates:
    """Builds and scores candidates for one posterior.

    Args:
        posterior: moments of every weight, and the network.
        splits: the data.
        criterion: of pruning.
        device: where candidates are evaluated.
        shares: of the weights to remove that will be asked for.
        callbacks: told of candidates.

    Attributes:
        stopped: whether who is told of candidates wants no more of them.
    """

    def __init__(
        self, posterior: Posterior, splits: Splits, criterion: str, device: str, shares: Iterable[float] = (),
        callbacks: SearchCallbacks | None = None,
    ):  # fmt: skip
        self.posterior, self.splits, self.device = posterior, splits, device
        self.ranking, self.callbacks = Ranking(posterior, criterion, shares), callbacks or SearchCallbacks()
        self.meta = origin_of(posterior, splits, criterion)
        self.sizes: dict[Any, dict[str, Size]] = {}
        self.stopped = False

    def masks(self, sparsity: Sparsity) -> Masks:
        """What stays."""
        return self.ranking.masks(sparsity)

    def draft(self, sparsity: Sparsity, grid: Grid | None) -> Draft:
        """Mask, round, shrink; a grid of None keeps float32."""
        masks, layers = self.masks(sparsity), self.posterior.layers
        removed = removed_share(masks)
        if grid is None:
            weights = {name: torch.where(masks[name], layer.mean, 0.0) for name, layer in layers.items()}
            steps = dict[str, float]()
        else:
            weights, steps = rounded_weights(self.posterior, masks, grid, self.measured(sparsity, masks))
        del masks
        tensors = self.posterior.dense | weights
        del weights
        tensors |= self._statistics(tensors)
        graph, small = shrink(self.posterior.graph, tensors, set(layers))
        return Draft(graph, small, steps, removed, None if grid is None else (grid.relative_step, grid.lam))

    def network(self, draft: Draft, levels: int = BIAS_LEVELS[0]) -> Compressed:
        """A draft as a file holds it."""
        if not draft.steps:
            return Compressed(draft.graph, {name: tensor.numpy() for name, tensor in draft.tensors.items()}, self.meta)
        held = packed(draft.graph, draft.tensors, draft.steps, levels)
        return Compressed(draft.graph, held, self.meta, before_folding(draft.graph, draft.tensors), draft.rounded)

    def candidate(self, sparsity: Sparsity, grid: Grid | None, levels: int = BIAS_LEVELS[0]) -> Compressed:
        """All in one."""
        return self.network(self.draft(sparsity, grid), levels)

    def scores(self, draft: Draft, levels: int = BIAS_LEVELS[0]) -> Quality:
        """Validation scores of what the file would hold: its weights are there already, its vectors are rounded."""
        tensors = dict(draft.tensors)
        if draft.steps:
            vectors = [name for name in tensors if name not in draft.steps]
            tensors |= _values(packed(draft.graph, draft.tensors, draft.steps, levels, vectors))
        module = Network(draft.graph, tensors, own=True).eval().to(self.device)
        return evaluate(module, self.splits, "validation", self.device, self.meta.get("noise"))

    def scores_of(self, network: Compressed) -> Quality:
        """Validation scores of a network."""
        module = to_module(network).to(self.device)
        return evaluate(module, self.splits, "validation", self.device, network.noise)

    def bytes_of(self, sparsity: Sparsity, grid: Grid, levels: int = BIAS_LEVELS[0]) -> int:
        """Size of a candidate's file before its units are put in order; without a compiled coder an upper bound."""
        return len(file.dumps(self.candidate(sparsity, grid, levels), in_context=COMPILED)[0])

    def trial(self, sparsity: Sparsity, grid: Grid, target: Target | None = None) -> tuple[Quality, int | None]:
        """Scores of one candidate, and if it reaches the target, or somebody watches, its size: an upper bound."""
        draft = self.draft(sparsity, grid)
        scored, watched = self.scores(draft), self.callbacks.candidate
        if watched is None and (target is None or not target.reached(scored)):
            return scored, None
        size = len(file.dumps(self.network(draft), in_context=False)[0])
        if watched is not None:
            trial = Trial(draft.removed, grid.relative_step, grid.lam, size, scored.error, scored.nll_nats)
            self.stopped = watched(trial) is True or self.stopped
        return scored, size

    def measured(self, sparsity: Sparsity, masks: Masks) -> dict[str, Size]:
        """How large what each layer keeps is: the same at every step size."""
        key = tuple(sparsity.items()) if isinstance(sparsity, Mapping) else sparsity
        if key not in self.sizes:
            self.sizes[key] = sizes_of(self.posterior, masks)
        return self.sizes[key]

    def _statistics(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What batch norm sees now that weights are gone and rounded, from training examples."""
        there = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        found = batch_statistics(self.posterior.graph, there, self.splits.train.x)
        return {name: tensor.cpu() for name, tensor in found.items()}


def origin_of(posterior: Posterior, splits: Splits, criterion: str) -> dict[str, Any]:
    """What a compressed file says of where it comes from."""
    inputs = preprocessing_meta(posterior.provenance.data, splits)
    entries = dict(posterior.provenance.entries)
    return entries | inputs | {"criterion": criterion, "parameters_total": posterior.parameters_total}


def to_module(network: Compressed) -> Network:
    """An ordinary torch module with the file's values."""
    return Network(network.graph, _values(network.tensors), own=True).eval()


def _values(tensors: Mapping[str, Quantized | np.ndarray]) -> dict[str, Tensor]:
    """Float32 values of a file's tensors, which share memory with nobody."""
    found = {name: torch.from_numpy(file.dense(tensor)) for name, tensor in tensors.items()}
    return {name: t if isinstance(tensors[name], Quantized) else t.clone() for name, t in found.items()}
