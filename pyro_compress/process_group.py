"""The processes that work on one fit together (`torchrun`): who this one is, and what they tell each other.

Every process holds the whole network and takes a part of every minibatch; gradients are added up, so that all make the
same step. There is one flat message per step. Python's and torch's own numbers only are sent, never a pickle.

Alone (`ALONE`, world size 1) everything here does nothing at all.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(minutes=10)
"""A process that hears nothing of the others for so long gives up; compiling and loading must take less."""


class Lost(ConnectionError):
    """Another process of the fit ended, or cannot be reached."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a fit, seen from one of them. All of them must make the same calls in the same order.

    Attributes:
        rank: number of this process; process 0 writes what is written.
        size: how many there are.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sharing(self, asked: str) -> int:
        """How many processes hold one copy of a fit's weights together.

        Args:
            asked: `none`: each has one; `all`, or `machine`: those of a machine.

        Raises:
            ValueError: not every machine has as many.
        """
        if asked != "machine" or self.size == 1:
            return self.size if asked == "all" else 1
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        most = torch.tensor([here, -here], dtype=torch.int32)
        with self.together():
            dist.all_reduce(most, dist.ReduceOp.MAX)
        if most[0] != -most[1]:
            raise ValueError(
                f"{self.size} processes, {here} of them on this machine, {-int(most[1])} to {int(most[0])} on others: "
                "--shard machine wants as many on each"
            )
        return here

    @torch.no_grad()
    def add_(self, tensors: Sequence[Tensor], factor: float = 1.0) -> None:
        """Replace tensors by their sums over all processes, this one's scaled by a factor: one message per dtype."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            group = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            if factor != 1:
                flat.mul_(factor)
            with self.together():
                dist.all_reduce(flat)
            for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their averages over all processes."""
        self.add_(tensors, 1 / self.size)

    def average_statistics_(self, net: nn.Module) -> None:
        """Let all processes hold the same running statistics of batch norm, which each took of its own examples.

        The average commutes with how they are updated: when and how often it is taken changes nothing but rounding.
        """
        if self.size > 1:
            self.average_([b for name, b in net.named_buffers() if name.endswith(("running_mean", "running_var"))])

    def mean(self, number: float) -> float:
        """Average of a number over all processes."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        self.average_([value])
        return float(value)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For every flag, whether any process raised it."""
        if self.size == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        with self.together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in found)

    @torch.no_grad()
    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of process 0."""
        if self.size == 1:
            return
        for tensor in tensors:
            whole = tensor.contiguous()
            with self.together():
                dist.broadcast(whole, 0)
            tensor.copy_(whole)

    def bytes_of_first(self, data: bytes) -> bytes:
        """What process 0 gave; what the others gave does not matter."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)], dtype=torch.int64)
        self.broadcast_([length])
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.first and data:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self.broadcast_([content])
        return content.numpy().tobytes()

    def check_same(self, what: Mapping[str, bytes]) -> None:
        """Refuse to go on where the processes do not start alike.

        Args:
            what: in words -> anything that says what it is.

        Raises:
            ValueError: on all processes alike.
        """
        if self.size == 1:
            return
        mine = [hashlib.sha256(data).digest() for data in what.values()]
        firsts = self.bytes_of_first(b"".join(mine))
        differ = self.any(*(firsts[32 * i : 32 * (i + 1)] != digest for i, digest in enumerate(mine)))
        if wrong := [name for name, differs in zip(what, differ, strict=True) if differs]:
            raise ValueError(
                f"the {self.size} processes do not agree on {', '.join(wrong)}: start all with the same options, data "
                "and versions of torch and of this program"
            )

    def own_noise(self, seed: int, step: int) -> int | None:
        """Let this process, unless it is the first, draw numbers of its own from torch's generators from here on.

        Args:
            seed: of the fit.
            step: steps so far: a resumed fit does not draw the same again.

        Returns:
            The seed of its own, or None for the first process, which goes on with what it has.
        """
        if self.first:
            return None
        own = int(np.random.SeedSequence((seed % 2**64, self.rank, step)).generate_state(1, np.uint64)[0])
        torch.manual_seed(own)
        return own

    @contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """Process 0 of every machine first, then the others."""
        if self.local_rank:
            self.any(False)
        yield
        if not self.local_rank:
            self.any(False)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in this block failed because another process is gone.

        Raises:
            Lost: in place of torch's error.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Lost(
                f"process {self.rank} of {self.size} lost another one, whose message says more: {_first_line(error)}"
            ) from error


ALONE = ProcessGroup()


@contextmanager
def joined(device: str = "auto") -> Iterator[ProcessGroup]:
    """The processes that `torchrun` started, from here to the end of the block; `ALONE` where it started none.

    On CUDA every process takes the device of its local number and NCCL carries the gradients, unless processes share
    a device, which NCCL does not support; everything else goes through Gloo.

    Args:
        device: as in `pyro_compress.machine.prepare`.

    Raises:
        ValueError: the environment is incomplete; or an error of this process, with its number.
        Lost: the others cannot be reached.
    """
    group = _announced(os.environ)
    if group.size == 1:
        yield ALONE
        return
    backend = _backend(group, device)
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise Lost(
            f"process {group.rank} of {group.size} cannot join the others ({_first_line(error)}): start them with "
            "torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield group
    except ValueError as error:
        raise error if group.first else ValueError(f"process {group.rank} of {group.size}: {error}") from error
    finally:
        dist.destroy_process_group()


def _announced(environment: Mapping[str, str]) -> ProcessGroup:
    given: dict[str, Any] = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if given["WORLD_SIZE"] in (None, "1"):
        return ALONE
    try:
        found = ProcessGroup(int(given["RANK"]), int(given["WORLD_SIZE"]), int(given["LOCAL_RANK"]))
        if 0 <= found.rank < found.size and found.local_rank >= 0:
            return found
    except (TypeError, ValueError):
        pass
    known = ", ".join(f"{name}={value}" for name, value in given.items())
    raise ValueError(f"{known}: several processes are started by torchrun, which sets all three; else unset WORLD_SIZE")


def _backend(group: ProcessGroup, device: str) -> str:
    if device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    devices, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", group.local_rank + 1))
    torch.cuda.set_device(group.local_rank % devices)
    return "cpu:gloo,cuda:nccl" if here <= devices else "gloo"


def _first_line(error: Exception) -> str:
    """What a library says, without where in its source, and without its advice."""
    line = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip().split("\n")[0])
    return line.partition(". This is typically caused")[0]
