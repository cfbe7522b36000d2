"""A store: a folder of runs, each found by the hash of its whole configuration, and fitted once.

    HASH/         one run folder per configuration, as `fit` writes it
    HASH.lock     held while it is fitted

Any number of processes, of studies and of searches may share one.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pyro_compress.locks import locked
from pyro_compress.places import check_name
from pyro_compress.runs.folder import stored_config
from pyro_compress.runs.identity import config_hash, differing, earlier_hash
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStore:
    """A folder of runs.

    Attributes:
        folder: made with the first fit.
    """

    folder: Path

    def path(self, config: FitConfig) -> Path:
        """Where a fit lies, or will: under the name of an earlier version, where that made it as it is asked for."""
        folder, earlier = self.folder / config_hash(config), self.folder / earlier_hash(config)
        if folder.is_dir() or not (earlier / "config.toml").is_file():
            return folder
        if differences := differing(asdict(stored_config(earlier / "config.toml")), config):
            log.warning("%s was fitted with other defaults: %s; it is fitted anew", earlier, "; ".join(differences[:3]))
            return folder
        return earlier

    def fitted(self, config: FitConfig) -> Path:
        """The folder of a configuration's run; fitted, or a killed process's fit gone on with, if it is not there.

        Args:
            config: resolved.

        Raises:
            ValueError: bad configuration, data or network.
            OSError: the folder cannot be written.
        """
        folder = self.path(config)
        if not folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    fit_run(config, folder, checkpointing=CheckpointConfig(resume=True))
        return folder


def store_of(out: Path) -> RunStore:
    """The store of a results folder."""
    return RunStore(out / "runs")


def share(out: Path, runs: Path) -> None:
    """Let a results folder use a store that others use too: its `runs` becomes a link to it.

    Args:
        out: the results folder; made if it is not there, like the store.
        runs: the store.

    Raises:
        ValueError: the results folder has runs of its own, or of another store.
        OSError: the store cannot be made.
    """
    another = "choose another --runs"
    check_name(runs, another)
    if runs.exists() and not runs.is_dir():
        raise ValueError(f"{runs} exists and is not a folder; {another}")
    for folder in (out, runs):
        folder.mkdir(parents=True, exist_ok=True)
    own = store_of(out).folder
    try:
        own.symlink_to(os.path.relpath(runs.resolve(), out.resolve()), target_is_directory=True)
    except FileExistsError as error:
        if not (own.is_dir() and own.samefile(runs)):
            what = f"links to {os.readlink(own)}" if own.is_symlink() else "holds runs of its own"
            raise ValueError(f"{own} {what}; leave --runs {runs} out, or choose another --out") from error
