"""A fit that was stopped, killed or damaged ends in the bytes of one that was not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import save
from stored import stored_posterior

from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.data.splits import load_splits
from pyro_compress.placing import LOCK, unfinished
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import Run, new_folder, unfinished_config
from pyro_compress.runs.run import fit_run, initial_net
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.baselines import fit_baseline
from pyro_compress.training.checkpoint import Checkpointer, Interrupted, Snapshot, read, stops_on_signals, write
from pyro_compress.types import Data, Splits


@pytest.fixture(scope="module")
def splits() -> Splits:
    full = load_splits("digits")
    return Splits(Data(full.train.x[:320], full.train.y[:320]), full.validation, full.test, full.classes)


class Stopping(Checkpointer):
    """Stops after given numbers of steps, one of them per life."""

    def __init__(self, folder: Path, stops: list[int]):
        super().__init__(folder, every_epochs=3, every_minutes=0.0)
        self.stops, self.steps = stops, 0

    def after_step(self, finished_epoch, take) -> None:
        self.steps += 1
        if self.stops and self.steps == self.stops[0]:
            self.stops.pop(0)
            self.stop.set()
        super().after_step(finished_epoch, take)


def fitted(config: FitConfig, splits: Splits, checkpointer: Checkpointer | None) -> bytes:
    config = resolve(config, len(splits.train))
    net = initial_net(config, splits)
    if config.prior == "none":
        return stored_posterior(fit_baseline(net, splits, config, checkpointer=checkpointer)[0])
    return stored_posterior(extract(fit_posterior(net, splits, config, checkpointer=checkpointer)))


CASES = {
    "horseshoe": FitConfig(prior="horseshoe", hidden=(12,), epochs=6),
    "one-sample KL": FitConfig(prior="spike-and-slab", hidden=(12,), epochs=4, samples=2, pretrain_epochs=0),
    "compiled": FitConfig(prior="log-uniform", hidden=(12,), epochs=5, compile="on"),
    "auto guide": FitConfig(prior="gaussian", hidden=(12,), epochs=4, guide="auto-normal"),
    "dropout": FitConfig(prior="none", hidden=(12,), epochs=5, dropout=0.3),
    "iterative pruning": FitConfig(prior="none", hidden=(12,), epochs=5, pruning="iterative", prune_to=0.8),
    "gradual pruning": FitConfig(prior="none", hidden=(12,), epochs=5, pruning="gradual", prune_to=0.8),
    "surgery": FitConfig(prior="none", hidden=(12,), epochs=5, pruning="surgery", prune_to=0.8),
    "rewinding": FitConfig(
        prior="none", hidden=(12,), epochs=5, pruning="rewind", prune_to=0.8, lr_schedule="constant"
    ),
    "momentum": FitConfig(prior="none", hidden=(12,), epochs=5, optimizer="sgd", lr=0.05),
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c == "compiled" else c for c in CASES])
def test_stopped_anywhere_it_ends_the_same(case: str, splits: Splits, tmp_path: Path) -> None:
    """Stopped in the first phase, in the middle of an epoch, at the end of one; five steps make an epoch."""
    check_stopped(CASES[case], splits, tmp_path, [8] if case == "compiled" else [3, 5, 7])  # each life compiles


FALLING = {
    "point": FitConfig(prior="none", hidden=(12,), epochs=40, lr=0.1, patience=2),
    "posterior": FitConfig(
        prior="log-uniform", hidden=(12,), epochs=40, pretrain_epochs=0, kl_warmup=0.0, lr=0.3, patience=2
    ),
}


@pytest.mark.parametrize("case", FALLING)
def test_stopped_while_the_rates_fall_it_ends_the_same(case: str, splits: Splits, tmp_path: Path) -> None:
    """Where patience runs out depends on the processor; the rates fall during the last two epochs, ten steps."""
    config = FALLING[case]
    for name in ("undisturbed", "stopped"):
        (tmp_path / name).mkdir()
    undisturbed = Stopping(tmp_path / "undisturbed", [])
    fitted(config, splits, undisturbed)
    assert 20 < undisturbed.steps < config.epochs * 5
    check_stopped(config, splits, tmp_path / "stopped", [undisturbed.steps - 12, 5, 2])


def check_stopped(config: FitConfig, splits: Splits, tmp_path: Path, stops: list[int]) -> None:
    """Stopped several times, it ends in the same bytes."""
    wanted, lives = fitted(config, splits, None), len(stops)
    for life in range(lives + 1):
        checkpointer = Stopping(tmp_path, stops[life : life + 1])
        try:
            found = fitted(config, splits, checkpointer)
            break
        except Interrupted:
            assert len(list(tmp_path.glob("checkpoint-*"))) <= 2
    assert life == lives
    assert found == wanted


def test_damaged_checkpoints_are_passed_over(splits: Splits, tmp_path: Path) -> None:
    config = CASES["horseshoe"]
    for stops in ([4], [6]):
        with pytest.raises(Interrupted):
            fitted(config, splits, Stopping(tmp_path, stops))
    first, second = sorted(tmp_path.glob("checkpoint-*"))
    second.write_bytes(second.read_bytes()[:1000])
    assert Checkpointer(tmp_path).latest().numbers["step"] == read(first).numbers["step"]
    with pytest.raises(ValueError, match="is no checkpoint of this program"):
        read(second)
    assert fitted(config, splits, Checkpointer(tmp_path)) == fitted(config, splits, None)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        write(Snapshot("svi", {"a": torch.full((2,), float(step))}, {"step": step}), tmp_path)
    assert [read(path).numbers["step"] for path in sorted(tmp_path.glob("*"))] == [3, 4]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pyro_compress", "fit", *arguments]


SIGNALLED = FitConfig(hidden=(8,), epochs=40, limit=400, threads=1, device="cpu")
TINY = ("--hidden", "8", "--epochs", "40", "--limit", "400", "--threads", "1", "--device", "cpu")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob("checkpoint-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)


def test_a_signal_after_the_last_step_counts(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), stops_on_signals(Checkpointer(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals(number: signal.Signals, shared: Callable[[FitConfig], Run], tmp_path: Path) -> None:
    """Whatever ends the process, resuming ends in the bytes of an uninterrupted fit."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(*TINY, "--checkpoint-epochs", "1", "--out", str(out)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    wait_for(unfinished(out), process)
    process.send_signal(number)
    error = process.communicate()[1].decode()
    assert not out.exists()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130
        assert f"stopped, state kept; go on with: pyro-compress fit --resume {out}" in error
    config = unfinished_config(out)
    with pytest.raises(ValueError, match="an unfinished fit lies in"):
        fit_run(config, out)
    fit_run(config, out, checkpointing=CheckpointConfig(resume=True))
    assert not unfinished(out).exists()
    wanted = shared(SIGNALLED)
    assert (out / "posterior.safetensors").read_bytes() == (wanted.path / "posterior.safetensors").read_bytes()
    assert len((out / "history.jsonl").read_text().splitlines()) == 40
    with pytest.raises(ValueError, match="is complete; nothing to resume"):
        unfinished_config(out)


def test_a_full_disk_leaves_the_last_checkpoint(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyro_compress.training.checkpoint

    write_tensors, files = pyro_compress.training.checkpoint.write_tensors, []

    def full(file: IO[bytes], tensors: Mapping[str, torch.Tensor], metadata: str) -> None:
        if len(files) == 2:
            raise OSError(28, "No space left on device")
        files.append(file)
        write_tensors(file, tensors, metadata)

    monkeypatch.setattr(pyro_compress.training.checkpoint, "write_tensors", full)
    config = FitConfig(hidden=(8,), epochs=5, pretrain_epochs=1, limit=150, device="cpu")
    with pytest.raises(OSError, match="No space left"):
        fit_run(config, tmp_path / "run", checkpointing=CheckpointConfig(every_epochs=1))
    monkeypatch.undo()
    found = fit_run(config, tmp_path / "run", checkpointing=CheckpointConfig(resume=True))
    assert found.posterior.tensors.keys()
    assert Checkpointer(unfinished(tmp_path / "run")).latest() is None


def as_run(folder: Path) -> None:
    """The least that a folder is a run by."""
    (folder / "config.toml").write_text('[fit]\nprior = "none"\n')
    (folder / "posterior.safetensors").write_bytes(save({"a": torch.zeros(1)}))


@pytest.mark.parametrize("force", [False, True])
def test_two_fits_do_not_write_one_folder(force: bool, tmp_path: Path) -> None:
    """The second is refused and leaves the first one's folder as it is; once that is complete the way is free."""
    out = tmp_path / "run"
    with new_folder(out, force=False) as folder:
        (folder / "history.jsonl").write_text("one")
        (folder / "checkpoint-000001.safetensors").write_text("")
        with pytest.raises(ValueError, match="another fit is writing"), new_folder(out, force):
            raise AssertionError
        assert (folder / "history.jsonl").read_text() == "one"
    assert sorted(path.name for path in out.iterdir()) == ["history.jsonl"]
    as_run(out)
    with new_folder(out, force=True) as folder:
        assert [path.name for path in folder.iterdir()] == [LOCK]
        (folder / "history.jsonl").write_text("two")
    assert (out / "history.jsonl").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
