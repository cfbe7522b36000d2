"""How the weights become integers: a grid for every layer, and which of its points a weight takes.

Steps come from each layer's own size (`relative_step`), or from a number of bits that is given by hand. To the nearest
point, or to the point with the best trade of distortion for bits: the posterior says how much a weight may move, the
coder what its integer costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_compress.compression.code_length import LARGEST, CodeLength
from pyro_compress.compression.precision import Size, bits_step, rounded, size_of, step_size
from pyro_compress.pcn.layout import Layout, layouts
from pyro_compress.types import CACHED, LayerPosterior, Masks, Posterior, rows_of

PASSES = 3
"""The code length of an integer depends on those around: they are chosen so many times."""
LEAST_STD = 1e-2
"""In steps: no weight is taken to be known better, and one without a posterior is known as well as that."""
BITS = (2, 15)
"""Least and most bits of an integer, its sign included."""


@dataclass(frozen=True)
class Grid:
    """How the weights of a network are rounded.

    Attributes:
        relative_step: step of a layer, relative to the root mean square of its survivors.
        bits: instead, bits per integer of every layer in turn, sign included; one number is for all.
        lam: λ, distortion in nats that a nat of code may cost; 0 rounds to the nearest.
    """

    relative_step: float
    bits: tuple[int, ...] = ()
    lam: float = 0.0


COMPARED = Grid(0.25)
"""Fine enough to cost next to nothing: at this precision sizes are told where nothing is searched."""


@dataclass(frozen=True)
class Rounding:
    """What a search may try to make integers of the weights.

    Attributes:
        relative_step: step of the weights, in units of the root mean square of what a layer keeps, where the sparsity
            is given; None takes the coarsest that costs next to nothing.
        bits: bits per integer, sign included, one number or one per layer; empty looks for the best steps.
        lams: values of λ, to be tried in turn (`cheapest`); 0 rounds to the nearest.
    """

    relative_step: float | None = None
    bits: tuple[int, ...] = ()
    lams: tuple[float, ...] = (0.0,)


def check_bits(bits: tuple[int, ...], posterior: Posterior) -> None:
    """Refuse widths that do not fit.

    Raises:
        ValueError: out of range, or neither one nor one per layer.
    """
    if not all(BITS[0] <= width <= BITS[1] for width in bits):
        raise ValueError(f"bits {','.join(map(str, bits))}: allowed are {BITS[0]} to {BITS[1]}, the sign included")
    if len(bits) not in (0, 1, len(posterior.layers)):
        raise ValueError(f"{len(bits)} bit widths for {len(posterior.layers)} layers: give one, or one per layer")


def sizes_of(posterior: Posterior, masks: Masks) -> dict[str, Size]:
    """How large the weights are that masks keep, layer by layer."""
    return {name: size_of(layer.mean, masks[name]) for name, layer in posterior.layers.items()}


def rounded_weights(
    posterior: Posterior, masks: Masks, grid: Grid, sizes: Mapping[str, Size] | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The masked posterior mean on a grid, as a decoder computes it, and the step of every weight tensor.

    Args:
        posterior: moments of every weight, and the network.
        masks: of the weights that stay.
        grid: how to round.
        sizes: `sizes_of` these, if they are known.
    """
    sizes = sizes or sizes_of(posterior, masks)
    found: dict[str, Tensor] = {}
    steps: dict[str, float] = {}
    bits = grid.bits * len(posterior.layers) if len(grid.bits) == 1 else grid.bits
    shapes = {name: tuple(layer.mean.shape) for name, layer in posterior.layers.items()}
    places = layouts(posterior.graph, shapes) if grid.lam else {}
    for index, (name, layer) in enumerate(posterior.layers.items()):
        mask = masks[name]
        steps[name] = bits_step(sizes[name], bits[index]) if bits else step_size(sizes[name], grid.relative_step)
        if grid.lam:
            values = torch.where(mask, layer.mean, 0.0)
            values = cheapest(values, layer, steps[name], places[name], grid.lam) * steps[name]
            found[name] = rounded(values, steps[name])
            continue
        found[name] = torch.empty(layer.mean.shape)
        for rows in rows_of(tuple(mask.shape), CACHED):
            found[name][rows] = rounded(torch.where(mask[rows], layer.mean[rows], 0.0), steps[name])
    return found, steps


def cheapest(values: Tensor, layer: LayerPosterior, step: float, layout: Layout, lam: float) -> Tensor:
    """Integers that minimise `(w - q)² / 2σ² + λ · ln 2 · bits(q)`, weight by weight.

    A weight may take the integer below, the one above, or 0. What they cost follows from all others
    (`compression.code_length`), so the choice is repeated. With λ = 1 the sum is the description length of the weights
    under their posterior (Hinton & van Camp 1993), up to a constant.

    Args:
        values: masked posterior mean.
        layer: its moments; where the standard deviation is 0, a hundredth of a step stands in.
        step: of the grid.
        layout: of the tensor, for the coder's contexts.
        lam: λ, nats of distortion that a nat of code may cost.

    Returns:
        Integers as float32, in the shape of the weight.
    """
    flat, std = values.flatten(), layer.std.flatten()
    places = flat.nonzero().flatten()
    codes, code_length = torch.round(flat[places].abs() / step), CodeLength(layout, places)
    for _ in range(PASSES):
        code_length.look(torch.zeros_like(flat).scatter(0, places, codes.clamp(max=LARGEST)).view(layout[0], -1))
        for part in range(0, len(places), CACHED):
            some = slice(part, part + CACHED)
            size, spread = flat[places[some]].abs() / step, (std[places[some]] / step).clamp_min(LEAST_STD)
            choices = torch.stack([torch.zeros_like(size), size.floor(), size.floor() + 1])
            bits = code_length.one[some] + code_length.more[choices.long().clamp(max=LARGEST)]
            bits = torch.where(choices == 0, code_length.zero[some], bits)
            worth = (size - choices).square() / (2 * spread.square()) + lam * math.log(2) * bits
            codes[some] = choices.gather(0, worth.argmin(0, keepdim=True))[0]
    return torch.zeros_like(flat).scatter(0, places, codes * flat[places].sign()).view(values.shape)
