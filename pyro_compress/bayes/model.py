"""The Pyro program of a network, and what fitting it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
from pyro.distributions import Categorical
from torch import Tensor, nn

from pyro_compress.bayes.guides import Guide
from pyro_compress.training import Epoch
from pyro_compress.types import FitConfig, Graph, Removal


class Classifier(nn.Module):
    """The Pyro model: a network with priors, and a categorical likelihood over a plate of `size` examples."""

    def __init__(self, net: nn.Module, size: int):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits `(batch, classes)`; with labels given, the site `y` observes them."""
        logits = self.net(x).float()  # under autocast they may be bfloat16
        with pyro.plate("data", self.size, subsample=x):
            pyro.sample("y", Categorical(logits=logits), obs=y)
        return logits


@dataclass(frozen=True)
class Fit:
    """A fitted posterior, still in Pyro.

    Attributes:
        model: the Pyro model.
        guide: its variational posterior.
        net: the plain network it came from.
        graph: the network that was fitted, as data: the same, less the units that left.
        config: what determined the fit, resolved.
        history: one entry per epoch.
        removals: units that left.
    """

    model: Classifier
    guide: Guide
    net: nn.Module
    graph: Graph
    config: FitConfig
    history: tuple[Epoch, ...]
    removals: tuple[Removal, ...] = ()
