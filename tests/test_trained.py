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
        (lambda net: pc.trained(net, "digits", input_std=(2.0,)), "^input_std: goes with the name of a network"),
        (lambda net: pc.fit(net, "digits", hidden=(3,), init="a.pt", epochs=1), "^hidden, init: goes with the name"),
        (lambda net: pc.program(net, "digits", init_range=0.1), "^init_range: goes with the name of a network"),
        (lambda net: pc.trained(net, "digits", prior="horseshoe"), "prior goes with pc.fit"),
        (lambda net: pc.trained(lambda x: x, "digits"), "no torch.nn.Module; give a module"),
        (lambda net: pc.fit(nn.Linear, "digits"), "no torch.nn.Module; give a module"),
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


@pytest.mark.parametrize("targets", [1, 2])
def test_a_regression_that_was_trained_on_its_own_targets(targets: int, tmp_path: Path) -> None:
    """Neither the report nor `predict` is off by the targets' mean and spread; one that is standardised stays."""
    torch.manual_seed(0)
    x = torch.randn(400, 5)
    y = torch.cat([3 * x[:, :1] + 10, 200 - 40 * x[:, 1:2]], 1)[:, :targets]
    y = y + 0.05 * y.std(0) * torch.randn(400, targets)
    net = nn.Sequential(nn.Linear(5, targets))
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(400, 1)], 1), y).solution
    net[0].weight.data, net[0].bias.data = solution[:5].T.contiguous(), solution[5]
    given = pc.trained(net, (x, y))
    assert "predicts targets as they are" in given.doubts[0]
    assert given.evaluate().rmse < 0.1 * float(y.std(0).max())
    small = given.compress(tolerance=0.2, nll_tolerance=1.0)
    small.save(tmp_path / "small.pcn")
    found = pc.predict(tmp_path / "small.pcn", x[:50].numpy())
    got = torch.tensor([row.values for row in found])
    assert float(((got - y[:50]) / y.std(0)).abs().max()) < 0.5
    standard = nn.Sequential(nn.Linear(5, targets))
    standard[0].weight.data = net[0].weight.data / y[:256].std(0)[:, None]
    standard[0].bias.data = (net[0].bias.data - y.mean(0)) / y.std(0)
    assert not pc.trained(standard, (x, y)).doubts


def test_svi_goes_around_weights_whose_data_have_no_name(net: nn.Module, digits: Splits) -> None:
    x = torch.cat([digits.train.x, digits.validation.x])
    small = pc.trained(net, calibration=x).compress(posterior="svi", sparsity=0.3)
    assert small.report.sparsity == pytest.approx(0.3, abs=0.01)


def test_what_calibration_may_be(net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    """One tensor or array of what the network takes, or a file; everything else is one line."""
    x = digits.train.x
    one_logit = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    assert len(pc.trained(one_logit, calibration=x).trained.splits.classes) == 2
    table = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 3))
    assert pc.trained(table, calibration=torch.randint(0, 9, (90, 6))).trained.splits.tokens == 9
    for wrong, message in (
        ((x, digits.train.y), "calibration is a tuple; give inputs alone"),
        ({"x": x}, "calibration is a dict"),
        (x[:, :, :5], r"does not take torch.float32 of shape \(1, 5, 8\) as inputs"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            pc.trained(net, calibration=wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="go with classification, not with regression"):
        pc.trained(net, calibration=x, task="regression")
    with pytest.raises(ValueError, match="on the meta device, without values"):
        pc.trained(nn.Sequential(nn.Linear(8, 2)).to("meta"), (x.flatten(1)[:, :8], digits.train.y % 2))


def test_files_of_calibration(net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    """Arrays as data have them; what was made with them can be exported, and says what it wants to be evaluated."""
    import numpy as np

    x = digits.train.x.numpy()
    np.savez(tmp_path / "named.npz", x_train=x, x_test=x[:40])
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x_train.npy", x)
    found = [pc.trained(net, calibration=tmp_path / name) for name in ("named.npz", "folder")]
    assert [one.trained.splits.sizes for one in found] == [found[0].trained.splits.sizes] * 2
    assert sum(found[0].trained.splits.sizes.values()) == len(x)
    np.save(tmp_path / "scalar.npy", np.float32(3))
    with pytest.raises(ValueError, match=r"examples must have the shape \(n, ...\), got \(\)"):
        pc.trained(net, calibration=tmp_path / "scalar.npy")
    found[0].compress(tolerance=0.02).save(tmp_path / "small.pcn")
    assert pc.export(tmp_path / "small.pcn", tmp_path / "arrays").after.accuracy == 1
    with pytest.raises(ValueError, match="data"):
        pc.evaluate(tmp_path / "small.pcn")
