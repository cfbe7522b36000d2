"""A class per position, several labels, inputs as targets: data, refusals, every command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.data.splits import load_splits
from pyro_compress.networks.outputs import with_columns
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Preprocessing

GENERATOR = np.random.default_rng(0)


def shapes(n: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Bright squares and dark bars on noise, and the class of every pixel."""
    generator = np.random.default_rng(n)
    x, y = generator.integers(90, 160, (n, side, side)), np.zeros((n, side, side), np.uint8)
    for image, mask in zip(x, y, strict=True):
        top, left = generator.integers(0, side - 6, 2)
        image[top : top + 5, left : left + 5], mask[top : top + 5, left : left + 5] = 240, 1
        image[:, side - 2 :], mask[:, side - 2 :] = 20, 2
    return x.astype(np.uint8), y


def pictures(folder: Path, n: int = 30) -> Path:
    for name, arrays in zip(("images", "masks"), shapes(n), strict=True):
        (folder / name).mkdir(parents=True)
        for i, one in enumerate(arrays):
            Image.fromarray(one).save(folder / name / f"{i:03}.png")
    return folder


def called(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def through(tmp_path: Path, data: Path, task: str, net: tuple[str, ...], *options: str) -> str:
    """Fit, compress, evaluate, export; what evaluate says."""
    run, path = tmp_path / "run", tmp_path / "a.pcn"
    common = ("--task", task, "--data", str(data), *options)
    called(
        "fit", *common, *net, "--prior", "log-uniform", "--epochs", "2", "--batch-size", "16", "--lr", "3e-3",
        "--device", "cpu", "--out", str(run),
    )  # fmt: skip
    called("compress", str(run), "--sparsity", "0.3", "--out", str(path))
    if "gru" not in net:
        called("export", str(path), "--out", str(tmp_path / "a.pt2"))
    return called("evaluate", str(path))


def test_masks_beside_images(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a")
    x, y = shapes(30)
    void = y.copy()
    void[:, 0] = 255
    for i, one in enumerate(void):
        Image.fromarray(one).save(folder / "masks" / f"{i:03}.png")
    splits = load_splits(str(folder), reading=ReadConfig("segmentation"))
    assert splits.output_shape == (3, 16, 16)
    assert splits.sizes == {"train": 16, "validation": 8, "test": 6}
    whole = torch.from_numpy(x / np.float32(255))
    for part in (splits.train, splits.validation, splits.test):
        for image, labels in zip(part.x, part.y, strict=True):
            (which,) = [i for i in range(30) if torch.allclose(whole[i], image[0])]
            assert (labels[0] == -100).all()
            assert torch.equal(labels[1:], torch.from_numpy(y[which, 1:].astype(np.int64)))


def test_masks_of_black_and_white_are_two_classes(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a")
    for i, one in enumerate(shapes(30)[1]):
        Image.fromarray(np.where(one > 0, 255, 0).astype(np.uint8)).save(folder / "masks" / f"{i:03}.png")
    splits = load_splits(str(folder), reading=ReadConfig("segmentation", image_size=8))
    assert splits.output_shape == (2, 8, 8)
    assert set(splits.train.y.unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "masks" / "003.png").unlink(), "003.png has no mask"),
        (lambda folder: Image.new("RGB", (16, 16)).save(folder / "masks" / "003.png"), "mode RGB"),
        (lambda folder: Image.new("L", (16, 9)).save(folder / "masks" / "003.png"), "16×9 pixels, its image 16×16"),
        (lambda folder: (folder / "masks").rename(folder / "other"), "needs a folder images and a folder masks"),
    ],
)
def test_masks_that_do_not_fit_say_which(change, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    change(pictures(tmp_path / "a"))
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path / "a"), reading=ReadConfig("segmentation"))


def test_padding_lengths_and_labels_that_say_none(tmp_path: Path) -> None:
    x, y = GENERATOR.integers(1, 6, (40, 5)), GENERATOR.integers(0, 3, (40, 5))
    x[:, 4], y[:, 0] = 0, 9
    lengths = np.full(40, 3)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, lengths_train=lengths, x_test=x, y_test=y)
    reading = ReadConfig("tagging", tokens=6, pad=0, ignore=9)
    splits = load_splits(str(tmp_path / "a.npz"), reading=reading)
    assert splits.outputs == 3
    assert ((splits.train.y == -100).all(0)).tolist() == [True, False, False, True, True]
    assert ((splits.test.y == -100).all(0)).tolist() == [True, False, False, False, True]
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y % 3, x_test=x, y_test=y)
    with pytest.raises(ValueError, match="to 9, but there are 3 classes"):
        load_splits(str(tmp_path / "b.npz"), reading=ReadConfig("tagging", tokens=6))


@pytest.mark.parametrize(
    ("task", "y", "message"),
    [
        ("multi-label", np.full((40, 2), 2), "every label is 0 or 1"),
        ("multi-label", np.zeros(40), "labels of 0 and 1"),
        ("tagging", np.zeros((40, 3), int), r"labels of positions \(3,\)"),
        ("tagging", np.zeros(40), "a class per position is wanted"),
        ("tagging", np.full((40, 5), -100), "no position has a label"),
    ],
)
def test_labels_of_another_kind_are_refused(task: str, y: np.ndarray, message: str, tmp_path: Path) -> None:
    x = GENERATOR.random((40, 2, 5), np.float32)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path / "a.npz"), reading=ReadConfig(task, series=True))


class OneLogit(nn.Module):
    def __init__(self, flat: bool):
        super().__init__()
        self.layer, self.flat = nn.Linear(4, 1), flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x)
        return found[:, 0] if self.flat else found


@pytest.mark.parametrize("flat", [True, False])
def test_one_logit_for_two_classes_is_their_bernoulli(flat: bool) -> None:
    plain, x = OneLogit(flat), torch.randn(5, 4)
    net = with_columns(plain, (4,), (2,))
    assert torch.allclose(net(x).softmax(1)[:, 1], plain(x).flatten().sigmoid())


def test_segmentation_goes_through_every_command(tmp_path: Path) -> None:
    said = through(tmp_path, pictures(tmp_path / "data", 60), "segmentation", ("--net", "unet"))
    assert "mean IoU" in said
    assert "macro F1" in said


def test_tagging_goes_through_every_command(tmp_path: Path) -> None:
    x = GENERATOR.integers(0, 7, (300, 6))
    y = np.cumsum(x, 1) % 3
    np.savez(tmp_path / "a.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    said = through(tmp_path, tmp_path / "a.npz", "tagging", ("--net", "gru"), "--tokens", "7")
    assert "macro F1" in said
    np.savez(tmp_path / "b.npz", x=x[:50], y=y[:50])
    assert "on 50 examples" in called("evaluate", str(tmp_path / "a.pcn"), "--data", str(tmp_path / "b.npz"))


def test_several_labels_go_through_every_command(tmp_path: Path) -> None:
    x = GENERATOR.standard_normal((400, 5)).astype(np.float32)
    y = (x[:, :3] + 0.1 * x[:, 2:] > 0).astype(int)
    np.savez(tmp_path / "a.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    assert "exact match" in through(tmp_path, tmp_path / "a.npz", "multi-label", ("--hidden", "12"))
    np.savez(tmp_path / "b.npz", x=x[:50], y=y[:50])
    assert "on 50 examples" in called("evaluate", str(tmp_path / "a.pcn"), "--data", str(tmp_path / "b.npz"))


def test_an_autoencoder_goes_through_every_command(tmp_path: Path) -> None:
    x = GENERATOR.random((300, 1, 1), np.float32) * np.ones((1, 4, 4), np.float32)
    np.savez(tmp_path / "a.npz", x_train=x[:200], x_test=x[200:])
    assert "RMSE" in through(tmp_path, tmp_path / "a.npz", "reconstruction", ("--hidden", "8"))
    np.savez(tmp_path / "b.npz", x=x[:50])
    assert "on 50 examples" in called("evaluate", str(tmp_path / "a.pcn"), "--data", str(tmp_path / "b.npz"))


class Tagger(nn.Module):
    """Reads words, and two numbers at each of them; `(n, length, classes)`."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(300, 6), nn.Linear(8, 3)

    def forward(self, words: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(torch.cat([self.words(words), numbers], -1))
        return found


def tagged(n: int) -> dict[str, np.ndarray]:
    """Words, two numbers at each, a class at each; some have none."""
    rng = np.random.default_rng(n)
    words, numbers = rng.integers(0, 300, (n, 5)), rng.normal(size=(n, 5, 2)).astype(np.float32)
    y = (words > 150).astype(int) + (numbers[..., 0] > 0)
    y[:, 4] = np.where(rng.random(n) < 0.5, -100, y[:, 4])
    return {"words": words, "numbers": numbers, "y": y}


def test_several_inputs_with_a_class_per_position(tmp_path: Path, caplog) -> None:
    """They are tagged, and what evaluate says of the file is what the module itself says."""
    data, given = tmp_path / "a.npz", {"train": tagged(300), "test": tagged(80)}
    np.savez(data, **{f"y_{part}": arrays["y"] for part, arrays in given.items()}, **{
        f"x_{part}.{name}": arrays[name] for part, arrays in given.items() for name in ("words", "numbers")
    })  # fmt: skip
    fitted = pc.fit(Tagger(), str(data), task="tagging", prior="log-uniform", epochs=2, device="cpu", compile="off")
    assert "inputs reach" not in caplog.text  # numbers of words are no numbers to be scaled
    path = fitted.compress(sparsity=0.2).save(tmp_path / "a.pcn")
    module, test = pc.load(path), given["test"]
    x, y = {name: torch.from_numpy(test[name]) for name in ("words", "numbers")}, torch.from_numpy(test["y"])
    with torch.no_grad():
        guess = module(**x).argmax(1)
    assert guess.shape == y.shape
    known = y != -100
    found = pc.evaluate(path, str(data))
    assert found.scores.accuracy == pytest.approx(float((guess == y)[known].double().mean()))
    said = pc.predict(path, {name: test[name] for name in ("words", "numbers")})
    assert [row.classes[0] for row in said] == [str(int(row.bincount().argmax())) for row in guess]
    for out in ("a.onnx", "folder"):
        assert pc.export(path, tmp_path / out, data=str(data)).difference < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"task": "tagging", "y": np.zeros((40, 4), int)},
            r"positions \(4,\); no input has these in its shape: numbers",
        ),
        ({"task": "tagging", "pad": 0}, "--pad goes with one input; of several, label what is filled up -100"),
        ({"task": "next-token"}, "next-token goes with one input of tokens, and there are numbers, words; give --task"),
    ],
)
def test_what_several_inputs_are_refused(settings: dict, message: str) -> None:
    given = tagged(40)
    y = settings.pop("y", given.pop("y"))
    with pytest.raises(ValueError, match=message):
        pc.fit(Tagger(), ({name: given[name] for name in ("words", "numbers")}, y), epochs=1, **settings)


def test_next_tokens_of_several_inputs_are_nobodys(tmp_path: Path) -> None:
    arrays = {f"x_{part}.{name}": tagged(40)[name] for part in ("train", "test") for name in ("words", "numbers")}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="next-token goes with one input of tokens"):
        load_splits(str(tmp_path / "a.npz"), reading=ReadConfig(task="next-token"))


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (ReadConfig(pad=0), "--pad goes with a class per position .*, not with classification, of which every example"),
        (ReadConfig(tokens=300, ignore=2), "--ignore goes with a class per position"),
        (ReadConfig("next-token", pad=0), r"--pad is a token of an array, whole numbers \(n, length\) with --tokens N"),
    ],
)
def test_what_counts_for_nothing_is_refused_before_a_fit(reading: ReadConfig, message: str, tmp_path: Path) -> None:
    """Of a file, of arrays, of several inputs; a file of earlier versions that says so is read."""
    words, y = tagged(60)["words"], np.arange(60) % 2
    np.savez(tmp_path / "a.npz", x_train=words, y_train=y, x_test=words[:20], y_test=y[:20])
    (tmp_path / "a.txt").write_text("a text of some words. " * 400)
    data = str(tmp_path / ("a.txt" if reading.task == "next-token" else "a.npz"))
    with pytest.raises(ValueError, match=message):
        load_splits(data, reading=reading)
    assert load_splits(data, reading=reading, known=Preprocessing(1.0, ())).train
    if reading.task == "classification":
        for x in (words, {"words": words, "numbers": tagged(60)["numbers"]}):
            with pytest.raises(ValueError, match=message):
                pc.splits_from((x, y), reading=replace(reading, tokens=0 if isinstance(x, dict) else 300))
