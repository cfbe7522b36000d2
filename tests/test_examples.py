"""The examples do what they say, on the machines where they can run."""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pyro_compress.data.splits import load_splits
from pyro_compress.settings import ReadConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = EXAMPLES / "browser" / "model.onnx"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The page, set up as its instructions say, behind a server."""
    if not CHROMIUM or not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs chromium, node and npm")
    folder = EXAMPLES / "browser"
    if not ((folder / "vendor").is_dir() and (folder / "node_modules" / "playwright-core").is_dir()):
        copy = tmp_path_factory.mktemp("page") / "browser"
        folder = shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("node_modules", "vendor"))
        try:
            subprocess.run(["bash", "setup.sh"], cwd=folder, check=True, capture_output=True, timeout=240)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pytest.skip("the npm registry cannot be reached")
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    """Keeps requests out of the test's output."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.slow
def test_the_page_reads_drawn_digits(page: tuple[Path, str]) -> None:
    folder, url = page
    done = subprocess.run(
        ["node", "test_page.mjs", url], cwd=folder, capture_output=True, text=True, timeout=180,
        env=os.environ | {"CHROMIUM": str(CHROMIUM)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("drew") == 6


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
