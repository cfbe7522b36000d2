"""What Python programs inferred, as run folders: read back as it was, and taken by every command."""

import json
import shutil
from pathlib import Path

import pyro
import pytest
import torch
from click.testing import CliRunner
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import nn

import pyro_compress as pc
from pyro_compress.bayes.marginals import read_marginals
from pyro_compress.cli.main import main
from pyro_compress.graph.network import Network
from pyro_compress.metrics import SPLITS, evaluate, examples_of
from pyro_compress.runs.folder import load_run
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Splits


@pytest.fixture(autouse=True)
def _store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


X = torch.randn(240, 4, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Two(nn.Module):
    """Reads numbers and words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.numbers, self.end = nn.Embedding(5, 2), nn.Linear(4, 3), nn.Linear(7, 3)

    def forward(self, numbers: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.end(torch.cat([self.numbers(numbers), self.words(words).flatten(1)], 1))


def command(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments])
    assert result.exit_code == 0, result.output
    return result.output


def same_splits(found: Splits, wanted: Splits) -> None:
    assert (found.classes, found.targets, found.inputs, found.task) == (
        wanted.classes, wanted.targets, wanted.inputs, wanted.task,
    )  # fmt: skip
    for split in SPLITS:
        one, other = examples_of(found, split), examples_of(wanted, split)
        assert torch.equal(one.x, other.x)
        assert torch.allclose(one.y.double(), other.y.double(), atol=1e-6)


DATA = {
    "classes": (nn.Linear(4, 3), (X, Y)),
    "names": (nn.Linear(4, 3), [({"x": x, "y": n}) for x, n in zip(X.numpy(), ["ab", "c", "d"] * 80, strict=True)]),
    "regression": (nn.Linear(4, 2), (X, X[:, :2] * 3 + 100)),
    "inputs": (Two(), {"numbers": X, "words": Y[:, None].repeat(1, 2), "y": Y}),
    "images": (nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), ((torch.rand(240, 1, 3, 3) * 255).byte(), Y % 2)),
    "series": (nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(3, 2)), (X.reshape(240, 2, 2), Y % 2)),
    "tokens": (nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3)), (Y[:, None].repeat(1, 2) + 1, Y)),
    "by name": (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "digits"),
}


@pytest.mark.parametrize("kind", DATA)
def test_a_fit_is_read_back_as_it_was(kind: str, tmp_path: Path) -> None:
    """Posterior, marginals, data of every kind, scores; also where the folder was moved."""
    net, data = DATA[kind]
    if kind == "series":
        data = pc.splits_from(data, reading=ReadConfig(series=True))
    fitted = pc.fit(net, data, prior="gaussian", epochs=2, device="cpu")
    fitted.save(tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    run = load_run(tmp_path / "moved")
    same_splits(run.splits(), fitted.splits)
    for name, layer in fitted.posterior.layers.items():
        assert torch.equal(run.posterior.layers[name].std, layer.std)
    marginals = read_marginals(run.path / "guide.safetensors", run.config, run.posterior)
    assert marginals.sites.keys() == fitted.fit.guide.families.keys()
    assert run.config.prior == "gaussian"
    assert (run.path / "examples.npz").exists() == (kind != "by name")
    wanted = evaluate(
        Network(run.posterior.graph, run.posterior.tensors).eval(), fitted.splits, "test", noise=run.posterior.noise
    )
    told = command("evaluate", str(run.path))
    assert next(iter(wanted.cells.values())) in told


def test_draws_of_nuts_go_through_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    splits = pc.splits_from((X, Y))
    model, _ = pc.program(nn.Linear(4, 3), splits, prior="gaussian", bias_prior="same")
    mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=15, disable_progbar=True)
    mcmc.run(splits.train.x, splits.train.y)
    pc.save_run("nuts", model, mcmc)
    told = json.loads(command("inspect", "nuts", "--json", "--draws", "50", "--threads", "1"))
    (layer,) = told["layers"]
    assert layer["weights"] == 12
    assert layer["kl_nats"] > 1
    text = command("inspect", "nuts", "--draws", "50", "--threads", "1")
    assert "No epochs ran here" in text
    assert not any(word in text for word in ("units in file", "variational", "nearly always"))
    command("compress", "nuts", "--sparsity", "0.25", "--threads", "1")
    assert "accuracy" in command("evaluate", "nuts/network.pcn")
    with pytest.raises(ValueError, match="nuts"):
        pc.save_run("nuts", model, mcmc)
    again = pc.save_run("nuts", model, mcmc, force=True)
    assert again.posterior.layers.keys() == {"weight"}


def test_what_has_no_spread_is_a_deterministic_run(tmp_path: Path) -> None:
    model, guide = pc.program(nn.Linear(4, 3), pc.splits_from((X, Y)), prior="horseshoe", guide=AutoDelta)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(*model.example)
    run = pc.save_run(tmp_path / "run", model, guide)
    assert (run.config.prior, run.posterior.criterion) == ("none", "magnitude")
    assert not (tmp_path / "run" / "guide.safetensors").exists()
    assert "no posterior" in command("inspect", str(tmp_path / "run"), "--threads", "1")
    baseline = pc.fit(nn.Linear(4, 3), (X, Y), prior="none", epochs=2)
    assert baseline.save(tmp_path / "none").config.prior == "none"


def test_means_and_spreads_of_a_plain_network(tmp_path: Path) -> None:
    net, std = nn.Linear(4, 3), torch.full((3, 4), 0.05)
    run = pc.save_run(tmp_path / "run", net, {"weight": (net.weight, std)}, pc.splits_from((X, Y)))
    marginals = read_marginals(run.path / "guide.safetensors", run.config, load_run(run.path).posterior)
    assert torch.equal(marginals.sites["weight.raw"].stddev, std.double())
    assert run.posterior.provenance.prior == "gaussian"
