"""`predict`: what a network says of inputs without labels, held against values worked out by hand and `evaluate`."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.compression.pipeline import save
from pyro_compress.data.tasks import TASKS
from pyro_compress.foreign import from_cell
from pyro_compress.pcn import file
from pyro_compress.runs.answers import READERS
from pyro_compress.runs.folder import Run
from pyro_compress.types import Compressed, Graph, Node, Splits

LINEAR = Node("linear", (1,), {"weight": "1.weight"})
CONV = Node("conv2d", (0,), {"weight": "1.weight"}, {"stride": [1, 1], "padding": [[0, 0]] * 2, "dilation": [1, 1]})
TABLE = {
    "task": "regression", "target": ["price"], "noise": 0.5, "targets": [{"name": "price", "mean": 100.0, "std": 20.0}],
    "columns": [{"name": "rooms", "mean": 3.0, "std": 2.0}, {"name": "colour", "categories": ["blue", "red"]}],
}  # fmt: skip
"""Rooms in standard deviations, then blue and red as 0 or 1."""


def written(
    path: Path, nodes: list[Node], shape: tuple[int, ...], weight: Any, meta: dict[str, Any], kind: str = "float32"
) -> Path:  # fmt: skip
    tensors = {"1.weight": np.asarray(weight, np.float32)}
    if nodes[0].op == "embedding":
        tensors["0.weight"] = np.eye(len(tensors["1.weight"]), dtype=np.float32)
    network = Compressed(Graph((Node("input"), *nodes), shape, kind), tensors, {"data": "x"} | meta)
    path.write_bytes(file.dumps(network)[0])
    return path


def flat(path: Path, shape: tuple[int, ...], weight: Any, **meta: Any) -> Path:
    """A linear layer over all values of an input."""
    values = math.prod(shape)
    return written(path, [Node("reshape", (0,), {}, {"shape": [values]}), LINEAR], shape, weight, meta)


def called(*arguments: Any) -> str:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: Any) -> str:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_task_has_a_reader() -> None:
    assert set(READERS) == set(TASKS)


def test_accuracy_of_the_table_is_that_of_evaluate(fitted_run: Run, digits: Splits, tmp_path: Path) -> None:
    network, _ = pc.compress(fitted_run.posterior, digits, pc.Goal(sparsity=0.9))
    save(tmp_path / "a.pcn", network, digits)
    for target in (fitted_run.path, tmp_path / "a.pcn"):
        called("predict", target, "digits", "--csv", "p.csv", "--force", "--threads", 1)
        rows = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
        right = [int(row["class"]) == y for row, y in zip(rows, digits.test.y.tolist(), strict=True)]
        scores = json.loads(called("evaluate", target, "--json", "--threads", 1))
        assert np.mean(right) == pytest.approx(scores["accuracy"], abs=1e-12)
        assert [row["predicted_for"] for row in rows] == [str(i) for i in range(1, 361)]


@pytest.mark.parametrize("price", ["", "250", None])
def test_a_table_in_the_units_of_its_target(price: str | None, tmp_path: Path) -> None:
    net = flat(tmp_path / "a.pcn", (3,), [[1.0, 0.5, -0.25]], **TABLE)
    heads, end = ["note", "colour", "rooms"] + ["price"] * (price is not None), "" if price is None else f",{price}"
    (tmp_path / "t.csv").write_text(",".join(heads) + f"\n,red,5{end}\nx,blue,3{end}\n,green,1{end}\n")
    found = pc.predict(net, "t.csv")
    assert [row.values for row in found] == [(115.0,), (110.0,), (80.0,)]
    assert (found.targets, found.noise) == (("price",), (10.0,))
    text = called("predict", net, "t.csv")
    assert text.splitlines()[:2] == ["row  price", "1      115"]
    assert "price ± 10" in text
    assert "1 of 3 rows hold names that training never showed, the first 'green'" in " ".join(text.split())
    called("predict", net, "t.csv", "-o", "p.csv")
    assert Path("p.csv").read_text().splitlines()[:2] == ['predicted_for,price,"price, noise std"', "1,115.0,10.0"]
    told = json.loads(CliRunner().invoke(main, ["predict", str(net), "t.csv", "--json"]).stdout)
    assert told["predictions"][1] == {"name": "2", "values": {"price": 110.0}}
    assert told["noise"] == {"price": 10.0}


def test_images_are_brought_to_the_colours_of_the_network(tmp_path: Path) -> None:
    """Grey, transparent and turned ones, in folders; the logits are ± (mean of red - mean of blue)."""
    weight = np.zeros((2, 3, 2, 3), np.float32)
    weight[0, 0], weight[0, 2] = 1 / 6, -1 / 6
    net = flat(
        tmp_path / "a.pcn", (3, 2, 3), [*weight[:1].reshape(1, -1), *-weight[:1].reshape(1, -1)],
        scale=255.0, classes=["=red", "@blue"],
    )  # fmt: skip
    (tmp_path / "photos" / "in").mkdir(parents=True)
    Image.new("RGB", (3, 2), (255, 0, 0)).save("photos/=red.png")
    Image.new("L", (3, 2), 9).save("photos/grey.png")
    Image.new("RGBA", (3, 2), (0, 0, 255, 0)).save("photos/in/b.png")
    blue = Image.new("RGBA", (3, 2), (0, 0, 255, 255))
    blue.putpixel((0, 0), (0, 0, 0, 0))
    blue.save("photos/in/blue.png")
    turned = Image.new("RGB", (2, 3), (255, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save("photos/in/turned.png", exif=exif)
    (tmp_path / "photos/in/b.png").unlink()
    found = {row.name: dict(zip(row.classes, row.probabilities, strict=True)) for row in pc.predict(net, "photos", 2)}
    assert list(found) == ["=red.png", "grey.png", "in/blue.png", "in/turned.png"]
    sigmoid = [1 / (1 + math.exp(-2 * gap)) for gap in (1, 0, -5 / 6, 1)]
    assert [one["=red"] for one in found.values()] == pytest.approx(sigmoid, abs=1e-6)
    called("predict", net, "photos", "-o", "p.csv")
    rows = list(csv.reader(Path("p.csv").read_text().splitlines()))
    assert rows[1][:2] == ["'=red.png", "'=red"]
    assert from_cell(rows[3][1]) == "@blue"
    (one,) = pc.predict(net, "photos/grey.png").rows
    assert (one.name, one.classes) == ("grey.png", ("=red",))  # of equals the first, as accuracy is counted


def test_sizes_and_depths_of_images(tmp_path: Path) -> None:
    fitted = flat(tmp_path / "s.pcn", (1, 2, 2), [[1.0] * 4, [0.0] * 4], scale=255.0, image_size=2)
    Image.new("L", (7, 5), 51).save("large.png")
    (row,) = pc.predict(fitted, "large.png").rows
    assert row.probabilities[0] == pytest.approx(1 / (1 + math.exp(-0.8)), abs=1e-6)
    exact = flat(tmp_path / "e.pcn", (1, 2, 2), [[1.0] * 4, [0.0] * 4], scale=255.0)
    assert "large.png is 7×5 pixels; this network takes 2×2: bring it to that size first" in refused(
        "predict", exact, "large.png"
    )
    deep = flat(tmp_path / "d.pcn", (1, 2, 2), [[1.0] * 4, [0.0] * 4], scale=65535.0, image_size=2)
    assert "large.png holds pixels of 8 bits" in refused("predict", deep, "large.png")
    Image.fromarray(np.full((2, 2), 13107, np.uint16)).save("deep.png")
    assert pc.predict(deep, "deep.png").rows[0].probabilities == pytest.approx(row.probabilities, abs=1e-6)


def test_arrays(tmp_path: Path) -> None:
    net = flat(tmp_path / "a.pcn", (1, 2, 2), [[1.0] * 4, [0.0] * 4, [-1.0] * 4], scale=10.0)
    raw = np.array([[[10, 10], [10, 10]], [[0, 0], [0, 1]]], np.uint8)
    wanted = torch.tensor([[4.0, 0, -4], [0.1, 0, -0.1]]).double().softmax(1)
    np.save("x.npy", raw)
    np.savez("one.npz", anything=raw)
    np.savez("more.npz", y=np.zeros(2), x=raw / 10)
    for data in ("x.npy", "one.npz", "more.npz", raw, raw / 10, torch.from_numpy(raw)):
        found = pc.predict(net, data, top=3)
        assert repr(found) == "Predictions(2 rows, classification)"
        assert [row.classes for row in found] == [("0", "1", "2")] * 2
        assert torch.allclose(torch.tensor([row.probabilities for row in found]).double(), wanted)
    np.savez("two.npz", a=raw, b=raw)
    assert "two.npz needs an array x (or x_test), or a single one; it holds a, b" in refused("predict", net, "two.npz")
    with pytest.raises(ValueError, match=r"the array: one example has shape \(1, 3, 2\); this network takes"):
        pc.predict(net, np.zeros((5, 3, 2), np.uint8))
    assert "values from 0 to 255, but this network takes integers from 0 to 10" in refused(
        "predict", net, np.save("b.npy", raw * 25 + raw // 2) or "b.npy"
    )


def test_series_and_rows(tmp_path: Path) -> None:
    """Whatever the file says of its data, the network's own shape says what an array holds."""
    weight = [[1.0] * 6, [0.0] * 6]
    for shape in ((2, 3), (6,), (1, 2, 3)):
        net = flat(tmp_path / "a.pcn", shape, weight)
        for row in pc.predict(net, np.full((2, *shape), 0.5)):
            assert row.probabilities == pytest.approx((1 / (1 + math.exp(-3)),))


def test_several_labels(tmp_path: Path) -> None:
    net = flat(tmp_path / "a.pcn", (2,), [[0, 1], [1, 0], [1, 1]], task="multi-label", classes=["dog", "cat", "pet"])
    np.save("x.npy", np.array([[1.0, -2.0], [-1.0, -1.0]], np.float32))
    first, second = pc.predict(net, "x.npy")
    assert (first.labels, second.labels) == (("cat",), ())
    assert first.classes == ("cat", "pet", "dog")
    assert first.probabilities == pytest.approx([1 / (1 + math.exp(-z)) for z in (1, -1, -2)])
    first_by_name = [first.probabilities[i] for i in (2, 0, 1)]
    assert called("predict", net, "x.npy").splitlines() == [
        "row               labels", "1            cat 73.11 %", "2    none above one half",
    ]  # fmt: skip
    called("predict", net, "x.npy", "-o", "p.csv")
    rows = list(csv.reader(Path("p.csv").read_text().splitlines()))
    assert rows[0] == ["predicted_for", "labels", "dog", "cat", "pet"]
    assert [rows[1][1], *map(float, rows[1][2:])] == ["cat", *map(pytest.approx, first_by_name)]
    assert "every label above one half is told; leave it out" in refused("predict", net, "x.npy", "--top", 2)


def test_a_class_per_pixel_is_told_in_shares(tmp_path: Path) -> None:
    weight = np.array([1.0, -1.0], np.float32).reshape(2, 1, 1, 1)
    meta = {"task": "segmentation", "classes": ["bright", "dark"]}
    net = written(tmp_path / "a.pcn", [CONV], (1, 2, 2), weight, meta)
    found = pc.predict(net, np.array([[[1, 1], [1, -1]], [[-1.0, -1], [-1, -1]]]), top=2)
    assert [(row.classes, row.probabilities) for row in found] == [
        (("bright", "dark"), (0.75, 0.25)), (("dark", "bright"), (1.0, 0.0)),
    ]  # fmt: skip
    assert found.as_csv().splitlines()[:2] == ["predicted_for,class,share,class_2,share_2", "1,bright,0.75,dark,0.25"]


def test_the_token_behind_a_text_or_a_sequence(tmp_path: Path) -> None:
    """Column i of the weight has its largest value at i + 1: after `a` comes `b`."""
    nodes = [Node("embedding", (0,), {"weight": "0.weight"}), LINEAR, Node("permute", (2,), {}, {"axes": [2, 1]})]
    table = 3 * np.roll(np.eye(256, dtype=np.float32), 1, 0)
    meta = {"task": "next-token", "vocabulary": "bytes", "context": 4}
    net = written(tmp_path / "a.pcn", nodes, (4,), table, meta, "int64")
    Path("note.txt").write_text("the alphabet: abc")
    (row,) = pc.predict(net, "note.txt").rows
    assert (row.name, row.classes) == ("note.txt", ("d",))
    assert row.probabilities == pytest.approx((math.exp(3) / (math.exp(3) + 255),))
    assert pc.predict(net, np.frombuffer(b"the abc", np.uint8)[None]).rows[0].classes == ("d",)
    Path("short.txt").write_text("abc")
    assert "short.txt: 3 bytes are too few: the network sees 4 at a time" in refused("predict", net, "short.txt")
    tokens = written(tmp_path / "t.pcn", nodes, (4,), table[:5, :5] + table[-1:, :1], {
        "task": "next-token", "tokens": 5, "pad": 0,
    }, "int64")  # fmt: skip
    found = pc.predict(tokens, np.array([[1, 2, 3, 1, 2], [4, 3, 1, 2, 0]]))
    assert [row.classes for row in found] == [("3",), ("3",)]
    assert "takes tokens of shape (4,)" in refused("predict", tokens, "note.txt")


def test_what_a_reconstruction_misses(tmp_path: Path) -> None:
    net = flat(tmp_path / "a.pcn", (2,), [[1, 0], [0, 0]], task="reconstruction")
    found = pc.predict(net, np.array([[5.0, 2.0], [1.0, 0.0]]))
    assert [row.values for row in found] == [pytest.approx((math.sqrt(2),), rel=1e-15), (0.0,)]
    assert found.targets == ("error (RMSE)",)


REFUSED = [
    ("nowhere", "'nowhere': no such file or folder, nor a data set whose test split could be taken; those are digits"),
    ("empty", "empty: no images in it or below; this network takes images of 2×2 pixels"),
    ("note.txt", "note.txt: this network takes images of 2×2 pixels; give it such data, or an array of inputs"),
    ("table.csv", "table.csv: this network takes images of 2×2 pixels"),
    ("bad.png", "bad.png is no readable image"),
    ("bad.npz", "bad.npz is no .npz file"),
    ("bad.npy", "bad.npy is no readable .npy file"),
    ("none.npy", "none.npy: no examples"),
    ("digits", "digits: one example has shape (1, 8, 8)"),
    ("empty --force", "--force goes with --csv"),
    ("empty --data-dir data", "--data-dir goes with a data set by name as DATA"),
    ("empty -o note.txt", "note.txt exists; choose another --csv, or replace it with --force"),
    ("empty -o note.txt --force", "no table of predict of this program, so --force leaves it"),
    ("empty -o nowhere/p.csv", "nowhere is no folder"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_wrong_input_is_one_line(arguments: str, message: str, tmp_path: Path) -> None:
    net = flat(tmp_path / "a.pcn", (1, 2, 2), [[1.0] * 4, [0.0] * 4], scale=255.0)
    Path("empty").mkdir()
    Path("table.csv").write_text("a,b\n1,2\n")
    np.save("none.npy", np.zeros((0, 2, 2)))
    for name in ("note.txt", "bad.png", "bad.npz", "bad.npy"):
        Path(name).write_text("hello")
    assert message in refused("predict", net, *arguments.split())


def test_wrong_tables_and_options(tmp_path: Path) -> None:
    net = flat(tmp_path / "a.pcn", (3,), [[1.0, 0.5, -0.25]], **TABLE)
    Path("t.csv").write_text("rooms\n1\n")
    assert "t.csv has no column 'colour', which the network reads" in refused("predict", net, "t.csv")
    Path("t.csv").write_text("rooms,colour\n,red\n2,red\n")
    assert "column 'rooms': 1 values are missing" in refused("predict", net, "t.csv")
    assert "this network takes tables (.csv, .tsv, .parquet)" in refused("predict", net, ".")
    assert "top 2: regression predicts numbers; leave it out" in refused("predict", net, "t.csv", "--top", 2)
    odd = flat(tmp_path / "b.pcn", (3,), [[1.0, 0.5, -0.25]], task="segmentation")
    assert "outputs of shape (1,) are none of segmentation" in refused("predict", odd, "t.csv")


def test_hostile_names_are_spelled_out(tmp_path: Path) -> None:
    net = flat(tmp_path / "a.pcn", (1, 2, 2), [[1.0] * 4, [0.0] * 4], scale=255.0, classes=["a\nb\u202e", " "])
    (tmp_path / "p").mkdir()
    Image.new("L", (2, 2), 9).save("p/\x1b[2J.png")
    told = called("predict", net, "p", "--top", 2).splitlines()[1]
    assert re.split("  +", told) == [r"'\x1b[2J.png'", r"'a\nb\u202e'", "53.52 %", "' '", "46.48 %"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.ones((2, 2))}, r"^inputs x; this network takes one without a name: give its array$"),
        (object(), r"^the inputs are a object; give an array"),
    ],
)
def test_inputs_that_are_none(data: Any, message: str, tmp_path: Path) -> None:
    net = flat(tmp_path / "a.pcn", (2,), [[1, 0], [0, 1]])
    with pytest.raises(ValueError, match=message):
        pc.predict(net, data)


def test_lists_are_arrays(tmp_path: Path) -> None:
    net, x = flat(tmp_path / "a.pcn", (2,), [[1, 0], [0, 1]]), np.array([[5.0, 2.0], [1.0, 3.0]])
    wanted = pc.predict(net, x).rows
    assert pc.predict(net, x.tolist()).rows == pc.predict(net, list(torch.from_numpy(x))).rows == wanted
    with pytest.raises(ValueError, match=r"is a folder; give the \.pcn file in it"):
        pc.load(tmp_path)
