"""Integer C computes, to the bit, what numpy says of the same integers, stays near the floats, and needs no float."""

import json
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import integer_reference
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_c_export import HOSTILE, LARGE, MISSING, SCORES, drawn, linear, problem
from test_shrink import PROBLEMS

from pyro_compress.cli.main import main
from pyro_compress.deploy.c.library import compiler
from pyro_compress.deploy.card import card
from pyro_compress.deploy.integer import chosen
from pyro_compress.deploy.integer.arena import planned
from pyro_compress.deploy.integer.fixed_point import fixed, integer_layer
from pyro_compress.deploy.integer.footprint import Footprint, report
from pyro_compress.deploy.integer.grids import CHOICES, Choice, Grid, Ranges, calibrated
from pyro_compress.deploy.integer.library import STRICT, IntegerLibrary, is_integer
from pyro_compress.deploy.integer.parts import parts_of
from pyro_compress.deploy.integer.source import program, text
from pyro_compress.deploy.integer.steps import Step, steps_of
from pyro_compress.deploy.integer.tables import is_whole
from pyro_compress.graph.faces.c import Weights
from pyro_compress.pcn import file, runner
from pyro_compress.types import Compressed, Graph, Node, Quantized, count

RECORDS = Path(__file__).parents[1] / "docs" / "results" / "records"
LENET_5, LENET_300 = "mnist-lenet-5-caffe-rate2-seed0.pcn", "mnist-lenet-300-100-rate1.5-seed0.pcn"
needs_compiler = pytest.mark.skipif(MISSING, reason="needs a C compiler")
QUICK = (*STRICT, "-O1")
CAREFUL = (*QUICK, "-fsanitize=undefined", "-fno-sanitize-recover")
ASYMMETRIC, SYMMETRIC = Choice(False, False), Choice(True, True)
REFUSED = {"normalized": "divide", "functions": "variance"}


def stepped(network: Compressed, x: np.ndarray, choice: Choice = ASYMMETRIC, raw: float = 0.0) -> list[Step]:
    parts = parts_of(network)
    return steps_of(parts, calibrated(parts.network, torch.from_numpy(x)), choice, raw)


def library(steps: list[Step], folder: Path, options: tuple[str, ...] = QUICK) -> IntegerLibrary:
    (path := folder / "n.c").write_text(program(steps, "n").code)
    return IntegerLibrary(path, options)


def agrees(
    network: Compressed, folder: Path, choice: Choice = ASYMMETRIC, near: float = 0.05, options: tuple[str, ...] = QUICK
) -> list[Step]:
    """C and numpy to the bit, and both near the floats, as a share of the outputs' standard deviation."""
    x = drawn(network, 30)
    steps = stepped(network, x, choice)
    made = library(steps, folder, options)
    codes = made.codes(x)
    found = made.run(codes)
    assert np.array_equal(found, integer_reference.run(steps, codes))
    wanted = runner.run(network, x).reshape(len(x), -1)
    off = np.sqrt(np.square(steps[-1].out.values(found) - wanted).mean())
    assert off < near * wanted.std(), off / wanted.std()
    return steps


@needs_compiler
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in PROBLEMS
        if name not in {*REFUSED, "resnet-50"}
    ],
)
def test_every_network(name: str, tmp_path: Path) -> None:
    """On integers from the file, and on floats that are requantised, with every warning an error."""
    near = 0.25 if name == "vit-tiny" else None  # 8 bits in layers of attention whose outputs hardly differ
    agrees(problem(name, True), tmp_path, near=near or 0.05)
    agrees(problem(name, False), tmp_path, SYMMETRIC, near or 0.1)


@pytest.mark.parametrize(("name", "op"), REFUSED.items())
def test_what_integers_do_not_know_is_named(name: str, op: str) -> None:
    with pytest.raises(ValueError, match=rf"operation '{op}' behind \S.* is not supported in integer C") as caught:
        parts_of(problem(name, True))
    assert "\n" not in str(caught.value)
    assert "export without --integer" in str(caught.value)


@needs_compiler
@pytest.mark.parametrize("op", ["maximum", "minimum", "add", "subtract", "multiply", "concat"])
def test_values_with_a_constant(op: str, tmp_path: Path) -> None:
    """A constant that is repeated along rows and columns, except where channels are joined."""
    rng = np.random.default_rng(0)
    shape = (3, 5, 5) if op == "concat" else (3, 1, 1)
    sides = {"stride": [1, 1], "padding": [[0, 0], [0, 0]], "dilation": [1, 1]}
    nodes = (
        Node("input"), Node("conv2d", (0,), {"weight": "w"}, sides),
        Node("constant", (0,), {"value": "c"}, {"shape": list(shape)}),
        Node(op, (1, 2), {}, {"axis": 1} if op == "concat" else {}),
    )  # fmt: skip
    tensors = {name: rng.standard_normal(size, np.float32) for name, size in (("c", shape), ("w", (3, 3, 1, 1)))}
    steps = agrees(Compressed(Graph(nodes, (3, 5, 5)), tensors, {}), tmp_path, options=CAREFUL)
    assert [step.op for step in steps] == ["layer", "constant", op]


def convolution(weight: np.ndarray, size: int, padding: int = 0, stride: int = 1, pool: int = 0) -> Compressed:
    """A convolution of an image, then pooling, then a ReLU."""
    sides = {"stride": [stride] * 2, "padding": [[padding] * 2, [padding] * 2], "dilation": [1, 1]}
    nodes = [Node("input"), Node("conv2d", (0,), {"weight": "w", "bias": "b"}, sides)]
    if pool:
        nodes.append(Node("max_pool", (1,), {}, {"kernel": [pool] * 2, "stride": [pool] * 2, "padding": [0, 0]}))
    nodes.append(Node("relu", (len(nodes) - 1,)))
    bias = np.linspace(-1, 1, len(weight)).astype(np.float32)
    graph = Graph(tuple(nodes), (weight.shape[1], size, size))
    return Compressed(graph, {"w": Quantized(weight.astype(np.int32), 0.25), "b": bias}, {})


@needs_compiler
@pytest.mark.parametrize("kept", [0.1, 1.0])
@pytest.mark.parametrize(
    ("padding", "stride", "pool"), [(0, 1, 2), (0, 1, 3), (2, 1, 2), (1, 2, 0), (2, 2, 3), (0, 2, 0)]
)
def test_convolutions(kept: float, padding: int, stride: int, pool: int, tmp_path: Path) -> None:
    """Sparse and whole, with and without a border; pooled in registers, where the windows are not too large."""
    rng = np.random.default_rng(1)
    weight = rng.integers(1, 8, (5, 3, 3, 3)) * rng.choice([-1, 1], (5, 3, 3, 3)) * (rng.random((5, 3, 3, 3)) < kept)
    steps = agrees(convolution(weight, 13, padding, stride, pool), tmp_path, near=0.03, options=CAREFUL)
    assert [step.op for step in steps] == ["layer", "max_pool"][: 1 + (pool == 3)]
    assert is_whole(steps[0]) == (kept == 1)
    assert steps[0].layer is not None
    assert not steps[0].layer.requantized


def test_a_pooled_map_never_lies_in_memory() -> None:
    network = file.read(RECORDS / LENET_5)
    steps = stepped(network, np.random.default_rng(0).random((20, 1, 28, 28), np.float32), raw=255.0)
    assert [step.shape for step in steps] == [(10, 12, 12), (28, 4, 4), (95, 1, 1), (10, 1, 1)]
    assert steps[0].grids[0] == Grid(float(np.float32(1 / 255)), -128)
    assert planned(steps).bytes == 10 * 144 + 28 * 16
    assert not any(step.layer and step.layer.requantized for step in steps)


@pytest.mark.parametrize("name", ["residual", "depthwise", "gated", "pooled", "points"])
def test_what_is_still_read_is_not_written_over(name: str) -> None:
    network = problem(name, True)
    steps = stepped(network, drawn(network, 30))
    arena = planned(steps)
    assert arena.bytes < sum(count(step.shape) for step in steps)
    for index, step in enumerate(steps[:-1]):
        start, end = arena.places[index], arena.places[index] + count(step.shape)
        assert 0 <= start < end <= arena.bytes
        last = max(i for i, one in enumerate(steps) if index in one.inputs)
        for other in range(index + 1, min(last + 1, len(steps) - 1)):
            there = arena.places[other], arena.places[other] + count(steps[other].shape)
            in_place = other == last and there[0] == start
            assert in_place or there[1] <= start or end <= there[0], (index, other)


def test_multipliers() -> None:
    for factor in (0.5, 1.0, 1 - 1e-12, 3e-7, 0.7310585786300049, 2.0**-31, 1.9):
        multiplier, shift = fixed(factor)
        assert 1 << 30 <= multiplier < 1 << 31
        assert abs(Fraction(multiplier, 1 << shift) / Fraction(factor) - 1) <= Fraction(1, 1 << 31)
    assert fixed(2.0**-70) == (0, 1)


def test_layers_as_integers() -> None:
    """Codes of 8 bits stay; wider ones, floats, negative and vanishing scales get steps of their own per output."""
    x, y = Grid(0.1, -128), Grid(0.05, 3)
    codes = np.array([[3, -127], [0, 1]]).reshape(2, 2, 1, 1)
    kept = integer_layer(Weights(codes, np.array(0.5), np.array([1.0, 0.0])), "a", x, y)
    assert np.array_equal(kept.codes, codes)
    assert kept.bias.tolist() == [20 + 128 * -124, 128]
    assert (len(kept.multipliers), kept.requantized) == (1, False)
    wide = integer_layer(Weights(codes * 100, np.array([0.5, -0.5]), np.zeros(2)), "a", x, y)
    assert wide.codes.reshape(2, 2).tolist() == [[3, -127], [0, -127]]
    assert wide.requantized
    dead = integer_layer(Weights(codes, np.array([0.0, 1e-12]), np.array([2.0, 5.0])), "a", x, y)
    found = integer_reference.divided(dead.bias * dead.multipliers, dead.shifts) + y.zero
    assert y.values(found) == pytest.approx([2.0, 5.0])
    with pytest.raises(ValueError, match="the sums of a do not fit into 32 bits"):
        integer_layer(Weights(np.full((1, 1 << 18, 1, 1), 127), np.array(1.0), np.zeros(1)), "a", x, y)


@pytest.mark.parametrize(
    ("choice", "span", "grid"),
    [
        (ASYMMETRIC, (0.0, 25.5), (0.1, -128)),
        (ASYMMETRIC, (-12.7, 12.8), (0.1, -1)),
        (ASYMMETRIC, (3.0, 25.5), (0.1, -128)),
        (Choice(True, False), (-12.7, 3.0), (0.1, 0)),
        (ASYMMETRIC, (0.0, 0.0), (1.0, 0)),
    ],
)
def test_grids(choice: Choice, span: tuple[float, float], grid: tuple[float, int]) -> None:
    found = Ranges({0: span}, {0: (-1.0, 1.0)}).grid(0, choice)
    assert (found.scale, found.zero) == (pytest.approx(grid[0]), grid[1])
    assert found.values(np.array(found.zero)) == 0


def test_ranges_with_and_without_tails() -> None:
    nodes = (Node("input"), Node("relu", (0,)), Node("scale", (1,), {}, {"factor": -2.0}))
    x = torch.linspace(-1, 1, 20_001).repeat(2, 1)
    x[0, 0], x[1, -1] = -50, 80
    found = calibrated(Compressed(Graph(nodes, (20_001,)), {}, {}), x)
    assert found.whole == {0: (-50.0, 80.0), 1: (0.0, 80.0), 2: (-160.0, 0.0)}
    assert found.clipped[0] == pytest.approx((-1, 1), abs=1e-3)
    assert found.clipped[2] == found.whole[2]  # the network's output


@needs_compiler
@pytest.mark.parametrize(
    "node",
    [
        Node("relu", (0,)),
        Node("clip", (0,), {}, {"low": 0.0, "high": 6.0}),
        Node("tanh", (0,)),
        Node("gelu", (0,), {}, {"tanh": False}),
    ],
)
def test_functions_of_every_integer(node: Node, tmp_path: Path) -> None:
    """Each of the 256 values: exact where the function only bounds, else the nearest integer."""
    graph = Graph(
        (Node("input"), Node("linear", (0,), {"weight": "w"}), Node(node.op, (1,), {}, node.attributes)), (1,)
    )
    network = Compressed(graph, {"w": Quantized(np.ones((1, 1), np.int32), 1.0)}, {})
    x = np.linspace(-8, 8, 256).astype(np.float32)[:, None]
    steps = stepped(network, x)
    made = library(steps, tmp_path)
    codes = np.arange(-128, 128).astype(np.int8)[:, None]
    values = steps[0].grids[0].values(codes)
    if steps[0].table is None:  # the grid behind the bound is finer than the one before it
        wanted = runner.run(network, values.astype(np.float32))
    else:
        before = steps[0].grid.values(integer_reference.layer(steps[0], codes.astype(np.int64).reshape(-1, 1, 1, 1)))
        wanted = runner.run(network, before.reshape(-1, 1).astype(np.float32))
    ends = steps[0].out.values(np.array([-128, 127]))  # the last of a range may lie beyond it by rounding
    assert np.abs(steps[0].out.values(made.run(codes)) - np.clip(wanted, *ends)).max() <= 0.501 * steps[0].out.scale


@needs_compiler
def test_headers_alone_and_floats(tmp_path: Path) -> None:
    """Another file takes the declarations, and the floats of `run` are those of the integers."""
    network = linear(np.random.default_rng(0).standard_normal((3, 4)))
    made = library(stepped(network, x := drawn(network, 30)), tmp_path)
    (tmp_path / "main.c").write_text(
        '#define N_HEADER\n#include <stdio.h>\n#include "n.c"\nint main(void)\n{\n'
        f"static const float x[N_INPUTS] = {{{', '.join(map(str, x[0]))}}};\n"
        'float y[N_OUTPUTS];\nn_run(x, y);\nprintf("%.9g %.9g %.9g\\n", y[0], y[1], y[2]);\nreturn 0;\n}\n'
    )
    files = [str(tmp_path / "main.c"), str(tmp_path / "n.c"), "-o", str(tmp_path / "main")]
    subprocess.run([*compiler(), *STRICT, "-DN_FLOAT", *files], check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    wanted = made.out[0] * (made.run(made.codes(x[:1]))[0].astype(float) - made.out[1])
    assert np.array(done.stdout.split(), float) == pytest.approx(wanted, rel=1e-6)


@needs_compiler
def test_the_command(mnist_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "CHOICES", CHOICES[:2])
    out = tmp_path / "net.c"
    arguments = ["export", str(RECORDS / LENET_300), "-o", str(out), "--integer", "--data-dir", mnist_dir, "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert abs(told["after"]["accuracy"] - told["before"]["accuracy"]) <= 0.005
    assert is_integer(out)
    made, text = IntegerLibrary(out), out.read_text()
    assert f"RAM       {made.arena:,} bytes of arena" in text
    assert all(f" * {note}" in text for note in told["notes"])
    tables = int(re.search(r"bytes: ([\d,]+) of tables", told["notes"][0])[1].replace(",", ""))
    assert tables < 12_000
    assert "(an image's byte - 128)" in text


@needs_compiler
def test_a_loss_is_doubtful(mnist_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "LOSS", -1.0)
    monkeypatch.setattr(chosen, "CHOICES", CHOICES[:1])
    arguments = ["export", str(RECORDS / LENET_300), "-o", str(tmp_path / "n.c"), "--integer", "--data-dir", mnist_dir]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    last = " ".join(result.output.split())
    assert last.endswith("bound its activations (ReLU6) and fit again, or export without --integer")
    assert "integers of 8 bits change the validation accuracy from 97.9" in last


@needs_compiler
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize("name", ["residual", "gated", "activations"])
def test_it_is_cpp_as_well(name: str, tmp_path: Path) -> None:
    network = problem(name, True)
    (tmp_path / "n.c").write_text(program(stepped(network, drawn(network, 30)), "n").code)
    options = ["-x", "c++", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "-DN_FLOAT", "-o"]
    done = subprocess.run(["g++", *options, tmp_path / "n.o", tmp_path / "n.c"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_hostile_names(tmp_path: Path) -> None:
    """Names of classes and files are text, whatever they look like."""
    network = linear(np.eye(len(HOSTILE)), classes=HOSTILE, data="*/ #error ??/\n")
    stem = "7 *\\odd' $(name)"
    steps = stepped(network, x := drawn(network, 30))
    (path := tmp_path / f"{stem}.c").write_text(text(program(steps, stem), card(network, SCORES, 7), stem, ["*/"]))
    made = IntegerLibrary(path, CAREFUL)
    assert np.array_equal(made.run(made.codes(x)), integer_reference.run(steps, made.codes(x)))


@needs_compiler
@pytest.mark.parametrize("options", [[], ["--integer"]])
def test_a_class_per_pixel(options: list[str], tmp_path: Path) -> None:
    """Which of two channels is larger: in C the outputs lie in one row, as the network numbers them."""
    x = np.random.default_rng(0).standard_normal((60, 2, 6, 6)).astype(np.float32)
    x[:, 1] = x[:, 0] + np.where(x[:, 1] < 0, -0.3, 0.3)
    y = (x[:, 0] < x[:, 1]).astype(np.int64)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    weight = np.array([[2, -2], [-2, 2]]).reshape(2, 2, 1, 1)
    made = convolution(weight, 6)
    network = Compressed(
        Graph(made.graph.nodes[:2], (2, 6, 6)), made.tensors | {"b": np.zeros(2, np.float32)},
        {"data": str(tmp_path / "a.npz"), "task": "segmentation"},
    )  # fmt: skip
    (tmp_path / "a.pcn").write_bytes(file.dumps(network)[0])
    words = ["export", str(tmp_path / "a.pcn"), "-o", str(tmp_path / "a.c"), "--json", *options]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["after"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("n.onnx", ["--integer"], "--integer goes with .c only, not with .onnx"),
        (
            "n.c",
            ["--integer", "--raw"],
            "--integer and --raw exclude each other: the integers of --integer are bytes less",
        ),
    ],
)
def test_what_it_goes_with(out: str, options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(RECORDS / LENET_300), "-o", str(tmp_path / out), *options])
    assert result.exit_code == 1
    assert message in result.stderr


def test_memory_in_words() -> None:
    lines = report(Footprint(1000, None, 24, 64, "cc -O2"), 4, 3)
    assert lines[0] == "flash     1,000 bytes: 1,000 of tables, code unknown (cc -O2)"
    assert lines[1] == "RAM       64 bytes of arena; input (4) and output (3) are the caller's"
    assert lines[2] == "stack     24 bytes"
