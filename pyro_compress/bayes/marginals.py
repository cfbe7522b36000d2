"""A fitted posterior at rest: the marginal of every site, stored, read back and drawn from.

The moments of the waist (`types.Posterior`) are enough to compress; diagnostics need draws and densities. Together with
the waist's graph the marginals rebuild both sides of the Pyro program, guide and prior, without the network's source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.distributions import Distribution, LogNormal, Normal
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_compress.bayes.guides import Guide
from pyro_compress.bayes.layers import bayes_layers, multiplied
from pyro_compress.bayes.priors import PRIORS, Prior
from pyro_compress.networks.graph import Network
from pyro_compress.types import FitConfig, LayerShape, Posterior

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


def marginals_bytes(net: nn.Module, guide: Guide) -> bytes:
    """Marginals of a guide as safetensors: `loc/SITE`, `scale/SITE`, and what the sites stand for as metadata."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for site in guide.families:
            q = guide.marginal(site)
            tensors |= {f"loc/{site}": q.loc.cpu().contiguous(), f"scale/{site}": q.scale.cpu().contiguous()}
    metadata = {
        "families": {site: family.__name__ for site, family in guide.families.items()},
        "shapes": {
            shape.name: [list(shape.weight), shape.grouping] for layer in bayes_layers(net) for shape, _ in layer.parts
        },
    }
    data: bytes = save(tensors, {"pyro_compress": json.dumps(metadata)})
    return data


def read_marginals(path: Path, config: FitConfig) -> Marginals:
    """Read what `marginals_bytes` wrote.

    Args:
        path: a run's `guide.safetensors`.
        config: the run's configuration, which names the prior.

    Raises:
        ValueError: no such file, a damaged or foreign one.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(
            f"{path} is missing: runs of prior 'none' and of early versions have no posterior to draw from"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["pyro_compress"])
            sites = {
                site: FAMILIES[family](
                    file.get_tensor(f"loc/{site}").double(), file.get_tensor(f"scale/{site}").double()
                )
                for site, family in metadata["families"].items()
            }
        shapes = {
            name: LayerShape(name, tuple(size), grouping) for name, (size, grouping) in metadata["shapes"].items()
        }
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no marginals of this program: {error}") from error
    return Marginals(sites, shapes, PRIORS[config.prior].with_options(config.prior_options))


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
    weights = {name: tensor.value.float() for name, tensor in drawn.items()}
    return Network(posterior.graph, posterior.tensors | weights).eval()


def _draw(marginals: Marginals, name: str) -> TensorDraw:
    posterior = marginals.of(name)
    values = {site: q.sample() for site, q in posterior.items()}
    weight, trace = _prior_trace(marginals, name, values)
    return TensorDraw(
        value=multiplied(weight),
        gate=weight.gate,
        sites=values,
        log_prior=sum(float(trace.nodes[site]["fn"].log_prob(value).sum()) for site, value in values.items()),
        log_posterior=sum(float(q.log_prob(values[site]).sum()) for site, q in posterior.items()),
    )


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
