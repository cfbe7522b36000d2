"""Checkpoints of a running fit: everything that its next step depends on, so that a resumed run ends in the same bytes.

A checkpoint is taken between two steps. It holds parameters, optimiser moments, buffers, the order of the examples of
this epoch and the place in it, and the state of every random number generator, as one safetensors file, written under
a temporary name and renamed; the last two are kept, so that a damaged one costs a few steps and not the run.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_compress.compression.file import write_atomically

KEPT = 2
"""Checkpoints that are kept."""


@dataclass(frozen=True)
class Snapshot:
    """A fit between two steps.

    Attributes:
        phase: `point` or `svi`.
        tensors: by name.
        numbers: whatever is no tensor, as JSON takes it.
    """

    phase: str
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `prefix/`, without it."""
        return {n.removeprefix(f"{prefix}/"): t for n, t in self.tensors.items() if n.startswith(f"{prefix}/")}


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the fit to stop; its state is in a checkpoint."""


@dataclass
class Keeper:
    """Decides after every step whether to write a checkpoint, and finds the last one.

    Attributes:
        folder: where checkpoints lie; None: none are written, and an interrupt ends the process as always.
        every_epochs: write at the end of every so many-th epoch.
        every_minutes: and whenever so much time has passed; 0: never.
        stop: set by a signal: write and leave.
    """

    folder: Path | None = None
    every_epochs: int = 1
    every_minutes: float = 10.0
    stop: threading.Event = field(default_factory=threading.Event)
    written: float = field(default_factory=time.monotonic)

    def after_step(self, finished_epoch: int, take: Callable[[], Snapshot]) -> None:
        """Write a checkpoint if one is due.

        Args:
            finished_epoch: number of the epoch whose last step this was, else 0.
            take: gives the fit's state.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            OSError: it cannot be written; the ones before it stay.
        """
        if self.folder is None:
            return
        minutes = (time.monotonic() - self.written) / 60
        late = bool(self.every_minutes) and minutes >= self.every_minutes
        if not (self.stop.is_set() or late or (finished_epoch and finished_epoch % self.every_epochs == 0)):
            return
        write(take(), self.folder)
        self.written = time.monotonic()
        if self.stop.is_set():
            raise Interrupted

    def rewind(self, epochs: int) -> None:
        """Drop the checkpoints of an epoch that failed, after so many finished ones: they may be broken already."""
        for path in self.folder.glob("checkpoint-*.safetensors") if self.folder else ():
            try:
                early = len(read(path).numbers["history"]) < epochs
            except ValueError:
                early = False
            if not early:
                path.unlink()

    def latest(self) -> Snapshot | None:
        """The newest checkpoint that can be read."""
        paths = sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True) if self.folder else []
        for path in paths:
            try:
                return read(path)
            except ValueError:
                continue
        return None


def write(snapshot: Snapshot, folder: Path) -> None:
    """Write a checkpoint and drop all but the last `KEPT`."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in snapshot.tensors.items()}
    document = json.dumps({"phase": snapshot.phase, "numbers": snapshot.numbers})
    before = sorted(folder.glob("checkpoint-*.safetensors"))
    number = int(before[-1].stem.split("-")[1]) + 1 if before else 1
    write_atomically(folder / f"checkpoint-{number:06d}.safetensors", save(tensors, {"pyro_compress": document}))
    for path in before[: len(before) + 1 - KEPT]:
        path.unlink()


def read(path: Path) -> Snapshot:
    """Read a checkpoint.

    Raises:
        ValueError: it is damaged or foreign.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            document = json.loads(file.metadata()["pyro_compress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return Snapshot(document["phase"], tensors, document["numbers"])
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no checkpoint of this program: {error}") from error


def random_states() -> dict[str, Tensor]:
    """States of torch's default generators."""
    states = {"random/cpu": torch.get_rng_state()}
    return states | ({"random/cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_states(snapshot: Snapshot) -> None:
    """Put torch's default generators where they were."""
    torch.set_rng_state(snapshot.tensors["random/cpu"])
    if torch.cuda.is_available() and "random/cuda" in snapshot.tensors:
        torch.cuda.set_rng_state(snapshot.tensors["random/cuda"])


@contextmanager
def stops_on_signals(keeper: Keeper) -> Iterator[None]:
    """SIGINT and SIGTERM let the running step finish; a second one ends the process as always."""
    if keeper.folder is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        keeper.stop.set()
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
