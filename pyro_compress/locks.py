"""Lock files: what several processes on one folder, of one machine or of several, must not do at the same time.

The system lets go of a lock when its process ends, however it ends; a process that this one begins does not inherit
it. On a network file system locks must reach the other machines (NFS does by default; not if mounted with `nolock` or
`local_lock`). The locks are those of the package `filelock`: `flock` on POSIX systems, byte ranges on Windows.

Whoever holds a lock writes its process and machine into the file and touches it every `BEAT_SECONDS`. A holder that is
stopped, or hangs, keeps the lock but falls silent: who waits for it says so, in one line.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_compress.foreign import ordinary

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""After so long without a sign a holder is taken for stopped: many beats, which a busy machine may delay."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; wait for it where another process does, and say so where that one is silent."""
    lock, silence = _lock(path), Silence()
    while True:
        try:
            lock.acquire(timeout=SILENT_SECONDS / 2)
            break
        except Timeout:
            silence.warn_once(path)
    try:
        with _beating(path):
            yield
    finally:
        lock.release()


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a lock file, or be told False at once where another process does."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        with _beating(path):
            yield True
    finally:
        lock.release()


def is_free(path: Path) -> bool:
    """Whether nobody holds a lock file, which may not be there yet."""
    if not path.exists():
        return True
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    lock.release()
    return True


def _lock(path: Path) -> FileLock:
    """The lock of a file. What is there and no lock file is none of ours: a link would be written to where it points.

    Raises:
        OSError: it is a link, or no ordinary file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "is no ordinary file, so it is no lock of this program; move it away", str(path))
    return FileLock(path, is_singleton=False)


@contextmanager
def _beating(path: Path) -> Iterator[None]:
    """Sign a lock file that is held, and go on touching it."""
    with suppress(OSError), path.open("w") as file:  # a note in a file that holds nothing else; not worth a sync
        file.write(f"process {os.getpid()} on {platform.node()}")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Silence:
    """How long the holders of lock files have given no sign, as seen from here: clocks of machines may differ."""

    def __init__(self) -> None:
        self.seen: dict[Path, tuple[float, float]] = {}
        self.warned: set[Path] = set()

    def seconds(self, path: Path) -> float:
        """Seconds in which nothing touched a lock file that was asked for before; 0 at the first time."""
        try:
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        if self.seen.get(path, (None,))[0] != touched:
            self.seen[path] = (touched, time.monotonic())
        return time.monotonic() - self.seen[path][1]

    def warn_once(self, path: Path) -> None:
        """Say once that somebody waits for a lock whose holder has been silent for long."""
        if path not in self.warned and self.seconds(path) >= SILENT_SECONDS and not is_free(path):
            self.warned.add(path)
            log.warning("waiting for %s: %s", path, stopped(path))


def holder(path: Path) -> int:
    """The process that signed a lock file last; 0 where none did."""
    words = _signature(path).split()
    return int(words[1]) if len(words) > 1 and words[0] == "process" and words[1].isdecimal() else 0


def stopped(path: Path) -> str:
    """What to tell a user of a lock whose holder is silent."""
    number = holder(path) or "PROCESS"
    return (
        f"{_signature(path) or 'another process'} holds it and gives no sign any more; if it is stopped, let it go on "
        f"(kill -CONT {number}) or end it (kill -KILL {number})"
    )


def _signature(path: Path) -> str:
    try:
        return ordinary(path).read_text(errors="replace").strip()
    except (OSError, ValueError):
        return ""
