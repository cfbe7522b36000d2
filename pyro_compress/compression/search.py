"""Posterior -> Compressed: criterion, threshold, precision, shrink, chosen on the validation split.

With a tolerance, the search looks for the smallest file: for every step size of the grid it bisects for the highest
sparsity whose validation scores still reach the target. The smallest few are finished: biases coarsened as far as the
target allows, coded as the file is, hidden units put in order; then bytes are compared. With a bound on the validation
error the target is that bound. With a bound on the bytes the search bisects, for every step size, for the lowest
sparsity whose file fits; the best few by validation NLL are finished and filled up, and the best of these is taken. At
a given sparsity every λ takes the coarsest steps that cost next to nothing, and bytes are compared; where no steps are
so good, those with the lowest validation NLL are taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from pyro_compress.compression.candidates import BIAS_LEVELS, Candidates, Draft
from pyro_compress.compression.order import passes_over, reordered
from pyro_compress.compression.precision import MAX_CODE, finest
from pyro_compress.compression.prune import Sparsity, removed_share, ruled
from pyro_compress.compression.rounding import Grid, Rounding, check_bits
from pyro_compress.compression.target import NLL_PER_ACCURACY, SearchCallbacks, Target, default_nll_tolerance, target_of
from pyro_compress.data.several import task_named
from pyro_compress.pcn import file
from pyro_compress.settings import CompressConfig, Goal
from pyro_compress.types import Compressed, Masks, Posterior, Splits

RELATIVE_STEPS = tuple(2.0 ** (-k / 2) for k in range(9))
"""Grid of step sizes, relative to each layer's own scale, coarsest first."""
FINER = tuple(2.0 ** (-k / 2) for k in range(9, 17))
"""Step sizes that are tried where none of `RELATIVE_STEPS` reaches the target: a few bits more, but an answer."""
KEPT = tuple(0.93**k for k in range(90))
"""Grid of kept shares of the weights."""
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


def compress(
    posterior: Posterior, splits: Splits, goal: Goal | None = None, rounding: Rounding | None = None,
    device: str = "cpu", callbacks: SearchCallbacks | None = None, passes: int | None = 0,
) -> tuple[Compressed, float]:  # fmt: skip
    """Prune, round and shrink a posterior's mean network.

    Args:
        posterior: moments of every weight, from `extract` or a baseline.
        splits: only `validation` is looked at; statistics of batch norm are taken anew from `train`.
        goal: how much to prune, or what to reach; by default the smallest file that costs half a point of accuracy.
        rounding: how the weights become integers; by default as the goal says, where it is a `CompressConfig`, else
            steps are searched for.
        device: where candidates are evaluated.
        callbacks: told of progress and candidates.
        passes: spent on the order of hidden units, as in `reordered`.

    Returns:
        The network as it goes into the file, and the share of weights that the criterion removed.

    Raises:
        ValueError: unknown criterion, a sparsity or tolerance out of range, no candidate within the tolerance, a
            relative step that is not positive or comes without a sparsity.

    Examples:
        >>> import pyro_compress as pc
        >>> splits = pc.load_splits("digits")
        >>> net = pc.build_net("mlp", splits.input_shape, len(splits.classes), (20,))
        >>> config = pc.resolve(pc.FitConfig(prior="log-uniform", epochs=4), len(splits.train))
        >>> fit = pc.fit_posterior(net, splits, config)
        >>> network, removed = pc.compress(pc.extract(fit), splits, pc.Goal(sparsity=0.5))
        >>> round(removed, 2)
        0.5
    """
    goal, callbacks = ruled(posterior, goal or Goal()), callbacks or SearchCallbacks()
    rounding = rounding or rounding_in(goal)
    search = _candidates(posterior, splits, goal, device, callbacks)
    grids = grids_of(rounding, posterior, goal.sparsity is not None)
    if goal.max_bytes is not None:
        return _within(search, grids, goal.max_bytes, passes)
    if goal.sparsity is not None:
        _refuse_too_fine(search, rounding.relative_step, goal.sparsity)
        finalists, target = _at(search, grids, goal.sparsity)
    else:
        target = target_of(posterior, splits, goal, device)
        finalists = _smallest(search, grids, target)
    if len(finalists) == 1:
        network, removed = _finished(search, finalists[0], target)
        return reordered(network, passes), removed
    return _best((_finished(search, chosen, target) for chosen in finalists), passes)


def rounding_in(goal: Goal) -> Rounding:
    """How weights become integers, where a goal is a `CompressConfig` that says it.

    Raises:
        ValueError: it asks for fine-tuning or compensation, which is no rounding to a grid.
    """
    if not isinstance(goal, CompressConfig):
        return Rounding()
    if goal.finetuning or goal.rounding in ("compensated", "smallest"):
        raise ValueError("fine-tuning and compensation go another way: pc.fit(...).compress(...), or compress_run")
    return Rounding(goal.relative_step, goal.bits, goal.lam or (0.0,))


def _candidates(
    posterior: Posterior, splits: Splits, goal: Goal, device: str = "cpu", callbacks: SearchCallbacks | None = None
) -> Candidates:
    shares = [1 - kept for kept in KEPT]
    return Candidates(posterior, splits, goal.criterion or posterior.criterion, device, shares, callbacks)


def _finished(search: Candidates, chosen: Chosen, target: Target) -> tuple[Compressed, float]:
    """A candidate with biases as coarse as a target allows, and the share of the weights that it removes."""
    draft = search.draft(*chosen)
    return search.network(draft, _levels(search, draft, target)), draft.removed


def _best(finished: Iterable[tuple[Compressed, float]], passes: int | None) -> tuple[Compressed, float]:
    """The smallest, the units of those that are nearly as small put in order; the others are let go at once."""
    near = list[tuple[int, Compressed, float]]()
    for network, removed in finished:
        near.append((_size(network), network, removed))
        least = min(size for size, *_ in near)
        near = [one for one in near if one[0] <= NEARLY * least]
        if not any(passes_over(one, passes) for _, one, _ in near):
            near = [min(near, key=lambda one: one[0])]
        del network  # the next one is as large
    ordered = [(reordered(network, passes), removed) for _, network, removed in near]
    return min(ordered, key=lambda one: _size(one[0])) if len(ordered) > 1 else ordered[0]


def _size(network: Compressed) -> int:
    return len(file.dumps(network)[0])


def _levels(search: Candidates, draft: Draft, target: Target) -> int:
    """The coarsest biases with which a candidate still reaches a target; the finest, if none do."""
    best = BIAS_LEVELS[0]
    for levels in BIAS_LEVELS[1:]:
        if not target.reached(search.scores(draft, levels)):
            break
        best = levels
    return best


def prune(posterior: Posterior, splits: Splits, goal: Goal, target: Target, device: str = "cpu") -> tuple[Masks, float]:
    """Masks before any rounding: at the goal's sparsity, or the fewest weights that still reach a target.

    With a bound on the bytes no fewer than rounding alone has room for.

    Returns:
        The masks, and the share of the weights that they remove.
    """
    search, sparsity = _candidates(posterior, splits, goal, device), goal.sparsity
    if sparsity is None:
        low, high = 0, len(KEPT)
        while high - low > 1:
            middle = (low + high) // 2
            good = target.reached(search.scores(search.draft(1 - KEPT[middle], None)))
            low, high = (middle, high) if good else (low, middle)
        sparsity = 1 - KEPT[low]
        if goal.max_bytes is not None:
            with suppress(ValueError):  # nothing that is only rounded fits
                sparsity = min(sparsity, _within(search, grids_of(Rounding(), posterior, False), goal.max_bytes, 0)[1])
    masks = search.masks(sparsity)
    return masks, removed_share(masks)


def remove_units(
    posterior: Posterior, splits: Splits, criterion: str | None = None, tolerance: float = 0.001, device: str = "cpu"
) -> Compressed:
    """Only the structural part: the fewest weights, in float32, within a tolerance of validation accuracy.

    Args:
        posterior: moments of every weight, and the network.
        splits: only `validation` is looked at.
        criterion: a group criterion; the one that fits the prior if None.
        tolerance: validation accuracy that may be lost.
        device: where candidates are evaluated.
    """
    search = _candidates(posterior, splits, Goal(criterion), device)
    full = search.draft(0.0, None)
    target = Target(search.scores(full), tolerance, float("inf"))
    drafts = (search.draft(1 - kept, None) for kept in reversed(KEPT))
    return search.network(next((draft for draft in drafts if target.reached(search.scores(draft))), full))


def grids_of(rounding: Rounding, posterior: Posterior, at_sparsity: bool) -> list[Grid]:
    """The grids of a search, coarsest first.

    Raises:
        ValueError: settings that exclude each other, or widths that do not fit the layers.
    """
    relative_step, bits = rounding.relative_step, rounding.bits
    if relative_step is not None:
        if not 0 < relative_step < math.inf:
            raise ValueError(f"relative_step {relative_step}: it must be finite and positive")
        if bits:
            raise ValueError("--relative-step and --bits exclude each other: give one of them")
        if not at_sparsity:
            raise ValueError("--relative-step goes with --sparsity or --rule; without them steps are searched for")
    for lam in rounding.lams:
        if not 0 <= lam < math.inf:
            raise ValueError(f"lambda {lam}: it must be finite and at least 0")
    check_bits(bits, posterior)
    if bits:
        return [Grid(0.0, bits, lam) for lam in rounding.lams]
    steps = (relative_step,) if relative_step else RELATIVE_STEPS
    return [Grid(step, (), lam) for lam in rounding.lams for step in steps]


def _refuse_too_fine(search: Candidates, relative_step: float | None, sparsity: Sparsity) -> None:
    """Refuse a step that makes larger integers than a file has.

    Raises:
        ValueError: with the layer, and the smallest step.
    """
    if relative_step is None:
        return
    sizes = search.measured(sparsity, search.masks(sparsity))
    least = {name: finest(size) for name, size in sizes.items()}
    layer = max(least, key=lambda name: least[name])
    if relative_step < least[layer]:
        raise ValueError(
            f"relative step {relative_step:g} is too fine for {layer}, whose integers would exceed {MAX_CODE}: give at "
            f"least {math.ceil(least[layer] * 1e4) / 1e4:g}"
        )


def _at(search: Candidates, grids: list[Grid], sparsity: Sparsity) -> tuple[list[Chosen], Target]:
    """For every λ the coarsest steps that cost next to nothing at a sparsity; if none do, the lowest NLL of all.

    The finest steps are no fall-back: with λ they are not the nearest to what they round.
    """
    pruned = search.scores(search.draft(sparsity, None))
    counted = task_named(search.splits.task).counted(search.splits.validation.y)
    target = Target(pruned, PRECISION_TOLERANCE, default_nll_tolerance(PRECISION_TOLERANCE, counted))
    reached, nats = dict[float, Chosen](), list[tuple[float, Chosen]]()
    for grid in grids:
        if grid.lam in reached or (reached and search.stopped):
            continue
        scored, _ = search.trial(sparsity, grid, target)
        nats.append((scored.nll_nats, (sparsity, grid)))
        if target.reached(scored):
            reached[grid.lam] = sparsity, grid
    return list(reached.values()) or [min(nats, key=lambda one: one[0])[1]], target


def _smallest(search: Candidates, grids: list[Grid], target: Target) -> list[Chosen]:
    """The few that reach the target with the fewest bytes, as far as static tables know."""
    reached = list[tuple[int, Chosen]]()
    least = min(grid.lam for grid in grids)
    finer = [] if grids[0].bits else [Grid(step, (), least) for step in FINER]
    for index, grid in enumerate([*grids, *finer]):
        if reached and (index >= len(grids) or search.stopped):
            break
        low, high = -1, len(KEPT)  # KEPT[low] reaches the target, KEPT[high] does not
        while high - low > 1 and not (reached and search.stopped):
            middle = (low + high) // 2
            scored, size = search.trial(1 - KEPT[middle], grid, target)
            if size is not None and target.reached(scored):
                low = middle
                reached.append((size, (1 - KEPT[middle], grid)))
            else:
                high = middle
        search.callbacks.trial(min(index + 1, len(grids)), len(grids))
    if not reached:
        raise ValueError(
            f"no candidate reaches {target}; allow more with --tolerance or --target-error, or use --sparsity"
        )
    reached.sort(key=lambda one: one[0])
    return [chosen for size, chosen in reached[:FINALISTS] if size <= CLOSE * reached[0][0]]


def _within(search: Candidates, grids: list[Grid], max_bytes: int, passes: int | None) -> tuple[Compressed, float]:
    """The lowest validation NLL among the files that fit, each as large as it may be."""
    fitting = list[tuple[float, int, Grid]]()
    for index, grid in enumerate(grids):
        if fitting and search.stopped:
            break
        low, high = -1, len(KEPT) - 1  # KEPT[high] may fit, KEPT[low] does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if search.bytes_of(1 - KEPT[middle], grid) <= max_bytes else (middle, high)
        if high < len(KEPT) - 1 or search.bytes_of(1 - KEPT[high], grid) <= max_bytes:
            fitting.append((search.trial(1 - KEPT[high], grid)[0].nll_nats, high, grid))
        search.callbacks.trial(index + 1, len(grids))
    fitting.sort(key=lambda one: one[0])
    few = FINALISTS if passes == 0 else FINALISTS // 2  # an order takes seconds
    if not fitting:
        raise ValueError(f"no candidate fits into {max_bytes} bytes; allow more with --max-bytes")
    best: tuple[float, Compressed, float] | None = None
    for _, high, grid in fitting[:few]:
        network, removed = _filled(search, high, grid, max_bytes, passes)
        nats = search.scores_of(network).nll_nats
        best = (nats, network, removed) if best is None or nats < best[0] else best
        del network  # the next one is as large
    assert best
    return best[1:]


def _filled(search: Candidates, high: int, grid: Grid, max_bytes: int, passes: int | None) -> tuple[Compressed, float]:
    """A file that fits, and what it removes: coarser biases and an order of units make room for more."""
    start = fuller(high, grid, 0.0)
    draft = search.draft(*start)
    target = Target(search.scores(draft), PRECISION_TOLERANCE, NLL_PER_ACCURACY * PRECISION_TOLERANCE)
    levels, start_removed = _levels(search, draft, target), draft.removed
    best = reordered(search.network(draft, levels), passes)
    del draft
    order = _size(best) / search.bytes_of(*start, levels)
    low, above = 0.0, 1.0
    for _ in range(FILLED):
        middle = (low + above) / 2
        fits = order * search.bytes_of(*fuller(high, grid, middle), levels) <= max_bytes
        low, above = (middle, above) if fits else (low, middle)
    for share in (low, low - 0.05, low - 0.1):  # an order gains a little more on some files than on others
        if share > 0:
            draft = search.draft(*fuller(high, grid, share))
            removed, network = draft.removed, reordered(search.network(draft, levels), passes)
            del draft
            if _size(network) <= max_bytes:
                return network, removed
    return best, start_removed


def fuller(index: int, grid: Grid, share: float) -> Chosen:
    """A candidate at a place of the grid of kept shares, or with more in it.

    Args:
        index: the place in `KEPT`.
        grid: how it is rounded.
        share: how much more, from 0 to 1: up to two places of the grid; where all weights are there, finer steps.
    """
    if index == 0:
        return 1 - KEPT[0], replace(grid, relative_step=grid.relative_step * 2.0**-share)
    return 1 - KEPT[index] * (KEPT[max(index - 2, 0)] / KEPT[index]) ** share, grid
