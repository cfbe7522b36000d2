"""Several named outputs with a loss each: from arrays with names to a file, its predictions and its exports."""

from __future__ import annotations

import csv
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import pyro_compress as pc
from pyro_compress.bayes.model import likelihood
from pyro_compress.cli.main import main
from pyro_compress.data.several import task_named
from pyro_compress.data.sources import splits_from
from pyro_compress.data.splits import load_splits
from pyro_compress.data.tasks import TASKS
from pyro_compress.metrics import evaluate, scores_of
from pyro_compress.networks.outputs import with_one_output
from pyro_compress.outputs import outputs_from, outputs_of

OUTPUTS = outputs_from({"kind": ("classification", 3), "marks": ("multi-label", 2), "size": ("regression", 2)})


def drawn(examples: int = 7) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """Outputs and labels of each, and of all in a row."""
    torch.manual_seed(0)
    found = {one.name: torch.randn(examples, one.size, dtype=torch.float64) for one in OUTPUTS.each}
    labels = {
        "kind": torch.randint(0, 3, (examples,)),
        "marks": torch.randint(0, 2, (examples, 2)).double(),
        "size": torch.randn(examples, 2, dtype=torch.float64),
    }
    y = torch.cat([one.reshape(examples, -1).double() for one in labels.values()], 1)
    return found, labels, torch.cat([*found.values()], 1), y


def test_a_task_is_the_sum_of_its_parts() -> None:
    found, labels, outputs, y = drawn()
    task = task_named(OUTPUTS.task)
    own = [(TASKS[one.task], found[one.name], labels[one.name]) for one in OUTPUTS.each]
    for name, noise in (("loss", 0.7), ("log_likelihood", 0.7), ("log_likelihood", None)):
        wanted = sum(getattr(one, name)(part, label, noise) for one, part, label in own)
        torch.testing.assert_close(getattr(task, name)(outputs, y, noise), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(task.predicted(outputs), torch.cat([one.predicted(part) for one, part, _ in own], 1))
    distribution = likelihood(OUTPUTS.task, outputs, torch.tensor(0.7, dtype=torch.float64).log())
    torch.testing.assert_close(distribution.log_prob(y), task.log_likelihood(outputs, y, 0.7), rtol=1e-12, atol=1e-12)
    assert distribution.sample().shape == y.shape == task.sample(outputs, 0.7).shape
    assert task.noisy
    assert task.uniform_nats(7) == pytest.approx(sum(TASKS[one.task].uniform_nats(one.size) for one in OUTPUTS.each))


def test_networks_are_mixed_output_by_output() -> None:
    """Of classes the probabilities, of numbers the densities."""
    many = [drawn()[0], {name: one.flip(0) for name, one in drawn()[0].items()}]
    _, labels, _, y = drawn()
    task = task_named(OUTPUTS.task)
    mixed = task.mixture([torch.cat([*one.values()], 1) for one in many])
    nats = [
        TASKS[one.task].log_likelihood(
            TASKS[one.task].mixture([each[one.name] for each in many]), labels[one.name], 0.7
        )
        for one in OUTPUTS.each
    ]
    torch.testing.assert_close(task.log_likelihood(mixed, y, 0.7), sum(nats), rtol=1e-12, atol=1e-12)
    scores = scores_of(OUTPUTS.task)(mixed, y, (), 0.7)
    assert scores.nll_nats == pytest.approx(-float(sum(nats).mean()), rel=1e-9)


def test_directions_have_the_fisher_information_as_their_products() -> None:
    """20,000 draws: within 5 standard errors of the exact matrix, blocks apart from each other."""
    *_, outputs, _ = drawn(1)
    task, generator = task_named(OUTPUTS.task), torch.Generator().manual_seed(1)
    rows = task.fisher(outputs.expand(20_000, -1), 0.5, generator)[:, 0]
    found = rows.T @ rows / len(rows)
    p, q = outputs[0, :3].softmax(0), outputs[0, 3:5].sigmoid()
    exact = torch.block_diag(p.diag() - p[:, None] * p, (q * (1 - q)).diag(), torch.eye(2).double() / 0.25)
    errors = ((rows[:, :, None] * rows[:, None]).std(0) / len(rows) ** 0.5).clamp(min=1e-12)
    assert ((found - exact).abs() / errors).max() < 5


def test_divergences_add_up() -> None:
    *_, outputs, _ = drawn(6)
    others, task = outputs.flip(0), task_named(OUTPUTS.task)
    parts = zip(OUTPUTS.each, OUTPUTS.columns, strict=True)
    wanted = sum(float(TASKS[one.task].divergence(outputs[:, at], others[:, at], 0.7)) for one, at in parts)
    assert float(task.divergence(outputs, others, 0.7)) == pytest.approx(wanted)
    assert wanted > 0.1


def test_constant_answers_are_those_of_each() -> None:
    _, labels, _, y = drawn(40)
    constant = task_named(OUTPUTS.task).constant(y)
    frequencies = labels["kind"].bincount(minlength=3) / 40
    torch.testing.assert_close(constant[0, :3].softmax(0), frequencies.float())
    torch.testing.assert_close(constant[0, 5:], labels["size"].mean(0).float())


@pytest.mark.parametrize(
    "task",
    ["b=regression:1+a=regression:1", "a=regression:0", "a=tagging:3", "a=regression:1+a=regression:1", "a=regression",
     "=regression:1", "__a=regression:1", "a=classification:9999999", "a=regression:1+"],
)  # fmt: skip
def test_names_that_spell_no_outputs(task: str) -> None:
    with pytest.raises(ValueError, match=r"^(several outputs|an output|output|one of)"):
        outputs_of(task)


def test_a_name_spells_its_outputs() -> None:
    assert OUTPUTS.task == "kind=classification:3+marks=multi-label:2+size=regression:2"
    assert outputs_of(OUTPUTS.task) == OUTPUTS
    assert outputs_of("classification") is None


@functools.cache
def examples() -> dict[str, np.ndarray]:
    """Four inputs; a class by name, a number in its own unit, two labels, all of them told by the inputs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((700, 4)).astype(np.float32)
    kind = np.array(["cat", "dog", "elk"])[np.digitize(x[:, 0], [-0.4, 0.4])]
    size = (40 + 10 * (x[:, 1] - x[:, 2])).astype(np.float64)
    marks = np.stack([x[:, 1] > 0, x[:, 2] > 0], 1).astype(np.int64)
    parts = {"train": slice(500), "test": slice(500, 700)}
    labels = {"kind": kind, "size": size, "marks": marks}
    return {f"x_{part}": x[where] for part, where in parts.items()} | {
        f"y_{part}.{name}": array[where] for part, where in parts.items() for name, array in labels.items()
    }


def saved(path: Path, **changed: Any) -> Path:
    arrays = {name: array for name, array in (examples() | changed).items() if array is not None}
    np.savez(path, **arrays)
    return path


class Three(nn.Module):
    """A dict of outputs, one of them without a dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 24), nn.ReLU())
        self.kind, self.size, self.marks = nn.Linear(24, 3), nn.Linear(24, 1), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        return {"size": self.size(y)[:, 0], "kind": self.kind(y), "marks": self.marks(y)}


def test_arrays_with_names_become_rows_of_labels(tmp_path: Path) -> None:
    splits = load_splits(str(saved(tmp_path / "a.npz")))
    assert splits.task == "kind=classification:3+marks=multi-label:2+size=regression:1"
    assert splits.classes == ("cat", "dog", "elk", "0", "1")
    assert splits.output_shape == (6,)
    (size,) = splits.targets
    assert size.name == "size"
    together = torch.cat([splits.train.y, splits.validation.y])
    assert sorted((together[:, 3] * size.std + size.mean).tolist()) == pytest.approx(
        sorted(examples()["y_train.size"].tolist()), rel=1e-5
    )
    assert float(splits.train.y[:, 3].mean()) == pytest.approx(0, abs=1e-5)
    counts = splits.train.y[:, 0].long().bincount() + splits.validation.y[:, 0].long().bincount()
    assert counts.tolist() == [int((examples()["y_train.kind"] == name).sum()) for name in ("cat", "dog", "elk")]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"y_train": np.zeros(500, int)}, "has an array y_train beside y_train.NAME: one output, or several with names"),
    ({"y_test.size": None}, "y_test has kind, marks; wanted are labels for kind, marks, size"),
    ({"y_train.size": np.zeros(3)}, "y_train.size: 3 labels for 500 examples"),
    ({"y_train.marks": np.full((500, 2), 7)}, "y_train.marks"),
    ({"y_test.kind": np.array(["yak"] * 200)}, "yak"),
    ({"y_test.size": np.zeros((200, 2))}, "they have 1, 2 columns; all must have the same number"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG)
def test_labels_that_fit_nothing_are_one_line(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(str(saved(tmp_path / "a.npz", **changed)))


class Odd(Three):
    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def forward(self, x: Tensor) -> Any:
        return self.found(super().forward(x))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            lambda y: tuple(y.values()),
            "forward returns a tuple; the data have labels for kind, marks, size: return a dict",
        ),
        (lambda y: {"kind": y["kind"]}, "forward returns kind; the data have labels for kind, marks, size"),
        (
            lambda y: y | {"kind": y["kind"][:, :2]},
            r"returns kind with 2 values; the data want 3 \(class",
        ),
    ],
)
def test_networks_that_return_something_else(found: Any, message: str) -> None:
    outputs = outputs_from({"kind": ("classification", 3), "marks": ("multi-label", 2), "size": ("regression", 1)})
    with pytest.raises(ValueError, match=message):
        with_one_output(Odd(found), outputs)(torch.zeros(2, 4))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_from_a_fit_to_predictions_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class by its name, a number in its unit, labels: what evaluate says is what predict's table holds."""
    monkeypatch.chdir(tmp_path)
    saved(Path("a.npz"))
    Path("net_of_three.py").write_text("from test_several import Three\n\n\ndef net():\n    return Three()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    fit = ("fit", "--data", "a.npz", "--net", "net_of_three:net", "--prior", "log-uniform", "--epochs", "12")
    run(*fit, "--batch-size", "50", "--lr", "0.01", "--device", "cpu", "--out", "run")
    told = run("compress", "run", "--tolerance", "0.05")
    assert "kind: accuracy" in told
    said = run("evaluate", "run/network.pcn")
    np.savez(
        "more.npz", x=examples()["x_test"], **{f"y.{n}": examples()[f"y_test.{n}"] for n in ("kind", "size", "marks")}
    )
    assert run("evaluate", "run/network.pcn", "--data", "more.npz").split(": ", 1)[1] == said.split(": ", 1)[1]
    assert json.loads(run("evaluate", "run/network.pcn", "--json"))["parts"]["kind"]["accuracy"] > 0.85
    run("fit", "--config", "run/config.toml", "--epochs", "3", "--out", "again")
    run("predict", "run/network.pcn", "a.npz", "--csv", "out.csv")
    rows = list(csv.DictReader(io.StringIO(Path("out.csv").read_text())))
    assert list(rows[0]) == [
        "predicted_for", "kind, class", "kind, probability", "marks, labels", "marks, 0", "marks, 1", "size",
        "size, noise std",
    ]  # fmt: skip
    right = np.mean([row["kind, class"] for row in rows] == examples()["y_test.kind"])
    gap = np.array([float(row["size"]) for row in rows]) - examples()["y_test.size"]
    assert f"kind: accuracy {100 * right:.2f} %" in said
    assert f"size: RMSE {np.sqrt((gap**2).mean()):.5g}" in said
    assert right > 0.85
    assert "output kind" in run("info", "run/network.pcn")
    run("export", "run/network.pcn", "-o", "net.onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession("net.onnx")
    assert [one.name for one in session.get_outputs()] == ["outputs", "kind", "marks", "size"]
    row, kind, marks, size = session.run(None, {session.get_inputs()[0].name: examples()["x_test"]})
    np.testing.assert_array_equal(row, np.concatenate([kind, marks, size], 1))
    assert [("cat", "dog", "elk")[i] for i in kind.argmax(1)] == [row["kind, class"] for row in rows]


def test_labels_with_names_are_none_of_a_network_with_one_output(tmp_path: Path) -> None:
    from pyro_compress.data.splits import load_examples
    from pyro_compress.settings import ReadConfig

    with pytest.raises(ValueError, match=r"this network has one output, for classification: give y_test$"):
        load_examples(saved(tmp_path / "a.npz"), reading=ReadConfig())


def test_a_resumed_configuration_finds_its_outputs_again(tmp_path: Path) -> None:
    """The spelled task of a run reads the same data, and refuses others."""
    from pyro_compress.settings import ReadConfig

    splits = load_splits(str(saved(tmp_path / "a.npz")))
    again = load_splits(str(tmp_path / "a.npz"), reading=ReadConfig(task=splits.task))
    assert torch.equal(again.test.y, splits.test.y)
    other = saved(tmp_path / "b.npz", **{f"y_{part}.size": None for part in ("train", "test")})
    with pytest.raises(ValueError, match="wanted are labels for kind, marks, size"):
        load_splits(str(other), reading=ReadConfig(task=splits.task))
    found = evaluate(lambda x: torch.zeros(len(x), 6), splits, "test")
    assert set(found.parts) == {"kind", "marks", "size"}


def test_labels_by_name_in_python() -> None:
    """Arrays, and a data set that gives one example at a time: the same splits."""
    x = examples()["x_train"]
    labels = {name: examples()[f"y_train.{name}"] for name in ("kind", "size", "marks")}
    whole = splits_from((x, labels))
    assert whole.task == "kind=classification:3+marks=multi-label:2+size=regression:1"
    assert whole.sizes == {"train": 266, "validation": 134, "test": 100}
    rows = [(x[i], {name: array[i] for name, array in labels.items()}) for i in range(len(x))]
    assert torch.equal(splits_from(rows).train.y, whole.train.y)
    with pytest.raises(ValueError, match=r"got rows of inputs 500, of targets \(kind: 500, size: 3, marks: 500\)"):
        splits_from((x, labels | {"size": np.zeros(3)}))
    fitted = pc.fit(Three(), (x, labels), prior="log-uniform", epochs=2, device="cpu")
    assert fitted.posterior.task == fitted.splits.task == whole.task
    assert fitted.posterior.noise
