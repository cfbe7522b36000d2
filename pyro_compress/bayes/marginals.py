"""A fitted posterior at rest: the marginal of every site, stored, read back and drawn from.

The moments of the waist (`types.Posterior`) are enough to compress; diagnostics need draws and densities. Together with
the waist's graph the marginals rebuild both sides of the Pyro program, guide and prior, without the network's source.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyro
import torch
from pyro.distributions import Distribution, LogNormal, Normal
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_compress.bayes.guides import Guide
from pyro_compress.bayes.layers import bayes_layers, multiplied
from pyro_compress.bayes.priors import PRIORS, Prior
from pyro_compress.foreign import of_type, shown
from pyro_compress.networks.graph import Network
from pyro_compress.runs.waist import GROUPINGS, check_tensors, read_tensors
from pyro_compress.settings import FitConfig
from pyro_compress.tensorfile import Given, Later, tensor_bytes, write_tensors
from pyro_compress.types import LayerShape, Posterior

FAMILIES: dict[str, type[Distribution]] = {"Normal": Normal, "LogNormal": LogNormal}


@dataclass(frozen=True)
class Marginals:
    """A mean-field posterior as data.

    Attributes:
        sites: site -> its marginal, one independent value per element, in double precision.
        shapes: tensor name -> shape and grouping, weights and random biases, in network order.
        prior: the prior they were fitted under.
    """

    sites: dict[str, Distribution]
    shapes: dict[str, LayerShape]
    prior: Prior

    def of(self, name: str) -> dict[str, Distribution]:
        """Marginals of the sites that make up one tensor."""
        return {site: q for site, q in self.sites.items() if site.startswith(f"{name}.")}

    @functools.cached_property
    def log_volumes(self) -> dict[str, float]:
        """Per site, what no draw changes in a normal log-density: log(scale √2π), summed over the elements."""
        return {
            site: float(q.scale.log().sum()) + q.scale.numel() * math.log(2 * math.pi) / 2
            for site, q in self.sites.items()
        }


@dataclass(frozen=True)
class TensorDraw:
    """One draw of one tensor.

    Attributes:
        value: the weight, in its own shape.
        gate: the group scales it was multiplied with, in gate shape; None without groups.
        sites: site -> value.
        log_prior: log-density of the sites under the prior, in nats (up to a constant if it is improper).
        log_posterior: the same under the posterior.
    """

    value: Tensor
    gate: Tensor | None
    sites: dict[str, Tensor]
    log_prior: float
    log_posterior: float


def write_marginals(file: IO[bytes], net: nn.Module, guide: Guide) -> None:
    """Marginals of a guide as safetensors: `loc/SITE`, `scale/SITE`, and what the sites stand for as metadata."""
    write_tensors(file, *_stored(net, guide))


def marginals_bytes(net: nn.Module, guide: Guide) -> bytes:
    """What `write_marginals` would write."""
    return tensor_bytes(*_stored(net, guide))


def _stored(net: nn.Module, guide: Guide) -> tuple[dict[str, Given], str]:
    """Tensors by name, scales worked out one by one, and what else there is to know."""
    tensors: dict[str, Given] = {}
    for site in guide.families:
        loc = guide.marginal(site).loc.detach()
        tensors |= {
            f"loc/{site}": loc,
            f"scale/{site}": Later(tuple(loc.shape), functools.partial(_scale, guide, site)),
        }
    metadata = {
        "families": {site: family.__name__ for site, family in guide.families.items()},
        "shapes": {
            shape.name: [list(shape.weight), shape.grouping] for layer in bayes_layers(net) for shape, _ in layer.parts
        },
    }
    return tensors, json.dumps(metadata)


@torch.no_grad()
def _scale(guide: Guide, site: str) -> Tensor:
    return guide.marginal(site).scale


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
    if config.prior not in PRIORS:
        raise ValueError(f"{path.parent}: unknown prior {shown(config.prior)}; allowed: {', '.join(PRIORS)}")
    try:
        told, tensors = read_tensors(path)
        check_tensors(tensors)
        families = of_type(told.get("families"), dict[str, str], "families")
        sites = {site: _marginal(site, family, tensors) for site, family in families.items()}
        shapes = {
            name: _shape(name, given, posterior)
            for name, given in of_type(told.get("shapes"), dict[str, list[Any]], "shapes").items()
        }
        found = Marginals(sites, shapes, PRIORS[config.prior].with_options(config.prior_options))
        _check_sites(found)
    except ValueError as error:
        raise ValueError(f"{path} holds no marginals of this program: {error}") from error
    return found


def _marginal(site: str, family: str, tensors: dict[str, Tensor]) -> Distribution:
    if family not in FAMILIES:
        raise ValueError(f"site {shown(site)} of family {shown(family)}; allowed: {', '.join(FAMILIES)}")
    loc, scale = (tensors.get(f"{key}/{site}") for key in ("loc", "scale"))
    if loc is None or scale is None or loc.shape != scale.shape:
        raise ValueError(f"site {shown(site)} needs a loc and a scale of one shape")
    if not bool((scale > 0).all()):
        raise ValueError(f"a scale of site {shown(site)} is not positive")
    return FAMILIES[family](loc.double(), scale.double())


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
            marginals.prior.draw(shape)
    if wrong := sorted(known.shapes.keys() ^ marginals.sites.keys()):
        raise ValueError(f"site {shown(wrong[0])} is missing, or none of the prior's")
    for site, q in marginals.sites.items():
        if tuple(q.loc.shape) != known.shapes[site]:
            raise ValueError(f"site {site} has shape {tuple(q.loc.shape)}; it must be {known.shapes[site]}")


@torch.no_grad()
def draw(marginals: Marginals) -> dict[str, TensorDraw]:
    """One joint draw from the posterior with its densities; torch's global generator is used."""
    return {name: _draw(marginals, name) for name in marginals.shapes}


def networks(posterior: Posterior, marginals: Marginals, draws: int, seed: int) -> list[Network]:
    """Networks drawn from the posterior, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [drawn_network(posterior, draw(marginals)) for _ in range(draws)]


def drawn_network(posterior: Posterior, drawn: dict[str, TensorDraw]) -> Network:
    """The network that one draw stands for; tensors without a prior are those of the waist."""
    weights = {name: _laid_out(tensor.value.float()) for name, tensor in drawn.items()}
    return Network(posterior.graph, posterior.tensors | weights).eval()


def _laid_out(weight: Tensor) -> Tensor:
    """Weights of a convolution with their channels last in memory: so a CPU convolves, and pools, fastest."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight


def _draw(marginals: Marginals, name: str) -> TensorDraw:
    posterior = marginals.of(name)
    found = {site: _sample(q, marginals.log_volumes[site]) for site, q in posterior.items()}
    values = {site: value for site, (value, _) in found.items()}
    weight, trace = _prior_trace(marginals, name, values)
    return TensorDraw(
        value=multiplied(weight),
        gate=weight.gate,
        sites=values,
        log_prior=sum(float(trace.nodes[site]["fn"].log_prob(value).sum()) for site, value in values.items()),
        log_posterior=sum(density for _, density in found.values()),
    )


def _sample(q: Distribution, log_volume: float) -> tuple[Tensor, float]:
    """A draw of a marginal and its log-density there, read off the standard normal noise that it was made from.

    The noise has single precision, as in training, which is drawn five times as fast as double; the rest is double.
    """
    noise = torch.randn(q.loc.shape)
    value = torch.addcmul(q.loc, q.scale, noise.to(q.loc.dtype))
    log_density = -float(noise.square_().sum(dtype=torch.float64)) / 2 - log_volume
    if isinstance(q, LogNormal):
        return value.exp(), log_density - float(value.sum())
    return value, log_density


def _prior_trace(marginals: Marginals, name: str, values: dict[str, Tensor]) -> tuple[Any, pyro.poutine.Trace]:
    """Run the prior of one tensor on given values of its sites."""
    conditioned = pyro.poutine.trace(pyro.poutine.condition(marginals.prior.draw, values))
    with pyro.validation_enabled(False):
        return conditioned(marginals.shapes[name]), conditioned.trace


@torch.no_grad()
def draw_prior(marginals: Marginals) -> dict[str, TensorDraw] | None:
    """One joint draw from the prior, None if it is improper; its log-densities are not evaluated (0)."""
    found: dict[str, TensorDraw] = {}
    for name in marginals.shapes:
        try:
            weight, trace = _prior_trace(marginals, name, {})
        except ValueError:  # an improper prior has no draws
            return None
        sites = {site: node["value"] for site, node in trace.nodes.items() if node["type"] == "sample"}
        found[name] = TensorDraw(multiplied(weight), weight.gate, sites, 0.0, 0.0)
    return found


@torch.no_grad()
def kl_by_tensor(marginals: Marginals, draws: int = 20, seed: int = 0) -> dict[str, float]:
    """KL(posterior ‖ prior) of every tensor in nats; the mean of `draws` estimates where there is no closed form."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: sum(_kl_of_sites(marginals, name, draws)) for name in marginals.shapes}


def _kl_of_sites(marginals: Marginals, name: str, draws: int) -> Iterator[float]:
    posterior = marginals.of(name)
    _, trace = _prior_trace(marginals, name, {site: q.sample() for site, q in posterior.items()})
    for site, q in posterior.items():
        p = trace.nodes[site]["fn"]
        try:
            yield float(kl_divergence(q.to_event(q.loc.dim()), p))
        except NotImplementedError:
            drawn = [q.sample() for _ in range(draws)]
            yield sum(float((q.log_prob(value).sum() - p.log_prob(value)).sum()) for value in drawn) / draws
