"""A kill between any two system calls, and a power cut after any: nothing that was reported is lost, nothing stays."""

import ast
import builtins
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_compress
from pyro_compress import atomic
from pyro_compress.atomic import appended, write_atomically
from pyro_compress.deploy import export
from pyro_compress.graph.capture import capture
from pyro_compress.kinds import is_export
from pyro_compress.placing import recover, replaced, unfinished
from pyro_compress.provenance import Provenance
from pyro_compress.runs import run as runs
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.baselines import point_posterior
from pyro_compress.training.checkpoint import Snapshot, write
from pyro_compress.types import Splits

ROOT = Path(pyro_compress.__file__).parent
WRITERS = {"write_text", "write_bytes", "save_file", "savez", "savefig", "copyfile", "copy", "mkstemp", "savetxt"}
NOT_FILES = {("copy", "torch"), ("copy", "np")}


class Killed(BaseException):
    """What a process does not survive: from here on it changes nothing any more."""


class Disk:
    """What a process does to the disk, call by call.

    Args:
        last: calls before it ends; None: it lives.
    """

    def __init__(self, last: int | None = None):
        self.last, self.calls, self.reached = last, 0, list[str]()
        self.contents: dict[int, bytes] = {}
        self.listings: dict[int, dict[str, int]] = {}

    def call(self, name: str) -> None:
        if self.last is not None and self.calls >= self.last:
            raise Killed
        self.calls += 1
        self.reached.append(name)

    def synced(self, handle: int) -> None:
        """What lies behind a handle is on the disk from now on."""
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            self.listings[path.stat().st_ino] = {one.name: one.lstat().st_ino for one in path.iterdir()}
        else:
            self.contents[path.stat().st_ino] = path.read_bytes()

    def after_power_cut(self, folder: Path, into: Path, names: str) -> None:
        """Build what is left: with the names as they were brought to the disk, or with all names of this moment."""
        into.mkdir()
        inodes = {one.lstat().st_ino: one for one in (folder, *folder.rglob("*"))}
        now = {one.name: one.lstat().st_ino for one in folder.iterdir()}
        listing = now if names == "now" else self.listings.get(folder.stat().st_ino, {})
        for name, inode in listing.items():
            path = inodes.get(inode)
            if inode in self.listings or (path and path.is_dir()):
                self._folder(inode, path, into / name, names)
            else:
                (into / name).write_bytes(self.contents.get(inode, b""))

    def _folder(self, inode: int, path: Path | None, into: Path, names: str) -> None:
        into.mkdir()
        if names == "now" and path:
            listing = {one.name: one.lstat().st_ino for one in path.iterdir()}
        else:
            listing = self.listings.get(inode, {})
        for name, number in listing.items():
            child = path / name if path else None
            if number in self.listings or (child and child.is_dir()):
                self._folder(number, child, into / name, names)
            else:
                (into / name).write_bytes(self.contents.get(number, b""))


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """Let a disk see, and perhaps end, what happens in this block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir"):
            real = getattr(os, name)

            def call(*arguments: Any, _real: Callable[..., Any] = real, _name: str = name, **options: Any) -> Any:
                disk.call(f"{_name} {arguments[0]}")
                return _real(*arguments, **options)

            patch.setattr(os, name, call)

        def sync(handle: int) -> None:
            disk.call(f"sync {os.readlink(f'/proc/self/fd/{handle}')}")
            disk.synced(handle)

        def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wxa"):
                disk.call(f"open {path}")
            return builtins.open(path, mode, *arguments, **options)

        patch.setattr(os, "fsync", sync)
        patch.setattr(atomic, "open", opened, raising=False)
        yield


CONFIG = FitConfig(prior="none", hidden=(4,), epochs=1, device="cpu")


@pytest.fixture
def fits(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, float, dict[str, Any]], None]:
    """A fit that takes no time and ends as every fit does: its weights are all one number."""

    graphs = []

    def fit(out: Path, number: float, **options: Any) -> None:
        def fitted(net, splits, config, note, kept) -> tuple[Any, bytes]:
            checkpointer, _ = kept
            if checkpointer.latest() is None:
                write(Snapshot("point", {"a": torch.full((2,), number)}, {"history": []}), checkpointer.folder)
                write(Snapshot("point", {"a": torch.full((2,), number)}, {"history": []}), checkpointer.folder)
            tensors = {name: torch.full_like(tensor, number) for name, tensor in net.state_dict().items()}
            graphs[:] = graphs or [capture(net, splits.input_shape)]
            return point_posterior(graphs[0], tensors, Provenance(config.provenance)), b""

        monkeypatch.setattr(runs, "_fit", fitted)
        monkeypatch.setattr(runs, "_loaded", lambda config, download, group: digits)
        fit_run(CONFIG, out, **options)

    return fit


def number_of(out: Path) -> float:
    """Which fit a run is of."""
    return float(next(iter(load_run(out).posterior.tensors.values())).flatten()[0])


FILES = ["config.toml", "history.jsonl", "posterior.safetensors"]


def moments(work: Callable[[Path], None], place: Path) -> int:
    """Calls that a piece of work makes, all of which it must survive."""
    disk = Disk()
    with watched(disk):
        work(place)
    return disk.calls


SLOW = [pytest.param(ending, marks=pytest.mark.slow) for ending in ("kill", "power cut, names behind")]


@pytest.mark.parametrize("ending", ["power cut, names ahead", *SLOW])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_fit_that_ends_anywhere_is_found_again(ending: str, replaces: bool, fits, tmp_path: Path) -> None:
    """Whatever call it ends before, a run is found, or the fit goes on; with --force there is one at any moment."""

    def begun(place: Path) -> Path:
        place.mkdir()
        if replaces:
            fits(place / "run", 1.0)
        return place

    def work(place: Path) -> None:
        fits(place / "run", 2.0, force=replaces)

    calls = moments(work, begun(tmp_path / "whole"))
    assert calls > 25
    for last in range(calls + 1):
        place, disk = begun(tmp_path / f"{last}"), Disk(last)
        for path in (place, *place.rglob("*")):  # what was there before is on the disk
            handle = os.open(path, os.O_RDONLY)
            disk.synced(handle)
            os.close(handle)
        ended = False
        with watched(disk):
            try:
                work(place)
                ended = True
            except Killed:
                pass
        left = place
        if ending != "kill":
            left = tmp_path / f"{last}-left"
            disk.after_power_cut(place, left, "now" if ending.endswith("ahead") else "synced")
        check(left / "run", ended, replaces, fits)
        shutil.rmtree(place)
        shutil.rmtree(left, ignore_errors=True)


def check(out: Path, ended: bool, replaces: bool, fits) -> None:
    """What the next command finds, and what going on ends in."""
    complete = replaces or ended
    if complete:
        assert number_of(out) == (2.0 if ended else number_of(out))
        assert number_of(out) in (1.0, 2.0)
    posterior = unfinished(out) / "posterior.safetensors"
    if not out.exists() and posterior.is_file() and posterior.stat().st_size:
        assert number_of(out) == 2.0
    elif not ended:
        fits(out, 2.0, force=replaces, checkpointing=CheckpointConfig(resume=True))
        assert number_of(out) == 2.0
    fits(out, 3.0, force=True)
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_the_next_command_says_what_it_found(fits, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed before the folder got its name, while it replaced another one, and before it was tidied."""
    out = tmp_path / "run"
    fits(out, 1.0)
    os.replace(out, unfinished(out))
    assert number_of(out) == 1.0
    assert "run lay complete in .run.unfinished, left by an ended process; it is in its place now" in caplog.text
    os.replace(out, replaced(out))
    assert number_of(out) == 1.0
    assert "run lay in .run.replaced, left by an ended process; it is in its place again" in caplog.text
    (out / ".lock").write_text("")
    (out / "checkpoint-000001.safetensors").write_text("")
    shutil.copytree(out, replaced(out))
    assert number_of(out) == 1.0
    assert "run is complete; what an ended process had left in it or beside it was removed" in caplog.text
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_complete_run_is_never_started_anew(fits, tmp_path: Path) -> None:
    """Complete, but without its name: a plain fit is refused, a resumed one has nothing left to do."""
    for options in ({}, {"checkpointing": CheckpointConfig(resume=True)}):
        out = tmp_path / f"run{len(options)}"
        fits(out, 1.0)
        os.replace(out, unfinished(out))
        if options:
            fits(out, 2.0, **options)
        else:
            with pytest.raises(ValueError, match="exists and is not empty"):
                fits(out, 2.0)
        assert number_of(out) == 1.0


def test_an_error_of_the_user_leaves_checkpoints(fits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed fit that does not find its data keeps what it has."""
    disk = Disk(20)
    with watched(disk), pytest.raises(Killed):
        fits(tmp_path / "run", 1.0)
    kept = sorted(unfinished(tmp_path / "run").glob("checkpoint-*"))
    assert kept

    def missing(config, download, group) -> None:
        raise ValueError("no such data")

    monkeypatch.setattr(runs, "_loaded", missing)
    with pytest.raises(ValueError, match="no such data"):
        fit_run(CONFIG, tmp_path / "run", checkpointing=CheckpointConfig(resume=True))
    assert sorted(unfinished(tmp_path / "run").glob("checkpoint-*")) == kept


@pytest.mark.parametrize("names", ["now", "synced"])
def test_a_file_is_old_or_new_whatever_happens(names: str, tmp_path: Path) -> None:
    """And new once the call has returned; the next write takes away what a killed one left."""
    calls = moments(lambda place: write_atomically(place / "a", b"new"), tmp_path)
    assert calls == 4
    for last in range(calls + 1):
        place = tmp_path / f"{last}"
        place.mkdir()
        before = Disk()
        with watched(before):
            write_atomically(place / "a", b"old")
        disk = Disk(last)
        disk.contents, disk.listings, ended = before.contents, before.listings, False
        with watched(disk):
            try:
                write_atomically(place / "a", b"new")
                ended = True
            except Killed:
                pass
        disk.after_power_cut(place, tmp_path / f"{last}-left", names)
        assert (tmp_path / f"{last}-left" / "a").read_bytes() in ((b"new",) if ended else (b"old", b"new"))
        assert (place / "a").read_bytes() in ((b"new",) if ended else (b"old", b"new"))
        write_atomically(place / "a", b"third")
        assert [path.name for path in place.iterdir()] == ["a"]


def test_an_exported_folder_is_old_or_new_whatever_happens(tmp_path: Path) -> None:
    """Killed anywhere, the next export of that name finds one of both, and leaves nothing else."""

    def exported(out: Path, text: bytes) -> None:
        with export.replacing(out) as folder:
            write_atomically(folder / "run.py", text)
            write_atomically(folder / "network.json", b'{"producer": "pyro-compress 0"}')

    def work(place: Path) -> None:
        exported(place / "net", b"new")

    for name in ("whole", *map(str, range(30))):
        (tmp_path / name).mkdir()
        exported(tmp_path / name / "net", b"old")
    calls = moments(work, tmp_path / "whole")
    assert 10 < calls < 30
    for last in range(calls):
        out = tmp_path / f"{last}" / "net"
        with watched(Disk(last)), pytest.raises(Killed):
            work(out.parent)
        recover(out, is_export)
        assert (out / "run.py").read_bytes() in (b"old", b"new")
        exported(out, b"third")
        assert [path.name for path in out.parent.iterdir()] == ["net"]
        assert sorted(path.name for path in out.iterdir()) == ["network.json", "run.py"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_rights_are_what_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a", b"")
        with appended(tmp_path / "b") as add:
            add("line")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}
    assert (tmp_path / "b").read_text() == "line\n"


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "there" / "b")
    write_atomically(tmp_path / "a", b"x")
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "there" / "b").read_bytes() == b"x"


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    """Temporary files of living processes and of other machines are not touched."""
    theirs = tmp_path / f".a.{atomic._HOST}-{os.getppid()}-0.tmp"
    elsewhere = tmp_path / ".a.00000000-999999999-0.tmp"
    dead = tmp_path / f".a.{atomic._HOST}-999999999-0.tmp"
    for path in (theirs, elsewhere, dead):
        path.write_bytes(b"")
    write_atomically(tmp_path / "a", b"")
    assert {path.name for path in tmp_path.iterdir()} == {"a", theirs.name, elsewhere.name}


def test_nothing_else_writes_files() -> None:
    """Files are written by `atomic` alone; lock files, which hold nothing, by `locks`."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in ("atomic.py", "locks.py"):
            found += [f"{name}:{node.lineno}" for node in ast.walk(ast.parse(path.read_text())) if _writes(node)]
    assert found == []


def _writes(node: ast.AST) -> bool:
    """Whether this is a call that writes a file by itself."""
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if any(isinstance(part, ast.Constant) and str(part.value).startswith("/proc/") for part in ast.walk(called)):
        return False  # a switch of the kernel
    if isinstance(called, ast.Attribute):
        owner = called.value.id if isinstance(called.value, ast.Name) else ""
        if called.attr in {"save", "savez"} and owner == "np":
            return not isinstance(node.args[0], ast.Name) or node.args[0].id != "file"
        if called.attr in ("savefig", "save", "to_netcdf"):
            return not (called.attr == "save" and owner in ("file", "torch")) and _into_a_path(node)
        if called.attr in ("copy", "copyfile", "move") and owner == "shutil":
            return True
        if called.attr in WRITERS - {"copy", "savefig", "savez", "copyfile"}:
            return True
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if name != "open" or (isinstance(called, ast.Attribute) and getattr(called.value, "id", "") in ("os", "Image")):
        return False
    modes = [a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)]
    return any(isinstance(mode, str) and set(mode) <= set("rwxabt+") and set(mode) & set("wxa+") for mode in modes)


def _into_a_path(node: ast.Call) -> bool:
    """Whether the first thing that is written to is a path: not a buffer, nor a file of `atomic.written`."""
    first = node.args[0] if node.args else None
    return "path" in ast.unparse(first) if first else False
