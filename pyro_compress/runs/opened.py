"""Run folders in Python programs: what `fit` returned, read again, or gone on with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyro_compress.doubts import gathered, keep
from pyro_compress.runs.config import never_shrinks
from pyro_compress.runs.folder import Run
from pyro_compress.runs.folder import load_run as read_run
from pyro_compress.runs.in_memory import Fitted
from pyro_compress.runs.run import resume_run
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.callbacks import Callbacks
from pyro_compress.training.history import Epoch, read_history
from pyro_compress.training.settled import unsettled


def load_run(path: str | Path, data: str = "", data_dir: str = "") -> Fitted:
    """What a run folder holds, as `fit` returned it.

    Args:
        path: the folder, of `fit`, of `save_run` or of the command line.
        data: where the run's data lie now; empty: where they lay.
        data_dir: folder of the torchvision data sets.

    Raises:
        ValueError: no run folder, a damaged one, data that are not there or not the same.

    Examples:
        >>> import pyro_compress as pc
        >>> pc.load_run("missing")
        Traceback (most recent call last):
        ValueError: missing is no run folder (it needs config.toml and posterior.safetensors, as fit writes them)
    """
    with gathered() as doubts:
        return _opened(read_run(Path(path), data), data_dir, doubts)


def resume(path: str | Path, *, callbacks: Iterable[Any] = (), force: bool = False, data_dir: str = "") -> Fitted:
    """Go on with an interrupted fit of a run folder; its own configuration counts.

    Args:
        path: the folder that the fit was to write.
        callbacks: as for `fit`; they are told of epochs.
        force: replace a folder of that name, once the new one is complete.
        data_dir: folder of the torchvision data sets, for what is read afterwards.

    Raises:
        ValueError: no such fit.
        OSError: the folder cannot be written.
        Interrupted: a signal came again; the fit can be resumed.
    """
    combined = Callbacks(callbacks)
    with gathered() as doubts, combined.running("fit"):
        run = resume_run(Path(path), force, on_epoch=combined.on_epoch, checkpointing=CheckpointConfig())
        return _opened(run, data_dir, doubts)


def _opened(run: Run, data_dir: str, doubts: list[str]) -> Fitted:
    history = read_history(run.path)
    keep(unsettled(history, run.config.kl_weight))
    keep(never_shrinks(run.config))
    epochs = tuple(Epoch(**epoch) for epoch in history)
    return Fitted(run.posterior, epochs, run.config, run.splits(data_dir), doubts=tuple(doubts), path=run.path)
