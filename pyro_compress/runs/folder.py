"""Run folders: what `fit` writes and every other command reads.

    config.toml             everything that determined the fit, resolved, with versions and split sizes
    history.jsonl           one line per epoch (`pyro_compress.training.history.Epoch`)
    posterior.safetensors   the waist: moments of every weight, and the graph of the network as metadata
    guide.safetensors       the posterior's own parameters, to draw from it again (absent with prior none)
    start.pcn               a copy of the compressed file that the fit began with, if it did (`--net FILE.pcn`)
    snapshots.safetensors   if asked for: the pruned weights at the end of the epochs
    tensorboard/            if asked for: the same as history.jsonl, and histograms, as TensorBoard's events

A folder appears under its name only when it is complete; until then it is `.NAME.unfinished` beside it, with the last
two checkpoints (`pyro_compress.training.checkpoint`), and one process holds its lock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyro_compress.data.splits import load_splits
from pyro_compress.locks import claimed
from pyro_compress.runs.config import options_in
from pyro_compress.runs.waist import read_posterior
from pyro_compress.settings import FitConfig, tupled
from pyro_compress.types import Posterior, Splits
from pyro_compress.world import ALONE, World

LOCK = ".lock"
"""Held in an unfinished folder by the process that writes it."""


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    config: FitConfig
    posterior: Posterior

    def splits(self, data_dir: str = "") -> Splits:
        """The data it was fitted on."""
        config = self.config
        return load_splits(config.data, data_dir or config.data_dir, config.validation, reading=config.reading)


def unfinished(out: Path) -> Path:
    """Where a run lies until it is complete."""
    return out.parent / f".{out.name}.unfinished"


@contextmanager
def new_folder(out: Path, force: bool, resume: bool = False) -> Iterator[Path]:
    """A folder beside `out` that takes its name on success; on failure it stays only if it holds a checkpoint.

    A user's error (`ValueError`) would come again: nothing stays of it.

    Raises:
        ValueError: it is there already, or another process is writing it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} exists and is not a folder")
    if out.exists() and any(out.iterdir()) and not force:
        raise ValueError(f"{out} exists and is not empty; choose another --out, or replace it with --force")
    folder = unfinished(out)
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / LOCK) as free:
        if not free:
            raise ValueError(f"another fit is writing {out}; wait for its end, or choose another --out")
        if any(folder.glob("checkpoint-*")) and not resume and not force:
            raise ValueError(
                f"an unfinished fit lies in {folder}; go on with: fit --resume {out}, or start anew with --force"
            )
        if not resume:
            _empty(folder)
        try:
            yield folder
            for path in (*folder.glob("checkpoint-*"), folder / LOCK):
                path.unlink()
            _put_in_place(folder, out)
        except BaseException as error:
            if isinstance(error, ValueError) or not any(folder.glob("checkpoint-*")):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _empty(folder: Path) -> None:
    """Drop what an earlier fit left, but for the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _put_in_place(folder: Path, out: Path) -> None:
    """Give a complete folder its name; an older one under it goes."""
    if out.exists():
        old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-old-"))
        os.replace(out, old)
        os.replace(folder, out)
        shutil.rmtree(old)
    else:
        os.replace(folder, out)


def unfinished_config(out: Path, world: World = ALONE) -> FitConfig:
    """Configuration of an unfinished fit, which the first of several processes reads to the others.

    Raises:
        ValueError: there is none.
    """
    path = unfinished(out) / "config.toml"
    text = world.bytes_of_first(_unfinished_text(out, path) if world.first else b"").decode()
    return _config_in(text, path)


def _unfinished_text(out: Path, path: Path) -> bytes:
    if not path.is_file() or not any(path.parent.glob("checkpoint-*")):
        state = (
            "is complete" if (out / "posterior.safetensors").is_file() else "has no unfinished fit with a checkpoint"
        )
        raise ValueError(f"{out} {state}; nothing to resume")
    return path.read_bytes()


def stored_config(path: Path) -> FitConfig:
    """The configuration that a run's config.toml holds."""
    return _config_in(path.read_text(), path)


def _config_in(text: str, path: Path) -> FitConfig:
    return FitConfig(**tupled(options_in(text, str(path))))


def load_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: not a run folder, or a damaged one.
    """
    if not (path / "config.toml").is_file() or not (path / "posterior.safetensors").is_file():
        raise ValueError(
            f"{path} is no run folder (it needs config.toml and posterior.safetensors, as fit writes them)"
        )
    return Run(path, stored_config(path / "config.toml"), read_posterior(path / "posterior.safetensors"))
