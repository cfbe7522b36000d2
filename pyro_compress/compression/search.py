"""Posterior -> Compressed: criterion, threshold, precision, shrink, chosen on the validation split.

With a tolerance, the search looks for the smallest file: for every coarseness of the grid it bisects for the highest
sparsity whose validation scores still reach the target. The smallest few are finished: biases coarsened as far as the
target allows, coded as the file is, hidden units put in order; then bytes are compared. With a bound on the validation
error the target is that bound. With a bound on the bytes the search bisects, for every coarseness, for the lowest
sparsity whose file fits; the best few by validation NLL are finished and filled up, and the best of these is taken.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.order import COMPILED, reordered
from pyro_compress.compression.packing import packed
from pyro_compress.compression.prune import Ranking, Sparsity, removed_share
from pyro_compress.compression.rounding import Grid, Rounding, check_bits, rounded_weights
from pyro_compress.compression.shrink import shrink
from pyro_compress.compression.target import (
    NLL_PER_ACCURACY,
    Goal,
    Target,
    Trial,
    Watch,
    default_nll_tolerance,
    target_of,
)
from pyro_compress.data.splits import told
from pyro_compress.metrics import evaluate
from pyro_compress.networks.graph import Network, batch_statistics
from pyro_compress.pcn import file
from pyro_compress.scores import Quality
from pyro_compress.types import Compressed, Masks, Posterior, Quantized, Splits

COARSENESS = tuple(2.0 ** (-k / 2) for k in range(9))
"""Grid of step sizes, relative to each layer's own scale, coarsest first."""
FINER = tuple(2.0 ** (-k / 2) for k in range(9, 17))
"""Step sizes that are tried where none of `COARSENESS` reaches the target: a few bits more, but an answer."""
KEPT = tuple(0.93**k for k in range(90))
"""Grid of kept shares of the weights."""
BIAS_LEVELS = (127, 63, 31, 15, 7, 3)
"""Codes of the largest bias, finest first."""
FINALISTS, CLOSE = 4, 1.2
"""How many candidates are coded in context before one is chosen, and up to which multiple of the smallest one's static
size: the context coder takes more off some files than off others, by about that much."""
NEARLY = 1.02
"""Finalists of up to so many times the smallest one's size have their hidden units put in order: that takes seconds."""
FILLED = 5
"""Halvings of the step between two kept shares of the grid, one of which fits into a bound on the bytes."""
PRECISION_TOLERANCE = 0.001
"""Accuracy that rounding may cost where the sparsity is given."""
Chosen = tuple[Sparsity, Grid]
"""Sparsity, and how to round."""


class _Search:
    """Builds and scores candidates for one posterior."""

    def __init__(self, posterior: Posterior, splits: Splits, criterion: str, device: str, watch: Watch | None = None):
        self.posterior, self.splits, self.device, self.criterion = posterior, splits, device, criterion
        self.ranking, self.watch = Ranking(posterior, criterion, [1 - kept for kept in KEPT]), watch or Watch()

    def masks(self, sparsity: Sparsity) -> Masks:
        return self.ranking.masks(sparsity)

    def candidate(self, masks: Masks, grid: Grid | None, levels: int) -> Compressed:
        """Mask, round, shrink; a grid of None keeps float32."""
        layers = self.posterior.layers
        if grid is None:
            weights = {name: torch.where(masks[name], layer.mean, 0.0) for name, layer in layers.items()}
            steps = dict[str, float]()
        else:
            weights, steps = rounded_weights(self.posterior, masks, grid)
        tensors = self.posterior.dense | weights
        del weights
        tensors |= self.statistics(tensors)
        graph, small = shrink(self.posterior.graph, tensors, set(self.posterior.layers))
        held: dict[str, Quantized | np.ndarray] = {name: tensor.numpy() for name, tensor in small.items()}
        if grid is not None:
            held = packed(graph, small, steps, levels)
        told = origin_of(self.posterior, self.splits, self.criterion)
        return Compressed(graph, held, told, None if grid is None else (graph, small))

    def statistics(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What batch norm sees now that weights are gone and rounded, from training examples."""
        there = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        found = batch_statistics(self.posterior.graph, there, self.splits.train.x)
        return {name: tensor.cpu() for name, tensor in found.items()}

    def scores_of(self, network: Compressed) -> Quality:
        module = to_module(network).to(self.device)
        return evaluate(module, self.splits, "validation", self.device, network.noise)

    def bytes_of(self, chosen: Chosen, levels: int = BIAS_LEVELS[0]) -> int:
        """Size of a candidate's file before its units are put in order; without a compiled coder an upper bound."""
        network = self.candidate(self.masks(chosen[0]), chosen[1], levels)
        return len(file.dumps(network, in_context=COMPILED)[0])

    def trial(self, sparsity: Sparsity, grid: Grid) -> tuple[Trial, Quality]:
        """Size and scores of one candidate, told to whoever draws the curve."""
        masks = self.masks(sparsity)
        network = self.candidate(masks, grid, BIAS_LEVELS[0])
        size, scored = len(file.dumps(network, in_context=False)[0]), self.scores_of(network)
        trial = Trial(removed_share(masks), grid.coarseness, grid.price, size, scored.error, scored.nll_nats)
        self.watch.candidate(trial)
        return trial, scored


def origin_of(posterior: Posterior, splits: Splits, criterion: str) -> dict[str, Any]:
    """What a compressed file says of where it comes from."""
    inputs = told(str(posterior.provenance.get("data", "")), splits)
    return posterior.provenance | inputs | {"criterion": criterion, "parameters_total": posterior.parameters_total}


def to_module(network: Compressed) -> Network:
    """An ordinary torch module with the file's values."""
    tensors = {name: torch.from_numpy(file.dense(t)) for name, t in network.tensors.items()}
    return Network(
        network.graph,
        {n: t if isinstance(network.tensors[n], Quantized) else t.clone() for n, t in tensors.items()},
        own=True,
    ).eval()


def compress(
    posterior: Posterior, splits: Splits, goal: Goal | None = None, rounding: Rounding | None = None,
    device: str = "cpu", watch: Watch | None = None, passes: int | None = 0,
) -> tuple[Compressed, float]:  # fmt: skip
    """Prune, round and shrink a posterior's mean network.

    Args:
        posterior: the waist, from `extract` or a baseline.
        splits: only `validation` is looked at; statistics of batch norm are taken anew from `train`.
        goal: how much to prune, or what to reach; by default the smallest file that costs half a point of accuracy.
        rounding: how the weights become integers; by default steps are searched for.
        device: where candidates are evaluated.
        watch: told of progress and candidates.
        passes: spent on the order of hidden units, as in `reordered`.

    Returns:
        The network as it goes into the file, and the share of weights that the criterion removed.

    Raises:
        ValueError: unknown criterion, a sparsity or tolerance out of range, no candidate within the tolerance, a
            coarseness that is not positive or comes without a sparsity.

    Example:
        >>> import pyro_compress as pc
        >>> splits = pc.load_splits("digits")
        >>> net = pc.build_net("mlp", splits.input_shape, len(splits.classes), (20,))
        >>> config = pc.resolve(pc.FitConfig(prior="log-uniform", epochs=4), len(splits.train))
        >>> fit = pc.fit_posterior(net, splits, config)
        >>> network, removed = pc.compress(pc.extract(fit), splits, pc.Goal(sparsity=0.5))
        >>> round(removed, 2)
        0.5
    """
    goal, rounding, watch = goal or Goal(), rounding or Rounding(), watch or Watch()
    search = _Search(posterior, splits, goal.criterion or posterior.criterion, device, watch)
    grids = grids_of(rounding, posterior, goal.sparsity is not None)
    if goal.max_bytes is not None:
        return _within(search, grids, goal.max_bytes, passes)
    if goal.sparsity is not None:
        chosen, target = _at(search, grids, goal.sparsity)
        finalists = [chosen]
    else:
        target = target_of(posterior, splits, goal, device)
        finalists = _smallest(search, grids, target)
    found = [(_made(search, one, _levels(search, one, target)), one) for one in finalists]
    if len(found) > 1:
        sizes = [_size(network) for network, _ in found]
        found = [pair for pair, size in zip(found, sizes, strict=True) if size <= NEARLY * min(sizes)]
    found = [(reordered(network, passes), one) for network, one in found]
    best, chosen = min(found, key=lambda pair: _size(pair[0])) if len(found) > 1 else found[0]
    return best, removed_share(search.masks(chosen[0]))


def _made(search: _Search, chosen: Chosen, levels: int) -> Compressed:
    return search.candidate(search.masks(chosen[0]), chosen[1], levels)


def _size(network: Compressed) -> int:
    return len(file.dumps(network)[0])


def _levels(search: _Search, chosen: Chosen, target: Target) -> int:
    """The coarsest biases with which a candidate still reaches a target; the finest, if none do."""
    best = BIAS_LEVELS[0]
    for levels in BIAS_LEVELS[1:]:
        if not target.reached(search.scores_of(_made(search, chosen, levels))):
            break
        best = levels
    return best


def prune(posterior: Posterior, splits: Splits, goal: Goal, target: Target, device: str = "cpu") -> tuple[Masks, float]:
    """Masks before any rounding: at the goal's sparsity, or the fewest weights that still reach a target.

    Returns:
        The masks, and the share of the weights that they remove.
    """
    search, sparsity = _Search(posterior, splits, goal.criterion or posterior.criterion, device), goal.sparsity
    if sparsity is None:
        low, high = 0, len(KEPT)
        while high - low > 1:
            middle = (low + high) // 2
            network = search.candidate(search.masks(1 - KEPT[middle]), None, BIAS_LEVELS[0])
            low, high = (middle, high) if target.reached(search.scores_of(network)) else (low, middle)
        sparsity = 1 - KEPT[low]
    masks = search.masks(sparsity)
    return masks, removed_share(masks)


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
    target = Target(search.scores_of(full), tolerance, float("inf"))
    candidates = (search.candidate(search.masks(1 - kept), None, BIAS_LEVELS[0]) for kept in reversed(KEPT))
    return next((network for network in candidates if target.reached(search.scores_of(network))), full)


def grids_of(rounding: Rounding, posterior: Posterior, at_sparsity: bool) -> list[Grid]:
    """The grids of a search, coarsest first.

    Raises:
        ValueError: settings that exclude each other, or widths that do not fit the layers.
    """
    coarseness, bits = rounding.coarseness, rounding.bits
    if coarseness is not None and (not at_sparsity or bits or not coarseness > 0):
        raise ValueError(f"coarseness {coarseness}: it must be positive, and goes with a sparsity, without bits")
    for price in rounding.prices:
        if not 0 <= price < math.inf:
            raise ValueError(f"price {price} of a bit: it must be finite and at least 0")
    check_bits(bits, posterior)
    if bits:
        return [Grid(0.0, bits, price) for price in rounding.prices]
    steps = (coarseness,) if coarseness else COARSENESS
    return [Grid(step, (), price) for price in rounding.prices for step in steps]


def _at(search: _Search, grids: list[Grid], sparsity: Sparsity) -> tuple[Chosen, Target]:
    """The coarsest steps that cost next to nothing at a sparsity."""
    pruned = search.scores_of(search.candidate(search.masks(sparsity), None, BIAS_LEVELS[0]))
    target = Target(
        pruned, PRECISION_TOLERANCE, default_nll_tolerance(PRECISION_TOLERANCE, len(search.splits.validation))
    )
    trials = [(sparsity, grid) for grid in grids]
    return next((t for t in trials if target.reached(search.trial(*t)[1])), trials[-1]), target


def _smallest(search: _Search, grids: list[Grid], target: Target) -> list[Chosen]:
    """The few that reach the target with the fewest bytes, as far as static tables know."""
    reached = list[tuple[int, Chosen]]()
    cheapest = min(grid.price for grid in grids)
    finer = [] if grids[0].bits else [Grid(coarseness, (), cheapest) for coarseness in FINER]
    for index, grid in enumerate([*grids, *finer]):
        if reached and index >= len(grids):
            break
        low, high = -1, len(KEPT)  # KEPT[low] reaches the target, KEPT[high] does not
        while high - low > 1:
            middle = (low + high) // 2
            trial, scored = search.trial(1 - KEPT[middle], grid)
            if target.reached(scored):
                low = middle
                reached.append((trial.bytes, (1 - KEPT[middle], grid)))
            else:
                high = middle
        search.watch.trial(min(index + 1, len(grids)), len(grids))
    if not reached:
        raise ValueError(
            f"no candidate reaches {target}; allow more with --tolerance or --target-error, or use --sparsity"
        )
    reached.sort(key=lambda one: one[0])
    return [chosen for size, chosen in reached[:FINALISTS] if size <= CLOSE * reached[0][0]]


def _within(search: _Search, grids: list[Grid], max_bytes: int, passes: int | None) -> tuple[Compressed, float]:
    """The lowest validation NLL among the files that fit, each as large as it may be."""
    fitting = list[tuple[float, int, Grid]]()
    for index, grid in enumerate(grids):
        low, high = -1, len(KEPT) - 1  # KEPT[high] may fit, KEPT[low] does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if search.bytes_of((1 - KEPT[middle], grid)) <= max_bytes else (middle, high)
        if search.bytes_of((1 - KEPT[high], grid)) <= max_bytes:
            fitting.append((search.trial(1 - KEPT[high], grid)[0].validation_nll_nats, high, grid))
        search.watch.trial(index + 1, len(grids))
    fitting.sort(key=lambda one: one[0])
    few = FINALISTS if passes == 0 else FINALISTS // 2  # an order takes seconds
    finished = [_filled(search, high, grid, max_bytes, passes) for _, high, grid in fitting[:few]]
    if not finished:
        raise ValueError(f"no candidate fits into {max_bytes} bytes; allow more with --max-bytes")
    return min(finished, key=lambda one: search.scores_of(one[0]).nll_nats)


def _filled(search: _Search, high: int, grid: Grid, max_bytes: int, passes: int | None) -> tuple[Compressed, float]:
    """A file that fits, and what it removes: coarser biases and an order of units make room for more."""
    start = fuller(high, grid, 0.0)
    scored = search.scores_of(_made(search, start, BIAS_LEVELS[0]))
    target = Target(scored, PRECISION_TOLERANCE, NLL_PER_ACCURACY * PRECISION_TOLERANCE)
    levels = _levels(search, start, target)
    best = reordered(_made(search, start, levels), passes)
    order = _size(best) / search.bytes_of(start, levels)
    low, above = 0.0, 1.0
    for _ in range(FILLED):
        middle = (low + above) / 2
        fits = order * search.bytes_of(fuller(high, grid, middle), levels) <= max_bytes
        low, above = (middle, above) if fits else (low, middle)
    for share in (low, low - 0.05, low - 0.1):  # an order gains a little more on some files than on others
        if share > 0:
            chosen = fuller(high, grid, share)
            network = reordered(_made(search, chosen, levels), passes)
            if _size(network) <= max_bytes:
                return network, removed_share(search.masks(chosen[0]))
    return best, removed_share(search.masks(start[0]))


def fuller(index: int, grid: Grid, share: float) -> Chosen:
    """A candidate at a place of the grid of kept shares, or with more in it.

    Args:
        index: the place in `KEPT`.
        grid: how it is rounded.
        share: how much more, from 0 to 1: up to two places of the grid; where all weights are there, finer steps.
    """
    if index == 0:
        return 1 - KEPT[0], replace(grid, coarseness=grid.coarseness * 2.0**-share)
    return 1 - KEPT[index] * (KEPT[max(index - 2, 0)] / KEPT[index]) ** share, grid
