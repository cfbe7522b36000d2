"""A network as C computes what the decoded network computes, on any batch, and is clean C99 and C++."""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_shrink import PROBLEMS, prepared
from torch import nn

from pyro_compress.cli.main import main
from pyro_compress.compression import precision
from pyro_compress.compression.shrink import shrink
from pyro_compress.deploy.c import library as c_library
from pyro_compress.deploy.c import source as c_source
from pyro_compress.deploy.c.layers import is_dense
from pyro_compress.deploy.c.layout import laid_out
from pyro_compress.deploy.c.library import Library, compiler, load_c
from pyro_compress.deploy.c.plan import planned
from pyro_compress.deploy.c.positions import side_by_side
from pyro_compress.deploy.c.whole import is_whole
from pyro_compress.deploy.card import card, tokens_of
from pyro_compress.deploy.memory import peak_memory
from pyro_compress.graph.capture import capture
from pyro_compress.graph.faces.c_text import comment, identifier, indented, number, string
from pyro_compress.pcn import file, runner
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed, Graph, Node

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "results" / "records"
SCORES = Scores(0.9, 0.3, 0.01, 0.1)
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
BATCHES = (1, 3, 4, 7, 16, 35)
LARGE = ("resnet-18", "resnet-20", "resnet-50", "vgg-16", "inverted", "vit-tiny")
"""Seconds of a C compiler for what the smaller ones hold too."""
try:
    compiler()
    MISSING = False
except ValueError:
    MISSING = True
needs_compiler = pytest.mark.skipif(MISSING, reason="needs a C compiler")


def problem(name: str, quantized: bool) -> Compressed:
    """One of the networks of test_shrink with half of its weights zero, alive to its output."""
    _, _, graph, tensors = prepared(name, 0.1, 0.1)
    for key, tensor in tensors.items():
        if tensor.dim() > 1 and key.endswith("weight"):
            tensor[torch.rand(tensor.shape) < 0.5] = 0
            if not tensor.any():  # a head that starts at zero
                torch.nn.init.normal_(tensor, std=0.1)
    graph, small = shrink(graph, tensors)
    packed = {
        key: precision.quantize(value, 0.01) if quantized and value.dim() > 1 else value.numpy()
        for key, value in small.items()
    }
    return Compressed(graph, packed, {"data": "own.npz"})


def linear(*weights: np.ndarray, **meta: object) -> Compressed:
    """Linear layers one behind the other."""
    nodes = [Node("input"), *(Node("linear", (i,), {"weight": f"{i}"}) for i in range(len(weights)))]
    tensors = {str(i): weight.astype(np.float32) for i, weight in enumerate(weights)}
    return Compressed(Graph(tuple(nodes), (weights[0].shape[1],)), tensors, dict(meta))


def written(network: Compressed, path: Path, raw: bool = False) -> Path:
    c_source.write_c(network, card(network, SCORES, 7, raw), path)
    return path


def drawn(network: Compressed, number: int) -> np.ndarray:
    """Random inputs; tokens where the network reads these."""
    rng, shape = np.random.default_rng(number), (number, *network.graph.input_shape)
    rows = tokens_of(network)
    return rng.integers(0, rows, shape) if rows else rng.standard_normal(shape).astype(np.float32)


def agrees(network: Compressed, path: Path, options: tuple[str, ...], batches: tuple[int, ...] = BATCHES) -> None:
    predict = load_c(path, options)
    for batch in batches:
        x = drawn(network, batch)
        wanted = runner.run(network, x).reshape(batch, -1)
        assert np.abs(predict(x) - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max()), batch


@needs_compiler
def test_operations_that_nobody_reads(tmp_path: Path) -> None:
    convolution = {"stride": [1, 1], "padding": [[1, 1], [1, 1]], "dilation": [1, 1]}
    nodes = (
        Node("input"), Node("conv2d", (0,), {"weight": "c"}, convolution),
        Node("permute", (1,), {}, {"axes": [3, 2, 1]}), Node("reshape", (0,), {}, {"shape": [64]}),
        Node("linear", (3,), {"weight": "w"}), Node("tanh", (4,)), Node("relu", (4,)),
    )  # fmt: skip
    shapes = {"c": (2, 1, 3, 3), "w": (3, 64)}
    tensors = {name: np.random.default_rng(0).standard_normal(shape, np.float32) for name, shape in shapes.items()}
    network = Compressed(Graph(nodes, (1, 8, 8)), tensors, {"data": "own.npz"})
    assert [step.op for step in planned(network)] == ["linear"]
    agrees(network, written(network, tmp_path / "net.c"), STRICT)


@needs_compiler
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in PROBLEMS if name != "resnet-50"],
)
def test_every_network(name: str, tmp_path: Path) -> None:
    """Integers with all warnings as errors, floats for this processor, whatever of the two it has."""
    for quantized, options in ((True, ("-std=c99", "-O1", *STRICT)), (False, ("-O1", "-march=native"))):
        network = problem(name, quantized)
        agrees(network, written(network, tmp_path / f"n{int(quantized)}.c"), options)


@needs_compiler
@pytest.mark.parametrize("name", ["mnist-lenet-300-100-rate1.5-seed0", "mnist-lenet-5-caffe-rate2-seed0"])
def test_committed_networks(name: str, tmp_path: Path) -> None:
    network = file.read(RECORDS / f"{name}.pcn")
    path = written(network, tmp_path / "lenet.c")
    for options in (("-std=c99", "-O3", *STRICT), c_library.FAST):
        agrees(network, path, options, (1, 7, 16, 256))
    assert path.stat().st_size < 60_000


@needs_compiler
@pytest.mark.parametrize("lanes", [1, 8, 32])
@pytest.mark.parametrize("name", ["residual", "lenet-5-relu", "mlp"])
def test_blocks_of_another_size(name: str, lanes: int, tmp_path: Path) -> None:
    network = problem(name, True)
    agrees(network, written(network, tmp_path / "n.c"), ("-O1", f"-DN_LANES={lanes}", *STRICT))
    with pytest.raises(ValueError, match="LANES must be 1 or a multiple of 8"):
        Library(tmp_path / "n.c", ("-DN_LANES=12",))


@needs_compiler
@pytest.mark.parametrize("name", ["residual", "fcn-1d", "depthwise", "conv1d", "lenet-300-100", "tokens"])
def test_it_stays_within_what_it_is_given(name: str, tmp_path: Path) -> None:
    stays_within(problem(name, True), tmp_path)


def stays_within(network: Compressed, tmp_path: Path) -> None:
    """Marks behind workspace and outputs survive, and the workspace may hold anything before."""
    library = Library(written(network, tmp_path / "n.c"), ("-O2",))
    size, marks = len(library._workspace), np.full(64, 7.0, np.float32)
    for batch in (1, 3, 16, 21):
        library._workspace = np.concatenate([np.full(size, np.nan, np.float32), marks])
        room = np.concatenate([np.full(batch * library.outputs, np.nan, np.float32), marks])
        x = drawn(network, batch)
        library.ready(np.ascontiguousarray(x, library.kind), room)()
        assert np.array_equal(library._workspace[size:], marks), batch
        assert np.array_equal(room[-64:], marks), batch
        wanted = runner.run(network, x).reshape(batch, -1)
        assert np.abs(room[:-64].reshape(batch, -1) - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max()), batch


@needs_compiler
def test_raw_and_scaled_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for weights in ([rng.random((5, 12)), rng.random((3, 5))], [np.eye(3, 12)]):
        network = linear(*weights, scale=16.0)
        scaled, raw = (load_c(written(network, tmp_path / f"n{int(r)}.c", r), ("-O1", *STRICT)) for r in (False, True))
        for batch in BATCHES:
            x = (rng.integers(0, 17, (batch, 12)) / 16).astype(np.float32)
            assert np.allclose(scaled(x), runner.run(network, x), rtol=1e-5)
            assert np.allclose(raw(x), scaled(x), rtol=1e-5)
    assert "typedef unsigned char n1_value" in (tmp_path / "n1.c").read_text()


@needs_compiler
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize("name", ["residual", "fcn-1d", "gated", "mlp", "tokens", "resized"])
def test_it_is_cpp_as_well(name: str, tmp_path: Path) -> None:
    path = written(problem(name, True), tmp_path / "n.c")
    command = ["g++", "-x", "c++", "-O1", *STRICT, "-DN_MAIN", str(path), "-o", str(tmp_path / "n")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


HOSTILE = ['say "no"', "*/ int x; /*", "a\nb\\", "??/", "%s%n", "name_run NAME_", "café", "\\"]


@needs_compiler
def test_hostile_names(tmp_path: Path) -> None:
    """Class names and file names are text, whatever they look like."""
    network = linear(np.eye(len(HOSTILE)), classes=HOSTILE, data="*/ #error ??/\n")
    path = written(network, tmp_path / "7 */\"odd' $(name).c".replace("/", "_"))
    agrees(network, path, ("-std=c99", "-O1", *STRICT))
    program = tmp_path / "program"
    options = [f"-D{identifier(path.stem).upper()}_MAIN", "-o", str(program), str(path), "-lm"]
    subprocess.run([*compiler(), *options], check=True)
    done = subprocess.run([program], input=np.eye(len(HOSTILE), dtype=np.float32).tobytes(), capture_output=True)
    assert done.stdout.decode() == "".join(f"{name}\n" for name in HOSTILE)


@pytest.mark.parametrize(
    ("stem", "name"),
    [("digits", "digits"), ("7-Net.v2", "network_7_net_v2"), ("", "network"), ("_é_", "network"), ("int", "int")],
)
def test_identifiers(stem: str, name: str) -> None:
    assert identifier(stem) == name


def test_pieces_of_text() -> None:
    assert string('a"?\n') == '"a\\042\\077\\012"'
    assert comment(["**/ ?" + "?/", "/" + "* é"]) == "/*\n * ** / ? ?/\n * / * \\xe9\n */\n"
    assert [number(value) for value in (1, -0.1, 1e-30)] == ["1.0f", "-0.1f", "1e-30f"]
    for value in (math.inf, math.nan):
        with pytest.raises(ValueError, match="infinite or not a number"):
            number(value)
    nested = "for (a)\nfor (b) {\nx;\nif (c)\ny;\n}\n#if d\nz;\n#endif"
    wanted = "for (a)\n    for (b) {\n        x;\n        if (c)\n            y;\n    }\n#if d\nz;\n#endif\n"
    assert indented(nested) == wanted


def test_what_is_folded_and_where_the_border_lies() -> None:
    """Batch norm and activations become part of layers; rows of eight pixels and more run example by example."""
    ops = {name: [step.op for step in planned(problem(name, True))] for name in ("vgg-16", "fcn-1d", "residual")}
    assert ops["vgg-16"].count("affine") == 0
    assert ops["vgg-16"][:4] == ["pad", "conv2d", "pad", "conv2d"]
    assert ops["fcn-1d"] == ["pad", "conv1d"] * 3 + ["avg_pool", "linear"]
    assert ops["residual"].count("copy") == 0
    loops = planned(file.read(RECORDS / "mnist-lenet-5-caffe-rate2-seed0.pcn"))
    layout = laid_out(loops)
    assert [loop.op for loop in loops[: layout.border]] == ["conv2d", "max_pool"] * 2
    assert laid_out(planned(file.read(RECORDS / "mnist-lenet-300-100-rate1.5-seed0.pcn"))).border == 0


@pytest.mark.parametrize(("kept", "whole"), [(0.9, True), (0.5, False)])
def test_layers_with_few_zeros_are_stored_whole(kept: float, whole: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    network = linear(rng.random((33, 40)) * (rng.random((33, 40)) < kept))
    assert is_dense(planned(network)[0]) == whole
    if not MISSING:
        agrees(network, written(network, tmp_path / "n.c"), ("-O1", *STRICT))


@needs_compiler
@pytest.mark.parametrize("options", [("-O1",), ("-O2", "-march=native"), ("-O2", "-DVECTOR_OFF")])
def test_convolutions_with_few_zeros_are_stored_whole(options: tuple[str, ...], tmp_path: Path) -> None:
    """Whatever the stride, with rows that are no multiple of a tile, and blocks of outputs that are not full."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 17, 3, padding=1), nn.ReLU(), nn.Conv2d(17, 18, (3, 2), stride=2, dilation=(2, 1)), nn.ReLU(),
        nn.Conv2d(18, 34, 1), nn.Conv2d(34, 4, 3, padding=1, groups=2),
    )  # fmt: skip
    graph = capture(net.eval(), (3, 21, 27), trained=False)
    tensors = {name: value.detach() for name, value in net.state_dict().items()}
    steps = {"0.weight": 1e-4, "2.weight": 0.01}  # integers of 16 bits, of 8, floats
    packed = {name: precision.quantize(t, steps[name]) if name in steps else t.numpy() for name, t in tensors.items()}
    network = Compressed(graph, packed, {})
    assert [is_whole(loop) for loop in planned(network) if loop.op == "conv2d"] == [True, True, True, False]
    path = written(network, tmp_path / "n.c")
    if "-DVECTOR_OFF" in options:
        path.write_text(path.read_text().replace("defined(__GNUC__)", "0"))
    agrees(network, path, (*options, *STRICT), (1, 5))


@needs_compiler
def test_extreme_layers(tmp_path: Path) -> None:
    """Without any weight, without zeros, and so wide that places need more than 16 bits."""
    rng = np.random.default_rng(0)
    wide = np.zeros((2, 70_000))
    wide[:, ::7000] = 1
    for weight in (np.zeros((3, 4)), np.ones((3, 4)), wide):
        network = linear(weight)
        agrees(network, written(network, tmp_path / "n.c"), ("-O1", *STRICT), (1, 5))
    codes = rng.integers(-40_000, 40_000, (3, 5))
    for coarse in (1, 1000, 40_000):  # int32, int8, and zeros and ones
        packed = {"0": precision.quantize(torch.from_numpy(codes // coarse).float(), 1.0)}
        network = Compressed(linear(codes).graph, packed, {})
        agrees(network, written(network, tmp_path / "n.c"), ("-O1", *STRICT), (1, 5))


@needs_compiler
@pytest.mark.parametrize("positions", [8, 13, 70])
def test_layers_at_many_positions_are_convolutions(positions: int, tmp_path: Path) -> None:
    """Those that follow each other share a transposition; few positions stay as they are."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 5), nn.LayerNorm(5))
    for layer in (net[0], net[2]):
        layer.weight.data *= torch.rand(layer.weight.shape) < 0.6
    graph = capture(net.eval(), (positions, 7), trained=False)
    tensors = {name: value.detach() for name, value in net.state_dict().items()}
    packed = {name: precision.quantize(t, 0.01) if t.dim() > 1 else t.numpy() for name, t in tensors.items()}
    network = Compressed(graph, packed, {"data": "own.npz"})
    assert [loop.op for loop in side_by_side(planned(network))] == ["moved", "conv2d", "conv2d", "moved", "layer_norm"]
    path = written(network, tmp_path / "n.c")
    for options in (("-O1", *STRICT), ("-O2", "-march=native", *STRICT)):
        agrees(network, path, options, (1, 5, 16))


@needs_compiler
@pytest.mark.parametrize("options", [("-O2",), ("-O2", "-march=native"), ("-O2", "-DVECTOR_OFF")])
def test_functions_of_vectors_are_those_of_torch(options: tuple[str, ...], tmp_path: Path) -> None:
    """To 5e-7 of their size, at the ends of float32 as well; what is not a number stays none."""
    x = torch.cat([torch.linspace(-12, 12, 59), torch.tensor([-1e30, 1e30, -95.0, 95.0, 1e-20, math.nan])])
    for op, function in (
        ("sigmoid", torch.sigmoid), ("tanh", torch.tanh), ("erf", torch.erf), ("silu", nn.functional.silu),
        ("gelu", nn.functional.gelu),
    ):  # fmt: skip
        identity = linear(np.eye(len(x)))
        last = Node(op, (1,), {}, {"tanh": False} if op == "gelu" else {})
        network = Compressed(replace(identity.graph, nodes=(*identity.graph.nodes, last)), identity.tensors, {})
        path = written(network, tmp_path / f"{op}.c")
        if "-DVECTOR_OFF" in options:  # as compilers without vectors read it
            path.write_text(path.read_text().replace("defined(__GNUC__)", "0"))
        found = load_c(path, ("-std=c99", *options, *STRICT))(x[None].numpy())[0]
        wanted = function(x.double()).numpy()
        np.testing.assert_allclose(found, wanted, atol=5e-7, rtol=5e-7)


def regrouped() -> Compressed:
    """Rows of another number than the input's, and back: what C does not know."""
    nodes = (
        Node("input"), Node("linear", (0,), {"weight": "first.weight"}), Node("regroup", (1,), {}, {"shape": [2]}),
        Node("relu", (2,)), Node("regroup", (3,), {}, {"shape": [4]}),
    )  # fmt: skip
    return Compressed(Graph(nodes, (3,)), {"first.weight": np.ones((4, 3), np.float32)}, {})


def test_what_c_does_not_know_is_named() -> None:
    network = regrouped()
    message = r"operation 'regroup' behind first is not supported in C; leave it out of the network, or export to model"
    with pytest.raises(ValueError, match=message):
        planned(network)
    kept = Node("aten", (1,), {}, {"call": "sinh.default", "arguments": [{"value": 0}]})
    with pytest.raises(ValueError, match=r"C has no sinh behind first, which torch alone runs here; export to .pt2"):
        planned(Compressed(Graph((*network.graph.nodes[:2], kept), (3,)), network.tensors, {}))


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("false", "it wrote nothing, exit code 1"),
        ("true", "it wrote nothing, exit code 0"),
        pytest.param("cc --no-such-option", ".*error: .*--no-such-option.*", marks=needs_compiler),
    ],
)
def test_a_compiler_that_fails(command: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    (tmp_path / "n.c").write_text("int main(void) { return 0; }\n")
    name = command.split()[0]
    with pytest.raises(
        ValueError, match=rf"^{name} does not compile the export: {reason}; name another compiler in CC$"
    ):
        Library(tmp_path / "n.c", ())


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    record = str(RECORDS / "mnist-lenet-300-100-rate1.5-seed0.pcn")
    result = CliRunner().invoke(main, ["export", record, "-o", str(tmp_path / "n.c")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no C compiler: no-such-compiler is not there")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
    bench = ["bench", record, "--seconds", "0.01", "--no-memory", "--threads", "1", "--batches", "1", "--device", "cpu"]
    result = CliRunner().invoke(main, bench)
    assert result.exit_code == 0, result.output
    assert "no C row: no C compiler" in result.stdout


@needs_compiler
def test_what_does_not_compile_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "n.c").write_text("int main(void) { return x; }\n")
    with pytest.raises(ValueError, match=r"does not compile the export: .*error") as caught:
        Library(tmp_path / "n.c", ())
    assert "\n" not in str(caught.value)


@needs_compiler
def test_a_call_outlives_what_made_it(tmp_path: Path) -> None:
    """Memory is measured in a process where nothing but the call is left; torch is not loaded there."""
    network = file.read(RECORDS / "mnist-lenet-5-caffe-rate2-seed0.pcn")
    peaks = peak_memory("C", written(network, tmp_path / "n.c"), (256, 1, 28, 28))
    assert peaks is not None
    assert peaks[0] < 100


@needs_compiler
@pytest.mark.parametrize("raw", [False, True])
def test_the_command(raw: bool, mnist_dir: str, tmp_path: Path) -> None:
    record, out = RECORDS / "mnist-lenet-300-100-rate1.5-seed0.pcn", tmp_path / "net.c"
    arguments = ["export", str(record), "-o", str(out), "--data-dir", mnist_dir, "--json", *["--raw"] * raw]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["difference"] <= 1e-5 * told["largest_output"]
    assert told["after"] == pytest.approx(told["before"], abs=1e-6)
    text = out.read_text()
    assert '"accuracy": 0.982' in text
    assert all(f'    "{name}"' in text for name in ("0 - zero", "9 - nine"))


def program(network: Compressed, folder: Path) -> Path:
    path = written(network, folder / "n.c")
    subprocess.run(
        [*compiler(), "-std=c99", *STRICT, "-DN_MAIN", str(path), "-o", str(folder / "n"), "-lm"], check=True
    )
    return folder / "n"


@needs_compiler
def test_the_program_prints_classes_and_refuses_raw_values(tmp_path: Path) -> None:
    binary = program(linear(np.eye(3), scale=255.0, classes=["a", "b", "c"]), tmp_path)

    def run(values: np.ndarray) -> subprocess.CompletedProcess:
        return subprocess.run([binary], input=values.astype(np.float32).tobytes(), capture_output=True)

    assert run(np.eye(3)[[2, 0, 1]]).stdout.split() == [b"c", b"a", b"b"]
    wrong = run(np.array([0, 200, 0]))
    assert (wrong.returncode, wrong.stdout) == (1, b"")
    assert wrong.stderr == b"error: a value of 200; this network takes raw values divided by 255\n"
    assert run(np.ones(4)).stderr == b"error: the last example has 1 values of 3\n"


@needs_compiler
def test_the_program_prints_targets_in_their_units(tmp_path: Path) -> None:
    targets = [{"name": "*/", "mean": 10.0, "std": 2.0}, {"name": "b", "mean": -1.0, "std": 0.5}]
    binary = program(linear(np.eye(2), task="regression", targets=targets), tmp_path)
    given = np.array([[1, 2], [-1, 0]], np.float32)
    done = subprocess.run([binary], input=given.tobytes(), capture_output=True)
    assert done.stdout.splitlines() == [b"12 0", b"8 -1"]


def test_the_example_network_is_what_is_written_today() -> None:
    network = file.read(RECORDS / "mnist-lenet-5-caffe-rate2-seed0.pcn")
    wanted = c_source.source(network, card(network, SCORES, 10_000, raw=True), "network")
    committed = (ROOT / "examples" / "c" / "network.c").read_text()
    assert committed.partition("*/")[2] == wanted.partition("*/")[2]


@needs_compiler
def test_the_example_reads_mnist(mnist_dir: str, tmp_path: Path) -> None:
    images = next(Path(mnist_dir).rglob("MNIST/raw/t10k-images-idx3-ubyte"), None)
    if images is None:
        pytest.skip("MNIST's files are not there as they came")
    labels = np.frombuffer(images.with_name("t10k-labels-idx1-ubyte").read_bytes(), np.uint8)[8:]
    source = ROOT / "examples" / "c" / "idx.c"
    command = [*compiler(), "-std=c99", "-O2", *STRICT, str(source), "-o", str(tmp_path / "idx"), "-lm"]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "idx", images], capture_output=True, text=True, check=True)
    right = [int(line[0]) == label for line, label in zip(done.stdout.splitlines(), labels, strict=True)]
    assert np.mean(right) > 0.99
    refused = subprocess.run([tmp_path / "idx", source], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "usage: idx FILE, which holds images of 784 bytes in MNIST's format\n"
