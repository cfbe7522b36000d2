"""A network under inference at its present size: its program, the parameters, and the optimiser's memory of them.

A fit has one train state, unless dead units leave it (`pyro_compress.bayes.dead_units`): then the next takes over.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn

from pyro_compress.bayes.assignment import Assignment, assigned
from pyro_compress.bayes.elbo import Objective, build_objective
from pyro_compress.bayes.guides import build_guide, starts_of
from pyro_compress.bayes.layers import bayes_layers, bayesianize, plain_weights
from pyro_compress.bayes.model import Likelihood, Model
from pyro_compress.bayes.natural import Natural
from pyro_compress.bayes.shards import Shards
from pyro_compress.bayes.step import State, Trained, trained_parameters
from pyro_compress.bayes.tensors import across, drawable, with_tensors
from pyro_compress.graph.ir import first_weights
from pyro_compress.networks.fitted import frozen_of
from pyro_compress.settings import FitConfig
from pyro_compress.types import Graph, Removal


@dataclass(frozen=True)
class TrainState:
    """What inference works on.

    Attributes:
        graph: the network.
        mean_net: the same as a plain module, which takes the posterior mean to be evaluated.
        objective: what is minimised.
        trained: its parameters.
        state: their values and moments.
        removals: units that left before.
    """

    graph: Graph
    mean_net: nn.Module
    objective: Objective
    trained: list[Trained]
    state: State
    removals: tuple[Removal, ...] = ()


class Chosen(NamedTuple):
    """What may get a prior.

    Attributes:
        layers: names of the weights of layers (`plain_weights`).
        tensors: names of other tensors (`drawable`).
        across: those of them that have a row for every input, `(in, out)`.
        frozen: names of those that are frozen (`requires_grad=False`) and so get none.
    """

    layers: Collection[str]
    tensors: Collection[str] = ()
    across: Collection[str] = ()
    frozen: Collection[str] = ()


def chosen(net: nn.Module, graph: Graph) -> Chosen:
    """Everything in a network that can have a prior and is not frozen."""
    plain, frozen = plain_weights(net, graph), frozen_of(net)
    tensors = drawable(net, graph, plain)
    layers, others = ([name for name in names if name not in frozen] for names in (plain, tensors))
    return Chosen(layers, others, across(graph), [name for name in [*plain, *tensors] if name in frozen])


def frozen_sentence(among: Chosen) -> str:
    """Which layers keep their values and have no prior; empty if none."""
    paths = [name.rpartition(".")[0] or name for name in among.frozen]
    more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    return f"frozen (requires_grad=False), so without a prior: {', '.join(paths[:8])}{more}" if paths else ""


def check_free(among: Chosen) -> None:
    """Refuse a network all of whose weights are frozen.

    Raises:
        ValueError: as said.
    """
    if among.frozen and not among.layers and not among.tensors:
        raise ValueError(
            f"{frozen_sentence(among)}; no other weight could have one: unfreeze some, or fit with prior 'none'"
        )


def bayesian(net: nn.Module, config: FitConfig, among: Chosen) -> nn.Module:
    """A network with the priors of a resolved configuration, on what it does not keep.

    Raises:
        ValueError: what `bayesianize` refuses.
    """
    priors = assigned(config)
    grouping = config.grouping or priors.groupings[0]
    chosen = [name for name in among.layers if priors.of(name)]
    biases = None if config.bias_prior == "none" else priors
    tensors = [name for name in among.tensors if priors.of(name)]
    layered = bayesianize(net, priors, grouping, biases, config.keep, chosen, bool(tensors))
    turned = [name for name in tensors if name in among.across]
    return with_tensors(layered, priors, grouping, tensors, config.keep, turned)


def check_assigned(config: FitConfig, among: Chosen) -> None:
    """Refuse patterns of priors that leave out a tensor, or that no tensor has.

    Raises:
        ValueError: as said.
    """
    names = [*among.layers, *among.tensors]
    assigned(config).check(n for n in names if not any(fnmatchcase(n.rpartition(".")[0], k) for k in config.keep))


def first_train_state(
    net: nn.Module, graph: Graph, likelihood: Likelihood, example: tuple[Tensor, Tensor], config: FitConfig,
    among: Chosen | None = None, shards: Shards | None = None,
) -> TrainState:  # fmt: skip
    """The program of a plain network, its posterior around the network's weights.

    Args:
        net: on the device; it becomes the train state's `mean_net`.
        graph: the same as data.
        likelihood: the observed end of the program; the train state takes it over.
        example: a small minibatch, on the device.
        config: resolved.
        among: what may get a prior; None: all that can (`chosen`).
        shards: the processes that its weights are split among; None: this one holds all.
    """
    among = chosen(net, graph) if among is None else among
    bayes_net = bayesian(net, config, among)
    if shards:
        split_layers(bayes_net, shards)
    model = Model(bayes_net, likelihood).to(config.device)
    weights: dict[str, Tensor] = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    priors = assigned(config)
    starts = starts_of(bayes_net, weights, config.init_scale, priors)
    bounds = {name: bound for name in first_weights(graph) if (bound := _bound(config, priors, name))}
    guide = build_guide(config.guide, model, starts, bounds, example)
    assert config.estimator
    assert config.lr
    assert config.lr_scale
    assert config.lr_group
    objective = build_objective(model, guide, config.estimator, config.samples, config.precision, shards)
    rates = (config.lr, config.lr_scale, config.lr_group)
    trained = trained_parameters(objective, *rates, priors, _natural(config, objective.size))
    return TrainState(graph, net, objective, trained, State.of(objective, trained))


def split_layers(net: nn.Module, shards: Shards) -> None:
    """Let every process hold its rows of each weight with a prior that is worth it.

    Raises:
        ValueError: scales, or groups that are judged together, lie across rows.
    """
    for layer in bayes_layers(net):
        rows, shape = shards.rows(layer.shape.weight), layer.shape
        if rows is None:
            continue
        if shape.grouping == "weight" and layer.prior.factors:
            raise ValueError(f"--shard: {shape.name} has a scale for every weight; take --grouping input or output")
        if shape.grouping == "input" and layer.prior.shared_spread:
            raise ValueError(f"--shard splits rows, and groups of {shape.name} are columns: take --grouping output")
        layer.rows = rows


def _natural(config: FitConfig, size: int) -> Natural | None:
    """Rates of natural gradients with so many examples, where these are asked for."""
    if config.optimizer != "natural":
        return None
    assert config.natural_lr
    assert config.natural_beta2 is not None
    return Natural(config.natural_lr, config.natural_beta1, config.natural_beta2, size)


def _bound(config: FitConfig, priors: Assignment, name: str) -> float:
    """Upper bound on a tensor's raw standard deviations; 0: there is none."""
    if config.max_scale is not None:
        return config.max_scale
    own = priors.of(name)
    return own.max_scale if own else 0.0
