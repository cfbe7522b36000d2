"""Minibatches, the learning-rate schedule and plain training of point weights, shared by all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pyro_compress.augment import Augment
from pyro_compress.streaming import Streamed
from pyro_compress.types import Data, LayerPosterior
from pyro_compress.world import ALONE, World


@dataclass(frozen=True)
class Epoch:
    """One line of the history. ELBO terms are None while point weights are trained.

    Attributes:
        epoch: 1, 2, ...
        epochs: how many are planned.
        phase: `point` (deterministic weights) or `svi`.
        step: optimiser steps so far.
        negative_elbo_nats: of the whole training set, at KL weight 1: KL minus expected log-likelihood.
        expected_log_likelihood_nats: of the training set, averaged over the epoch's steps.
        kl_nats: at the end of the epoch.
        kl_weight: at the end of the epoch.
        validation_accuracy: of the posterior mean; None for regression.
        validation_rmse: of the posterior mean, in the targets' units; None for classification.
        validation_nll_nats: per example, of the posterior mean.
        lr: base learning rate, which a rewind lowers.
        seconds: since the start of the fit.
        widths: of the network from here on, where dead units left it at the end of this epoch: from here on the KL
            counts what is left only.
    """

    epoch: int = 0
    epochs: int = 0
    phase: str = "point"
    step: int = 0
    negative_elbo_nats: float | None = None
    expected_log_likelihood_nats: float | None = None
    kl_nats: float | None = None
    kl_weight: float | None = None
    validation_accuracy: float | None = float("nan")
    validation_rmse: float | None = None
    validation_nll_nats: float = float("nan")
    lr: float | None = None
    seconds: float = 0.0
    widths: list[int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Field name -> value."""
        return asdict(self)


OnEpoch = Callable[[Epoch], None]

OnLayers = Callable[[int, dict[str, LayerPosterior]], None]
"""Called at the end of an epoch with a posterior: the epoch's number, and the moments of every weight."""


class Diverged(ValueError):
    """The loss became NaN or infinite, or a term of it exploded."""


LOOK_EVERY = 200
"""Steps between two looks at the loss: reading it back makes a CUDA device wait."""


def batch_count(examples: int, batch_size: int) -> int:
    """Minibatches per epoch."""
    return max(1, -(-examples // batch_size))


class Feed:
    """Shuffled minibatches, epoch after epoch; it can be put back to any place in one.

    Of several processes each takes every so many-th row of the same minibatches, in the order that the first one draws.
    Process r's loss, a mean over its b_r of the b rows, counts b_r / b in their sum (`combine`). As these shares add up
    to 1, the sum is N/b · Σ log-likelihood − KL over the whole minibatch, whatever b and the number of processes: what
    one process computes, and as unbiased, except that every process draws noise of its own.

    Args:
        data: the examples; a tensor moves to the device once, what stays on disk minibatch by minibatch.
        batch_size: examples per minibatch; the last of an epoch may be smaller.
        generator: shuffles.
        device: of the network.
        augment: changes the images of every minibatch, drawing from `generator`; None: nothing does.
        world: the processes that share the minibatches.

    Raises:
        ValueError: augmentation of what is no image.

    Attributes:
        share: of the running minibatch that is this process's.
        order: permutation of the running epoch; None between epochs.
        position: minibatches of it that were given out.
    """

    def __init__(
        self, data: Data, batch_size: int, generator: torch.Generator, device: str = "cpu",
        augment: Augment | None = None, world: World = ALONE,
    ):  # fmt: skip
        if augment and len(data.x.shape) != 4:
            shape = tuple(data.x.shape[1:])
            raise ValueError(f"augmentation is for images (channels, height, width); one example has shape {shape}")
        x: Any = data.x if isinstance(data.x, Streamed) else data.x.to(device)
        self.data, self.device = Data(x, data.y.to(device)), device
        self.batch_size, self.generator, self.augment = batch_size, generator, augment
        self.world, self.share = world, 1.0
        self.order: Tensor | None = None
        self.position = 0

    @property
    def batches(self) -> int:
        """Minibatches per epoch."""
        return batch_count(len(self.data), self.batch_size)

    def epoch(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(index, x, y) of every minibatch that is left of the running epoch, or of a new one."""
        if self.order is None:
            self.order, self.position = torch.randperm(len(self.data), generator=self.generator), 0
            self.world.broadcast_([self.order])
        left = self.order.split(self.batch_size)[self.position :]
        parts = [self._part(rows) for rows in left]
        for (x, y), (_, share) in zip(self._read([rows for rows, _ in parts]), parts, strict=True):
            self.position, self.share = self.position + 1, share
            yield self.position - 1, self.augment(x, self.generator) if self.augment else x, y
        self.order = None

    @property
    def usual(self) -> int:
        """Rows of a minibatch that this process sees, the last of an epoch aside."""
        return len(self._part(torch.arange(min(self.batch_size, len(self.data))))[0])

    def combine(self, tensors: Sequence[Tensor]) -> None:
        """Replace means over this process's rows (gradients, losses) by those over the running minibatch."""
        self.world.add_(tensors, self.share)

    def _part(self, rows: Tensor) -> tuple[Tensor, float]:
        """This process's rows of a minibatch and their share; without any it works on one that does not count."""
        own = rows[self.world.rank :: self.world.size]
        return (own if len(own) else rows[:1]), len(own) / len(rows)

    def _read(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows of every part, on the device."""
        if isinstance(self.data.x, Streamed):
            for rows, x in zip(parts, self.data.x.batches(parts), strict=True):
                yield x.to(self.device), self.data.y[rows.to(self.device)]
            return
        for part in parts:
            rows = part.to(self.device)
            yield self.data.x[rows], self.data.y[rows]

    def tensors(self) -> dict[str, Tensor]:
        """The generator's state and the order of the running epoch."""
        assert self.order is not None
        return {"generator": self.generator.get_state(), "order": self.order}

    def restore(self, tensors: dict[str, Tensor], position: int) -> None:
        """Go on where `tensors` and `position` were taken."""
        self.generator.set_state(tensors["generator"])
        self.order, self.position = tensors["order"], position


def decay(progress: float) -> float:
    """Learning-rate factor: constant over the first half of training, then linear to 0."""
    return min(1.0, 2 * (1 - progress))


def constant(progress: float) -> float:
    """Learning-rate factor 1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "late-decay": decay,
    "constant": constant,
}
"""Share of training that is done -> factor on every learning rate."""


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's base rate (its rate when first seen) by a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


@contextmanager
def dropped_inputs(net: nn.Module, rate: float, input_rate: float | None = None) -> Iterator[None]:
    """Dropout before every layer with weights (Srivastava et al. 2014), while in training mode.

    Args:
        net: the network.
        rate: before every layer but the first, and before that one too unless `input_rate` is given.
        input_rate: before the first layer; None: `rate`.
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | _ConvNd)]
    rates = [rate if input_rate is None else input_rate, *[rate] * len(layers)]
    hooks = [
        layer.register_forward_pre_hook(lambda m, args, p=p: F.dropout(args[0], p, m.training))
        for layer, p in zip(layers, rates, strict=False)
        if p
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class PointPlan:
    """How point weights are trained.

    Attributes:
        epochs: passes over the data.
        lr: base learning rate.
        optimizer: name in `OPTIMIZERS`.
        momentum: of `sgd`.
        schedule: name in `SCHEDULES`.
        loss: (outputs, y) -> what is minimised.
    """

    epochs: int
    lr: float
    optimizer: str = "adam"
    momentum: float = 0.9
    schedule: str = "late-decay"
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


def _adam(parameters: Iterable[nn.Parameter], plan: PointPlan) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, plan.lr, fused=True)


def _sgd(parameters: Iterable[nn.Parameter], plan: PointPlan) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, plan.lr, plan.momentum, fused=True)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], PointPlan], torch.optim.Optimizer]] = {
    "adam": _adam,
    "sgd": _sgd,
}
"""Name -> (parameters, plan) -> optimizer."""

AfterStep = Callable[[int, torch.optim.Optimizer], None]
"""Called with (steps done, optimizer) after every step."""


@dataclass(frozen=True)
class PointState:
    """Where training of point weights goes on: steps done, epochs finished, the optimizer's tensors."""

    step: int
    epochs: int
    optimizer: dict[str, Tensor]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer: `INDEX/KEY` -> tensor, parameters counted in their order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{index}/{key}": value
        for index, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, key = name.split("/")
        parameter = parameters[int(index)]
        optimizer.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)


def _failed(loss: Tensor, step: int) -> Diverged:
    return Diverged(f"loss is {float(loss.detach()):g} after step {step:,}: try a smaller learning rate")


def train_point(
    net: nn.Module,
    feed: Feed,
    plan: PointPlan,
    after_epoch: Callable[[int, int], bool] = lambda epoch, step: True,
    after_step: AfterStep = lambda step, optimizer: None,
    start: PointState | None = None,
    failed: Callable[[Tensor, int], Diverged] = _failed,
) -> None:
    """Minimise the plan's loss, in place.

    Args:
        net: the network.
        feed: gives the minibatches.
        plan: epochs, optimizer, rates.
        after_epoch: called with (epoch, step), network in evaluation mode; training ends early where it returns False.
        after_step: may change the weights; pruning while training does.
        start: where to go on, network and feed being there already; None: at the beginning.
        failed: (loss, step) -> the error to raise where the loss is not finite.

    Raises:
        Diverged: the loss is not finite.
    """
    optimizer, schedule = OPTIMIZERS[plan.optimizer](net.parameters(), plan), SCHEDULES[plan.schedule]
    start = start or PointState(0, 0, {})
    _restore_optimizer(optimizer, start.optimizer)
    total, step = plan.epochs * feed.batches, start.step
    for epoch in range(start.epochs + 1, plan.epochs + 1):
        net.train()
        loss = torch.zeros(())
        for _, x, y in feed.epoch():
            set_rates(optimizer, schedule(step / total))
            optimizer.zero_grad()
            loss = plan.loss(net(x), y)
            loss.backward()
            loss = loss.detach()
            feed.combine([*(p.grad for p in net.parameters() if p.grad is not None), loss])
            optimizer.step()
            step += 1
            if step % LOOK_EVERY == 0 and not torch.isfinite(loss):
                raise failed(loss, step)
            after_step(step, optimizer)
        if not torch.isfinite(loss):
            raise failed(loss, step)
        net.eval()
        if not after_epoch(epoch, step):
            return
