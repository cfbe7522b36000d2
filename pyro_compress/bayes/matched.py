"""What any guide says of each site, as a normal or a log-normal: exact where it is Gaussian, else matched to draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import (
    Delta,
    Distribution,
    Independent,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    constraints,
)
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuide, AutoLaplaceApproximation, AutoNormal
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

Draw = dict[str, Tensor]
"""Site -> value."""
Families = Mapping[str, type[Distribution]]
"""Site -> `Normal`, or `LogNormal` of what is positive."""


class Matched:
    """Marginals of sites by location and scale, behind a guide's face: `families`, `marginal`.

    Args:
        families: site -> its family.
        parameters: site -> location and scale, of the logarithm for `LogNormal`.
    """

    def __init__(self, families: Families, parameters: dict[str, tuple[Tensor, Tensor]]):
        self.families, self.parameters = dict(families), parameters

    def marginal(self, site: str) -> Distribution:
        """Marginal of a site, one independent value per element."""
        loc, scale = self.parameters[site]
        with pyro.validation_enabled(False):  # a spread of 0 is one
            return self.families[site](loc, scale)


class Moments:
    """Running mean and spread of tensors that come one by one (Welford 1962), in double precision."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()).double(), torch.zeros(()).double()

    def add(self, value: Tensor) -> None:
        """Take one more in."""
        self.count += 1
        gap = value.detach().double().cpu() - self.mean
        self.mean = self.mean + gap / self.count
        self.squares = self.squares + gap * (value.detach().double().cpu() - self.mean)

    @property
    def std(self) -> Tensor:
        """Standard deviation; 0 of a single value."""
        return (self.squares / max(self.count - 1, 1)).sqrt()


def family_of(support: Any) -> type[Distribution] | None:
    """The family of a site on this support; None where there is none."""
    base = getattr(support, "base_constraint", support)
    if base is constraints.real:
        return Normal
    return LogNormal if base in (constraints.positive, constraints.nonnegative) else None


def matched(draws: Iterable[Draw], families: Families) -> Matched:
    """Marginals with the moments of draws, of the logarithm where a site is positive."""
    found = {site: Moments() for site in families}
    for draw in draws:
        for site, moments in found.items():
            moments.add(draw[site].log() if families[site] is LogNormal else draw[site])
    return Matched(families, {site: (one.mean.float(), one.std.float()) for site, one in found.items()})


def correlated(guide: Any) -> bool:
    """Whether a guide may draw several sites together."""
    return not isinstance(guide, AutoNormal | AutoDelta | AutoDiagonalNormal | AutoLaplaceApproximation)


@torch.no_grad()
def gaussian(guide: Any) -> Matched | None:
    """The marginals of one of Pyro's AutoGuides that is Gaussian where its sites are unconstrained; else None."""
    if not isinstance(guide, AutoGuide) or getattr(guide, "prototype_trace", None) is None:
        return None
    fns = {site: node["fn"] for site, node in guide.prototype_trace.iter_stochastic_nodes()}
    families = {site: family_of(fn.support) for site, fn in fns.items()}
    if any(family is None for family in families.values()):
        return None
    parameters = _locations(guide, list(fns), families)
    return None if parameters is None else Matched(families, parameters)  # type: ignore[arg-type]


def _locations(guide: AutoGuide, sites: list[str], families: Any) -> dict[str, tuple[Tensor, Tensor]] | None:
    if isinstance(guide, AutoNormal):
        pairs = {site: guide._get_loc_and_scale(site) for site in sites}
        return {site: (loc.detach().clone(), scale.detach().clone()) for site, (loc, scale) in pairs.items()}
    if isinstance(guide, AutoDelta):
        medians = {site: value.detach().clone() for site, value in guide.median().items()}
        locs = {site: value.log() if families[site] is LogNormal else value for site, value in medians.items()}
        return {site: (loc, torch.zeros_like(loc)) for site, loc in locs.items()}
    if not isinstance(guide, AutoContinuous):
        return None
    whole = guide.get_posterior()
    base = whole.base_dist if isinstance(whole, Independent) else whole
    if not isinstance(base, Normal | MultivariateNormal | LowRankMultivariateNormal | Delta):
        return None
    parts = [
        {s["name"]: v.clone() for s, v in guide._unpack_latent(one)} for one in (whole.mean, whole.variance.sqrt())
    ]
    return {site: (parts[0][site], parts[1][site]) for site in sites}


@torch.no_grad()
def drawn(guide: Callable[..., Any], example: tuple[Any, ...], draws: int, seed: int = 0) -> Iterator[Draw]:
    """Draws of every site that a guide samples; torch's global generator stays where it was.

    Args:
        guide: any Pyro guide.
        example: its arguments.
        draws: how many.
        seed: seeds them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = torch.get_rng_state()
    for _ in range(draws):
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            torch.set_rng_state(state)
            trace = pyro.poutine.block(pyro.poutine.trace(guide).get_trace)(*example)
            state = torch.get_rng_state()
        yield {
            site: node["value"]
            for site, node in trace.nodes.items()
            if node["type"] == "sample" and not node["is_observed"] and type(node["fn"]).__name__ != "_Subsample"
        }
