"""A network as an ordinary Pyro program: `model(x, y)` and `guide(x, y)`, for loops of one's own.

Both register their parameters with Pyro's store, as `pyro.module` does, so that `pyro.infer.SVI` finds them. The data
are a plate of all training examples, of which `x` is a subsample: the likelihood of a minibatch is scaled to the whole.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_compress.bayes.guides import MeanField, starts_of
from pyro_compress.bayes.layers import bayes_layers
from pyro_compress.bayes.model import Likelihood, Model
from pyro_compress.bayes.own_guides import made_guide, median
from pyro_compress.bayes.priors import Start
from pyro_compress.bayes.train_state import bayesian, check_assigned, check_free, chosen
from pyro_compress.graph.checked import evaluating
from pyro_compress.graph.packing import in_one_row
from pyro_compress.metrics import SPLITS, examples_of
from pyro_compress.networks.fitted import check_trainable, with_graph
from pyro_compress.settings import FitConfig
from pyro_compress.types import Graph, Splits

_NUMBERS = itertools.count(1)


class ProgramModel(Model):
    """The Pyro model of a network, which knows what it is the model of.

    Attributes:
        graph: the network as data.
        config: prior and what else determined it, resolved.
        splits: its data; all of `train` is the plate.
        starts: site -> where a posterior may start.
        example: two examples, as arguments.
    """

    def __init__(self, net: nn.Module, likelihood: Likelihood, known: tuple[Graph, FitConfig, Splits]):
        super().__init__(net, likelihood)
        self.graph, self.config, self.splits = known
        self.starts: dict[str, Start] = {}
        self.store = f"model{next(_NUMBERS)}"

    @property
    def example(self) -> tuple[Tensor, Tensor]:
        """Two examples, on the device."""
        train = examples_of(self.splits, SPLITS[0])
        return train.x[:2].to(self.config.device), train.y[:2].to(self.config.device)

    def forward(self, x: Tensor | Mapping[str, Tensor], y: Tensor | None = None) -> Tensor:
        """Outputs `(batch, ...)`; with labels or targets given, the site `y` observes them.

        Args:
            x: inputs; several by name, or packed.
            y: labels or targets.
        """
        with warnings.catch_warnings():  # frozen parameters are meant to stay out of the store
            warnings.filterwarnings("ignore", ".*was not registered in the param store because requires_grad=False")
            pyro.module(self.store, self)
        with _Standing(self):
            return super().forward(in_one_row(x, self.splits.inputs) if isinstance(x, Mapping) else x, y)


class _Standing(Messenger):
    """Where a prior is improper, and nobody else gives a value, the start of the posterior stands in for a draw."""

    def __init__(self, model: ProgramModel):
        super().__init__()
        parts = [part for layer in bayes_layers(model.net) for part in layer.parts]
        improper = tuple(f"{shape.name}." for shape, prior in parts if not prior.proper)
        self.values = {site: median(one) for site, one in model.starts.items() if site.startswith(improper)}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class ProgramGuide(MeanField):
    """The mean-field guide of such a model."""

    def __init__(self, model: ProgramModel):
        super().__init__(model.starts)
        self._model = (model,)  # no submodule
        self.store = f"guide{next(_NUMBERS)}"

    @property
    def model(self) -> ProgramModel:
        """What it is the guide of."""
        return self._model[0]

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; arguments are the model's and are not looked at."""
        pyro.module(self.store, self)
        return super().forward()


def program_of(net: nn.Module, splits: Splits, config: FitConfig, noise: float | None = None) -> ProgramModel:
    """The Pyro model of a network.

    Args:
        net: a plain network; it is copied, not changed.
        splits: its data.
        config: resolved.
        noise: of regression, where it is known; None: it is a parameter, from 1 on.

    Raises:
        ValueError: what `bayesianize` and `capture` refuse.
    """
    plain, graph = with_graph(net, splits)
    check_trainable(plain)
    among = chosen(plain, graph)
    check_free(among)
    check_assigned(config, among)
    likelihood = Likelihood(splits.task, len(examples_of(splits, SPLITS[0])), noise or 1.0, learned=noise is None)
    model = ProgramModel(bayesian(plain, config, among), likelihood, (graph, config, splits)).to(config.device)
    weights: dict[str, Tensor] = {
        name: tensor.detach().to(config.device) for name, tensor in plain.state_dict().items()
    }
    starts = starts_of(model.net, weights, config.init_scale)
    model.starts |= {site: starts[site] for site in _order(model, starts)}
    return model


def _order(model: ProgramModel, starts: Mapping[str, Start]) -> list[str]:
    """Sites in the order in which a model draws them: Pyro asks the same of its guide."""
    values = {site: median(one) for site, one in starts.items()}
    with pyro.validation_enabled(False), torch.no_grad(), evaluating(model.net):
        program = pyro.poutine.condition(model.net, values)
        trace = pyro.poutine.block(pyro.poutine.trace(program).get_trace)(model.example[0])
    return [site for site in trace.nodes if site in starts]


def guide_of(model: ProgramModel, given: Any = None) -> Callable[..., Any]:
    """A guide of such a model.

    Args:
        model: the model.
        given: None: the mean-field guide; a class of Pyro's AutoGuides, which starts at the network's weights; a
            function of a `model`; or a guide as it is.

    Raises:
        ValueError: something else.
    """
    if given is None:
        return ProgramGuide(model)
    return made_guide(given, model, model.starts)
