"""`inspect` and `report` on runs of the embedded digits, as a user runs them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pyro_compress.cli.console import table
from pyro_compress.cli.main import main
from pyro_compress.inspection import arviz_compat
from pyro_compress.inspection.readings import convergence, k_hat
from pyro_compress.inspection.summary import Inspection, LayerSummary, Sampled
from pyro_compress.runs.folder import load_run
from pyro_compress.scores import Scores
from pyro_compress.settings import FitConfig

SMALL = ["--net", "mlp", "--hidden", "20,10", "--epochs", "8", "--batch-size", "200"]
SMALL += ["--device", "cpu", "--threads", "1"]
FEW = ["--draws", "50", "--rows", "60", "--threads", "1"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def ok(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, options in {
        "horseshoe": [],
        "restart": ["--seed", "1"],
        "log-uniform": ["--prior", "log-uniform"],
        "none": ["--prior", "none"],
    }.items():
        ok("fit", *SMALL, *options, "--out", folder / name)
    ok("compress", folder / "horseshoe", "--threads", "1")
    return folder


def test_json_agrees_with_the_other_commands(runs: Path, tmp_path: Path) -> None:
    found = json.loads(ok("inspect", runs / "horseshoe", "--json", *FEW, "--netcdf", tmp_path / "a.nc"))
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert [layer["weights"] for layer in layers.values()] == [64 * 20, 20 * 10, 10 * 10]
    posterior = load_run(runs / "horseshoe").posterior
    for name, layer in layers.items():
        moments = posterior.layers[name]
        assert layer["mean_snr"] == pytest.approx(float((moments.mean.abs() / moments.std).mean()), rel=1e-4)
        assert 0 <= layer["kept"] <= layer["weights"]
        assert layer["bits_per_weight"] == pytest.approx(layer["kl_nats"] / np.log(2) / layer["weights"])
    last = json.loads((runs / "horseshoe/history.jsonl").read_text().splitlines()[-1])
    assert sum(layer["kl_nats"] for layer in layers.values()) == pytest.approx(last["kl_nats"], rel=1e-4)
    assert found["negative_elbo_nats"][-1] == last["negative_elbo_nats"]
    sampled = found["sampled"]  # one position a layer: the fit's own objective, of the epoch before the last weights
    gap = abs(sampled["negative_elbo_nats"] - last["negative_elbo_nats"])
    assert gap < 5 * sampled["negative_elbo_se_nats"] + 0.02 * abs(last["negative_elbo_nats"])
    scores = json.loads(ok("evaluate", runs / "horseshoe", "--json"))
    assert found["test_scores"]["nll_nats"] == pytest.approx(scores["nll_nats"])
    data = arviz_compat.read_netcdf(tmp_path / "a.nc")
    assert arviz_compat.loo(data).elpd / 60 == pytest.approx(found["sampled"]["elpd_loo"], rel=1e-6)
    assert data.attrs["prior"] == "horseshoe"
    assert "exists" in refused("inspect", runs / "horseshoe", *FEW, "--netcdf", tmp_path / "a.nc")


def test_text(runs: Path) -> None:
    text = ok("inspect", runs / "log-uniform", *FEW)
    assert re.search(r"1\.weight +1,280 +\d+ \(\d+\.\d %\)", text)
    for word in ("-ELBO: ", "draws of whole weights", "k-hat", "leave-one-out", "averaged over draws", "improper"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120
    assert "units in file" not in text  # nothing was compressed
    assert "units in file: what `compress` left\n" in ok("inspect", runs / "horseshoe", *FEW)


@pytest.mark.slow
def test_same_seed_same_text(runs: Path) -> None:
    arguments = ("inspect", runs / "horseshoe", "--draws", "50", "--rows", "30", "--threads", "1")
    assert ok(*arguments, "--seed", "5") == ok(*arguments, "--seed", "5") != ok(*arguments, "--seed", "6")


def test_a_deterministic_network_has_no_posterior(runs: Path, tmp_path: Path) -> None:
    text = ok("inspect", runs / "none")
    assert "nothing to diagnose" in text
    assert json.loads(ok("inspect", runs / "none", "--json"))["sampled"] is None
    assert "no draws to write" in refused("inspect", runs / "none", "--netcdf", tmp_path / "a.nc")


@pytest.mark.slow
def test_restarts(runs: Path) -> None:
    text = ok("inspect", "--restarts", runs / "horseshoe", runs / "restart", "--draws", "50", "--threads", "1")
    assert "Each fit counts as one chain" in text
    arguments = ("--draws", "50", "--json", "--threads", "1")
    found = json.loads(ok("inspect", "--restarts", runs / "horseshoe", runs / "restart", *arguments))
    assert {row["quantity"]: row["items"] for row in found} == {
        "log-likelihood of training rows": 500,
        "KL of each tensor": 3,
        "scale of each input": 64,
    }
    assert all(row["draws"] == 100 and row["median_rhat"] > 0.99 for row in found)


def test_bad_input(runs: Path, tmp_path: Path) -> None:
    assert "go with --restarts" in refused("inspect", runs / "horseshoe", runs / "restart")
    assert "two runs or more" in refused("inspect", "--restarts", runs / "horseshoe")
    assert "same seed" in refused("inspect", "--restarts", runs / "horseshoe", runs / "horseshoe")
    assert "differ in prior" in refused("inspect", "--restarts", runs / "restart", runs / "log-uniform")
    assert "is no folder" in refused("inspect", runs / "horseshoe", *FEW, "--netcdf", tmp_path / "x/a.nc")
    assert "no run folder" in refused("inspect", tmp_path)
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.toml", "posterior.safetensors"):
        (old / name).write_bytes((runs / "horseshoe" / name).read_bytes())
    assert "guide.safetensors is missing" in refused("inspect", old, *FEW)


def test_readings_take_sides() -> None:
    """Low and high k-hat are told apart, a subset is named, many weights only where there are many."""
    scores = Scores(0.9, 0.3, 0.1, 0.1)
    numbers = {
        "draws": 200,
        "elbo_sd": 1.0,
        "negative_elbo_nats": 9.0,
        "negative_elbo_se_nats": 1.0,
        "elbo_rows": 500,
        "rows": 500,
        "elpd_loo": -0.1,
        "elpd_loo_se": 0.01,
    }
    low = Sampled(k_hat=0.3, p_loo=1.0, high_k=0, validation_scores=scores, test_scores=scores, **numbers)
    high = Sampled(k_hat=9.0, p_loo=1.0, high_k=3, validation_scores=scores, test_scores=scores, **numbers)
    layer = LayerSummary("weight", 48, 40, 2.0, 3.0, 4, 4, 4)

    def told(sampled: Sampled, rows: int, weights: int = 48) -> str:
        layers = (replace(layer, weights=weights),)
        run: Any = SimpleNamespace(config=FitConfig())
        return k_hat(Inspection(run, layers, ("snr", 0.2), (), rows, scores, scores, sampled))

    assert "below 0.7" in told(low, 500)
    assert "above 0.7: the draws" in told(high, 54_000)
    assert "500 rows, scaled up" in told(high, 54_000)
    assert "above 0.7, as it nearly always is for an approximation over 5,000 weights" in told(high, 500, 5000)


def test_a_run_without_epochs_has_no_course() -> None:
    epoch = {"negative_elbo_nats": 9.0, "kl_weight": 1.0}
    for history, said in (((), "No epochs ran here"), ((epoch,), "Fewer than four epochs ran at full KL weight")):
        run: Any = SimpleNamespace(config=FitConfig(kl_weight=1.0))
        scores = Scores(0.9, 0.3, 0.1, 0.1)
        found = Inspection(run, (), ("snr", 0.2), history, 9, scores, scores, None)
        assert convergence(found).startswith(said)  # draws of NUTS, say, have no epochs


def test_table() -> None:
    assert table([("a", "bcd"), ("ef", "g")]) == ["a   bcd", "ef    g"]


def test_large_networks_are_drawn_fewer_times(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    """Unless somebody asks for more."""
    from pyro_compress.bayes.diagnostics import AUTO, Size
    from pyro_compress.inspection import summary

    small = Size(draws=AUTO, rows=20, weights=20, prior_draws=0)
    monkeypatch.setattr(summary, "LARGE", 1000)
    inspection, _ = summary.inspect_run(runs / "log-uniform", size=small)
    assert inspection.sampled is not None
    assert inspection.sampled.draws == 80
    asked, _ = summary.inspect_run(runs / "log-uniform", size=replace(small, draws=50))
    assert asked.sampled is not None
    assert asked.sampled.draws == 50
