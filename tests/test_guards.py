"""What stops a fit: broken numbers, exploding terms, too little memory; and how it is put back."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from pyro_compress import machine
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.cli.main import main
from pyro_compress.machine import GIB, available_bytes, prepare
from pyro_compress.runs import budget, command_budget
from pyro_compress.runs.budget import check_memory, needed_bytes
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.checkpoint import Checkpointer, Snapshot, read, write
from pyro_compress.training.guards import exploded, over_pruned, slower
from pyro_compress.training.history import Diverged, Epoch
from pyro_compress.training.settled import unsettled
from pyro_compress.types import Data, Quantity, Splits


def arrays(path: Path, poison: float = 0.0) -> str:
    """Sixty examples of three classes; the last row of the training set can be made huge."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = (rng.normal(size=(90, 4)) + y[:, None]).astype(np.float32)
    if poison:
        x[:60] *= poison
    np.savez(path, x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return str(path)


CONFIG = FitConfig(prior="gaussian", hidden=(6,), epochs=4, pretrain_epochs=1, batch_size=10, device="cpu")


@pytest.mark.parametrize("prior", ["gaussian", "none"])
def test_a_broken_loss_says_what_where_and_what_to_try(prior: str, tmp_path: Path) -> None:
    config = replace(CONFIG, prior=prior, pretrain_epochs=0, data=arrays(tmp_path / "a.npz"), lr=1e30)
    with pytest.raises(
        Diverged, match=r"is (-?inf|nan) after step \d+; not finite: .*: try a smaller --lr \(now 1e\+30"
    ):
        fit_run(config, tmp_path / "run")
    assert not (tmp_path / ".run.unfinished").exists()


def test_a_rewind_halves_the_rates_and_says_so(tmp_path: Path) -> None:
    """A rate that breaks the fit at once and still does three halvings later."""
    config = replace(CONFIG, data=arrays(tmp_path / "a.npz"), lr=1e30, nan_policy="rewind")
    with pytest.raises(Diverged, match=r"put back 3 times, down to lr 1.25e\+29"):
        fit_run(config, tmp_path / "run")


def test_a_rewound_fit_ends_and_its_records_are_honest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third epoch's first KL is called exploded, once: the fit goes back to the checkpoint of the second."""
    calls: list[int] = []

    def once(kl: float, likelihood: float, before: Epoch | None, splits: Splits) -> str:
        calls.append(before.epoch if before else 0)
        return "KL rose" if len(calls) == 3 else ""

    monkeypatch.setattr("pyro_compress.bayes.fit.exploded", once)
    config = replace(CONFIG, data=arrays(tmp_path / "a.npz"), nan_policy="rewind", lr=1e-3)
    run = fit_run(config, tmp_path / "run", checkpointing=CheckpointConfig(every_epochs=1))
    document = tomllib.loads((run.path / "config.toml").read_text())
    (rewind,) = document["rewinds"]
    assert "KL rose after step" in rewind["reason"]
    assert (rewind["failed_in_epoch"], rewind["to_epoch"], rewind["lr"]) == (4, 2, 1e-3)
    assert document["fit"]["lr"] == run.config.lr == 5e-4
    history = [json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4]
    assert [epoch["lr"] for epoch in history] == [1e-3, 1e-3, 5e-4, 5e-4]


def test_a_broken_state_is_not_written(tmp_path: Path) -> None:
    """One infinite row, which the seed does not put into the first minibatch: that one's loss is looked at."""
    data = Data(torch.randn(20, 4), torch.arange(20) % 2)
    data.x[0] = torch.inf
    splits = Splits(data, data, data, ("a", "b"))
    config = resolve(replace(CONFIG, pretrain_epochs=0, batch_size=2), 20)
    with pytest.raises(Diverged, match="a checkpoint was due, but the state is broken after step"):
        fit_posterior(nn.Linear(4, 2), splits, config, checkpointer=Checkpointer(tmp_path))
    assert not list(tmp_path.iterdir())


def test_rewinding_drops_what_the_failed_epoch_wrote(tmp_path: Path) -> None:
    for epochs in (1, 2):
        write(Snapshot("svi", {"a": torch.zeros(1)}, {"history": [{}] * epochs, "step": epochs}), tmp_path)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.rewind(2)
    assert [len(read(path).numbers["history"]) for path in tmp_path.iterdir()] == [1]
    checkpointer.rewind(1)
    assert checkpointer.latest() is None


def test_what_counts_as_exploded() -> None:
    data = Data(torch.zeros(100, 2), torch.arange(100) % 4)
    splits = Splits(data, data, data, tuple("abcd"))
    uniform = 100 * math.log(4)
    before = Epoch(phase="svi", kl_nats=50.0)
    assert not exploded(1e9, -1e9, None, splits)  # where a posterior starts is not judged
    assert not exploded(99 * uniform, -99 * uniform, before, splits)
    assert "KL rose from 50" in exploded(101 * uniform, -1.0, before, splits)
    assert not exploded(101 * uniform, -1.0, replace(before, kl_nats=2 * uniform), splits)
    assert "fell" in exploded(60.0, -101 * uniform, before, splits)


def test_rates_are_halved() -> None:
    config = resolve(CONFIG, 100)
    half = slower(config)
    assert (half.lr, half.lr_scale, half.lr_group) == (config.lr / 2, config.lr_scale / 2, config.lr_group / 2)
    assert replace(half, lr=config.lr, lr_scale=config.lr_scale, lr_group=config.lr_group) == config
    natural = replace(config, optimizer="natural", natural_lr=0.1, natural_beta2=0.98)
    assert (slower(natural).natural_lr, slower(natural).natural_beta2) == (0.05, pytest.approx(0.99))


def test_memory_is_estimated_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = Splits(*[Data(torch.zeros(30, 100), torch.zeros(30).long())] * 3, ("a", "b"))
    net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 2))
    config = resolve(replace(CONFIG, batch_size=8), 30)
    needed = needed_bytes(net, splits, config)
    assert needed["parameters"] == (100 * 50 + 50 + 50 * 2 + 2) * budget.per_weight(config, 1)
    held = budget.PER_OUTPUT[config.estimator]
    assert needed["minibatch"] == 4 * 8 * (held * (100 + 50 + 50 + 2) + budget.LIKELIHOOD * 2)
    batch = 4 * 30 * 2 * 100 + budget.SCORED * 30 * 2  # validation in one go: two layers' values, and all scores
    assert needed["evaluation"] == max(0, batch - needed["minibatch"])
    many = replace(splits, classes=tuple(map(str, range(100_000))))
    assert needed_bytes(net, many, config)["evaluation"] > budget.SCORED * 30 * 80_000
    assert needed_bytes(net, splits, replace(config, compile="on"))["libraries"] == budget.LIBRARIES["captured"]
    check_memory(net, splits, config)
    monkeypatch.setattr(machine, "available_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"this fit needs about 0.2 GiB \(libraries 0.2, parameters 0.0, minibatch"):
        check_memory(net, splits, config)
    check_memory(net, splits, config, {machine.FORCE: "1"})


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit on sixty examples."""
    folder = tmp_path_factory.mktemp("guards")
    return fit_run(replace(CONFIG, data=arrays(folder / "a.npz"), epochs=2), folder / "run").path


@pytest.mark.parametrize("command", command_budget.COMMANDS)
def test_commands_are_refused_by_the_headers_of_a_run(
    command: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights 4 × 6 and 6 × 3 with biases, inputs of 90 rows, of which 30 are tested at a time."""
    held, run = command_budget.COMMANDS[command], load_run(small_run)
    shapes = {name: tuple(tensor.shape) for name, tensor in run.posterior.tensors.items()}
    parts = command_budget.needed_by(command, run.posterior.graph, shapes, run.sizes, 1000)
    assert parts["libraries"] == held.fixed
    assert parts["data"] == 4 * 4 * 90
    assert parts["network"] == int(held.network * 4 * (24 + 6 + 18 + 3) + held.layer * 4 * 24)
    assert 4 * 30 * (6 + 6) <= parts["evaluation"] - budget.SCORED * 30 * 3 <= 4 * 30 * (6 + 6 + 6)
    needed = sum(parts.values()) - 1000 + (small_run / "posterior.safetensors").stat().st_size
    monkeypatch.setattr(machine, "available_bytes", lambda device: needed)
    command_budget.check_command(command, small_run)
    monkeypatch.setattr(machine, "available_bytes", lambda device: needed - 1)
    name = command.partition(",")[0]
    with pytest.raises(ValueError, match=f"{name} of .* needs about 0.[23] GiB .*: use a machine with more memory"):
        command_budget.check_command(command, small_run)
    command_budget.check_command(command, small_run, {machine.FORCE: "1"})
    command_budget.check_command(command, tmp_path)  # no run: whoever reads it says so


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "RUN"], ["compress", "RUN", "--lambda", "1"], ["compress", "RUN", "--rounding", "compensated"],
        ["compress", "RUN", "--finetune", "1"], ["inspect", "RUN"], ["evaluate", "RUN"], ["report", "RUN"],
        ["compress", "--net", "mlp", "--hidden", "6", "--init", "START", "--data", "DATA"],
    ],
)  # fmt: skip
def test_commands_ask_their_guard_before_they_begin(
    arguments: list[str], small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = small_run.parent / "start.pt"
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).state_dict(), start)
    monkeypatch.setattr(machine, "available_bytes", lambda device: 1000)
    names = {"RUN": str(small_run), "START": str(start), "DATA": str(small_run.parent / "a.npz")}
    done = CliRunner().invoke(main, [names.get(word, word) for word in arguments])
    assert done.exit_code == 1
    assert f"{machine.FORCE}=1 tries all the same" in done.stderr


def test_this_machine_says_what_it_has_left() -> None:
    available = available_bytes("cpu")
    assert available is None or 0 < available < 1e6 * GIB


def test_deterministic_is_asked_of_torch() -> None:
    try:
        prepare("cpu", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def told(*nats: float) -> list[Epoch]:
    return [Epoch(epoch=1 + index, validation_nll_nats=value) for index, value in enumerate(nats)]


def test_over_pruned_counts_from_the_best_epoch_towards_a_constant_answer() -> None:
    """Classes of 3:1, whose frequencies alone cost 0.562 nats."""
    labels = Data(torch.zeros(8, 2), torch.tensor([0, 0, 0, 1] * 2))
    splits = Splits(train=labels, validation=labels, test=labels, classes=("a", "b"))
    assert over_pruned(told(0.5, 0.1, 0.32), splits) == ""
    assert over_pruned(told(0.5, 0.1, 0.6, 0.1), splits) == ""
    assert over_pruned(told(0.9, 0.6, 0.7), splits) == ""  # never learned anything
    message = over_pruned(told(0.5, 0.1, 0.2, 0.34), splits)
    assert "is 0.3400 nats, was 0.1000 after epoch 2, and ignoring the input costs 0.5623" in message
    assert "try smaller layers, fewer --epochs, or --kl-weight 0.1" in message


def test_over_pruned_regression_is_in_the_targets_units() -> None:
    """Targets of standard deviation 20: ignoring the input costs log(20) nats more than it does standardised."""
    y = torch.tensor([[-1.0], [1.0]] * 4)
    rows = Data(torch.zeros(8, 2), y)
    splits = Splits(train=rows, validation=rows, test=rows, classes=(), targets=(Quantity("price", 0.0, 20.0),))
    constant = 0.5 * math.log(2 * math.pi * math.e) + math.log(20)
    assert f"ignoring the input costs {constant:.4f}" in over_pruned(told(3.0, 4.0), splits)
    assert over_pruned(told(3.0, 3.6), splits) == ""


@pytest.mark.slow
def test_a_posterior_that_gave_up_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A KL that counts a thousandfold leaves nothing of what the pretrained weights knew."""
    data = arrays(tmp_path / "a.npz")
    config = replace(CONFIG, data=data, prior="log-uniform", epochs=60, pretrain_epochs=20, lr_scale=0.1, kl_weight=1e3)
    fit_run(config, tmp_path / "collapsed")
    (warning,) = [record.getMessage() for record in caplog.records if "gave up" in record.getMessage()]
    assert "try smaller layers" in warning
    caplog.clear()
    fit_run(replace(config, kl_weight=1e-3), tmp_path / "kept")
    fit_run(replace(CONFIG, data=data, prior="none"), tmp_path / "point")
    assert not [record for record in caplog.records if "gave up" in record.getMessage()]


# --- whether a fit had come to rest


def history(*losses: float | None, kl_weight: float = 1.0) -> list[dict]:
    return [{"negative_elbo_nats": loss, "kl_weight": None if loss is None else kl_weight} for loss in losses]


@pytest.mark.parametrize(
    ("epochs", "told"),
    [
        (history(*[None] * 5), ""),  # no posterior
        ([], ""),
        (history(None, 100.0, 100.0, 100.0), "only 3 of 4 epochs ran at the full KL weight"),
        (history(100.0, 100.0), "not settled: only 2 epochs ran at"),
        (history(100.0), "not settled: only 1 epoch ran at"),
        (history(*range(200, 100, -5)), "over its last 5 epochs -ELBO still fell by 19.0 %"),
        (history(*range(100, 200, 5)), "over its last 5 epochs -ELBO still rose by 10.3 %"),
        (history(*range(200, 100, -5), *[100.0] * 10), ""),
        (history(300.0, 200.0, kl_weight=0.5) + history(*[100.0] * 8), ""),
    ],
)
def test_a_fit_that_has_not_settled_is_said(epochs: list[dict], told: str) -> None:
    found = unsettled(epochs, 1.0)
    assert (told in found) if told else found == ""
    assert not told or found.endswith("more --epochs may make a smaller and a better file")
