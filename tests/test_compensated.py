"""Rounding with compensation: algebra against brute force, code lengths against the coder, results on the digits."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.compression.calibrated import OperatingPoint, Rounded, calibrated, work_of
from pyro_compress.compression.compensated import LAMBDAS, STEPS, Compensation, compress_compensated
from pyro_compress.compression.compensation import (
    CodeLengths,
    Problem,
    _sweep,
    code_lengths,
    cost,
    problem_of,
    rounded_at,
    rounded_layer,
)
from pyro_compress.compression.curvature import Moments, Sensitivity, drawn_of, moments, sensitivities
from pyro_compress.compression.repair import affordable
from pyro_compress.compression.target import SearchCallbacks, Target, Trial
from pyro_compress.compression.uses import ROWS, Use, patches, uses_of
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network, run_graph, tensors_of
from pyro_compress.networks.nets import build_net
from pyro_compress.pcn import file
from pyro_compress.pcn.streams import bits
from pyro_compress.provenance import Provenance
from pyro_compress.scores import TextScores
from pyro_compress.settings import Goal
from pyro_compress.types import Node, Quantized

CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 4, 3), (3, 7, 6)),
    "strided, padded": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 7, 6)),
    "dilated": (nn.Conv2d(2, 4, 3, dilation=2, padding=2), (2, 7, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "depthwise": (nn.Conv1d(4, 4, 3, groups=4), (4, 9)),
    "same": (nn.Conv1d(3, 2, 5, padding="same"), (3, 9)),
    "three dimensions": (nn.Conv3d(2, 3, 2), (2, 4, 3, 5)),
    "linear": (nn.Linear(5, 3), (5,)),
    "linear on sequences": (nn.Linear(5, 3), (4, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_are_what_rows_are_multiplied_with(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    (node,) = [n for n in capture(layer, shape).nodes if n.parameters]
    x, weight = torch.randn(3, *shape), layer.weight.detach()
    found = patches(x, Use(1, node, "weight", ROWS, tuple(weight.shape)))
    groups = found.shape[1]
    rows = weight.reshape(groups, -1, found.shape[2])
    got = torch.einsum("pgn,gon->pgo", found, rows).flatten(1)
    wanted = layer(x).detach() - (layer.bias if node.op == "linear" else layer.bias.view(-1, *[1] * (len(shape) - 1)))
    wanted = wanted if node.op == "linear" else wanted.movedim(1, -1)
    torch.testing.assert_close(got, wanted.reshape(-1, weight.shape[0]).detach())


def test_sensitivities_are_mean_squared_gradients() -> None:
    """Against gradients taken one example at a time, for a Gaussian likelihood of known noise."""
    net = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    graph = capture(net, (1, 5))
    x = torch.randn(2000, 1, 5)
    uses = uses_of(graph, {name: tuple(t.shape) for name, t in net.state_dict().items()})
    found = sensitivities(graph, net.state_dict(), x, uses, drawn_of("regression", 0.5))
    convolution, linear = found.values()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda h: net[3](torch.tanh(h).flatten())))(net[0](x).detach())
    exact = jacobian.square().sum(1).mean((0, 2)) / 0.5**2  # E[g²] = Σ_k (∂f_k/∂h)² / noise²
    assert convolution.positions == 4
    assert linear.positions == 1
    torch.testing.assert_close(convolution.squares.float(), exact.detach(), rtol=0.06, atol=0)
    torch.testing.assert_close(linear.squares, torch.full((2,), 4.0).double(), rtol=0.06, atol=0)


def linear_use(rows: int, columns: int, groups: int = 1) -> Use:
    return Use(1, Node("linear", (0,), {"weight": "w"}, {"groups": groups}), "weight", ROWS, (rows, columns))


def layer_problem(lam: float = 1e-3, damping: float = 0.02, descending: bool = False, rows: int = 6) -> Problem:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(8, 8, generator=generator)
    before = torch.randn(500, 8, generator=generator) @ mix
    now = before + 0.1 * torch.randn(500, 8, generator=generator)
    weight = torch.randn(rows, 8, generator=generator)
    worth = Sensitivity(torch.linspace(0.5, 2, rows).double(), 1)
    found = moments([now], [before], linear_use(rows, 8))
    return problem_of(weight, linear_use(rows, 8), found, worth, (rows, 8, 1, 1), lam, damping, descending)


def test_the_target_is_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    before, now = (torch.randn(400, 5, generator=generator).double() for _ in range(2))
    now = now + before
    weight = torch.randn(3, 5, generator=generator)
    found = moments([now.float()], [before.float()], linear_use(3, 5))
    problem = problem_of(
        weight, linear_use(3, 5), found, Sensitivity(torch.ones(3).double(), 1), (3, 5, 1, 1), 1.0, 1e-9, False
    )
    wanted = torch.linalg.lstsq(now, before @ weight.double().T).solution.T
    np.testing.assert_allclose(problem.target[0], wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_posterior_damps_each_column_by_what_a_change_costs() -> None:
    """With rows of one precision and one worth the target is the exact minimum of likelihood and posterior together."""
    generator = torch.Generator().manual_seed(0)
    before, now = (torch.randn(400, 5, generator=generator).double() for _ in range(2))
    now = now + before
    weight, column = torch.randn(3, 5, generator=generator), torch.tensor([0.1, 1.0, 4.0, 0.5, 0.02])
    found = moments([now.float()], [before.float()], linear_use(3, 5))
    for share in (0.1, 0.3):  # at 0.1 the posterior counts once
        problem = problem_of(
            weight, linear_use(3, 5), found, Sensitivity(torch.ones(3).double(), 1), (3, 5, 1, 1), 1.0, share, False,
            column.expand(3, 5),
        )  # fmt: skip
        worth = (1 + 0.05) / 2  # ½ s, LEAST added

        def cost(target: Tensor, share: float = share, worth: float = worth) -> Tensor:
            data = worth * (before @ weight.double().T - now @ target.T).square().mean(0).sum()
            return data + 0.5 * (10 * share * column * (target - weight).square()).sum()

        target = torch.from_numpy(problem.target[0]).requires_grad_()
        (gradient,) = torch.autograd.grad(cost(target), target)
        assert float(gradient.abs().max()) < 1e-5 * float(cost(target).detach())


def naive(problem: Problem, step: float, lengths: CodeLengths) -> np.ndarray:
    """Column by column, the rest solved anew every time: what compensation means (Hassibi & Stork 1993)."""
    _, rows, n = problem.target.shape
    factor = problem.factor[0].astype(np.float64)
    damped = np.linalg.inv(factor.T @ factor)
    order, codes = problem.order, np.zeros((rows, n), np.int64)
    for row in range(rows):
        weights = problem.target[0, row, order].copy()
        lam = problem.lam / problem.worth[0, row]
        for j in range(n):
            place = row, order[j]
            below = int(abs(weights[j]) / step)
            left = np.linalg.inv(damped[j:, j:])
            costs = {}
            for size in {0, below, below + 1}:
                bits = lengths.zero[place] if size == 0 else lengths.other[place] + lengths.more[size]
                costs[size] = (abs(weights[j]) - size * step) ** 2 / left[0, 0] + lam * bits
            size = min(costs, key=costs.__getitem__)
            codes[place] = size * (1 if weights[j] >= 0 else -1)
            weights[j:] -= (weights[j] - codes[place] * step) * left[0] / left[0, 0]
    return codes


@pytest.mark.parametrize(("descending", "step"), [(False, 0.3), (False, 0.9), (True, 0.3), (True, 0.9)])
def test_a_sweep_is_column_by_column_with_the_rest_solved_anew(descending: bool, step: float) -> None:
    problem = layer_problem(descending=descending)
    start = np.trunc(problem.target[0] / step).astype(np.int32)
    lengths = code_lengths(start, problem.layout)
    assert np.array_equal(_sweep(problem, step, lengths)[0], naive(problem, step, lengths))


def test_blocks_and_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(300, 2, 10, generator=generator), torch.randn(6, 10, generator=generator)
    second = torch.einsum("pgi,pgj->gij", x, x).double() / 300
    worth = Sensitivity(torch.linspace(1, 2, 6).double(), 1)
    both = problem_of(weight, linear_use(6, 10, 2), Moments(second, second), worth, (6, 10, 1, 1), 1e-2, 0.1, False)
    whole = rounded_at(both, 0.25)[0]
    monkeypatch.setattr("pyro_compress.compression.compensation.BLOCK", 3)
    assert np.array_equal(rounded_at(both, 0.25)[0], whole)
    lengths = code_lengths(whole, both.layout)
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        alone = Problem(
            both.target[[group]], both.factor[[group]], both.second[[group]], both.order, both.worth[[group]],
            (3, 10, 1, 1), both.lam, linear_use(3, 10),
        )  # fmt: skip
        part = CodeLengths(*(a.reshape(6, 10)[rows] for a in (lengths.zero, lengths.other)), lengths.more, 0.0)
        assert np.array_equal(_sweep(alone, 0.25, part)[0], _sweep(both, 0.25, lengths)[group])


def test_code_lengths_are_the_coders() -> None:
    """Summed over a tensor, presence and what follows it come to what the coder spends."""
    rng = np.random.default_rng(0)
    codes = (rng.integers(-3, 4, (40, 60)) * (rng.random((40, 60)) < 0.2)).astype(np.int32)
    found = code_lengths(codes, (40, 15, 2, 2))
    assert found.total == pytest.approx(bits(codes, (40, 15, 2, 2)))
    there = codes != 0
    told = found.zero[~there].sum() + (found.other[there] + found.more[np.abs(codes[there])]).sum()
    assert told == pytest.approx(found.total, rel=0.05)


def test_it_costs_less_than_rounding_to_the_nearest() -> None:
    problem = layer_problem(lam=1e-2, rows=60)
    found = rounded_layer(problem)
    codes, exponent = found.codes, found.exponent
    best = cost(codes, 2 ** (exponent / 4), problem, code_lengths(codes, problem.layout).total)
    for e in range(-20, 8):
        nearest = np.round(problem.target[0] / 2 ** (e / 4)).astype(np.int32)
        assert best < cost(nearest, 2 ** (e / 4), problem, code_lengths(nearest, problem.layout).total)
    again = rounded_layer(problem, found)
    assert again.exponent == exponent
    assert np.array_equal(again.codes, codes)
    near = rounded_layer(replace(problem, lam=1.1 * problem.lam), found)
    assert near.exponent == exponent
    assert near.lam == problem.lam


@pytest.fixture(scope="module")
def trained(digits):
    """A small convolutional net with batch norm, trained for a moment."""
    from pyro_compress.training.baselines import point_posterior

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(net(digits.train.x), digits.train.y).backward()
        optimizer.step()
    tensors = {name: tensor.detach() for name, tensor in net.eval().state_dict().items()}
    return point_posterior(capture(net, digits.input_shape), tensors, Provenance({"data": "digits", "prior": "none"}))


def test_a_network_keeps_its_outputs_better_than_by_rounding_to_the_nearest(trained, digits) -> None:
    graph, tensors, x = trained.graph, trained.tensors, digits.train.x
    network = calibrated(graph, tensors, x)
    found = network.rounded(OperatingPoint(1e-4))
    nearest = dict(found.tensors)
    for name, step in found.steps.items():
        nearest[name] = torch.round(tensors[name] / step) * step
        assert torch.equal(torch.round(found.tensors[name] / step) * step, found.tensors[name])

    def off(values: dict[str, Tensor]) -> float:
        wanted, got = (Network(graph, t).eval()(digits.validation.x).softmax(1) for t in (tensors, values))
        return float((wanted - got).detach().square().mean())

    assert off(found.tensors) < 0.5 * off(nearest)


def test_what_is_kept_between_lambdas_changes_nothing(trained, digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of first layers and inputs of the others in the network as it was given, against all of them anew."""
    given = trained.graph, trained.tensors, digits.train.x[:200]
    keeps = calibrated(*given)
    keeps.rounded(OperatingPoint(1e-3))
    assert keeps.fixed
    assert keeps.inputs
    for kept in ({"fixed": {}, "inputs": {}}, {"inputs": {}}):
        anew = replace(keeps, found=dict(keeps.found), **kept)
        found, wanted = (n.rounded(OperatingPoint(1e-5)) for n in (anew, replace(keeps, found=dict(keeps.found))))
        assert found.steps == wanted.steps
        assert all(torch.equal(t, wanted.tensors[name]) for name, t in found.tensors.items())
    monkeypatch.setattr("pyro_compress.compression.calibrated.VALUES", 1000)
    little = replace(keeps, found={}, fixed={}, inputs={})
    little.rounded(OperatingPoint(1e-3))
    assert not little.inputs


def test_code_lengths_without_the_compiled_coder_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    codes = (rng.integers(-3, 4, (40, 60)) * (rng.random((40, 60)) < 0.2)).astype(np.int32)
    known = code_lengths(codes, (40, 60, 1, 1))
    monkeypatch.setattr("pyro_compress.compression.compensation.COMPILED", False)
    found = code_lengths(codes, (40, 60, 1, 1))
    assert found.total == pytest.approx(known.total, rel=0.1)
    np.testing.assert_array_equal(found.more, known.more)


GOALS = [Goal(tolerance=0.01), Goal(max_bytes=700), Goal(target_error=0.08), Goal(tolerance=0, nll_tolerance=1e-4)]


@pytest.mark.parametrize("goal", GOALS)
def test_goals_are_reached(trained, digits, goal: Goal) -> None:
    from pyro_compress.compression.candidates import to_module
    from pyro_compress.compression.target import target_of
    from pyro_compress.metrics import evaluate
    from pyro_compress.pcn import file

    network, zeros = compress_compensated(trained, digits, goal=goal)
    size = len(file.dumps(network)[0])
    assert 0 < zeros < 1
    if goal.max_bytes:
        assert 0.8 * goal.max_bytes < size <= goal.max_bytes
    else:
        assert target_of(trained, digits, goal).reached(evaluate(to_module(network), digits, "validation"))
        assert size < (1500 if goal.tolerance == 0 else 1000)


def test_lambda_rises_beyond_the_first_range_where_none_is_too_high(trained, digits) -> None:
    loose = Goal(tolerance=0.95, nll_tolerance=50.0)
    seen: list[Trial] = []
    compress_compensated(
        trained, digits, Compensation(repair=0), loose, callbacks=SearchCallbacks(candidate=seen.append)
    )
    assert max(trial.lam for trial in seen) > 2 * LAMBDAS[1]


def test_a_large_network_is_searched_once(trained, digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other dampings and orders are left where the first search was long; its candidates are the same."""
    seen: list[list[Trial]] = []
    for searched in (math.inf, 1.0):
        monkeypatch.setattr("pyro_compress.compression.compensated.SEARCHED", searched)
        seen.append([])
        told = SearchCallbacks(candidate=seen[-1].append)
        compress_compensated(trained, digits, Compensation(repair=0), Goal(tolerance=0.01), callbacks=told)
    whole, once = seen
    assert once == whole[: len(once)]
    assert len(once) <= STEPS < len(whole)


def test_nats_that_may_be_lost_of_a_text_are_those_of_its_bits() -> None:
    before = TextScores(bits=2.0, perplexity=4.0, accuracy=0.5, nll_nats=2 * math.log(2))
    assert Target(before, 0.01, 1.0).nats == pytest.approx(0.02 * math.log(2))
    assert Target(before, 0.01, 0.001).nats == 0.001
    assert Target(before, 0.01, math.inf, error=2.1).nats == pytest.approx(0.1 * math.log(2))


def test_a_sparsity_is_refused(trained, digits) -> None:
    with pytest.raises(ValueError, match="a sparsity is reached by pruning"):
        compress_compensated(trained, digits, goal=Goal(sparsity=0.5))


def test_work_is_that_of_moments_and_algebra() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    graph = capture(net, (2, 6, 6))
    wanted = 9**2 * (2 * (2 * 60_000 + 4 * 9) + 3 * 4) + 64**2 * (2 * 4096 + 4 * 64 + 3 * 10)
    assert work_of(graph, net.state_dict()) == wanted


@pytest.mark.slow
def test_the_command(digits, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of others without training: within the tolerance, and smaller than by rounding to the nearest."""
    net = build_net("mlp", digits.input_shape, 10, (20,))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(digits.train.x), digits.train.y).backward()
        optimizer.step()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    size = {}
    ways = {"default": [], "compensated": ["--rounding", "compensated"], "nearest": ["--rounding", "nearest"],
            "posterior": ["--posterior", "laplace"]}  # fmt: skip
    for way, asked in ways.items():
        out = tmp_path / f"{way}.pcn"
        given = ["--net", "mlp", "--hidden", "20", "--init", str(tmp_path / "w.pt"), "--data", "digits"]
        done = CliRunner().invoke(main, ["compress", *given, *asked, "--out", str(out), "--json"])
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told["within_tolerance"]
        assert told["rounding"] == ("compensated" if way in ("default", "compensated") else "")
        size[way] = out.stat().st_size
    assert size["default"] == size["compensated"] < 0.8 * size["nearest"]
    monkeypatch.setattr("pyro_compress.compression.smallest.MOST_WORK", 1000)
    done = CliRunner().invoke(main, ["compress", *given, "--out", str(tmp_path / "large.pcn"), "--json"])
    (told,) = json.loads(done.stdout)["warnings"]
    assert told.startswith("rounded to the nearest: compensation takes")
    assert (tmp_path / "large.pcn").stat().st_size == size["nearest"]
    assert size["nearest"] == size["posterior"]


def test_an_option_of_pruning_or_fine_tuning_leaves_compensation() -> None:
    from pyro_compress.cli.sources import rounding_of
    from pyro_compress.settings import CompressConfig

    plain = CompressConfig()
    assert rounding_of(None, {}, plain) == "compensated"
    assert rounding_of(Path("run"), {}, plain) == "smallest"
    assert rounding_of(Path("run"), {}, CompressConfig(rounding="compensated")) == "compensated"
    for asked in ({"finetune": 10}, {"sparsity": 0.5}, {"lambda": (1.0,)}, {"criterion": "snr"}):
        assert rounding_of(None, {}, CompressConfig.of(asked)) == "nearest"
        assert rounding_of(Path("run"), {}, CompressConfig.of(asked)) == "nearest"
    for named in ({"how": "svi"}, {"epochs": 3}):
        assert rounding_of(None, named, plain) == "nearest"


def test_large_networks_are_repaired_less() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))  # 7,400 multiply-adds
    graph, tensors = capture(net, (1, 8, 8)), {name: tensor.detach() for name, tensor in tensors_of(net).items()}
    assert [affordable(graph, tensors, n, 6) for n in (4096, 5_000_000, 30_000_000)] == [6, 5, 0]


def test_repair_moves_vectors_alone_and_towards_the_given_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)).eval()
    graph = capture(net, (1, 8, 8))
    tensors, x = {name: tensor.detach() for name, tensor in tensors_of(net).items()}, torch.randn(600, 1, 8, 8)
    network = calibrated(graph, tensors, x)
    plain, repaired = (network.rounded(OperatingPoint(3e-6, repair=epochs)) for epochs in (0, 8))
    assert repaired.steps == plain.steps
    moved = {name for name in tensors if not torch.equal(repaired.tensors[name], plain.tensors[name])}
    assert moved == {"0.bias", "1.weight", "1.bias", "4.bias"}

    def divergence(rounded: Rounded, others: torch.Tensor) -> float:
        logits, wanted = (run_graph(graph, t, others).log_softmax(1) for t in (rounded.tensors, tensors))
        return float((wanted.exp() * (wanted - logits)).sum(1).mean())

    assert divergence(repaired, network.x) < 0.9 * divergence(plain, network.x)
    unseen = torch.randn(600, 1, 8, 8)
    assert divergence(repaired, unseen) < divergence(plain, unseen)


class Places(nn.Module):
    """Words with places that forward counts: no example has a part in what it reads there."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.last = nn.Embedding(9, 8), nn.Embedding(6, 8), nn.Linear(8, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last((self.words(x) + self.places(torch.arange(x.shape[1]))).tanh())


def test_places_that_forward_counts_are_rounded_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = tmp_path / "t.txt"
    text.write_text("".join("abcdefgh "[i % 9] for i in range(4000)))
    net = Places()
    net.words, net.last = nn.Embedding(256, 8), nn.Linear(8, 256)
    given = pc.trained(net, str(text), context=6, task="next-token")
    found = given.compress(tolerance=0.05, rounding="compensated", repair=0)
    tensors = file.loads(found.data).tensors
    assert {"words.weight", "places.weight", "last.weight"} <= {
        n for n, t in tensors.items() if isinstance(t, Quantized)
    }
    assert found.report.validation_after.nll_nats < 1.1 * found.report.validation_before.nll_nats
