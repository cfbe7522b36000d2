"""The command line, run as a user runs it, on the embedded digits."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from pyro_compress.cli.main import main

SMALL = ["--net", "mlp", "--hidden", "30,20", "--epochs", "12", "--batch-size", "100"]
SMALL += ["--device", "cpu", "--threads", "1"]
REPORT_KEYS = {
    "test_accuracy_before", "test_accuracy_after", "validation_accuracy_before", "validation_accuracy_after",
    "test_nll_nats_after", "test_ece_after", "parameters_total", "parameters_kept", "units_kept", "file_bytes",
    "dense_bytes", "ratio", "sections_bytes", "criterion", "sparsity",
    "spelled_out_bytes",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".cache"], (
        "something half-written was left behind"
    )


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def ok(*arguments: str | Path) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str | Path) -> str:
    """Standard error of a command that must fail with one clear line (click adds its usage for misuse)."""
    result = invoke(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    if result.exit_code == 1:
        assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "horseshoe"
    ok("fit", *SMALL, "--out", out)
    return out


@pytest.fixture(scope="module")
def pcn(run: Path) -> Path:
    out = run.parent / "a.pcn"
    ok("compress", run, "--out", out)
    return out


def test_run_folder(run: Path) -> None:
    names = ["config.toml", "guide.safetensors", "history.jsonl", "posterior.safetensors"]
    assert sorted(path.name for path in run.iterdir()) == names
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert {line["phase"] for line in lines} == {"point", "svi"}
    last = lines[-1]
    assert last["negative_elbo_nats"] == pytest.approx(last["kl_nats"] - last["expected_log_likelihood_nats"])
    text = (run / "config.toml").read_text()
    assert all(
        word in text
        for word in ('prior = "horseshoe"', "seed = 0", "pyro-ppl", "validation = 240", 'grouping = "input"')
    )


def test_compress_and_evaluate_agree(run: Path, pcn: Path, tmp_path: Path) -> None:
    report = json.loads(ok("compress", run, "--json", "--out", tmp_path / "b.pcn").stdout)
    assert set(report) >= REPORT_KEYS
    assert report["file_bytes"] == os.path.getsize(tmp_path / "b.pcn") == sum(report["sections_bytes"].values())
    assert report["ratio"] == pytest.approx(report["dense_bytes"] / report["file_bytes"])
    assert report["dense_bytes"] == 4 * (64 * 30 + 30 + 30 * 20 + 20 + 20 * 10 + 10)
    assert report["validation_accuracy_after"] >= report["validation_accuracy_before"] - 0.005
    assert len(report["units_kept"]) == 4
    assert (tmp_path / "b.pcn").read_bytes() == pcn.read_bytes()
    for split in ("test", "validation"):
        scores = json.loads(ok("evaluate", tmp_path / "b.pcn", "--json", "--split", split).stdout)
        assert scores["accuracy"] == report[f"{split}_accuracy_after"]
        assert scores["nll_nats"] == pytest.approx(report[f"{split}_nll_nats_after"])
        scores = json.loads(ok("evaluate", run, "--json", "--split", split).stdout)
        assert scores["accuracy"] == report[f"{split}_accuracy_before"]


def test_report_for_people(run: Path, tmp_path: Path) -> None:
    text = ok("compress", run, "--sparsity", "0.5", "--criterion", "snr", "--out", tmp_path / "c.pcn").stdout
    assert re.search(r"snr, 50\.0 % of the weights removed", text)
    assert re.search(r"units in the file\s+64-30-20-10 -> \d+-\d+-\d+-10", text)
    assert re.search(r"dense float32 11,120 bytes; \d+\.\d× smaller", text)
    assert "accuracy" in ok("evaluate", tmp_path / "c.pcn").stdout


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ok("fit", *SMALL, "--prior", "log-uniform", "--seed", "7", "--out", tmp_path / name)
        ok("compress", tmp_path / name)
    assert (tmp_path / "a/posterior.safetensors").read_bytes() == (tmp_path / "b/posterior.safetensors").read_bytes()
    assert (tmp_path / "a/network.pcn").read_bytes() == (tmp_path / "b/network.pcn").read_bytes()
    ok("fit", *SMALL, "--prior", "log-uniform", "--seed", "8", "--out", tmp_path / "c")
    assert (tmp_path / "a/posterior.safetensors").read_bytes() != (tmp_path / "c/posterior.safetensors").read_bytes()


@pytest.mark.parametrize("options", [[], ["--dropout", "0.5"]])
def test_baselines_take_the_same_path(options: list[str], tmp_path: Path) -> None:
    ok("fit", *SMALL, "--prior", "none", *options, "--out", tmp_path / "base")
    report = json.loads(ok("compress", tmp_path / "base", "--json").stdout)
    assert report["criterion"] == "magnitude"
    ok("fit", "--config", tmp_path / "base/config.toml", "--out", tmp_path / "again")
    assert (tmp_path / "again/posterior.safetensors").read_bytes() == (
        tmp_path / "base/posterior.safetensors"
    ).read_bytes()
    assert report["ratio"] > 4
    assert "group scales" in refused(
        "compress", tmp_path / "base", "--criterion", "group-mode", "--out", tmp_path / "x.pcn"
    )


def test_config_file_and_command_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'prior = "spike-and-slab"\nhidden = [12, 11]\nepochs = 2\nbatch-size = 100\n'
        "prior_options = {pi = 0.5}\nseed = 3\n"
    )
    ok("fit", "--config", tmp_path / "c.toml", "--seed", "4", "--out", tmp_path / "run")
    text = (tmp_path / "run/config.toml").read_text()
    for line in ('prior = "spike-and-slab"', "seed = 4", "epochs = 2", "batch_size = 100", "pi = 0.5", "12,\n    11,"):
        assert line in text
    # a run's own configuration repeats it
    ok("fit", "--config", tmp_path / "run/config.toml", "--out", tmp_path / "again")
    assert (tmp_path / "again/posterior.safetensors").read_bytes() == (
        tmp_path / "run/posterior.safetensors"
    ).read_bytes()


def test_own_network_own_data_and_start(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def small(input_shape, classes):\n"
        "    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))\n"
    )
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = (rng.normal(0, 0.3, (300, 6, 6)) + y[:, None, None]).astype(np.float32)
    np.savez(tmp_path / "own.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    own = ["--net", "mine:small", "--data", "own.npz", "--epochs", "20", "--batch-size", "50", "--lr", "0.01"]
    ok("fit", *own, "--prior", "none", "--out", "base")
    ok("fit", *own, "--prior", "log-uniform", "--init", "base", "--pretrain-epochs", "0", "--out", "run")
    report = json.loads(ok("compress", "run", "--json").stdout)
    assert report["test_accuracy_after"] > 0.9
    (tmp_path / "mine.py").unlink()  # the file needs no source
    np.savez(tmp_path / "more.npz", x=x[:10], y=y[:10])
    assert json.loads(ok("evaluate", "run/network.pcn", "--data", "more.npz", "--json").stdout)["examples"] == 10
    assert "takes (1, 6, 6)" in refused("evaluate", "run/network.pcn", "--data", "digits")
    assert "does not fit network" in refused("fit", *SMALL, "--init", "base", "--out", "x")


@pytest.mark.slow
def test_existing_output_needs_force(run: Path, pcn: Path) -> None:
    before = (run / "posterior.safetensors").read_bytes()
    assert "is not empty" in refused("fit", *SMALL, "--out", run)
    assert (run / "posterior.safetensors").read_bytes() == before
    assert "exists" in refused("compress", run, "--out", pcn)
    ok("fit", *SMALL, "--out", run, "--force")
    assert (run / "posterior.safetensors").read_bytes() == before  # same seed


FIT = ("fit", "--out", "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*FIT, "--prior", "horsehoe"), "gaussian.*horseshoe, none.*did you mean horseshoe"),
        ((*FIT, "--net", "lenet"), "unknown network 'lenet'; allowed: mlp, lenet-300-100"),
        ((*FIT, "--net", "nowhere:net"), "cannot be imported"),
        ((*FIT, "--net", "math:pi"), "is 3.14.*, not a function"),
        ((*FIT, "--data", "mnits"), "unknown data set 'mnits'; allowed: digits, mnist"),
        ((*FIT, "--data", "mnist", "--data-dir", "nowhere"), "MNIST not found: its files belong in nowhere/MNIST/raw"),
        ((*FIT, "--data", "none.npz"), "no such file"),
        ((*FIT, "--hidden", "10,0"), "hidden 0: it must be positive"),
        ((*FIT, "--epochs", "0"), "epochs 0: it must be positive"),
        ((*FIT, "--epochs", "3", "--pretrain-epochs", "3"), "at least one epoch"),
        ((*FIT, "--lr", "-1"), "lr -1.0: it must be positive"),
        ((*FIT, "--lr", "nan"), "lr nan: it must be finite"),
        ((*FIT, "--prior", "gaussian", "--grouping", "input"), "allowed: weight"),
        ((*FIT, "--prior", "none", "--grouping", "input"), "--grouping goes with a prior"),
        ((*FIT, "--dropout", "0.5"), "goes with --prior none"),
        ((*FIT, "--prior", "none", "--dropout", "1"), "dropout 1.0"),
        ((*FIT, "--prior-option", "tau=1"), "unknown prior option 'tau'; allowed: tau0"),
        ((*FIT, "--prior-option", "tau0"), "name=number"),
        ((*FIT, "--keep", "*"), "no layer to put a prior on"),
        ((*FIT, "--init", "nowhere.safetensors"), "nowhere.safetensors: no such file or run folder"),
        ((*FIT, "--validation", "1.5"), "allowed are values above 0 and below 1"),
        (("fit", "--out", "/proc/nowhere/run"), "proc"),
        (("compress", "nowhere"), "does not exist"),
        (("compress", "."), "no run folder"),
        (("compress", __file__), "is a file; give a run folder, or --init FILE"),
        (("evaluate", "nowhere.pcn"), "does not exist"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert re.search(message, refused(*arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(run: Path) -> None:
    assert "finds no CUDA device" in refused(*FIT, "--device", "cuda")
    assert "finds no CUDA device" in refused("compress", run, "--device", "cuda", "--out", "x.pcn")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sparsity", "1.5"), "sparsity 1.5: allowed are values from 0 and below 1"),
        (("--sparsity", "nan"), "sparsity nan"),
        (("--tolerance", "-1"), "tolerance -1.0: allowed are values from 0 and up to 1"),
        (("--nll-tolerance", "-1"), "must not be negative"),
        (
            ("--criterion", "mangitude"),
            "allowed: snr, magnitude, group-snr, group-mode, group-relevance, model-reduction; did you mean magnitude?",
        ),
        (("--out", "nowhere/a.pcn"), "nowhere is no folder"),
    ],
)
def test_bad_compression(arguments: tuple[str, ...], message: str, run: Path, tmp_path: Path) -> None:
    assert message in refused("compress", run, *(("--out", "a.pcn") if "--out" not in arguments else ()), *arguments)
    assert not list(tmp_path.glob("*.pcn"))


def test_damaged_files(pcn: Path, run: Path, tmp_path: Path) -> None:
    data = bytearray(pcn.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.pcn").write_bytes(data)
    assert "damaged: the checksum does not fit" in refused("evaluate", tmp_path / "bad.pcn")
    (tmp_path / "foreign.pcn").write_text("hello")
    assert "not a .pcn file" in refused("evaluate", tmp_path / "foreign.pcn")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").write_bytes((run / "config.toml").read_bytes())
    (tmp_path / "run/posterior.safetensors").write_bytes((run / "posterior.safetensors").read_bytes()[:1000])
    assert "no posterior of this program" in refused("compress", tmp_path / "run")
    (tmp_path / "bad.toml").write_text("prior = [")
    assert "no valid TOML" in refused("fit", "--config", tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("priour = 1")
    assert "unknown option 'priour'; did you mean prior?" in refused("fit", "--config", tmp_path / "bad.toml")


def test_a_network_without_layers(tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text("from torch import nn\ndef net():\n    return nn.Flatten()\n")
    for prior in ("none", "horseshoe"):
        message = refused(*FIT, "--net", "flat:net", "--prior", prior)
        assert "the network has no layer with weights (linear, conv1d, conv2d, conv3d)" in message


@pytest.mark.parametrize("command", [[], ["fit"], ["compress"], ["evaluate"], ["compare"], ["inspect"], ["report"]])
def test_help(command: list[str]) -> None:
    text = ok(*command, "--help").stdout
    assert "Usage" in text
    wanted = ["--data-dir", "--threads"] + ["--device"] * (command not in (["inspect"], ["report"]))
    assert not command or all(option in text for option in wanted)


@pytest.mark.parametrize("name", main.commands)
def test_every_option_says_what_it_does(name: str) -> None:
    """Once each, under headings that begin with options that exist; what a number stands for in plain words."""
    command, text = main.commands[name], ok(name, "--help").stdout
    options = [param for param in command.params if isinstance(param, click.Option)]
    for option in options:
        assert option.help, option.name
        assert len(re.findall(rf"^  (?:-\w, )?{option.opts[-1]}\b(?!-)", text, re.MULTILINE)) == 1, option.name
    assert not re.search(r'INTEGER|FLOAT|\[default: ""\]', text)


def test_help_is_quick() -> None:
    """Not a benchmark: twenty times what it takes of the processor, to catch a heavy import."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "pyro_compress", "--help"], check=True, capture_output=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 4
