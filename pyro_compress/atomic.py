"""Files that are whole or not there, whatever ends the process or the machine: the one place that writes files.

A file is written under a temporary name beside its own, with the rights that the umask leaves, brought to the disk
(fsync), renamed, and the rename is brought to the disk too. So a name means the old file or the new one, and what was
reported as written is there after a power cut. What a killed process left under a temporary name goes with the next
write of the same file, or when its folder is put in place (`pyro_compress.placing`).
"""

from __future__ import annotations

import errno
import os
import platform
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_NUMBERS = count()
_WRITING: set[str] = set()
"""Temporary files that this process is writing."""
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-\d+\.tmp")
"""Names of files that are being written."""
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What file systems answer that cannot bring a folder to the disk."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file: whole and on the disk, or not at all.

    Raises:
        OSError: it cannot be written, or the disk is full; what was there stays.
    """
    with written(path) as file:
        file.write(data)


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, or by its name, which is temporary; at the end of the block it becomes `path`.

    Where `path` is a link, what it points to is replaced.

    Raises:
        OSError: as for `write_atomically`.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    drop_left(target.parent, target.name)
    temporary = temporary_name(target)
    _WRITING.add(str(temporary))
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        _WRITING.discard(str(temporary))


@contextmanager
def appended(path: Path) -> Iterator[Callable[[str], None]]:
    """A log that begins anew and can be followed while it grows: gives a function that adds a line.

    It is on the disk at the end of the block; until then its lines must be known elsewhere too.
    """
    with open(path, "wb") as file:

        def add(line: str) -> None:
            file.write(f"{line}\n".encode())
            file.flush()

        yield add
        os.fsync(file.fileno())
    sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """Where a file lies while it is written: it names the process, so that others can tell whether that lives."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{next(_NUMBERS)}.tmp")


def drop_left(folder: Path, name: str = "") -> None:
    """Remove what killed processes of this machine left of files that they were writing: of one file, or of all."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for path in [Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(".tmp")]:
            found = TEMPORARY.fullmatch(path.name)
            if found and found["name"] == (name or found["name"]) and _left(path, found):
                path.unlink(missing_ok=True)


def _left(path: Path, found: re.Match[str]) -> bool:
    """Whether nobody is writing it any more."""
    process = int(found["process"])
    if found["host"] != _HOST or os.name != "posix":
        return False
    if process == os.getpid():
        return str(path) not in _WRITING
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    if os.name == "posix":  # no other system can
        _sync(folder)


def sync_tree(folder: Path) -> None:
    """Bring everything in a folder to the disk, whoever wrote it."""
    if os.name != "posix":
        return  # elsewhere a file must be open for writing for that
    for place, _, names in os.walk(folder):
        for path in [Path(place, name) for name in names]:
            if not path.is_symlink() and path.is_file():
                _sync(path)
        _sync(Path(place))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)
