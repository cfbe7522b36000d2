"""Deterministic baselines: plain training, dropout, pruning while training, as posteriors without spread."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from pyro_compress.doubts import doubt
from pyro_compress.graph.ir import convolves, multiplied
from pyro_compress.graph.network import tensors_of
from pyro_compress.metrics import residual_noise
from pyro_compress.networks.fitted import check_trainable, with_graph
from pyro_compress.networks.outputs import doubtful_end
from pyro_compress.provenance import Provenance
from pyro_compress.settings import FitConfig
from pyro_compress.training.checkpoint import Checkpointer
from pyro_compress.training.history import Epoch, OnEpoch, OnStep
from pyro_compress.training.point import PointPlan, dropped_inputs
from pyro_compress.training.progress import Progress
from pyro_compress.training.sparse import Task, pruned_while_training
from pyro_compress.types import Graph, LayerPosterior, Posterior, Splits

log = logging.getLogger(__name__)


def fit_baseline(
    net: nn.Module,
    splits: Splits,
    config: FitConfig,
    on_epoch: OnEpoch = lambda epoch: None,
    checkpointer: Checkpointer | None = None,
    on_step: OnStep | None = None,
) -> tuple[Posterior, tuple[Epoch, ...]]:
    """Train point weights, with dropout or pruned while training if asked for.

    Args:
        net: a plain network; it is copied, not changed.
        splits: trained on `train`; `validation` is watched.
        config: a resolved configuration with prior `none`.
        on_epoch: called after every epoch; where it returns True, training ends there.
        checkpointer: writes checkpoints; training goes on from its latest, where it has one.
        on_step: called after every step; it ends training likewise.

    Raises:
        ValueError: a network that cannot be captured or has no layer with weights.
        Diverged: the loss is not finite.
        Interrupted: a signal came, and a checkpoint was written.
    """
    config = config.on(splits.origin, splits.task)
    net, graph = with_graph(net, splits)
    check_trainable(net)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    wide = [name for name in multiplied(graph) if name in parameters and parameters[name].dim() > 1]
    weights = [name for name in wide if parameters[name].requires_grad]
    if config.pruning != "none" and wide and not weights:
        raise ValueError("every weight is frozen (requires_grad=False): unfreeze some, or leave --pruning out")
    net, plan = copy.deepcopy(net).to(config.device), point_plan(config)
    progress = Progress(splits, config, on_epoch, checkpointer or Checkpointer(), on_step, convolves(graph))
    if progress.group.first:
        doubt(log, doubtful_end(graph, splits.task))
    total = plan.epochs * progress.minibatches.batches
    begin = pruned_while_training(config.pruning, Task(net, weights, config.prune_to, total))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        with dropped_inputs(net, graph, config.dropout, config.dropout_input):
            progress.train_point(net, plan, begin)
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors_of(net).items()}
    noise = residual_noise(net.eval(), splits, config.device)
    provenance = Provenance(config.provenance).but(noise=noise)
    return point_posterior(graph, tensors, provenance), tuple(progress.history)


def point_plan(config: FitConfig) -> PointPlan:
    """What a resolved configuration says about training point weights."""
    assert config.epochs
    assert config.lr
    return PointPlan(
        config.epochs, config.lr, config.optimizer, config.momentum, config.lr_schedule, config.weight_decay,
        config.precision,
    )  # fmt: skip


def point_posterior(graph: Graph, tensors: dict[str, Tensor], provenance: Provenance) -> Posterior:
    """A trained network as a posterior with standard deviation 0; its pruning criterion is the magnitude."""
    weights = [name for name in multiplied(graph) if tensors[name].dim() > 1]
    used = {name for node in graph.nodes for name in node.parameters.values()}
    return Posterior(
        graph=graph,
        layers={name: LayerPosterior(tensors[name], torch.zeros_like(tensors[name])) for name in weights},
        dense={name: tensor.float() for name, tensor in tensors.items() if name in used and name not in weights},
        criterion="magnitude",
        provenance=provenance,
    )
