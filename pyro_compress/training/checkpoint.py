"""Checkpoints of a running fit: everything that its next step depends on, so that a resumed run ends in the same bytes.

A checkpoint is taken between two steps. It holds parameters, optimiser moments, buffers, the order of the examples of
this epoch and the place in it, and the state of every random number generator, as one safetensors file, written under
a temporary name and renamed; the last two are kept, so that a damaged one costs a few steps and not the run. It is
written and read tensor by tensor: no second copy of anything stands in memory.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_compress.atomic import written
from pyro_compress.foreign import json_of, of_type, shown, table
from pyro_compress.process_group import ALONE, ProcessGroup
from pyro_compress.tensorfile import KINDS, Later, TensorFile, in_order, write_tensors

KEPT = 2
"""Checkpoints that are kept."""
PHASES = ("point", "svi")
NUMBERS: dict[str, Any] = {
    "step": int, "position": int, "seconds": float, "turned": int | None, "history": list[dict[str, Any]],
}  # fmt: skip
"""What a checkpoint tells beside its tensors -> type; `restoring` says what is missing."""
AGREE_EVERY = 10
"""Steps between two times that several processes ask each other whether to write or to stop: all must, or none."""


@dataclass(frozen=True)
class Snapshot:
    """A fit between two steps.

    Attributes:
        phase: `point` or `svi`.
        tensors: by name; of a checkpoint on disk, each is read when it is asked for, of several processes by all at
            the same time.
        numbers: whatever is no tensor, as JSON takes it.
        later: tensors that stand nowhere yet: they are put together when they are written, by all processes.
    """

    phase: str
    tensors: Mapping[str, Tensor]
    numbers: dict[str, Any]
    later: Mapping[str, Later] = field(default_factory=dict)

    def part(self, prefix: str) -> Mapping[str, Tensor]:
        """Tensors whose name starts with `prefix/`, without it."""
        return _Part(self.tensors, f"{prefix}/")


class _Part(Mapping[str, Tensor]):
    """Those of a mapping's tensors whose names start alike, looked up there when they are asked for."""

    def __init__(self, whole: Mapping[str, Tensor], start: str):
        self.whole, self.start = whole, start

    def __getitem__(self, name: str) -> Tensor:
        return self.whole[self.start + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.start) for name in self.whole if name.startswith(self.start))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _ReadToAll(Mapping[str, Tensor]):
    """Tensors of the first process's file: it reads each to the others, when all ask for it at the same time.

    Args:
        group: all processes.
        file: on the first process.
    """

    def __init__(self, group: ProcessGroup, file: TensorFile | None):
        self.group, self.file = group, file
        told = json.dumps([file.metadata, file.codes, file.shapes]) if file else ""
        self.metadata, self.codes, self.shapes = json.loads(group.bytes_of_first(told.encode()))

    def __getitem__(self, name: str) -> Tensor:
        empty = torch.empty(self.shapes[name], dtype=KINDS[self.codes[name]])
        tensor = self.file[name] if self.file else empty
        if tensor.numel():
            self.group.broadcast_([tensor])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.codes)

    def __len__(self) -> int:
        return len(self.codes)


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the fit to stop; its state is in a checkpoint."""


@dataclass
class Checkpointer:
    """Decides after every step whether to write a checkpoint, and finds the last one.

    Attributes:
        folder: where checkpoints lie; None: none are written, and an interrupt ends the process as always.
        every_epochs: write at the end of every so many-th epoch.
        every_minutes: and whenever so much time has passed; 0: never.
        stop: set by a signal: write and leave.
        group: the processes of the fit; the first one writes and reads, all decide, and all have a folder or none.
    """

    folder: Path | None = None
    every_epochs: int = 1
    every_minutes: float = 10.0
    stop: threading.Event = field(default_factory=threading.Event)
    written: float = field(default_factory=time.monotonic)
    group: ProcessGroup = ALONE
    calls: int = 0

    def after_step(self, finished_epoch: int, take: Callable[[], Snapshot]) -> None:
        """Write a checkpoint if one is due.

        Args:
            finished_epoch: number of the epoch whose last step this was, else 0.
            take: gives the fit's state; called by all processes.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            OSError: it cannot be written; the ones before it stay.
        """
        if self.folder is None:
            return
        self.calls += 1
        if self.group.size > 1 and not finished_epoch and self.calls % AGREE_EVERY:
            return
        minutes = (time.monotonic() - self.written) / 60
        stop, late = self.group.any(self.stop.is_set(), bool(self.every_minutes) and minutes >= self.every_minutes)
        if not (stop or late or (finished_epoch and finished_epoch % self.every_epochs == 0)):
            return
        snapshot = take()
        if self.group.first:
            write(snapshot, self.folder)
        else:
            for name in in_order(snapshot.later):
                snapshot.later[name].give()
        self.written = time.monotonic()
        if stop:
            self.group.any(stop)  # nobody leaves before it is written: torchrun would end the others
            raise Interrupted

    def rewind(self, epochs: int) -> None:
        """Drop the checkpoints of an epoch that failed, after so many finished ones: they may be broken already."""
        for path in self.folder.glob("checkpoint-*.safetensors") if self.folder else ():
            try:
                early = len(read(path).numbers.get("history", ())) < epochs
            except ValueError:
                early = False
            if not early:
                path.unlink()

    def latest(self) -> Snapshot | None:
        """The newest checkpoint that can be read; of several processes the first one reads it to the others."""
        found = self._newest() if self.folder and self.group.first else None
        if self.group.size == 1 or not self.group.any(found is not None)[0]:
            return found
        file = found.tensors if found else None
        assert file is None or isinstance(file, TensorFile)
        tensors = _ReadToAll(self.group, file)
        return snapshot_of(tensors, tensors.metadata)

    def _newest(self) -> Snapshot | None:
        assert self.folder
        for path in sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True):
            try:
                return read(path)
            except ValueError:
                continue
        return None


def write(snapshot: Snapshot, folder: Path) -> None:
    """Write a checkpoint and drop all but the last `KEPT`."""
    document = json.dumps({"phase": snapshot.phase, "numbers": snapshot.numbers})
    before = sorted(folder.glob("checkpoint-*.safetensors"))
    number = int(before[-1].stem.split("-")[1]) + 1 if before else 1
    with written(folder / f"checkpoint-{number:06d}.safetensors") as file:
        write_tensors(file, {**snapshot.tensors, **snapshot.later}, document)
    for path in before[: len(before) + 1 - KEPT]:
        path.unlink()


def read(path: Path) -> Snapshot:
    """Read a checkpoint.

    Raises:
        ValueError: it is damaged or foreign.
    """
    try:
        return decoded(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of this program: {error}") from error


def decoded(source: Path | bytes) -> Snapshot:
    """The checkpoint that a file, or its bytes, holds.

    Raises:
        ValueError: none.
        OSError: it cannot be read.
    """
    tensors = TensorFile(source)
    return snapshot_of(tensors, tensors.metadata)


def snapshot_of(tensors: Mapping[str, Tensor], metadata: str) -> Snapshot:
    """The checkpoint that tensors and the text written with them make up.

    Raises:
        ValueError: none.
    """
    try:
        document = json_of(metadata, "its metadata")
        phase, numbers = document["phase"], table(document["numbers"], "numbers")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if phase not in PHASES:
        raise ValueError(f"phase {shown(phase)}; allowed: {', '.join(PHASES)}")
    for name in NUMBERS.keys() & numbers.keys():
        of_type(numbers[name], NUMBERS[name], name)
    if (least := min(numbers.get(name, 0) for name in ("step", "position"))) < 0:
        raise ValueError(f"step or position {least}: it must not be negative")
    return Snapshot(phase, tensors, numbers)


@contextmanager
def restoring(checkpointer: Checkpointer) -> Iterator[None]:
    """Whatever is wrong with a checkpoint that is put back is one line: its tensors are those of another fit.

    Raises:
        ValueError: it does not fit.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the checkpoint in {checkpointer.folder} is not of this fit ({type(error).__name__}: {shown(reason)}); "
            "start anew with --force"
        ) from error


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
def stops_on_signals(checkpointer: Checkpointer) -> Iterator[None]:
    """SIGINT and SIGTERM let the running step finish; a second one ends the process as always.

    Raises:
        Interrupted: a signal came after the last step, which is in the last checkpoint.
    """
    if checkpointer.folder is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        checkpointer.stop.set()
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if checkpointer.stop.is_set() and checkpointer.group.size == 1:
        raise Interrupted
