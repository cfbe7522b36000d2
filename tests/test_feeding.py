"""Where examples come from: named sets, folders, tables; streamed, augmented, weighted, cut short."""

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from stored import stored_posterior
from torch import Tensor

from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.model import Likelihood, Model
from pyro_compress.data import tabular
from pyro_compress.data.augment import AUGMENTATIONS
from pyro_compress.data.datasets import CIFAR10, CIFAR100, PIXELS
from pyro_compress.data.splits import load_examples, load_splits, preprocessing, preprocessing_meta, preprocessing_of
from pyro_compress.data.streaming import Streamed
from pyro_compress.data.tasks import class_weights
from pyro_compress.runs.config import resolve
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import FitConfig, ReadConfig
from pyro_compress.training.baselines import fit_baseline
from pyro_compress.training.checkpoint import Checkpointer, Interrupted
from pyro_compress.training.minibatches import Minibatches
from pyro_compress.training.progress import Progress
from pyro_compress.types import Data, Splits

# --- named sets, in the formats that they are published in


def idx(path: Path, values: np.ndarray) -> None:
    """As http://yann.lecun.com/exdb/mnist defines it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("name", "stem", "classes"),
    [
        ("kmnist", "KMNIST/raw/{part}-{kind}", 10),
        ("emnist", "EMNIST/raw/emnist-balanced-{part}-{kind}", 47),
    ],
)
def test_idx_files(name: str, stem: str, classes: int, tmp_path: Path) -> None:
    rng, images = np.random.default_rng(0), {}
    for ours, theirs in (("train", "train"), ("test", "t10k" if name == "kmnist" else "test")):
        images[ours] = rng.integers(0, 256, (classes * 6, 28, 28))
        idx(tmp_path / stem.format(part=theirs, kind="images-idx3-ubyte"), images[ours])
        idx(tmp_path / stem.format(part=theirs, kind="labels-idx1-ubyte"), np.arange(classes * 6) % classes)
    splits = load_splits(name, str(tmp_path), 1 / 3)
    assert splits.sizes == {"train": 4 * classes, "validation": 2 * classes, "test": 6 * classes}
    assert len(splits.classes) == classes
    wanted = images["test"][5] if name == "kmnist" else images["test"][5].T  # EMNIST is stored on its side
    assert torch.allclose(splits.test.x[5, 0], torch.tensor(wanted / 255).float())


@pytest.mark.parametrize(("name", "layout"), [("cifar-10", CIFAR10), ("cifar-100", CIFAR100)])
def test_cifar_binary_files(name: str, layout, tmp_path: Path) -> None:
    folder = tmp_path / layout.folder
    folder.mkdir()
    with pytest.raises(ValueError, match=r"binary version .* not found: its files belong in"):
        load_splits(name, str(tmp_path))
    number = 10 if name == "cifar-10" else 100
    (folder / layout.names).write_text("\n".join(f"class{i}" for i in range(number)) + "\n\n")
    pixels = np.random.default_rng(0).integers(0, 256, (4 * number, 3072)).astype(np.uint8)
    labels = (np.arange(4 * number) % number).astype(np.uint8)[:, None]
    coarse = [np.full_like(labels, 7)] * (layout.labels - 1)
    for file in (*layout.train, layout.held_out):
        (folder / file).write_bytes(np.hstack([*coarse, labels, pixels]).tobytes())
    splits = load_splits(name, str(tmp_path), 0.25)
    assert splits.input_shape == PIXELS
    assert splits.classes[:2] == ("class0", "class1")
    assert torch.equal(splits.test.y, torch.arange(4 * number) % number)
    assert torch.allclose(splits.test.x[3].flatten(), torch.tensor(pixels[3] / 255).float())
    (folder / layout.held_out).write_bytes(b"12345")
    with pytest.raises(ValueError, match="no whole number of records"):
        load_splits(name, str(tmp_path))


# --- folders


def pictures(folder: Path, mode: str = "L", size: int = 8, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """Two classes: bright above, bright below."""
    rng = np.random.default_rng(0)
    for part, number in zip(parts, (30, 8), strict=False):
        for label, name in enumerate(("above", "below")):
            (folder / part / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 90, (size, size, 3))
                half = slice(0, size // 2) if label == 0 else slice(size // 2, None)
                pixels[half] += 120
                Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / part / name / f"{i:03d}.png")
    return folder


def test_image_folders(tmp_path: Path) -> None:
    splits = load_splits(str(pictures(tmp_path)), validation=0.2)
    assert splits.sizes == {"train": 48, "validation": 12, "test": 16}
    assert (splits.classes, splits.input_shape, splits.scale) == (("above", "below"), (1, 8, 8), 255.0)
    for data in (splits.train, splits.validation):
        brighter_above = data.x[:, 0, :4].mean((1, 2)) > data.x[:, 0, 4:].mean((1, 2))
        assert torch.equal(brighter_above, data.y == 0)


def loose(folder: Path, number: int = 1) -> None:
    """Images that lie in a folder itself."""
    folder.mkdir(exist_ok=True)
    for i in range(number):
        Image.new("L", (4, 4), i).save(folder / f"{i}.png")


def test_colour_size_and_a_missing_test_folder(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "rgb", "RGB", 8, ("train",))
    splits = load_splits(str(folder), reading=ReadConfig(image_size=6))
    assert splits.input_shape == (3, 6, 6)
    assert splits.sizes["test"] == 12
    Image.new("RGB", (5, 9)).save(folder / "train" / "below" / "odd.png")
    with pytest.raises(
        ValueError, match=r"odd\.png is 5×9 pixels, others are 8×8; bring them to one size with --image"
    ):
        load_splits(str(folder))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "has neither a folder train .* nor a file x_train.npy"),
        (lambda f: loose(f), "holds images such as 0.png, but no folder of a class"),
        (lambda f: (loose(f / "a"), loose(f / "b")), r"no folder test: 2 of its 2 classes .* \(the first is row 1\)"),
        (
            lambda f: (loose(f / "a", 2), loose(f / "b", 2)),
            "no folder test: 4 rows of 2 classes are too few for a part",
        ),
        (lambda f: (f / "cats").mkdir(), "no images; they belong in .*CLASS"),
        (lambda f: (f / "train" / "a").mkdir(parents=True), "no images; they belong in"),
        (lambda f: (pictures(f), shutil.copytree(f / "test/above", f / "test/new")), "has class new, which the train"),
        (lambda f: (pictures(f), (f / "train/above/000.png").write_bytes(b"no")), "is no readable image"),
        (lambda f: np.save(f / "x_train.npy", np.zeros((3, 2))), "has no file y_train.npy"),
    ],
)
def test_bad_folders(make, message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path))


# --- tables


def table(path: Path, rows: int = 60) -> Path:
    rng = np.random.default_rng(1)
    lines = ["size,colour,kind"]
    for i in range(rows):
        lines.append(f"{rng.normal(5, 2):.4f},{('red', 'green', 'blue')[i % 3]},{('good', 'bad')[i % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return path


CLASSES = ReadConfig(target=("kind",))


def test_tables_are_standardised_by_their_training_rows(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv")
    splits = load_splits(str(path), reading=CLASSES)
    assert splits.classes == ("bad", "good")
    assert splits.input_shape == (4,)
    assert splits.train.x[:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert splits.train.x[:, 0].std(correction=0) == pytest.approx(1, rel=1e-5)
    assert torch.equal(splits.train.x[:, 1:].sum(1), torch.ones(splits.sizes["train"]))  # one colour each
    assert not torch.isclose(splits.test.x[:, 0].mean(), torch.zeros(()), atol=1e-6)
    meta = {"data": str(path), "target": ["kind"]} | preprocessing_meta(str(path), splits)
    assert preprocessing_of(meta) == preprocessing(splits)


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    from pyarrow import csv, parquet

    path = table(tmp_path / "t.csv")
    parquet.write_table(csv.read_csv(path), tmp_path / "t.parquet")
    ours, theirs = (load_splits(str(tmp_path / name), reading=CLASSES) for name in ("t.csv", "t.parquet"))
    assert torch.equal(ours.train.x, theirs.train.x)
    assert torch.equal(ours.train.y, theirs.train.y)


def test_a_table_of_test_rows(tmp_path: Path) -> None:
    splits = load_splits(
        str(table(tmp_path / "a.csv")), reading=replace(CLASSES, test_data=str(table(tmp_path / "b.csv", 20)))
    )
    assert splits.sizes["test"] == 20
    later = load_examples(tmp_path / "b.csv", preprocessing(splits), CLASSES)
    assert torch.equal(later.x, splits.test.x)
    (tmp_path / "c.csv").write_text("size,colour,kind\n5.0,purple,good\n")
    assert load_examples(tmp_path / "c.csv", preprocessing(splits), CLASSES).x[0, 1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "target", "task", "message"),
    [
        ("a,b\n1,2\n", ("c",), "classification", "has no column 'c'; it holds a, b"),
        ("a,b\n1,2\n", (), "classification", "name the column that is to be predicted with --target"),
        (
            "a,b\n1,2\n,3\n",
            ("b",),
            "regression",
            "column 'a': 1 values are missing, NaN or infinite, .* row 2",
        ),
        ("a,b\nx,2\n,3\n", ("b",), "regression", "column 'a': 1 values are missing"),
        ("a,b\n1,x\n2,y\n", ("b",), "regression", "target 'b' holds names"),
        ("a,b\n2020-01-01,1\n", ("b",), "regression", "columns must be numbers or names"),
        ("a\n1\n", ("a",), "regression", "no column is left as an input"),
        ("a,b\n", ("b",), "regression", "no rows"),
        ("a,a\n1,2\n", ("a",), "regression", "column 'a' stands there twice"),
        (
            "a,b\n" + "".join(f"{i},{i}.5\n" for i in range(30)),
            ("b",),
            "classification",
            "30 rows have 30 different labels; numbers are predicted with --task regression",
        ),
        ("a,b\n" + "1,7\n" * 30, ("b",), "regression", "target b is the same in all training rows"),
    ],
)
def test_bad_tables(text: str, target: tuple[str, ...], task: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path / "t.csv"), reading=ReadConfig(task=task, target=target))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.7e9, 0.5), (-3e-7, 2e-9), (4.0, 6e20), (5.0, 0.0)])
def test_moments_have_the_digits_that_matter(mean: float, std: float) -> None:
    values = mean + std * np.random.default_rng(0).normal(size=1000)
    found = tabular.moments(values, "a")
    assert found == pytest.approx((values.mean(), values.std()), abs=2e-7 * std, rel=1e-12)
    assert std == 0 or len(f"{found[1]!r}") <= 14


def test_targets_of_a_npz_keep_their_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(100, 5, (40, 2))
    np.savez(tmp_path / "a.npz", x_train=rng.normal(size=(40, 3)), y_train=y, x_test=np.zeros((9, 3)), y_test=y[:9])
    splits = load_splits(str(tmp_path / "a.npz"), reading=ReadConfig(task="regression"))
    std, mean = (torch.tensor([getattr(t, key) for t in splits.targets]) for key in ("std", "mean"))
    assert torch.allclose(splits.test.y * std + mean, torch.tensor(y[:9]).float(), atol=1e-4)
    with pytest.raises(ValueError, match="for numbers to predict use --task regression"):
        load_splits(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("shape", [(3, 20), (20,)])
def test_series_have_channels_and_are_no_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.normal(size=(n, *shape)).astype(np.float32) for part, n in (("train", 40), ("test", 9))}
    arrays |= {"y_train": np.arange(40) % 2, "y_test": np.arange(9) % 2}
    np.savez(tmp_path / "a.npz", **arrays)
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    wanted = shape if len(shape) == 2 else (1, *shape)
    for source in (tmp_path / "a.npz", tmp_path):
        for memory in (4096.0, 0.0):
            splits = load_splits(str(source), reading=ReadConfig(series=True, in_memory_mib=memory, workers=0))
            assert splits.input_shape == wanted
            assert np.allclose(splits.test.x[:].numpy(), arrays["x_test"].reshape(9, *wanted))
    plain = load_splits(str(tmp_path / "a.npz"))
    assert plain.input_shape == ((1, *shape) if len(shape) == 2 else shape)
    with pytest.raises(ValueError, match="holds images; series are arrays"):
        load_splits(str(pictures(tmp_path / "images")), reading=ReadConfig(series=True))


# --- limit, weights, augmentation


def test_a_limit_keeps_the_shares_and_the_other_splits(digits: Splits) -> None:
    few = load_splits("digits", reading=ReadConfig(limit=100))
    assert few.sizes == {"train": 100, "validation": 240, "test": 360}
    assert torch.equal(few.validation.x, digits.validation.x)
    assert few.train.y.bincount().tolist() == [10] * 10
    assert {row.numpy().tobytes() for row in few.train.x} < {row.numpy().tobytes() for row in digits.train.x}


def test_balanced_weights_scale_each_example_s_log_likelihood() -> None:
    import pyro

    y = torch.tensor([0] * 6 + [1] * 2 + [2])
    weights = class_weights(y, 3)
    assert weights[y].mean() == pytest.approx(1)
    assert torch.allclose(weights * y.bincount(), torch.full((3,), 3.0))
    net, x = torch.nn.Linear(2, 3), torch.randn(9, 2)
    with pyro.validation_enabled(False):
        trace = pyro.poutine.trace(Model(net, Likelihood("classification", 18, weights=weights))).get_trace(x, y)
        trace.compute_log_prob()
    nats = net(x).log_softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(trace.nodes["y"]["log_prob_sum"], 2 * (weights[y] * nats).sum())  # 18 examples, 9 here


@pytest.mark.slow
def test_weights_raise_the_recall_of_a_rare_class() -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(400) % 20 == 0).long()
    data = Data(torch.randn(400, 2, generator=generator) + 1.2 * y[:, None], y)
    splits, shares = Splits(data, data, data, ("common", "rare")), []
    for choice in ("none", "balanced"):
        config = FitConfig(prior="gaussian", class_weights=choice, epochs=10, batch_size=80, lr=3e-2, device="cpu")
        fit = fit_posterior(torch.nn.Linear(2, 2), splits, resolve(config, 400))
        posterior = extract(fit)
        weight, bias = posterior.tensors["weight"], posterior.tensors["bias"]
        predicted = (data.x @ weight.T + bias).argmax(1)
        shares.append(float((predicted[y == 1] == 1).float().mean()))
    assert shares[1] > shares[0] + 0.2


@pytest.mark.parametrize("name", ["shift", "crop-flip"])
def test_augmented_images_are_moved_images(name: str) -> None:
    """Every result is the padded image seen through a shifted window, mirrored or not; both seldom agree by chance."""
    x, generator = torch.rand(40, 2, 7, 6), torch.Generator().manual_seed(0)
    found, most = AUGMENTATIONS[name](x, generator), {"shift": 2, "crop-flip": 4}[name]
    padded = torch.nn.functional.pad(x, [most] * 4)
    places = []
    for image, canvas in zip(found, padded, strict=True):
        places += [
            (top, left, mirror)
            for top in range(2 * most + 1)
            for left in range(2 * most + 1)
            for mirror in (False, True)
            for window in [canvas[:, top : top + 7, left : left + 6]]
            if torch.equal(image, window.flip(2) if mirror else window)
        ]
    assert len(places) == 40
    assert {mirror for *_, mirror in places} == ({False} if name == "shift" else {False, True})
    assert len(set(places)) > 10


def test_affine_augmentation_is_what_it_says() -> None:
    """Against scipy: every pixel looked up where a turned, scaled and moved grid of pixels lies."""
    x, seed = torch.rand(30, 2, 9, 6), 4
    found = AUGMENTATIONS["affine"](x, torch.Generator().manual_seed(seed))
    drawn = (2 * torch.rand(30, 4, generator=torch.Generator().manual_seed(seed)) - 1).double().numpy()
    centre, pixels = np.array([4.0, 2.5]), np.stack(np.mgrid[:9, :6], -1)
    for image, changed, (turn, scale, right, down) in zip(x.numpy(), found.numpy(), drawn, strict=True):
        angle = np.deg2rad(10) * turn
        turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        places = (1 + 0.1 * scale) * (pixels - centre) @ turned.T + centre + 1.5 * np.array([down, right])
        for plane, wanted in zip(changed, image, strict=True):
            looked = ndimage.map_coordinates(wanted, places.transpose(2, 0, 1), order=1, mode="grid-constant")
            np.testing.assert_allclose(plane, looked, atol=2e-5)


def test_augmentation_is_for_images(digits: Splits) -> None:
    flat = Data(torch.zeros(9, 5), torch.zeros(9).long())
    with pytest.raises(ValueError, match=r"augmentation is for images .* one example has shape \(5,\)"):
        Minibatches(flat, 3, torch.Generator(), augment=AUGMENTATIONS["shift"])


# --- streaming


def minibatches(splits: Splits, epochs: int = 2) -> list[Tensor]:
    feed = Minibatches(splits.train, 10, torch.Generator().manual_seed(1))
    return [part for _ in range(epochs) for _, x, y in feed.epoch() for part in (x, y)]


def arrays(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, n in (("train", 50), ("test", 20)):
        np.save(folder / f"x_{name}.npy", rng.integers(0, 256, (n, 8, 8)).astype(np.uint8))
        np.save(folder / f"y_{name}.npy", np.arange(n) % 2)
    return folder


@pytest.mark.parametrize("make", [pictures, arrays])
def test_streaming_gives_what_memory_gives(make, tmp_path: Path) -> None:
    folder = str(make(tmp_path / "data"))
    held, left = (load_splits(folder, reading=ReadConfig(in_memory_mib=size, workers=0)) for size in (10, 0))
    assert isinstance(held.train.x, Tensor)
    assert isinstance(left.train.x, Streamed)
    assert left.input_shape == held.input_shape
    for ours, theirs in zip(minibatches(left), minibatches(held), strict=True):
        assert torch.equal(ours, theirs)
    config = FitConfig(batch_size=10, device="cpu")
    ours, theirs = (Progress(one, config, lambda epoch: None, Checkpointer()).example(10) for one in (left, held))
    assert torch.equal(ours[0], theirs[0])  # what a step is captured on
    assert torch.equal(left.validation.x[:], held.validation.x)
    assert torch.equal(torch.cat(list(left.test.x.split(7))), held.test.x)


@pytest.mark.slow
def test_workers_read_ahead_in_order_and_start_anywhere(tmp_path: Path) -> None:
    """Two epochs of one pair of workers, and what is left of an epoch after it was put back."""
    folder = str(arrays(tmp_path / "data"))
    held, left = (load_splits(folder, reading=ReadConfig(in_memory_mib=size, workers=1)) for size in (10, 0))
    before = torch.get_rng_state()
    feeds = [Minibatches(one.train, 10, torch.Generator().manual_seed(2)) for one in (held, left)]
    for feed in feeds:
        next(feed.epoch())  # left in the middle, with minibatches under way
    again = Minibatches(left.train, 10, torch.Generator())
    again.restore(feeds[1].tensors(), feeds[1].position)
    for (_, ours, _), (_, theirs, _) in zip(again.epoch(), feeds[0].epoch(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(minibatches(left), minibatches(held), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(before, torch.get_rng_state())


class Stopping(Checkpointer):
    """Stops after a number of steps."""

    def __init__(self, folder: Path, after: int):
        super().__init__(folder, every_minutes=0.0)
        self.left = after

    def after_step(self, finished_epoch, take) -> None:
        self.left -= 1
        if not self.left:
            self.stop.set()
        super().after_step(finished_epoch, take)


@pytest.mark.parametrize("prior", ["gaussian", "none"])
def test_a_streamed_and_augmented_fit_resumes_to_the_same_bytes(prior: str, tmp_path: Path) -> None:
    """Streamed or held, stopped in the middle of an epoch or not: one posterior."""
    folder, found = str(arrays(tmp_path / "data")), []
    config = FitConfig(prior=prior, data=folder, hidden=(5,), epochs=3, pretrain_epochs=0, batch_size=8, device="cpu")
    config = replace(config, augment="shift")
    for size, stops in ((10, ()), (0, ()), (0, (7,))):
        splits = load_splits(folder, reading=ReadConfig(in_memory_mib=size, workers=0))
        resolved = resolve(config, len(splits.train))
        net = initial_net(resolved, splits)

        def fitted(checkpointer: Checkpointer | None, splits=splits, resolved=resolved, net=net) -> bytes:
            if resolved.prior == "none":
                return stored_posterior(fit_baseline(net, splits, resolved, checkpointer=checkpointer)[0])
            return stored_posterior(extract(fit_posterior(net, splits, resolved, checkpointer=checkpointer)))

        (place := tmp_path / f"kept-{size}-{len(stops)}").mkdir()
        for stop in stops:
            with pytest.raises(Interrupted):
                fitted(Stopping(place, stop))
        found.append(fitted(Checkpointer(place) if stops else None))
    assert found[0] == found[1] == found[2]
