"""Data sets, splits and what is refused."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_compress.data.splits import (
    DATASETS,
    PREPROCESSING,
    load_examples,
    load_splits,
    preprocessing,
    preprocessing_meta,
    preprocessing_of,
)
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Preprocessing, Splits


def test_digits_are_the_uci_digits(digits: Splits) -> None:
    assert digits.sizes == {"train": 1197, "validation": 240, "test": 360}
    assert digits.input_shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert float(digits.train.x.min()) == 0
    assert float(digits.train.x.max()) == 1


def test_splits_are_stratified_fixed_and_disjoint(digits: Splits) -> None:
    again = load_splits("digits")
    rows = {name: {row.numpy().tobytes() for row in getattr(digits, name).x} for name in digits.sizes}
    assert not rows["train"] & rows["validation"]
    assert not rows["train"] & rows["test"]
    assert rows["validation"] == {row.numpy().tobytes() for row in again.validation.x}
    counts = digits.validation.y.bincount()
    assert counts.min() >= 22
    assert counts.max() <= 26


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_torchvision_sets(name: str, mnist_dir: str) -> None:
    splits = load_splits(name, mnist_dir)
    assert splits.sizes == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert splits.input_shape == (1, 28, 28)
    assert len(splits.classes) == 10
    assert 0.1 < float(splits.train.x.mean()) < 0.3


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.random((40, 6, 5)), "y_train": np.arange(40) % 4,
        "x_test": rng.random((20, 6, 5)), "y_test": np.arange(20) % 4,
    }  # fmt: skip
    return {name: value for name, value in (good | changes).items() if value is not None}


def saved(path: Path, **changes: np.ndarray | None) -> str:
    np.savez(path, **arrays(**changes))
    return str(path)


def test_npz(tmp_path: Path) -> None:
    splits = load_splits(saved(tmp_path / "a.npz"), validation=0.25)
    assert splits.sizes == {"train": 30, "validation": 10, "test": 20}
    assert splits.input_shape == (1, 6, 5)  # a channel is added
    images = (arrays()["x_train"] * 255).astype(np.uint8)
    splits = load_splits(saved(tmp_path / "b.npz", x_train=images), validation=0.25)
    assert float(splits.train.x.max()) <= 1  # bytes are scaled


NAN = np.full((40, 6, 5), np.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "has no array y_test; it holds x_train, y_train, x_test"),
        ({"y_train": np.arange(39) % 4}, "40 examples but 39 labels"),
        ({"x_train": NAN}, r"x_train: 1200 values are NaN or infinite .*, the first in row 1, place \(1, 1\)"),
        ({"y_train": np.arange(40) / 4}, "labels must be whole numbers or names, row 2 has 0.25; .* --task regression"),
        ({"y_train": np.zeros((40, 2, 2), int)}, r"labels must be .* got int64 of shape \(40, 2, 2\)"),
        ({"x_train": np.array(["a"] * 40)}, "must be real numbers"),
        ({"x_test": np.zeros((20, 7))}, "they must agree"),
        ({"x_test": (arrays()["x_test"] * 255).astype(np.uint8)}, "float64, others bytes to be divided by 255; store"),
        ({"x_train": arrays()["x_train"] + 1j}, "must be real numbers"),
        ({"x_train": np.array(["2020-01-01"] * 40, "M8[D]")[:, None]}, "must be real numbers"),
        ({"x_train": np.zeros((40, 0))}, r"examples of shape \(0,\) hold no values"),
        ({"x_train": np.zeros(40)}, r"must be real numbers of shape \(n, ...\), got float64 of shape \(40,\)"),
        ({"y_test": np.full(20, 9)}, r"y_test holds class '9' \(row 1\); .*y_train shows 0, 1, 2, 3"),
        ({"y_train": np.arange(40)}, "no stratified validation split"),
        ({"x_train": np.zeros((0, 3)), "y_train": np.zeros(0, int)}, "no examples"),
        ({"x_train": np.array([{}] * 40, object)}, "array x_train holds Python objects, and nothing is unpickled"),
    ],
)
def test_bad_npz(changes: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(saved(tmp_path / "bad.npz", **changes))


X = np.random.default_rng(1).random((40, 6))
KINDS = {
    "float64": X, "float32": X.astype(np.float32), "float16": X.astype(np.float16), "big-endian": X.astype(">f4"),
    "columns first": np.asfortranarray(X), "int8": (X * 9 - 5).astype(np.int8), "uint16": (X * 90).astype(np.uint16),
    "uint32": (X * 90).astype(np.uint32), "int64": (X * 90).astype(np.int64), "bools": X > 0.5,
    "bytes of 0 and 1": (X > 0.5).astype(np.uint8), "bytes": (X * 255).astype(np.uint8),
}  # fmt: skip


def as_files(path: Path, values: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    for name, one in values.items():
        np.save(path / f"{name}.npy", one)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_number_is_read_alike_from_memory_and_disk(kind: str, tmp_path: Path) -> None:
    """Bytes are divided by 255 unless they only say yes and no; all other numbers are taken as they are."""
    x = KINDS[kind]
    values = arrays(x_train=x, x_test=x[:20])
    np.savez(tmp_path / "a.npz", **values)
    folder = as_files(tmp_path / "files", values)
    wanted = torch.from_numpy(x.astype("f4", order="C")) / (255 if kind == "bytes" else 1)
    for source, memory in ((tmp_path / "a.npz", 9.0), (folder, 9.0), (folder, 0.0)):
        splits = load_splits(str(source), reading=ReadConfig(in_memory_mib=memory, workers=0))
        assert torch.equal(splits.test.x[:], wanted[:20])
        assert splits.scale == (255 if kind == "bytes" else 1)
    assert torch.equal(load_examples(tmp_path / "a.npz", preprocessing(splits)).x, wanted[:20])


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_what_is_no_number_is_found_in_every_split_in_memory_and_on_disk(
    part: str, value: float, tmp_path: Path
) -> None:
    values = arrays(x_train=X, x_test=X[:20]) | {"x_val": X[:20], "y_val": np.arange(20) % 4}
    values[f"x_{part}"] = broken = values[f"x_{part}"].copy()
    broken[17, 3] = value
    np.savez(tmp_path / "a.npz", **values)
    folder = as_files(tmp_path / "files", values)
    called = "validation" if part == "val" else part
    for source, memory in ((tmp_path / "a.npz", 9.0), (folder, 9.0), (folder, 0.0)):
        with pytest.raises(ValueError, match=rf"x_{called}: 1 values are NaN .* the first in row 18, column 4$"):
            load_splits(str(source), reading=ReadConfig(in_memory_mib=memory))


def test_a_validation_split_of_one_s_own(tmp_path: Path) -> None:
    values = arrays() | {"x_val": arrays()["x_test"], "y_val": np.zeros(20, int)}
    np.savez(tmp_path / "a.npz", **values)
    for source in (tmp_path / "a.npz", as_files(tmp_path / "files", values)):
        splits = load_splits(str(source))
        assert splits.sizes == {"train": 40, "validation": 20, "test": 20}
        assert not splits.validation.y.any()
        with pytest.raises(ValueError, match=r"its own validation split: leave out --validation 0\.2"):
            load_splits(str(source), validation=0.2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"x_train": np.ones_like(X)}, "all inputs are the same number"),
        (
            {"x_train": np.zeros((40, 9, 8, 3)) + X[:40, :1, None, None], "x_test": np.zeros((20, 9, 8, 3))},
            r"shape \(9, 8, 3\) look like images whose colours come last; here they come first, \(3, 9, 8\)",
        ),
        ({"x_test": X[:20]}, "the test examples are training examples too"),
        ({"x_test": X[-20:]}, "test scores are those of rows that were fitted"),
        ({"x_train": (X * 255).astype(np.int64)}, "inputs reach 25. and are taken as they are"),
        ({"x_train": (X * 20).astype(np.uint8)}, "bytes of at most 19 are divided by 255"),
        ({"classes": np.array(list("abcde"))}, "class 'e' has no training example"),
    ],
)
def test_doubtful_inputs_are_said(changes: dict[str, np.ndarray], said: str, tmp_path: Path, caplog) -> None:
    values = {"x_train": X, "x_test": X[19::-1]} | changes
    with caplog.at_level(logging.WARNING, "pyro_compress"):
        load_splits(saved(tmp_path / "a.npz", **values))
    assert re.search(said, caplog.text)
    assert bool(caplog.text) == bool(said)


def test_arrays_of_other_programs(tmp_path: Path) -> None:
    """Names in capitals; an array of objects that nobody asks for."""
    values = {name.upper() if name.startswith("x") else name: value for name, value in arrays().items()}
    np.savez(tmp_path / "A.NPZ", **values, notes=np.array([{}], object))
    (tmp_path / "A.NPZ.npz").rename(tmp_path / "A.NPZ")
    assert load_splits(str(tmp_path / "A.NPZ")).sizes["test"] == 20


def test_examples_for_evaluation(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 6, 5)), y=np.arange(3))
    assert len(load_examples(tmp_path / "a.npz")) == 3
    assert len(load_examples(Path(saved(tmp_path / "b.npz")))) == 20
    np.savez(tmp_path / "c.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="needs arrays x and y"):
        load_examples(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("mnits", f"unknown data set 'mnits'; allowed: {', '.join(DATASETS)}"),
        ("mnist", r"MNIST not found: its files belong in .*raw.*--download"),
        ("none.npz", "no such file"),
    ],
)
def test_missing_data(data: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(data, str(tmp_path / "empty"))


def test_a_text_file_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"is no \.npz file"):
        load_splits(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_bad_validation_share(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        load_splits("digits", validation=share)


@pytest.mark.parametrize(("name", "scale"), [("digits", 16.0), ("mnist", 255.0), ("fashion-mnist", 255.0)])
def test_what_a_name_says_of_a_data_set(name: str, scale: float, request: pytest.FixtureRequest) -> None:
    """The table that files rely on, held against the data themselves."""
    folder = "" if name == "digits" else request.getfixturevalue("mnist_dir")
    splits = load_splits(name, folder)
    assert PREPROCESSING[name] == Preprocessing(scale, splits.classes)
    raw = splits.train.x * splits.scale
    assert torch.allclose(raw, raw.round(), atol=1e-4)
    assert raw.max() == splits.scale == scale
    assert preprocessing_meta(name, splits) == {}
    assert preprocessing_of({"data": name}) == PREPROCESSING[name]


@pytest.mark.parametrize(
    ("dtype", "names", "meta"),
    [
        (np.uint8, ("cat", "dog"), {"scale": 255.0, "classes": ["cat", "dog"]}),
        (np.uint8, (), {"scale": 255.0}),
        (np.float32, (), {}),
    ],
)
def test_own_data_tell_their_scaling_and_names(dtype: type, names: tuple[str, ...], meta: dict, tmp_path: Path) -> None:
    x = (np.arange(40 * 5).reshape(40, 5) % 200).astype(dtype)
    y = np.arange(40) % 2
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y, **({"classes": names} if names else {}))
    splits = load_splits(str(tmp_path / "own.npz"))
    assert preprocessing_meta("own.npz", splits) == meta
    known = preprocessing_of({"data": "own.npz"} | meta)
    assert (known.scale, known.classes) == (meta.get("scale", 1.0), names)


def test_raw_values_cannot_pass_for_scaled_ones(tmp_path: Path) -> None:
    raw = np.array([[0, 200], [255, 1]])
    for x in (raw.astype(np.uint8), raw, (raw / 255).astype(np.float32)):
        np.savez(tmp_path / "x.npz", x=x, y=np.array([0, 1]))
        assert torch.allclose(
            load_examples(tmp_path / "x.npz", Preprocessing(255.0, ())).x, torch.tensor(raw / 255).float()
        )
    np.savez(tmp_path / "x.npz", x=raw.astype(np.float32), y=np.array([0, 1]))
    with pytest.raises(ValueError, match="values from 0 to 255, but this network takes integers from 0 to 255, or"):
        load_examples(tmp_path / "x.npz", Preprocessing(255.0, ()))
    np.savez(tmp_path / "x.npz", x=raw - 300, y=np.array([0, 1]))
    with pytest.raises(ValueError, match="values from -300"):
        load_examples(tmp_path / "x.npz", Preprocessing(255.0, ()))
