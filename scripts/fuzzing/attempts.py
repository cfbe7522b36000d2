"""One input after another in processes of their own, under limits of memory, computing, time and size of files.

A process tries many inputs and is begun anew when it dies, grows, or one of its inputs ran into a limit.
"""

import json
import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

from pyro_compress.cli.commands import OUT_OF_MEMORY
from pyro_compress.foreign import one_line

SECONDS, WALL = 10, 240
"""Of computing per input, and of waiting: a machine may have much else to do."""
MEBIBYTES, GROWTH = 1024, 256
"""Of memory above what a process begins with, and of what it may keep before the next one takes over."""
FILE_MEBIBYTES = 64
BATCH = 500
"""Inputs of a process."""
GOOD = ("result", "one line")
PLACES = ("in", "out", "here")
ESCAPED = "/tmp/pyro-compress-escaped"
"""What lies here after an input was tried was written by it."""

Step = str | None
Kind = Callable[[Path, Path, random.Random], Iterator[Step]]
"""How an input of a kind is made from the valid ones and used; `kinds.py` says what it yields."""


class Share(NamedTuple):
    """A kind, and how many of 1000 inputs are of it."""

    run: Kind
    share: int


class Tried(NamedTuple):
    """What became of an input.

    Attributes:
        number: makes it again, with the seed.
        kind: of `KINDS`.
        outcome: `result`, `one line`, or what should not be.
        detail: where it went wrong.
        passed: the gate.
        used: consumers that had it, with "!" before those that refused it.
    """

    number: int
    kind: str
    outcome: str
    detail: str = ""
    passed: bool = False
    used: tuple[str, ...] = ()


class Fuzzer(NamedTuple):
    """Which inputs are tried.

    Attributes:
        kinds: by name.
        seeds: folder of the valid inputs.
        keep: folder for what fails.
        seed: with a number makes an input.
        only: the one kind; empty: all, by their shares.
    """

    kinds: Mapping[str, Share]
    seeds: Path
    keep: Path
    seed: int = 0
    only: str = ""

    def begun(self, number: int) -> tuple[str, random.Random]:
        """The kind of an input, and what draws the rest of it."""
        chance = random.Random(f"{self.seed}/{number}")
        shares = [one.share for one in self.kinds.values()]
        (drawn,) = chance.choices(list(self.kinds), shares)
        return self.only or drawn, chance


class OutOfTime(BaseException):
    """An input took too long."""


def attempt(fuzzer: Fuzzer, number: int, place: Path) -> Tried:
    """Try an input in this process; `place` is empty, and holds the input afterwards."""
    kind, chance = fuzzer.begun(number)
    folders(place)
    used, passed = list[str](), False

    def tried(outcome: str, detail: str = "") -> Tried:
        return Tried(number, kind, outcome, detail, passed, tuple(used))

    try:
        with chdir(place / "here"):
            for name in fuzzer.kinds[kind].run(fuzzer.seeds, place, chance):
                passed, used = True, [*used, *([name] if name else [])]
        outcome = tried("one line" if any(name.startswith("!") for name in used) else "result")
    except (ValueError, OSError) as error:
        try:
            check_line(error)
            outcome = tried("one line")
        except AssertionError as wrong:
            outcome = tried("message", f"{wrong} {spot(error)}")
    except OutOfTime as error:
        outcome = tried("timeout", spot(error))
    except BaseException as error:
        memory = isinstance(error, MemoryError) or any(told in str(error) for told in OUT_OF_MEMORY)
        where = " ".join(getattr(error, "__notes__", ()))
        told = f"{type(error).__name__}: {str(error)[:200]} {where} {spot(error)}"
        outcome = tried("memory" if memory else "traceback", told)
    left = left_behind(place)
    return tried("escaped", left) if left else outcome


def check_line(error: BaseException) -> None:
    """Whether an error is one line that helps, as the command line prints it."""
    line = one_line(str(error))
    assert len(line) > 5, f"a message of {len(line)} characters: {line}"
    assert not set(line) & set("\n\r\x1b\x00\u202e"), f"a line that is none: {line!r}"


def folders(place: Path) -> Path:
    """Where the input lies, where results go, and the working directory, where nothing should appear."""
    for name in PLACES:
        (place / name).mkdir()
    return place


def left_behind(place: Path) -> str:
    """What lies where nothing should have been written."""
    strange = [one.name for one in place.iterdir() if one.name not in PLACES]
    strange += [one.name for one in (place / "here").iterdir()]
    for path in (Path(ESCAPED), place.parent / "x", Path(f"{ESCAPED}.npy")):
        if path.exists():
            strange.append(str(path))
            path.unlink()
    return ", ".join(strange)


def spot(error: BaseException) -> str:
    """The last lines of ours on the way to an error."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if "pyro_compress" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(own[-3:]))


def held() -> int:
    """Bytes of address space, and of memory, of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def work(fuzzer: Fuzzer, numbers: range, pipe: int) -> None:
    """Try inputs in a process of its own, and tell of each through a pipe."""
    begun = held()
    resource.setrlimit(resource.RLIMIT_AS, (begun + (MEBIBYTES << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MEBIBYTES << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)

    def late(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGPROF, late)
    with os.fdopen(pipe, "w") as told:
        for number in numbers:
            with tempfile.TemporaryDirectory() as name, limited():
                tried = attempt(fuzzer, number, Path(name))
                if tried.outcome not in GOOD:
                    keep(Path(name), fuzzer, tried)
            told.write(json.dumps(tried) + "\n")
            told.flush()
            if tried.outcome in ("memory", "timeout") or held() > begun + (GROWTH << 20):
                return


class limited:
    """Limits of one input: first an error that says where it is, then the end of the process."""

    def __enter__(self) -> None:
        used = sum(os.times()[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + 3 * SECONDS) + 1, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def keep(place: Path, fuzzer: Fuzzer, tried: Tried) -> None:
    """Keep an input, unless a smaller one failed at the same spot."""
    size = _size(place)
    what = tried.outcome + tried.detail[:30] + tried.detail.rpartition(" ")[2]
    target = fuzzer.keep / f"{zlib.crc32(what.encode()):08x}"
    if target.is_dir() and _size(target) <= size:
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(place, target, dirs_exist_ok=True)
    (target / "WHAT").write_text(f"{tried.kind}, seed {fuzzer.seed}, number {tried.number}\n{tried.detail}\n")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "WHAT")


def tried_all(fuzzer: Fuzzer, numbers: range) -> Iterator[Tried]:
    """What becomes of all inputs; an input whose process dies is one too."""
    at = numbers.start
    while at < numbers.stop:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            fault = 1
            try:
                os.close(reading)
                work(fuzzer, range(at, min(at + BATCH, numbers.stop)), writing)
                fault = 0
            finally:
                os._exit(fault)  # also where nobody listens any more
        os.close(writing)
        with os.fdopen(reading) as told:
            for line in told:
                number, kind, outcome, detail, passed, used = json.loads(line)
                at = number + 1
                yield Tried(number, kind, outcome, detail, passed, tuple(used))
        if code := os.waitpid(child, 0)[1]:
            slow = os.WIFSIGNALED(code) and os.WTERMSIG(code) in (signal.SIGXCPU, signal.SIGALRM)
            yield Tried(at, fuzzer.begun(at)[0], "timeout" if slow else "crash", f"wait status {code}")
            at += 1
