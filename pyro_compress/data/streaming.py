"""Examples that stay on disk: they look like a tensor's first dimension, and are read when asked for.

Worker processes (torch's DataLoader) read ahead in the order that the feed has drawn; that order and everything random
belongs to the feed, so that reading from disk gives the same minibatches as holding everything in memory.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_compress.settings import Reading

MIB = 1 << 20


class Source(Protocol):
    """Raw examples by number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    def __len__(self) -> int:
        """Number of examples."""

    def read(self, index: int) -> np.ndarray:
        """One example, bytes or floats."""


class ArrayFile:
    """Examples of a `.npy` file `(n, ...)`, mapped into memory; a missing dimension of channels is added."""

    def __init__(self, path: Path, reading: Reading | None = None):
        self.path = path
        self._mapped: np.ndarray | None = None
        self.shape = (reading or Reading()).example_shape(tuple(self.mapped.shape[1:]))

    @property
    def mapped(self) -> np.ndarray:
        """The array, opened in whichever process asks."""
        if self._mapped is None:
            try:
                self._mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (OSError, EOFError, ValueError) as error:
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
    """Some rows of a source, as float32; bytes are divided by 255.

    What a tensor would be asked for works: `len`, `shape`, rows by slice or index tensor, `split`.

    Args:
        source: all examples.
        rows: those that belong to this split.
        workers: processes that read ahead while training; 0 reads in this one.
    """

    def __init__(self, source: Source, rows: Tensor, workers: int):
        self.source, self.rows, self.workers = source, rows, workers
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
        return stacked([self.source.read(int(row)) for row in self.rows[key]], self.source.shape)

    def subset(self, rows: Tensor) -> Streamed:
        """Some of these rows."""
        return Streamed(self.source, self.rows[rows], self.workers)

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
                    _Rows(self.source),
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
        return iter(loader)


class _Batches:
    """Sampler of the DataLoader: whatever rows are still to come, in the feed's order."""

    parts: Sequence[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


class _Rows(Dataset):
    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source.read(index)


def _collate(examples: list[np.ndarray]) -> Tensor:
    return stacked(examples, examples[0].shape)


def _leave_signals(worker: int) -> None:
    """An interrupt is the main process's to handle: it still needs the minibatches that are under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)  # torchrun passes signals on to the whole group of a process


def stacked(examples: Sequence[np.ndarray], shape: tuple[int, ...]) -> Tensor:
    """Examples as one float32 tensor; bytes are divided by 255."""
    if not examples:
        return torch.zeros(0, *shape)
    return scaled(np.stack(examples))


def scaled(values: np.ndarray) -> Tensor:
    """Float32 values; bytes are divided by 255."""
    found = torch.from_numpy(values.astype(np.float32))
    return found.div_(255) if values.dtype == np.uint8 else found
