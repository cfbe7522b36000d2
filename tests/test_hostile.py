"""Files that somebody made to hurt: whatever they hold, it ends in a result or in one line, soon and without memory."""

import struct
import time
import tracemalloc
import zlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.data.tasks import TASKS
from pyro_compress.deploy import arrays, torch_files
from pyro_compress.graph.capture import capture
from pyro_compress.pcn import file, gate, header, names, runner
from pyro_compress.pcn.meta import ENTRIES, check_meta
from pyro_compress.types import Compressed, Graph, Node

LAYER = Node("linear", (1,), {"weight": "1.weight"})
FLAT = Node("reshape", (0,), {}, {"shape": [64]})
COMMANDS = (
    ("evaluate",), ("export", "-o", "x.pt2"), ("export", "-o", "x.onnx"), ("export", "-o", "x.c"),
    ("export", "-o", "x.safetensors"), ("export", "-o", "folder"), ("bench", "--no-memory", "--seconds", "0.01"),
)  # fmt: skip


def network(*nodes: Node, meta: dict[str, Any] | None = None, **tensors: Any) -> Compressed:
    """A network on images of 8 × 8; its tensors by name, `_` for a point."""
    held = {name.replace("_", "."): values for name, values in tensors.items()}
    held = held or {"1.weight": np.ones((10, 64), np.float32)}
    return Compressed(Graph((Node("input"), *nodes), (1, 8, 8)), held, meta or {"data": "digits"})


def named(name: str, **more: str) -> Compressed:
    """A network whose tensors bear these names."""
    roles = {"weight": name} | more
    held = {one: np.ones((10, 64) if role == "weight" else 10, np.float32) for role, one in roles.items()}
    return replace(network(FLAT, replace(LAYER, parameters=roles)), tensors=held)


def changed(**attributes: Any) -> Compressed:
    """A network with a convolution of these attributes."""
    plain = {"stride": [1, 1], "padding": [[0, 0], [0, 0]], "dilation": [1, 1]}
    known = {key: value for key, value in (plain | attributes).items() if value != "absent"}
    conv = Node("conv2d", (0,), {"weight": "0.weight"}, known)
    return network(conv, **{"0_weight": np.ones((2, 1, 3, 3), np.float32)})


def sealed(told: Compressed) -> bytes:
    """The bytes of such a file, as a foreign writer makes them."""
    return file.dumps(told)[0]


def again(times: int, node: Node) -> list[Node]:
    """A chain: every node reads the one before, as often as the first does."""
    return [replace(node, inputs=(i,) * len(node.inputs)) for i in range(1, times + 1)]


CODE = 'w"+str(getattr(__import__("os"),"system")("touch EXECUTED"))+"'
MEAN = Node("mean", (1,), {}, {"axes": [2, 3]})
HOSTILE = {
    "a name that is code": (named(CODE), "names are letters"),
    "a name that is a path": (named("../ESCAPED"), "names are letters"),
    "an absolute path": (named("/tmp/ESCAPED"), "names are letters"),
    "torch's names": (named("forward", bias="x"), "'forward' is what torch calls something else"),
    "an empty part": (named("x..y"), "names are letters"),
    "no name": (named(""), "names are letters"),
    "a line break": (named("x\n"), "names are letters"),
    "letters of others": (named("größe"), "names are letters"),
    "a dunder": (named("a.__class__"), "'__class__' is what torch"),
    "a long name": (named("x" * 300), "longer than 200 characters"),
    "many parts": (named(".".join("a" * 40)), "or 32 parts"),
    "a tensor inside a tensor": (named("a", bias="a.b"), "'a' is a tensor, and other tensors lie inside"),
    "padding": (
        network(Node("pad", (0,), {}, {"sizes": [200_000] * 4, "mode": "constant"}), MEAN, replace(LAYER, inputs=(2,))),
        r"node 1 \(pad\): \d+ values held at a time",
    ),
    "a padded convolution": (changed(padding=[[60_000] * 2, [60_000] * 2]), r"node 1 \(conv2d\): \d+ values held"),
    "concatenation": (
        network(FLAT, *again(40, Node("concat", (0, 0), {}, {"axis": 1})), replace(LAYER, inputs=(41,))),
        r"\(concat\): \d+ values held at a time",
    ),
    "products of rows and columns": (
        network(
            Node("reshape", (0,), {}, {"shape": [64, 1]}), Node("reshape", (0,), {}, {"shape": [1, 64]}),
            Node("matmul", (1, 2)), *(Node("matmul", (i, i)) for i in range(3, 300)), LAYER,
        ),
        "linear",
    ),
    "work": (
        network(
            Node("pad", (0,), {}, {"sizes": [2000, 2000, 2000, 2000], "mode": "constant"}),
            *(Node("sin", (i,)) for i in range(1, 500)), LAYER,
        ),
        "multiply-adds per example, more than",
    ),
    "many nodes": (network(FLAT, *again(8200, Node("relu", (0,))), LAYER), "more than the 8192 operations"),
    "no layer": (network(FLAT), "no layer with weights"),
    "an unknown operation": (network(FLAT, Node("system", (1,)), LAYER), "unknown operation 'system'"),
    "the input again": (network(FLAT, Node("input"), LAYER), "unknown operation 'input'"),
    "what exports add": (network(FLAT, Node("crop", (1,)), LAYER), "unknown operation 'crop'"),
    "no inputs": (network(FLAT, replace(LAYER, inputs=())), "reads 0 values, not 1"),
    "too many inputs": (network(FLAT, replace(LAYER, inputs=(1, 1))), "reads 2 values, not 1"),
    "another role": (network(FLAT, replace(LAYER, parameters={"gamma": "1.weight"})), "its tensor weight is missing"),
    "one role more": (
        network(FLAT, replace(LAYER, parameters={"weight": "1.weight", "x": "1.weight"})), "has the tensor 'x'",
    ),
    "no attribute": (changed(stride="absent"), "its attribute stride is missing"),
    "an unknown attribute": (changed(evil=1), "no such operation has the attribute 'evil'"),
    "a number for a list": (changed(stride=1), "its stride is 1, not a list of positive whole numbers"),
    "a truth for a number": (changed(stride=[True, True]), "its stride is list, not a list of positive"),
    "a step of nothing": (changed(stride=[0, 1]), "its stride is list, not"),
    "a huge number": (changed(dilation=[1 << 40, 1]), "its dilation is list, not"),
    "fractions": (changed(groups=0.5), "its groups is 0.5, not a positive whole number"),
    "too few numbers": (changed(stride=[1]), "lists of 1, 2, 2, 2 numbers"),
    "a window over nothing": (changed(dilation=[9, 9]), r"windows of \[19, 19\] over \[8, 8\]"),
    "groups that do not fit": (changed(groups=2), "in 2 groups on 1 channels"),
    "code for a mode": (network(Node("pad", (0,), {}, {"sizes": [1, 1], "mode": CODE}), LAYER), "its mode is"),
    "another shape": (network(replace(FLAT, attributes={"shape": [65]}), LAYER), r"values of shape \(1, 8, 8\) as"),
    "wrong weights": (network(FLAT, LAYER, **{"1_weight": np.ones((10, 63), np.float32)}), "a weight of shape"),
    "weights of nothing": (
        network(FLAT, LAYER, **{"1_weight": np.ones((0, 64), np.float32)}), "its weight has the impossible shape",
    ),
    "an input of nothing": (
        replace(network(FLAT, LAYER), graph=Graph((Node("input"), FLAT, LAYER), (0, 8, 8))), "the input has the imposs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line_and_take_nothing(case: str) -> None:
    told, message = HOSTILE[case]
    data = sealed(told)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        file.loads(data)
    assert time.process_time() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize("case", ["a name that is code", "a name that is a path", "padding", "torch's names"])
def test_no_command_obeys_them(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (path := tmp_path / "hostile.pcn").write_bytes(sealed(HOSTILE[case][0]))
    for command, *rest in COMMANDS:
        result = CliRunner().invoke(main, [command, str(path), *rest])
        assert result.exit_code == 1, (command, result.output)
        assert isinstance(result.exception, SystemExit)
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1
    assert [one.name for one in tmp_path.rglob("*")] == ["here", "hostile.pcn"]


@pytest.mark.parametrize("name", ["../ESCAPED", CODE, "a/b"])
def test_exports_look_at_names_themselves(name: str, tmp_path: Path) -> None:
    """Whatever way a network came, by a run folder and --ensemble, say."""
    (folder := tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="names are letters"):
        arrays.write_folder(named(name), {}, folder)
    with pytest.raises(ValueError, match="names are letters"):
        torch_files.write_program(named(name), {}, tmp_path / "x.pt2")
    assert [one.name for one in tmp_path.rglob("*")] == ["folder"]


def test_names_that_are_words_of_python_are_exported(tmp_path: Path) -> None:
    torch_files.write_program(named("class.weight", bias="import.True"), {}, path := tmp_path / "x.pt2")
    program = torch_files.load_program(path)
    assert sorted(program.state_dict()) == ["class_.weight", "import_.True_"]
    assert torch.allclose(program(torch.ones(3, 1, 8, 8)), torch.full((3, 10), 65.0))


def test_names_of_networks_pass() -> None:
    names.check_names([
        "0.weight", "features.0.conv.1.0.weight", "layer1.0.bn1.running_mean", "module._orig_mod.fc.weight",
        "encoder.layers.0.self_attn.out_proj.bias", "parametrizations.weight.original0", "class_token", "input_mean",
        "member12.1.weight", "blocks.3.attn.q.weight", "p.0", "Linear_2.weight", "class.weight",
    ])  # fmt: skip


@pytest.mark.parametrize("key", ["conv-1", "größe", "a b", "x" * 201])
def test_a_network_that_no_file_could_hold_is_refused_when_it_is_captured(key: str) -> None:
    """Not after a fit."""
    net = nn.Sequential(OrderedDict([("flat", nn.Flatten()), (key, nn.Linear(4, 2))]))
    with pytest.raises(ValueError, match=r"names are letters|longer than 200") as caught:
        capture(net, (1, 2, 2))
    assert len(str(caught.value).splitlines()) == 1


def test_numbers_that_are_none() -> None:
    text = b'{"graph":{"input":[3],"nodes":[["scale",0,{},{"factor":Infinity}]]},"tensors":[],"meta":{}}'
    packed = header._deflate(text, header.DICTIONARY_4)
    data = file.MAGIC + b"\4\0" + bytes([len(packed)]) + packed
    with pytest.raises(ValueError, match="Infinity is no number"):
        file.loads(data + struct.pack("<I", zlib.crc32(data)))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("data", 3), ("data", "a\x1b[31m"), ("data", "\ud800"), ("classes", "abc"), ("classes", ["a", 1]),
        ("classes", ["\x1b]0;title\x07"]), ("columns", [{"mean": 1}]), ("columns", [{"name": "a", "evil": 1}]),
        ("columns", [{"name": "a", "std": 0}]), ("targets", {}), ("targets", [{"name": "a", "mean": "x"}]),
        ("noise", "0.5"), ("noise", -1), ("noise", float("inf")), ("scale", 0), ("scale", True), ("task", "sort"),
        ("validation", 2), ("validation", "x"), ("limit", -1), ("image_size", 9), ("parameters_total", 0),
        ("seed", 1 << 70), ("anything", float("nan")), ("anything", "\ud800"), ("target", "x"), ("series", 1),
        ("columns", [{"name": "a", "categories": ["x", "y"]}]), ("targets", [{"name": "a"}]),
    ],
)  # fmt: skip
def test_metadata_have_a_schema(entry: str, value: Any) -> None:
    with pytest.raises(ValueError, match="the metadata"):
        check_meta({entry: value}, (1, 8, 8), (10,))


def test_metadata_of_every_kind_pass() -> None:
    told = {
        "prior": "horseshoe", "data": "maße/table.csv", "seed": 0, "validation": 0.1, "criterion": "snr",
        "parameters_total": 9, "task": "regression", "noise": 0.2, "scale": 255.0, "classes": ["ein\tWort", "é"],
        "columns": [{"name": "a", "mean": 0, "std": 1.5}, {"name": "b", "categories": ["x", "y"]}],
        "targets": [{"name": "y", "mean": 0.0, "std": 2.0}], "more": {"free": [1, None, "text"]},
    }  # fmt: skip
    assert check_meta(told, (3,), (1,)) == told
    assert all(ENTRIES["task"].allows(task) for task in TASKS)


def test_outputs_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    weights = np.full((10, 64), 3e38, np.float32)
    told = network(FLAT, LAYER, **{"1_weight": weights})
    with pytest.raises(ValueError, match="not finite"):
        runner.run(told, np.ones((3, 1, 8, 8), np.float32))
    (path := tmp_path / "a.pcn").write_bytes(sealed(told))
    result = CliRunner().invoke(main, ["evaluate", str(path)])
    assert result.exit_code == 1
    assert "not finite" in result.stderr


def test_more_memory_is_allowed_by_name(tmp_path: Path) -> None:
    (path := tmp_path / "a.pcn").write_bytes(sealed(network(FLAT, LAYER)))
    assert pc.load(path, max_memory=1)
    big = network(Node("pad", (0,), {}, {"sizes": [200] * 4, "mode": "constant"}), MEAN, replace(LAYER, inputs=(2,)))
    big = replace(big, tensors={"1.weight": np.ones((10, 1), np.float32)})
    path.write_bytes(sealed(big))
    with pytest.raises(ValueError, match="allow more with --max-memory"):
        pc.load(path, max_memory=1)
    assert pc.load(path, max_memory=8)
    result = CliRunner().invoke(main, ["evaluate", str(path), "--max-memory", "1"])
    assert result.exit_code == 1
    assert "--max-memory" in result.stderr


def test_a_large_graph_is_read_in_linear_time() -> None:
    """As many operations as a file may have, every second one a layer that looks back through all before it."""
    shapes, nodes = {}, [Node("input"), FLAT, *again(3000, Node("relu", (1,)))]
    for index in range(3000):
        shapes[f"w{index}"] = np.ones((2, 64), np.float32)
        nodes.append(Node("linear", (3001,), {"weight": f"w{index}"}))
    data = sealed(Compressed(Graph(tuple(nodes), (64,)), shapes, {}))
    started = time.process_time()
    file.loads(data, gate.UNLIMITED)
    assert time.process_time() - started < 3


def test_a_bomb_of_lists_is_refused_unread() -> None:
    text = b"[" * 300_000
    with pytest.raises(ValueError, match="lists and objects"):
        header._values(text)
