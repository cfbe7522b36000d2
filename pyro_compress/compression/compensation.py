"""A layer's weights as integers, each chosen by what it costs the outputs and the file, the others making up for it.

Columns are rounded one after the other; what an integer misses is taken over by the columns that are still to come,
as the second moments of the inputs say (Hassibi & Stork 1993; Frantar et al. 2023, GPTQ). A weight takes the integer
below, the one above or 0, by the trade of the error that is left over against bits (arXiv 2505.18758). Bits are those
that the context coder spends when it codes the whole tensor.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.code_length import LARGEST, CodeLength, magnitudes
from pyro_compress.compression.curvature import Moments, Sensitivity
from pyro_compress.compression.precision import MAX_CODE
from pyro_compress.compression.uses import LOOKED_UP, Use
from pyro_compress.pcn import context
from pyro_compress.pcn.codec import quarter_power
from pyro_compress.pcn.layout import Layout
from pyro_compress.pcn.streams import COMPILED

BLOCK = 64
"""Columns whose updates of all columns behind them are made at once."""
OUTWARD = 0.8
"""What is added to a magnitude before it is cut to an integer, for the code lengths (0.5 would be to the nearest): with
fewer zeros than the file will have they favour no row or column too early. To count the chosen integers anew and round
again lets rows and columns die that others need: LeNet-5 took a tenth more bytes for the same loss."""
SAME_STEP = 0.2
"""Values of λ whose logarithms differ by less have one step: neighbouring steps are best at values 0.35 apart."""
LEAST = 0.05
"""Share of a layer's mean sensitivity that is added to every output's: three drawn labels may miss an output."""


@dataclass(frozen=True)
class CodeLengths:
    """Bits of a tensor's integers where they stand.

    Attributes:
        zero: bits of a 0, by place.
        other: bits of a magnitude of 1, its sign included, by place.
        more: bits that larger magnitudes take beyond that; entry m is magnitude m, entry 0 is unused.
        total: bits that the coder spends on the tensor.
    """

    zero: np.ndarray
    other: np.ndarray
    more: np.ndarray
    total: float


@dataclass(frozen=True)
class Problem:
    """One layer: find integers for its target.

    Attributes:
        target: `(groups, rows, n)`: weights that would give, from the inputs as they are now, the outputs that the
            layer gave before anything was rounded.
        factor: U, `(groups, n, n)`, upper triangular with `UᵀU` the inverse of the damped second moments.
        second: second moments, undamped.
        order: in which columns are rounded; `factor` is in it, `target` and `second` are not.
        worth: `½ · s · P` of every row, `(groups, rows)`.
        layout: of the tensor, for the coder.
        lam: λ, nats that a bit may cost, per example.
        use: how the tensor lies as rows.
    """

    target: np.ndarray
    factor: np.ndarray
    second: np.ndarray
    order: np.ndarray
    worth: np.ndarray
    layout: Layout
    lam: float
    use: Use


@dataclass(frozen=True)
class Found:
    """Integers of a layer.

    Attributes:
        codes: in the weight's shape.
        exponent: of their step, 2^(e/4); where the search for a similar problem may begin.
        lam: λ that the step was searched for.
    """

    codes: np.ndarray
    exponent: int
    lam: float


def problem_of(
    weight: Tensor, use: Use, found: Moments, sensitivity: Sensitivity, layout: Layout, lam: float, damping: float,
    descending: bool, precision: Tensor | None = None,
) -> Problem:  # fmt: skip
    """Set up the rounding of a weight.

    The target minimises `E|W y - T x|² + |(T - W) D^½|²` for inputs y before and x now, with D the damping, diagonal:
    `T = (W C + W D) (H + D)⁻¹`. Without a posterior D is `d I`. Under a posterior N(μ, σ²) a change of δ costs
    `½ Σ δ² / σ²` nats, `½ Σ δ² / (N σ²)` per example: as much as `Σ ½ s P δ D δᵀ` where D is the mean of `1 / (N σ²)`
    over the rows, which share H, by the mean of `s P`. Inputs that are always 0 get weights of 0; rows that no example
    looks up do not.

    Args:
        weight: the tensor.
        use: of it.
        found: moments of its inputs.
        sensitivity: of its outputs.
        layout: of the weight.
        lam: λ, nats that a bit may cost, per example.
        damping: in units of the mean second moment, or with a precision a tenth of its factor on that.
        descending: round the columns with the largest second moment first, else in the order in which they lie.
        precision: `1 / (N σ²)` of every weight, in its shape; None: there is no posterior.
    """
    groups, rows, n = use.size
    wanted = torch.from_numpy(use.rows(weight.numpy())).double()
    power = found.second.diagonal(dim1=1, dim2=2)
    mean = (power.mean((0, 1), keepdim=True) if use.by_element else power.mean(1, keepdim=True)).clamp_min(1e-30)
    shared = use.kind == LOOKED_UP  # by all rows of the table
    squares = sensitivity.squares.expand(groups, rows) if shared else sensitivity.squares.view(groups, -1)
    worth = (squares + LEAST * sensitivity.squares.mean()).clamp_min(1e-30) * sensitivity.positions / 2
    d = (damping * mean).expand_as(power)
    if precision is not None and not use.by_element:
        own = torch.from_numpy(use.rows(precision.numpy())).double().mean(1)
        d = 10 * damping * own / (2 * worth.double().mean(1, keepdim=True))
    order = torch.argsort(power.sum(0), descending=True, stable=True) if descending else torch.arange(n)
    if use.by_element:
        target, factor = wanted, (found.second + d[..., None]).rsqrt()
    else:
        damped = found.second + torch.diag_embed(d)
        target = torch.linalg.solve(damped, (wanted @ found.cross + wanted * d[:, None]).mT).mT
        target = torch.where((power <= 1e-12 * mean)[:, None], 0.0, target)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[:, order][:, :, order]))
        factor = torch.linalg.cholesky(inverse, upper=True)
    return Problem(
        target.numpy(), factor.float().numpy(), found.second.numpy(), order.numpy(), worth.numpy(), layout, lam,
        use,
    )  # fmt: skip


def code_lengths(codes: np.ndarray, layout: Layout) -> CodeLengths:
    """What the coder spends on a tensor's integers, and would for others; without the compiled one it is estimated.

    Args:
        codes: the integers.
        layout: of the tensor.
    """
    there, chance, spent = codes != 0, None, 0.0
    sizes = np.abs(codes[there]).clip(max=LARGEST)
    if COMPILED:
        coder, chances = context.Coder(), array("q", bytes(8 * codes.size))
        context.code(coder, array("q", codes.astype("<i8").tobytes()), *layout, chances)
        chance = np.frombuffer(chances, np.int64).reshape(codes.shape).astype(np.float32) / 65536
        spent = 8 * coder.written() + 32 - math.log2(coder.range)
    else:
        flat = torch.from_numpy(there.reshape(layout[0], -1)).float()
        chance = CodeLength(layout).chances(flat).numpy().reshape(codes.shape)
    more = np.arange(LARGEST + 1, dtype=np.float32) - 1
    first = 0.0
    if len(sizes):
        one, further = magnitudes(torch.from_numpy(sizes).float())
        first, more = float(one), np.concatenate([[0.0], further.numpy()]).astype(np.float32)
    zero, other = -np.log2(1 - chance), 1 + first - np.log2(chance)
    spent = spent or float(zero[~there].sum() + other[there].sum() + more[sizes].sum())
    return CodeLengths(zero, other, more, spent)


def cost(codes: np.ndarray, step: float, problem: Problem, bits: float) -> float:
    """`Σ ½ s P δ H δᵀ + λ · bits`, in nats per example."""
    missed = problem.use.rows(codes) * step - problem.target
    lost = ((missed @ problem.second) * missed).sum(2)
    return float((lost * problem.worth).sum()) + problem.lam * bits


def rounded_at(problem: Problem, step: float) -> tuple[np.ndarray, float]:
    """Integers at a step, in the weight's shape, and the bits that they take."""
    size = problem.target / step
    codes = np.trunc(size + np.sign(size) * OUTWARD).clip(-MAX_CODE, MAX_CODE).astype(np.int32)
    codes = _sweep(problem, step, code_lengths(problem.use.tensor(codes), problem.layout))
    codes = problem.use.tensor(codes)
    return codes, code_lengths(codes, problem.layout).total


def _sweep(problem: Problem, step: float, lengths: CodeLengths) -> np.ndarray:
    """Round all columns once; arrays are held as `(n, groups, rows)`, one column after the other."""
    groups, rows, n = problem.target.shape
    order, factor = problem.order, problem.factor
    weights, zero, other = (
        np.ascontiguousarray(a.transpose(2, 0, 1)[order], dtype=np.float32)
        for a in (
            problem.target / step,
            problem.use.rows(lengths.zero),
            problem.use.rows(lengths.other),
        )
    )
    lam = (problem.lam / problem.worth).astype(np.float32)
    scale = (step / factor.diagonal(axis1=1, axis2=2)).T[:, :, None].astype(np.float32)  # (n, groups, 1)
    zero, other = zero * lam, other * lam
    more = lengths.more[:, None, None] * lam  # (magnitude, groups, rows)
    codes = np.empty_like(weights)
    shares = np.moveaxis(factor / factor.diagonal(axis1=1, axis2=2)[:, :, None], 0, 2)  # U_jk / U_jj
    places = np.ogrid[:groups, :rows]
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        missed = np.empty((stop - start, groups, rows), np.float32)
        for column in range(start, stop):
            chosen = _cheapest(weights[column], scale[column] ** 2, zero[column], other[column], more, places)
            codes[column] = chosen
            left = weights[column] - chosen
            missed[column - start] = left
            if column + 1 < stop:
                weights[column + 1 : stop] -= shares[column, column + 1 : stop, :, None] * left
        if stop < n:
            further = np.matmul(shares[start:stop, stop:].transpose(2, 1, 0), missed.transpose(1, 0, 2))
            weights[stop:] -= further.transpose(1, 0, 2)
    found = np.empty_like(codes)
    found[order] = codes
    return np.ascontiguousarray(found.transpose(1, 2, 0)).astype(np.int32)


def _cheapest(
    values: np.ndarray, worth: np.ndarray, zero: np.ndarray, other: np.ndarray, more: np.ndarray,
    places: tuple[np.ndarray, ...],
) -> np.ndarray:  # fmt: skip
    """Of 0, the integer below and the one above the cheapest, with the sign of the value; all costs in distortion."""
    size = np.abs(values)
    below = np.floor(size)
    whole = below.astype(np.int64)
    np.minimum(whole, LARGEST - 1, out=whole)
    rest = size - below
    none = worth * size * size + zero
    low = worth * rest * rest + other + more[(whole, *places)]
    high = worth * (1 - rest) ** 2 + other + more[(whole + 1, *places)]
    best = np.where(high < low, below + 1, below)
    least = np.where(below > 0, np.minimum(high, low), high)
    best = np.where(below > 0, best, 1)
    return np.where(none <= least, 0, np.copysign(np.minimum(best, MAX_CODE), values)).astype(np.float32)


def first_exponent(problem: Problem) -> int:
    """A step to begin with, as a power of 2^(1/4): where uniform rounding would lose what a bit or so costs."""
    curvature = float((1 / (problem.factor.astype(np.float64) ** 2).sum(1)).mean()) * float(problem.worth.mean())
    largest = float(np.abs(problem.target).max())
    wanted = math.sqrt(6 * problem.lam / max(curvature, 1e-30))
    return round(4 * math.log2(max(min(wanted, largest), largest / MAX_CODE, 1e-12))) if largest else 0


def rounded_layer(problem: Problem, start: Found | None = None) -> Found:
    """Integers and the step that cost least.

    Args:
        problem: the layer.
        start: what was found for a similar problem.
    """
    seen = dict[int, tuple[float, Found]]()
    fixed = start is not None and abs(math.log(problem.lam / start.lam)) < SAME_STEP
    lam = start.lam if start is not None and fixed else problem.lam

    def look(exponent: int) -> None:
        if exponent not in seen:
            step = quarter_power(exponent)
            codes, bits = rounded_at(problem, step)
            seen[exponent] = cost(codes, step, problem, bits), Found(codes, exponent, lam)

    best = first_exponent(problem) if start is None else start.exponent
    look(best)
    for stride in () if fixed else (4, 2, 1) if start is None else (1,):
        while True:
            for exponent in (best - stride, best + stride):
                look(exponent)
            nearest = min(seen, key=lambda e: seen[e][0])
            if nearest == best:
                break
            best = nearest
    return seen[best][1]
