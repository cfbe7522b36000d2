"""How this program starts further processes of itself: by commands, run here (`runs.slurm` hands them to Slurm).

A command that was started so ends with whoever started it, however that ended; a running fit writes its checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

Command = Sequence[str]
Process = subprocess.Popen[bytes]
Start = Callable[..., Process]

WITH_PARENT = "PYRO_COMPRESS_WITH_PARENT"
"""Set for a process whose standard input ends with the one that started it."""
STOP_SECONDS = 30.0
"""For a fit to write its checkpoint and end."""
LOOK_SECONDS = 0.1
TICK_SECONDS = 10.0
"""After which a loop over processes comes round, though none has ended."""


def command(name: str, *arguments: object, **options: Any) -> list[str]:
    """A command of this program; the working directory is no place that it imports from, unless code is named.

    Args:
        name: of the command.
        arguments: of the command.
        **options: True stands for a flag; what is None, False or empty is left out.

    Examples:
        >>> command("tune", "study.toml", out="a b", worker=True, minutes=None)[3:]
        ['pyro_compress', 'tune', 'study.toml', '--out', 'a b', '--worker']
    """
    parts = [sys.executable, "-P", "-m", "pyro_compress", name, *map(str, arguments)]
    for option, value in options.items():
        if value is not None and value is not False and value != "":
            parts += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    return parts


@contextmanager
def processes(environment: Mapping[str, str] | None = None) -> Iterator[Start]:
    """What starts commands (parts, and options of `subprocess.Popen`); those that still run at the end are ended.

    Args:
        environment: variables beside this process's own.
    """
    begun: list[Process] = []

    def start(parts: Command, **options: Any) -> Process:
        variables = {**os.environ, **(environment or {}), WITH_PARENT: "1"}
        begun.append(subprocess.Popen(parts, stdin=subprocess.PIPE, env=variables, **options))
        return begun[-1]

    try:
        yield start
    finally:
        for process in begun:
            process.terminate()
        for process in begun:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # a stopped process hears nothing else
                process.kill()
                process.wait()
            assert process.stdin
            process.stdin.close()


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        place: which one.
        code: its exit status; negative: minus the number of a signal.
        output: what it printed.
    """

    place: int
    code: int
    output: str


def some_at_a_time(commands: Sequence[Command], jobs: int) -> Generator[Ended | None, None, None]:
    """Run commands, so many at a time; None where nothing has ended for `TICK_SECONDS`.

    Args:
        commands: to run.
        jobs: processes.
    """
    waiting, running = deque(enumerate(commands)), dict[int, tuple[Process, IO[bytes]]]()
    ticked = time.monotonic()
    with ExitStack() as files, processes() as start:
        while waiting or running:
            while waiting and len(running) < jobs:
                place, parts = waiting.popleft()
                file: IO[bytes] = files.enter_context(tempfile.TemporaryFile())
                running[place] = start(parts, stdout=file), file
            for place in [n for n, (process, _) in running.items() if process.poll() is not None]:
                process, file = running.pop(place)
                assert process.stdin
                process.stdin.close()
                with file:
                    file.seek(0)
                    yield Ended(place, process.returncode, file.read().decode(errors="replace"))
                ticked = time.monotonic()
            if time.monotonic() - ticked >= TICK_SECONDS:
                ticked = time.monotonic()
                yield None
            time.sleep(LOOK_SECONDS)


def end_with_parent() -> None:
    """Let this process end when the one that started it has, if it was started here: a running fit is kept first."""
    if not os.environ.pop(WITH_PARENT, ""):
        return
    for name in ("SIGUSR1", "SIGUSR2"):  # how Slurm warns a job: who started this process is warned too, and decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def watch() -> None:
        while os.read(0, 1):
            pass
        while True:  # the first one stops a fit after its checkpoint, the next one whatever there is besides
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(STOP_SECONDS)

    threading.Thread(target=watch, daemon=True).start()
