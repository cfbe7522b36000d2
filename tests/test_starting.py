"""Further processes: so many at a time, ended with whoever started them."""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from pyro_compress.runs import starting
from pyro_compress.runs.starting import Ended, command, processes, some_at_a_time

CHILD = """
import signal, sys, time
from pathlib import Path
from pyro_compress.runs.starting import end_with_parent
def stop(number, frame):
    Path(sys.argv[1]).write_text("stopped")
    sys.exit()
signal.signal(signal.SIGTERM, stop)
end_with_parent()
Path(sys.argv[1]).write_text("begun")
time.sleep(60)
"""
PARENT = f"""
import sys, time
from pyro_compress.runs.starting import processes
with processes() as start:
    start([sys.executable, "-c", {CHILD!r}, sys.argv[1]])
    time.sleep(60)
"""


def python(*words: str) -> Sequence[str]:
    return [sys.executable, "-S", "-c", *words]


def reads(path: Path, text: str) -> bool:
    """Whether a file comes to hold a text, in twenty seconds at most."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if path.is_file() and path.read_text() == text:
            return True
        time.sleep(0.01)
    return False


def test_so_many_at_a_time(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
here, mine = Path(sys.argv[1]), Path(sys.argv[1]) / sys.argv[2]
mine.touch()
time.sleep(0.05)
print(len(list(here.iterdir())) * 100_000 * "x", end="")
mine.unlink()
sys.exit(int(sys.argv[2]))
"""
    found = list(some_at_a_time([python(code, str(tmp_path), str(n)) for n in range(5)], 2))
    ended = sorted((one for one in found if one), key=lambda one: one.place)
    assert [(one.place, one.code) for one in ended] == [(n, n) for n in range(5)]
    assert {len(one.output) // 100_000 for one in ended} <= {1, 2}


def test_what_it_says_while_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "TICK_SECONDS", 0.2)
    monkeypatch.setattr(starting, "LOOK_SECONDS", 0.05)
    with closing(some_at_a_time([python("import time; time.sleep(60)"), python("print(1)")], 2)) as found:
        seen = [next(found) for _ in range(6)]
    assert (None in seen, [one for one in seen if one]) == (True, [Ended(1, 0, "1\n")])


def test_processes_end_with_the_block(tmp_path: Path) -> None:
    with processes({"SAID": "a word"}) as start:
        first = start([sys.executable, "-c", CHILD, str(tmp_path / "first")])
        second = start(python("import os; print(os.environ['SAID'])"), stdout=subprocess.PIPE)
        assert second.communicate()[0] == b"a word\n"
        assert reads(tmp_path / "first", "begun")
    assert (tmp_path / "first").read_text() == "stopped"
    assert first.returncode == 0


def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "child")])
    assert reads(tmp_path / "child", "begun")
    parent.kill()
    parent.wait()
    assert reads(tmp_path / "child", "stopped")


def test_parts_of_a_command() -> None:
    parts = command("tune", "a b.toml", out=Path("x"), worker=True, resume=False, minutes=None, seed=0, data_dir="")
    assert parts[:4] == [sys.executable, "-P", "-m", "pyro_compress"]
    assert parts[4:] == ["tune", "a b.toml", "--out", "x", "--worker", "--seed", "0"]
