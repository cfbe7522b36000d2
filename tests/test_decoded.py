"""Networks of compressed files, to go on training: `--net FILE.pcn` and `--init FILE.pcn`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_shrink import PROBLEMS, close, doubled, prepared

from pyro_compress.cli.main import main
from pyro_compress.compression.shrink import shrink
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.weights import put_weights, read_weights
from pyro_compress.pcn import file
from pyro_compress.runs.folder import load_run, unfinished
from pyro_compress.runs.run import START, fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.types import Compressed

SHAPE = (1, 8, 8)
QUICK = ("--epochs", "2", "--threads", "1", "--device", "cpu")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout if result.exit_code == 0 else " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for the digits: half of an mlp's units are gone."""
    torch.manual_seed(0)
    net = build_net("mlp", SHAPE, 10, (20, 12))
    tensors = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    tensors["1.weight"][::2] = 0
    tensors["3.weight"][:, :4] = 0
    graph, left = shrink(capture(net, SHAPE), tensors)
    path = tmp_path_factory.mktemp("files") / "small.pcn"
    arrays = {name: tensor.numpy() for name, tensor in left.items()}
    path.write_bytes(file.dumps(Compressed(graph, arrays, {"parameters_total": 5000}))[0])
    return path


LARGE = {"resnet-50", "vit-tiny", "inverted"}
"""Networks that take seconds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in PROBLEMS]
)
def test_every_network_goes_on(name: str, tmp_path: Path) -> None:
    """Rebuilt with its weights, a shrunken network computes what the file says, and is read by `capture` again."""
    _, x, graph, tensors = prepared(name, 0.4, 0.2)
    small, left = shrink(graph, tensors)
    path = tmp_path / "n.pcn"
    path.write_bytes(file.dumps(Compressed(small, {k: v.numpy() for k, v in left.items()}, {}), in_context=False)[0])
    net = build_net(str(path), graph.input_shape, 3)
    names = [node.parameters["weight"] for node in small.nodes if is_weighted(node.op)]
    fresh = net.state_dict()
    assert all(fresh[key].isfinite().all() for key in fresh)
    assert all((fresh[key] != left[key]).any() for key in names)
    put_weights(net, read_weights(str(path)), "file", "file")
    x, wanted = x.double(), Network(small, doubled(left)).eval()(x.double())
    again = capture(net, graph.input_shape)
    close(Network(again, doubled(net.state_dict())).eval()(x), wanted)
    close(net.double().eval()(x), wanted)
    assert sorted(node.op for node in again.nodes) == sorted(node.op for node in small.nodes)


def test_new_weights_are_seeded(small: Path) -> None:
    with torch.random.fork_rng():
        found = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(build_net(str(small), SHAPE, 10).state_dict()["1.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_structure_first_then_weights(small: Path, tmp_path: Path) -> None:
    """The second fit starts with the file's units and function; sizes are told against the network before the file."""
    out = tmp_path / "b"
    # rates of next to nothing: what is stored is where the fit began
    code, told = run("fit", "--prior", "log-uniform", "--net", small, "--init", small, "--lr", 1e-9, "--lr-scale", 1e-9,
                     "--pretrain-epochs", 0, *QUICK, "--out", out)  # fmt: skip
    assert code == 0, told
    found, given = load_run(out).posterior, read_weights(str(small))
    for name, tensor in found.tensors.items():
        torch.testing.assert_close(tensor, given[name], rtol=0, atol=1e-5)
    assert found.parameters_total == 5000
    assert (out / START).read_bytes() == small.read_bytes()
    code, told = run("compress", out, "--sparsity", 0.2, "--json", "--device", "cpu")
    assert code == 0, told
    assert json.loads(told)["dense_bytes"] == 20_000


def test_compress_starts_from_a_file(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is the default of what is written, which never replaces it unasked."""
    shutil.copy(small, tmp_path / "small.pcn")
    monkeypatch.chdir(tmp_path)
    options = ("--net", "small.pcn", "--init", "small.pcn", "--data", "digits", "--sparsity", 0.5, "--device", "cpu")
    code, told = run("compress", *options)
    assert code == 1
    assert "small.pcn exists; choose another --out" in told
    code, told = run("compress", *options, "--out", "less.pcn", "--json")
    assert code == 0, told
    assert json.loads(told)["dense_bytes"] == 20_000
    assert file.read(Path("less.pcn")).parameters < file.read(Path("small.pcn")).parameters


def test_resumes_without_the_file(small: Path, tmp_path: Path) -> None:
    """The folder has a copy: an interrupted fit ends in the same bytes when the file is gone."""
    given = tmp_path / "gone.pcn"
    shutil.copy(small, given)
    config = FitConfig(
        prior="log-uniform", net=str(given), init=str(given), epochs=3, threads=1, device="cpu", compile="off"
    )
    wanted = fit_run(config, tmp_path / "straight")

    def stop(epoch: object) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_run(config, tmp_path / "run", on_epoch=stop, checkpointing=CheckpointConfig(every_epochs=1))
    assert unfinished(tmp_path / "run").is_dir()
    given.unlink()
    found = fit_run(config, tmp_path / "run", checkpointing=CheckpointConfig(resume=True))
    for name in ("posterior.safetensors", "guide.safetensors", START):
        assert (found.path / name).read_bytes() == (wanted.path / name).read_bytes()


def truncated(path: Path) -> Path:
    path.with_name("cut.pcn").write_bytes(path.read_bytes()[:-30])
    return path.with_name("cut.pcn")


def foreign(path: Path) -> Path:
    path.with_name("no.pcn").write_bytes(np.random.default_rng(0).bytes(200))
    return path.with_name("no.pcn")


@pytest.mark.parametrize(
    ("made", "data", "message"),
    [
        (lambda path: path, "rows.npz", r"small.pcn takes inputs of shape \(1, 8, 8\), the data have \(64,\)"),
        (lambda path: path, "two.npz", r"small.pcn gives outputs of shape \(10,\), the data ask for 2"),
        (truncated, "digits", "cut.pcn: damaged: the checksum does not fit"),
        (foreign, "digits", "no.pcn: not a .pcn file"),
        (lambda path: path.with_name("none.pcn"), "digits", "none.pcn: there is no such file"),
        (lambda path: path.parent, "digits", "unknown network .*package.module:function or FILE.pcn"),
    ],
)
def test_refusals_take_one_line(
    made: Callable[[Path], Path], data: str, message: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.random.default_rng(0).random((300, 64), np.float32), np.arange(300) % 10
    np.savez("rows.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    np.savez("two.npz", x_train=x.reshape(-1, *SHAPE), y_train=y % 2, x_test=x.reshape(-1, *SHAPE), y_test=y % 2)
    shutil.copy(small, "small.pcn")
    path = made(Path("small.pcn").absolute())
    for command in (("fit", "--out", "run"), ("compress", "--init", path, "--out", "out.pcn")):
        code, told = run(*command, "--net", path, "--data", data, "--device", "cpu")
        assert code == 1
        assert not Path(".run.unfinished").exists()
        with pytest.raises(ValueError, match=message):
            raise ValueError(told)


def test_weights_of_a_file_that_do_not_fit(small: Path) -> None:
    code, told = run("fit", "--net", "mlp", "--hidden", "20,12", "--init", small)
    assert code == 1
    assert f"{small} does not fit network mlp: 1.weight has shape (8, 64), the network's (20, 64)" in told
    assert "give it as --net too" in told
