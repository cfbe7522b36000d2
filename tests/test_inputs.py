"""Several named inputs: packed into a row, cut up again by the graph, taken by name by every export."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.deploy.arrays import load_runner
from pyro_compress.deploy.torch_files import load_program, load_safetensors
from pyro_compress.graph.network import Network
from pyro_compress.graph.packing import pack, parts_of, with_inputs, with_one_input
from pyro_compress.inputs import Input, inputs_of, packed, unpacked
from pyro_compress.pcn import file, runner
from pyro_compress.types import Compressed, Data

SHAPES = {"image": (1, 6, 6), "words": ((4,), "int64"), "price": (1,)}
INPUTS = (Input("image", (1, 6, 6)), Input("price", (1,)), Input("words", (4,), "int64"))


class Mixed(nn.Module):
    """Reads an image, words and a number."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.words = nn.Conv2d(1, 2, 3), nn.Embedding(7, 3)
        self.out = nn.Linear(2 * 16 + 12 + 1, classes)

    def forward(self, words: torch.Tensor, image: torch.Tensor, price: torch.Tensor) -> torch.Tensor:
        parts = [self.conv(image).relu().flatten(1), self.words(words).flatten(1), price]
        found: torch.Tensor = self.out(torch.cat(parts, 1))
        return found


def mixed(classes: int, inputs: dict[str, tuple[int, ...]]) -> nn.Module:
    """What `--net test_inputs:mixed` builds."""
    assert inputs == {one.name: one.shape for one in INPUTS}
    return Mixed(classes)


def arrays(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, 1, 6, 6)).astype(np.uint8)
    return {"image": image, "words": rng.integers(0, 7, (n, 4)), "price": rng.normal(size=(n, 1))}


def labels(given: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = (given["words"][:, 0] > 3) + (given["price"][:, 0] > 0).astype(int)
    return found


def test_rows_and_inputs_are_the_same_values() -> None:
    assert inputs_of(SHAPES) == INPUTS
    given = arrays(5)
    rows, inputs = pack(given)
    assert inputs == INPUTS
    assert [one.scale for one in inputs] == [255.0, 1.0, 0.0]
    back = unpacked(rows.numpy(), INPUTS)
    np.testing.assert_array_equal(back["image"], given["image"] / np.float32(255))
    np.testing.assert_array_equal(back["words"], given["words"])
    np.testing.assert_array_equal(back["price"], given["price"].astype(np.float32))
    assert {name: array.dtype for name, array in back.items()} == {
        "image": np.float32, "words": np.int64, "price": np.float32
    }  # fmt: skip
    parts = parts_of(rows, INPUTS)
    assert all(np.array_equal(parts[name].numpy(), back[name]) for name in back)
    net = Mixed().eval()
    alone = with_inputs(with_one_input(net, INPUTS), INPUTS)
    assert torch.equal(alone(**parts), net(**parts))
    assert torch.equal(with_one_input(net, INPUTS)(rows), net(**parts))


def test_the_graph_is_the_network_and_comes_back_from_a_file(tmp_path: Path) -> None:
    net = Mixed().eval()
    graph = pc.capture(net, SHAPES)
    assert graph.inputs == INPUTS
    parts = parts_of(pack(arrays(6))[0], INPUTS)
    wanted = net(**parts)
    assert torch.allclose(Network(graph, net.state_dict())(parts), wanted, atol=1e-6)
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    content = file.dumps(Compressed(graph, tensors, {"parameters_total": 1}))[0]
    assert content[4] == 5
    (tmp_path / "a.pcn").write_bytes(content)
    found = file.read(tmp_path / "a.pcn")
    assert found.graph == graph
    rows = pack(arrays(6))[0].numpy()
    assert np.allclose(runner.run(found, rows), wanted.detach().numpy(), atol=1e-5)
    assert torch.allclose(pc.load(tmp_path / "a.pcn")(parts), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"a b": (1,)}, "names are letters"),
        ({"__class__": (1,)}, "names are letters"),
        ({"a": ()}, "one or more positive numbers"),
        ({"a": (0,)}, "one or more positive numbers"),
        ({"a": ((2,), "float64")}, "allowed: float32, int64, bool"),
        ([["b", [1], "float32"], ["a", [1], "float32"]], "every name once, in their order"),
        ([["a", [1], "float32"]] * 2, "every name once, in their order"),
        ([["a", [1]]], "a name, a shape and a type"),
        ([["a", [1], "float32"]] * 65, "at most 64"),
        ([["a", [1], "float32", -1]], "a scale is a positive number"),
        ([["a", [1], "float32", float("nan")]], "a scale is a positive number"),
        ([["a", [1], "float32", True]], "a scale is a positive number"),
        ([["a", [1], "float32", 1, 1]], "a name, a shape and a type"),
    ],
)
def test_inputs_that_are_none(told: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inputs_of(told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": None}, "inputs image, words; this network takes image, price, words"),
        ({"other": np.zeros((5, 1))}, "inputs image, other, price, words; this network takes"),
        ({"price": np.zeros((4, 1))}, "every input has one row per example; got 5 of image"),
        ({"price": np.zeros((5, 2))}, r"one example of price has shape \(2,\); wanted is \(1,\)"),
        ({"words": np.zeros((5, 4))}, "words is float64; this network takes int64"),
        ({"words": np.full((5, 4), 1 << 25)}, "whole numbers beyond 16777216"),
    ],
)
def test_arrays_that_are_no_inputs(change: dict[str, np.ndarray | None], message: str) -> None:
    given = {name: array for name, array in (arrays(5) | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        packed(given, INPUTS)


def test_a_graph_whose_inputs_do_not_fill_its_row(tmp_path: Path) -> None:
    net = Mixed()
    graph = pc.capture(net, SHAPES)
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    content = file.dumps(Compressed(graph, tensors, {"parameters_total": 1}))[0]
    from dataclasses import replace

    other = replace(graph, inputs=(*INPUTS[:2], replace(INPUTS[2], shape=(5,))))
    with pytest.raises(ValueError, match=r"inputs of 42 values lie in a row of shape \(41,\)"):
        file.loads(file.dumps(Compressed(other, tensors, {"parameters_total": 1}))[0])
    assert file.loads(content).graph == graph


def test_every_command_and_every_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    train, test = arrays(300), arrays(60, seed=1)
    content = {f"x_train.{name}": array for name, array in train.items()}
    content |= {f"x_test.{name}": array for name, array in test.items()}
    np.savez("data.npz", y_train=labels(train), y_test=labels(test), **content)

    def ok(*command: str) -> str:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        return result.output

    options = ("--prior", "log-uniform", "--epochs", "30", "--batch-size", "25", "--device", "cpu")
    ok("fit", "--data", "data.npz", "--net", "test_inputs:mixed", *options, "--threads", "1", "--out", "run")
    ok("compress", "run", "--threads", "1", "--out", "small.pcn")
    own = json.loads(ok("evaluate", "small.pcn", "--json"))
    assert own == json.loads(ok("evaluate", "small.pcn", "--data", "data.npz", "--json"))
    assert own["accuracy"] > 0.6
    network = file.read(Path("small.pcn"))
    rows, _ = pack(test)
    parts, wanted = parts_of(rows, INPUTS), runner.run(network, rows.numpy())
    scales = {"image": 255.0, "price": 1.0, "words": 0.0}
    assert {one.name: one.scale for one in network.graph.inputs} == scales
    assert {one.name: one.scale for one in pc.load_run("run").posterior.graph.inputs} == scales
    assert "(1, 6, 6) float32: raw integers from 0 to 255, divided by 255" in ok("info", "small.pcn")
    for out in ("m.onnx", "m.pt2", "m.safetensors", "folder"):
        ok("export", "small.pcn", "--out", out)
    import onnxruntime

    session = onnxruntime.InferenceSession("m.onnx")
    assert {one.name: one.type for one in session.get_inputs()} == {
        "image": "tensor(float)", "price": "tensor(float)", "words": "tensor(int64)"
    }  # fmt: skip
    found = [
        session.run(None, {name: part.numpy() for name, part in parts.items()})[0],
        load_program(Path("m.pt2"))(**parts).detach().numpy(),
        load_safetensors("m.safetensors")(parts).detach().numpy(),
    ]
    for outputs in found:
        np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5)
    np.savez("examples.npz", **{name: part.numpy() for name, part in parts.items()})
    np.savez("bytes.npz", **test)
    np.savez("whole.npz", **test | {"image": test["image"].astype(np.int64), "words": test["words"].astype(np.uint8)})
    np.savez("raw.npz", **test | {"image": test["image"].astype(np.float32)})
    example = str(Path(__file__).parents[1] / "examples" / "onnx_runtime.py")
    for program in ([sys.executable, "folder/run.py"], [sys.executable, example, "m.onnx"]):
        for name in ("examples", "bytes", "whole"):
            printed = subprocess.run([*program, f"{name}.npz"], capture_output=True, text=True, check=True)
            assert printed.stdout.split() == [str(i) for i in wanted.argmax(1)]
            assert [one.classes[0] for one in pc.predict("small.pcn", f"{name}.npz")] == printed.stdout.split()
        refused = subprocess.run([*program, "raw.npz"], capture_output=True, text=True)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: image")
        assert "values from 0 to 255" in refused.stderr
    with pytest.raises(
        ValueError, match="image has values from 0 to 255; this network takes integers from 0 to 255, or"
    ):
        pc.predict("small.pcn", "raw.npz")
    told = json.loads(Path("folder/network.json").read_text())["input"]["inputs"]
    assert told == json.loads(session.get_modelmeta().custom_metadata_map["input"])["inputs"]
    assert [(one["name"], one["scale"], one["range"]) for one in told] == [
        ("image", 255.0, [0, 1]), ("price", 1.0, None), ("words", 1.0, [0, 6])
    ]  # fmt: skip
    for data in ("data.npz", "examples.npz", {name: part.numpy() for name, part in parts.items()}):
        told = pc.predict("small.pcn", data)
        assert [one.classes[0] for one in told] == [str(i) for i in wanted.argmax(1)]
    np.savez("other.npz", y=labels(test), **{f"x.{name}": a for name, a in test.items() if name != "price"})
    result = CliRunner().invoke(main, ["evaluate", "small.pcn", "--data", "other.npz"])
    assert result.exit_code == 1
    assert "other.npz: x: inputs image, words; this network takes image, price, words" in result.output
    result = CliRunner().invoke(main, ["predict", "small.pcn", "other.npz"])
    assert result.exit_code == 1
    assert "inputs image, words; this network takes image, price, words" in result.output


def test_scales_of_known_inputs() -> None:
    """Whole numbers are divided whatever their type; floats must be scaled already; nothing is guessed."""
    known = inputs_of({"image": ((2,), "float32", 255.0), "price": ((1,), "float32", 1.0), "words": ((1,), "int64")})
    raw = np.array([[0, 255], [51, 102]])
    beside = {"price": np.array([[3.5], [-1]]), "words": np.array([[1], [2]], np.uint8)}
    wanted = [[0, 1, 3.5, 1], [np.float32(0.2), np.float32(0.4), -1, 2]]
    for image in (raw.astype(np.uint8), raw, raw.astype(np.uint16), (raw / 255).astype(np.float32)):
        assert packed({"image": image} | beside, known).tolist() == wanted
    with pytest.raises(
        ValueError, match="image has values from 0 to 255; this network takes integers from 0 to 255, or"
    ):
        packed({"image": raw.astype(np.float32)} | beside, known)
    with pytest.raises(ValueError, match="image has values from -1 to 255"):
        packed({"image": np.where(raw, raw, -1)} | beside, known)
    with pytest.raises(ValueError, match="price is uint8, and this network was trained on other numbers"):
        packed({"image": raw} | beside | {"price": np.array([[3], [4]], np.uint8)}, known)


def test_files_of_earlier_versions_divide_bytes(tmp_path: Path) -> None:
    """They say nothing of scales: bytes are divided as they were, and an export takes the scale from its data."""
    net = Mixed().eval()
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    train, test = arrays(200), arrays(40, seed=1)
    content = {f"x_train.{name}": a for name, a in train.items()} | {f"x_test.{name}": a for name, a in test.items()}
    np.savez(tmp_path / "data.npz", y_train=labels(train), y_test=labels(test), **content)
    graph = pc.capture(net, SHAPES)
    assert [one.scale for one in graph.inputs] == [0.0, 0.0, 0.0]
    old = Compressed(graph, tensors, {"parameters_total": 1, "data": str(tmp_path / "data.npz")})
    (tmp_path / "old.pcn").write_bytes(file.dumps(old)[0])
    wanted = net(**parts_of(pack(test)[0], INPUTS)).argmax(1)
    assert [one.classes[0] for one in pc.predict(tmp_path / "old.pcn", test)] == [str(int(i)) for i in wanted]
    pc.export(tmp_path / "old.pcn", tmp_path / "folder")
    runner = load_runner(tmp_path / "folder")
    assert runner.card["input"]["inputs"][0]["scale"] == 255.0
    assert runner.predict(test) == [str(int(i)) for i in wanted]
    with pytest.raises(ValueError, match="image: values from 0 to 255; this network takes integers from 0 to 255, or"):
        runner.predict(test | {"image": test["image"].astype(np.float32)})
    rows = runner.prepare(test)
    assert np.array_equal(runner.prepare(rows), rows)
    with pytest.raises(ValueError, match="no array price; this network takes image, price, words"):
        runner.predict({name: a for name, a in test.items() if name != "price"})


def test_a_loaded_network_refuses_other_shapes() -> None:
    net = Mixed().eval()
    module = Network(pc.capture(net, SHAPES), net.state_dict())
    parts = parts_of(pack(arrays(3))[0], INPUTS)
    with pytest.raises(ValueError, match=r"^image of shape \(6, 6, 1\); this network takes \(1, 6, 6\)$"):
        module(**parts | {"image": parts["image"].transpose(1, 3)})
    with pytest.raises(ValueError, match=r"^inputs of shape \(40,\); this network takes \(41,\)$"):
        module(torch.zeros(2, 40))


def test_data_made_by_hand() -> None:
    given = arrays(90)
    x, inputs = pc.pack(given)
    y = torch.from_numpy(labels(given))
    parts = [Data(x[a : a + 30], y[a : a + 30]) for a in (0, 30, 60)]
    splits = pc.Splits(*parts, classes=("0", "1", "2"), inputs=inputs)
    config = pc.resolve(pc.FitConfig(prior="gaussian", epochs=1, device="cpu", batch_size=10), 30)
    posterior = pc.extract(pc.fit_posterior(Mixed(), splits, config))
    assert posterior.graph.inputs == inputs
    assert {"conv.weight", "words.weight", "out.weight"} <= posterior.layers.keys()


def test_tokens_that_no_table_has(tmp_path: Path) -> None:
    """Found in any split before a fit; in a finished file when it is asked."""
    given = arrays(90)
    y = torch.from_numpy(labels(given))
    config = pc.resolve(pc.FitConfig(prior="gaussian", epochs=1, device="cpu", batch_size=10), 30)
    for place, value, part in ((5, -1, "train"), (40, 7, "validation"), (70, 30, "test")):
        words = given["words"].copy()
        words[place, 2] = value
        x, inputs = pc.pack(given | {"words": words})
        parts = [Data(x[a : a + 30], y[a : a + 30]) for a in (0, 30, 60)]
        splits = pc.Splits(*parts, classes=("0", "1", "2"), inputs=inputs)
        with pytest.raises(ValueError, match=rf"{part} examples: tokens .* table words.weight has rows for 0 to 6"):
            pc.fit_posterior(Mixed(), splits, config)
    net = Mixed()
    tensors = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    content = file.dumps(Compressed(pc.capture(net, SHAPES), tensors, {"parameters_total": 1}))[0]
    (tmp_path / "a.pcn").write_bytes(content)
    with pytest.raises(ValueError, match="tokens that the network has no row for"):
        pc.predict(tmp_path / "a.pcn", arrays(5) | {"words": np.full((5, 4), 9)})


def test_names_that_forward_does_not_take() -> None:
    message = "the data have inputs imag, price, words; forward of Mixed takes words, image, price"
    with pytest.raises(ValueError, match=message):
        pc.capture(Mixed(), {"imag": (1, 6, 6), "words": ((4,), "int64"), "price": (1,)})
    with pytest.raises(ValueError, match="the data have inputs image, words; forward of Mixed takes"):
        pc.capture(Mixed(), {"image": (1, 6, 6), "words": ((4,), "int64")})
    with pytest.raises(ValueError, match=r"on image .*, words \(4,\) float32: .*indices"):
        pc.capture(Mixed(), {"image": (1, 6, 6), "words": (4,), "price": (1,)})


def test_each_of_several_inputs_is_doubted_by_itself(caplog) -> None:
    """Numbers of words may be large; numbers that are taken as they are may not, and are named."""
    rng = np.random.default_rng(0)
    words, price = rng.integers(0, 5000, (300, 4)), rng.normal(size=(300, 1))
    y = np.arange(300) % 2
    pc.splits_from(({"words": words, "price": price}, y))
    assert not caplog.text
    pc.splits_from(({"words": words, "price": price * 1000}, y))
    assert "price: inputs reach" in caplog.text
    assert "--input-mean" not in caplog.text  # which goes with one input
