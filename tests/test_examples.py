"""The examples do what they say, on the machines where they can run."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import bench_browser
import numpy as np
import pytest
import torch

from pyro_compress.data.splits import load_splits
from pyro_compress.deploy.card import section_of
from pyro_compress.deploy.wasm.build import write_wasm
from pyro_compress.pcn import file
from pyro_compress.settings import ReadConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
BROWSER = EXAMPLES / "browser"
MODEL = BROWSER / "onnx" / "model.onnx"
RECORD = EXAMPLES.parent / "docs/results/records/mnist-lenet-5-caffe-augmented-fit-long-rate1.5-seed2.pcn"


def classify(images: np.ndarray, folder: Path) -> subprocess.CompletedProcess:
    """Run the ONNX Runtime example where torch and this package cannot be imported."""
    np.save(folder / "images.npy", images)
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in ("torch", "pyro_compress"))
    argv = ["onnx_runtime.py", str(MODEL), str(folder / "images.npy")]
    start = f"sys.argv = {argv}; runpy.run_path({str(EXAMPLES / argv[0])!r}, run_name='__main__')"
    code = f"import sys, runpy; {blocked}{start}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_onnx_runtime(mnist_dir: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    test = load_splits("mnist", mnist_dir).test
    pixels = np.rint(test.x.numpy() * 255).astype(np.uint8)
    done = classify(pixels, tmp_path)
    assert done.returncode == 0, done.stderr
    right = np.mean([int(line[0]) == y for line, y in zip(done.stdout.splitlines(), test.y.tolist(), strict=True)])
    assert right > 0.98
    refused = classify(test.x.numpy(), tmp_path)
    assert refused.returncode == 1
    assert "raw integers from 0 to 255; the model divides them by 255 itself" in refused.stderr


needs_chromium = pytest.mark.skipif(bench_browser.chromium() is None, reason="no Chromium is installed")
DRAWN = """
await ready();
const read = {};
for (const digit of Object.keys(DIGITS)) read[digit] = await draw(digit);
const root = page.contentDocument.documentElement, fits = root.scrollWidth <= root.clientWidth;
const before = [at("seen").toDataURL().length, at("bars").querySelector(".best span").textContent];
at("clear").click();
return { read, fits, before, after: at("digit").textContent, status: at("status").textContent, errors };
"""
READ = """
await ready();
const pixels = new Uint8Array(await (await fetch("/pixels")).arrayBuffer()), found = [];
const small = new OffscreenCanvas(28, 28), pen = small.getContext("2d"), ink = at("pad").getContext("2d");
for (let i = 0; i < pixels.length / 784; i++) {
  const image = pen.createImageData(28, 28);
  for (let j = 0; j < 784; j++) image.data.set([...Array(3).fill(pixels[784 * i + j]), 255], 4 * j);
  pen.putImageData(image, 0, 0);
  ink.imageSmoothingEnabled = false;
  ink.drawImage(small, 0, 0, 280, 280);
  at("pad").setPointerCapture = () => {};
  pointer("pointerdown", [-30, -30]);
  pointer("pointerup", [-30, -30]);
  await frames(2);
  found.push(at("digit").textContent);
}
return found;
"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_reads_drawn_digits(width: int) -> None:
    told = bench_browser.answered(DRAWN, window=(width, 800))
    assert told["read"] == {digit: digit for digit in "012347"}
    assert told["before"][1] == "7"
    assert (told["fits"], told["after"], told["errors"]) == (True, "", [])
    sizes = [(BROWSER / name).stat().st_size for name in ("model.wasm", *bench_browser.LOADED)]
    wanted = f"The network has {sizes[0]:,} bytes, the whole page {sum(sizes[1:]):,}. One digit takes "
    assert told["status"].startswith(wanted)
    assert float(told["status"].removeprefix(wanted).removesuffix(" ms.")) < 5


@pytest.mark.slow
@needs_chromium
def test_the_page_reads_mnist(mnist_dir: str) -> None:
    test = load_splits("mnist", mnist_dir).test
    pixels = np.rint(test.x[:30].numpy() * 255).astype(np.uint8)
    found = bench_browser.answered(READ, {"/pixels": pixels.tobytes()})
    assert sum(a == str(b) for a, b in zip(found, test.y[:30].tolist(), strict=True)) >= 29


@pytest.mark.slow
@needs_chromium
def test_the_page_over_onnx_runtime_web() -> None:
    if not (BROWSER / "onnx" / "vendor").is_dir():
        pytest.skip("needs onnxruntime-web: bash examples/browser/onnx/setup.sh")
    told = bench_browser.answered(DRAWN, page="/index.html?onnx")
    assert told["read"] == {digit: digit for digit in "012347"}


@pytest.mark.slow
@needs_chromium
def test_a_network_that_is_missing_is_said() -> None:
    script = 'const told = () => at("status")?.textContent ?? "Loading";'
    script += 'await until(() => !told().startsWith("Loading")); return told();'
    told = bench_browser.answered(script, {"/model.wasm": b"no network"})
    assert told.startswith("The network could not be loaded: WebAssembly")


def test_the_page_is_small_and_its_network_what_is_written_today(tmp_path: Path) -> None:
    size = sum((BROWSER / name).stat().st_size for name in bench_browser.LOADED)
    assert size < 40_000
    assert f"{size:,} bytes" in (BROWSER / "README.md").read_text()
    read_at_start = set(re.findall(r'(?:src=|from |import\(.*: )"(?:\./)?([\w.]+)"', "".join(
        (BROWSER / name).read_text() for name in ("index.html", "page.js")
    )))  # fmt: skip
    assert read_at_start == set(bench_browser.LOADED) - {"index.html", "model.wasm"}
    if find_spec("ziglang") is None:
        pytest.skip("needs ziglang")
    held = section_of((BROWSER / "model.wasm").read_bytes())
    write_wasm(file.read(RECORD), json.loads(held), tmp_path / "model.wasm")
    for name in ("model.wasm", "model.js"):
        assert (tmp_path / name).read_bytes() == (BROWSER / name).read_bytes()


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_page_prepares_drawings_as_mnist_was(mnist_dir: str, tmp_path: Path) -> None:
    """An MNIST digit, enlarged tenfold as a drawing, comes back as the digit it was."""
    x = load_splits("mnist", mnist_dir).test.x[:50, 0].numpy()
    drawings = np.rint(x * 255).astype(np.uint8).repeat(10, 1).repeat(10, 2)
    (tmp_path / "drawings.bin").write_bytes(drawings.tobytes())
    script = f"""
        import {{ readFileSync }} from "node:fs";
        import {{ toMnist }} from {json.dumps((EXAMPLES / "browser" / "preprocess.js").as_uri())};
        const all = new Uint8Array(readFileSync({json.dumps(str(tmp_path / "drawings.bin"))}));
        const images = [...Array(50).keys()].map((i) => [...toMnist(all.subarray(i * 78400, (i + 1) * 78400), 280)]);
        console.log(JSON.stringify([toMnist(new Uint8Array(78400), 280), images]));
    """
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    nothing, images = json.loads(done.stdout)
    assert nothing is None
    got = np.array(images, np.float32).reshape(50, 28, 28) / 255
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(got, x, strict=True)]
    assert np.median(correlation) > 0.99
    rows, columns = np.mgrid[:28, :28] + 0.5
    for image in got:  # the centre of mass lies where MNIST has it, to half a pixel
        assert abs((image * rows).sum() / image.sum() - 14.5) < 0.51
        assert abs((image * columns).sum() / image.sum() - 14.5) < 0.51


def test_word_languages(tmp_path: Path) -> None:
    """A list per language, of either encoding; words that two of them have are in no split."""
    spec = importlib.util.spec_from_file_location("word_languages", EXAMPLES / "word_languages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for number, name in enumerate(module.LANGUAGES):
        words = [f"{letter}{chr(0xE0 + number)}bc/S" for letter in "klmnopqrst"] + ["same", "no", "o'clock", "\u0142ab"]
        text = "\n".join(words if name != "swedish" else words[:-1])
        (tmp_path / name).write_bytes(text.encode("latin-1" if name == "swedish" else "utf-8"))
    program, out = EXAMPLES / "word_languages.py", tmp_path / "words.npz"
    command = [sys.executable, str(program), str(out), "--lists", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    splits = load_splits(str(out), reading=ReadConfig(tokens=256))
    x = torch.cat([part.x for part in (splits.train, splits.validation, splits.test)])
    y = torch.cat([part.y for part in (splits.train, splits.validation, splits.test)])
    assert torch.equal(x[:, 1], 0xE0 + y)  # the language's own letter
    assert len({bytes(row.tolist()) for row in x}) == len(x) == 80
    assert module.network((20,), 8)(x).shape == (80, 8)
    (tmp_path / "dutch").unlink()
    failed = subprocess.run(command, capture_output=True, text=True)
    assert "has no dutch; the packages are named at the top of this file" in failed.stderr


def test_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that come later in their second, in noise, are the same frequencies later; both networks read them."""
    monkeypatch.syspath_prepend(EXAMPLES)
    keywords = import_module("keywords")
    tone = np.sin(2 * np.pi * 1000 * np.arange(keywords.RATE) / keywords.RATE)
    x = keywords.heard(np.stack([tone, 0 * tone]), np.random.default_rng(0))
    assert x.shape == (2, 24, 49)
    assert set(x[0].argmax(0)) == {int(keywords.filters()[40].argmax())}  # 1,000 Hz is the 40th of 25 Hz
    assert x[0].max() > x[1].max() + 1
    for net in (keywords.gru, keywords.transformer):
        assert net((24, 49), 10)(torch.from_numpy(x)).shape == (2, 10)


def test_digit_masks(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "digit_masks.py"), str(tmp_path / "scans"), "--images", "30"]
    subprocess.run(command, check=True, capture_output=True)
    splits = load_splits(str(tmp_path / "scans"), reading=ReadConfig("segmentation"))
    assert splits.input_shape == (1, 48, 48)
    labels = splits.train.y
    ground, ink, none = ((labels == 0).sum(), (labels > 0).sum(), (labels == -100).sum())
    assert ground > ink > none > 0
    bright = splits.train.x[:, 0]
    assert abs(float(bright[labels > 0].mean() - bright[labels == 0].mean())) < 0.2  # no threshold tells them apart
