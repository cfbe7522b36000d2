"""WebAssembly computes what the decoded network computes, asks nothing of its surroundings, and its module refuses."""

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_c_export import LARGE, RECORDS, SCORES, linear, needs_compiler, problem, regrouped
from test_c_operations import built
from test_shrink import PROBLEMS

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.deploy.card import card, section_of
from pyro_compress.deploy.export import replacing
from pyro_compress.deploy.memory import peak_memory
from pyro_compress.deploy.wasm.build import section, write_wasm
from pyro_compress.deploy.wasm.node import Node, load_wasm, node
from pyro_compress.deploy.wasm.packed import differences, packed
from pyro_compress.graph.faces.c_text import integers
from pyro_compress.pcn import file, runner
from pyro_compress.types import Compressed, Graph
from pyro_compress.types import Node as Step

LENET = RECORDS / "mnist-lenet-5-caffe-augmented-fit-long-rate1.5-seed2.pcn"
FILES = ("net.wasm", "net.js", "net.d.ts")
try:
    NODE = node()
except ValueError:
    NODE = ""
needs_node = pytest.mark.skipif(not NODE, reason="needs node")
needs_both = pytest.mark.skipif(not NODE or find_spec("ziglang") is None, reason="needs ziglang and node")


def written(network: Compressed, path: Path, raw: bool = False) -> Path:
    write_wasm(network, card(network, SCORES, 7, raw), path)
    return path


def agrees(network: Compressed, path: Path) -> None:
    x = np.random.default_rng(0).random((5, *network.graph.input_shape), np.float32)
    wanted = runner.run(network, x)
    found = load_wasm(path)(x)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())


def javascript(code: str, folder: Path) -> list:
    """The JSON that a script prints, line by line; it stands beside a module `net.js`."""
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "script.js").write_text(
        f'import {{ load }} from "./net.js";\nconst tell = (x) => console.log(JSON.stringify(x));\n{code}'
    )
    done = subprocess.run([NODE, "script.js"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_both
def test_functions_bring_what_they_need_of_libm(tmp_path: Path) -> None:
    """Nothing is imported, whatever of libm is used; the largest part of an export is the network."""
    functions = ["tanh", "sigmoid", "erf", "exp", "mish", "sqrt", "log_sigmoid"]
    nodes = [Step("input"), Step("linear", (0,), {"weight": "w"})]
    nodes += [Step(name, (i,)) for i, name in enumerate(functions, 1)]
    weight = np.random.default_rng(0).standard_normal((6, 9)).astype(np.float32)
    network = Compressed(Graph(tuple(nodes), (9,)), {"w": weight}, {"data": "own.npz"})
    agrees(network, written(network, tmp_path / "net.wasm"))
    (told,) = javascript(
        'import { readFileSync } from "node:fs";\n'
        'const module = new WebAssembly.Module(readFileSync("net.wasm"));\n'
        "tell([WebAssembly.Module.imports(module), WebAssembly.Module.exports(module).map((one) => one.name)]);",
        tmp_path,
    )
    assert told == [[], ["memory", "_initialize", "run", "input", "output"]]


@needs_both
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in LARGE])
def test_every_network(name: str, tmp_path: Path) -> None:
    network = problem(name, True)
    agrees(network, written(network, tmp_path / "net.wasm"))


@needs_both
@pytest.mark.parametrize("name", ["residual", "fcn-1d"])
def test_networks(name: str, tmp_path: Path) -> None:
    network = problem(name, True)
    agrees(network, written(network, tmp_path / "net.wasm"))


CALLS = """
import { readFileSync } from "node:fs";
const net = await load(), file = readFileSync("net.wasm"), bytes = Uint8Array.from(file);
tell([Object.keys(net), net.shape, net.inputs, net.outputs, net.classes, net.card.origin.data]);
const url = new URL("net.wasm", import.meta.url), data = `data:application/wasm;base64,${file.toString("base64")}`;
for (const source of [undefined, "net.wasm", file, bytes, bytes.buffer, url, data])
  tell([...(await load(source)).run(new Float32Array([0, 0.5, 1, 1, 0, 0]))]);
const wrongs = [new Uint8Array(3), new Float32Array(4), new Float32Array([0, 0, 4]), new Float32Array([0, NaN, 0])];
for (const wrong of wrongs)
  try { net.run(wrong); } catch (error) { tell(`${error}`); }
for (const wrong of ["missing.wasm", new Uint8Array(9)]) try { await load(wrong); } catch (error) { tell(error.name); }
"""


@needs_both
def test_the_module_is_as_its_types_say(tmp_path: Path) -> None:
    network = linear(np.arange(6.0).reshape(2, 3), scale=4.0, classes=["a", "b"], data="é")
    written(network, tmp_path / "net.wasm")
    told = javascript(CALLS, tmp_path)
    names = ["card", "shape", "inputs", "outputs", "classes", "run"]
    assert told[0] == [names, [3], 3, 2, ["a", "b"], "é"]
    assert told[1:8] == [[2.5, 7.0, 0.0, 3.0]] * 7
    takes = "this network takes raw integers from 0 to 4, divided by 4 beforehand"
    assert told[8:] == [
        "TypeError: this network takes a Float32Array: raw integers from 0 to 4, divided by 4 beforehand",
        "RangeError: 4 values; an example has 3 (3)", f"RangeError: a value of 4; {takes}",
        f"RangeError: a value of NaN; {takes}", "Error", "CompileError",
    ]  # fmt: skip
    types = (tmp_path / "net.d.ts").read_text()
    assert all(f"readonly {name}: " in types for name in names[:-1])
    assert "run(values: Float32Array): Float32Array;" in types


@needs_both
def test_raw_inputs_are_bytes(tmp_path: Path) -> None:
    network = linear(np.arange(6.0).reshape(2, 3), scale=4.0)
    path = written(network, tmp_path / "net.wasm", raw=True)
    x = np.array([[0, 0.5, 1]], np.float32)
    assert np.allclose(load_wasm(path)(x), runner.run(network, x), rtol=1e-6)
    assert "run(values: Uint8Array): Float32Array;" in (tmp_path / "net.d.ts").read_text()


@needs_both
def test_tokens_are_whole_numbers_of_the_table(tmp_path: Path) -> None:
    network = built("gru", True)
    path = written(network, tmp_path / "net.wasm")
    x = np.random.default_rng(0).integers(0, 9, (4, 6))
    wanted = runner.run(network, x)
    assert np.abs(load_wasm(path)(x) - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())
    told = javascript(
        "const net = await load();\ntell(net.run(new Int32Array([0, 8, 1, 2, 3, 4])).length);\n"
        "for (const wrong of [new Float32Array(6), new Int32Array([0, 0, 9, 0, 0, 0])])\n"
        "  try { net.run(wrong); } catch (error) { tell(`${error}`); }",
        tmp_path,
    )
    takes = "this network takes tokens, whole numbers from 0 to 8"
    assert told == [
        54, "TypeError: this network takes an Int32Array: tokens, whole numbers from 0 to 8",
        f"RangeError: a value of 9; {takes}",
    ]  # fmt: skip
    assert "run(values: Int32Array): Float32Array;" in (tmp_path / "net.d.ts").read_text()


@needs_both
def test_a_small_network_is_a_small_file(tmp_path: Path) -> None:
    network = file.read(LENET)
    agrees(network, path := written(network, tmp_path / "net.wasm"))
    assert path.stat().st_size < 8_500
    assert len(section_of(path.read_bytes())) < 800


@needs_both
def test_wide_layers(tmp_path: Path) -> None:
    """Places that need 32 bits, and far from each other."""
    weights = np.zeros((2, 70_000))
    weights[:, ::350], weights[:, 1000:1100] = 1, 2
    agrees(linear(weights), written(linear(weights), tmp_path / "net.wasm"))


def test_tables_are_packed_where_it_pays() -> None:
    rng = np.random.default_rng(0)
    for largest in (1, 254, 255, 256, 5000, 70_000):
        values = rng.integers(0, largest + 1, 300).tolist()
        steps, found, total = iter(differences(values, max(values) + 1)), [], 0
        for step in steps:
            total += step
            if step < 255:
                total %= max(values) + 1
                found.append(total)
        assert found == values
        assert max(differences(values, max(values) + 1)) <= 255
    long, short = integers("step0_places", np.arange(0, 60_000, 100)), integers("step1_starts", np.arange(0, 500, 50))
    text, calls = packed(long + short)
    assert calls == ["unpack16(step0_places_packed, step0_places, 600, 59901);"]
    assert text.endswith("static uint16_t step0_places[600];\n" + short)
    assert len(re.findall(r"\b100\b", text.removesuffix(short))) == 599


@needs_both
def test_the_command(tmp_path: Path) -> None:
    """Three files, by either name, none of which may be somebody else's; the card is read."""
    nodes = Step("input"), Step("reshape", (0,), {}, {"shape": [64]}), Step("linear", (1,), {"weight": "w"})
    weights = {"w": np.random.default_rng(0).standard_normal((10, 64), np.float32)}
    network = Compressed(Graph(nodes, (1, 8, 8)), weights, {"data": "digits", "scale": 16.0})
    (tmp_path / "digits.pcn").write_bytes(file.dumps(network)[0])
    (out := tmp_path / "out").mkdir()
    for name in ("net.js", "net.wasm"):
        arguments = ["export", str(tmp_path / "digits.pcn"), "-o", str(out / name), "--json"]
        result = CliRunner().invoke(main, [*arguments, *["--force"] * (name == "net.wasm")])
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["difference"] <= 1e-5 * told["largest_output"]
        assert told["after"] == pytest.approx(told["before"], abs=1e-6)
        assert (told["path"], told["bytes"]) == (str(out / "net.wasm"), (out / "net.wasm").stat().st_size)
        assert told["notes"] == [
            f"beside it net.js ({size(out / 'net.js')} bytes), net.d.ts ({size(out / 'net.d.ts')} bytes)"
        ]
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
        assert f"{out / 'net.wasm'} exists" in refused(*arguments[1:])
    assert pc.info(out / "net.wasm").classes[9] == "9"
    (out / "net.wasm").unlink()
    (out / "net.js").write_text("// mine")
    told = refused(*arguments[1:], "--force")
    assert f"{out / 'net.js'} is there and is no export of this program, so --force leaves it" in told
    assert (out / "net.js").read_text() == "// mine"
    assert not (out / "net.wasm").exists()


@pytest.mark.parametrize("kind", [pytest.param(".c", marks=needs_compiler), pytest.param(".wasm", marks=needs_both)])
def test_a_class_per_pixel(kind: str, tmp_path: Path) -> None:
    """Outputs with a shape of their own are compared as what they are."""
    x = np.random.default_rng(0).random((40, 1, 6, 6), np.float32) - 0.5
    np.savez(
        tmp_path / "own.npz",
        x_train=x,
        y_train=(x[:, 0] > 0).astype(np.int64),
        x_test=x,
        y_test=(x[:, 0] > 0).astype(np.int64),
    )
    convolution = Step(
        "conv2d", (0,), {"weight": "w"}, {"stride": [1, 1], "padding": [[0, 0], [0, 0]], "dilation": [1, 1]}
    )
    weights = {"w": np.array([-1, 1], np.float32).reshape(2, 1, 1, 1)}
    meta = {"data": str(tmp_path / "own.npz"), "task": "segmentation", "classes": ["dark", "bright"]}
    network = Compressed(Graph((Step("input"), convolution), (1, 6, 6)), weights, meta)
    (tmp_path / "own.pcn").write_bytes(file.dumps(network)[0])
    told = pc.export(tmp_path / "own.pcn", tmp_path / f"own{kind}")
    assert told.difference < 1e-6
    assert "100.00 %" in repr(told)


def size(path: Path) -> str:
    return f"{path.stat().st_size:,}"


def test_files_are_put_in_place_together(tmp_path: Path) -> None:
    """All or, where something fails on the way, none; and --force knows what it wrote."""

    def write(names: tuple[str, ...]) -> None:
        with replacing(tmp_path / "net.wasm", (".js", ".d.ts")) as temporary:
            for name in names:
                temporary.with_name(name).write_text(name)
            temporary.read_text()

    with pytest.raises(FileNotFoundError):
        write(FILES[1:])
    assert not list(tmp_path.iterdir())
    write(FILES)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in FILES}


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.strip().count("\n") == 0, result.stderr
    return result.stderr


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_compress.deploy.wasm.node.find_spec", lambda name: None)
    monkeypatch.setattr("pyro_compress.deploy.wasm.build.find_spec", lambda name: True)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        told = refused(LENET, "-o", tmp_path / "a.wasm")
        assert told.startswith("Error: no node: a WebAssembly export is run and compared before it is written; pip")
    monkeypatch.setattr("pyro_compress.deploy.wasm.build.find_spec", lambda name: None)
    for name in ("a.wasm", "a.js"):
        told = refused(LENET, "-o", tmp_path / name)
        assert told == (
            "Error: WebAssembly needs one more package, the C compiler ziglang, which is not there; "
            "pip install 'pyro-compress[wasm]'\n"
        )
    assert not list(tmp_path.iterdir())


@needs_both
def test_wrong_input_is_one_line(mnist_dir: str, tmp_path: Path) -> None:
    assert "no export to .wat; allowed: " in refused(LENET, "-o", tmp_path / "a.wat")
    assert "make it first" in refused(LENET, "-o", tmp_path / "none" / "a.wasm")
    assert "--int8 goes with .onnx, .pte, .tflite only, not with .wasm" in refused(
        LENET, "-o", tmp_path / "a.wasm", "--int8"
    )
    (tmp_path / "b.js").mkdir()
    assert "b.js is a folder, not a file" in refused(LENET, "-o", tmp_path / "b.wasm")
    with pytest.raises(ValueError, match="operation 'regroup' behind first is not supported in C"):
        written(regrouped(), tmp_path / "c.wasm")
    assert [path.name for path in tmp_path.iterdir()] == ["b.js"]


@needs_both
def test_a_compiler_that_fails_and_a_file_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(linear(np.eye(2)), tmp_path / "net.wasm")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"node does not run the export: .*CompileError") as caught:
        Node(path)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("pyro_compress.deploy.wasm.build.ENTRY", "int x = y;")
    with pytest.raises(ValueError, match=r"ziglang does not build the export: .*error: use of undeclared"):
        written(linear(np.eye(2)), tmp_path / "net.wasm")


@needs_both
def test_memory_is_that_of_node(tmp_path: Path) -> None:
    peaks = peak_memory("WebAssembly", written(linear(np.eye(4)), tmp_path / "net.wasm"), (16, 4))
    assert peaks is not None
    assert 10 < peaks[0] < 300
    assert 0 <= peaks[1] < peaks[0]


def test_sections_are_found_and_damage_is_told() -> None:
    other, own = section("name", bytes(300)), section("pyro-compress", b'{"a": 1}')
    module = b"\0asm\1\0\0\0" + other + own
    assert len(other) == 300 + 1 + 2 + 5
    assert section_of(module) == b'{"a": 1}'
    for wrong in (b"", b"\0asm\1\0\0\0" + other, b"abcd\1\0\0\0" + own, module[:8] + b"\1" + b"\xff" * 9, module[:9]):
        with pytest.raises(ValueError, match=r"no WebAssembly with a card|damaged WebAssembly"):
            section_of(wrong)
