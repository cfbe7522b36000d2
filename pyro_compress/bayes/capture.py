"""One SVI step as one graph: the Pyro program, its gradient and the optimiser's algebra, traced once, then compiled.

Nothing about a prior is written twice: what is traced is the real program. What changes between steps (minibatch, KL
weight, rates, Adam's corrections, noise) are the graph's inputs; parameters and moments are updated in place. On
a CPU inductor compiles the graph; on CUDA the compiled graph is recorded as a CUDA graph and replayed, without asking
the device for anything. A minibatch of another size (the last of an epoch) runs through an uncompiled graph of its own.

Where several processes share a minibatch the graph is cut in two, the gradient and the optimiser's algebra, and the
gradients are added up in between: that call stays outside, as processes may trace and compile at different steps (their
last minibatches differ in size) and one may have to do without the compiler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from pyro_compress.bayes.compiler import compiled as through_inductor
from pyro_compress.bayes.compiler import traced
from pyro_compress.bayes.elbo import Objective
from pyro_compress.bayes.natural import Natural
from pyro_compress.bayes.noise import Fill, fast_fill, lift_noise
from pyro_compress.bayes.step import (
    BETA1,
    BETA2,
    EPSILON,
    Rule,
    State,
    Step,
    Trained,
    move_naturally,
    natural_of,
    standing,
)

log = logging.getLogger(__name__)

MAX_NODES = 20_000
"""Larger graphs are not compiled: inductor's time grows faster than they do."""


Scalars = tuple[Tensor, ...]
"""KL weight; Adam's step size (learning rates' factor, times √(1-β₂ᵗ) / (1-β₁ᵗ)) and ε √(1-β₂ᵗ); with natural gradients
their two rates."""


Call = Callable[..., Tensor]
Evaluated = Callable[[Tensor, Tensor, Scalars, Call], tuple[Tensor, Tensor]]
"""(x, y, scalars, the ELBO with the parameters of the step) -> loss and expected log-likelihood."""


def new_scalars(trained: Sequence[Trained], device: torch.device) -> Scalars:
    """The scalars of a graph for these parameters, to be set before every step."""
    return tuple(torch.zeros((), device=device) for _ in range(5 if natural_of(trained) else 3))


def set_scalars(scalars: Scalars, count: int, kl_weight: float, factor: float, natural: Natural | None = None) -> None:
    """Set the graph's scalars for step `count` (from 1)."""
    correction = (1 - BETA2**count) ** 0.5
    values = [kl_weight, factor * correction / (1 - BETA1**count), EPSILON * correction]
    values += natural.rates(count, factor) if natural else []
    for scalar, value in zip(scalars, values, strict=True):
        scalar.fill_(value)


def capture_graph(
    objective: Objective, trained: list[Trained], rule: Rule, state: State, scalars: Scalars, x: Tensor, y: Tensor
) -> torch.fx.GraphModule:
    """Trace one step into a graph that updates the state in place; its inputs: those of `capture_step`."""
    return capture_step(
        objective, trained, rule, state, scalars, (x, y),
        lambda x, y, scalars, call: objective(x, y, scalars[0], call),
        lambda gradients: _clipped(gradients, rule.clip_norm),
    )  # fmt: skip


def capture_step(
    objective: Objective, trained: list[Trained], rule: Rule, state: State, scalars: Scalars,
    data: tuple[Tensor, Tensor], evaluated: Evaluated, finished: Callable[[list[Tensor]], list[Tensor]],
) -> torch.fx.GraphModule:  # fmt: skip
    """Trace one step into a graph that updates the state in place.

    Its inputs: (parameters, first, second, buffers, noted, scalars, x, y, normal, coin), the last two still unused
    (`pyro_compress.bayes.noise.lift_noise`).

    Args:
        objective: what to minimise.
        trained: its parameters.
        rule: how a minibatch becomes a gradient.
        state: what the step updates.
        scalars: those of `new_scalars`, and whatever else `evaluated` reads behind them.
        data: (x, y) of a minibatch.
        evaluated: the loss and the expected log-likelihood of a part of it.
        finished: makes the gradients of this process those of the step.
    """
    names = [*(t.name for t in trained), *standing(objective)]
    own = len(new_scalars(trained, data[0].device))

    def step(
        values: list[Tensor], first: list[Tensor], second: list[Tensor], buffers: list[Tensor], noted: Tensor,
        scalars: Scalars, x: Tensor, y: Tensor, normal: Tensor, coin: Tensor,
    ) -> tuple[()]:  # fmt: skip
        leaves = [value.detach().requires_grad_() for value in values]
        call = call_of(objective.elbo, dict(zip(names, [*leaves, *buffers], strict=True)))
        found, log_likelihood = gradients_of(lambda x, y: evaluated(x, y, scalars, call), rule, leaves, x, y)
        noted.copy_(log_likelihood)
        update_(trained, values, first, second, finished(found), scalars[:own])
        return ()

    unused = torch.zeros(1, device=data[0].device)
    moving = (state.parameters, state.first, state.second, state.buffers, state.noted)
    return traced(step, (*moving, scalars, *data, unused, unused.clone()))


def capture_gradient(
    objective: Objective, rule: Rule, state: State, scalars: Scalars, flat: Tensor, x: Tensor, y: Tensor
) -> torch.fx.GraphModule:
    """Trace the first part of a step that several processes share: it writes its gradient to `flat`.

    Its inputs: (parameters, flat, buffers, noted, scalars, x, y, normal, coin), as in `capture_graph`.
    """
    moved = [name for name, one in objective.elbo.named_parameters() if one.requires_grad]
    names = [*moved, *standing(objective)]

    def gradient(
        values: list[Tensor], flat: Tensor, buffers: list[Tensor], noted: Tensor, scalars: Scalars,
        x: Tensor, y: Tensor, normal: Tensor, coin: Tensor,
    ) -> tuple[()]:  # fmt: skip
        leaves = [value.detach().requires_grad_() for value in values]
        call = call_of(objective.elbo, dict(zip(names, [*leaves, *buffers], strict=True)))
        found, log_likelihood = gradients_of(lambda x, y: objective(x, y, scalars[0], call), rule, leaves, x, y)
        noted.copy_(log_likelihood)
        flat.copy_(torch.cat([gradient.reshape(-1) for gradient in found]))
        return ()

    unused = torch.zeros(1, device=x.device)
    moving = (state.parameters, flat, state.buffers, state.noted)
    return traced(gradient, (*moving, scalars, x, y, unused, unused.clone()))


def capture_update(
    trained: list[Trained], rule: Rule, state: State, scalars: Scalars, flat: Tensor
) -> torch.fx.GraphModule:
    """Trace the second part: the update. Its inputs: (parameters, first, second, flat gradient, scalars)."""

    def update(
        values: list[Tensor], first: list[Tensor], second: list[Tensor], flat: Tensor, scalars: Scalars
    ) -> tuple[()]:
        parts = flat.split([value.numel() for value in values])
        gradients = [part.view_as(value) for part, value in zip(parts, values, strict=True)]
        update_(trained, values, first, second, _clipped(gradients, rule.clip_norm), scalars)
        return ()

    return traced(update, (state.parameters, state.first, state.second, flat, scalars))


def call_of(elbo: nn.Module, named: dict[str, Tensor]) -> Call:
    """An ELBO module called with these parameters and buffers."""

    def call(*data: Tensor) -> Tensor:
        found: Tensor = functional_call(elbo, named, data)
        return found

    return call


def gradients_of(
    evaluated: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], rule: Rule, leaves: list[Tensor], x: Tensor, y: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Gradient of the loss in the leaves, and the expected log-likelihood, over the parts of a minibatch."""
    total: list[Tensor] = []
    noted = torch.zeros((), device=x.device)
    for part_x, part_y, share in rule.parts(x, y):
        with torch.enable_grad():
            loss, log_likelihood = evaluated(part_x, part_y)
            found = torch.autograd.grad(loss * share if share < 1 else loss, leaves)
        total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
        noted = noted + share * log_likelihood
    return total, noted


def _clipped(gradients: list[Tensor], norm: float) -> list[Tensor]:
    """Gradients scaled down to a norm of all together; 0 for never."""
    if not norm:
        return gradients
    found = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    factor = (norm / (found + 1e-6)).clamp(max=1.0)
    return [gradient * factor for gradient in gradients]


def update_(
    trained: list[Trained], values: list[Tensor], first: list[Tensor], second: list[Tensor], gradients: list[Tensor],
    scalars: Scalars,
) -> None:  # fmt: skip
    """Adam (Kingma & Ba 2015, the reordered form at the end of section 2), or natural gradients, in place."""
    _, step_size, epsilon, *rates = scalars
    if rates:
        move_naturally(trained, values, first, gradients, (rates[0], rates[1]))
    for t, value, m, v, gradient in zip(trained, values, first, second, gradients, strict=True):
        if t.natural:
            continue
        m.lerp_(gradient, 1 - BETA1)
        v.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        value.sub_((t.rate * step_size) * m / (v.sqrt() + epsilon))
        if t.bounds:
            value.clamp_(*t.bounds)


def captured(
    objective: Objective,
    trained: list[Trained],
    rule: Rule,
    state: State,
    example: tuple[Tensor, Tensor],
    compiled: bool = True,
) -> Step:
    """The step as one graph per batch size, compiled for the size of the example.

    Args:
        objective: what to minimise.
        trained: its parameters.
        rule: how a minibatch becomes a gradient.
        state: what the steps start from and update.
        example: (x, y) of a minibatch of the usual size, on the parameters' device.
        compiled: whether to compile at all; if not, the noise is ATen's, in the order of the eager step.

    Raises:
        Exception: whatever tracing or compiling raises.
    """
    device = example[0].device
    scalars, natural = new_scalars(trained, device), natural_of(trained)
    runs: dict[int, Callable[[Tensor, Tensor], None]] = {}
    size = sum(value.numel() for value in state.parameters) if rule.combine else 0
    flat = torch.zeros(size, device=device)
    update = _updating(trained, rule, state, scalars, flat, compiled) if rule.combine else lambda: None

    def build(x: Tensor, y: Tensor, compiled: bool) -> Callable[[Tensor, Tensor], None]:
        inputs: tuple[Any, ...] = (state.parameters, state.first, state.second, state.buffers, state.noted, scalars)
        if rule.combine:
            graph = capture_gradient(objective, rule, state, scalars, flat, x, y)
            inputs = (state.parameters, flat, state.buffers, state.noted, scalars)
        else:
            graph = capture_graph(objective, trained, rule, state, scalars, x, y)
        noise = lift_noise(graph, device)
        if compiled and len(graph.graph.nodes) > MAX_NODES:
            raise RuntimeError(f"its graph has {len(graph.graph.nodes)} operations, more than {MAX_NODES}")
        fill = fast_fill(noise) if compiled and device.type == "cpu" else noise.fill_reference
        function: Callable[..., Any] = graph
        if compiled:
            function = through_inductor(graph, (*inputs, x, y, noise.normal, noise.coin))
            inputs = tuple(tree_leaves(inputs))
        run = lambda x, y: function(*inputs, x, y, noise.normal, noise.coin)  # noqa: E731
        return _recorded(run, fill, state, x, y) if compiled and device.type == "cuda" else _filled(run, fill)

    def step(x: Tensor, y: Tensor, kl_weight: float, factor: float) -> Tensor:
        state.count += 1
        set_scalars(scalars, state.count, kl_weight, factor, natural)
        if len(y) not in runs:
            runs[len(y)] = build(x, y, compiled=False)
        with torch.no_grad():
            runs[len(y)](x, y)
            if rule.combine:
                rule.combine([flat])
            update()
        return state.noted

    runs[len(example[1])] = build(*example, compiled=compiled)
    return step


def _updating(
    trained: list[Trained], rule: Rule, state: State, scalars: Scalars, flat: Tensor, compiled: bool
) -> Callable[[], None]:
    graph = capture_update(trained, rule, state, scalars, flat)
    inputs = (state.parameters, state.first, state.second, flat, scalars)
    if not compiled:
        return lambda: graph(*inputs)
    function, tensors = through_inductor(graph, inputs), tree_leaves(inputs)
    return lambda: function(*tensors)


def _filled(run: Callable[[Tensor, Tensor], Any], fill: Fill) -> Callable[[Tensor, Tensor], None]:
    def step(x: Tensor, y: Tensor) -> None:
        fill()
        run(x, y)

    return step


def _recorded(
    run: Callable[[Tensor, Tensor], Any], fill: Fill, state: State, x: Tensor, y: Tensor
) -> Callable[[Tensor, Tensor], None]:
    """As a CUDA graph; where the device or its driver cannot record one, the compiled step is called each time."""
    try:
        return _replayed(run, fill, state, x, y)
    except Exception as error:  # of the driver, of a library that records nothing, of memory
        reason = str(error).strip().split("\n")[0]
        log.warning(
            "the step could not be recorded as a CUDA graph and runs without: %s: %s", type(error).__name__, reason
        )
        return _filled(run, fill)


def _replayed(
    run: Callable[[Tensor, Tensor], Any], fill: Fill, state: State, x: Tensor, y: Tensor
) -> Callable[[Tensor, Tensor], None]:
    """Record noise and step as one CUDA graph over static inputs, and replay it."""
    static_x, static_y = x.clone(), y.clone()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with state.kept():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(3):  # as torch asks before recording: the allocator and the libraries warm up
                fill()
                run(static_x, static_y)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph), torch.no_grad():
            fill()
            run(static_x, static_y)

    def step(x: Tensor, y: Tensor) -> None:
        static_x.copy_(x)
        static_y.copy_(y)
        graph.replay()

    return step
