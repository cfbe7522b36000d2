"""Where a command may write: whether it can, and whether what is there may go. Asked before any work starts.

`--force` replaces what this program wrote: a file of the same kind, or a folder of a kind that holds nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pyro_compress.atomic import drop_left, temporary_name
from pyro_compress.kinds import KINDS, entries, is_runs
from pyro_compress.placing import located


def check_file(path: Path, kind: str, force: bool, option: str = "--out") -> None:
    """Refuse a file that cannot be written, or that is there and may not go.

    Args:
        path: the file.
        kind: name in `KINDS`.
        force: replace a file of this kind.
        option: what the user may choose another one with.

    Raises:
        ValueError: says why, and what to do.
    """
    another = f"choose another {option}"
    check_name(path, another)
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to what is not there; remove it, or {another}")
    path = located(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file; {another}")
    if path.exists():
        what, known = KINDS[kind]
        if not path.is_file():
            raise ValueError(f"{path} is no ordinary file; {another}")
        if not force:
            raise ValueError(f"{path} exists; {another}, or replace it with --force")
        if not known(path):
            raise ValueError(f"{path} is there and is no {what} of this program, so --force leaves it; {another}")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; make it first, or {another}")
    _try_to_write(path, another)


def check_folder(out: Path, known: Callable[[Path], list[str] | None], force: bool, what: str) -> None:
    """Refuse a folder that cannot be made, or that is there and may not go.

    Args:
        out: the folder.
        known: gives what in it is not of this program; None: it is no folder of this kind at all.
        force: replace one of this kind.
        what: is made.

    Raises:
        ValueError: says why, and what to do.
    """
    another = "choose another --out"
    check_name(out, another)
    here, place = Path.cwd(), Path(os.path.realpath(out))
    if place == here or place in here.parents:
        raise ValueError(f"{out} is the working directory, or holds it, and is not replaced; {another}")
    out = located(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} exists and is not a folder; {another}")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise ValueError(f"{out} exists and is not empty; {another}, or replace it with --force")
        if (foreign := known(out)) is None:
            raise ValueError(f"{out} is a folder that is no {what} of this program, so --force leaves it; {another}")
        if foreign:
            names = ", ".join(foreign[:3]) + (" and more" if len(foreign) > 3 else "")
            raise ValueError(f"{out} holds {names}, not written by this program; move it away, or {another}")
    _try_to_write(out, another)


def check_results(out: Path, known: Callable[[Path], bool], study: Path, what: str) -> None:
    """Refuse a folder in which results cannot be written, or which holds something else.

    Args:
        out: the folder.
        known: tells whether it holds results of this kind.
        study: the file that they are of, which may lie in it.
        what: results of what.

    Raises:
        ValueError: says why, and what to do.
    """
    another = "choose another --out"
    check_name(out, another)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} exists and is not a folder; {another}")
    if out.is_dir() and not known(out):
        if others := [path.name for path in entries(out) if not (_copy(path, study) or is_runs(path))]:
            names = ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
            raise ValueError(f"{out} holds {names} and no results of {what}; {another}")
    _try_to_write(out / study.name, another)


def check_name(path: Path, another: str = "choose another --out") -> None:
    """Refuse a name that the system cannot even look for.

    Raises:
        ValueError: says why.
    """
    try:
        path.exists()
        (path.parent / f".{path.name}.unfinished").exists()
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "it is no name"
        raise ValueError(f"{path} cannot be written: {reason}; {another}") from error


def _copy(path: Path, of: Path) -> bool:
    """Whether a file is another one, or a copy of it."""
    return path.is_file() and path.read_bytes() == of.read_bytes()


def _try_to_write(path: Path, another: str) -> None:
    """Make a file beside a path, in the nearest folder that is there, and remove it."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder, so {path} cannot be written; {another}")
    drop_left(folder, path.name)
    probe = temporary_name(folder / path.name)
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.unlink(probe)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ValueError(f"{path} cannot be written: {folder}: {reason}; {another}") from error
