"""The page of a run: it says what the other commands say, and a browser loads it without a request."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pyro_compress.cli.main import main
from pyro_compress.compression.prune import kept
from pyro_compress.inspection.gallery import pixel_importance
from pyro_compress.inspection.page import Animation, document, gallery, times
from pyro_compress.inspection.plots import pruning_strip
from pyro_compress.runs.folder import load_run
from pyro_compress.studies import ranking, tables
from pyro_compress.studies.page import sizes
from pyro_compress.studies.results import read_results
from pyro_compress.training.snapshots import read_snapshots

SMALL = ["--hidden", "20,10", "--epochs", "6", "--batch-size", "200", "--device", "cpu", "--threads", "1"]
STUDY = """
name = "small"
datasets = ["digits"]
networks = ["mlp"]
sparsities = [0, 0.5, 0.9]
seeds = [0, 1]
out-of-domain = {digits = "digits"}
[fit]
hidden = [20]
epochs = 4
batch-size = 100
limit = 300
[[methods]]
name = "SGD"
prior = "none"
[[methods]]
name = "sparse variational dropout"
prior = "log-uniform"
[[methods]]
name = "Bayes by Backprop"
prior = "spike-and-slab"
lr = 1e-6
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def ok(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    ok("fit", *SMALL, "--out", made / "run")
    ok("compress", made / "run", "--threads", "1")
    ok("report", made / "run", "-o", made / "page.html", "--draws", "50", "--threads", "1")
    (made / "small.toml").write_text(STUDY)
    ok("compare", made / "small.toml", "--out", made / "results", "--device", "cpu", "--threads", "1", "--elpd")
    ok("report", made / "results", "-o", made / "comparison.html")
    return made


class Page(HTMLParser):
    """Tags, what they refer to, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words = ""
        self.tiles: list[tuple[str, str]] = []
        self.bold = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.words += data + " "
        if self.tags[-2:] == ["div", "b"]:
            if self.bold:
                self.tiles.append((data, self.bold))
            self.bold = "" if self.bold else data


@pytest.mark.parametrize("name", ["page.html", "comparison.html"])
def test_nothing_is_loaded(name: str, folder: Path) -> None:
    text = (folder / name).read_text()
    page = Page(text)
    assert {"iframe", "object", "embed"}.isdisjoint(page.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert page.tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert all(reference.startswith("data:") for reference in page.references)
    assert "@import" not in text
    assert "url(" not in text
    assert len(text) < 1_000_000


def test_the_page_says_what_the_commands_say(folder: Path) -> None:
    page = Page((folder / "page.html").read_text())
    words = re.sub(r"\s+", " ", page.words)
    scores = json.loads(ok("evaluate", folder / "run/network.pcn", "--json"))
    size = os.path.getsize(folder / "run/network.pcn")
    for text in (
        f"{size:,}",
        f"{100 * scores['accuracy']:.2f} %",
        f"{scores['nll_nats']:.4f}",
        "k-hat",
        "leave-one-out",
    ):
        assert text in words
    dense = load_run(folder / "run").posterior.parameters_total * 4
    before = json.loads(ok("inspect", folder / "run", "--draws", "50", "--json"))["test_scores"]["accuracy"]
    assert page.tiles == [
        ("bytes, the whole file", f"{size:,}"),
        ("smaller than float32", f"{times(dense / size)}×"),
        ("test accuracy before", f"{100 * before:.2f} %"),
        ("test accuracy after", f"{100 * scores['accuracy']:.2f} %"),
    ]
    titles = ("From dense to file", "Size against error", "Weights before and after", "Layers of the file", "Training")
    for title in (*titles, "Units above the threshold", "Group scales", "What the first layer reads", "Reliability"):
        assert title in words
    assert "platform" not in words


def test_the_page_of_a_comparison_says_what_its_rows_say(folder: Path) -> None:
    words = re.sub(r"\s+", " ", Page((folder / "comparison.html").read_text()).words)
    rows = read_results(folder / "results")
    for line in (*tables.table(rows), *sizes(rows)):
        for cell in line:
            assert cell.replace("**", "") in words
    assert "Error against bytes" in words
    assert STUDY.strip().splitlines()[-1] in words
    for line in ranking.lines(ranking.read_ranking(folder / "results")):
        assert all(cell in words for cell in line)
    refused = CliRunner().invoke(
        main, ["report", str(folder / "results"), "--network", str(folder / "run/network.pcn"), "--force"]
    )
    assert refused.exit_code == 1
    assert "--network goes with a run" in refused.stderr


def test_ranking(folder: Path) -> None:
    """Posteriors only, per seed, the one that was not trained last; each with the estimate that inspect makes of it."""
    ranked = ranking.read_ranking(folder / "results")
    assert [(one.seed, one.label.split(", ")[1]) for one in ranked] == [
        (seed, label) for seed in (0, 1) for label in ("sparse variational dropout", "Bayes by Backprop")
    ]
    (first,) = [r.config_hash for r in read_results(folder / "results") if r.label.startswith("sparse") and
                (r.seed, r.sparsity, r.ensemble) == (0, 0, False)]  # fmt: skip
    told = json.loads(ok("inspect", folder / "results/runs" / first, "--json"))["sampled"]
    assert ranked[0].elpd == pytest.approx(told["elpd_loo"] * told["rows"], rel=1e-6)
    assert (ranked[0].high_k, ranked[0].rows, ranked[0].elpd_diff) == (told["high_k"], told["rows"], 0)
    assert ranked[1].elpd_diff == pytest.approx(ranked[0].elpd - ranked[1].elpd, rel=1e-6)
    with pytest.raises(ValueError, match="two or more"):
        ranking.rank([r for r in read_results(folder / "results") if r.method == "SGD"], folder / "results")


def test_no_page_without_force(folder: Path, tmp_path: Path) -> None:
    for out, message in ((folder / "page.html", "exists"), (tmp_path / "x/page.html", "is no folder")):
        result = CliRunner().invoke(main, ["report", str(folder / "run"), "-o", str(out)])
        assert result.exit_code == 1
        assert message in result.stderr


def page_of(run: Path) -> str:
    """What a run's page says, made of few draws."""
    ok("report", run, "--draws", "50", "--threads", "1")
    return Page((run / "report.html").read_text()).words


def test_a_network_without_a_posterior_has_a_page(tmp_path: Path) -> None:
    ok("fit", *SMALL, "--prior", "none", "--out", tmp_path / "run")
    words = page_of(tmp_path / "run")
    assert "test accuracy" in words
    assert "nothing to diagnose" in words
    assert "Group scales" not in words


def test_importance_of_pixels(folder: Path) -> None:
    run = load_run(folder / "run")
    importance = pixel_importance(run.posterior)
    assert importance is not None
    gone = ~kept(run.posterior.layers, run.posterior.criterion)["1.weight"].any(0).reshape(8, 8).numpy()
    assert ((importance == 0) == gone).all()


def test_data_that_are_no_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = (rng.normal(0, 0.3, (300, 6)) + y[:, None]).astype(np.float32)
    np.savez(tmp_path / "own.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    ok("fit", *SMALL, "--prior", "normal-jeffreys", "--data", tmp_path / "own.npz", "--out", tmp_path / "run")
    words = page_of(tmp_path / "run")
    assert "test accuracy" in words
    assert "nothing to diagnose" not in words
    assert "Group scales" in words
    assert "Reliability" in words
    assert "What the first layer reads" not in words


@pytest.mark.slow
def test_snapshots_become_an_animation(tmp_path: Path) -> None:
    """One frame per epoch with a posterior, the last of which is what `inspect` counts."""
    ok("fit", *SMALL, "--prior", "log-uniform", "--snapshots", "--out", tmp_path / "run")
    posterior = load_run(tmp_path / "run").posterior
    epochs, tensors = read_snapshots(tmp_path / "run/snapshots.safetensors", posterior.layers)
    assert epochs == [2, 3, 4, 5, 6]
    for name, mask in kept(posterior.layers, posterior.criterion).items():
        assert tensors[name].shape == (5, *mask.shape)
        assert ((tensors[name][-1] != 0) <= mask).all()
    frames = tensors["1.weight"].float().numpy()
    strip, aspect = pruning_strip(frames)
    with Image.open(io.BytesIO(strip)) as image:
        assert image.size == (64, 5 * 20)
        assert aspect == 64 / 20
        last = np.asarray(image.convert("RGB"))[-20:]
    assert ((last == (236, 150, 130)).all(2) == (frames[-1] == 0)).all()  # red where the weight is gone
    words = page_of(tmp_path / "run")
    assert "test accuracy" in words
    assert "nothing to diagnose" not in words
    assert "Group scales" not in words  # there are none under this prior
    assert f"epoch 6, {100 * (frames[-1] != 0).mean():.1f} % left" in words
    assert 'max="4" value="4"' in (tmp_path / "run/report.html").read_text()
    options = [*SMALL, "--prior", "none", "--snapshots", "--out", str(tmp_path / "x")]
    refused = CliRunner().invoke(main, ["fit", *options])
    assert refused.exit_code == 1
    assert "there is none" in refused.stderr
    with pytest.raises(ValueError, match="no snapshots"):
        read_snapshots(tmp_path / "run/posterior.safetensors", posterior.layers)


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page: sizes and broken images, console lines, requests over the network."""

    layout: dict[str, int]
    console: list[str]
    requests: list[str]


FRAME = """<iframe id="f" width="{width}" height="900" style="border:0" src="{page}"></iframe><pre id="out"></pre>
<script>onload = () => {{
  const page = document.getElementById("f").contentDocument, broken = [...page.images].filter(i => !i.naturalWidth);
  document.getElementById("out").textContent = JSON.stringify({{scroll: page.documentElement.scrollWidth,
    client: page.documentElement.clientWidth, broken: broken.length, images: page.images.length}})
}}</script>"""


def seen_in_a_browser(page: Path, width: int, folder: Path) -> Seen:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    frame, log = folder / "frame.html", folder / "net.json"
    frame.write_text(FRAME.format(width=width, page=page.as_uri()))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--enable-logging=stderr",
    ]
    flags += [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--allow-file-access-from-files"]
    command = [CHROMIUM, *flags, "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    layout = re.search(r'<pre id="out">(.*?)</pre>', done.stdout)
    assert layout is not None
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    by_the_page = {p["url"] for p in asked if "url" in p and p.get("initiator", "not an origin") != "not an origin"}
    return Seen(
        layout=json.loads(layout.group(1)),
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
        requests=sorted(url for url in by_the_page if not url.startswith(("file:", "data:"))),
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize(("name", "images"), [("page.html", 8), ("comparison.html", 3)])
def test_in_a_browser(name: str, images: int, width: int, folder: Path, tmp_path: Path) -> None:
    """No console message, no request, nothing wider than the window."""
    seen = seen_in_a_browser(folder / name, width, tmp_path)
    assert seen.console == seen.requests == []
    assert seen.layout["broken"] == 0
    assert seen.layout["images"] >= images
    assert seen.layout["scroll"] <= seen.layout["client"] <= width


PLAYED = """<iframe id="f" src="{page}"></iframe><pre id="out"></pre>
<script>onload = () => {{
  const page = document.getElementById("f").contentDocument, player = page.querySelector(".player");
  const range = player.querySelector("input"), told = () => player.querySelector("output").textContent;
  const seen = [player.querySelector(".controls").hidden, told()];
  range.value = 1; range.oninput(); seen.push(told(), player.querySelector("img").style.top);
  player.querySelector("button").onclick(); seen.push(player.querySelector("button").textContent);
  document.getElementById("out").textContent = JSON.stringify(seen);
}}</script>"""


@pytest.mark.slow
def test_a_player_plays(tmp_path: Path) -> None:
    """The page's policy lets its own script run: the slider moves the strip, the button starts it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    strip, _ = pruning_strip(np.ones((3, 2, 4), np.float32))
    animation = Animation("title", "reading", strip, ("one", "two", "three"), 2.0)
    (tmp_path / "page.html").write_text(document("t", "l", [gallery([animation])]))
    (tmp_path / "frame.html").write_text(PLAYED.format(page=(tmp_path / "page.html").as_uri()))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    address = (tmp_path / "frame.html").as_uri()
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
    seen = re.search(r'<pre id="out">(.*?)</pre>', done.stdout)
    assert seen is not None
    assert json.loads(seen.group(1)) == [False, "three", "two", "-100%", "Pause"]


@pytest.mark.slow
def test_the_browser_would_have_told(tmp_path: Path) -> None:
    """The other way round: a page with all three faults."""
    (tmp_path / "bad.html").write_text(
        '<div style="width:2000px">wide</div><img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>'
    )
    seen = seen_in_a_browser(tmp_path / "bad.html", 390, tmp_path)
    assert seen.console
    assert seen.requests == ["http://127.0.0.1:9/x.png"]
    assert seen.layout["broken"] == 1
    assert seen.layout["scroll"] >= 2000
