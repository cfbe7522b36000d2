"""One SVI step of a fit whose weights are split among processes, as one graph with its collectives.

What the step computes is what one process computes with all rows of the minibatch (`pyro_compress.bayes.capture`), up
to rounding: the same weights are drawn, by their places in the draw of the whole; every process works on its rows of
the minibatch with the weights of a layer gathered; gradients of weights are summed at the owners of their rows, those
of everything else everywhere. Each process counts the KL of its own rows, and an even part of the rest.

All processes run the same collectives in the order of the graph, compiled or not: the compiler keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_compress.bayes.capture import (
    MAX_NODES,
    Call,
    Scalars,
    capture_step,
    new_scalars,
    set_scalars,
)
from pyro_compress.bayes.compiler import compiled as through_inductor
from pyro_compress.bayes.draws import Placed
from pyro_compress.bayes.elbo import Objective
from pyro_compress.bayes.guides import MeanField
from pyro_compress.bayes.noise import Fill, Noise, lift_noise, placed_fill
from pyro_compress.bayes.shards import Shards, summed
from pyro_compress.bayes.step import Rule, State, Step, Trained, natural_of
from pyro_compress.settings import FitConfig


@dataclass(frozen=True)
class Part:
    """This process's part of a minibatch.

    Attributes:
        examples: of the whole minibatch.
        share: of them that are this process's.
    """

    examples: int
    share: float


def capture_sharded(
    objective: Objective, trained: list[Trained], rule: Rule, state: State, scalars: Scalars, x: Tensor, y: Tensor,
    examples: int,
) -> torch.fx.GraphModule:  # fmt: skip
    """Trace one step into a graph that updates the state in place.

    Its inputs: those of `capture_step`; the last scalar is this process's share of the minibatch.
    """
    shards, guide = objective.shards, objective.elbo.guide
    assert shards
    assert isinstance(guide, MeanField)

    def evaluated(x: Tensor, y: Tensor, scalars: Scalars, call: Call) -> tuple[Tensor, Tensor]:
        with Placed(guide.split, examples, shards.group.rank, shards.group.size):
            return objective(x, y, scalars[0], call, scalars[-1])

    def finished(gradients: list[Tensor]) -> list[Tensor]:
        return _clipped(_together(gradients, trained, shards), trained, rule.clip_norm, shards)

    return capture_step(objective, trained, rule, state, scalars, (x, y), evaluated, finished)


def _together(gradients: list[Tensor], trained: list[Trained], shards: Shards) -> list[Tensor]:
    """Gradients summed over all processes: of split parameters they are already, within a copy."""
    flat = [gradient.reshape(-1) for gradient, t in zip(gradients, trained, strict=True) if t.rows is None]
    parts = iter(summed(torch.cat(flat), shards.world).split([len(part) for part in flat]) if flat else ())
    return [
        next(parts).view_as(gradient) if t.rows is None
        else summed(gradient, shards.across) if shards.across else gradient
        for gradient, t in zip(gradients, trained, strict=True)
    ]  # fmt: skip


def _clipped(gradients: list[Tensor], trained: list[Trained], norm: float, shards: Shards) -> list[Tensor]:
    """Gradients scaled down to a norm of all together, all rows counted; 0 for never."""
    if not norm:
        return gradients
    squares = {kind: gradients[0].new_zeros(()) for kind in (True, False)}
    for gradient, t in zip(gradients, trained, strict=True):
        squares[t.rows is None] = squares[t.rows is None] + gradient.square().sum()
    found = (squares[True] + summed(squares[False], shards.within)).sqrt()
    factor = (norm / (found + 1e-6)).clamp(max=1.0)
    return [gradient * factor for gradient in gradients]


class _Draws:
    """Fills buffers of draws with the same keys in all processes, and keeps those that other graphs can use too."""

    def __init__(self, shards: Shards):
        self.shards, self.keys = shards, torch.zeros(3, dtype=torch.int32)
        self.known: dict[Any, tuple[Noise, Fill]] = {}

    def new_keys(self) -> None:
        """Draw keys from the first process's default generator."""
        if self.shards.group.first:
            self.keys.random_()
        self.shards.group.broadcast_([self.keys])

    def of(self, noise: Noise, compiled: bool) -> tuple[Noise, Fill]:
        """Buffers with these places, and what fills them."""
        at = (noise.slices, noise.places, noise.sizes)
        if at not in self.known:
            self.known[at] = noise, self._fill(noise, compiled)
        return self.known[at]

    def _fill(self, noise: Noise, compiled: bool) -> Fill:
        if noise.normal.device.type == "cpu":
            return placed_fill(noise, self.new_keys, self.keys, compiled)
        keys = self.keys.to(noise.normal.device)

        def new_keys() -> None:
            self.new_keys()
            keys.copy_(self.keys)

        return placed_fill(noise, new_keys, keys, compiled)


def sharded(
    objective: Objective, trained: list[Trained], rule: Rule, state: State, example: tuple[Tensor, Tensor],
    part: Callable[[], Part], compiled: bool = True,
) -> Step:  # fmt: skip
    """The step as one graph per size of a minibatch, compiled for the size of the example.

    Args:
        objective: what to minimise; its weights are split.
        trained: its parameters.
        rule: how a minibatch becomes a gradient.
        state: what the steps start from and update.
        example: (x, y) of this process's part of a usual minibatch, on the parameters' device.
        part: tells of the minibatch that is about to be stepped on; of the usual one at first.
        compiled: whether to compile at all.

    Raises:
        Exception: whatever tracing or compiling raises.
    """
    assert objective.shards
    device, group = example[0].device, objective.shards.group
    scalars, natural = (*new_scalars(trained, device), torch.zeros((), device=device)), natural_of(trained)
    draws, runs = _Draws(objective.shards), dict[tuple[int, int], Callable[[Tensor, Tensor], None]]()

    def build(x: Tensor, y: Tensor, examples: int, compiled: bool) -> Callable[[Tensor, Tensor], None]:
        graph = capture_sharded(objective, trained, rule, state, scalars, x, y, examples)
        noise, fill = draws.of(lift_noise(graph, device), compiled)
        if compiled and len(graph.graph.nodes) > MAX_NODES:
            raise RuntimeError(f"its graph has {len(graph.graph.nodes)} operations, more than {MAX_NODES}")
        inputs: tuple[Any, ...] = (state.parameters, state.first, state.second, state.buffers, state.noted, scalars)
        function: Callable[..., Any] = graph
        if compiled:
            function = through_inductor(graph, (*inputs, x, y, noise.normal, noise.coin))
            inputs = tuple(tree_leaves(inputs))

        def run(x: Tensor, y: Tensor) -> None:
            fill()
            function(*inputs, x, y, noise.normal, noise.coin)

        return run

    def step(x: Tensor, y: Tensor, kl_weight: float, factor: float) -> Tensor:
        state.count += 1
        now = part()
        set_scalars(scalars[:-1], state.count, kl_weight, factor, natural)
        scalars[-1].fill_(now.share)
        if (len(y), now.examples) not in runs:
            runs[len(y), now.examples] = build(x, y, now.examples, compiled=False)
        with torch.no_grad(), group.together():
            runs[len(y), now.examples](x, y)
        return state.noted

    usual = part().examples
    runs[len(example[1]), usual] = build(*example, usual, compiled=compiled)
    return step


def check_sharded(config: FitConfig, is_watched: bool = False) -> None:
    """Refuse what does not go with split weights.

    Args:
        config: resolved.
        is_watched: whether somebody wants moments of all weights after every epoch.

    Raises:
        ValueError: as said.
    """
    own = [f"--{name} {value}" for name in ("guide", "prior") if ":" in (value := getattr(config, name))]
    wrong = [
        *own,
        *([f"--guide {config.guide}"] if config.guide != "mean-field" and not own else []),
        *(["--shrink-every"] if config.shrink_every else []),
        *([f"--precision {config.precision}"] if config.precision != "float32" else []),
        *(["--accumulate"] if config.accumulate > 1 else []),
        *(["--snapshots and --log"] if is_watched else []),
    ]
    if wrong:
        raise ValueError(
            f"--shard {config.shard} splits this program's priors under the mean-field guide in float32, and keeps all "
            f"units; leave out {', '.join(wrong)}, or --shard"
        )
