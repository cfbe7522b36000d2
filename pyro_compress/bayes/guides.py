"""Variational posteriors over the sites of a Bayesian network.

A guide is an `nn.Module` that samples every latent site and can name each site's marginal. `MeanField` samples a Normal
or LogNormal at the site itself, which is what lets `TraceMeanField_ELBO` use closed-form KLs; Pyro's AutoGuides
sample an auxiliary site and always fall back to Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from pyro.distributions import Distribution, LogNormal
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuide, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor, nn

from pyro_compress.bayes.assignment import Assignment, Pace
from pyro_compress.bayes.layers import bayes_layers
from pyro_compress.bayes.own_guides import Own, own_guide
from pyro_compress.bayes.priors import Start
from pyro_compress.bayes.shards import Rows

LOG_SCALE_BOUNDS = (-9.0, 3.0)
"""Bounds on log posterior standard deviations: outside of them float32 gradients carry nothing but noise."""


class MeanField(nn.Module):
    """Fully factorised guide: `Normal(loc, exp(log_scale))` per real site, `LogNormal` per positive one.

    Args:
        starts: site -> where its posterior starts.
        split: site -> the rows of it that this process holds, and `starts` says; all of the others.
    """

    def __init__(self, starts: dict[str, Start], split: Mapping[str, Rows] | None = None):
        super().__init__()
        self.split = dict(split or {})
        self.families = {site: start.family for site, start in starts.items()}
        self.loc = nn.ParameterDict({_key(site): start.loc.clone() for site, start in starts.items()})
        self.log_scale = nn.ParameterDict({_key(site): start.scale.log() for site, start in starts.items()})
        self.max_log_scale: dict[str, float] = {}

    def marginal(self, site: str) -> Distribution:
        """Posterior marginal of a site, one independent value per element."""
        key = _key(site)
        return self.families[site](self.loc[key], self.log_scale[key].exp())

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; arguments are the model's and are not looked at."""
        return {site: pyro.sample(site, q.to_event(len(q.batch_shape))) for site, q in self._marginals()}

    def _marginals(self) -> Iterator[tuple[str, Distribution]]:
        return ((site, self.marginal(site)) for site in self.families)

    def bounds(self) -> list[tuple[nn.Parameter, tuple[float, float]]]:
        """Parameters that must stay within (low, high), and are put back after every step: the log-scales."""
        low, high = LOG_SCALE_BOUNDS
        return [
            (self.log_scale[_key(site)], (low, min(high, self.max_log_scale.get(site, high)))) for site in self.families
        ]

    def groups(self, lr: float, lr_scale: float, lr_group: float) -> list[dict[str, Any]]:
        """Optimiser groups: locations of raw weights, locations of group scales, all log-scales."""
        scales = [_key(site) for site in self.families if site not in self.raw_sites]
        return [
            {"params": [self.loc[_key(site)] for site in self.raw_sites], "lr": lr},
            {"params": [self.loc[key] for key in scales], "lr": lr_group},
            {"params": list(self.log_scale.values()), "lr": lr_scale},
        ]

    def paced(self, site: str, pace: Pace) -> list[tuple[nn.Parameter, float]]:
        """The parameters of a site, each with the factor on its learning rate."""
        key = _key(site)
        return [
            (self.loc[key], pace.lr if site in self.raw_sites else pace.lr_group),
            (self.log_scale[key], pace.lr_scale),
        ]

    def split_parameters(self) -> dict[int, Rows]:
        """Parameters that are rows of a split tensor, by identity."""
        return {id(part[_key(site)]): rows for site, rows in self.split.items() for part in (self.loc, self.log_scale)}

    @property
    def raw_sites(self) -> list[str]:
        """Sites of raw weights and biases, as opposed to group scales."""
        return [site for site in self.families if site.endswith(".raw")]


def _key(site: str) -> str:
    return site.replace(".", "/")


class Auto(nn.Module):
    """One of Pyro's AutoGuides behind the same face: `marginal`, `groups`, `bounds`.

    An AutoGuide samples an auxiliary site and a Delta at the model's own, so every KL is a one-sample estimate,
    whatever the prior. It is here to compare with and to build on; it goes with weight sampling only.

    Args:
        kind: `AutoNormal` or `AutoDiagonalNormal`.
        model: the Pyro model.
        starts: site -> where its posterior starts.
        example: arguments of the model, to find its sites with.
    """

    def __init__(self, kind: type[AutoGuide], model: nn.Module, starts: dict[str, Start], example: tuple[Tensor, ...]):
        super().__init__()
        self.families = {site: start.family for site, start in starts.items()}
        medians = {
            site: start.loc.exp() if start.family is LogNormal else start.loc.clone() for site, start in starts.items()
        }
        with torch.no_grad(), self._local():
            self.guide = kind(model, init_loc_fn=init_to_value(values=medians))
            self.guide(*example)  # builds its parameters
            self._scale_to(starts)

    @staticmethod
    def _local() -> AbstractContextManager[None]:
        """Keeps an AutoGuide's parameters in the module: it would put them into Pyro's global store."""
        context: AbstractContextManager[None] = pyro.settings.context(module_local_params=True)
        return context

    def _scale_to(self, starts: dict[str, Start]) -> None:
        """Give every site its own initial scale; the AutoGuides know a single one."""
        if isinstance(self.guide, AutoNormal):
            for site, start in starts.items():
                parent, _, leaf = f"scales.{site}".rpartition(".")
                setattr(self.guide.get_submodule(parent), leaf, start.scale.clone())
        else:
            sites = self.guide._unpack_latent(torch.arange(self.guide.latent_dim, device=self.guide.loc.device))
            scale = self.guide.scale.detach().clone()
            for site, index in sites:
                scale[index.flatten().long()] = starts[site["name"]].scale.flatten()
            self.guide.scale = scale

    def marginal(self, site: str) -> Distribution:
        """Posterior marginal of a site, one independent value per element."""
        if isinstance(self.guide, AutoNormal):
            loc, scale = self.guide._get_loc_and_scale(site)
        else:
            parts = [dict(self._unpacked(vector)) for vector in (self.guide.loc, self.guide.scale)]
            loc, scale = parts[0][site], parts[1][site]
        return self.families[site](loc, scale)

    def _unpacked(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        return ((site["name"], value) for site, value in self.guide._unpack_latent(vector))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site."""
        with self._local():
            drawn: dict[str, Tensor] = self.guide(*args, **kwargs)
        return drawn

    def bounds(self) -> list[tuple[nn.Parameter, tuple[float, float]]]:
        """None: the AutoGuides keep scales positive by themselves."""
        return []

    def groups(self, lr: float, lr_scale: float, lr_group: float) -> list[dict[str, Any]]:
        """Optimiser groups; AutoDiagonalNormal has one location vector for all sites, so group scales share `lr`."""
        parts: dict[str, list[nn.Parameter]] = {"raw": [], "group": [], "scale": []}
        for full_name, parameter in self.named_parameters():
            name = full_name.removesuffix("_unconstrained")
            is_loc = ".locs." in f".{name}" or name.endswith(".loc")
            kind = "scale" if not is_loc else "raw" if name.endswith((".raw", ".loc")) else "group"
            parts[kind].append(parameter)
        rates = {"raw": lr, "group": lr_group, "scale": lr_scale}
        return [{"params": parameters, "lr": rates[kind]} for kind, parameters in parts.items()]


Guide = MeanField | Auto | Own


class Marginals(Protocol):
    """What knows the marginal of every site."""

    def marginal(self, site: str) -> Distribution:
        """Posterior marginal of a site, one independent value per element."""


@dataclass(frozen=True)
class Whole:
    """A guide whose split sites are gathered when they are asked for; all processes ask for the same.

    Attributes:
        guide: it.
    """

    guide: MeanField

    @property
    def families(self) -> dict[str, type[Distribution]]:
        """Site -> its family."""
        return self.guide.families

    @torch.no_grad()
    def marginal(self, site: str) -> Distribution:
        """Posterior marginal of a site."""
        own, rows = self.guide.marginal(site), self.guide.split.get(site)
        return own if rows is None else self.families[site](rows.gathered(own.loc), rows.gathered(own.scale))


def whole(guide: Guide) -> Guide | Whole:
    """What knows all of every site."""
    return Whole(guide) if isinstance(guide, MeanField) and guide.split else guide


GUIDES: dict[str, type[AutoGuide] | None] = {
    "mean-field": None,
    "auto-normal": AutoNormal,
    "auto-diagonal": AutoDiagonalNormal,
}
"""Guides by name; None stands for `MeanField`, the others are Pyro's."""


def starts_of(
    net: nn.Module, weights: dict[str, Tensor], init_scale: float | None, priors: Assignment | None = None
) -> dict[str, Start]:
    """Where the posterior of every site starts.

    Args:
        net: contains the `BayesLayer`s.
        weights: tensor name -> trained weight or bias.
        init_scale: initial standard deviation of raw weights; the prior's default if None.
        priors: whose recipes start some tensors wider than others.
    """
    starts: dict[str, Start] = {}
    for layer in bayes_layers(net):
        for shape, prior in layer.parts:
            pace = priors.pace(shape.name).init_scale if priors else 1.0
            found = prior.start(shape, weights[shape.name], init_scale * pace if init_scale else prior.init_scale)
            if layer.rows and shape is layer.shape:
                own, rows = found[shape.site], layer.rows
                found[shape.site] = Start(own.family, rows.of(own.loc).clone(), rows.of(own.scale).clone())
            starts |= found
    return starts


def build_guide(
    name: str,
    model: nn.Module,
    starts: dict[str, Start],
    max_scales: Mapping[str, float] | None,
    example: tuple[Tensor, ...],
) -> Guide:
    """Build a guide for a model.

    Args:
        name: name in `GUIDES`, or of a guide of one's own (`own_guides`).
        model: the Pyro model, which contains the `BayesLayer`s.
        starts: site -> where its posterior starts.
        max_scales: weight tensor name -> upper bound on the standard deviations of its raw weights; None: no bounds.
        example: arguments of the model.
    """
    if name not in GUIDES:
        return Own(own_guide(name, GUIDES), name, model, starts, example)
    kind = GUIDES[name]
    if kind is not None:
        return Auto(kind, model, starts, example)
    guide = MeanField(starts, {layer.shape.site: layer.rows for layer in bayes_layers(model) if layer.rows})
    sites = {layer.shape.name: layer.shape.site for layer in bayes_layers(model)}
    guide.max_log_scale |= {sites[name]: math.log(bound) for name, bound in (max_scales or {}).items() if name in sites}
    return guide
