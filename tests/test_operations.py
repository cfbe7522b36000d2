"""The one table: an operation from outside of the package goes everywhere with two files."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from outside.atan_row import ATAN
from outside.atan_rule import ATAN as ATAN_RULE
from torch import nn

from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.search import compress
from pyro_compress.compression.shrink import shrink
from pyro_compress.deploy import arrays, onnx_files, torch_files
from pyro_compress.deploy.c import source as c_source
from pyro_compress.deploy.card import card
from pyro_compress.deploy.program import program
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.graph.operations import single
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.graph.rules.table import RULES, register
from pyro_compress.pcn import file, runner
from pyro_compress.runs.config import resolve
from pyro_compress.scores import Scores
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.types import Compressed, Splits


@pytest.fixture
def atan() -> Iterator[None]:
    register("atan", ATAN, ATAN_RULE)
    yield
    del OPERATIONS["atan"], RULES["atan"]


class Arcs(nn.Module):
    """Two layers with arctangents behind them, whose dead units leave."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6 * 36, 12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).atan().flatten(1)).atan())


def test_every_row_has_a_rule() -> None:
    assert OPERATIONS.keys() == RULES.keys()


def test_an_operation_from_outside_is_torchs_before_it_is_registered() -> None:
    kept = [node.attributes["call"] for node in capture(Arcs(), (1, 8, 8)).nodes if node.op == "aten"]
    assert set(kept) == {"atan.default"}


def test_no_name_is_taken_twice(atan: object) -> None:
    with pytest.raises(ValueError, match="there is an operation 'atan' already; give this one another name"):
        register("atan", ATAN, ATAN_RULE)


def test_dead_units_around_it_leave(atan: object) -> None:
    """A dead channel is a constant, and the arctangent of that is folded into the biases behind it."""
    net = Arcs().double()
    tensors = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    tensors["first.weight"][:3], tensors["second.weight"][5:] = 0, 0
    graph = capture(Arcs(), (1, 8, 8))
    small, left = shrink(graph, tensors)
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    assert left["first.weight"].shape == (3, 1, 3, 3)
    assert left["second.weight"].shape == (5, 3 * 36)
    assert torch.allclose(Network(small, left)(x), Network(graph, tensors)(x), rtol=0, atol=1e-12)


@pytest.fixture
def compressed(atan: object, digits: Splits) -> Compressed:
    """A network with it, fitted for a moment and compressed."""
    config = resolve(FitConfig(prior="log-uniform", epochs=1, device="cpu"), len(digits.train))
    posterior = extract(fit_posterior(Arcs(), digits, config))
    found, _ = compress(posterior, digits, Goal(tolerance=0.9))
    return found


def test_from_a_fit_to_every_export(compressed: Compressed, tmp_path: Path) -> None:
    x = torch.rand(5, 1, 8, 8)
    found = file.loads(file.dumps(compressed)[0])
    assert "atan" in [node.op for node in found.graph.nodes]
    about = card(found, Scores(0.9, 0.3, 0.01, 0.1), 7)
    wanted = to_module(found)(x).detach().numpy()
    onnx_files.write_onnx(found, about, tmp_path / "a.onnx")
    torch_files.write_program(found, about, tmp_path / "a.pt2")
    arrays.write_folder(found, about, tmp_path)
    got = {
        "numpy": runner.run(found, x.numpy()),
        "onnx": onnx_files.load_onnx(tmp_path / "a.onnx")(x.numpy()),
        "pt2": torch_files.load_program(tmp_path / "a.pt2")(x).detach().numpy(),
        "folder": arrays.load_runner(tmp_path).run(x.numpy()),
    }
    for name, outputs in got.items():
        assert np.allclose(outputs, wanted, rtol=1e-4, atol=1e-5), name
    assert "atanf(v)" in c_source.source(found, about, "arcs")


def test_the_folder_runner_takes_modules_that_need_numpy_alone(atan: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "np.arctan" in program(["atan"])
    assert "np.arctan" not in program(["relu"])
    here = replace(ATAN, run=lambda x, p, a: np.arctan(x))
    monkeypatch.setitem(OPERATIONS, "atan", here)
    with pytest.raises(ValueError, match=r"comes from test_operations, which imports .*; a folder runs with"):
        program(["atan"])


def test_no_name_stands_twice_in_the_runner() -> None:
    """Its modules are one file: a name of two of them would be another function in one."""
    names = Counter[str]()
    for node in ast.parse(program()).body:
        names.update([node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else [])
        names.update(t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name))
    assert [name for name, times in names.items() if times > 1] == []


def test_functions_of_single_values_are_one_line_each() -> None:
    assert all(OPERATIONS[op].channels.name == "APART" for op in single.SINGLE)
