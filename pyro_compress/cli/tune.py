"""tune: a search over the settings of fit and compression together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import echo, one_line_errors
from pyro_compress.cli.console import searched_line, searched_text
from pyro_compress.cli.ignored import TUNE, StrictCommand
from pyro_compress.cli.options import announce_code, code_options, data_options, device_options, given, setting_options
from pyro_compress.settings.studies import SearchConfig

STORAGE = "PYRO_COMPRESS_STORAGE"
STOP_SECONDS = 30.0
"""For a worker to write its checkpoint and end."""
LOOK_SECONDS = 0.5


@click.command(cls=StrictCommand, ignored=TUNE, short_help="Search the settings of fit and compress together.")
@click.argument("study", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Results folder; default tuning/NAME.")
@setting_options(SearchConfig, ("trials", "minutes", "sampler"), "Instead of the study's", unset=True)
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes on this machine.")
@click.option("--resume", is_flag=True, help="Go on with a study: after an interruption, or with a larger budget.")
@click.option("--worker", is_flag=True, help="Join a study that somebody else began, and leave the outcome to them.")
@click.option(
    "--storage", envvar=STORAGE, default="", show_default=False, metavar="URL",
    help=f"Data base that workers share (also {STORAGE}); default a journal in --out.",
)  # fmt: skip
@click.option(
    "--grace",
    type=click.FloatRange(2),
    default=60.0,
    metavar="SECONDS",
    help="Silence after which a worker is taken for dead, or for stopped.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON object and nothing else.")
@code_options
@data_options
@device_options
def tune(
    study: Path, out: Path | None, workers: int, resume: bool, worker: bool, storage: str, grace: float, as_json: bool,
    data_dir: str, device: str, threads: int, **_: Any,
) -> None:  # fmt: skip
    """Search the settings that a study file names; ends in the Pareto set of files and the best configuration."""
    with one_line_errors():
        from pyro_compress.atomic import write_atomically
        from pyro_compress.foreign import read_toml
        from pyro_compress.kinds import is_search
        from pyro_compress.places import check_results

        announce_code(read_toml(study), study)
        from pyro_compress.tuning.plan import read_plan
        from pyro_compress.tuning.workers import Work, begin, run_worker

        plan, splits = read_plan(study, data_dir, device, threads)
        plan = replace(plan, **given(click.get_current_context(), SearchConfig))
        out = out or Path("tuning") / plan.name
        check_results(out, is_search, study, "tune")
        work = Work(plan, splits, out, storage, grace, searched_line)
        if not (resume or worker):
            begin(work)
            write_atomically(out / "study.toml", study.read_bytes())
        again = [str(study), "--out", str(out), "--trials", str(plan.trials), "--sampler", plan.sampler, "--worker"]
        again += ["--data-dir", data_dir, "--device", device, "--threads", str(threads), "--grace", str(grace)]
        again += ["--minutes", str(plan.minutes)] if plan.minutes else []
        try:
            with further_workers(workers - 1, again, storage) as others:
                run_worker(work)
                wait_for(others, out / "workers", grace)
        except KeyboardInterrupt:
            echo(f"stopped, state kept; go on with: pyro-compress tune {study} --out {out} --resume", err=True)
            raise click.exceptions.Exit(130) from None
        if worker:
            return
        from pyro_compress.tuning.outcome import conclude

        outcome = conclude(work)
    echo(json.dumps(asdict(outcome) | {"out": str(out)}) if as_json else searched_text(outcome, out))


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
    from pyro_compress.locks import Silence, holder

    silence, running = Silence(), list(processes)
    while running := [process for process in running if process.poll() is None]:
        signed = {holder(path): path for path in locks.glob("*.lock")}
        quiet = [p.pid in signed and silence.seconds(signed[p.pid]) >= grace for p in running]
        if all(quiet):
            return
        time.sleep(LOOK_SECONDS)
