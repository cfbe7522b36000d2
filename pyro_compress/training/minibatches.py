"""Minibatches: shuffled, shared among processes, put back to any place in an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_compress.data.augment import Augment, check_images
from pyro_compress.data.streaming import Streamed
from pyro_compress.machine import channels_last
from pyro_compress.process_group import ALONE, ProcessGroup
from pyro_compress.types import Data


def batch_count(examples: int, batch_size: int) -> int:
    """Minibatches per epoch."""
    return max(1, -(-examples // batch_size))


class Minibatches:
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
        group: the processes that share the minibatches.
        convolved: whether a convolution reads the images: they come with their channels last in memory.

    Raises:
        ValueError: augmentation of what is no image.

    Attributes:
        share: of the running minibatch that is this process's.
        examples: of the running minibatch, in all processes; at first of a usual one.
        order: permutation of the running epoch; None between epochs.
        position: minibatches of it that were given out.
    """

    def __init__(
        self, data: Data, batch_size: int, generator: torch.Generator, device: str = "cpu",
        augment: Augment | None = None, group: ProcessGroup = ALONE, convolved: bool = False,
    ):  # fmt: skip
        check_images(augment, data)
        x: Any = data.x if isinstance(data.x, Streamed) else data.x.to(device)
        self.data, self.device = Data(x, data.y.to(device)), device
        self.batch_size, self.generator, self.augment = batch_size, generator, augment
        self.group, self.share, self.convolved = group, 1.0, convolved
        self.examples = min(batch_size, len(data))
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
            self.group.broadcast_([self.order])
        left, first = self.order.split(self.batch_size)[self.position :], self.position + 1
        parts = [self._part(rows) for rows in left]
        for (x, y), (_, share) in zip(self._read([rows for rows, _ in parts]), parts, strict=True):
            self.position, self.share = self.position + 1, share
            self.examples = len(left[self.position - first])
            yield self.position - 1, self.laid_out(self.augment(x, self.generator) if self.augment else x), y
        self.order = None

    def laid_out(self, x: Tensor) -> Tensor:
        """Inputs as the network reads them fastest."""
        return channels_last(x) if self.convolved else x

    @property
    def usual(self) -> int:
        """Rows of a minibatch that this process sees, the last of an epoch aside."""
        return len(self._part(torch.arange(min(self.batch_size, len(self.data))))[0])

    def combine(self, tensors: Sequence[Tensor]) -> None:
        """Replace means over this process's rows (gradients, losses) by those over the running minibatch."""
        self.group.add_(tensors, self.share)

    def _part(self, rows: Tensor) -> tuple[Tensor, float]:
        """This process's rows of a minibatch and their share; without any it works on one that does not count."""
        own = rows[self.group.rank :: self.group.size]
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

    def restore(self, tensors: Mapping[str, Tensor], position: int) -> None:
        """Go on where `tensors` and `position` were taken.

        Raises:
            ValueError: they are of other data.
        """
        order = tensors["order"]
        if order.dtype != torch.int64 or not torch.equal(order.sort()[0], torch.arange(len(self.data))):
            raise ValueError("the order of its examples is none of this many")
        if position > self.batches:
            raise ValueError(f"it stands at minibatch {position} of {self.batches}")
        self.generator.set_state(tensors["generator"])
        self.order, self.position = tensors["order"], position
