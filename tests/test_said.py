"""What the programs of exports print: `run.py` of a folder, `main` of a C file, the example for ONNX Runtime."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyro_compress as pc
from pyro_compress.deploy import arrays, onnx_files
from pyro_compress.deploy.c.library import compiler
from pyro_compress.deploy.c.source import write_c
from pyro_compress.deploy.card import card
from pyro_compress.deploy.said import check_said
from pyro_compress.outputs import outputs_of
from pyro_compress.pcn import file
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed

SCORES = Scores(0.9, 0.3, 0.01, 0.1)
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_runtime.py"
SEVERAL = "digit=classification:2+ink=regression:1+tag=multi-label:2"
UNITS = [{"name": "ink", "mean": 3.0, "std": 2.0}]


def same(values: int, factor: float = 1.0) -> nn.Module:
    """Gives its inputs back, times a factor."""
    net = nn.Sequential(nn.Linear(values, values, bias=False))
    net[0].weight.data = factor * torch.eye(values)
    return net


class Following(nn.Module):
    """Behind every token comes the one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 5), nn.Linear(5, 5, bias=False)
        self.table.weight.data, self.head.weight.data = torch.eye(5).roll(1, 1), torch.eye(5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.table(x)).transpose(1, 2)
        return found


def brighter() -> nn.Module:
    """Class 1 where a pixel is above one half."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1))
    net[0].weight.data, net[0].bias.data = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([0.5, -0.5])
    return net


@dataclass(frozen=True)
class Problem:
    """A network whose outputs are known without running it, and what is to be said of examples."""

    net: nn.Module
    x: Any
    lines: list[str]
    meta: dict[str, Any]


WORDS = [[1, 2, 0, 0], [3, 4, 1, 2], [4, 0, 0, 0]]
PROBLEMS = {
    "classification": Problem(same(2), [[1, 2], [2, 1]], ["b", "a"], {"classes": ["a", "b"]}),
    "multi-label": Problem(same(3), [[1, -1, 0.5], [-1, -2, -3], [0, 1, 0]], ["a;c", "", "b"], {"classes": [*"abc"]}),
    "regression": Problem(
        same(2), [[1, 2], [0.5, -1]], ["5 20", "4 -10"], {"targets": [*UNITS, {"name": "b", "mean": 0.0, "std": 10.0}]}
    ),
    "units of none": Problem(same(2), [[1, 2]], ["1 2"], {"task": "regression"}),
    "reconstruction": Problem(same(2, 0.5), [[6, 8], [0, 0]], ["3.535534", "0"], {}),
    "raw reconstruction": Problem(
        same(2, 0.5), np.array([[51, 51]], np.uint8), ["0.1"], {"task": "reconstruction", "scale": 255.0}
    ),
    "next-token": Problem(Following(), WORDS, ["3", "3", "0"], {"tokens": 5, "pad": 0}),
    "next byte": Problem(Following(), [[1, 2, 0, 3]], ["0x04"], {"task": "next-token", "vocabulary": "bytes"}),
    "tagging": Problem(Following(), WORDS, ["2 3 1 1", "4 0 2 3", "0 1 1 1"], {"tokens": 5}),
    "segmentation": Problem(
        brighter(), np.array([[[[0, 255], [200, 3]]]], np.uint8), ["no yes yes no"],
        {"scale": 255.0, "classes": ["no", "yes"]},
    ),
    "several": Problem(
        same(5), [[0, 1, 0.5, 1, -1], [1, 0, -1, -1, -1]],
        ["digit=one\tink=4\ttag=red", "digit=zero\tink=1\ttag="],
        {"task": SEVERAL, "targets": UNITS, "classes": ["zero", "one", "red", "round"]},
    ),
}  # fmt: skip


def compressed(name: str) -> Compressed:
    problem = PROBLEMS[name]
    x = np.asarray(problem.x)
    tokens = isinstance(problem.net, Following)
    graph = pc.capture(problem.net.eval(), x.shape[1:], kind="int64" if tokens else "float32")
    tensors = {key: value.detach().numpy() for key, value in problem.net.state_dict().items()}
    return Compressed(graph, tensors, {"task": name} | problem.meta)


def given(name: str) -> np.ndarray:
    """Examples as people have them."""
    x = np.asarray(PROBLEMS[name].x)
    return x if x.dtype == np.uint8 or isinstance(PROBLEMS[name].net, Following) else x.astype(np.float32)


def prepared(name: str) -> np.ndarray:
    """Examples as the network takes them."""
    x = given(name)
    return (x / np.float32(255)).astype(np.float32) if x.dtype == np.uint8 else x


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_folder_says_what_the_network_means(name: str, tmp_path: Path) -> None:
    network = compressed(name)
    arrays.write_folder(network, card(network, SCORES, 1), tmp_path)
    np.save(tmp_path / "x.npy", given(name))
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "run.py"), str(tmp_path / "x.npy")], capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:-1] == PROBLEMS[name].lines, done.stderr
    check_said(network, arrays.load_runner(tmp_path), torch.from_numpy(prepared(name)))


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_program_in_c_says_the_same(name: str, tmp_path: Path) -> None:
    network = compressed(name)
    write_c(network, card(network, SCORES, 1, raw="scale" in network.meta), tmp_path / "n.c")
    program = tmp_path / "n"
    subprocess.run([*compiler(), *STRICT, "-DN_MAIN", str(tmp_path / "n.c"), "-o", str(program), "-lm"], check=True)
    x = given(name)
    x = x.astype(np.int32) if isinstance(PROBLEMS[name].net, Following) else x
    done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
    assert done.stdout.decode().split("\n")[:-1] == PROBLEMS[name].lines


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_example_for_onnx_runtime_says_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = compressed(name)
    onnx_files.write_onnx(network, card(network, SCORES, 1), tmp_path / "n.onnx")
    np.save(tmp_path / "x.npy", given(name))
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path / "n.onnx"), str(tmp_path / "x.npy")],
        capture_output=True, text=True, env={"PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split("\n")[:-1] == PROBLEMS[name].lines, done.stderr


@pytest.mark.parametrize(
    "name", ["classification", "multi-label", "regression", "reconstruction", "next-token", "several"]
)
def test_predict_says_the_same(name: str, tmp_path: Path) -> None:
    network = compressed(name)
    (tmp_path / "n.pcn").write_bytes(file.dumps(network)[0])
    found = pc.predict(tmp_path / "n.pcn", given(name))
    for place, line in enumerate(PROBLEMS[name].lines):
        outputs = found.outputs or {"": found}
        told = dict(zip(outputs, line.split("\t"), strict=True))
        for own, each in outputs.items():
            wanted, row = told[own].removeprefix(f"{own}="), each.rows[place]
            if each.task == "multi-label":
                assert set(row.labels) == {*filter(None, wanted.split(";"))}
            elif each.targets:
                assert row.values == pytest.approx([float(value) for value in wanted.split(" ")], rel=1e-6)
            else:
                assert row.classes[0] == wanted


def test_several_outputs_have_their_names_and_units_in_the_card() -> None:
    network = compressed("several")
    about = card(network, SCORES, 1)
    assert about["task"] == SEVERAL
    assert about["outputs"] == [
        {"name": "digit", "task": "classification", "size": 2, "classes": ["zero", "one"]},
        {"name": "ink", "task": "regression", "size": 1, "targets": UNITS},
        {"name": "tag", "task": "multi-label", "size": 2, "classes": ["red", "round"]},
    ]
    assert outputs_of(about["task"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("predict", "the export says 'nothing' of test example 1, predict 'no yes yes no'; nothing was written"),
        ("prepare", "the export takes the test examples for others than they are; nothing was written"),
    ],
)
def test_an_export_that_says_something_else_is_refused(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = compressed("segmentation")
    arrays.write_folder(network, card(network, SCORES, 1), tmp_path)
    runner = arrays.load_runner(tmp_path)
    wrong = {"predict": lambda x: ["nothing"], "prepare": lambda x: x.astype(np.float32)}
    monkeypatch.setattr(runner, change, wrong[change])
    with pytest.raises(ValueError, match=message):
        check_said(network, runner, torch.from_numpy(prepared("segmentation")))


def test_tokens_that_are_none(tmp_path: Path) -> None:
    network = compressed("tagging")
    arrays.write_folder(network, card(network, SCORES, 1), tmp_path)
    runner = arrays.load_runner(tmp_path)
    with pytest.raises(ValueError, match="examples are float32; this network takes tokens, whole numbers from 0 to 4"):
        runner.predict(np.zeros((1, 4), np.float32))
    with pytest.raises(
        ValueError, match="examples: numbers from 0 to 5; this network takes tokens, whole numbers from"
    ):
        runner.predict(np.array([[0, 1, 2, 5]]))
