"""`pc.trained`: a network that was trained elsewhere, from Python."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import pyro_compress as pc
from pyro_compress.types import Splits


@pytest.fixture(scope="module")
def net(digits: Splits) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(digits.train.x), digits.train.y).backward()
        optimizer.step()
    return net


def test_a_network_is_rounded_as_it_is(net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given = pc.trained(net, digits)
    found = given.compress(tolerance=0.01)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert found.report.validation_before == given.evaluate()
    assert found.report.validation_after.accuracy >= given.evaluate().accuracy - 0.01
    assert found.bytes < 4 * 1500 / 8
    assert "1,480 in 2 tensors" in repr(given)
    module = pc.load(found.save(tmp_path / "small.pcn"))
    assert pc.evaluate(tmp_path / "small.pcn", digits.origin["data"]).scores == found.report.test_after
    assert (module(digits.test.x).argmax(1) == digits.test.y).float().mean() == found.report.test_after.accuracy


def test_as_the_command_does(net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    """By name and file the same bytes as the network itself, and as `compress --net --init --data`."""
    from click.testing import CliRunner

    from pyro_compress.cli.main import main

    state = {name.replace("4.", "3."): tensor for name, tensor in net.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    named = pc.trained("mlp", "digits", init=tmp_path / "weights.safetensors", hidden=(20,)).compress(tolerance=0.02)
    command = ["compress", "--net", "mlp", "--init", tmp_path / "weights.safetensors", "--data", "digits"]
    command += ["--hidden", 20, "--tolerance", 0.02, "-o", tmp_path / "a.pcn"]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.pcn").read_bytes() == named.data


def test_options_ask_for_a_posterior_and_for_training(net: nn.Module, digits: Splits) -> None:
    given, seen = pc.trained(net, digits), []
    pruned = given.compress(sparsity=0.5, callbacks=[seen.append])
    assert pruned.report.sparsity == pytest.approx(0.5, abs=0.01)
    tuned = given.compress(finetune=1, finetune_lambda=1.0, tolerance=0.2)
    assert tuned.bytes < pruned.bytes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: pc.trained("mlp", "digits"), r"mlp has no trained weights: name them, init='weights.safetensors'"),
        (lambda net: pc.trained(net, "digits", init="a.pt"), "init goes with the name of a network"),
        (lambda net: pc.trained(net, "digits", hiden=(3,)), "hidden"),
        (lambda net: pc.trained(net), "give train, examples with labels, or calibration, examples without"),
        (lambda net: pc.trained(net, calibration=torch.zeros(9, 1, 8, 8)), "9 examples are too few for 10 classes"),
        (lambda net: pc.trained(net, calibration="nowhere.npy"), "no such file or folder"),
        (lambda net: pc.trained(net, "digits").compress(tolerence=0.1), "tolerance"),
        (lambda net: pc.trained(net, "digits").compress(posterior="mcmc", sparsity=0.5), "laplace"),
    ],
)
def test_bad_calls_are_one_line(net: nn.Module, call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(net)
    assert "\n" not in str(error.value)


def test_outputs_in_another_order_are_taken_as_a_fit_takes_them() -> None:
    """Classes come last in what language models return."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.table(x))

    torch.manual_seed(0)
    x = torch.randint(0, 9, (300, 6))
    given = pc.trained(Words(), (x[:, :-1], x[:, 1:]), task="next-token")
    assert given.trained.network.graph.nodes[-1].op == "permute"
    assert given.compress(tolerance=0.5, nll_tolerance=1.0).report.within_tolerance


def test_examples_without_labels_are_enough(net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    """What is lost is agreement with the network; labels that it was given elsewhere are kept about as well."""
    x = torch.cat([digits.train.x, digits.validation.x])
    given = pc.trained(net, calibration=x)
    with torch.no_grad():
        assert torch.equal(given.trained.splits.test.y, net.eval()(given.trained.splits.test.x).argmax(1))
    assert given.evaluate().accuracy == 1
    assert "agrees with the network as it was given" in given.doubts[0]
    small = given.compress(tolerance=0.01)
    assert small.report.validation_after.accuracy >= 0.99
    logits, wanted = small.module()(digits.test.x), net(digits.test.x)
    right = [float((one.argmax(1) == digits.test.y).float().mean()) for one in (logits, wanted)]
    assert right[0] > right[1] - 0.02


def test_the_command_without_labels(net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    import json

    import numpy as np
    from click.testing import CliRunner

    from pyro_compress.cli.main import main

    save_file({name.replace("4.", "3."): t for name, t in net.state_dict().items()}, tmp_path / "weights.safetensors")
    np.save(tmp_path / "x.npy", (16 * digits.train.x).numpy().astype(np.uint8) * 15)
    command = ["compress", "--net", "mlp", "--init", tmp_path / "weights.safetensors", "--hidden", 20]
    command += ["--calibration", tmp_path / "x.npy", "--tolerance", 0.02, "-o", tmp_path / "a.pcn", "--json"]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["validation_accuracy_before"] == 1
    assert any("without" in text or "own predictions" in text for text in report["warnings"])
    both = CliRunner().invoke(main, [*map(str, command), "--data", "digits", "--force"])
    assert "--calibration and --data exclude each other" in both.output
