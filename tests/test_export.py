"""Every export computes what the decoded file computes, says where it comes from, and refuses what it cannot do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_shrink import PROBLEMS, close, prepared
from torch import nn

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.compression import precision
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.shrink import shrink
from pyro_compress.deploy import arrays, onnx_files, onnx_four_bits, torch_files
from pyro_compress.deploy.card import card
from pyro_compress.deploy.crop import cropped
from pyro_compress.deploy.onnx_model import build
from pyro_compress.deploy.refusals import kept_of
from pyro_compress.graph.capture import capture
from pyro_compress.pcn import file
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed, Graph, Node, Splits

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
SCORES = Scores(0.9, 0.3, 0.01, 0.1)


@pytest.fixture(scope="module")
def pcn(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed network of the digits, as a user gets it."""
    torch.manual_seed(0)
    config = pc.FitConfig(prior="horseshoe", epochs=14, pretrain_epochs=10, batch_size=64, lr=3e-3, threads=1)
    config = pc.resolve(config, len(digits.train))
    fit = pc.fit_posterior(pc.build_net("mlp", digits.input_shape, 10, (40, 20)), digits, config)
    assert fit.history[-1].validation_accuracy > 0.9
    network, _ = pc.compress(pc.extract(fit), digits, pc.Goal(sparsity=0.5))
    path = tmp_path_factory.mktemp("pcn") / "digits.pcn"
    pc.save(path, network, digits)
    return path


def export(*arguments: str | Path) -> dict:
    result = CliRunner().invoke(main, ["export", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


def problem(name: str, quantized: bool) -> Compressed:
    """One of the networks of test_shrink with dead units, shrunken, in float32 or on a grid."""
    _, _, graph, tensors = prepared(name, 0.3, 0.3)
    graph, small = shrink(graph, tensors)
    weights = {node.parameters["weight"] for node in graph.nodes if node.op.startswith(("linear", "conv"))}
    packed = {
        key: precision.quantize(value, 0.01) if quantized and key in weights else value.numpy()
        for key, value in small.items()
    }
    return Compressed(graph, packed, {"data": "own.npz"})


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_operation_in_every_format(name: str, quantized: bool, tmp_path: Path) -> None:
    network = problem(name, quantized)
    about = card(network, SCORES, 7)
    x = torch.randn(5, *network.graph.input_shape)
    wanted = to_module(network).double()(x.double())
    onnx_files.write_onnx(network, about, tmp_path / "a.onnx")
    onnx_files.write_onnx(network, about, tmp_path / "b.onnx", integers=False, crop=False)
    torch_files.write_safetensors(network, about, tmp_path / "a.safetensors")
    arrays.write_folder(network, about, tmp_path, sparse_below=1.1, smallest=0)
    got = {
        "integers": onnx_files.load_onnx(tmp_path / "a.onnx")(x.numpy()),
        "float32": onnx_files.load_onnx(tmp_path / "b.onnx")(x.numpy()),
        "safetensors": torch_files.load_safetensors(tmp_path / "a.safetensors")(x).detach().numpy(),
        "numpy": arrays.load_runner(tmp_path).run(x.numpy()),
    }
    for outputs in got.values():
        close(torch.from_numpy(outputs), wanted, 2e-5)


def test_attributes_that_are_whole_numbers(tmp_path: Path) -> None:
    """A file may say 1 where an operation of ONNX wants 1.0."""
    network = file.read(Path(__file__).parent / "golden" / "layouts-version-4.pcn")
    onnx_files.write_onnx(network, card(network, SCORES, 7), tmp_path / "a.onnx")
    x = torch.rand(3, *network.graph.input_shape)
    wanted = to_module(network)(x).detach().numpy()
    assert np.allclose(onnx_files.load_onnx(tmp_path / "a.onnx")(x.numpy()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "mlp", "conv1d"])
def test_torch_programs(name: str, tmp_path: Path) -> None:
    network = problem(name, True)
    torch_files.write_program(network, card(network, SCORES, 7), tmp_path / "a.pt2")
    program = torch_files.load_program(tmp_path / "a.pt2")
    for batch in (1, 9):
        x = torch.randn(batch, *network.graph.input_shape)
        close(program(x), to_module(network).double()(x.double()), 1e-5)


@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("m.onnx", []),
        ("m.onnx", ["--float32"]),
        ("m.onnx", ["--raw"]),
        ("m.pt2", []),
        ("m.safetensors", []),
        ("folder", []),
        ("folder", ["--sparse"]),
        pytest.param("m.c", [], marks=needs_compiler),
        pytest.param("m.c", ["--raw"], marks=needs_compiler),
    ],
)
def test_exports_agree_with_the_decoded_file(out: str, options: list[str], pcn: Path, tmp_path: Path) -> None:
    result = export(pcn, "-o", tmp_path / out, *options)
    assert result["difference"] < 1e-5 * max(result["largest_output"], 1)
    assert result["probability_difference"] < 1e-5
    assert result["after"] == pytest.approx(result["before"], abs=1e-5)
    assert result["examples"] == 360
    assert [path.name for path in tmp_path.iterdir()] == [out]
    if out == "folder":
        assert result["bytes"] == sum(path.stat().st_size for path in (tmp_path / out).iterdir())
    else:
        assert result["bytes"] == (tmp_path / out).stat().st_size


@pytest.mark.parametrize("option", ["--int8", "--int8-dynamic"])
def test_8_bit_models_compute_in_integers(option: str, pcn: Path, tmp_path: Path) -> None:
    import onnx

    result = export(pcn, "-o", tmp_path / "m.onnx", option)
    assert abs(result["after"]["accuracy"] - result["before"]["accuracy"]) <= 0.01
    model = onnx.load(tmp_path / "m.onnx")
    assert {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DynamicQuantizeLinear"}
    assert {prop.key for prop in model.metadata_props} >= {"origin", "accuracy", "input", "classes"}


def test_an_onnx_model_describes_itself(pcn: Path, digits: Splits, tmp_path: Path) -> None:
    import onnx

    export(pcn, "-o", tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    about = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert about["origin"]["prior"] == "horseshoe"
    assert about["classes"] == list(digits.classes)
    assert (about["input"]["shape"], about["input"]["scale"], about["input"]["range"]) == ([1, 8, 8], 16, [0, 1])
    right = (pc.load(pcn)(digits.test.x).argmax(1) == digits.test.y).double().mean()
    assert about["accuracy"]["accuracy"] == pytest.approx(float(right))
    assert about["accuracy"]["examples"] == 360


def test_quantised_weights_are_stored_as_integers(pcn: Path, tmp_path: Path) -> None:
    small = export(pcn, "-o", tmp_path / "a.onnx")["bytes"]
    large = export(pcn, "-o", tmp_path / "b.onnx", "--float32")["bytes"]
    assert small < 0.7 * large
    again = export(pcn, "-o", tmp_path / "c.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert again["bytes"] == small


def test_raw_and_scaled_inputs_cannot_be_confused(pcn: Path, digits: Splits, tmp_path: Path) -> None:
    """The names and types of the inputs differ; the runner looks at the values."""
    for name, options in (("raw", ["--raw"]), ("scaled", [])):
        export(pcn, "-o", tmp_path / f"{name}.onnx", *options)
    x = digits.test.x.numpy()
    pixels = np.rint(x * 16).astype(np.uint8)
    raw, scaled = (ort.InferenceSession(tmp_path / f"{name}.onnx") for name in ("raw", "scaled"))
    assert np.allclose(raw.run(None, {"raw": pixels})[0], scaled.run(None, {"scaled": x})[0], atol=1e-5)
    for session, wrong in ((raw, {"raw": x}), (scaled, {"scaled": pixels}), (scaled, {"raw": pixels})):
        with pytest.raises(Exception, match=r"Unexpected input data type|Required inputs|not in"):
            session.run(None, wrong)
    export(pcn, "-o", tmp_path / "folder")
    runner = arrays.load_runner(tmp_path / "folder")
    assert np.allclose(runner.logits(pixels), runner.logits(x), atol=1e-6)
    with pytest.raises(ValueError, match="values from 0 to 16; this network takes integers from 0 to 16, or floats"):
        runner.logits(pixels.astype(np.float32))
    with pytest.raises(ValueError, match=r"examples of shape \(8, 8\); this network takes \(n, \*\(1, 8, 8\)\)"):
        runner.logits(x[:, 0])


@pytest.mark.parametrize("absent", ["torch", "torch scipy pyro_compress constriction"])
def test_the_folder_runs_with_numpy_alone(absent: str, pcn: Path, digits: Splits, tmp_path: Path) -> None:
    network = file.read(pcn)
    (folder := tmp_path / "net").mkdir()
    arrays.write_folder(network, card(network, SCORES, 1), folder, sparse_below=1.1, smallest=0)
    assert json.loads((folder / "network.json").read_text())["sparse"]
    np.save(tmp_path / "x.npy", digits.test.x.numpy())
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in absent.split())
    start = "sys.argv = ['run.py', 'x.npy']; runpy.run_path('net/run.py', run_name='__main__')"
    code = f"import sys, runpy; {blocked}{start}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predicted = pc.load(pcn)(digits.test.x).argmax(1)
    assert done.stdout.split() == [str(int(i)) for i in predicted]
    failed = subprocess.run([sys.executable, "net/run.py", "none.npy"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("live", "window"),
    [
        ([(2, 3), (4, 1)], ([0, 2, 1], [1, 5, 4])),
        ([(0, 0)], ([0, 0, 0], [1, 1, 1])),
        ([], ([0, 0, 0], [1, 1, 1])),
        ([(0, 0), (5, 5)], None),
    ],
)
def test_only_the_window_that_is_read_is_multiplied(live: list, window: tuple | None) -> None:
    image = np.zeros((1, 6, 6), np.float32)
    for place in live:
        image[(0, *place)] = 1
    weight = np.stack([image.ravel(), 2 * image.ravel()])
    nodes = (Node("input"), Node("reshape", (0,), {}, {"shape": [36]}), Node("linear", (1,), {"weight": "w"}))
    network = Compressed(Graph(nodes, (1, 6, 6)), {"w": weight}, {})
    crop = [node for node in cropped(network).graph.nodes if node.op == "crop"]
    assert [(node.attributes["starts"], node.attributes["ends"]) for node in crop] == ([window] if window else [])
    model = build(network, card(network, SCORES, 1))
    x = np.random.default_rng(0).random((3, 1, 6, 6), np.float32)
    outputs = ort.InferenceSession(model.SerializeToString()).run(None, {"input": x})[0]
    assert np.allclose(outputs, x.reshape(3, 36) @ weight.T, atol=1e-6)


def test_sparse_layers_only_where_they_pay(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = tuple(
        Node("linear" if i else "input", (i - 1,) if i else (), {"weight": f"{i}"} if i else {}) for i in range(4)
    )
    density = {"1": 0.02, "2": 0.5, "3": 0.02}
    shapes = {"1": (100, 100), "2": (100, 100), "3": (10, 100)}
    tensors = {key: (rng.random(shapes[key]) < share).astype(np.float32) for key, share in density.items()}
    network = Compressed(Graph(nodes, (100,)), tensors, {})
    assert arrays.write_folder(network, card(network, SCORES, 1), tmp_path, arrays.CSR_PAYS) == ["1"]
    x = rng.random((4, 100), np.float32)
    wanted = x @ tensors["1"].T @ tensors["2"].T @ tensors["3"].T
    assert np.allclose(arrays.load_runner(tmp_path).run(x), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "m.mnn"], r"no export to .mnn; allowed: .onnx, .pt2, .pte, .tflite, .safetensors, .c, .wasm, folder"),
        (["-o", "m.pt"], "did you mean .pt2?"),
        (["-o", ".onnx"], ".onnx is a suffix without a name; give one, as in model.onnx"),
        (["-o", ".js"], ".js is a suffix without a name; give one, as in model.js"),
        (["-o", "m."], "m. ends in a dot; name a suffix behind it, or leave it out for a folder"),
        (["-o", "m.c", "--int8"], "--int8 goes with .onnx, .pte, .tflite only, not with .c; it has --integer"),
        (["-o", "m.onnx", "--integer"], "--integer goes with .c only, not with .onnx; it has --int8"),
        (["-o", "m.pt2", "--int8"], "--int8 goes with .onnx, .pte, .tflite only, not with .pt2"),
        (["-o", "m.onnx", "--sparse"], "--sparse goes with folder only"),
        (["-o", "m.c", "--float32"], "--float32 goes with .onnx only, not with .c"),
        (["-o", "folder", "--raw"], "--raw goes with .onnx, .c, .wasm only, not with folder"),
        (["-o", "m.onnx", "--int8", "--float32"], "exclude each other"),
        (["-o", "nowhere/m.onnx"], "nowhere is no folder"),
        (["-o", "m.onnx", "--data", "none.npz"], "no such file"),
        (["-o", "there"], "there exists and is not empty"),
        (["-o", "there", "--force"], "there is a folder that is no export of this program"),
        ([], "Missing option"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, pcn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("")
    assert message in refused(pcn, *arguments)
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine"]


def test_without_onnx(pcn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'pyro-compress[onnx]'" in refused(pcn, "-o", tmp_path / "m.onnx")
    export(pcn, "-o", tmp_path / "folder")
    result = CliRunner().invoke(main, ["bench", str(pcn), "--seconds", "0.01", "--no-memory", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "pip install 'pyro-compress[onnx]'" in result.stdout
    assert "scipy CSR" in result.stdout


def test_replaced_with_force_only(pcn: Path, tmp_path: Path) -> None:
    for out in ("m.onnx", "folder"):
        export(pcn, "-o", tmp_path / out)
        assert "exists" in refused(pcn, "-o", tmp_path / out)
        export(pcn, "-o", tmp_path / out, "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "m.onnx"]


def test_an_export_that_differs_is_not_written(pcn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = onnx_files.write_onnx

    def wrong(network: Compressed, *rest: object, **options: object) -> None:
        tensors = dict(network.tensors)
        name = next(key for key in tensors if key.endswith("bias"))
        tensors[name] = file.dense(tensors[name]) + np.float32(0.01)
        right(Compressed(network.graph, tensors, network.meta), *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_files, "write_onnx", wrong)
    assert "the export is off by" in refused(pcn, "-o", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_raw_needs_integers(tmp_path: Path) -> None:
    network = problem("mlp", False)
    with pytest.raises(ValueError, match="trained on values taken as they are"):
        card(network, SCORES, 1, raw=True)
    assert card(network, SCORES, 1)["input"]["name"] == "input"


def test_a_loaded_network_is_an_ordinary_module(pcn: Path, digits: Splits, tmp_path: Path) -> None:
    """It trains further, is copied, saved, moved, exported."""
    module = pc.load(pcn)
    assert isinstance(module, nn.Module)
    before = nn.functional.cross_entropy(module(digits.train.x), digits.train.y)
    optimizer = torch.optim.Adam(module.train().parameters(), 1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(digits.train.x), digits.train.y).backward()
        optimizer.step()
    assert nn.functional.cross_entropy(module(digits.train.x), digits.train.y) < before
    other = pc.load(pcn)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(digits.test.x), module(digits.test.x))
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(module.eval(), (digits.test.x[:2],), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(digits.test.x), module(digits.test.x), atol=1e-5)
    assert torch.equal(module.double()(digits.test.x.double()).argmax(1), other(digits.test.x).argmax(1))
    device = "cuda" if torch.cuda.is_available() else "meta"
    assert pc.load(pcn).to(device)(digits.test.x.to(device)).device.type == device


def test_what_onnx_runtime_says_is_one_line(pcn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors are of types that are none of Python's."""

    class Fail(Exception):
        pass

    def fails(*given: object, **named: object) -> None:
        raise Fail("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED :\nno kernel for node 'linear_2'")

    said = "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel for node 'linear_2'"
    with monkeypatch.context() as patched:
        patched.setattr(ort, "InferenceSession", fails)
        told = refused(pcn, "-o", tmp_path / "m.onnx")
    assert told == f"Error: ONNX Runtime does not run the export: {said}; export to .pt2 (torch)"
    for name, option in (("static", "--int8"), ("dynamic", "--int8-dynamic")):
        with monkeypatch.context() as patched:
            patched.setattr(ort.quantization, f"quantize_{name}", fails)
            told = refused(pcn, "-o", tmp_path / "m.onnx", option)
        assert told == f"Error: ONNX Runtime's quantiser refuses the network: {said}; export without {option}"
    assert not list(tmp_path.iterdir())


def test_what_torch_alone_runs_is_named_with_its_module() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.sort(self.second(torch.cumsum(self.first(x), 1)), 1)[0])

    graph = capture(Sorted(), (4,), trained=False)
    assert kept_of(graph) == "cumsum behind first and sort behind second"
    network = Compressed(graph, {n: t.detach().numpy() for n, t in Sorted().state_dict().items()}, {})
    message = r"^4 bits are for .* torch writes cumsum behind first and sort behind second; .* export with --int8$"
    with pytest.raises(ValueError, match=message):
        onnx_four_bits.write_int4(network, {}, Path("a.onnx"), None, torch.zeros(1, 4))  # type: ignore[arg-type]
