"""Compression of weights that were trained elsewhere: where they come from, the curvature around them, the file."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from pyro_compress.cli.main import main
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.search import compress
from pyro_compress.data.splits import load_splits
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.graph.statistics import renewed_statistics
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.normalized import normalized
from pyro_compress.networks.weights import put_weights, read_weights
from pyro_compress.pcn import file, runner
from pyro_compress.provenance import Provenance
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.post_training import load_trained, posterior_around
from pyro_compress.runs.run import fit_run, initial_net
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.training.baselines import point_posterior
from pyro_compress.training.laplace import laplace
from pyro_compress.types import Data, Posterior, Quantity, Splits

HIDDEN = (60, 30)
NET = ("--net", "mlp", "--hidden", "60,30", "--data", "digits", "--device", "cpu")


@pytest.fixture(scope="module")
def weights(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that somebody trained, in the three kinds of file."""
    torch.manual_seed(0)
    net = build_net("mlp", digits.input_shape, 10, HIDDEN)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(digits.train.x), digits.train.y).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("weights")
    save_file(net.state_dict(), folder / "w.safetensors")
    torch.save(net.state_dict(), folder / "w.pt")
    torch.save({"model": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, folder / "w.pth")
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout if result.exit_code == 0 else " ".join(result.stderr.split())


def test_every_kind_of_file_holds_the_same(weights: Path) -> None:
    own = build_net("mlp", (1, 8, 8), 10, HIDDEN).state_dict()
    first, *others = (read_weights(str(weights / f"w.{kind}"), own) for kind in ("safetensors", "pt", "pth"))
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize("how", ["svi", "laplace"])
def test_given_weights_are_the_reference(how: str, weights: Path, tmp_path: Path) -> None:
    """Accuracy before is that of the weights themselves, and the file is within the tolerance of it."""
    out = tmp_path / "d.pcn"
    keep = ("--run", tmp_path / "kept", "--epochs", 6) if how == "svi" else ()
    code, told = run(
        "compress", *NET, "--init", weights / "w.safetensors", "--posterior", how, "--tolerance", 0.01,
        "--out", out, "--json", *keep,
    )  # fmt: skip
    assert code == 0, told
    report = json.loads(told)
    splits = load_splits("digits")
    net = build_net("mlp", splits.input_shape, 10, HIDDEN)
    net.load_state_dict(read_weights(str(weights / "w.pt")))
    with torch.no_grad():
        right = (net(splits.validation.x).argmax(1) == splits.validation.y).float().mean()
    assert report["validation_accuracy_before"] == pytest.approx(float(right))
    assert report["validation_accuracy_after"] >= float(right) - 0.01 - 1e-9
    assert report["ratio"] > 8
    assert 0 < report["posterior_seconds"] < report["seconds"]
    if how == "svi":
        assert load_run(tmp_path / "kept").config.batch_norm == "update"  # it has none
    code, scored = run("evaluate", out, "--data", "digits", "--json")
    assert json.loads(scored)["accuracy"] == pytest.approx(report["test_accuracy_after"])


def test_laplace_is_the_inverse_curvature() -> None:
    """A single linear layer has its Fisher information in closed form: E[x²] p (1 - p), averaged over the examples.

    4,096 labels drawn, squared gradients of at most x²: 4 standard errors are below 10 % for these inputs.
    """
    x = torch.rand(4096, 3, generator=torch.Generator().manual_seed(1)) + 0.5
    net = nn.Linear(3, 2)
    data = Data(x, torch.zeros(len(x), dtype=torch.int64))
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    trained = point_posterior(capture(net, (3,)), state, Provenance())
    with torch.no_grad():
        p = net(x).softmax(1)
    fisher = (p * (1 - p)).T @ x.square()  # of all examples
    wanted = (fisher + 1 / state["weight"].square().mean()).rsqrt()
    found = laplace(trained, data).layers["weight"]
    assert torch.equal(found.mean, state["weight"])
    assert torch.allclose(found.std, wanted, rtol=0.1)


LIKELIHOODS = [("regression", 1), ("regression", 3), ("classification", 4)]


def exact_fisher(net: nn.Module, x: torch.Tensor, task: str, noise: float) -> dict[str, torch.Tensor]:
    """Mean diagonal over the examples, one backward pass per example and output, with the expectation written out."""
    found = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    for one in x:
        outputs = net(one[None])[0]
        p = outputs.detach().softmax(0)
        terms = outputs.log_softmax(0) if task == "classification" else outputs
        for k, term in enumerate(terms):
            weight = p[k] if task == "classification" else 1 / noise**2
            gradients = torch.autograd.grad(term, list(net.parameters()), retain_graph=True)
            for name, gradient in zip(found, gradients, strict=True):
                found[name] += weight * gradient.square() / len(x)
    return found


@pytest.mark.parametrize(("task", "outputs"), LIKELIHOODS)
def test_laplace_is_the_exact_diagonal_of_its_task(task: str, outputs: int) -> None:
    """A regression's to rounding; that of classes, whose labels are drawn, within 5 standard errors of 60 passes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, outputs))
    x, noise = torch.randn(12, 1, 6), 0.3
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    trained = point_posterior(capture(net, (1, 6)), state, Provenance({"task": task, "noise": noise}))
    passes = [laplace(trained, Data(x, torch.zeros(12)), seed=seed) for seed in range(60 if outputs == 4 else 1)]
    exact = exact_fisher(net, x, task, noise)
    for name, layer in passes[0].layers.items():
        found = torch.stack([(p.layers[name].std ** -2 - 1 / layer.mean.square().mean()) / 12 for p in passes])
        error = found.std(0) / len(found) ** 0.5 if len(found) > 1 else torch.zeros(())
        assert ((found.mean(0) - exact[name]).abs() <= 5 * error + 1e-4 * exact[name].max()).all()


def test_laplace_of_a_regression_prunes_better_than_magnitude() -> None:
    """Inputs of very different spread: the smallest weights are those that matter most."""
    generator = torch.Generator().manual_seed(4)
    spread = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05])
    x = torch.randn(400, 8, generator=generator) * spread
    net = nn.Linear(8, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.3, -0.35, 0.4, 0.45, -0.5, 0.55, 0.6, -0.65]]))
        y = net(x)
    data = Data(x, y)
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    trained = point_posterior(capture(net, (8,)), state, Provenance({"task": "regression", "noise": 0.1}))
    splits = Splits(data, data, data, (), targets=(Quantity("y", 0.0, 1.0),))

    @torch.no_grad()
    def error(posterior: Posterior, criterion: str) -> float:
        network, _ = compress(posterior, splits, Goal(sparsity=0.5, criterion=criterion))
        return float((to_module(network)(x) - y).square().mean().sqrt() / y.std())

    assert error(laplace(trained, data), "snr") < 0.3 < 0.6 < error(trained, "magnitude")


def test_the_noise_of_given_weights_is_that_of_their_residuals(tmp_path: Path) -> None:
    """It scales the curvature, the price of bits while fine-tuning, and every NLL."""
    x = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    y = x.sum(1) + 0.5 * np.random.default_rng(1).normal(size=600).astype(np.float32)
    np.savez(tmp_path / "r.npz", x_train=x[:500], y_train=y[:500], x_test=x[500:], y_test=y[500:])
    net = build_net("mlp", (3,), 1, (4,))
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    config = FitConfig(
        task="regression", prior="log-uniform", net="mlp", hidden=(4,), data=str(tmp_path / "r.npz"),
        init=str(tmp_path / "w.safetensors"), device="cpu",
    )  # fmt: skip
    trained = load_trained(config)
    residual = net(trained.splits.validation.x).detach() - trained.splits.validation.y
    assert trained.network.noise == pytest.approx(float(residual.square().mean().sqrt()), rel=1e-5)
    assert posterior_around(trained).posterior.noise == trained.network.noise


def test_laplace_of_a_convolutional_network_with_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    trained = point_posterior(capture(net, (1, 4, 4)), state, Provenance())
    found = laplace(trained, Data(torch.randn(40, 1, 4, 4), torch.zeros(40, dtype=torch.int64)))
    prior = {name: layer.mean.square().mean().sqrt() for name, layer in found.layers.items()}
    assert all(
        (layer.std > 0).all() and (layer.std <= prior[name] + 1e-6).all() for name, layer in found.layers.items()
    )
    assert found.criterion == "snr"


def test_pruned_networks_get_new_statistics_of_batch_norm() -> None:
    """The scale and shift of a file are those of what its own batch norm sees of the training set."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    net[1].bias.data += 1
    net[1].weight.data[:] = torch.linspace(0.5, 2, 8)
    data = Data(torch.randn(300, 1, 4, 4) + 1, torch.arange(300) % 2)
    splits = Splits(data, data, data, ("a", "b"))
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    trained = point_posterior(capture(net, (1, 4, 4)), state, Provenance())
    network, _ = compress(trained, splits, Goal(sparsity=0.4))
    tensors = {name: torch.from_numpy(file.dense(tensor)) for name, tensor in network.tensors.items()}
    renewed = renewed_statistics(network.graph, tensors, data.x)
    assert len(renewed["1.weight"]) > 4
    # with the statistics of the training set, weight and bias are the trained ones of some channels, but for rounding
    for weight, bias in zip(renewed["1.weight"], renewed["1.bias"], strict=True):
        nearest = (state["1.weight"] - weight).abs().argmin()
        assert weight == pytest.approx(float(state["1.weight"][nearest]), rel=0.1)
        assert bias == pytest.approx(1.0, abs=0.3)


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("unpickled",)


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"holds more than tensors .print., and nothing is unpickled here"):
        read_weights(str(tmp_path / "evil.pt"))
    assert "unpickled" not in capsys.readouterr().out


def test_how_data_are_read_goes_with_a_network_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Series for a network of one's own, columns of a table for an mlp: fitted elsewhere, compressed, read again."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    x = (rng.normal(size=(400, 2, 16)) + y[:, None, None]).astype(np.float32)
    np.savez("s.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    Path("waves.py").write_text(
        "from pyro_compress.networks.vision import fcn_1d\n"
        "def small(input_shape, classes): return fcn_1d(input_shape, classes, width=6)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(build_net("waves:small", (2, 16), 2).state_dict(), "fcn.pt")
    command = ["compress", "--json", "--sparsity", "0.5", "--threads", "1"]
    series = ["--net", "waves:small", "--init", "fcn.pt", "--data", "s.npz"]
    assert run(*command, *series, "--series", "--out", "s.pcn")[0] == 0
    code, report = run("evaluate", "s.pcn", "--data", "s.npz", "--json")
    assert (code, json.loads(report)["examples"]) == (0, 100)
    code, error = run(*command, *series, "--out", "t.pcn")
    assert (code, "got (1, 2, 16); for series in arrays give --series" in error) == (1, True)
    rows = rng.normal(size=(200, 3))
    lines = [",".join(f"{value:.4f}" for value in (*row, row @ [1, 2, 3])) for row in rows]
    Path("t.csv").write_text("\n".join(["a,b,c,d", *lines]))
    torch.save(build_net("mlp", (3,), 1, (6,)).state_dict(), "mlp.pt")
    table = ["--net", "mlp", "--hidden", "6", "--init", "mlp.pt", "--data", "t.csv"]
    target = ["--task", "regression", "--target", "d"]
    code, report = run(*command, *table, *target, "--out", "t.pcn")
    assert (code, json.loads(report)["units_before"]) == (0, [3, 6, 1])


def test_inputs_are_normalised_inside_of_the_network(weights: Path, tmp_path: Path, digits: Splits) -> None:
    """Weights that were trained on (x - mean) / std, given with both; a fit that starts at such a run takes them on."""
    told = {"net": "mlp", "hidden": HIDDEN, "init": str(weights / "w.pt"), "epochs": 1, "prior": "none", "threads": 1}
    config = FitConfig(**told, input_mean=(0.25,), input_std=(0.5,), lr=1e-6)
    net, plain = initial_net(config, digits), initial_net(replace(config, input_mean=(), input_std=()), digits)
    with torch.no_grad():
        assert torch.equal(net(digits.test.x), plain((digits.test.x - 0.25) / 0.5))
    assert net.state_dict().keys() == plain.state_dict().keys()
    fit_run(config, tmp_path / "run")
    again = resolve(FitConfig(net="mlp", hidden=HIDDEN, init=str(tmp_path / "run")), 100)
    assert (again.input_mean, again.input_std) == ((0.25,), (0.5,))
    assert load_run(tmp_path / "run").config == resolve(config, len(digits.train))
    assert resolve(FitConfig(net="small.pcn", init=str(tmp_path / "run")), 100).input_mean == ()  # its graph has it
    small, _ = compress(load_run(tmp_path / "run").posterior, digits, Goal(sparsity=0.5))
    wanted = runner.run(small, digits.test.x.numpy())
    assert (wanted.argmax(1) == digits.test.y.numpy()).mean() > 0.7
    assert [node.op for node in small.graph.nodes[:3]] == ["input", "scale", "scale"]


def test_inputs_have_a_mean_per_channel() -> None:
    x, mean, std = torch.rand(5, 3, 8, 8).double(), [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    net = normalized(copy.deepcopy(plain), mean, std, (3, 8, 8))
    graph, net = capture(net, (3, 8, 8)), net.double()
    wanted = plain.double()((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    assert torch.allclose(net(x), wanted)
    assert torch.allclose(Network(graph, net.state_dict())(x), wanted)
    assert torch.allclose(copy.deepcopy(net)(x), wanted)


def test_weights_of_torchvision_say_what_inputs_they_want() -> None:
    config = resolve(FitConfig(net="torchvision:resnet18", init="torchvision:ResNet18_Weights.IMAGENET1K_V1"), 100)
    assert config.input_mean == (0.485, 0.456, 0.406)
    assert config.input_std == (0.229, 0.224, 0.225)
    assert resolve(replace(config, input_std=(1.0,)), 100).input_std == (1.0,)


def test_a_new_head(weights: Path, digits: Splits, tmp_path: Path) -> None:
    """Weights for seven classes start a network for ten."""
    state = read_weights(str(weights / "w.pt"))
    torch.save(state | {"5.weight": torch.zeros(7, HIDDEN[-1]), "5.bias": torch.zeros(7)}, tmp_path / "head.pt")
    config = FitConfig(net="mlp", hidden=HIDDEN, init=str(tmp_path / "head.pt"), new_head=True)
    found = initial_net(config, digits).state_dict()
    random = initial_net(replace(config, init="", new_head=False), digits).state_dict()
    for name in found:
        assert torch.equal(found[name], (random if name.startswith("5.") else state)[name])


def test_counters_of_batch_norm_may_be_missing() -> None:
    """And auxiliary heads may be there."""
    net = nn.BatchNorm1d(2)
    state = {name: tensor + 3 for name, tensor in net.state_dict().items() if name != "num_batches_tracked"}
    state["AuxLogits.fc.weight"] = torch.zeros(3, 3)
    put_weights(net, state, "w", "norm")
    assert net.running_mean.tolist() == [3, 3]
    assert int(net.num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("compress",),
            r"give a RUN folder, or --net, --init and --data \(or --calibration\); missing: --net, --init, --data",
        ),
        (("compress", *NET), "missing: --init"),
        (("compress", "FOLDER", *NET), "--net stands for a network that is no run: leave RUN or it out"),
        (("compress", "FOLDER", "--image-size", "32"), "--image-size goes with --net, without a run folder"),
        (("compress", *NET, "--init", "no.safetensors"), "no.safetensors: no such file or run folder"),
        (("compress", *NET, "--init", "bad.safetensors"), "is no safetensors file, and nothing that torch saved"),
        (("compress", *NET, "--init", "w.bad.pt"), "is no safetensors file, and nothing that torch saved"),
        (
            ("compress", *NET, "--init", "cut.pt"),
            "holds no state dict that can be read .damaged, or no file of torch's",
        ),
        (("compress", *NET, "--init", "torchvision:ResNet19_Weights.V1"), "torchvision has no weights"),
        (("compress", *NET, "--init", "w.pt", "--posterior", "laplace", "--run", "kept"), "--posterior svi"),
        (("compress", *NET, "--init", "w.pt", "--epochs", "3"), "--epochs goes with --posterior svi"),
        (
            ("compress", "--net", "mlp", "--data", "digits", "--init", "w.pt"),
            r"does not fit network mlp: 1.weight has shape .60, 64., the network's .500, 64.; .* and 2 more",
        ),
        (("compress", *NET, "--init", "head.pt"), "does not fit .*for other classes, start a fit .* with --new-head"),
        (("fit", *NET, "--new-head"), "new_head goes with init"),
        (
            ("fit", *NET, "--input-mean", "1,2,3"),
            r"input_mean has 3 values, .*: give one number, or one per channel \(1\)$",
        ),
        (("fit", *NET, "--input-std", "0"), "input_std 0.0: it must be positive"),
        (("fit", *NET, "--input-std", "a"), "'a': give numbers separated by commas"),
        (("compress", *NET, "--init", "part.pt"), "missing 5.bias; unknown own; missing is what the network wants"),
    ],
)
def test_refusals_take_one_line(
    arguments: tuple, message: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = read_weights(str(weights / "w.pt"))
    torch.save(state, "w.pt")
    Path("bad.safetensors").write_bytes(b"junk")
    Path("cut.pt").write_bytes(Path("w.pt").read_bytes()[:2000])
    Path("w.bad.pt").write_bytes(np.random.default_rng(0).bytes(200))
    torch.save(state | {"5.weight": torch.zeros(7, HIDDEN[-1]), "5.bias": torch.zeros(7)}, "head.pt")
    torch.save({"own" if name == "5.bias" else name: tensor for name, tensor in state.items()}, "part.pt")
    code, told = run(*[tmp_path if argument == "FOLDER" else argument for argument in arguments])
    assert code in (1, 2)
    with pytest.raises(ValueError, match=message):
        raise ValueError(told)
