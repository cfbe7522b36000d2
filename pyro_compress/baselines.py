"""Deterministic baselines: plain training, dropout, pruning while training, as posteriors without spread."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from pyro_compress.graph import WEIGHTED, capture
from pyro_compress.metrics import evaluate
from pyro_compress.sparse_training import pruned_while_training
from pyro_compress.training import Epoch, OnEpoch, PointPlan, batch_count, dropped_inputs, train_point
from pyro_compress.types import Data, FitConfig, Graph, LayerPosterior, Posterior, Splits


def fit_baseline(
    net: nn.Module, splits: Splits, config: FitConfig, on_epoch: OnEpoch = lambda epoch: None
) -> tuple[Posterior, tuple[Epoch, ...]]:
    """Train point weights, with dropout or pruned while training if asked for.

    Args:
        net: a plain network; it is copied, not changed.
        splits: trained on `train`; `validation` is watched.
        config: a resolved configuration with prior `none`.
        on_epoch: called after every epoch.

    Raises:
        ValueError: a network that cannot be captured or has no layer with weights.
        Diverged: the loss is not finite.
    """
    graph = capture(net, splits.input_shape)
    weights = [node.parameters["weight"] for node in graph.nodes if node.op in WEIGHTED]
    if not weights:
        raise ValueError(f"the network has no layer with weights to prune (supported: {', '.join(WEIGHTED)})")
    net = copy.deepcopy(net).to(config.device)
    data = Data(splits.train.x.to(config.device), splits.train.y.to(config.device))
    started, history = time.perf_counter(), list[Epoch]()

    def note(epoch: int, step: int) -> bool:
        scores = evaluate(net, splits, "validation", config.device)
        seconds = time.perf_counter() - started
        entry = Epoch(
            epoch, config.epochs or 0, "point", step, None, None, None, None, scores.accuracy, scores.nll_nats, seconds
        )
        history.append(entry)
        on_epoch(entry)
        losses = [e.validation_nll_nats for e in history]
        patience = config.patience
        return not patience or len(losses) <= patience or min(losses[-patience:]) < min(losses[:-patience])

    plan = point_plan(config)
    total = plan.epochs * batch_count(len(data), plan.batch_size)
    after_step = pruned_while_training(net, weights, config.pruning, config.prune_to, total)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        generator = torch.Generator().manual_seed(config.seed)
        with dropped_inputs(net, config.dropout, config.dropout_input):
            train_point(net, data, plan, generator, note, after_step)
    tensors = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    return point_posterior(graph, tensors, config.provenance), tuple(history)


def point_plan(config: FitConfig) -> PointPlan:
    """What a resolved configuration says about training point weights."""
    assert config.epochs
    assert config.batch_size
    assert config.lr
    return PointPlan(config.epochs, config.batch_size, config.lr, config.optimizer, config.momentum, config.lr_schedule)


def point_posterior(graph: Graph, tensors: dict[str, Tensor], provenance: dict[str, Any]) -> Posterior:
    """A trained network as a posterior with standard deviation 0; its pruning criterion is the magnitude."""
    weights = [node.parameters["weight"] for node in graph.nodes if node.op in WEIGHTED]
    used = {name for node in graph.nodes for name in node.parameters.values()}
    return Posterior(
        graph=graph,
        layers={name: LayerPosterior(tensors[name], torch.zeros_like(tensors[name])) for name in weights},
        dense={name: tensor for name, tensor in tensors.items() if name in used and name not in weights},
        criterion="magnitude",
        provenance=provenance,
    )
