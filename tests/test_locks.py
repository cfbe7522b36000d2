"""Locks between processes: held while one lives, signed, and told of when its holder is stopped."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pyro_compress import locks
from pyro_compress.locks import Silence, claimed, holder, locked

HOLDER = """
import sys, time
from pathlib import Path
from pyro_compress import locks
locks.BEAT_SECONDS = 0.02
with locks.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


def grows(silence: Silence, path: Path, seconds: float) -> bool:
    """Whether a holder falls silent for so long, looked at for ten seconds at most."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if silence.seconds(path) >= seconds:
            return True
        time.sleep(0.02)
    return False


def test_a_stopped_holder_is_told_of_and_a_killed_one_lets_go(
    lock: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with claimed(lock) as free:
            assert not free
        assert holder(lock) == process.pid
        before = lock.stat().st_mtime_ns
        assert grows(Silence(), lock, 0.0)
        while lock.stat().st_mtime_ns == before:  # it gives signs
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(locks, "SILENT_SECONDS", 0.3)
        assert grows(Silence(), lock, 0.3)
        threading.Timer(1.0, process.kill).start()
        with locked(lock):  # waits, says so once, and has it when the holder is gone
            assert holder(lock) == os.getpid()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert f"waiting for {lock}: process {process.pid} on " in told[0]
    assert f"kill -CONT {process.pid}" in told[0]


def test_a_process_that_is_begun_does_not_inherit_a_lock(lock: Path) -> None:
    """Forked or started: when the one that took it lets go, it is free."""
    with locked(lock):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with claimed(lock) as free:
            assert free
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_nobody_signed(lock: Path) -> None:
    assert holder(lock) == 0
    assert Silence().seconds(lock) == 0
    lock.write_text("process x")
    assert holder(lock) == 0
    assert "another process" not in locks.stopped(lock)
