"""Several processes on one fit: the same network everywhere, the same as from one process, and an end for all of them.

The processes are forked from a server that has imported everything already.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from click.testing import CliRunner
from stored import stored_posterior
from torch import Tensor, nn

from pyro_compress.bayes.model import Likelihood
from pyro_compress.bayes.train_state import first_train_state
from pyro_compress.cli.main import main
from pyro_compress.data.splits import load_splits
from pyro_compress.graph.capture import capture
from pyro_compress.machine import prepare
from pyro_compress.process_group import ALONE, ProcessGroup, joined
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import unfinished, unfinished_config
from pyro_compress.runs.run import fit_run, initial_net
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.minibatches import Minibatches
from pyro_compress.types import Data

Work = Callable[..., Any]
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Group:
    """Processes that do the same work, as torchrun would start them; `results` waits for what they return."""

    def __init__(self, size: int, work: Work, *arguments: Any):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "pyro_compress.bayes.fit", "pyro_compress.training.baselines"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(size):
            values = dict(zip(ENVIRONMENT, (rank, size, rank, "127.0.0.1", port), strict=True))
            mine, theirs = context.Pipe(duplex=False)
            self.processes.append(context.Process(target=member, args=(theirs, values, work, *arguments)))
            self.pipes.append(mine)
        for process in self.processes:
            process.start()

    def results(self) -> list[Any]:
        found = []
        for pipe in self.pipes:
            with contextlib.suppress(EOFError):  # a process that was killed says nothing
                found.append(pipe.recv() if pipe.poll(120) else "silent")
        for process in self.processes:
            process.join(60)
            if process.is_alive():
                process.kill()
        return found


def member(pipe: Any, values: dict[str, Any], work: Work, *arguments: Any) -> None:
    os.environ.update({name: str(value) for name, value in values.items()})
    prepare("cpu", 1)
    try:
        with joined("cpu") as group:
            pipe.send(work(group, *arguments))
    except BaseException as error:
        pipe.send((type(error).__name__, str(error)))


def together(size: int, work: Work, *arguments: Any) -> list[Any]:
    return Group(size, work, *arguments).results()


# --- what processes tell each other


def tell(group: ProcessGroup) -> dict[str, Any]:
    a, b = torch.full((2, 3), float(group.rank)), torch.tensor([1, group.rank])
    group.add_([a, b])
    c = torch.full((2,), float(group.rank))
    group.average_([c])
    d = torch.full((3,), group.rank)
    group.broadcast_([d])
    group.check_same({"this": b"same"})
    with pytest.raises(ValueError, match=r"the 3 processes do not agree on that, those: start all with the same"):
        group.check_same({"this": b"same", "that": bytes([group.rank]), "those": b"x" * group.rank})
    return {
        "sum": (a.tolist(), b.tolist()), "average": c.tolist(), "first": d.tolist(), "mean": group.mean(group.rank),
        "any": group.any(False, group.rank == 2, True), "bytes": group.bytes_of_first(b"abc" * (1 - group.rank)),
        "none": group.bytes_of_first(b""), "noise": group.own_noise(0, 5),
    }  # fmt: skip


@pytest.mark.slow
def test_what_processes_tell_each_other() -> None:
    found = together(3, tell)
    seeds = [one.pop("noise") for one in found]
    assert found == [
        {
            "sum": ([[3.0] * 3] * 2, [3, 3]), "average": [1.0, 1.0], "first": [0, 0, 0], "mean": 1.0,
            "any": (False, True, True), "bytes": b"abc", "none": b"",
        }
    ] * 3  # fmt: skip
    assert seeds[0] is None
    assert len({*seeds, ProcessGroup(1, 3).own_noise(0, 6), ProcessGroup(1, 3).own_noise(-1, 5)}) == 5


@pytest.mark.parametrize("values", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}])
def test_alone(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without other processes nothing is joined, and nothing is computed another way than without this module."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with joined() as group:
        assert group is ALONE
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("values", [{"RANK": "1"}, {"RANK": "2", "LOCAL_RANK": "0"}, {"RANK": "0", "LOCAL_RANK": "x"}])
def test_half_an_environment_is_refused(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", **values}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["fit", "--out", "nowhere"])
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: RANK=.*: several processes are started by torchrun, .*\n", result.output)


def test_other_commands_are_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    result = CliRunner().invoke(main, ["evaluate", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == "Error: evaluate is one process: start it without torchrun, which is for fit\n"


# --- whole fits


def normed(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A small convolutional network with batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, classes)
    )


TINY = FitConfig(prior="log-uniform", hidden=(12,), epochs=4, pretrain_epochs=1, limit=193, device="cpu", threads=1)
CASES = {
    "posterior": TINY,
    "one-sample KL": replace(TINY, prior="spike-and-slab", clip_norm=1.0, accumulate=2, patience=1),
    "natural gradients": replace(TINY, optimizer="natural", shrink_every=1),
    "auto guide": replace(TINY, prior="gaussian", guide="auto-normal"),
    "batch norm": replace(TINY, net=f"{__name__}:normed", shrink_every=1),
    "pruned": replace(TINY, prior="none", pruning="gradual", prune_to=0.5, pretrain_epochs=None, dropout=0.2),
}
"""193 examples at 64 a minibatch: the fourth is of one row, less than there are processes."""


def fitted(group: ProcessGroup, config: FitConfig, out: Path, every: int = 1) -> tuple[str, int, list[float]]:
    run = fit_run(config, out, checkpointing=CheckpointConfig(every_epochs=every, resume=True), group=group)
    weights = torch.cat([tensor.flatten() for tensor in run.posterior.tensors.values()])
    digest = hashlib.sha256(stored_posterior(run.posterior)).hexdigest()
    return digest, len(list(out.parent.iterdir())) if group.first else 0, weights.tolist()


def all_fitted(group: ProcessGroup, folder: Path) -> dict[str, Any]:
    return {name: fitted(group, config, folder / name / "run") for name, config in CASES.items()}


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_all_processes_hold_the_same_network(size: int, tmp_path: Path) -> None:
    for name in CASES:
        (tmp_path / name).mkdir()
    first, *others = together(size, all_fitted, tmp_path)
    for name in CASES:
        digest, files, weights = first[name]
        assert files == 1, "only the first process writes"
        assert all(other[name][0] == digest for other in others), name
        assert all(torch.isfinite(torch.tensor(weights)))
        assert f"processes = {size}" in (tmp_path / name / "run" / "config.toml").read_text()
        assert len(epochs_of(tmp_path / name / "run")) <= 4


POINT = replace(TINY, prior="none", epochs=3, pretrain_epochs=None, optimizer="sgd", lr=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_without_noise_it_is_the_fit_of_one_process(size: int, tmp_path: Path) -> None:
    """Twelve steps, unequal and empty shares among them: up to rounding, which Adam would magnify."""
    shared = together(size, fitted, POINT, tmp_path / "together")
    _, _, wanted = fitted(ALONE, POINT, tmp_path / "alone")
    for _, _, found in shared:
        assert torch.allclose(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_with_noise_it_ends_where_one_process_does(tmp_path: Path) -> None:
    """-ELBO after twelve SVI steps of two processes against four fits of one: within 5 standard deviations of these."""
    together(2, fitted, TINY, tmp_path / "together")
    alone = []
    for seed in range(4):
        fit_run(replace(TINY, seed=seed), tmp_path / f"{seed}")
        alone.append(epochs_of(tmp_path / f"{seed}")[-1]["negative_elbo_nats"])
    found, wanted = epochs_of(tmp_path / "together")[-1]["negative_elbo_nats"], torch.tensor(alone)
    assert abs(found - float(wanted.mean())) < 5 * float(wanted.std()) * (1 + 1 / 4) ** 0.5


@pytest.mark.slow
def test_gradients_of_processes_are_unbiased() -> None:
    """Three processes on seven rows (3, 2 and 2) against one, 300 draws each: at most 5 standard errors apart."""
    splits = load_splits("digits")
    config = resolve(replace(TINY, hidden=(4,), prior="gaussian"), 7)
    data = Data(splits.train.x[:7], splits.train.y[:7])
    net = initial_net(config, splits)
    train_state = first_train_state(
        net, capture(net, splits.input_shape), Likelihood("classification", 7), (data.x, data.y), config
    )
    parameters = [t.parameter for t in train_state.trained]

    def gradient(minibatches: Minibatches) -> Tensor:
        (_, x, y), *_ = minibatches.epoch()
        loss = train_state.objective(x, y, 0.5)[0] * minibatches.share
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    def draws(size: int) -> Tensor:
        feeds = [
            Minibatches(data, 7, torch.Generator().manual_seed(0), group=ProcessGroup(rank, size))
            for rank in range(size)
        ]
        return torch.stack([sum(gradient(minibatches) for minibatches in feeds) for _ in range(300)])

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        patch.setattr(ProcessGroup, "broadcast_", lambda self, tensors: None)  # the orders are the same already
        one, three = draws(1), draws(3)
    errors = ((one.var(0) + three.var(0)) / 300).sqrt()
    moving = torch.stack([(d != d.median(0).values).float().mean(0) > 0.3 for d in (one, three)]).all(0)
    scores = ((one.mean(0) - three.mean(0)) / errors)[moving]  # where few draws differ, no error can be told
    assert len(scores) > 100
    assert float(scores.abs().max()) < 5
    assert float(scores.square().mean().sqrt()) < 1.25


# --- how fits end


LONG = replace(TINY, epochs=600, compile="off")


def wait_for(path: Path, group: Any) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_another_number_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    group = Group(2, fitted, LONG, out)
    wait_for(unfinished(out), group)
    os.kill(group.processes[1].pid, signal.SIGTERM)
    assert group.results() == [("Interrupted", "")] * 2
    config = unfinished_config(out)
    assert config == resolve(LONG, 193)
    config = replace(config, epochs=len((unfinished(out) / "history.jsonl").read_text().splitlines()) + 2)
    found = together(3, fitted, config, out)
    assert len({digest for digest, *_ in found}) == 1
    epochs = [epoch["epoch"] for epoch in epochs_of(out)]
    assert epochs == list(range(1, config.epochs + 1))


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    group = Group(2, fitted, LONG, out)
    wait_for(unfinished(out), group)
    group.processes[1].kill()
    ((name, message),) = group.results()
    assert name == "Lost"
    assert re.match(r"process 0 of 2 lost another one, whose message says more: .*$", message)
    assert list(unfinished(out).glob("checkpoint-*"))


def differing(group: ProcessGroup, out: Path) -> None:
    fit_run(replace(TINY, epochs=4 + group.rank), out, group=group)


@pytest.mark.slow
def test_processes_that_start_differently_refuse(tmp_path: Path) -> None:
    first, second = together(2, differing, tmp_path / "run")
    assert first[0] == second[0] == "ValueError"
    assert first[1].startswith("the 2 processes do not agree on the options: ")
    assert second[1] == f"process 1 of 2: {first[1]}"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """The command itself, ended by a signal to torchrun, resumed without it."""
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--hidden", "8", "--epochs", "4000", "--compile", "off", "--device", "cpu", "--threads", "1"]
    options += ["--checkpoint-epochs", "1", "--pretrain-epochs", "0"]
    process = subprocess.Popen(
        [*launch, "-m", "pyro_compress", "fit", *options, "--out", str(out)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(unfinished(out), process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert error.count(f"stopped, state kept; go on with: pyro-compress fit --resume {out}") == 1
    assert error.count("epoch   1 svi") == 1
    done = len((unfinished(out) / "history.jsonl").read_text().splitlines())
    config = replace(unfinished_config(out), epochs=done + 1)
    with contextlib.suppress(KeyboardInterrupt):
        fit_run(config, out, checkpointing=CheckpointConfig(resume=True))
    assert len((out / "history.jsonl").read_text().splitlines()) == done + 1
