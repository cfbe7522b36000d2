"""Regression beside classification: likelihoods against torch, the learned noise against a known one, every command."""

import json
import math
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal

from pyro_compress.bayes.capture import capture_graph, set_scalars
from pyro_compress.bayes.elbo import build_objective
from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.guides import build_guide, starts_of
from pyro_compress.bayes.layers import bayesianize
from pyro_compress.bayes.model import LIKELIHOODS, Likelihood, Model
from pyro_compress.bayes.noise import lift_noise
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.step import Rule, State, trained_parameters
from pyro_compress.cli.main import main
from pyro_compress.compression.finetuned import FineTuning, compress_finetuned
from pyro_compress.compression.search import compress
from pyro_compress.data.npz import LABELS
from pyro_compress.data.tasks import IGNORED, TASKS
from pyro_compress.metrics import SCORES, evaluate, regression_scores
from pyro_compress.runs.config import resolve
from pyro_compress.scores import LabelScores, PositionScores, RegressionScores, TextScores
from pyro_compress.settings import FineTune, FitConfig, Goal
from pyro_compress.training.baselines import fit_baseline
from pyro_compress.types import Data, Quantity, Splits


def test_every_task_is_complete() -> None:
    assert set(TASKS) == set(LIKELIHOODS) == set(SCORES) == set(LABELS)


OUTPUTS = torch.tensor([[0.3, -1.0], [2.0, 0.5], [0.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("task", "y"),
    [
        ("classification", torch.tensor([0, 1, 1])),
        ("regression", torch.randn(3, 2, dtype=torch.float64)),
        ("multi-label", torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)),
    ],
)
def test_log_likelihood_is_the_program_s(task: str, y: torch.Tensor) -> None:
    program: Distribution = LIKELIHOODS[task](OUTPUTS, torch.tensor(math.log(0.7)))
    assert torch.allclose(TASKS[task].log_likelihood(OUTPUTS, y, 0.7), program.log_prob(y).double())
    gradients = [
        torch.autograd.grad(loss, given)[0]
        for given in [OUTPUTS.clone().requires_grad_()]
        for loss in (
            TASKS[task].loss(given, y, 0.7),
            -LIKELIHOODS[task](given, torch.tensor(math.log(0.7))).log_prob(y).mean(),
        )
    ]
    assert torch.allclose(*gradients)


POSITIONS = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELLED = torch.tensor([[0, 3, 1, 2, 0], [-100, 1, 1, -100, 2], [3, 3, -100, 0, 1]])


@pytest.mark.parametrize("task", ["next-token", "tagging", "segmentation"])
def test_positions_without_a_label_count_for_nothing(task: str) -> None:
    """The sum over the others of what each would be as a class of its own; the loss is the mean over them."""
    row, given = TASKS[task], LABELLED != IGNORED
    each = Categorical(logits=POSITIONS.movedim(1, -1)).log_prob(LABELLED.clamp(min=0)) * given
    assert torch.allclose(row.log_likelihood(POSITIONS, LABELLED, None), each.sum(1))
    assert torch.allclose(LIKELIHOODS[task](POSITIONS, torch.zeros(())).log_prob(LABELLED), each.sum(1))
    assert row.counted(LABELLED) == 12
    assert torch.allclose(row.loss(POSITIONS, LABELLED, 1.0), -each.sum() / 12)
    logits = POSITIONS.clone().requires_grad_()
    row.loss(logits, LABELLED, 1.0).backward()
    assert logits.grad is not None
    assert not logits.grad.movedim(1, -1)[~given].any()
    nothing = torch.full_like(LABELLED, IGNORED)
    assert row.loss(POSITIONS, nothing, 1.0) == 0


def test_a_reconstruction_is_a_gaussian_of_every_value() -> None:
    y = torch.randn(3, 2, 4)
    means = y + 0.3
    program = LIKELIHOODS["reconstruction"](means, torch.tensor(0.5).log())
    assert torch.allclose(TASKS["reconstruction"].log_likelihood(means, y, 0.5), program.log_prob(y), atol=1e-5)
    scores = evaluate(lambda x: x + 0.3, Splits(*[Data(y, y)] * 3, (), task="reconstruction"), "test", noise=0.5)
    assert isinstance(scores, RegressionScores)
    assert scores.rmse == pytest.approx(0.3)
    assert scores.nll_nats == pytest.approx(-float(program.log_prob(y).sum()) / 24)


def test_scores_of_positions_by_hand() -> None:
    """Classes 0 and 1 of three, two positions without a label: 0 is right twice and given three times, 1 right once."""
    y = torch.tensor([[0, 0, 1], [1, -100, -100]])
    guesses = torch.tensor([[0, 0, 0], [1, 2, 2]])
    logits = 3.0 * torch.nn.functional.one_hot(guesses, 3).movedim(-1, 1).double()
    nats = [math.log(1 + 2 * math.exp(-3)) + (0 if right else 3) for right in (1, 1, 0, 1)]
    splits = Splits(*[Data(torch.zeros(2, 3), y)] * 3, ("a", "b", "c"), task="segmentation")
    scores = evaluate(lambda x: logits[: len(x)].float(), splits, "test")
    assert isinstance(scores, PositionScores)
    assert scores.accuracy == 0.75
    assert scores.mean_iou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores.nll_nats == pytest.approx(sum(nats) / 4)
    assert scores.error == pytest.approx(1 - scores.mean_iou)
    text = SCORES["next-token"](logits, y, (), None)
    assert isinstance(text, TextScores)
    assert text.bits == pytest.approx(sum(nats) / 4 / math.log(2))
    assert text.perplexity == pytest.approx(math.exp(sum(nats) / 4))


def test_scores_of_several_labels_by_hand() -> None:
    y = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    logits = torch.tensor([[1.0, -1, -1], [1, -1, -1]])
    scores = SCORES["multi-label"](logits, y, (), None)
    assert isinstance(scores, LabelScores)
    assert (scores.accuracy, scores.exact_match, scores.macro_f1) == (pytest.approx(5 / 6), 0.5, 0.5)
    assert scores.nll_nats == pytest.approx((6 * math.log(1 + math.exp(-1)) + 1) / 2)


@pytest.mark.parametrize("worse", [0.01, 0.03])
def test_a_tolerance_of_text_is_a_share_of_its_bits(worse: float) -> None:
    before, after = (TextScores(bits, 2**bits, 0.5, bits * math.log(2)) for bits in (2.0, 2.0 * (1 + worse)))
    assert after.within(before, 0.02) is (worse < 0.02)


FISHER = [
    ("multi-label", (3,)),
    ("next-token", (3, 2)),
    ("reconstruction", (2, 2)),
    ("classification", (4,)),
    ("classification", (3, 2)),
    ("regression", (2,)),
    ("regression", (20,)),
]


@pytest.mark.parametrize(("task", "shape"), FISHER)
def test_directions_of_every_task_span_its_fisher_information(task: str, shape: tuple[int, ...]) -> None:
    """Minus the Hessian of the log-likelihood in the outputs, which for these likelihoods no label changes.

    40,000 draws: six standard errors. Of positions, `(3 classes, 2 positions)`, every one has a likelihood of its own.
    """
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    whole = task in ("classification", "next-token")
    y = torch.zeros(1, *shape[1:], dtype=torch.int64) if whole else torch.zeros(1, *shape)

    def cost(flat: torch.Tensor) -> torch.Tensor:
        columns = flat.view(1, shape[0], -1)
        if task != "classification":
            return -TASKS[task].log_likelihood(flat.view(1, *shape), y, 0.7).sum()
        labels = y.reshape(1, -1)
        parts = [TASKS[task].log_likelihood(columns[..., i], labels[:, i], None) for i in range(columns.shape[-1])]
        return -torch.stack(parts).sum()

    wanted = torch.autograd.functional.hessian(cost, outputs.flatten())
    n = 40_000
    rows = TASKS[task].fisher(outputs.expand(n, *shape), 0.7, generator)
    assert rows.shape == (n, rows.shape[1], *shape)
    rows = rows.flatten(2)
    products = torch.einsum("nri,nrj->nij", rows, rows)
    error = products.std(0) / n**0.5
    assert ((products.mean(0) - wanted).abs() <= 6 * error + 1e-6).all()


DIVERGENCES = [case for case in FISHER if case != ("classification", (3, 2))]


@pytest.mark.parametrize(("task", "shape"), DIVERGENCES)
def test_divergences_are_expected_differences_of_log_likelihood(task: str, shape: tuple[int, ...]) -> None:
    """`E_{y ~ others}[log p(y | others) - log p(y | outputs)]`, by 100,000 draws, per what the loss counts."""
    torch.manual_seed(4)
    others, outputs = torch.randn(2, *shape, dtype=torch.float64)
    found, n = TASKS[task], 100_000
    many = [one.expand(n, *shape) for one in (outputs, others)]
    y = found.sample(many[1], 0.7)
    y = y.double() if y.is_floating_point() or task == "multi-label" else y.long()
    differences = found.log_likelihood(many[1], y, 0.7) - found.log_likelihood(many[0], y, 0.7)
    things = {"next-token": 2, "reconstruction": 4}.get(task, 1)
    wanted, error = float(differences.mean()) / things, float(differences.std()) / n**0.5 / things
    divergence = float(found.divergence(outputs[None], others[None], 0.7))
    assert abs(divergence - wanted) < 5 * error
    assert divergence > 10 * error
    assert float(found.divergence(others[None], others[None], 0.7)) == pytest.approx(0, abs=1e-12)


def test_scores_of_a_regression_in_its_own_units() -> None:
    y = torch.randn(50, 2)
    means, targets = y + 0.3 * torch.randn(50, 2), (Quantity("a", 5.0, 2.0), Quantity("b", -1.0, 0.5))
    spread, centre = torch.tensor([2.0, 0.5]), torch.tensor([5.0, -1.0])
    own = Normal(means * spread + centre, 0.4 * spread).log_prob(y * spread + centre).sum(1)
    scores = regression_scores(means, y, targets, 0.4)
    assert scores.nll_nats == pytest.approx(-float(own.mean()), rel=1e-5)
    assert scores.rmse == pytest.approx(float(((means - y) * spread).square().mean().sqrt()), rel=1e-5)
    several = torch.stack([means, means + 0.1, means - 0.5], 1)
    mixed = MixtureSameFamily(
        Categorical(torch.ones(50, 3)), torch.distributions.Independent(Normal(several, 0.4), 1)
    ).log_prob(y)
    found = TASKS["regression"].log_likelihood(several, y, 0.4)
    assert torch.allclose(found, mixed, atol=1e-5)


def test_no_noise_given_means_the_most_likely_one() -> None:
    outputs, y = torch.zeros(200, 1), torch.randn(200, 1)
    best = TASKS["regression"].log_likelihood(outputs, y, None).mean()
    others = [TASKS["regression"].log_likelihood(outputs, y, noise).mean() for noise in (0.7, 0.9, 1.1, 1.5)]
    assert best >= max(others)


NOISE = 0.5


def generated(n: int = 1500) -> Splits:
    """y = 3 sin(2 a) + b + noise of standard deviation 0.5, in units of its own spread."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(3 * n // 2, 3, generator=generator) * 2 - 1
    clean = 3 * torch.sin(2 * x[:, 0]) + x[:, 1]
    y = clean + NOISE * torch.randn(len(x), generator=generator)
    mean, std = float(y[:n].mean()), float(y[:n].std())
    data = Data(x, ((y - mean) / std)[:, None])
    part = [Data(data.x[rows], data.y[rows]) for rows in (slice(0, n), slice(n, 5 * n // 4), slice(5 * n // 4, None))]
    return Splits(*part, (), targets=(Quantity("y", mean, std),))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 1))


@pytest.fixture(scope="module")
def posterior():
    config = FitConfig(prior="gaussian", task="regression", epochs=40, batch_size=100, lr=1e-2, device="cpu")
    return extract(fit_posterior(net(), generated(), resolve(config, 1500)))


@pytest.mark.slow
def test_the_learned_noise_is_that_of_the_data(posterior) -> None:
    """Standard error of a standard deviation from 1,500 values: 1.8 %; the rest is what the network cannot fit."""
    splits = generated()
    learned = posterior.noise * splits.targets[0].std
    assert learned == pytest.approx(NOISE, rel=0.1)
    from pyro_compress.graph.network import Network

    scores = evaluate(Network(posterior.graph, posterior.tensors).eval(), splits, "test", noise=posterior.noise)
    exact = 0.5 * math.log(2 * math.pi * math.e * NOISE**2)  # of the generating density, ± 0.037 on 375 rows
    assert scores.nll_nats == pytest.approx(exact, abs=0.15)


def test_compression_of_a_regression_keeps_its_rmse(posterior) -> None:
    splits = generated()
    from pyro_compress.compression.candidates import to_module
    from pyro_compress.graph.network import Network

    before = evaluate(Network(posterior.graph, posterior.tensors).eval(), splits, "validation", noise=posterior.noise)
    network, removed = compress(posterior, splits, Goal(tolerance=0.05))
    after = evaluate(to_module(network), splits, "validation", noise=network.noise)
    assert after.within(before, 0.05)
    assert removed > 0
    assert network.noise == posterior.noise
    tuned, _ = compress_finetuned(posterior, splits, FineTuning(FineTune(epochs=6), 0.05), Goal(sparsity=0.2))
    assert evaluate(to_module(tuned), splits, "validation", noise=tuned.noise).reaches(0.35)  # 1 is no skill


def test_a_baseline_has_the_noise_of_its_residuals() -> None:
    splits = generated()
    config = resolve(FitConfig(prior="none", task="regression", epochs=30, lr=1e-2, device="cpu"), 1500)
    found, history = fit_baseline(net(), splits, config)
    assert found.noise is not None
    assert found.noise * splits.targets[0].std == pytest.approx(history[-1].validation_rmse, rel=1e-6)
    assert history[-1].validation_accuracy is None
    assert found.noise * splits.targets[0].std == pytest.approx(NOISE, rel=0.15)


def diabetes(path: Path) -> Path:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    rows = np.column_stack([bunch.data, bunch.target])
    lines = [",".join([*bunch.feature_names, "progression", "ward"])]
    lines += [",".join([*(f"{v:.6g}" for v in row), "north" if row[0] > 0 else "south"]) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def ran(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_table_goes_through_every_command(tmp_path: Path) -> None:
    table, run = diabetes(tmp_path / "d.csv"), tmp_path / "run"
    common = ("--target", "progression", "--task", "regression")
    ran("fit", "--data", table, *common, "--prior", "gaussian", "--hidden", "16", "--epochs", "30", "--out", run)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert history[-1]["validation_rmse"] < 77  # the target's standard deviation
    told = json.loads(ran("compress", run, "--tolerance", "0.05", "--out", tmp_path / "n.pcn", "--json"))
    assert told["test_rmse_after"] < 77
    scores = json.loads(ran("evaluate", tmp_path / "n.pcn", "--json"))
    assert scores["rmse"] == pytest.approx(told["test_rmse_after"])
    assert "RMSE" in ran("evaluate", tmp_path / "n.pcn", "--data", table)
    assert "RMSE" in ran("evaluate", run, "--data", table)
    assert "RMSE" in ran("inspect", run, "--draws", "50", "--rows", "50")
    ran("report", run, "--network", tmp_path / "n.pcn", "--draws", "50")
    assert f"{told['test_rmse_after']:.5g}</b>test RMSE after" in (run / "report.html").read_text()
    assert "RMSE" in ran("export", tmp_path / "n.pcn", "--out", tmp_path / "n.onnx")
    import onnx

    kept = {entry.key: json.loads(entry.value) for entry in onnx.load_model(tmp_path / "n.onnx").metadata_props}
    assert [column["name"] for column in kept["input"]["columns"]][-1] == "ward"
    assert kept["targets"][0]["std"] == pytest.approx(77, rel=0.1)
    ran("export", tmp_path / "n.pcn", "--out", tmp_path / "folder")


@pytest.mark.parametrize("case", ["regression", "weighted classes"])
def test_the_captured_step_has_the_eager_gradients(case: str) -> None:
    """First moments of one captured step (0.1 × gradient) against autograd, the noise's among them."""
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    if case == "regression":
        likelihood, y = Likelihood("regression", 120, 0.7), torch.randn(12, 2)
    else:
        likelihood, y = Likelihood("classification", 120, weights=torch.tensor([0.5, 1.5])), torch.arange(12) % 2
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    weights = {name: tensor.detach() for name, tensor in plain.state_dict().items()}
    model = Model(bayes := bayesianize(plain, PRIORS["gaussian"]), likelihood)
    with pyro.validation_enabled(False):
        guide = build_guide("mean-field", model, starts_of(bayes, weights, None), None, (x, y))
        objective = build_objective(model, guide, "weight", 1)
        trained = trained_parameters(objective, 1e-3, 1e-2, 1e-2)
        torch.manual_seed(1)
        objective(x, y, 0.5)[0].backward()
        state, scalars = State.of(objective, trained), (torch.zeros(()), torch.zeros(()), torch.zeros(()))
        graph = capture_graph(objective, trained, Rule(), state, scalars, x, y)
        noise = lift_noise(graph, x.device)
        set_scalars(scalars, 1, 0.5, 0.0)
        torch.manual_seed(1)
        noise.fill_reference()
        with torch.no_grad():
            inputs = (state.parameters, state.first, state.second, state.buffers, state.noted, scalars)
            graph(*inputs, x, y, noise.normal, noise.coin)
    assert any("log_noise" in t.name for t in trained) == (case == "regression")
    for got, t in zip(state.first, trained, strict=True):
        assert torch.allclose(got * 10, t.parameter.grad, rtol=1e-4, atol=1e-5)
