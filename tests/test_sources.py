"""Examples as Python programs have them: every kind gives the same splits, those of the file that would hold them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

from pyro_compress.data.sources import Takes, splits_from
from pyro_compress.data.splits import load_splits
from pyro_compress.settings import ReadConfig

X = torch.arange(1200, dtype=torch.float32).reshape(300, 4) / 1200
Y = torch.arange(300) % 3


class Squares(Dataset):
    """A data set without the arrays behind it."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return X[row], int(Y[row])


class Columns:
    """What a Hugging Face data set looks like."""

    column_names = ("values", "label")
    features = {"label": SimpleNamespace(names=["red", "green", "blue"])}  # noqa: RUF012 - as theirs

    def __iter__(self):
        return ({"values": x.tolist(), "label": int(y)} for x, y in zip(X, Y, strict=True))


KINDS = {
    "tensors": (X, Y),
    "arrays": (X.numpy(), Y.numpy()),
    "list": [X, Y],
    "names": {"x": X, "y": Y},
    "tensor data set": TensorDataset(X, Y),
    "data set": Squares(),
    "examples": [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "examples with names": [{"x": x, "target": int(y)} for x, y in zip(X, Y, strict=True)],
    "loader": DataLoader(Squares(), 32),
    "shuffled loader": DataLoader(Squares(), 32, shuffle=True, drop_last=True),
    "columns": Columns(),
    "whole numbers of floats": (X.double(), Y.to(torch.int32)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_splits(kind: str) -> None:
    wanted, found = splits_from((X, Y)), splits_from(KINDS[kind])
    assert found.sizes == {"train": 160, "validation": 80, "test": 60}
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(found, part).x, getattr(wanted, part).x)
        assert torch.equal(getattr(found, part).y, getattr(wanted, part).y)
    assert found.classes == (("red", "green", "blue") if kind == "columns" else ("0", "1", "2"))
    held = [row for part in (found.train, found.validation, found.test) for row in part.x[:, 0].tolist()]
    assert sorted(held) == X[:, 0].tolist()


def test_splits_that_are_given_are_those_of_a_file(tmp_path: Path) -> None:
    given = {"train": (X[:200], Y[:200]), "val": (X[200:250], Y[200:250]), "test": (X[250:], Y[250:])}
    np.savez(
        tmp_path / "data.npz",
        **{f"{n}_{part}": array for part, pair in given.items() for n, array in zip("xy", pair, strict=True)},
    )
    wanted = load_splits(str(tmp_path / "data.npz"))
    for found in (splits_from(given["train"], given["val"], given["test"]), splits_from(given)):
        for part in ("train", "validation", "test"):
            assert torch.equal(getattr(found, part).x, getattr(wanted, part).x)
            assert torch.equal(getattr(found, part).y, getattr(wanted, part).y)
    shared = splits_from(given["train"], 0.25, given["test"])
    assert shared.sizes == {"train": 150, "validation": 50, "test": 50}


def test_several_inputs_lie_in_one_row_and_bytes_are_divided() -> None:
    pixels, words = torch.arange(1200, dtype=torch.int64).reshape(300, 4).to(torch.uint8), Y[:, None].repeat(1, 2)
    found = splits_from({"words": words, "pixels": pixels, "labels": Y})
    assert [(one.name, one.shape, one.kind) for one in found.inputs] == [
        ("pixels", (4,), "float32"), ("words", (2,), "int64"),
    ]  # fmt: skip
    row = found.train.x[5]
    assert row[4:].tolist() == [float(found.train.y[5])] * 2
    assert float(row[0] * 255) == pytest.approx(round(float(row[0] * 255)), abs=1e-4)
    assert torch.equal(splits_from(({"words": words, "pixels": pixels}, Y)).train.x, found.train.x)


@pytest.mark.parametrize("kind", ["tensors", "pair", "data set", "loader", "nested loader", "examples"])
def test_several_inputs_without_names_are_those_of_forward_in_order(kind: str) -> None:
    words = Y[:, None].repeat(1, 2)
    nested = [((x, w), int(y)) for x, w, y in zip(X, words, Y, strict=True)]
    given = {
        "tensors": (X, words, Y),
        "pair": ((X, words), Y),
        "data set": TensorDataset(X, words, Y),
        "loader": DataLoader(TensorDataset(X, words, Y), 20),
        "nested loader": DataLoader(nested, 20),
        "examples": nested,
    }[kind]
    wanted = splits_from({"b": X, "a": words, "y": Y})
    found = splits_from(given, takes=Takes(("b", "a")))
    assert found.inputs == wanted.inputs
    assert torch.equal(found.train.x, wanted.train.x)
    with pytest.raises(ValueError, match="train"):
        splits_from(given)


def test_a_sampler_of_some_rows_gives_those() -> None:
    loader = DataLoader(Squares(), 16, sampler=SubsetRandomSampler(range(0, 300, 2)))
    found = splits_from(loader)
    assert sum(found.sizes.values()) == 150
    assert splits_from(Subset(Squares(), range(150))).sizes == found.sizes


@pytest.mark.parametrize(
    ("y", "task", "wanted"),
    [
        (X[:, :1] * 3, "", "regression"),
        (Y, "", "classification"),
        ((Y[:, None] == torch.arange(3)).long(), "multi-label", "multi-label"),
        (Y.float(), "classification", "classification"),
    ],
)
def test_the_task_is_told_by_the_targets(y: torch.Tensor, task: str, wanted: str) -> None:
    assert splits_from((X, y), task=task).task == wanted


def test_tokens_are_those_of_the_networks_embedding() -> None:
    words = torch.arange(900).reshape(300, 3) % 7
    assert splits_from((words, Y), takes=Takes(vocabulary=7)).tokens == 7
    assert splits_from((words, Y)).tokens == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "train is a int; give"),
        ((X, Y[:7]), "got rows of inputs 300, of targets 7$"),
        ({"x": X}, "it needs inputs, and targets under one of the names y, label"),
        ([(X[0], X[0], 1)] * 4, "train gives 3 values at a time; it must give"),
        ([(X[0], 1), (X[0, :2], 0)], r"inputs: examples of different shapes, \(2,\), \(4,\)"),
        ((X, Y[:, None].repeat(1, 2)), r"targets of shape \(300, 2\) are no class per example"),
        ((X[:0], Y[:0]), "no examples"),
        (([["a", None]], [0]), "holds list of different shapes or kinds"),
        ("nowhere", "unknown data set 'nowhere'"),
    ],
)
def test_what_is_no_data(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splits_from(given)


def test_more_than_memory_may_hold() -> None:
    with pytest.raises(ValueError, match=r"train: more than 0.001 MiB; write them as x_train.npy"):
        splits_from(Squares(), reading=ReadConfig(in_memory_mib=0.001))
    with pytest.raises(ValueError, match="brings its own splits"):
        splits_from("digits", test=(X, Y))


def test_values_that_are_none_are_named_by_the_row_that_was_given() -> None:
    x, y = X.clone(), Y.float()
    x[300 - 2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"^train: inputs: 1 values are NaN or infinite .* in row 299, column 2$"):
        splits_from((x, Y))
    y[5] = torch.inf
    with pytest.raises(ValueError, match=r"^train: targets: 1 values are NaN or infinite .* in row 6$"):
        splits_from((X, y))
