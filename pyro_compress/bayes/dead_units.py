"""Units that the posterior has given up leave the running fit, with their posterior and Adam's memory of them.

A unit is dead if every weight that makes it, or every weight that reads it, scores below its criterion's threshold
(`compression.prune.THRESHOLDS`: log alpha > 3 under the log-uniform prior). What it emits is then a constant, which
goes into the next biases, and the smaller network computes what the masked one does; dead weights of living units stay
in the fit. The KL of what left is out of the ELBO from then on; the history marks the epoch.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pyro_compress.bayes.assignment import assigned
from pyro_compress.bayes.extract import mean_tensors, moments
from pyro_compress.bayes.layers import BayesLayer, bayes_layers
from pyro_compress.bayes.model import Likelihood
from pyro_compress.bayes.train_state import Chosen, TrainState, first_train_state
from pyro_compress.compression.prune import kept
from pyro_compress.compression.shrink import Shrunk, trace_shrink
from pyro_compress.foreign import of_type, record
from pyro_compress.graph.ir import graph_of, widths
from pyro_compress.graph.network import tensors_of
from pyro_compress.networks.fitted import frozen_of
from pyro_compress.networks.layered import Layered, momenta
from pyro_compress.settings import FitConfig
from pyro_compress.types import Graph, Removal

LEAST_SHARE = 0.2
"""Fewer values than this share of the network are not worth the compiler's half minute."""


def refuse_dropout(net: nn.Module) -> None:
    """Refuse a network that the smaller one could not be trained like.

    Raises:
        ValueError: it has dropout, which is no operation of a graph.
    """
    dropping = [path for path, module in net.named_modules() if isinstance(module, _DropoutNd) and module.p]
    if dropping:
        raise ValueError(f"shrink_every rebuilds the network from its operations, without dropout ({dropping[0]})")


def without_dead_units(
    train_state: TrainState, example: tuple[Tensor, Tensor], config: FitConfig, epoch: int
) -> TrainState | None:
    """The train state of the smaller network, or None where too little would go.

    Args:
        train_state: stays as it is.
        example: a small minibatch, on the device.
        config: resolved.
        epoch: at whose end this happens.
    """
    masked = masked_tensors(train_state, config)
    small = trace_shrink(train_state.graph, masked)
    before, after = (sum(tensor.numel() for tensor in part.values()) for part in (masked, small.tensors))
    if before - after < LEAST_SHARE * before:
        return None
    net = _layered(small.graph, small.tensors, train_state).to(config.device)
    new = first_train_state(net, small.graph, _likelihood(train_state), example, config, _with_prior(train_state))
    carry(train_state, new, small, masked)
    removal = Removal(epoch, widths_of(train_state), widths_of(new), before, after)
    return replace(new, removals=(*train_state.removals, removal))


def _layered(graph: Graph, tensors: dict[str, Tensor], train_state: TrainState) -> Layered:
    """The network of a graph; frozen is what was so before, and a bias that folding gave to a layer that was."""
    net, before = Layered(graph, tensors, momenta(train_state.mean_net)), train_state.mean_net
    known, frozen = {name for name, _ in before.named_parameters(remove_duplicate=False)}, frozen_of(before)
    for name, parameter in net.named_parameters():
        like = name if name in known else f"{name.rpartition('.')[0]}.weight"
        parameter.requires_grad_(like not in frozen)
    return net


def _likelihood(train_state: TrainState) -> Likelihood:
    return copy.deepcopy(train_state.objective.elbo.model.likelihood)


def _with_prior(train_state: TrainState) -> Chosen:
    """What has a prior: those of the smaller network that are among it keep it."""
    layers = train_state.objective.layers
    own = [layer.shape.name for layer in layers if isinstance(layer, BayesLayer)]
    return Chosen(own, [layer.shape.name for layer in layers if not isinstance(layer, BayesLayer)])


def masked_tensors(train_state: TrainState, config: FitConfig) -> dict[str, Tensor]:
    """Posterior mean of every tensor of the graph, on the CPU; a weight that scores below the threshold is zero."""
    model, guide = train_state.objective.elbo.model, train_state.objective.elbo.guide
    layers = {layer.shape.name: moments(layer.shape, layer.prior, guide) for layer in bayes_layers(model.net)}
    masks = kept(layers, assigned(config).criterion)
    tensors = _means(train_state)
    return tensors | {name: torch.where(mask, tensors[name], 0.0) for name, mask in masks.items()}


def widths_of(train_state: TrainState) -> list[int]:
    """Widths of a train state's network from input to output."""
    return widths(train_state.graph, _means(train_state))


def _means(train_state: TrainState) -> dict[str, Tensor]:
    net = train_state.objective.elbo.model.net
    tensors = tensors_of(net) | mean_tensors(net, train_state.objective.elbo.guide)
    used = dict.fromkeys(name for node in train_state.graph.nodes for name in node.parameters.values())
    return {name: tensors[name].detach().cpu().clone() for name in used}


@torch.no_grad()
def carry(old: TrainState, new: TrainState, small: Shrunk, masked: dict[str, Tensor]) -> None:
    """Give the new train state what the old one knows of the units that stay.

    Args:
        old: the larger network.
        new: the smaller one; its deterministic tensors are those of `small` already, constants folded in.
        small: which rows and columns are left.
        masked: tensors of the larger network that `small` was made from.
    """
    places = {t.name: index for index, t in enumerate(old.trained)}
    for index, t in enumerate(new.trained):
        if t.name not in places:
            continue  # a bias that folding made
        name, place = _tensor_of(t.name), places[t.name]
        for source, target in ((old.state.first, new.state.first), (old.state.second, new.state.second)):
            target[index].copy_(_cut(source[place], small, name))
        if t.name.startswith("guide."):
            new.state.parameters[index].copy_(_cut(old.state.parameters[place], small, name))
        if t.name.startswith("guide.loc.") and t.name.endswith("/raw"):
            # a constant that enters by a channel that has to stay is in the bias now
            folded = (small.tensors[name] == 0) & (_cut(masked[name], small, name) != 0)
            new.state.parameters[index].masked_fill_(folded.to(t.parameter.device), 0.0)
    buffers = dict(old.objective.elbo.named_buffers())
    for full_name, buffer in new.objective.elbo.named_buffers():
        if _tensor_of(full_name) not in small.rows and full_name in buffers:
            buffer.copy_(buffers[full_name])  # batch norm's count of batches, of which the graph knows nothing
    new.state.count = old.state.count


def _tensor_of(parameter: str) -> str:
    """Tensor of the network that a parameter of model or guide belongs to."""
    side, _, rest = parameter.partition(".")
    if side == "model":
        return rest.removeprefix("net.")
    return rest.partition(".")[2].replace("/", ".").rpartition(".")[0]


def _cut(tensor: Tensor, small: Shrunk, name: str) -> Tensor:
    """What is left of a tensor, or of anything that lies along its axes; an axis of one entry stays."""
    for axis, kept_entries in enumerate((small.rows, small.columns)):
        if name in kept_entries and tensor.dim() > axis and tensor.shape[axis] > 1:
            tensor = tensor.index_select(axis, kept_entries[name].to(tensor.device))
    return tensor


# --- in a checkpoint


def stored_network(train_state: TrainState) -> dict[str, Any]:
    """What a checkpoint must say of a network that got smaller, as JSON takes it."""
    if not train_state.removals:
        return {}
    shapes = {name: list(tensor.shape) for name, tensor in train_state.mean_net.state_dict().items()}
    removals = [asdict(removal) for removal in train_state.removals]
    return {"network": {"graph": train_state.graph.to_dict(), "shapes": shapes, "removals": removals}}


def with_stored_network(
    numbers: dict[str, Any], train_state: TrainState, example: tuple[Tensor, Tensor], config: FitConfig
) -> TrainState:
    """The train state that a checkpoint was taken in, its state still to be restored.

    Args:
        numbers: of the checkpoint.
        train_state: the first one of the fit.
        example: a small minibatch, on the device.
        config: resolved.
    """
    if "network" not in numbers:
        return train_state
    network, most = numbers["network"], sum(tensor.numel() for tensor in train_state.mean_net.state_dict().values())
    if sum(map(math.prod, of_type(network["shapes"], dict[str, list[int]], "shapes").values())) > most:
        raise ValueError("its network is larger than the one that the fit began with")
    zeros = {name: torch.zeros(shape) for name, shape in network["shapes"].items()}
    graph = graph_of(network["graph"])
    net = _layered(graph, zeros, train_state).to(config.device)
    removals = tuple(record(Removal, removal, "removals") for removal in network["removals"])
    return replace(
        first_train_state(net, graph, _likelihood(train_state), example, config, _with_prior(train_state)),
        removals=removals,
    )
