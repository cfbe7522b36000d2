"""Pipes, devices, sockets and links where a file or folder is expected: one line, at once, and nothing written."""

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import pyro_compress as pc
from pyro_compress import placing
from pyro_compress.cli.main import main
from pyro_compress.foreign import ordinary
from pyro_compress.locks import claimed
from pyro_compress.placing import recover, unordinary
from pyro_compress.runs.folder import Run, new_folder

SECONDS = 30
"""After so long a command waits for what never comes."""
COMMANDS = {
    "evaluate @.pcn": "is a pipe",
    "export @.pcn -o out.onnx": "is a pipe",
    "predict @.pcn digits": "is a pipe",
    "predict RUN @.npz": "is a pipe",
    "predict RUN @.npy": "is a pipe",
    "predict RUN @.png": "is a pipe",
    "predict RUN @.csv": "is a pipe",
    "info @.pcn": "is a pipe",
    "info @.pt2": "is a pipe",
    "info @.onnx": "is a pipe",
    "info @.safetensors": "is a pipe",
    "predict RUN digits -o @.csv --force": "is no ordinary file",
    "bench @.pcn": "is a pipe",
    "report RUN --network @.pcn -o page.html": "is a pipe",
    "compress RUN --config @.toml --out o.pcn": "is a pipe",
    "compress --net @.pcn --init @.pcn --data digits --out o.pcn": "is a pipe",
    "compress --net mlp --hidden 20 --init @.safetensors --data digits --out o.pcn": "is a pipe",
    "fit --config @.toml": "is a pipe",
    "fit --net @.pcn --data digits --out o": "is a pipe",
    "fit --init @.pt --data digits --hidden 20 --out o": "is a pipe",
    "fit --data @.npz --out o": "is a pipe",
    "fit --data @.csv --target y --out o": "is a pipe",
    "fit --data @.parquet --target y --out o": "is a pipe",
    "fit --resume @": "has no unfinished fit",
    "compare @.toml --out o": "is a pipe",
    "tune @.toml --out o": "is a pipe",
    "inspect @": "is no run folder",
    "compress RUN --out @.pcn --force": "is no ordinary file",
}
"""Command -> a part of its line, where `@` is a pipe that nobody writes to."""


@contextmanager
def in_time() -> Iterator[None]:
    """Fail where a read waits."""

    def late(*_: Any) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def told(arguments: list[str]) -> str:
    with in_time():
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output.strip().splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_is_refused_at_once(command: str, tmp_path: Path, fitted_run: Run, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(fitted_run.path) if word == "RUN" else word for word in command.split()]
    for word in {word for word in arguments if word.startswith("@")}:
        os.mkfifo(word)
    assert COMMANDS[command] in told(arguments)


def test_what_is_no_file_has_a_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(tmp_path / "socket"))
    for path, kind in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path / "socket", "a socket"),
        (Path("/dev/zero"), "a device"),
    ):
        with pytest.raises(ValueError, match=rf"is {kind}; write what it gives to a file, and give that one"):
            ordinary(path)
    for path in (tmp_path, Path(__file__), tmp_path / "nothing"):
        assert ordinary(path) == path


@pytest.mark.parametrize("name", ["config.toml", "posterior.safetensors", "guide.safetensors", "history.jsonl"])
@pytest.mark.parametrize("command", ["evaluate", "inspect --draws 50 --rows 20"])
def test_a_run_with_a_pipe_in_it(name: str, command: str, tmp_path: Path, fitted_run: Run, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fitted_run.path, "run")
    (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)
    first, *more = command.split()
    with in_time():
        result = CliRunner().invoke(main, [first, "run", *more, "--json"])
    assert result.exit_code == 0 or len(result.output.strip().splitlines()) == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception


@pytest.mark.parametrize("name", ["history.jsonl", "posterior.safetensors", "config.toml", "frames/1.safetensors"])
@pytest.mark.parametrize("linked", [True, False])
def test_an_unfinished_fit_with_a_link_in_it_is_not_resumed(name: str, linked: bool, tmp_path: Path) -> None:
    """Its history, posterior and configuration would be written to where the links point."""
    folder, mine = tmp_path / ".run.unfinished", tmp_path / "mine"
    (folder / name).parent.mkdir(parents=True)
    mine.write_text("mine")
    (folder / "checkpoint-000001.safetensors").touch()
    (folder / name).symlink_to(mine) if linked else os.mkfifo(folder / name)
    assert unordinary(folder) == folder / name
    refused = pytest.raises(ValueError, match="is no ordinary file or folder: no fit of this program left it")
    with in_time(), refused, new_folder(tmp_path / "run", False, resume=True):
        pass
    assert mine.read_text() == "mine"


def test_a_lock_is_not_written_to_where_a_link_points(tmp_path: Path) -> None:
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.write_text("mine")
    run.mkdir()
    (run / placing.LOCK).symlink_to(mine)
    with pytest.raises(OSError, match="so it is no lock of this program"), claimed(run / placing.LOCK):
        pass
    assert not recover(run, lambda folder: True)
    assert mine.read_text() == "mine"


def test_a_link_to_nothing_is_not_written_through(tmp_path: Path, fitted_run: Run) -> None:
    """A folder of somebody else may hold one under the name that a command writes to by default."""
    shutil.copytree(fitted_run.path, tmp_path / "run")
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "elsewhere")
    assert "is a link to what is not there" in told(["report", str(tmp_path / "run")])
    assert not (tmp_path / "elsewhere").exists()


def test_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "loop.pcn").symlink_to(tmp_path / "loop.pcn")
    assert "does not exist" in told(["evaluate", str(tmp_path / "loop.pcn")])


@pytest.mark.parametrize("command", ["inspect", "report", "compress", "evaluate", "info"])
def test_a_fit_that_was_stopped_is_told_of(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state lies under a hidden name: that there is no such folder helps nobody. Nor does advice that fails."""
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / ".run.unfinished").mkdir()

    def said(*words: str, code: int = 2) -> str:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == code
        return " ".join(result.output.split())

    never = "the fit of run was stopped before its first checkpoint, there is nothing to resume; start it again"
    assert never in said(command, "run")
    assert never in said("fit", "--resume", "run", code=1)
    (folder / "checkpoint-000001.safetensors").touch()
    assert "the fit of run was stopped; go on with: pyro-compress fit --resume run" in said(command, "run")
    with pytest.raises(ValueError, match="the fit of run was stopped; go on with"):
        pc.load_run("run")
    with claimed(folder / ".lock"):
        assert "the fit of run still runs; wait for its end" in said(command, "run")


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("compare run", "the TOML file of a study; files that are there stand side by side with: pyro-compress bench"),
        ("tune run", "the TOML file of a search"),
        ("bench run", "a .pcn file, as compress writes it into a run's folder"),
        ("fit --config run", "a TOML file, as a run's config.toml"),
        ("compress run --config run", "a TOML file with a [compress] table"),
        ("report run --network run", "a .pcn file, as compress writes it"),
    ],
)
def test_a_folder_where_a_file_is_wanted(
    command: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 2
    assert f"run is a folder; give {wanted}" in " ".join(result.output.split())
