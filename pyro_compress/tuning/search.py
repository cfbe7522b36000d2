"""A search from its file to its outcome: what `tune` does, with further workers as processes of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.foreign import NO_CODE, read_toml
from pyro_compress.kinds import is_search
from pyro_compress.locks import Silence, holder
from pyro_compress.places import check_results
from pyro_compress.runs.slurm import Submitted, checked, submitted
from pyro_compress.runs.starting import Process, command, processes
from pyro_compress.runs.store import share
from pyro_compress.tuning.outcome import Outcome, conclude
from pyro_compress.tuning.plan import read_plan
from pyro_compress.tuning.reported import OnTrial
from pyro_compress.tuning.workers import Work, begin, run_worker

STORAGE = "PYRO_COMPRESS_STORAGE"
LOOK_SECONDS = 0.5
MACHINE: tuple[Any, ...] = ("data_dir", "device", "threads")


def tune(
    study: str | Path, out: str | Path | None = None, workers: int = 1, *, runs: str | Path | None = None,
    resume: bool = False, storage: str = "", grace: float = 60.0, on_trial: OnTrial = lambda reported: None,
    **settings: Any,
) -> Outcome:  # fmt: skip
    """Search the settings of fit and compression that a study file names.

    Args:
        study: TOML file.
        out: folder of the results; None: `tuning/NAME`.
        workers: processes on this machine.
        runs: folder of runs that studies and searches share, found by their configurations; None: `OUT/runs` alone.
        resume: go on with a study: after an interruption, or with a larger budget.
        storage: URL of a data base that workers share; empty: a journal in the folder.
        grace: seconds of silence after which a worker is taken for dead, or for stopped.
        on_trial: called after every trial, of all workers, with what it found and how the search stands (`Reported`).
        **settings: `data_dir`, `device` and `threads`, as for `compare`; settings of `SearchConfig` instead of the
            study's: `trials`, `minutes`, `sampler`, ...

    Raises:
        ValueError: no such study, one that is there already, every trial fails.
        OSError: the folder cannot be written.
    """
    work = _begun(study, _work(study, out, storage, grace, on_trial, settings), runs, resume)
    again = worker_command(study, work, settings, quiet=True)  # this process says what they found
    with processes({STORAGE: storage}) as start:
        others = [start(again) for _ in range(workers - 1)]
        run_worker(work)
        wait_for(others, work.out / "workers", grace)
    return conclude(work)


def submit(
    study: str | Path, out: str | Path | None = None, workers: int = 1, *, slurm: Sequence[str] = (),
    runs: str | Path | None = None, resume: bool = False, storage: str = "", grace: float = 60.0, **settings: Any,
) -> tuple[Path, Submitted]:  # fmt: skip
    """Begin a search and hand its workers to Slurm, a job each; `tune` with `resume` tells the outcome afterwards.

    Args:
        study: as for `tune`, like all that is not named here.
        out: as above.
        workers: jobs.
        slurm: settings of the jobs, as `runs.slurm.checked` takes them.
        runs: as above.
        resume: as above.
        storage: as above.
        grace: as above.
        **settings: as above.

    Returns:
        The folder of the results, and the jobs.

    Raises:
        ValueError: what `tune` refuses; a setting that is unknown, no Slurm, no submitit.
        OSError: the folder cannot be written.
    """
    checked(slurm)
    work = _begun(study, _work(study, out, storage, grace, lambda reported: None, settings), runs, resume)
    commands = [worker_command(study, work, settings)] * workers
    where = {STORAGE: storage} if storage else {}  # by the environment, which jobs inherit
    return work.out, submitted(commands, work.out / "slurm", slurm, work.out.name, where)


def join(
    study: str | Path, out: str | Path | None = None, *, runs: str | Path | None = None, storage: str = "",
    grace: float = 60.0, on_trial: OnTrial = lambda reported: None, **settings: Any,
) -> None:  # fmt: skip
    """Take trials of a search that somebody else began, who sees to the outcome; arguments as for `tune`."""
    work = _work(study, out, storage, grace, on_trial, settings)
    run_worker(_begun(study, work, runs, resume=True))


def worker_command(study: str | Path, work: Work, settings: dict[str, Any], **more: Any) -> list[str]:
    """The command of one more worker; the storage's URL, which holds a password, goes by the environment."""
    plan, no_code = work.plan, bool(os.environ.get(NO_CODE))
    own = {"trials": plan.trials, "minutes": plan.minutes or None, "sampler": plan.sampler, "seed": plan.seed}
    machine = {name: settings.get(name) for name in MACHINE}
    return command(
        "tune", study, out=work.out, worker=True, grace=work.grace, no_code=no_code, **own, **machine, **more
    )


def _begun(study: str | Path, work: Work, runs: str | Path | None, resume: bool) -> Work:
    if not resume:
        begin(work)
        write_atomically(work.out / "study.toml", Path(study).read_bytes())
    if runs:
        share(work.out, Path(runs))
    return work


def _work(
    study: str | Path, out: str | Path | None, storage: str, grace: float, on_trial: OnTrial, settings: dict[str, Any]
) -> Work:
    plan, splits = read_plan(Path(study), **{name: settings[name] for name in MACHINE if name in settings})
    place = place_of(study, out)
    check_results(place, is_search, Path(study), "tune")
    search = {name: value for name, value in settings.items() if name not in MACHINE}
    return Work(replace(plan, **search), splits, place, storage, grace, on_trial)


def place_of(study: str | Path, out: str | Path | None) -> Path:
    """Where the results of a search lie."""
    return Path(out or Path("tuning") / str(read_toml(Path(study)).get("name", Path(study).stem)))


def wait_for(others: list[Process], locks: Path, grace: float) -> None:
    """Wait for workers to end; leave those behind that give no sign for so many seconds."""
    silence, running = Silence(), list(others)
    while running := [process for process in running if process.poll() is None]:
        signed = {holder(path): path for path in locks.glob("*.lock")}
        quiet = [p.pid in signed and silence.seconds(signed[p.pid]) >= grace for p in running]
        if all(quiet):
            return
        time.sleep(LOOK_SECONDS)
