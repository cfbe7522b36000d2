"""Schedules, optimizers and plain training of point weights, shared by all methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pyro_compress.graph.convolution import convolving
from pyro_compress.graph.ir import first_weights
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.training.history import Diverged
from pyro_compress.training.minibatches import Minibatches
from pyro_compress.types import Graph

LOOK_EVERY = 200
"""Steps between two looks at the loss: reading it back makes a CUDA device wait."""


def decay(progress: float) -> float:
    """Learning-rate factor: constant over the first half of training, then linear to 0."""
    return min(1.0, 2 * (1 - progress))


def constant(progress: float) -> float:
    """Learning-rate factor 1 throughout."""
    return 1.0


RISE = 0.3
"""Share of training over which `one_cycle` rises, as its authors do."""


def one_cycle(progress: float) -> float:
    """Learning-rate factor of Smith & Topin 2018: up from 1/25 to 1, then down to 0, both along half a cosine."""
    if progress < RISE:
        return 0.04 + 0.48 * (1 - math.cos(math.pi * progress / RISE))
    return 0.5 * (1 + math.cos(math.pi * (progress - RISE) / (1 - RISE)))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "late-decay": decay,
    "constant": constant,
    "one-cycle": one_cycle,
}
"""Share of training that is done -> factor on every learning rate."""


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's base rate (its rate when first seen) by a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def products(precision: str, x: Tensor) -> AbstractContextManager[object]:
    """What a forward pass over `x` runs in, to have the matrix products of a step in `bfloat16`; else in `float32`."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def dropped_inputs(net: nn.Module, graph: Graph, rate: float, input_rate: float | None = None) -> Iterator[None]:
    """Dropout before every layer with weights (Srivastava et al. 2014), while in training mode.

    Args:
        net: the network.
        graph: what was captured of it: tells which layers read the input.
        rate: before every layer but these, and before them too unless `input_rate` is given.
        input_rate: before the layers that read the input; None: `rate`.
    """
    first = () if input_rate is None else first_weights(graph)
    modules = dict(net.named_modules(remove_duplicate=False))
    hooks = []
    for name in [node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)]:
        layer = modules.get(name.rpartition(".")[0])
        p = input_rate if name in first else rate
        if p and isinstance(layer, nn.Linear | _ConvNd):
            hooks.append(layer.register_forward_pre_hook(lambda m, args, p=p: F.dropout(args[0], p, m.training)))
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
        weight_decay: with `sgd` the weight of ½‖w‖² in the loss; with `adam` decoupled (Loshchilov & Hutter 2019).
        precision: `float32`, or `bfloat16` for the matrix products (torch's autocast).
        loss: (outputs, y) -> what is minimised.
        cooldown: gives a further factor on the learning rate of the step to come.
    """

    epochs: int
    lr: float
    optimizer: str = "adam"
    momentum: float = 0.9
    schedule: str = "late-decay"
    weight_decay: float = 0.0
    precision: str = "float32"
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    cooldown: Callable[[], float] = lambda: 1.0


def _adam(parameters: Iterable[nn.Parameter], plan: PointPlan) -> torch.optim.Optimizer:
    if plan.weight_decay:
        return torch.optim.AdamW(parameters, plan.lr, weight_decay=plan.weight_decay, fused=True)
    return torch.optim.Adam(parameters, plan.lr, fused=True)


def _sgd(parameters: Iterable[nn.Parameter], plan: PointPlan) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, plan.lr, plan.momentum, weight_decay=plan.weight_decay, fused=True)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], PointPlan], torch.optim.Optimizer]] = {
    "adam": _adam,
    "sgd": _sgd,
}
"""Name -> (parameters, plan) -> optimizer."""

AfterStep = Callable[[int, torch.optim.Optimizer], object]
"""Called with (steps done, optimizer) after every step; where it returns True, the epoch ends there."""


def no_change(done: int) -> AfterStep:
    """What happens after each step once `done` of them lie behind: nothing."""
    return lambda step, optimizer: None


@dataclass(frozen=True)
class PointState:
    """Where training of point weights goes on: steps done, epochs finished, the optimizer's tensors."""

    step: int
    epochs: int
    optimizer: Mapping[str, Tensor]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer: `INDEX/KEY` -> tensor, parameters counted in their order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{index}/{key}": value
        for index, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


MEMORIES = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}, set[str]())
"""What Adam and SGD keep of a parameter; SGD without momentum keeps nothing."""
SURGERY = {"dense", "mask", "threshold"}
"""What `surgery` keeps of a weight tensor beside it."""
NUMBERS = {"step", "threshold"}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = dict[str, set[str]]()
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        keys.setdefault(index, set()).add(key)
        parameter = parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None
        if parameter is None or tensor.shape != (() if key in NUMBERS else parameter.shape):
            raise ValueError(f"the checkpoint's {name} of shape {tuple(tensor.shape)} is none of this optimizer's")
        optimizer.state[parameter][key] = tensor if key in NUMBERS else tensor.to(parameter.device)
    if wrong := [found for found in keys.values() if found - SURGERY not in MEMORIES or 0 < len(found & SURGERY) < 3]:
        raise ValueError(f"the checkpoint's optimizer remembers {', '.join(sorted(wrong[0]))}; start anew with --force")


def _failed(loss: Tensor, step: int) -> Diverged:
    return Diverged(f"loss is {float(loss.detach()):g} after step {step:,}: try a smaller learning rate")


def train_point(
    net: nn.Module,
    minibatches: Minibatches,
    plan: PointPlan,
    after_epoch: Callable[[int, int], bool] = lambda epoch, step: True,
    after_step: AfterStep = lambda step, optimizer: None,
    start: PointState | None = None,
    failed: Callable[[Tensor, int], Diverged] = _failed,
) -> None:
    """Minimise the plan's loss, in place.

    Args:
        net: the network.
        minibatches: what hands them out.
        plan: epochs, optimizer, rates.
        after_epoch: called with (epoch, step), network in evaluation mode; training ends early where it returns False.
        after_step: may change the weights; pruning while training does.
        start: where to go on, network and minibatches being there already; None: at the beginning.
        failed: (loss, step) -> the error to raise where the loss is not finite.

    Raises:
        Diverged: the loss is not finite.
    """
    optimizer, schedule = OPTIMIZERS[plan.optimizer](net.parameters(), plan), SCHEDULES[plan.schedule]
    start = start or PointState(0, 0, {})
    _restore_optimizer(optimizer, start.optimizer)
    total, step, by_product = plan.epochs * minibatches.batches, start.step, convolving(net)
    for epoch in range(start.epochs + 1, plan.epochs + 1):
        net.train()
        loss = torch.zeros(())
        for _, x, y in minibatches.epoch():
            set_rates(optimizer, schedule(step / total) * plan.cooldown())
            optimizer.zero_grad()
            with products(plan.precision, x), by_product:
                outputs = net(x)
            loss = plan.loss(outputs.float() if outputs.dtype is torch.bfloat16 else outputs, y)
            loss.backward()
            loss = loss.detach()
            minibatches.combine([*(p.grad for p in net.parameters() if p.grad is not None), loss])
            optimizer.step()
            step += 1
            if step % LOOK_EVERY == 0 and not torch.isfinite(loss):
                raise failed(loss, step)
            if after_step(step, optimizer) is True:
                break
        if not torch.isfinite(loss):
            raise failed(loss, step)
        net.eval()
        if not after_epoch(epoch, step):
            return
