"""Folders that are whole or not there: made beside their place, put there by one rename, found again after a kill.

    .NAME.unfinished    a folder while it is made; one process holds its lock
    .NAME.replaced      an older NAME, while the new one takes its place
    NAME/.lock          the new one, until what it no longer needs is gone

Whatever moment a process or a machine ends at, a complete folder lies under one of these names, and `recover`, with
which every command begins, gives it its own.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_compress.atomic import drop_left, sync_folder, sync_tree
from pyro_compress.locks import claimed, is_free

log = logging.getLogger(__name__)

LOCK = ".lock"
"""Held in a folder by the process that makes it."""
CHECKPOINTS = "checkpoint-*.safetensors"
FRAMES = "frames"
"""With the checkpoints what an unfinished run needs, and a complete one no longer."""
Complete = Callable[[Path], bool]
"""Whether a folder holds everything."""


def unfinished(out: Path) -> Path:
    """Where a folder lies until it is complete."""
    return out.parent / f".{out.name}.unfinished"


def incomplete(out: Path) -> str:
    """What is to be said of a fit whose folder is not complete, and what to do; empty where there is none."""
    folder = unfinished(out)
    if out.exists() or not folder.is_dir():
        return ""
    if not is_free(folder / LOCK):
        return f"the fit of {out} still runs; wait for its end"
    if any(folder.glob(CHECKPOINTS)):
        return f"the fit of {out} was stopped; go on with: pyro-compress fit --resume {out}"
    return f"the fit of {out} was stopped before its first checkpoint, there is nothing to resume; start it again"


def replaced(out: Path) -> Path:
    """Where an older folder lies while a new one takes its place."""
    return out.parent / f".{out.name}.replaced"


@contextmanager
def making(out: Path) -> Iterator[Path | None]:
    """The folder in which `out` is made, its lock held; None where another process makes it."""
    folder = unfinished(out)
    make_folders(folder)
    with claimed(folder / LOCK) as free:
        yield folder if free else None


def emptied(folder: Path) -> None:
    """Drop what an earlier process left in a folder that is being made, but for the lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def unordinary(folder: Path) -> Path | None:
    """What in a folder is a link, a pipe or a device, by which a write would reach elsewhere or wait; None: nothing."""
    for place, names, files in os.walk(folder):
        for path in [Path(place, name) for name in (*names, *files)]:
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                return path
    return None


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, on the disk."""
    missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        sync_folder(one.parent)


def put_in_place(folder: Path, out: Path) -> None:
    """Give a complete folder its name; an older one under it goes, and then what only an unfinished one needs."""
    drop_left(folder)
    sync_tree(folder)
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists():
        if replaced(out).is_dir():
            shutil.rmtree(replaced(out))
        os.replace(out, replaced(out))
    os.replace(folder, out)
    sync_folder(out.parent)
    tidy(out)


def tidy(out: Path) -> None:
    """Remove what is left of the making of a complete folder; the lock goes last, for it says that there is more."""
    if replaced(out).is_dir():
        shutil.rmtree(replaced(out))
    if (out / FRAMES).is_dir():
        shutil.rmtree(out / FRAMES)
    for path in (*out.glob(CHECKPOINTS), *out.glob(f".{CHECKPOINTS}-*")):  # the latter as version 0.1 left them
        path.unlink()
    drop_left(out)
    (out / LOCK).unlink(missing_ok=True)


def recover(out: Path, complete: Complete) -> bool:
    """Finish what an ended process left half done about a folder, and say so; whether anything was.

    Nothing happens while another process is at it, or where the folder cannot be written.

    Args:
        out: the folder.
        complete: tells whether one of its kind is.
    """
    try:
        out = located(out)
        return _tidied(out, complete) if out.exists() else _found(out, complete)
    except OSError:
        return False


def located(out: Path) -> Path:
    """Where a folder lies: where it is a link, what that points to."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out


def _tidied(out: Path, complete: Complete) -> bool:
    if not (out / LOCK).exists() or not complete(out):
        return False
    with claimed(out / LOCK) as free:
        if free:
            tidy(out)
            log.warning("%s is complete; what an ended process had left in it or beside it was removed", out)
        return free


def _found(out: Path, complete: Complete) -> bool:
    new, old = unfinished(out), replaced(out)
    if new.is_dir():
        with claimed(new / LOCK) as free:
            if not free:
                return False
            if complete(new):
                put_in_place(new, out)
                log.warning("%s lay complete in %s, left by an ended process; it is in its place now", out, new.name)
                return True
    if not complete(old):
        return False
    os.replace(old, out)
    sync_folder(out.parent)
    log.warning("%s lay in %s, left by an ended process; it is in its place again", out, old.name)
    return True
