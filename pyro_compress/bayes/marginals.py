"""A fitted posterior at rest: the marginal of every site, stored, read back and drawn from.

The moments of a `types.Posterior` are enough to compress; diagnostics need draws and densities. Together with
its graph the marginals rebuild both sides of the Pyro program, guide and prior, without the network's source.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyro
import torch
from pyro.distributions import Distribution, Independent, LogNormal, Normal
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_compress.bayes.assignment import Assignment, assigned
from pyro_compress.bayes.guides import Guide, whole
from pyro_compress.bayes.layers import bayes_layers, multiplied
from pyro_compress.bayes.quadrature import kl_by_quadrature
from pyro_compress.foreign import of_type, own_code, shown
from pyro_compress.graph.network import Network
from pyro_compress.machine import channels_last
from pyro_compress.runs.posterior_file import GROUPINGS, check_tensors, read_tensors
from pyro_compress.settings import FitConfig
from pyro_compress.tensorfile import Given, Later, write_tensors
from pyro_compress.types import LayerShape, Posterior, WeightDraw, blocks, rows_of

log = logging.getLogger(__name__)

FAMILIES: dict[str, type[Distribution]] = {"Normal": Normal, "LogNormal": LogNormal}


LEAST = 1e-9
"""Smallest standard deviation that is stored: none is 0."""
DRAWN = 1 << 18
"""Values that are drawn at a time, in double precision."""


class Sites(Mapping[str, Distribution]):
    """Marginals of sites in double precision, made of the single-precision parameters when they are asked for.

    Args:
        families: site -> its family.
        parameters: site -> location and scale.
    """

    def __init__(self, families: dict[str, type[Distribution]], parameters: dict[str, tuple[Tensor, Tensor]]):
        self.families, self.parameters = families, parameters

    def __getitem__(self, site: str) -> Distribution:
        return self.part(site, slice(None))

    def __iter__(self) -> Iterator[str]:
        return iter(self.families)

    def __len__(self) -> int:
        return len(self.families)

    def part(self, site: str, rows: slice) -> Distribution:
        """The marginal of some rows of a site."""
        loc, scale = self.parameters[site]
        # checked when they were read: to check them again takes a sixth of the time of a draw
        return self.families[site](loc[rows].double(), scale[rows].double(), validate_args=False)

    def shape(self, site: str) -> tuple[int, ...]:
        """Shape of a site."""
        return tuple(self.parameters[site][0].shape)


@dataclass(frozen=True)
class Marginals:
    """A mean-field posterior as data.

    Attributes:
        sites: site -> its marginal, one independent value per element, in double precision.
        shapes: tensor name -> shape and grouping, weights and random biases, in network order.
        priors: what they were fitted under.
    """

    sites: Sites
    shapes: dict[str, LayerShape]
    priors: Assignment

    def draw_prior(self, shape: LayerShape) -> WeightDraw:
        """Run the prior of a tensor.

        Raises:
            ValueError: it has none.
        """
        if (prior := self.priors.of(shape.name)) is None:
            raise ValueError(f"{shape.name} matches none of the priors' patterns")
        return prior.draw(shape)

    def of(self, name: str) -> list[str]:
        """Sites that make up one tensor."""
        return [site for site in self.sites if site.startswith(f"{name}.")]

    def parts(self, name: str) -> list[tuple[slice, LayerShape]]:
        """A tensor in parts of so many rows that they can be worked on at once, each with its own shape."""
        whole = self.shapes[name]
        found = rows_of(whole.weight, DRAWN)
        if len(found) == 1:
            return [(slice(None), whole)]
        sizes = [len(range(whole.weight[0])[rows]) for rows in found]
        return [(rows, replace(whole, weight=(n, *whole.weight[1:]))) for rows, n in zip(found, sizes, strict=True)]

    def by_row(self, name: str, site: str) -> bool:
        """Whether a site of a tensor has values for each of its rows, so that it is worked on in parts too."""
        rows = self.shapes[name].weight[0]
        return rows > 1 and self.sites.shape(site)[:1] == (rows,)

    @functools.cached_property
    def log_volumes(self) -> dict[str, float]:
        """Per site, what no draw changes in a normal log-density: log(scale √2π), summed over the elements."""
        return {
            site: sum(float(part.double().log().sum()) for part in blocks(scale))
            + scale.numel() * math.log(2 * math.pi) / 2
            for site, (_, scale) in self.sites.parameters.items()
        }


@dataclass(frozen=True)
class TensorDraw:
    """One draw of one tensor.

    Attributes:
        value: the weight, in its own shape, in single precision.
        norms: of its rows, `(out,)`.
        gate: the group scales it was multiplied with, in gate shape; None without groups.
        sites: site -> value; of a tensor that is drawn in parts, sites that are drawn so too are left out.
        log_prior: log-density of the sites under the prior, in nats (up to a constant if it is improper).
        log_posterior: the same under the posterior.
    """

    value: Tensor
    norms: Tensor
    gate: Tensor | None
    sites: dict[str, Tensor]
    log_prior: float
    log_posterior: float


def write_marginals(file: IO[bytes], net: nn.Module, guide: Guide) -> None:
    """Marginals of a guide as safetensors: `loc/SITE`, `scale/SITE`, and what the sites stand for as metadata."""
    write_sites(file, [shape for layer in bayes_layers(net) for shape, _ in layer.parts], whole(guide), LEAST)


def write_sites(file: IO[bytes], shapes: Sequence[LayerShape], guide: Any, least: float = LEAST) -> None:
    """The same of anything that knows marginals and families of sites.

    Args:
        file: open for writing.
        shapes: the tensors that they make up.
        guide: says `families`, and `marginal(site)`.
        least: no scale is smaller than this.
    """
    write_tensors(file, *_stored(shapes, guide, least))


def _stored(shapes: Sequence[LayerShape], guide: Any, least: float) -> tuple[dict[str, Given], str]:
    """Tensors by name, worked out one by one, and what else there is to know."""
    tensors: dict[str, Given] = {}
    for site in guide.families:
        shape = tuple(guide.marginal(site).loc.shape)
        tensors |= {
            f"loc/{site}": Later(shape, functools.partial(_loc, guide, site)),
            f"scale/{site}": Later(shape, functools.partial(_scale, guide, site, least)),
        }
    metadata = {
        "families": {site: family.__name__ for site, family in guide.families.items()},
        "shapes": {shape.name: [list(shape.weight), shape.grouping] for shape in shapes},
    }
    return tensors, json.dumps(metadata)


@torch.no_grad()
def _loc(guide: Any, site: str) -> Tensor:
    loc: Tensor = guide.marginal(site).loc
    return loc


@torch.no_grad()
def _scale(guide: Any, site: str, least: float) -> Tensor:
    scale: Tensor = guide.marginal(site).scale
    return scale.clamp_min(least) if least else scale


@torch.no_grad()
def marginals_of(net: nn.Module, guide: Guide, config: FitConfig) -> Marginals:
    """The marginals of a fit in memory, as a run folder would hold them."""
    found = {site: guide.marginal(site) for site in guide.families}
    parameters = {site: (q.loc.detach().cpu(), q.scale.detach().cpu()) for site, q in found.items()}
    shapes = {shape.name: shape for layer in bayes_layers(net) for shape, _ in layer.parts}
    return Marginals(Sites(dict(guide.families), parameters), shapes, assigned(config))


def read_marginals(path: Path, config: FitConfig, posterior: Posterior) -> Marginals:
    """Read what `write_marginals` wrote, checking everything before it is used.

    Args:
        path: a run's `guide.safetensors`.
        config: the run's configuration, which names the prior.
        posterior: the run's moments: they are of the same tensors.

    Raises:
        ValueError: no such file, a damaged or foreign one.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: runs of prior 'none' and of early versions have no posterior to draw from"
        )
    if own_code(config.prior):
        log.warning(
            "%s names code, which is now imported and run: %s (--no-code refuses it)", path.parent, shown(config.prior)
        )
    try:
        assigned(replace(config, prior_options={}))
    except ValueError as error:
        raise ValueError(f"{path.parent}: {error}") from error
    try:
        header, tensors = read_tensors(path, functools.partial(_known, posterior))
        check_tensors(tensors)
        families = of_type(header.get("families"), dict[str, str], "families")
        parameters = {site: _parameters(site, family, tensors) for site, family in families.items()}
        sites = Sites({site: FAMILIES[family] for site, family in families.items()}, parameters)
        shapes = {
            name: _shape(name, given, posterior)
            for name, given in of_type(header.get("shapes"), dict[str, list[Any]], "shapes").items()
        }
        found = Marginals(sites, shapes, assigned(config))
        _check_sites(found)
    except ValueError as error:
        raise ValueError(f"{path} holds no marginals of this program: {error}") from error
    return found


def _known(posterior: Posterior, name: str, tensor: Tensor) -> Tensor:
    """A tensor of the file, or the posterior's moment that it equals: without scales, weights have both in common."""
    kind, _, site = name.partition("/")
    if (layer := posterior.layers.get(site.removesuffix(".raw"))) is None:
        return tensor
    moment = layer.mean if kind == "loc" else layer.std
    return moment if moment.dtype == tensor.dtype and torch.equal(moment, tensor) else tensor


def _parameters(site: str, family: str, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    if family not in FAMILIES:
        raise ValueError(f"site {shown(site)} of family {shown(family)}; allowed: {', '.join(FAMILIES)}")
    loc, scale = (tensors.get(f"{key}/{site}") for key in ("loc", "scale"))
    if loc is None or scale is None or loc.shape != scale.shape:
        raise ValueError(f"site {shown(site)} needs a loc and a scale of one shape")
    if not bool((scale > 0).all()):
        raise ValueError(f"a scale of site {shown(site)} is not positive")
    return loc, scale


def _shape(name: str, given: list[Any], posterior: Posterior) -> LayerShape:
    size, grouping = given if len(given) == 2 else (None, None)
    if name not in posterior.tensors or size != list(posterior.tensors[name].shape):
        raise ValueError(f"{shown(name)} of shape {shown(size)} is no tensor of the network")
    if grouping not in GROUPINGS or (len(size) < 2 and grouping != "weight"):
        raise ValueError(f"{shown(name)} with grouping {shown(grouping)}")
    return LayerShape(name, tuple(size), grouping)


class _SitesOf(Messenger):
    """Notes shape by site while a prior runs, and gives it ones that take no memory in place of draws."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes = dict[str, tuple[int, ...]]()

    def _pyro_sample(self, msg: Any) -> None:
        shape = self.shapes[msg["name"]] = tuple(msg["fn"].shape())
        msg["value"], msg["done"] = torch.ones(()).expand(shape), True


def _check_sites(marginals: Marginals) -> None:
    """Hold every tensor's sites against those that its prior has."""
    with pyro.validation_enabled(False), _SitesOf() as known:
        for shape in marginals.shapes.values():
            marginals.draw_prior(shape)
    if wrong := sorted(known.shapes.keys() ^ marginals.sites.keys()):
        raise ValueError(f"site {shown(wrong[0])} is missing, or none of the prior's")
    for site in marginals.sites:
        if (found := marginals.sites.shape(site)) != known.shapes[site]:
            raise ValueError(f"site {site} has shape {found}; it must be {known.shapes[site]}")


@torch.no_grad()
def draw(marginals: Marginals) -> dict[str, TensorDraw]:
    """One joint draw from the posterior with its densities; torch's global generator is used."""
    return {name: _draw(marginals, name) for name in marginals.shapes}


def networks(posterior: Posterior, marginals: Marginals, draws: int, seed: int) -> Iterator[Network]:
    """Networks drawn from the posterior, in evaluation mode, one by one: each may be let go before the next."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = torch.get_rng_state()
    for _ in range(draws):
        with torch.random.fork_rng():
            torch.set_rng_state(state)
            drawn = draw(marginals)
            state = torch.get_rng_state()
        network = drawn_network(posterior, drawn)
        del drawn
        yield network
        del network


def drawn_network(posterior: Posterior, drawn: dict[str, TensorDraw]) -> Network:
    """The network that one draw stands for; tensors without a prior are those of the posterior."""
    weights = {name: channels_last(tensor.value) for name, tensor in drawn.items()}
    return Network(posterior.graph, posterior.tensors | weights, own=True).eval()


def _draw(marginals: Marginals, name: str) -> TensorDraw:
    whole, parts = marginals.shapes[name], marginals.parts(name)
    late = {s for s in marginals.of(name) if math.prod(marginals.sites.shape(s)) > DRAWN and marginals.by_row(name, s)}
    early = {s: _sample(marginals.sites[s]) for s in marginals.of(name) if s not in late}
    value, norms, gates = torch.empty(whole.weight), torch.empty(whole.weight[0], dtype=torch.float64), list[Tensor]()
    log_prior, log_posterior = 0.0, sum(density for _, density in early.values())
    for rows, shape in parts:
        drawn = {s: v[rows] if marginals.by_row(name, s) else v for s, (v, _) in early.items()}
        for site in late:
            drawn[site], density = _sample(marginals.sites.part(site, rows))
            log_posterior += density
        weight, trace = _prior_trace(marginals, shape, drawn)
        found = multiplied(weight)
        value[rows], norms[rows] = found.float(), found.flatten(1).norm(dim=1) if found.dim() > 1 else found.abs()
        gates += [] if weight.gate is None else [weight.gate]
        counted = [s for s in drawn if rows is parts[0][0] or marginals.by_row(name, s)]
        log_prior += sum(log_density(trace.nodes[site]["fn"], drawn[site]) for site in counted)
    log_posterior -= sum(marginals.log_volumes[site] for site in marginals.of(name))
    gate = None if not gates else gates[0] if whole.gate[0] == 1 else torch.cat(gates)
    return TensorDraw(value, norms, gate, {site: v for site, (v, _) in early.items()}, log_prior, log_posterior)


def _sample(q: Distribution) -> tuple[Tensor, float]:
    """A draw of a marginal and its log-density there up to its `log_volumes`, read off the noise it was made from.

    The noise has single precision, as in training, which is drawn five times as fast as double; the rest is double.
    """
    noise = torch.randn(q.loc.shape)
    value = torch.addcmul(q.loc, q.scale, noise.to(q.loc.dtype))
    log_density = -float(noise.square_().sum(dtype=torch.float64)) / 2
    if isinstance(q, LogNormal):
        return value.exp(), log_density - float(value.sum())
    return value, log_density


def log_density(p: Distribution, value: Tensor) -> float:
    """Log-density of a value, summed over its elements; a normal's normaliser is worked out once, not for each."""
    base = p
    while isinstance(base, Independent):
        base = base.base_dist
    if type(base) is not Normal:
        return float(p.log_prob(value).sum())
    loc, scale = (_unexpanded(parameter).double() for parameter in (base.loc, base.scale))
    squares = float((value - loc).div_(scale).square_().sum())
    normaliser = float(scale.log().mean()) + math.log(2 * math.pi) / 2
    return -squares / 2 - value.numel() * normaliser


def _unexpanded(tensor: Tensor) -> Tensor:
    """A tensor with each dimension along which it only repeats itself at size 1."""
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


def _prior_trace(marginals: Marginals, shape: LayerShape, values: dict[str, Tensor]) -> tuple[Any, pyro.poutine.Trace]:
    """Run the prior of one tensor on given values of its sites."""
    conditioned = pyro.poutine.trace(pyro.poutine.condition(marginals.draw_prior, values))
    with pyro.validation_enabled(False):
        return conditioned(shape), conditioned.trace


@torch.no_grad()
def draw_prior(marginals: Marginals) -> dict[str, TensorDraw] | None:
    """One joint draw from the prior, None if it is improper; its log-densities are not evaluated (0)."""
    try:
        return {name: _draw_prior(marginals, name) for name in marginals.shapes}
    except ValueError:  # an improper prior has no draws
        return None


def _draw_prior(marginals: Marginals, name: str) -> TensorDraw:
    """In parts, as a draw from the posterior: sites that all rows share are drawn with the first part."""
    whole, parts = marginals.shapes[name], marginals.parts(name)
    value, norms = torch.empty(whole.weight), torch.empty(whole.weight[0])
    sites, gates = dict[str, Tensor](), list[Tensor]()
    for rows, shape in parts:
        weight, trace = _prior_trace(marginals, shape, sites)
        drawn = {site: node["value"] for site, node in trace.nodes.items() if node["type"] == "sample"}
        sites |= {site: v for site, v in drawn.items() if len(parts) == 1 or not marginals.by_row(name, site)}
        found = multiplied(weight)
        value[rows], norms[rows] = found, found.flatten(1).norm(dim=1) if found.dim() > 1 else found.abs()
        gates += [] if weight.gate is None else [weight.gate]
    gate = None if not gates else gates[0] if whole.gate[0] == 1 else torch.cat(gates)
    return TensorDraw(value, norms, gate, sites, 0.0, 0.0)


@torch.no_grad()
def kl_by_tensor(marginals: Marginals, seed: int = 0) -> dict[str, float | None]:
    """KL(posterior ‖ prior) of every tensor in nats, in closed form or by quadrature; None where only draws tell it.

    That is where the prior of a site depends on what another one has drawn, as in a mixture that is learned, or gives
    no density to single elements.

    Args:
        marginals: posterior and prior.
        seed: of the draws that say whether a prior is of that kind.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: _summed(_kl_of_sites(marginals, name)) for name in marginals.shapes}


def _summed(parts: Iterable[float | None]) -> float | None:
    """A sum; None as soon as a part is missing."""
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


def _kl_of_sites(marginals: Marginals, name: str) -> Iterator[float | None]:
    for rows, shape in marginals.parts(name):
        parts = {site: rows if marginals.by_row(name, site) else slice(None) for site in marginals.of(name)}
        posterior = {site: marginals.sites.part(site, part) for site, part in parts.items()}
        drawn = {site: q.sample() for site, q in posterior.items()}
        priors = _priors(marginals, shape, drawn)
        if len(posterior) > 1 and not rows.start:
            others = _priors(marginals, shape, {site: q.sample() for site, q in posterior.items()})
            if any(log_density(priors[site], drawn[site]) != log_density(others[site], drawn[site]) for site in drawn):
                yield None
        for site, q in posterior.items():
            if not rows.start or marginals.by_row(name, site):
                yield _kl_of_site(q, priors[site])


def _priors(marginals: Marginals, shape: LayerShape, drawn: dict[str, Tensor]) -> dict[str, Distribution]:
    """Priors of the sites of a tensor, given values of all of them."""
    trace = _prior_trace(marginals, shape, drawn)[1]
    return {site: trace.nodes[site]["fn"] for site in drawn}


def _kl_of_site(q: Distribution, p: Distribution) -> float | None:
    try:
        return float(kl_divergence(q.to_event(q.loc.dim()), p))
    except NotImplementedError:
        return kl_by_quadrature(q, p)
