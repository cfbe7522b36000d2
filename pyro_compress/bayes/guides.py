"""Variational posteriors over the sites of a Bayesian network.

A guide is an `nn.Module` that samples every latent site and can name each site's marginal. `MeanField` samples a Normal
or LogNormal at the site itself, which is what lets `TraceMeanField_ELBO` use closed-form KLs; Pyro's AutoGuides
sample an auxiliary site and always fall back to Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_compress.bayes.layers import bayes_layers
from pyro_compress.bayes.priors import Start

LOG_SCALE_BOUNDS = (-9.0, 3.0)
"""Bounds on log posterior standard deviations: outside of them float32 gradients carry nothing but noise."""


class MeanField(nn.Module):
    """Fully factorised guide: `Normal(loc, exp(log_scale))` per real site, `LogNormal` per positive one.

    Args:
        starts: site -> where its posterior starts.
    """

    def __init__(self, starts: dict[str, Start]):
        super().__init__()
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

    @torch.no_grad()
    def project(self) -> None:
        """Put log-scales back into their bounds; called after every optimiser step."""
        for site in self.families:
            low, high = LOG_SCALE_BOUNDS
            self.log_scale[_key(site)].clamp_(low, min(high, self.max_log_scale.get(site, high)))

    def groups(self, lr: float, lr_scale: float, lr_group: float) -> list[dict[str, Any]]:
        """Optimiser groups: locations of raw weights, locations of group scales, all log-scales."""
        scales = [_key(site) for site in self.families if site not in self.raw_sites]
        return [
            {"params": [self.loc[_key(site)] for site in self.raw_sites], "lr": lr},
            {"params": [self.loc[key] for key in scales], "lr": lr_group},
            {"params": list(self.log_scale.values()), "lr": lr_scale},
        ]

    @property
    def raw_sites(self) -> list[str]:
        """Sites of raw weights and biases, as opposed to group scales, whose names extend theirs."""
        return [site for site in self.families if site.endswith((".weight", ".bias")) or "." not in site]


def _key(site: str) -> str:
    return site.replace(".", "/")


def mean_field(
    model: nn.Module, weights: dict[str, Tensor], init_scale: float | None, max_scale: float | None
) -> MeanField:
    """Guide for a network with Bayesian layers, started from given weights.

    Args:
        model: contains the `BayesLayer`s.
        weights: tensor name -> trained weight or bias.
        init_scale: initial standard deviation of raw weights; the prior's default if None.
        max_scale: upper bound on the standard deviation of the first layer's raw weights; 0 for none.
    """
    starts: dict[str, Start] = {}
    for layer in bayes_layers(model):
        for shape, prior in ((layer.shape, layer.prior), (layer.bias_shape, layer.bias_prior)):
            if shape is not None and prior is not None:
                starts |= prior.start(shape, weights[shape.name], init_scale or prior.init_scale)
    guide = MeanField(starts)
    if max_scale:
        guide.max_log_scale[bayes_layers(model)[0].shape.name] = math.log(max_scale)
    return guide
