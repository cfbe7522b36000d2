"""Rows of weights shared out among processes: who holds which, and how they come together for the time they are needed.

A split tensor is stored by rows (of its first dimension), as are its gradient and Adam's moments. A layer gathers the
rows of its drawn weight right before it uses them, forgets the whole, and gathers it once more for its gradient, whose
rows are summed at their owners (SimpleFSDP, Zhang et al. 2024, arXiv 2411.00284). All of that is functional
collectives, operations of a traced graph: no hook, no DTensor.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_compress.process_group import ProcessGroup

log = logging.getLogger(__name__)

SMALLEST = 1 << 10
"""Values of a tensor that is worth splitting."""
Function = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x, weight, bias) -> output."""


@dataclass(frozen=True)
class Rows:
    """The rows of a tensor that one process holds: `each` of them, the last process what is left.

    Attributes:
        whole: shape of the tensor.
        rank: number of this process among those that share it.
        size: how many these are.
        name: what torch calls their group.
        group: all processes of the fit.
    """

    whole: tuple[int, ...]
    rank: int
    size: int
    name: str
    group: ProcessGroup

    @property
    def each(self) -> int:
        """Rows of a process."""
        return -(-self.whole[0] // self.size)

    @property
    def first(self) -> int:
        """The first row of this one."""
        return self.rank * self.each

    @property
    def count(self) -> int:
        """Rows of this one."""
        return min(self.each, self.whole[0] - self.first)

    def of(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor."""
        return whole[self.first : self.first + self.count]

    def gathered(self, own: Tensor) -> Tensor:
        """The whole tensor; all processes call it."""
        even = _padded(own.contiguous(), self.each)
        with self.group.together():
            found = _wait(torch.ops._c10d_functional.all_gather_into_tensor(even, self.size, self.name))
        return found[: self.whole[0]]

    def scattered(self, whole: Tensor) -> Tensor:
        """This process's rows of the sum of everyone's tensors; all processes call it."""
        even = _padded(whole.contiguous(), self.each * self.size)
        return _wait(torch.ops._c10d_functional.reduce_scatter_tensor(even, "sum", self.size, self.name))[: self.count]


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """A tensor with rows of 0 behind its own."""
    more = rows - tensor.shape[0]
    return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])]) if more else tensor


def _wait(tensor: Tensor) -> Tensor:
    found: Tensor = torch.ops._c10d_functional.wait_tensor(tensor)
    return found


def summed(tensor: Tensor, name: str) -> Tensor:
    """The sum of everyone's tensors in a group."""
    return _wait(torch.ops._c10d_functional.all_reduce(tensor.contiguous(), "sum", name))


class _Gathered(torch.autograd.Function):
    """The whole of a tensor, its gradient summed at the owners of its rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return rows.gathered(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.rows.scattered(gradient), None


def gathered(own: Tensor, rows: Rows) -> Tensor:
    """The whole of a tensor, differentiable in the rows of each process."""
    found: Tensor = _Gathered.apply(own, rows)
    return found


class _Applied(torch.autograd.Function):
    """A linear map whose weight is whole only while it is used."""

    @staticmethod
    def forward(ctx: Any, function: Function, rows: Rows, x: Tensor, own: Tensor, bias: Tensor | None) -> Tensor:
        ctx.function, ctx.rows = function, rows
        ctx.save_for_backward(x, own, bias)
        return function(x, rows.gathered(own), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, own, bias = ctx.saved_tensors
        given = [x, ctx.rows.gathered(own), bias]
        wanted = [place for place in range(3) if ctx.needs_input_grad[2 + place]]
        with torch.enable_grad():
            leaves: list[Any] = [None if one is None else one.detach() for one in given]
            inner = [leaves[place].requires_grad_() for place in wanted]
            found = torch.autograd.grad(ctx.function(*leaves), inner, gradient)
        gradients: list[Tensor | None] = [None] * 3
        for place, one in zip(wanted, found, strict=True):
            gradients[place] = ctx.rows.scattered(one) if place == 1 else one
        return None, None, *gradients


def applied(function: Function, rows: Rows) -> Function:
    """A linear map that takes this process's rows of the weight."""
    return functools.partial(_Applied.apply, function, rows)


@dataclass(frozen=True)
class Shards:
    """Who shares weights with whom: every `size` neighbours hold all of them once.

    Attributes:
        group: all processes of the fit.
        size: how many share one copy.
        within: what torch calls those that share this process's copy.
        across: those that hold the same rows of other copies; empty where there is one copy.
        world: all.
    """

    group: ProcessGroup
    size: int
    within: str = field(compare=False)
    across: str = field(compare=False)
    world: str = field(compare=False)

    @property
    def copies(self) -> int:
        """How many copies there are."""
        return self.group.size // self.size

    def rows(self, shape: tuple[int, ...]) -> Rows | None:
        """This process's rows of a tensor; None: it is not worth splitting, or someone would have none."""
        whole = Rows(shape, self.group.rank % self.size, self.size, self.within, self.group)
        numbers = torch.Size(shape).numel()
        return whole if numbers >= SMALLEST and whole.each * (self.size - 1) < shape[0] else None


def shards_of(asked: str, group: ProcessGroup) -> Shards | None:
    """The processes among which a fit's weights are split; None: each holds all of them. All processes call it.

    Args:
        asked: `none`, `all` or `machine`.
        group: the processes.

    Raises:
        ValueError: machines have different numbers of processes.
    """
    if (size := group.sharing(asked)) == 1:
        if asked != "none":
            log.warning(
                "--shard %s: one process shares with none and holds everything; torchrun --nproc-per-node starts more",
                asked,
            )
        return None
    world, ranks = dist.group.WORLD, range(group.size)
    assert world
    if size == group.size:
        return Shards(group, size, world.group_name, "", world.group_name)
    within = [list(ranks[first : first + size]) for first in ranks[::size]]
    across = [list(ranks[place::size]) for place in range(size)]
    made: list[Any] = [dist.new_group(members) for members in within + across]  # all processes make all groups
    mine = [one.group_name for one, members in zip(made, within + across, strict=True) if group.rank in members]
    return Shards(group, size, mine[0], mine[1], world.group_name)
