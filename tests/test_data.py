"""Data sets, splits and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from pyro_compress.data import DATASETS, load_examples, load_splits
from pyro_compress.types import Splits


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
        ({"x_train": NAN}, "1200 values are NaN or infinite"),
        ({"y_train": np.arange(40) / 4}, "labels must be integers"),
        ({"y_train": np.arange(40) - 5}, "labels must be integers"),
        ({"x_train": np.array(["a"] * 40)}, "must be real numbers"),
        ({"x_test": np.zeros((20, 7))}, "they must agree"),
        ({"y_test": np.full(20, 9)}, "y_test holds class 9"),
        ({"y_train": np.arange(40)}, "no stratified validation split"),
        ({"x_train": np.zeros((0, 3)), "y_train": np.zeros(0, int)}, "no examples"),
        ({"x_train": np.array([{}] * 40, object)}, "no readable .npz"),
    ],
)
def test_bad_npz(changes: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(saved(tmp_path / "bad.npz", **changes))


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
    with pytest.raises(ValueError, match=r"no readable \.npz"):
        load_splits(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_bad_validation_share(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        load_splits("digits", validation=share)
