"""A search from its file to its outcome: what `tune` does, with further workers as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.foreign import read_toml
from pyro_compress.kinds import is_search
from pyro_compress.locks import Silence, holder
from pyro_compress.places import check_results
from pyro_compress.runs.store import share
from pyro_compress.tuning.outcome import Outcome, conclude
from pyro_compress.tuning.plan import read_plan
from pyro_compress.tuning.reported import OnTrial
from pyro_compress.tuning.workers import Work, begin, run_worker

STORAGE = "PYRO_COMPRESS_STORAGE"
STOP_SECONDS = 30.0
"""For a worker to write its checkpoint and end."""
LOOK_SECONDS = 0.5


def tune(
    study: str | Path, out: str | Path | None = None, workers: int = 1, *, runs: str | Path | None = None,
    resume: bool = False, storage: str = "", grace: float = 60.0, data_dir: str = "", device: str = "auto",
    threads: int = 0, on_trial: OnTrial = lambda reported: None, **search: Any,
) -> Outcome:  # fmt: skip
    """Search the settings of fit and compression that a study file names.

    Args:
        study: TOML file.
        out: folder of the results; None: `tuning/NAME`.
        workers: processes on this machine.
        runs: folder of runs that several studies and searches share, found by their configurations; None: `OUT/runs`.
        resume: go on with a study: after an interruption, or with a larger budget.
        storage: URL of a data base that workers share; empty: a journal in the folder.
        grace: seconds of silence after which a worker is taken for dead, or for stopped.
        data_dir: folder of the torchvision data sets.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads; 0 leaves torch's default.
        on_trial: called after every trial of this process with what it found and how the search stands (`Reported`).
        **search: settings of `SearchConfig` instead of the study's: `trials`, `minutes`, `sampler`, ...

    Raises:
        ValueError: no such study, one that is there already, every trial fails.
        OSError: the folder cannot be written.
    """
    work = _work(study, out, storage, grace, (data_dir, device, threads), on_trial, search)
    if not resume:
        begin(work)
        write_atomically(work.out / "study.toml", Path(study).read_bytes())
    if runs:
        share(work.out, Path(runs))
    plan = work.plan
    again = [str(study), "--out", str(work.out), "--trials", str(plan.trials), "--sampler", plan.sampler, "--worker"]
    again += ["--seed", str(plan.seed)]
    again += ["--data-dir", data_dir, "--device", device, "--threads", str(threads), "--grace", str(grace)]
    again += ["--minutes", str(plan.minutes)] if plan.minutes else []
    with further_workers(workers - 1, again, storage) as others:
        run_worker(work)
        wait_for(others, work.out / "workers", grace)
    return conclude(work)


def join(
    study: str | Path, out: str | Path | None = None, *, storage: str = "", grace: float = 60.0, data_dir: str = "",
    device: str = "auto", threads: int = 0, on_trial: OnTrial = lambda reported: None, **search: Any,
) -> None:  # fmt: skip
    """Take trials of a search that somebody else began, who sees to the outcome; arguments as for `tune`."""
    run_worker(_work(study, out, storage, grace, (data_dir, device, threads), on_trial, search))


def _work(
    study: str | Path, out: str | Path | None, storage: str, grace: float, machine: tuple[str, str, int],
    on_trial: OnTrial, search: dict[str, Any],
) -> Work:  # fmt: skip
    plan, splits = read_plan(Path(study), *machine)
    place = place_of(study, out)
    check_results(place, is_search, Path(study), "tune")
    return Work(replace(plan, **search), splits, place, storage, grace, on_trial)


def place_of(study: str | Path, out: str | Path | None) -> Path:
    """Where the results of a search lie."""
    return Path(out or Path("tuning") / str(read_toml(Path(study)).get("name", Path(study).stem)))


@contextmanager
def further_workers(count: int, arguments: list[str], storage: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """More processes of this command, ended with this one."""
    command = [sys.executable, "-m", "pyro_compress", "tune", *arguments]
    started = [subprocess.Popen(command, env=os.environ | {STORAGE: storage}) for _ in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # a stopped process hears nothing else
                process.kill()
                process.wait()


def wait_for(processes: list[subprocess.Popen[bytes]], locks: Path, grace: float) -> None:
    """Wait for workers to end; leave those behind that give no sign for so many seconds."""
    silence, running = Silence(), list(processes)
    while running := [process for process in running if process.poll() is None]:
        signed = {holder(path): path for path in locks.glob("*.lock")}
        quiet = [p.pid in signed and silence.seconds(signed[p.pid]) >= grace for p in running]
        if all(quiet):
            return
        time.sleep(LOOK_SECONDS)
