"""Commands handed to Slurm, as one array of jobs. The only module that imports submitit, which writes and queues them.

submitit keeps what its jobs do as pickles in their folder; the jobs alone read them, nothing of this program does.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_compress.runs.starting import Command, processes

if TYPE_CHECKING:
    from submitit import AutoExecutor
    from submitit.helpers import DelayedSubmission

CLUSTERS = ("slurm", "local")
"""Where jobs run; `local`: on this machine, all at once, to try it."""
SHARED = (
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout",
)  # fmt: skip
"""What submitit calls without a prefix, because every cluster has it; all else is Slurm's own: `slurm_partition`."""
LISTS = ("setup", "teardown", "srun_args")
MINUTES = 24 * 60
"""Of a job, where nobody says: submitit's own 5 are fewer than a fit takes."""


@dataclass(frozen=True)
class Handed:
    """What a job does: one command, which ends with it.

    Where its time runs out or another job takes its place, submitit queues it again, and the fit goes on from its
    checkpoint.
    """

    command: tuple[str, ...]

    def __call__(self) -> None:
        """Run it; raises RuntimeError where it fails."""
        with processes() as start:
            code = start(self.command).wait()
        if code:
            raise RuntimeError(f"the command ended with exit status {code}; what it said stands above")

    def checkpoint(self) -> DelayedSubmission:
        """What is queued in its place."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Submitted:
    """Jobs that were handed over.

    Attributes:
        numbers: of the jobs.
        log: what the first one prints, on standard error.
    """

    numbers: tuple[str, ...]
    log: Path


def submitted(
    commands: Sequence[Command],
    folder: Path,
    settings: Sequence[str],
    name: str,
    environment: Mapping[str, str] | None = None,
) -> Submitted:
    """Hand commands to Slurm, a job each.

    Args:
        commands: to run.
        folder: of scripts and logs, which all machines of the cluster see.
        settings: of the jobs, as `checked` takes them.
        name: of the jobs.
        environment: variables of the jobs beside this process's own.

    Raises:
        ValueError: what `checked` refuses, or Slurm does.
    """
    from submitit.helpers import environment_variables

    executor = _executor(folder, [f"name={name}", *settings])
    try:
        with environment_variables(**(environment or {})), executor.batch():
            jobs = [executor.submit(Handed(tuple(command))) for command in commands]
    except RuntimeError as error:
        raise ValueError(f"sbatch refused: {' '.join(str(error).split())}") from error
    return Submitted(tuple(job.job_id for job in jobs), jobs[0].paths.stderr)


def checked(settings: Sequence[str]) -> None:
    """Refuse settings of jobs before anything is begun.

    Args:
        settings: `partition=gpu,time=60`; names are sbatch's, `time` is in minutes; `cluster=local` runs the jobs here.

    Raises:
        ValueError: one that submitit does not know, no Slurm, no submitit.
    """
    with tempfile.TemporaryDirectory() as folder:
        _executor(Path(folder), settings)


def _executor(folder: Path, settings: Sequence[str]) -> AutoExecutor:
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise ValueError(f"--submit needs submitit: pip install 'pyro-compress[slurm]' ({error})") from error
    values = {"time": str(MINUTES)} | dict(_pairs(settings))
    cluster = values.pop("cluster", CLUSTERS[0])
    if cluster not in CLUSTERS:
        raise ValueError(f"--slurm cluster={cluster}: allowed are {', '.join(CLUSTERS)}")
    try:
        executor = AutoExecutor(folder, cluster=cluster)
    except RuntimeError as error:
        reason = "there is no Slurm on this machine (no srun)"
        raise ValueError(f"{reason}; submit where there is one, or try it here: --slurm cluster=local") from error
    for key, value in values.items():
        name = "timeout_min" if key == "time" else key if key in SHARED else f"slurm_{key}"
        try:
            executor.update_parameters(**{name: _value(key, value)})
        except NameError as error:
            known = re.search(r"Valid arguments: (.*)", str(error))
            names = sorted({"cluster", *SHARED, *(known[1].split(", ") if known else ())})
            raise ValueError(f"--slurm {key}: submitit knows no such setting; allowed: {', '.join(names)}") from error
        except (AssertionError, TypeError, ValueError) as error:
            hint = "give minutes, like time=60" if key == "time" else " ".join(str(error).split())
            raise ValueError(f"--slurm {key}={value}: {hint}") from error
    return executor


def _pairs(settings: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in settings:
        for part in re.split(r",(?=[\w-]+=)", text):  # a value may hold commas: nodelist=a,b
            key, given, value = part.partition("=")
            if not (given and key and value):
                raise ValueError(f"--slurm {part!r}: give KEY=VALUE, like partition=gpu,time=60")
            yield key.replace("-", "_"), value


def _value(key: str, text: str) -> Any:
    if key in LISTS:
        return [text]
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"\d+", text):
        return int(text)
    return float(text) if key == "mem_gb" else text
