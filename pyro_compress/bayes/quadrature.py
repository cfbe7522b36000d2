"""KL(posterior ‖ prior) of independent values whose prior has no closed form: by quadrature, value by value.

`E[log p(w)]` under a normal posterior is an integral over the noise. Its range is cut into panels, finely where w is
near 0, as a spike is narrow there; a panel on which two Gauss rules disagree is halved until they agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from pyro.distributions import Distribution, Independent, LogNormal
from torch import Tensor

from pyro_compress.bayes.distributions import ScaleMixture

REACH = 9.0
"""Standard deviations on either side that count."""
FAR = (-REACH, -2.5, 2.5, REACH)
"""Edges of panels, in standard deviations from the mean."""
NEAR = (1.0, 1 / 16, 1 / 256, 1 / 4096)
"""Edges of panels on either side of w = 0, in standard deviations from there, where nothing is known of the prior."""
TURNS = (2.0, 5.0, 9.0)
"""The same of a mixture, in standard deviations of its narrower term: what lies farther out, the wider one has."""
TOLERANCE = 1e-6
"""Nats by which the rules may differ on a panel, and their share of its integral."""
ROUNDS = 30
"""Most times that a panel is halved."""
AT_A_TIME = 1 << 13
"""Elements of a mixture that are worked on together: what is computed of them stays in the processor's cache."""
COARSE, FINE = (np.polynomial.legendre.leggauss(points) for points in (8, 12))

LogDensity = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""Places of elements in the flattened tensor, which may repeat -> values there -> their log-densities."""


def kl_by_quadrature(q: Distribution, p: Distribution) -> float | None:
    """KL(q ‖ p) in nats, summed over the elements; of a scale mixture within 1e-6 nats, or of each, whatever is more.

    Args:
        q: `Normal` or `LogNormal`, one independent value per element.
        p: of the same shape, as one event or not.

    Returns:
        None where p is no product of densities of single elements.
    """
    while isinstance(p, Independent):
        p = p.base_dist
    if not factorises(q, p):
        return None
    return float((-q.entropy() - expected_log_density(q, p)).sum())


def factorises(q: Distribution, p: Distribution) -> bool:
    """Whether p gives every element of a draw of q a density, which no other element changes."""
    if p.event_shape:
        return False
    one, other = q.sample(), q.sample()
    chosen = torch.rand(one.shape) < 0.5
    apart = torch.where(chosen, p.log_prob(one), p.log_prob(other))
    together = p.log_prob(torch.where(chosen, one, other))
    return apart.shape == one.shape and torch.allclose(apart, together, rtol=1e-5, atol=1e-5, equal_nan=True)


def expected_log_density(q: Distribution, p: Distribution) -> Tensor:
    """`E_q[log p(w)]` of every element, in double precision.

    Args:
        q: `Normal` or `LogNormal`, one independent value per element.
        p: gives every element its log-density.
    """
    loc, scale = q.loc.double().flatten(), q.scale.double().flatten()
    if not isinstance(p, ScaleMixture):  # which is the same for every element
        density, near = _beside_others(p, q.loc.shape), torch.tensor(NEAR, dtype=loc.dtype)
        return _expected(loc, scale, near, density, isinstance(q, LogNormal)).view(q.loc.shape)
    turns = min(p.sigma1, p.sigma2) * torch.tensor(TURNS, dtype=loc.dtype)
    parts = zip(loc.split(AT_A_TIME), scale.split(AT_A_TIME), strict=True)
    found = [_expected(*part, turns / part[1][:, None], lambda places: p.log_prob) for part in parts]
    return torch.cat(found).view(q.loc.shape)


def _expected(loc: Tensor, scale: Tensor, near: Tensor, density: LogDensity, positive: bool = False) -> Tensor:
    edges = torch.tensor(FAR, dtype=loc.dtype).expand(len(loc), -1)
    if not positive:
        zero = (-loc / scale)[:, None]
        edges = torch.cat([edges, zero, zero - near, zero + near], 1).clamp(-REACH, REACH).sort(1).values
    total = torch.zeros_like(loc)

    def integrals(places: Tensor, left: Tensor, right: Tensor) -> list[Tensor]:
        """By both rules, of every panel."""
        own_loc, own_scale, log_density = loc[places], scale[places], density(places)
        middle, half, found = (left + right) / 2, (right - left) / 2, list[Tensor]()
        for nodes, weights in (COARSE, FINE):
            integral = torch.zeros_like(middle)
            for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
                noise = torch.add(middle, half, alpha=node)
                values = torch.addcmul(own_loc, own_scale, noise)
                heights = noise.square_().mul_(-0.5).exp_()
                integral.addcmul_(
                    heights, log_density(values.exp_() if positive else values).to(loc.dtype), value=weight
                )
            found.append(integral * half / (2 * torch.pi) ** 0.5)
        return found

    for left, right in itertools.pairwise(edges.T):
        _integrate(integrals, left, right, total)
    return total


def _integrate(integrals: Callable[..., list[Tensor]], left: Tensor, right: Tensor, total: Tensor) -> None:
    """Add the integral of every element from `left` to `right` to `total`, halving panels where that is needed."""
    places = (right > left).nonzero()[:, 0]
    left, right = left[places], right[places]
    for halved in range(ROUNDS + 1):
        coarse, fine = integrals(places, left, right)
        wrong = (fine - coarse).abs() > TOLERANCE * (1 + fine.abs())
        wrong &= fine.isfinite() & torch.tensor(halved < ROUNDS)
        total.index_add_(0, places, torch.where(wrong, 0.0, fine))
        if not wrong.any():
            return
        places, left, right = places[wrong], left[wrong], right[wrong]
        middle = (left + right) / 2
        places, left, right = places.repeat(2), torch.cat([left, middle]), torch.cat([middle, right])


def _beside_others(p: Distribution, shape: torch.Size) -> LogDensity:
    """Log-densities of some elements, the others standing beside them: each may have a density of its own."""

    def at(places: Tensor) -> Callable[[Tensor], Tensor]:
        order = places.argsort(stable=True)
        firsts = torch.searchsorted(places[order], places[order])
        turns = torch.empty_like(places)
        turns[order] = torch.arange(len(places)) - firsts  # of an element's panels, one goes at a time
        parts = [turns == turn for turn in range(int(turns.max()) + 1 if len(turns) else 0)]

        def log_density(values: Tensor) -> Tensor:
            found, whole = torch.empty_like(values), torch.ones(shape.numel(), dtype=values.dtype)
            for part in parts:
                whole[places[part]] = values[part]
                found[part] = p.log_prob(whole.view(shape)).flatten()[places[part]].to(values.dtype)
            return found

        return log_density

    return at
