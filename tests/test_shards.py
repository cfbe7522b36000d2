"""Weights split among processes: the fit of one process, in a part of its memory, gone on with by any number."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import torch.distributed as dist
from test_process_group import Group, epochs_of, together, wait_for
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from pyro_compress.bayes.capture import capture_graph, captured, new_scalars
from pyro_compress.bayes.guides import whole
from pyro_compress.bayes.marginals import kl_by_tensor, read_marginals
from pyro_compress.bayes.model import Likelihood
from pyro_compress.bayes.noise import Noise, Place, coin_at, fair_coins, normal_at, placed_fill, standard_normal
from pyro_compress.bayes.sharded_step import Part, capture_sharded, check_sharded, sharded
from pyro_compress.bayes.shards import Shards, shards_of
from pyro_compress.bayes.step import Rule
from pyro_compress.bayes.train_state import TrainState, first_train_state
from pyro_compress.graph.capture import capture
from pyro_compress.process_group import ALONE, ProcessGroup
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import load_run, unfinished
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.checkpoint import read

KEYS = torch.tensor([5, -6, 7], dtype=torch.int32)


# --- who holds what


@pytest.mark.parametrize(("size", "counts"), [(2, [4, 3]), (3, [3, 3, 1]), (4, [2, 2, 2, 1]), (7, [1] * 7), (5, None)])
def test_rows(size: int, counts: list[int] | None) -> None:
    """Seven rows: every process has some, together all of them in order; five processes would leave one without."""
    tensor = torch.arange(7 * 200.0).view(7, 200)
    found = [Shards(ProcessGroup(rank, size), size, "", "", "").rows((7, 200)) for rank in range(size)]
    if counts is None:
        assert found == [None] * size
        return
    assert [rows.count for rows in found if rows] == counts
    assert torch.equal(torch.cat([rows.of(tensor) for rows in found if rows]), tensor)
    assert Shards(ProcessGroup(0, size), size, "", "", "").rows((7, 100)) is None, "too small"


def test_numbers_of_a_counter_by_place() -> None:
    """Any place of the buffers of one process, to float32's rounding of the sine's argument; coins exactly."""
    normal, coin = torch.zeros(4096), torch.zeros(512)
    standard_normal(*normal.chunk(2), KEYS)
    fair_coins(coin, KEYS)
    at = torch.randperm(4096, generator=torch.Generator().manual_seed(0)).int()
    assert torch.allclose(normal_at(at, 2048, KEYS), normal[at.long()], atol=1e-6)
    assert torch.equal(coin_at(at[at < 512], KEYS), coin[at[at < 512].long()])


def test_draws_of_rows() -> None:
    """Rows 1, 3, 5 of a draw of (7, 5), and rows 4 to 6 of one of (9, 2, 3) that begins at 64."""
    whole = torch.zeros(256)
    standard_normal(*whole.chunk(2), KEYS)
    noise = Noise(
        torch.zeros(64), torch.zeros(32), ((True, 0, (3, 5)), (True, 32, (3, 2, 3))),
        (Place(0, 1, 2), Place(64, 4, 1)), (256, 32),
    )  # fmt: skip
    placed_fill(noise, lambda: None, KEYS, is_compiled=False)()
    (_, examples), (_, rows) = noise.views()
    assert torch.allclose(examples, whole[:35].view(7, 5)[1::2], atol=1e-6)
    assert torch.allclose(rows, whole[64 : 64 + 54].view(9, 2, 3)[4:7], atol=1e-6)
    with pytest.raises(ValueError, match=r"--shard: a step draws 2,147,483,648 numbers; at most 2\^31 are supported"):
        placed_fill(replace(noise, sizes=(1 << 31, 0)), lambda: None, KEYS, is_compiled=False)


# --- one step


class Tokens(nn.Module):
    """An embedding and a layer that is called twice: tensors that are drawn before the network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.twice, self.out = nn.Embedding(60, 40), nn.Linear(40, 40), nn.Linear(120, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        return self.out(self.twice(self.twice(x).relu()).flatten(1))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 70, 3), nn.ReLU(), nn.Flatten(), nn.Linear(630, 31), nn.ReLU(), nn.Linear(31, 4))


X, Y = torch.rand(24, 2, 5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4
WORDS = torch.randint(60, (24, 3), generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[dict[str, Any], Rule]] = {
    "gaussian:local": ({"prior": "gaussian", "estimator": "local", "bias_prior": "same"}, Rule(clip_norm=0.05)),
    "gaussian:natural": ({"prior": "gaussian", "optimizer": "natural", "natural_lr": 0.01}, Rule()),
    "log-uniform:flipout": ({"prior": "log-uniform", "estimator": "flipout"}, Rule()),
    "horseshoe:local": ({"prior": "horseshoe", "estimator": "local"}, Rule()),
    "normal-jeffreys:weight": ({"prior": "normal-jeffreys", "grouping": "output"}, Rule(clip_norm=0.02)),
    "relevance:weight": ({"prior": "relevance", "grouping": "output"}, Rule()),
    "spike-and-slab:two": ({"prior": "spike-and-slab", "samples": 2}, Rule()),
    "soft-weight-sharing:weight": ({"prior": "soft-weight-sharing"}, Rule()),
    "tokens": ({"prior": "horseshoe", "estimator": "local"}, Rule()),
    "frozen": ({"prior": "horseshoe", "estimator": "local"}, Rule(clip_norm=0.05)),
}
SIZES = (24, 24, 21)
"""Examples of the minibatches: the last falls into uneven parts."""


def train_state_of(name: str, shards: Shards | None = None) -> TrainState:
    torch.manual_seed(0)
    net = Tokens() if name == "tokens" else convolutional()
    if name == "frozen":
        net.requires_grad_(requires_grad=False)[3].requires_grad_()  # type: ignore[index]
    x = WORDS if name == "tokens" else X
    config = resolve(FitConfig(**({"estimator": "weight", "device": "cpu"} | CASES[name][0])), 300)
    graph = capture(net, tuple(x.shape[1:]), kind=str(x.dtype).removeprefix("torch."))
    return first_train_state(net, graph, Likelihood("classification", 300), (x[:2], Y[:2]), config, None, shards)


def filled_as_compiled(noise: Noise) -> None:
    keys = torch.zeros(3, dtype=torch.int32).random_()
    standard_normal(*noise.normal.chunk(2), keys)
    fair_coins(noise.coin, keys)


def after_steps(group: ProcessGroup, name: str, asked: str) -> dict[str, Tensor]:
    """Marginals and point values after a step on each minibatch, and the sum of what was noted."""
    rank, size, examples = group.rank, group.size, list(SIZES)
    shards = shards_of(asked, group)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(), pyro.validation_enabled(False):
        patch.setattr(Noise, "fill_reference", filled_as_compiled)
        state, x = train_state_of(name, shards), WORDS if name == "tokens" else X
        torch.manual_seed(5 + rank)
        parts = [(x[:n][rank::size], Y[:n][rank::size]) for n in SIZES]
        parts = [part if len(part[1]) else (x[:1], Y[:1]) for part in parts]
        shares = [len(Y[:n][rank::size]) / n for n in SIZES]
        now = 0
        rule, example = CASES[name][1], parts[0]
        if shards:
            told = lambda: Part(examples[now], shares[now])  # noqa: E731
            step = sharded(state.objective, state.trained, rule, state.state, example, told, compiled=False)
        else:
            step = captured(state.objective, state.trained, rule, state.state, example, compiled=False)
        noted = torch.zeros(())
        for now, (part_x, part_y) in enumerate(parts):
            noted += step(part_x, part_y, 0.7, 1.0) * shares[now]
        group.add_([noted])
        guide = state.objective.elbo.guide
        found = {f"loc {site}": whole(guide).marginal(site).loc for site in guide.families}
        found |= {f"scale {site}": whole(guide).marginal(site).scale for site in guide.families}
        found |= dict(state.objective.elbo.model.named_parameters()) | {"noted": noted}
    return {one: tensor.detach().clone() for one, tensor in found.items()}


def told_after_steps(group: ProcessGroup, name: str, machine: int) -> dict[str, list[float]]:
    os.environ["LOCAL_WORLD_SIZE"] = str(machine)
    return {one: tensor.flatten().tolist() for one, tensor in after_steps(group, name, "machine").items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "machine"),
    [*[(name, 2, 2) for name in CASES], ("horseshoe:local", 4, 4), ("normal-jeffreys:weight", 4, 2), ("tokens", 4, 2)],
)
def test_steps_are_those_of_one_process(name: str, size: int, machine: int) -> None:
    """All parameters after three steps, to 1e-5, where a step is 1e-3; of two copies in two parts too."""
    told = together(size, told_after_steps, name, machine)
    for one, wanted in after_steps(ALONE, name, "none").items():
        for found in told:
            got = torch.tensor(found[one]).view_as(wanted)
            assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1.0), one


# --- in a part of the memory


@pytest.fixture
def four() -> Iterator[ProcessGroup]:
    """The first of four processes, whose collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield ProcessGroup(0, 4)
    dist.destroy_process_group()


def most_alive(graph: GraphModule) -> int:
    """Bytes of a graph's temporaries that are there at one time, if each goes after its last use."""
    nodes = list(graph.graph.nodes)
    owner: dict[Any, Any] = {}
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        is_view = node.op == "call_function" and (
            "getitem" in str(node.target) or "wait_tensor" in str(node.target)
            or (schema and schema.returns and schema.returns[0].alias_info)
        )  # fmt: skip
        owner[node] = owner[node.all_input_nodes[0]] if is_view else node
    last = {}
    for place, node in enumerate(nodes):
        for used in (node, *node.all_input_nodes):
            last[owner[used]] = place
    held, most = 0, 0
    for place, node in enumerate(nodes):
        made = node.op == "call_function" and owner[node] is node and isinstance(node.meta.get("val"), Tensor)
        held += node.meta["val"].nbytes if made else 0
        most = max(most, held)
        gone = [one for one, end in last.items() if end == place and one.op == "call_function"]
        held -= sum(one.meta["val"].nbytes for one in gone if isinstance(one.meta.get("val"), Tensor))
    return most


def test_a_quarter_of_everything_and_one_layer(four: ProcessGroup) -> None:
    """Ten layers of 10,000 weights among four: parameters, moments and draws; temporaries of the step."""
    config = resolve(FitConfig(prior="gaussian", estimator="weight", device="cpu"), 300)
    x, y = torch.rand(8, 100), torch.arange(8) % 4

    def of(shards: Shards | None) -> tuple[int, int]:
        layers = [layer for _ in range(10) for layer in (nn.Linear(100, 100), nn.ReLU())]
        net = nn.Sequential(*layers, nn.Linear(100, 4))
        told = Likelihood("classification", 300)
        made = first_train_state(net, capture(net, (100,)), told, (x, y), config, None, shards)
        scalars = new_scalars(made.trained, x.device)
        if shards:
            share = torch.zeros(())
            graph = capture_sharded(made.objective, made.trained, Rule(), made.state, (*scalars, share), x, y, 32)
        else:
            graph = capture_graph(made.objective, made.trained, Rule(), made.state, scalars, x, y)
        return sum(tensor.nbytes for tensor in made.state.tensors().values()), most_alive(graph)

    with pyro.validation_enabled(False):
        (held, alive), (part, part_alive) = of(None), of(shards_of("all", four))
    small = 3 * 4 * (10 * 100 + 4 + 2 * 400)  # biases and the last layer, which all hold, with their moments
    assert part - small == (held - small) / 4
    assert part_alive < alive / 4 + 5 * 4 * 10_000


# --- what is refused


WRONG = {
    "--guide auto-normal": {"guide": "auto-normal", "estimator": "weight"},
    "--shrink-every": {"shrink_every": 1},
    "--accumulate": {"accumulate": 2},
    "--precision bfloat16": {"precision": "bfloat16"},
    "--prior my:prior": {"prior": "my:prior"},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_go_with_it(what: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^--shard all splits this program's priors .*; leave out {what}, or --shard$"
    ):
        check_sharded(FitConfig(**({"shard": "all"} | WRONG[what])))
    check_sharded(FitConfig(shard="all"))


@pytest.mark.parametrize(
    ("prior", "grouping", "said"),
    [("relevance", "input", "groups of .* are columns"), ("horseshoe", "weight", "has a scale for every weight")],
)
def test_groups_across_rows(prior: str, grouping: str, said: str, four: ProcessGroup) -> None:
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    config = resolve(FitConfig(prior=prior, grouping=grouping, device="cpu"), 300)
    example = torch.rand(2, 64), torch.arange(2)
    with pytest.raises(ValueError, match=f"^--shard.*{said}.*take --grouping"):
        first_train_state(
            net, capture(net, (64,)), Likelihood("classification", 300), example, config, None, shards_of("all", four)
        )


def test_nobody_has_all_weights_to_show(tmp_path: Path) -> None:
    for wanted in (CheckpointConfig(snapshots=True), CheckpointConfig(log="tensorboard")):
        with pytest.raises(ValueError, match=r"^--shard all: no process has all weights for --snapshots or --log"):
            fit_run(FitConfig(shard="all"), tmp_path / "run", checkpointing=wanted)


def test_machines_of_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes learn of it, those of the machine that has as many as it wants too."""

    def others(count: int) -> None:
        there = torch.tensor([count, -count], dtype=torch.int32)
        most = lambda found, how: found.copy_(torch.maximum(found, there))  # noqa: E731
        monkeypatch.setattr("pyro_compress.process_group.dist.all_reduce", most)

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    others(1)
    with pytest.raises(ValueError, match=r"^3 processes, 2 of them on this machine, 1 to 2 on others: --shard machine"):
        ProcessGroup(0, 3).sharing("machine")
    others(2)
    assert [ProcessGroup(0, 4).sharing(asked) for asked in ("none", "all", "machine")] == [1, 4, 2]


# --- whole fits


FIT = FitConfig(
    prior="horseshoe", hidden=(48, 32), epochs=4, pretrain_epochs=1, limit=193, device="cpu", threads=1,
    compile="off", shard="all",
)  # fmt: skip


def fitted(group: ProcessGroup, config: FitConfig, out: Path, end: int = 0) -> list[float]:
    """Weights that a fit ends with; `end`: the first process ends before, after so many epochs."""

    def on_epoch(epoch: Any) -> None:
        if epoch.epoch == end:
            raise RuntimeError("killed")

    run = fit_run(config, out, False, False, on_epoch, CheckpointConfig(every_epochs=1, resume=True), group)
    return torch.cat([tensor.flatten() for tensor in run.posterior.tensors.values()]).tolist()


@pytest.mark.slow
def test_whole_fits(tmp_path: Path) -> None:
    """By two, by four, by two that end and four that go on, and one that goes on: the same network, to rounding."""
    (wanted, other), kept = together(2, fitted, FIT, tmp_path / "two"), epochs_of(tmp_path / "two")
    assert wanted == other
    assert all(
        found == pytest.approx(wanted, rel=1e-3, abs=1e-5) for found in together(4, fitted, FIT, tmp_path / "four")
    )
    assert [one["kl_nats"] for one in epochs_of(tmp_path / "four")[1:]] == pytest.approx(
        [one["kl_nats"] for one in kept[1:]], rel=1e-5
    )
    run = load_run(tmp_path / "two")
    marginals = read_marginals(run.path / "guide.safetensors", run.config, run.posterior)
    assert sum(kl for kl in kl_by_tensor(marginals).values() if kl is not None) == pytest.approx(
        kept[-1]["kl_nats"], rel=1e-5
    )

    first, second = together(2, fitted, FIT, tmp_path / "ended", 3)
    assert (first, second[0]) == (("RuntimeError", "killed"), "Lost")
    (checkpoint,) = sorted(unfinished(tmp_path / "ended").glob("checkpoint-*"))[-1:]
    shapes = {tuple(t.shape) for name, t in read(checkpoint).tensors.items() if name.startswith("state/first")}
    assert {(48, 64), (32, 48)} <= shapes, "it is written whole"
    for found in together(4, fitted, FIT, tmp_path / "ended"):
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5)

    together(2, fitted, FIT, tmp_path / "alone", 3)
    alone = torch.tensor(fitted(ALONE, FIT, tmp_path / "alone"))
    assert (alone - torch.tensor(wanted)).norm() < 0.05 * torch.tensor(wanted).norm(), "one epoch has other noise"


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    group = Group(2, fitted, replace(FIT, epochs=600), out)
    wait_for(unfinished(out), group)
    group.processes[1].kill()
    ((name, _),) = group.results()
    assert name == "Lost"
    assert list(unfinished(out).glob("checkpoint-*"))
