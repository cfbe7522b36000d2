"""Tutorials, guides and reference, typed in as they stand: one page is one session, in a folder of its own.

The quick suite leaves them out; commands and flags of every page are held by `test_readme.py` there. Here every command
of this program runs, every block of Python, every file that a page writes, and what is shown is what comes. Tutorials
start from nothing. Guides start in a folder that holds what their commands name: a run, a file, photos, a table.
`<!-- not run: REASON -->` before a block leaves it out.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pytest
from click.testing import CliRunner
from pages import DOCS, ROOT, named
from PIL import Image

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.cli.page import page as command_line

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
GUIDES = sorted(page for kind in ("how-to", "reference", "explanation") for page in (DOCS / kind).glob("*.md"))
FENCE = re.compile(r"^(<!-- not run: [^\n]*\n)?```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COUNTED = "posterior.md"
"""The page whose printed counts are compared, and not only their words."""


def worded(text: str) -> str:
    """A line without its numbers: they differ between processors."""
    return " ".join(re.sub(r"[-\d.,]+", "0", text).split())


def test_notebooks_are_the_tutorials() -> None:
    """What runs as a page runs as a notebook: the same blocks in the same order."""
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "scripts" / "notebooks.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    written = sorted((DOCS / "tutorials" / "notebooks").glob("*.ipynb"))
    assert [one.stem for one in written] == [page.stem for page in TUTORIALS]
    for page, one in zip(TUTORIALS, written, strict=True):
        assert one.read_text() == made.notebook(page.read_text()), "python scripts/notebooks.py"
        sources = ["".join(cell["source"]) for cell in json.loads(one.read_text())["cells"]]
        assert any(source.startswith(("!pyro-compress ", "import ", "%%writefile")) for source in sources)


class Session:
    """What a reader does, block by block."""

    def __init__(self) -> None:
        self.names: dict = {"__name__": "page"}
        self.printed = ""
        self.kind = ""

    def command(self, line: str) -> None:
        program, *words = shlex.split(line, comments=True)
        if program == "pyro-compress":
            done = CliRunner().invoke(main, words)
            assert done.exit_code == 0, (line, done.output)
            self.printed = done.output
        elif program == "cc" and shutil.which("cc"):
            subprocess.run([program, *words], check=True)
        elif program == "python" and words[0] == "examples/digit_masks.py":
            subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:-1], "40"], check=True)

    def shell(self, block: str) -> None:
        """Commands, and lines of what each of them prints."""
        lines = block.replace("\\\n", " ").splitlines()
        if not any(line.startswith("$ ") for line in lines):
            lines = [f"$ {line}" for line in lines]
        shown: list[str] = []
        for line in [*lines, "$ "]:
            if line.startswith("$ "):
                printed = {worded(one) for one in self.printed.splitlines()}
                missing = [one for one in shown if worded(one) not in printed]
                assert not missing, (missing, self.printed)
                shown, self.printed = [], ""
                if line != "$ ":
                    self.command(line.removeprefix("$ "))
            elif line != "...":
                shown.append(line)

    def python(self, block: str) -> None:
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")  # ArviZ's own, about high Pareto k: the subject of a page
            exec(compile(block, "page", "exec"), self.names)
        self.printed = printed.getvalue()

    def text(self, block: str, counted: bool) -> None:
        """The end of what the last block printed; counts may differ a little between machines, verdicts may not."""
        wanted = block.splitlines()
        for line, told in zip(wanted, self.printed.splitlines()[-len(wanted) :], strict=True):
            assert worded(line) == worded(told)
            numbers = [[int(one) for one in re.findall(r"\d+", text)[-2:]] for text in (line, told)]
            if counted and len(numbers[0]) == 2:
                (count, of), (found, total) = numbers
                assert of == total
                assert abs(count - found) <= 0.1 * total


def typed(page: Path, monkeypatch: pytest.MonkeyPatch, shorter: Callable[[str], str] = str) -> None:
    """Every block of a page, in the working directory."""
    text = page.read_text(encoding="utf-8")
    if "arviz" in text:
        pytest.importorskip("arviz")
        from pyro_compress.inspection import arviz_compat

        arviz_compat.arviz()  # imports it without its daily notice
    monkeypatch.syspath_prepend(".")
    monkeypatch.setenv("PYRO_COMPRESS_NO_CODE", "")  # what a command sets ends with the page
    pyro.clear_param_store()
    before, session = set(sys.modules), Session()
    for left_out, language, told, block in FENCE.findall(text):
        title = re.search(r'title="([^"]+)"', told)
        if left_out:
            continue
        if title:
            Path(title[1]).write_text(shorter(block))
        elif language == "python":
            session.python(shorter(block))
        elif language in ("", "sh"):
            session.shell(shorter(block))
        elif language == "text" and session.kind == "python":
            session.text(block, page.name == COUNTED)
        session.kind = language
    for name in set(sys.modules) - before:
        if str(Path.cwd()) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    pyro.clear_param_store()


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=named)
def test_tutorials_go_as_they_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed(page, monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the guides name: runs, a file, photos, a table, texts, a network, its data."""
    folder = tmp_path_factory.mktemp("home")
    with contextlib.chdir(folder):
        rng = np.random.default_rng(0)
        for index in range(60):
            place = Path("photos") / ("cats" if index % 3 else "dogs") / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(place)
        rows = rng.uniform(0, 9, (200, 3))
        lines = [f"{a:.2f},{b:.2f},{2 * a + b + 0.1 * c:.2f}" for a, b, c in rows]
        Path("houses.csv").write_text("\n".join(["area,rooms,price", *lines]))
        for name in ("book", "other"):
            Path(f"{name}.txt").write_text("".join(rng.choice(list("abcdefgh \n"), 9000)))
        small = (
            "from torch import nn\n\n\ndef small(input_shape, classes):\n    return nn.Sequential("
            "nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n"
        )
        Path("nets.py").write_text(small)
        sys.path.insert(0, str(folder))
        fitted = pc.fit("mlp", "digits", prior="log-uniform", hidden=(20,), epochs=4, seed=0)
        fitted.save("runs/digits")
        fitted.compress(sparsity=0.5).save("network.pcn")
        done = CliRunner().invoke(main, shlex.split("fit --net nets:small --epochs 1 --out runs/digits-small"))
        assert done.exit_code == 0, done.output
        sys.path.remove(str(folder))
        del sys.modules["nets"]
    return folder


def shortened(text: str) -> str:
    """Fewer epochs, trials and draws: that a line works is asked for here, not what it reaches."""
    text = re.sub(r"(pyro-compress fit(?![^\n]*(?:--epochs|--dry-run|--resume))[^\n]*)", r"\1 --epochs 2", text)
    for pattern, by in (
        (r"--epochs \d+", "--epochs 2"), (r"epochs = \d+", "epochs = 2"), (r"trials = \d+", "trials = 3"),
        (r"--trials \d+", "--trials 4"), (r"--finetune \d+", "--finetune 1"),
        (r"--tolerance [\d.]+", "--tolerance 0.9"),
    ):  # fmt: skip
        text = re.sub(pattern, by, text)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_guides_work(page: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    typed(page, monkeypatch, shortened)


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=named)
def test_guides_are_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").split()) <= 300


def test_user_pages_are_short_together() -> None:
    pages = [page for kind in ("tutorials", "how-to", "explanation") for page in (DOCS / kind).glob("*.md")]
    assert sum(len(page.read_text(encoding="utf-8").split()) for page in pages) <= 15_000


def test_every_page_is_listed() -> None:
    """In the navigation of the site, and the guides on its first page."""
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    first = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).as_posix()
        assert f" {name}\n" in listed, name
        assert page.parent.name not in ("tutorials", "how-to", "explanation") or f"({name})" in first, name


def test_the_page_of_the_command_line_is_what_help_says() -> None:
    told = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    assert told == command_line(), "python -m pyro_compress.cli.page > docs/reference/command-line.md"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mkdocstrings"), reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="pyro_compress.{home}.{name}"' in page for name, home in pc._HOMES.items())
