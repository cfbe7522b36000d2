"""Every name of docs/reference/python.md is there, and every script of examples/python runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyro
import pytest

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.runs.in_memory import Fitted

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
SCRIPTS = sorted((ROOT / "examples" / "python").glob("*.py"))
SAID = {
    "nuts": "test by draws: accuracy", "own_prior": "values kept", "own_svi": "svi.pcn:", "two_inputs": "prices.pcn",
}  # fmt: skip
"""Script -> what it prints at its end."""


@pytest.fixture(autouse=True)
def _store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def test_scripts_are_short() -> None:
    assert {script.stem for script in SCRIPTS} == SAID.keys()
    for script in SCRIPTS:
        assert len(script.read_text().splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_scripts_run(script: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert SAID[script.stem] in done.stdout
    if script.stem == "nuts":
        command = [sys.executable, "-m", "pyro_compress", "inspect", "nuts", "--draws", "50"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "0.weight" in done.stdout


def test_every_command_is_a_function() -> None:
    """The table of the page names every command, and functions and methods that are there."""
    rows = re.findall(r"^\| (?:`([\w -]+)[^|]*`)? *\| (`pc\.[^|]*) \|", PAGE, re.MULTILINE)
    assert {command.split()[0] for command, _ in rows if command} == main.commands.keys()
    for _, function in rows:
        for name in re.findall(r"pc\.(\w+)", function):
            assert callable(getattr(pc, name))
            assert name in dir(pc)
        for method in re.findall(r"\)\.(\w+)", function):
            assert callable(getattr(Fitted, method))


def test_every_public_name_has_its_place_on_the_page() -> None:
    told = re.findall(r"^::: pyro_compress\.([\w.]+)$", PAGE, re.MULTILINE)
    assert sorted(told) == sorted(f"{home}.{name}" for name, home in pc._HOMES.items())
