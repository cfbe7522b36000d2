"""What a network takes in a browser: bytes, time to load, time per digit and accuracy of examples/browser in Chromium.

    python scripts/bench_browser.py --data-dir data

Every test digit is given to the WebAssembly export, and to ONNX Runtime Web where `examples/browser/onnx/setup.sh` has
fetched it, both in one page, in turns of `TURN` digits, one digit at a time. Rows go to docs/results/browser.json.
`--smoke` takes few digits; `--screenshot FILE WIDTH` draws a digit and takes a picture of the page instead.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.data.splits import load_splits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "examples" / "browser"
LOADED = ("index.html", "page.js", "preprocess.js", "model.js", "model.wasm")
"""What a visitor of the page loads."""
TURN = 250
"""Digits per turn; a browser's clock is coarse."""
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" src="%s" style="border:0;width:100vw;height:100vh"></iframe>
<script>
const page = document.getElementById("page");
const arc = (cx, cy, rx, ry, from, to) => [...Array(25).keys()].map((i) => from + ((to - from) * i) / 24)
  .map((a) => [cx + rx * Math.cos(a), cy + ry * Math.sin(a)]);
const PI = Math.PI, DIGITS = {
  0: [arc(140, 140, 50, 85, -PI / 2, 1.5 * PI)], 1: [[[150, 50], [140, 230]]],
  2: [[...arc(140, 100, 50, 50, -PI, 0.2 * PI), [90, 220], [205, 220]]],
  3: [[...arc(130, 95, 50, 42, -0.8 * PI, 0.5 * PI), ...arc(130, 180, 55, 45, -0.5 * PI, 0.8 * PI)]],
  4: [[[110, 50], [85, 150], [200, 150]], [[175, 60], [165, 235]]], 7: [[[80, 60], [200, 60], [130, 230]]],
};
const until = async (met) => { while (!met()) await new Promise((go) => setTimeout(go, 10)); };
const frames = async (n) => { while (n--) await new Promise((go) => page.contentWindow.requestAnimationFrame(go)); };
const errors = [];
async function ready() {
  await until(() => page.contentDocument?.body?.dataset.ready);
  page.contentWindow.addEventListener("error", (event) => errors.push(event.message));
}
const at = (id) => page.contentDocument.getElementById(id);
function pointer(kind, [x, y]) {
  const pad = at("pad"), box = pad.getBoundingClientRect(), scale = box.width / pad.width;
  const place = { clientX: box.left + x * scale, clientY: box.top + y * scale, bubbles: true };
  pad.dispatchEvent(new page.contentWindow.PointerEvent(kind, { ...place, pointerId: 1 }));
}
async function draw(digit) {
  at("pad").setPointerCapture = () => {};
  at("clear").click();
  for (const stroke of DIGITS[digit]) {
    pointer("pointerdown", stroke[0]);
    for (const place of stroke) pointer("pointermove", place);
    pointer("pointerup", stroke.at(-1));
  }
  await frames(3);
  return at("digit").textContent;
}
(async () => {
  let told;
  try { told = await (async () => { %s })(); } catch (error) { told = { error: `${error}` }; }
  await fetch("/told", { method: "POST", body: JSON.stringify(told) });
})();
</script>
<img src="/wait" hidden>
"""
"""A page around the page: it draws on it, reads it, and tells what it found; only then has it loaded."""
MEASURE = """
const pixels = new Uint8Array(await (await fetch("/pixels")).arrayBuffer());
const labels = new Uint8Array(await (await fetch("/labels")).arrayBuffer());
const turn = %d, engines = [];
for (const [name, address] of %s) {
  const started = performance.now(), net = await (await import(address)).load();
  await net.run(pixels.subarray(0, 784));
  engines.push({ name, net, load_ms: performance.now() - started, turns: [], right: 0 });
}
for (let first = 0; first < labels.length; first += turn)
  for (const engine of engines) {
    const end = Math.min(first + turn, labels.length), found = [], started = performance.now();
    for (let i = first; i < end; i++) found.push(await engine.net.run(pixels.subarray(784 * i, 784 * i + 784)));
    engine.turns.push((performance.now() - started) / (end - first));
    found.forEach((y, i) => { engine.right += y.indexOf(Math.max(...y)) === labels[first + i]; });
  }
return engines.map(({ net, ...rest }) => rest);
"""


def chromium() -> str | None:
    """The browser: `$CHROMIUM`, or what is on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder and some more, and a place to tell results; says nothing."""

    more: Mapping[str, bytes]
    told: Queue
    done: threading.Event

    def do_GET(self) -> None:
        if self.path == "/wait":
            self.done.wait()
        if self.path not in self.more:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path.endswith(".html") else "application/octet-stream")
        self.end_headers()
        self.wfile.write(self.more[self.path])
        return None

    def do_POST(self) -> None:
        self.told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.done.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None: ...


@contextmanager
def served(folder: Path, more: Mapping[str, bytes]) -> Iterator[tuple[str, Queue]]:
    """An address under which a folder and some more files lie, and what is told there."""
    kind = type("Served", (Handler,), {"more": more, "told": Queue(), "done": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", kind.told
        finally:
            kind.done.set()
            server.shutdown()
            thread.join()


def answered(
    script: str, more: Mapping[str, bytes] | None = None, page: str = "/index.html",
    window: tuple[int, int] = (1100, 800), picture: Path | None = None, seconds: float = 120,
) -> Any:  # fmt: skip
    """What the body of an async function returns in Chromium, beside the page in a frame.

    Raises:
        RuntimeError: it fails, or does not answer in time.
    """
    browser = chromium()
    assert browser is not None
    harness = {"/harness.html": (HARNESS % (page, script)).encode(), **(more or {})}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, served(PAGE, harness) as (address, told):
        shot = [f"--screenshot={picture}"] if picture else []
        size = f"--window-size={window[0]},{window[1]}"
        command = [browser, *FLAGS, f"--user-data-dir={profile}", size, *shot, f"{address}/harness.html"]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = told.get(timeout=seconds)
            if picture:
                running.wait(timeout=seconds)
        except Empty as error:
            raise RuntimeError(f"the page does not answer within {seconds:g} s") from error
        finally:
            running.terminate()
            running.wait()
    if isinstance(found, dict) and "error" in found:
        raise RuntimeError(found["error"])
    return found


def measured(pixels: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """A row per engine, for digits `(n, 784)` of bytes."""
    engines = {"WebAssembly": "/model.js", "ONNX Runtime Web": "/onnx/runtime.js"}
    files = {"WebAssembly": ["model.wasm", "model.js"]}
    vendor = PAGE / "onnx" / "vendor"
    if vendor.is_dir():
        files["ONNX Runtime Web"] = ["onnx/model.onnx", "onnx/runtime.js"]
        files["ONNX Runtime Web"] += [f"onnx/vendor/{path.name}" for path in vendor.iterdir()]
    asked = [[name, address] for name, address in engines.items() if name in files]
    more = {"/pixels": pixels.tobytes(), "/labels": labels.astype(np.uint8).tobytes()}
    rows = []
    for told in answered(MEASURE % (min(TURN, len(labels)), json.dumps(asked)), more, "about:blank", seconds=500):
        sizes = [(PAGE / part).stat().st_size for part in files[told["name"]]]
        turns = np.array(told["turns"])
        rows.append({
            "engine": told["name"], "network_bytes": sizes[0], "runtime_bytes": sum(sizes[1:]),
            "load_ms": told["load_ms"],
            "digit_ms": float(np.median(turns)), "digit_p95_ms": float(np.quantile(turns, 0.95)),
            "accuracy": told["right"] / len(labels), "digits": len(labels),
        })  # fmt: skip
    version = subprocess.run([str(chromium()), "--version"], capture_output=True, text=True, check=True).stdout.split()
    page = sum((PAGE / name).stat().st_size for name in LOADED)
    return {"rows": rows, "page_bytes": page, "chromium": next(word for word in version if word[0].isdigit())}


def browser_table(told: dict[str, Any]) -> list[str]:
    """Markdown of the rows."""
    lines = ["| in Chromium | network, bytes | what runs it, bytes | ready after, ms | one digit, ms | test accuracy |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in told["rows"]:
        cells = [row["engine"], f"{row['network_bytes']:,}", f"{row['runtime_bytes']:,}", f"{row['load_ms']:,.0f}"]
        cells += [f"{row['digit_ms']:.3f}", f"{100 * row['accuracy']:.2f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "browser.json")
    parser.add_argument("--screenshot", nargs=2, metavar=("FILE", "WIDTH"))
    parser.add_argument("--smoke", action="store_true", help="few digits, of noise")
    options = parser.parse_args()
    if chromium() is None:
        raise ValueError("no Chromium: install it (Debian: apt install chromium) or name it in CHROMIUM")
    if options.screenshot:
        picture, width = Path(options.screenshot[0]).absolute(), int(options.screenshot[1])
        answered('await ready(); await draw(3); return "drawn";', window=(width, 620), picture=picture)
        return
    if options.smoke:
        pixels, labels = np.random.default_rng(0).integers(0, 256, (20, 784), np.uint8), np.arange(20) % 10
    else:
        test = load_splits("mnist", options.data_dir).test
        pixels, labels = np.rint(test.x.numpy() * 255).astype(np.uint8), test.y.numpy()
    told = measured(pixels, labels)
    write_atomically(options.out, (json.dumps(told, indent=1) + "\n").encode())
    print("\n".join(browser_table(told)))


if __name__ == "__main__":
    run_script(main)
