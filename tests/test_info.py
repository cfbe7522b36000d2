"""`info`: what a file says of itself, held against how it was written; nothing of it acts or runs."""

import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import pyro_compress as pc
from pyro_compress import kinds
from pyro_compress.cli.main import main
from pyro_compress.deploy import arrays, onnx_model, torch_files
from pyro_compress.deploy.card import CARDS, SECTION, card, read_card
from pyro_compress.deploy.formats import EXPORTERS
from pyro_compress.deploy.phone.traced import with_card
from pyro_compress.deploy.wasm.build import section
from pyro_compress.inputs import Input
from pyro_compress.pcn import file
from pyro_compress.runs.folder import Run
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed, Graph, Node, Quantized

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.pcn"))
OLD = {"template-lenet-5", "template-mlp", "version-1", "version-2", "version-3"}
"""Of them, those that this version would write otherwise."""
CODES = np.array([[3, 0, -1, 0], [0, 0, 0, 2]], np.int32)
SCORES = Scores(accuracy=0.75, nll_nats=0.5, ece=0.1, brier=0.2)


def network(**meta: Any) -> Compressed:
    """Images of 2 × 2, two classes; three of eight weights are kept."""
    nodes = (
        Node("input"), Node("reshape", (0,), {}, {"shape": [4]}),
        Node("linear", (1,), {"weight": "fc.weight", "bias": "fc.bias"}),
    )  # fmt: skip
    told = {"data": "mine", "prior": "horseshoe", "seed": 3, "parameters_total": 1000} | meta
    held = {"fc.weight": Quantized(CODES, 0.25), "fc.bias": np.array([0.5, 0.0], np.float32)}
    return Compressed(Graph(nodes, (1, 2, 2)), held, told)


def written(path: Path, **meta: Any) -> Path:
    path.write_bytes(file.dumps(network(**meta))[0])
    return path


def told(*arguments: Any) -> str:
    result = CliRunner().invoke(main, ["info", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pcn", scale=255.0, classes=["cat", "dog"], finetune_epochs=30)
    found, (data, parts) = pc.info(path), file.dumps(file.read(path))
    assert (found.kind, found.bytes, found.dense_bytes, found.ratio) == ("pcn", len(data), 4000, 4000 / len(data))
    assert found.format == f".pcn file, format version {data[4]}"
    assert found.origin == {
        "data": "mine", "prior": "horseshoe", "seed": 3, "parameters_total": 1000, "finetune_epochs": 30,
    }  # fmt: skip
    assert (found.input_shape, found.input_kind, found.output_shape) == ((1, 2, 2), "float32", (2,))
    assert (found.classes, found.operations, found.claimed) == (("cat", "dog"), ("reshape", "linear"), {})
    weight, bias = found.tensors
    assert (weight.name, weight.shape, weight.values, weight.kept, weight.step) == ("fc.weight", (2, 4), 8, 3, 0.25)
    assert (weight.bytes, weight.bits) == (parts["fc.weight"], 8 * parts["fc.weight"] / 3)
    assert (bias.kept, bias.step) == (1, None)
    assert sum(found.parts.values()) + sum(one.bytes or 0 for one in found.tensors) == len(data)
    document = json.loads(told(path, "--json"))
    assert document["tensors"][0] | {"shape": (2, 4)} == {
        "name": "fc.weight", "shape": (2, 4), "kept": 3, "bytes": weight.bytes, "step": 0.25, "values": 8,
        "bits": weight.bits,
    }  # fmt: skip
    text = told(path)
    assert f"{len(data):,} bytes; dense float32 4,000 bytes; {4000 / len(data):.1f}× smaller" in text
    assert "raw integers from 0 to 255, divided by 255 beforehand" in text
    assert re.search(rf"fc.weight +2×4 +8 +3 +{weight.bits:.2f} +{weight.bytes}\n", text)
    assert re.search(r"accuracy +the file claims none; pyro-compress evaluate measures it", text)


@pytest.mark.parametrize(
    "path",
    [pytest.param(one, marks=[pytest.mark.slow] * (one.stem == "version-5"), id=one.stem) for one in GOLDEN],
)  # that one has an operation of torch, whose compiler is then loaded
def test_bytes_are_told_where_they_are_known(path: Path) -> None:
    """Of a file that this version writes byte by byte; of no other."""
    found = pc.info(path)
    total = sum(found.parts.values()) + sum(one.bytes or 0 for one in found.tensors)
    assert total == (0 if path.stem in OLD else os.path.getsize(path))
    assert ("bytes of the parts are not told" in told(path)) is (path.stem in OLD)
    assert f"format version {path.read_bytes()[4]}" in found.format


def test_a_run(fitted_run: Run) -> None:
    found = pc.info(fitted_run.path)
    assert (found.kind, found.task, found.input_shape) == ("run", "classification", (1, 8, 8))
    assert found.origin["net"] == "mlp"
    assert found.origin["epochs"] == 30
    history = [json.loads(line) for line in (fitted_run.path / "history.jsonl").read_text().splitlines()]
    assert found.claimed["validation_accuracy"] == history[-1]["validation_accuracy"]
    assert {one.name: one.shape for one in found.tensors}["1.weight"] == (60, 64)
    assert sum(one.values for one in found.tensors) == fitted_run.posterior.parameters_total
    assert "posterior.safetensors" in found.parts
    assert re.search(r"claimed validation_accuracy +0\.9", told(fitted_run.path))


def exported(kind: str, folder: Path) -> Path:
    held, path = network(classes=["a\nb", "=c"]), folder / ("out" if kind == "folder" else f"out{kind}")
    about = card(held, SCORES, 200)
    if kind == "folder":
        path.mkdir()
        arrays.write_folder(held, about, path)
    elif kind == ".wasm":
        path.write_bytes(b"\0asm\1\0\0\0" + section(SECTION, json.dumps(about).encode()))
    elif kind in (".pte", ".tflite"):
        path.write_bytes(with_card(b"a program", about))
    elif kind == ".onnx":
        onnx.save(onnx_model.build(held, about), path)
    else:
        {".pt2": torch_files.write_program, ".safetensors": torch_files.write_safetensors}[kind](held, about, path)
    return path


@pytest.mark.parametrize("kind", CARDS)
def test_an_export(kind: str, tmp_path: Path) -> None:
    path = exported(kind, tmp_path)
    found = pc.info(path)
    assert found.format.startswith(f"export ({kind}) by pyro-compress ")
    assert (found.input_shape, found.classes, found.origin["seed"]) == ((1, 2, 2), ("a\nb", "=c"), 3)
    assert found.claimed == {
        "split": "test", "examples": 200, "accuracy": 0.75, "nll_nats": 0.5, "ece": 0.1, "brier": 0.2,
    }  # fmt: skip
    shapes = {one.name: (one.shape, one.bytes) for one in found.tensors}
    assert shapes == (
        {}
        if kind in (".pt2", ".onnx", ".wasm", ".pte", ".tflite")
        else {"fc.weight": ((2, 4), 32), "fc.bias": ((2,), 8)}
    )
    assert r"'a\nb', =c" in told(path)


def test_several_inputs(tmp_path: Path) -> None:
    graph = network().graph
    several = (Input("price", (1,)), Input("words", (3,), "int64"))
    held = replace(network(), graph=replace(graph, input_shape=(4,), inputs=several))
    (tmp_path / "a.pcn").write_bytes(file.dumps(held)[0])
    torch_files.write_safetensors(held, card(held, SCORES, 200), tmp_path / "a.safetensors")
    for name in ("a.pcn", "a.safetensors"):
        assert pc.info(tmp_path / name).inputs == several
        assert re.search(r"input words +\(3,\) int64\n", told(tmp_path / name))


def test_every_export_has_a_card_that_is_read_or_an_answer(tmp_path: Path) -> None:
    assert set(EXPORTERS) - set(CARDS) == {".c"}
    (tmp_path / "a.c").write_text("/* */")
    with pytest.raises(ValueError, match=r"of exports as \.c the card is not read; its first lines tell it"):
        read_card(tmp_path / "a.c")


def test_hostile_text_is_spelled_out(tmp_path: Path) -> None:
    text = "red \u202e and\nred again"
    path = written(tmp_path / "a.pcn", classes=[text, " "], note=text, more={"deep": [text] * 99})
    lines = told(path).splitlines()[1:]
    assert r"classes           'red \u202e and\nred again', ' '" in lines
    assert r"note              'red \u202e and\nred again'" in lines
    assert max(map(len, lines)) < 120
    assert pc.info(path).origin["note"] == text


NESTED = "[" * 100_000


def no_export(path: Path, name: str) -> Path:
    """A file or folder of somebody who wants `info` to stumble."""
    path = path / name
    if name == "folder":
        path.mkdir()
        (path / "network.json").write_text(NESTED)
    elif name == "other":
        path.mkdir()
        (path / "network.json").write_text('{"producer": "x", "origin": {}, "input": [], "tensors": {"a": [-1]}}')
    elif name == "card.pt2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/extra/pyro_compress.json", NESTED)
    elif name == "none.pt2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    elif name == "posterior.safetensors":
        save_file({"a": torch.zeros(1)}, path, {"pyro_compress": '{"origin": 1}'})
    else:
        path.write_text("hello")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "is no export of this program: network.json is no valid JSON: it is nested too deeply"),
        ("other", "is no export of this program: input: []: give a table"),
        ("card.pt2", "is no export of this program: its card is no valid JSON: it is nested too deeply"),
        ("none.pt2", "is no export of this program: it is no archive with a card in it"),
        ("hello.pt2", "is no export of this program: it is no archive with a card in it"),
        ("hello.onnx", "is no export of this program: "),
        ("hello.safetensors", "is no export of this program: a header of "),
        ("posterior.safetensors", "is no export of this program: producer None: give plain text"),
        ("hello.c", "of exports as .c the card is not read"),
        ("hello.pcn", "not a .pcn file (its first four bytes are others)"),
        ("hello.txt", "not a .pcn file (its first four bytes are others)"),
    ],
)
def test_what_is_no_file_of_ours_is_refused_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["info", str(no_export(tmp_path, name))])
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_of_somebody_else_and_a_bomb(tmp_path: Path) -> None:
    assert "is no run folder" in CliRunner().invoke(main, ["info", str(tmp_path)]).stderr
    assert not kinds.is_export(no_export(tmp_path, "folder"))
    bomb = Path(__file__).parent / "corpus" / "bomb-padding.pcn"
    assert "allow more with --max-memory" in CliRunner().invoke(main, ["info", str(bomb)]).stderr


def test_sizes_of_what_another_writer_packed_are_not_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written(tmp_path / "a.pcn")

    def refuse(network: Compressed) -> None:
        raise ValueError("the header is too long")

    monkeypatch.setattr(file, "dumps", refuse)
    assert pc.info(path).parts == {}
