"""One step of Adam on the objective: eagerly, or as one captured and compiled graph.

`captured` traces the real Pyro program, the gradient and Adam's algebra into one graph (`make_fx`), which inductor
compiles. Nothing about a prior is written twice, and what changes between steps (minibatch, KL weight, rates, step
number) are the graph's inputs. The eager step stays, as the reference and as what is fallen back to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_compress.bayes.elbo import Objective

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Step = Callable[[Tensor, Tensor, float, float, bool], Tensor | None]
"""(x, y, KL weight, factor on all rates, whether to note) -> the expected log-likelihood of the training set in nats,
if it is to be noted: the captured graph does not return it, and evaluating it costs a forward pass."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """One parameter, how fast it moves, and where it must stay.

    Attributes:
        name: its name in the ELBO module.
        parameter: the parameter.
        rate: Adam's base learning rate.
        bounds: (low, high) that it is put back into after every step; None for none.
    """

    name: str
    parameter: nn.Parameter
    rate: float
    bounds: tuple[float, float] | None


def tuned_parameters(objective: Objective, lr: float, lr_scale: float, lr_group: float) -> list[Tuned]:
    """Every parameter of model and guide, each once, with its rate and bounds."""
    guide = objective.elbo.guide
    rates = {id(p): group["lr"] for group in guide.groups(lr, lr_scale, lr_group) for p in group["params"]}
    bounds = {id(p): pair for p, pair in guide.bounds()}
    return [
        Tuned(name, parameter, rates.get(id(parameter), lr), bounds.get(id(parameter)))
        for name, parameter in objective.elbo.named_parameters()
    ]


def eager(objective: Objective, tuned: list[Tuned]) -> Step:
    """The step as Pyro and torch run it."""
    groups = [{"params": [t.parameter], "lr": t.rate} for t in tuned]
    optimizer = torch.optim.Adam(groups, betas=(BETA1, BETA2), eps=EPSILON, fused=True)

    def step(x: Tensor, y: Tensor, kl_weight: float, factor: float, note: bool) -> Tensor:
        for group, t in zip(optimizer.param_groups, tuned, strict=True):
            group["lr"] = t.rate * factor
        optimizer.zero_grad()
        loss, log_likelihood = objective(x, y, kl_weight)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for t in tuned:
                if t.bounds:
                    t.parameter.clamp_(*t.bounds)
        return log_likelihood

    return step


def captured(objective: Objective, tuned: list[Tuned], compiled: bool = True) -> Step:
    """The step as one graph per batch size; the first size seen is compiled, others run uncompiled.

    Raises:
        Exception: whatever capturing raises, at the first step; `with_fallback` turns it into the eager step.
    """
    parameters = [t.parameter.data for t in tuned]
    state = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    device = parameters[0].device
    scalars = [torch.zeros((), device=device) for _ in range(3)]  # step number, KL weight, factor
    graphs: dict[int, Callable[..., Any]] = {}
    count = 0

    def step(x: Tensor, y: Tensor, kl_weight: float, factor: float, note: bool) -> Tensor | None:
        nonlocal count
        count += 1
        for scalar, value in zip(scalars, (count, kl_weight, factor), strict=True):
            scalar.fill_(value)
        inputs = (parameters, *state, list(objective.elbo.buffers()), *scalars, x, y)
        if len(y) not in graphs:
            graph = capture_graph(objective, tuned, inputs)
            options: dict[str, Any] = {"fallback_random": True}  # inductor's own CPU generator is slower than ATen's
            first = compiled and not graphs
            # it warns where a CUDA toolkit is installed without a device
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            graphs[len(y)] = torch.compile(graph, fullgraph=True, options=options) if first else graph
        with torch.no_grad():
            graphs[len(y)](*inputs)
        return _log_likelihood(objective, x, y) if note else None

    return step


@torch.no_grad()
def _log_likelihood(objective: Objective, x: Tensor, y: Tensor) -> Tensor:
    """The log-likelihood for the history, which must change neither the generator nor batch-norm statistics."""
    saved = [buffer.clone() for buffer in objective.elbo.buffers()]
    with torch.random.fork_rng():
        found = objective(x, y, 0.0)[1]
    for buffer, before in zip(objective.elbo.buffers(), saved, strict=True):
        buffer.copy_(before)
    return found


def capture_graph(objective: Objective, tuned: list[Tuned], inputs: tuple[Any, ...]) -> torch.fx.GraphModule:
    """Trace one step into a graph that updates parameters and Adam's state in place.

    Args:
        objective: what to minimise.
        tuned: the parameters, in the order of the graph's first input.
        inputs: (parameters, first moments, second moments, buffers, step number, KL weight, rate factor, x, y).
    """

    def step(
        values: list[Tensor], first: list[Tensor], second: list[Tensor], buffers: list[Tensor],
        count: Tensor, kl_weight: Tensor, factor: Tensor, x: Tensor, y: Tensor,
    ) -> tuple[()]:  # fmt: skip
        leaves = [value.detach().requires_grad_() for value in values]
        named = dict(zip([*(t.name for t in tuned), *buffer_names], [*leaves, *buffers], strict=True))
        with torch.enable_grad():
            loss, _ = objective(x, y, kl_weight, lambda *data: functional_call(objective.elbo, named, data))
            gradients = torch.autograd.grad(loss, leaves)
        correction1, correction2 = 1 - BETA1**count, (1 - BETA2**count).sqrt()
        for t, value, m, v, gradient in zip(tuned, values, first, second, gradients, strict=True):
            m.lerp_(gradient, 1 - BETA1)
            v.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            value.sub_((t.rate * factor / correction1) * m / (v.sqrt() / correction2 + EPSILON))
            if t.bounds:
                value.clamp_(*t.bounds)
        return ()

    buffer_names = [name for name, _ in objective.elbo.named_buffers()]
    updated = [tensor for group in inputs[:4] for tensor in group]
    saved = [tensor.clone() for tensor in updated]
    with torch.random.fork_rng():
        graph = make_fx(step)(*inputs)
    with torch.no_grad():  # tracing ran the step for real: undo it
        for tensor, before in zip(updated, saved, strict=True):
            tensor.copy_(before)
    return graph


def with_fallback(step: Step, fallback: Callable[[], Step]) -> Step:
    """A step that turns into its fallback, with one line that says so, if its first call fails."""
    current = [step]
    proven = [False]

    def run(x: Tensor, y: Tensor, kl_weight: float, factor: float, note: bool) -> Tensor | None:
        if proven[0]:
            return current[0](x, y, kl_weight, factor, note)
        proven[0] = True
        try:
            return current[0](x, y, kl_weight, factor, note)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            log.warning("the step could not be compiled and runs eagerly: %s: %s", type(error).__name__, reason)
            current[0] = fallback()
            return current[0](x, y, kl_weight, factor, note)

    return run
