"""Run folders: what `fit` writes and every other command reads.

    config.toml             everything that determined the fit, resolved, with versions and split sizes
    history.jsonl           one line per epoch (`pyro_compress.training.history.Epoch`)
    posterior.safetensors   the waist: moments of every weight, and the graph of the network as metadata
    guide.safetensors       the posterior's own parameters, to draw from it again (absent with prior none)
    start.pcn               a copy of the compressed file that the fit began with, if it did (`--net FILE.pcn`)
    snapshots.safetensors   if asked for: the pruned weights at the end of the epochs
    tensorboard/            if asked for: the same as history.jsonl, and histograms, as TensorBoard's events

A folder appears under its name only when it is complete; until then it is `.NAME.unfinished` beside it, with the last
two checkpoints (`pyro_compress.training.checkpoint`), and one process holds its lock. The posterior is written last but
for them, so that a run is complete with it; checkpoints go when the folder has its name (`pyro_compress.placing`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyro_compress.atomic import drop_left
from pyro_compress.data.splits import load_splits
from pyro_compress.kinds import foreign_to_run, is_run
from pyro_compress.places import check_folder
from pyro_compress.placing import CHECKPOINTS, emptied, located, making, put_in_place, recover, unfinished
from pyro_compress.runs.config import options_in
from pyro_compress.runs.waist import read_posterior
from pyro_compress.settings import FitConfig, tupled
from pyro_compress.training.history import Diverged
from pyro_compress.types import Posterior, Splits
from pyro_compress.world import ALONE, World


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


def found_complete(out: Path, force: bool = False) -> bool:
    """Whether a fit that is to be resumed had ended already, unseen; it has its name then.

    Raises:
        ValueError: another folder has it, and may not be replaced.
    """
    if recover(out, is_run):
        return is_run(out)
    if not unfinished(out := located(out)).is_dir():
        return False
    with making(out) as folder:
        if folder is None or not is_run(folder):
            return False
        check_run_folder(out, force)
        put_in_place(folder, out)
        return True


@contextmanager
def new_folder(out: Path, force: bool, resume: bool = False) -> Iterator[Path]:
    """A folder beside `out` that takes its name on success; on failure it stays if it holds a checkpoint or all.

    Where the fit diverged it would again: nothing stays of it.

    Raises:
        ValueError: it is there already, cannot be written, or another process is writing it.
    """
    found_complete(out, force)
    check_run_folder(out, force)
    with making(out := located(out)) as folder:
        if folder is None:
            raise ValueError(f"another fit is writing {out}; wait for its end, or choose another --out")
        if any(folder.glob(CHECKPOINTS)) and not resume and not force:
            raise ValueError(
                f"an unfinished fit lies in {folder}; go on with: fit --resume {out}, or start anew with --force"
            )
        if not resume:
            emptied(folder)
        drop_left(folder)
        try:
            yield folder
            put_in_place(folder, out)
        except BaseException as error:
            lost = not (any(folder.glob(CHECKPOINTS)) or is_run(folder))
            if lost or isinstance(error, Diverged):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def check_run_folder(out: Path, force: bool = False) -> None:
    """Refuse a place where no run can be written, or that holds something else.

    Raises:
        ValueError: says why, and what to do.
    """
    check_folder(out, _foreign, force, "run")


def _foreign(folder: Path) -> list[str] | None:
    return foreign_to_run(folder) if is_run(folder) else None


def unfinished_config(out: Path, world: World = ALONE) -> FitConfig:
    """Configuration of an unfinished fit, which the first of several processes reads to the others.

    Raises:
        ValueError: there is none.
    """
    path = unfinished(out) / "config.toml"
    text = world.bytes_of_first(_unfinished_text(out, path) if world.first else b"").decode()
    return _config_in(text, path)


def _unfinished_text(out: Path, path: Path) -> bytes:
    if not path.is_file() or not any(path.parent.glob(CHECKPOINTS)):
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
    recover(path, is_run)
    if not (path / "config.toml").is_file() or not (path / "posterior.safetensors").is_file():
        raise ValueError(
            f"{path} is no run folder (it needs config.toml and posterior.safetensors, as fit writes them)"
        )
    return Run(path, stored_config(path / "config.toml"), read_posterior(path / "posterior.safetensors"))
