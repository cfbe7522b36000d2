"""Examples that stay on disk: they look like a tensor's first dimension, and are read when asked for.

Worker processes (torch's DataLoader) read ahead in the order that `Minibatches` has drawn; that order and everything
random belongs to it, so that reading from disk gives the same minibatches as holding everything in memory.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_compress.settings import ReadConfig

MIB = 1 << 20


class Source(Protocol):
    """Raw examples by number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    def __len__(self) -> int:
        """Number of examples."""

    def read(self, index: int) -> np.ndarray:
        """One example: whole numbers, bools or floats."""


class ArrayFile:
    """Examples of a `.npy` file `(n, ...)`, mapped into memory; a missing dimension of channels is added."""

    def __init__(self, path: Path, reading: ReadConfig | None = None):
        self.path = path
        self._mapped: np.ndarray | None = None
        self.shape = (reading or ReadConfig()).example_shape(tuple(self.mapped.shape[1:]))

    @property
    def mapped(self) -> np.ndarray:
        """The array, opened in whichever process asks."""
        if self._mapped is None:
            try:
                self._mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # what is damaged or foreign fails in many ways
                raise ValueError(f"{self.path} is no readable .npy file: {error}") from error
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapping: every worker opens its own."""
        return self.__dict__ | {"_mapped": None}

    def __len__(self) -> int:
        return len(self.mapped)

    def read(self, index: int) -> np.ndarray:
        """One example."""
        return np.array(self.mapped[index]).reshape(self.shape)


class Streamed:
    """Some rows of a source, as float32; whole numbers are divided by a scale.

    What a tensor would be asked for works: `len`, `shape`, rows by slice or index tensor, `split`.

    Args:
        source: all examples.
        rows: those that belong to this split.
        workers: processes that read ahead while training; 0 reads in this one.
        scale: what whole numbers are divided by.
    """

    def __init__(self, source: Source, rows: Tensor, workers: int, scale: float = 1.0):
        self.source, self.rows, self.workers, self.scale = source, rows, workers, scale
        self._loader: tuple[_Batches, DataLoader] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """`(n, *shape of an example)`."""
        return torch.Size((len(self.rows), *self.source.shape))

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, tuple):
            return self[key[0]][(slice(None), *key[1:])]
        return stacked([self.source.read(int(row)) for row in self.rows[key]], self.source.shape, self.scale)

    def subset(self, rows: Tensor) -> Streamed:
        """Some of these rows."""
        return Streamed(self.source, self.rows[rows], self.workers, self.scale)

    def divided(self, scale: float) -> Streamed:
        """The same rows, whole numbers divided by another scale."""
        return Streamed(self.source, self.rows, self.workers, scale)

    def split(self, size: int) -> Iterator[Tensor]:
        """Consecutive parts, as a tensor's `split`."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """The rows of every part in turn, read ahead by the workers."""
        if not self.workers:
            return (self[part] for part in parts)
        if self._loader is None:
            batches = _Batches()
            self._loader = (
                batches,
                DataLoader(
                    _Rows(self.source, self.scale),
                    batch_sampler=batches,
                    num_workers=self.workers,
                    collate_fn=_collate,
                    worker_init_fn=_leave_signals,
                    persistent_workers=True,
                    multiprocessing_context="spawn",  # forking a process that has threads can deadlock
                    generator=torch.Generator(),  # else every start of the workers draws from torch's own
                ),
            )
        batches, loader = self._loader
        batches.parts = [self.rows[part].tolist() for part in parts]
        return _sound(iter(loader))


class _Batches:
    """Sampler of the DataLoader: whatever rows are still to come, in the order of the minibatches."""

    parts: Sequence[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


class _Rows(Dataset):
    """Examples as the workers read them; what is wrong with one comes back as it is, for the main process to raise."""

    def __init__(self, source: Source, scale: float):
        self.source, self.scale = source, scale

    def __getitem__(self, index: int) -> tuple[np.ndarray, float] | ValueError:
        try:
            return self.source.read(index), self.scale
        except ValueError as error:
            return error


def _collate(examples: list[tuple[np.ndarray, float] | ValueError]) -> Tensor | ValueError:
    read = [one for one in examples if isinstance(one, tuple)]
    if wrong := [one for one in examples if isinstance(one, ValueError)]:
        return wrong[0]
    return stacked([example for example, _ in read], read[0][0].shape, read[0][1])


def _sound(batches: Iterable[Tensor | ValueError]) -> Iterator[Tensor]:
    for batch in batches:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def _leave_signals(worker: int) -> None:
    """An interrupt is the main process's to handle: it still needs the minibatches that are under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)  # torchrun passes signals on to the whole group of a process


def stacked(examples: Sequence[np.ndarray], shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Examples as one float32 tensor; whole numbers are divided by the scale."""
    if not examples:
        return torch.zeros(0, *shape)
    return scaled(np.stack(examples), scale)


def scaled(values: np.ndarray, scale: float = 1.0) -> Tensor:
    """Float32 values; whole numbers are divided by the scale."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        found = torch.from_numpy(values.astype(np.float32, order="C"))
    return found.div_(scale) if values.dtype.kind in "iu" and scale != 1 else found
