"""Images as people have them: every kind of pixel, and every way in which folders lie."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pyro_compress.data.splits import load_splits
from pyro_compress.data.streaming import Streamed
from pyro_compress.data.unlabelled import load_inputs
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Graph, Node, Preprocessing

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 6, 5)).astype(np.uint8)
COLOURS = RNG.integers(0, 256, (30, 6, 5, 3)).astype(np.uint8)


def folder(path: Path, images: list[Image.Image], ending: str = "png", where: str = "train") -> Path:
    """Images of two classes in turn, in the order in which they are read again."""
    for i, image in enumerate(images):
        place = path / where / ("a" if i < len(images) // 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i:03d}.{ending}")
    return path


def read(path: Path, **how: float) -> Tensor:
    """All images in the order of their names, held or streamed: both must be the same."""
    found = []
    for memory in (4096.0, 0.0):
        splits = load_splits(str(path), reading=ReadConfig(in_memory_mib=memory, workers=0, **how))  # type: ignore[arg-type]
        assert isinstance(splits.train.x, Streamed) == (memory == 0)
        parts = [part.x[:] for part in (splits.train, splits.validation, splits.test)]
        found.append(torch.cat(parts))
    assert torch.equal(found[0], found[1])
    rows = found[0].flatten(1)
    return found[0][torch.from_numpy(np.lexsort(rows.T.numpy()))]


def same(found: Tensor, wanted: np.ndarray) -> bool:
    """Whether images are those wanted, whatever split each is in."""
    rows = wanted.reshape(len(wanted), -1).astype(np.float32)
    return bool(np.allclose(found.flatten(1).numpy(), rows[np.lexsort(rows.T)], atol=1e-6))


def drawn_on_white(alpha: np.ndarray) -> np.ndarray:
    return (255 - alpha.astype(int)) / 255


ALPHA = [Image.merge("RGBA", [Image.new("L", (5, 6), 0)] * 3 + [Image.fromarray(one)]) for one in PIXELS]
WORDS = PIXELS.astype(np.uint16)
DEEP = WORDS * 200 + 65535 - 255 * 200
KINDS = {
    "L": ([Image.fromarray(one) for one in PIXELS], "png", PIXELS / 255, 255.0),
    "L.PNG": ([Image.fromarray(one) for one in PIXELS], "PNG", PIXELS / 255, 255.0),
    "1": ([Image.fromarray(one > 99) for one in PIXELS], "png", PIXELS > 99, 255.0),
    "0 and 1 as bytes": ([Image.fromarray((one > 99).astype(np.uint8)) for one in PIXELS], "png", PIXELS > 99, 1.0),
    "RGB": ([Image.fromarray(one) for one in COLOURS], "png", COLOURS.transpose(0, 3, 1, 2) / 255, 255.0),
    "RGBA, opaque": (
        [Image.fromarray(one).convert("RGBA") for one in COLOURS], "png", COLOURS.transpose(0, 3, 1, 2) / 255, 255.0
    ),
    "RGBA, drawn in alpha": (ALPHA, "png", np.repeat(drawn_on_white(PIXELS)[:, None], 3, 1), 255.0),
    "LA, drawn in alpha": ([one.convert("LA") for one in ALPHA], "png", drawn_on_white(PIXELS), 255.0),
    "CMYK": ([Image.fromarray(one).convert("CMYK") for one in COLOURS], "tif", None, 255.0),
    "16 bits": ([Image.fromarray(one) for one in DEEP], "png", DEEP / 65535, 65535.0),
    "16 bits, TIFF": ([Image.fromarray(one) for one in DEEP], "tif", DEEP / 65535, 65535.0),
    "12 bits": ([Image.fromarray(one) for one in WORDS * 16], "png", WORDS * 16 / 4095, 4095.0),
    "10 bits": ([Image.fromarray(one) for one in WORDS * 4], "png", WORDS * 4 / 1023, 1023.0),
    "32 bits": ([Image.fromarray(one.astype(np.int32) * 1000 - 9) for one in PIXELS], "tif", PIXELS * 1000.0 - 9, 1.0),
    "floats": ([Image.fromarray(one.astype(np.float32) / 7 - 5) for one in PIXELS], "tif", PIXELS / 7 - 5, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixel_keeps_what_is_in_it(kind: str, tmp_path: Path) -> None:
    images, ending, wanted, scale = KINDS[kind]
    path = folder(tmp_path, images, ending)
    found = read(path)
    assert load_splits(str(path)).scale == scale
    if wanted is None:  # converted by Pillow, a way of its own
        wanted = np.stack([np.asarray(one.convert("RGB")).transpose(2, 0, 1) for one in images]) / 255
    assert same(found, np.asarray(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_labels_are_read_as_those_with_labels(kind: str, tmp_path: Path) -> None:
    """A network knows the scale of its data and the shape that it takes, and nothing else of them."""
    images, ending, _, scale = KINDS[kind]
    wanted = read(folder(tmp_path, images, ending))
    graph, known = Graph((Node("input"),), tuple(wanted.shape[1:])), Preprocessing(scale, ())
    given = load_inputs(str(tmp_path), graph, known, ReadConfig())
    assert given.names == [f"train/{'ab'[i // 15]}/{i:03d}.{ending}" for i in range(30)]
    found = torch.cat(list(given.parts))
    rows = found.flatten(1).numpy()
    assert torch.equal(found[torch.from_numpy(np.lexsort(rows.T))], wanted)


@pytest.mark.parametrize("kind", ["RGB", "16 bits", "floats", "LA, drawn in alpha"])
def test_every_kind_can_be_scaled(kind: str, tmp_path: Path) -> None:
    images, ending, wanted, _ = KINDS[kind]
    found = read(folder(tmp_path, images, ending), image_size=3)
    assert found.shape[1:] == (3 if kind == "RGB" else 1, 3, 3)
    assert float(found.std()) > 0.1 * float(np.std(wanted))


def test_one_image_in_colour_makes_all_coloured(tmp_path: Path) -> None:
    grey, colour = ([*KINDS[kind][0]] for kind in ("L", "RGB"))
    found = read(folder(tmp_path, grey[:15] + colour[15:]))
    as_three = np.repeat(PIXELS[:15, None], 3, 1)
    assert same(found, np.concatenate([as_three, COLOURS[15:].transpose(0, 3, 1, 2)]) / 255)


def test_palettes_may_be_transparent(tmp_path: Path) -> None:
    images = []
    for one in PIXELS:
        image = Image.fromarray(one).convert("P")
        image.putdata((one > 99).astype(np.uint8).flatten().tolist())
        image.putpalette([0, 0, 0] * 2)
        images.append(image)
    for i, image in enumerate(images):
        place = tmp_path / "train" / ("a" if i < 15 else "b")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i:03d}.png", transparency=0)
    assert same(read(tmp_path), np.repeat((PIXELS <= 99)[:, None], 3, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_held_as_the_camera_was(orientation: int, tmp_path: Path) -> None:
    """Against what each number means: where the stored first row and column are seen."""
    turned = {
        1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
        5: np.transpose, 6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).T, 8: lambda p: np.rot90(p, 1),
    }[orientation]  # fmt: skip
    for i, one in enumerate(PIXELS[:20]):
        image, place = Image.fromarray(one), tmp_path / "train" / "ab"[i // 10]
        place.mkdir(parents=True, exist_ok=True)
        image.getexif()[0x0112] = orientation
        image.save(place / f"{i}.png", exif=image.getexif())
    assert same(read(tmp_path), np.stack([turned(one) for one in PIXELS[:20]]) / 255)


def blank(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (5, 6), colour)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (Image.merge("LA", [blank("L", 255), Image.fromarray(PIXELS[0])]), "what is drawn is white"),
        (Image.merge("LA", [Image.fromarray(PIXELS[0]), blank("L", 0)]), "or wholly transparent"),
        (Image.fromarray(DEEP[0]), "001.png holds grey pixels, .*029.png deep ones; bring them to one kind"),
        (Image.fromarray(PIXELS[0][:3]), "029.png is 5×3 pixels, others are 5×6"),
    ],
)
def test_what_would_be_lost_is_refused(last: Image.Image, message: str, tmp_path: Path) -> None:
    images = KINDS["L"][0]
    path = folder(tmp_path, [*images[:-1], last])
    with pytest.raises(ValueError, match=message):
        load_splits(str(path))


def test_values_that_are_no_numbers_are_found_held_and_streamed(tmp_path: Path) -> None:
    broken = (PIXELS / 7).astype(np.float32)
    broken[20, 2, 3] = np.nan
    path = folder(tmp_path, [Image.fromarray(one) for one in broken], "tif")
    for memory in (4096.0, 0.0):
        with pytest.raises(ValueError, match=r"020\.tif: 1 values are NaN or infinite, the first in row 3, column 4"):
            load_splits(str(path), reading=ReadConfig(in_memory_mib=memory))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_a_damaged_image_is_one_line_from_workers_too(workers: int, tmp_path: Path) -> None:
    path = folder(tmp_path, KINDS["L"][0])
    splits = load_splits(str(path), reading=ReadConfig(in_memory_mib=0, workers=workers))
    for file in path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"png is no readable image") as caught:
        list(splits.train.x.batches([torch.arange(4)]))  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)


def test_only_the_first_page_is_read_and_that_is_said(tmp_path: Path, caplog) -> None:
    path = folder(tmp_path, KINDS["L"][0], "tif")
    pages = KINDS["L"][0][:3]
    for i in range(15):
        KINDS["L"][0][i].save(path / f"train/a/{i:03d}.tif", save_all=True, append_images=pages)
    with caplog.at_level(logging.WARNING):
        assert same(read(path), PIXELS / 255)
    assert "001.tif: of 12 images with several pages or frames only the first is read" in caplog.text


# --- how folders lie


def images(path: Path, number: int = 10, value: int = 0) -> None:
    path.mkdir(parents=True)
    for i in range(number):
        pixels = np.full((4, 4), value, np.uint8)
        pixels[0, 0], pixels[3, 3] = i, 255
        Image.fromarray(pixels).save(path / f"{i}.png")


def usual(path: Path, top: str = "") -> None:
    for i, name in enumerate(("cat", "dog")):
        images(path / top / name, 10, 40 * i)


def with_test(path: Path, name: str = "test", number: int = 4) -> None:
    for i, cls in enumerate(("cat", "dog")):
        images(path / name / cls, number, 40 * i)


LAYOUTS = {
    "train": (lambda f: usual(f, "train"), (10, 6, 4)),
    "train, test": (lambda f: (usual(f, "train"), with_test(f)), (13, 7, 8)),
    "train, val": (lambda f: (usual(f, "train"), with_test(f, "val", 3)), (16, 6, 4)),
    "train, val, test": (lambda f: (usual(f, "train"), with_test(f), with_test(f, "val", 3)), (20, 6, 8)),
    "Training, Valid, Testing": (
        lambda f: (usual(f, "Training"), with_test(f, "Testing"), with_test(f, "Valid", 3)), (20, 6, 8)
    ),
    "CLASS": (usual, (10, 6, 4)),
    "CLASS, one called train": (lambda f: (usual(f), (f / "dog").rename(f / "train")), (10, 6, 4)),
    "CLASS in folders": (
        lambda f: [images(f / c / d, 10, 40 * i) for i, c in enumerate(("cat", "dog")) for d in "xy"], (21, 11, 8)
    ),
    "hidden": (
        lambda f: (usual(f), *(images(f / left) for left in (".ipynb_checkpoints", "cat/.thumbs", "__MACOSX/cat"))),
        (10, 6, 4),
    ),
    "empty": (lambda f: (usual(f, "train"), (f / "train" / "new").mkdir()), (10, 6, 4)),
    "forks": (
        lambda f: (usual(f), [(p.parent / f"._{p.name}").write_bytes(b"no") for p in [*f.rglob("*.png")]]), (10, 6, 4)
    ),
    "other files": (
        lambda f: (usual(f), (f / "cat" / "about.txt").write_text("x"), (f / "a.csv").write_text("x")), (10, 6, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders_lie_as_people_lay_them(name: str, tmp_path: Path) -> None:
    make, sizes = LAYOUTS[name]
    make(tmp_path)
    splits = load_splits(str(tmp_path))
    assert tuple(splits.sizes.values()) == sizes
    assert splits.classes == (("cat", "train") if "called train" in name else ("cat", "dog"))
    for part in (splits.train, splits.validation, splits.test):
        assert torch.equal(part.x[:, 0, 1, 1] > 0.1, part.y == 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: images(f / "cat"), "y_train holds one class, 'cat'"),
        (lambda f: usual(f, "photos"), "holds a single folder; give .*photos, if its folders are the classes"),
        (lambda f: (usual(f, "train"), usual(f, "Training")), "Training and train are both folders for train"),
        (lambda f: usual(f, "test"), "has a folder test, but none called train"),
        (lambda f: (usual(f, "train"), images(f / "val" / "cow")), "has class cow, which the training images never"),
    ],
)
def test_folders_that_are_no_data_set(make, message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path))


def test_a_validation_folder_and_a_share_contradict_each_other(tmp_path: Path) -> None:
    LAYOUTS["train, val"][0](tmp_path)
    with pytest.raises(ValueError, match=r"brings its own validation split: leave out --validation 0\.1"):
        load_splits(str(tmp_path), validation=0.1)
    few = load_splits(str(tmp_path), reading=ReadConfig(limit=8))
    assert few.sizes == {"train": 8, "validation": 6, "test": 4}


def test_what_is_passed_over_is_said(tmp_path: Path, caplog) -> None:
    usual(tmp_path, "train")
    (tmp_path / "train" / "new").mkdir()
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "train")
    with caplog.at_level(logging.WARNING):
        load_splits(str(tmp_path))
    assert "folder new holds no images and is passed over" in caplog.text
    assert "1 images lie in no class folder and are passed over" in caplog.text
