"""Labels as people have them: which classes they make, what is said, and the way back to the labels that were given."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pyro_compress.cli.main import main
from pyro_compress.data.labels import doubts, read_labels
from pyro_compress.data.splits import (
    before,
    load_examples,
    load_splits,
    preprocessing,
    preprocessing_meta,
    preprocessing_of,
)
from pyro_compress.deploy.standalone import Runner
from pyro_compress.runs.folder import load_run
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Preprocessing

PLACE = np.arange(60) % 3
CODES = np.array([10115, 20095, 99999])[PLACE]
KINDS = {
    "from 0": (PLACE, "0 1 2"),
    "(n, 1)": (PLACE[:, None], "0 1 2"),
    "big-endian": (PLACE.astype(">i4"), "0 1 2"),
    "bytes": (PLACE.astype(np.uint8), "0 1 2"),
    "unsigned": (PLACE.astype(np.uint64) + 2**63, f"{2**63} {2**63 + 1} {2**63 + 2}"),
    "whole floats": (PLACE.astype(np.float16), "0 1 2"),
    "from 1": (PLACE + 1, "1 2 3"),
    "negative": (PLACE - 1, "-1 0 1"),
    "codes": (CODES, "10115 20095 99999"),
    "codes as floats": (CODES.astype(np.float64), "10115 20095 99999"),
    "codes as column": (CODES[:, None], "10115 20095 99999"),
    "beyond float64": (PLACE + 2**60, f"{2**60} {2**60 + 1} {2**60 + 2}"),
    "one-hot": (np.eye(3)[PLACE], "0 1 2"),
    "one-hot bools": (np.eye(3, dtype=bool)[PLACE], "0 1 2"),
    "bools": (PLACE > 0, "False True"),
    "texts": (np.array(["cat", "dog", "an owl"])[PLACE], "an owl cat dog"),
    "encoded": (np.char.encode(np.array(["ä", "b", "c"])[PLACE], "utf-8"), "b c ä"),
    "numbers as texts": (np.array(["7", "07", "10"])[PLACE], "07 10 7"),
    "no decimal numbers": (np.array(["²", "--1", "٣"])[PLACE], "--1 ² ٣"),
}
TRUTH = {
    "bools": (PLACE > 0).astype(int),
    "texts": np.array([1, 2, 0])[PLACE],
    "encoded": np.array([2, 0, 1])[PLACE],
    "numbers as texts": np.array([2, 0, 1])[PLACE],
    "no decimal numbers": np.array([1, 0, 2])[PLACE],
}
"""Places of the labels where they are not `PLACE`."""


def saved(path: Path, y: np.ndarray, **more: np.ndarray) -> Path:
    """A file whose inputs are as many as its labels."""
    x = np.random.default_rng(0).normal(size=(len(y), 4))
    np.savez(path, **{"x_train": x, "y_train": y, "x_test": x[:30], "y_test": y[:30]} | more)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_label_names_its_classes(kind: str, tmp_path: Path) -> None:
    """Trained, written into a file's metadata and read back, found again in data given later."""
    y, names = KINDS[kind]
    path = saved(tmp_path / "a.npz", y)
    splits = load_splits(str(path), validation=0.25)
    assert " ".join(splits.classes) == names
    assert torch.equal(splits.test.y, torch.from_numpy(TRUTH.get(kind, PLACE)[:30]))
    known = preprocessing_of({"data": str(path)} | json.loads(json.dumps(preprocessing_meta(str(path), splits))))
    assert known.classes == (() if names == "0 1 2" else splits.classes)
    assert torch.equal(load_examples(path, preprocessing(splits)).y, splits.test.y)
    few = load_splits(str(saved(tmp_path / "few.npz", y[TRUTH.get(kind, PLACE) > 0])), known=preprocessing(splits))
    assert few.classes == splits.classes  # a class is missing there, and keeps its output
    assert 0 not in few.test.y


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.where(PLACE == 1, np.nan, PLACE), "y_train: 20 labels are NaN or infinite, the first in row 2"),
        (np.where(PLACE == 2, np.inf, PLACE), "20 labels are NaN or infinite, the first in row 3"),
        (PLACE / 4, r"must be whole numbers or names, row 2 has 0.25; for numbers to predict use --task regression"),
        (np.array(["a", "", "b"])[PLACE], "20 labels are empty, the first in row 2"),
        (np.eye(3)[PLACE] * 0.5, "must be one-hot, row 1 is not"),
        (np.eye(3)[PLACE] + np.eye(3)[0], "must be one-hot, row 1 is not"),
        (np.clip(np.eye(3)[PLACE] + np.eye(3)[1], 0, 1), "row 1 has 2 classes; classification needs one"),
        (np.zeros((60, 3)), "row 1 has 0 classes"),
        (np.array(["a", " \t", "b"])[PLACE], "20 labels are empty, the first in row 2"),
        (
            np.append(np.arange(25), np.full(35, 30)),
            "25 of its 26 .* leave them out; numbers are predicted with --task",
        ),
        (np.where(np.arange(60) == 5, 9, PLACE), r"1 of its 4 classes have a single row \(the first is row 6\)"),
        (PLACE.astype(complex), "must be whole numbers or names"),
        (PLACE.astype("datetime64[D]"), "must be whole numbers or names"),
        (np.array(["a", "b"])[PLACE % 2].astype(object), r"y_train holds Python objects.*y_train\.astype\(str\)"),
        (np.array([b"\xff", b"b"])[PLACE % 2], "text must be in UTF-8"),
        (np.full(60, 7), "y_train holds one class, '7': there is nothing to tell apart"),
        (np.array(5), r"examples \(n, ...\) and labels \(n,\) are wanted"),
    ],
)
def test_what_is_no_label_is_refused(y: np.ndarray, message: str, tmp_path: Path) -> None:
    x = np.zeros((60, 4))
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=PLACE)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (PLACE + 1, r"y_test holds class '3' \(row 3\); .*y_train shows 0, 1, 2"),
        (np.array(["0", "1", "x"])[PLACE], r"y_test holds class 'x' \(row 3\)"),
        (np.eye(4)[PLACE + 1], r"y_test holds class '3' \(row 3\)"),
    ],
)
def test_a_class_that_training_never_shows_is_refused(test: np.ndarray, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", PLACE, x_test=np.zeros((60, 4)), y_test=test)
    with pytest.raises(ValueError, match=message):
        load_splits(str(path))


def test_names_that_no_file_holds_are_refused_before_the_fit(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", np.array(["a", "b\x1b[2J"])[PLACE % 2])
    with pytest.raises(ValueError, match=r"classes: 'b\\x1b\[2J': a file holds a list of texts"):
        load_splits(str(path))


def test_names_that_data_declare(tmp_path: Path) -> None:
    """Numbers are places among them, or they are the names themselves; encoded names too."""
    names = np.array(["owl", "cat", "dog"])
    kinds = ((PLACE, names), (names[PLACE], names), (np.eye(3)[PLACE], names.astype("S")), (PLACE > 0, names))
    for y, classes in kinds:
        splits = load_splits(str(saved(tmp_path / "a.npz", y, classes=classes)))
        assert splits.classes == ("owl", "cat", "dog")
        wanted = (PLACE > 0).astype(int) if y.dtype == bool else PLACE
        assert torch.equal(splits.test.y, torch.from_numpy(wanted)[:30])
    beyond = "labels from 1 to 3, but there are 3 class names, for labels from 0"
    for y, message in ((PLACE + 1, beyond), (np.array(["cats", "dog"])[PLACE % 2], "holds class 'cats'")):
        with pytest.raises(ValueError, match=message):
            load_splits(str(saved(tmp_path / "a.npz", y, classes=names)))
    with pytest.raises(ValueError, match="class name 'owl' stands there twice"):
        load_splits(str(saved(tmp_path / "a.npz", PLACE, classes=np.array(["owl", "owl", "cat"]))))
    by_place = load_splits(str(saved(tmp_path / "a.npz", PLACE, classes=np.array(["3", "1", "2"]))))
    assert torch.equal(by_place.test.y, torch.from_numpy(PLACE[:30]))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (PLACE, ""),
        (PLACE * 2, ""),
        (np.array([-1, 1])[PLACE % 2], ""),
        (CODES, "labels from 10115 to 99999 are 3 classes, 10115, 20095, 99999"),
        (np.array([0, 1, 255])[PLACE], "if 255 marks examples to ignore, leave these out"),
        (np.append(np.arange(200), 255), "if 255 marks examples to ignore"),
        (PLACE - 1, "if -1 marks examples to ignore"),
        (np.array([0, 1, -100])[PLACE], "if -100 marks"),
        (np.array(["Cat", "cat"])[PLACE % 2], "classes 'Cat' and 'cat' are two classes"),
        (np.array(["cat ", "cat"])[PLACE % 2], "are two classes"),
        (np.array(["é", "e\u0301"])[PLACE % 2], "are two classes"),
        (np.array(["nan", "b"])[PLACE % 2], "label 'nan' is taken as a class of its own; if it marks missing labels"),
        (np.array([" N/A", "b"])[PLACE % 2], "label ' N/A' is taken as a class"),
        (np.array(["²", "--1"])[PLACE % 2], ""),
    ],
)
def test_doubtful_labels_are_said(y: np.ndarray, said: str) -> None:
    found = doubts(read_labels(y, "y"))
    assert len(found) == bool(said)
    assert said in "".join(found)


@pytest.mark.parametrize(
    ("classes", "later", "places"),
    [
        (("cat", "dog"), [1, 0, 1], [1, 0, 1]),
        (("cat", "dog"), [True, False], [1, 0]),
        (("cat", "dog"), ["dog", "cat"], [1, 0]),
        (("0", "1"), [True, False], [1, 0]),
        (("False", "True"), [1, 0], [1, 0]),
        (("1067", "10115"), ["01067", "10115"], [0, 1]),
        (("10115", "20095"), np.eye(2)[[1, 0]], [1, 0]),
        (("10115", "20095"), [0, 1], r"holds class '0' \(row 1\); the network knows 10115, 20095"),
        (("cat", "dog"), [0, 2], r"holds class '0'|holds class '2'"),
        (("0", "1", "2"), np.eye(2)[[1, 0]], [1, 0]),
        (("cat", "dog", "owl"), np.eye(2)[[1, 0]], "holds class '0'"),
    ],
)
def test_later_labels_find_their_outputs(classes: tuple, later, places, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((len(later), 4)), y=np.array(later))
    known = Preprocessing(1.0, classes)
    if isinstance(places, str):
        with pytest.raises(ValueError, match=places):
            load_examples(tmp_path / "a.npz", known)
    else:
        assert load_examples(tmp_path / "a.npz", known).y.tolist() == places


def invoked(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_predictions_are_the_labels_that_were_given(tmp_path: Path, monkeypatch) -> None:
    """Fit, compress, evaluate both on the same data, export, run by numpy: one mapping everywhere."""
    monkeypatch.chdir(tmp_path)
    x = np.eye(4)[PLACE] + 0.01 * np.random.default_rng(0).normal(size=(60, 4))
    np.savez("a.npz", x_train=x, y_train=CODES, x_test=x[:30], y_test=CODES[:30])
    options = ("--prior", "none", "--hidden", 8, "--epochs", 25, "--lr", 0.1, "--device", "cpu", "--threads", 1)
    invoked("fit", "--data", "a.npz", *options, "--out", "run")
    run = load_run(Path("run"))
    assert run.stored == preprocessing(run.splits())
    assert run.stored.classes == ("10115", "20095", "99999")
    invoked("compress", "run", "--sparsity", 0.2, "--threads", 1)
    for target in ("run", "run/network.pcn"):
        for data in ((), ("--data", "a.npz")):
            assert json.loads(invoked("evaluate", target, *data, "--json"))["accuracy"] == 1
    invoked("export", "run/network.pcn", "-o", "folder")
    assert Runner("folder").predict(x[:30].astype(np.float32)) == [str(code) for code in CODES[:30]]


def test_what_earlier_versions_made_is_read_as_they_made_it(tmp_path: Path, monkeypatch) -> None:
    """Labels 0, 1 and 3 were four classes, bytes of 0 and 1 were divided by 255; nothing of it was written down."""
    y = np.array([0, 1, 3])[PLACE]
    bits = (np.random.default_rng(0).random((60, 4)) < 0.5).astype(np.uint8)
    path = saved(tmp_path / "a.npz", y, x_train=bits, x_test=bits[:30])
    known = before(str(path), ReadConfig(), 4)
    assert known == Preprocessing(255.0, ("0", "1", "2", "3"))
    splits = load_splits(str(path), known=known)
    assert splits.test.y.tolist() == y[:30].tolist()
    assert float(splits.train.x.max()) == pytest.approx(1 / 255)
    assert load_splits(str(path)).train.x.max() == 1
    assert before("digits", ReadConfig(), 10) is None
