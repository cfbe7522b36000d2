"""What the README and the docs say to type must work as written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import PAGES, ROOT, blocks, named

from pyro_compress.cli.main import main

README = ROOT / "README.md"
STARTS = ("pyro-compress ", "bash scripts/", "python scripts/", "bash examples/", "python examples/")


def commands() -> list[str]:
    """Every command of every page, without what is said about it."""
    lines = [line for page in PAGES for language in ("", "bash") for block in blocks(page, language)
             for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    told = {line.partition("  #")[0].removeprefix("$ ").strip() for line in lines}
    return sorted(line for line in told if line.startswith(STARTS))


def test_there_are_commands() -> None:
    assert len(commands()) >= 8
    assert {"bash scripts/demo.sh", "bash scripts/test.sh"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_commands_and_flags_exist(command: str) -> None:
    program, *words = shlex.split(command)
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    if program != "pyro-compress":
        script = ROOT / words[0]
        assert script.is_file()
        assert all(flag in script.read_text() for flag in flags)
        return
    known = main.commands[words[0]] if not words[0].startswith("-") else main
    options = {option for parameter in known.params for option in parameter.opts} | {"--help"}
    assert flags <= options
    assert CliRunner().invoke(main, [words[0], "--help"]).exit_code == 0


def shown(text: str) -> str:
    """A line without its numbers: they differ between processors."""
    return " ".join(re.sub(r"[\d.,]+", "0", text).split())


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 700


@pytest.mark.parametrize("epochs", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_the_python_of_the_readme_runs(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(README, "python")
    assert "epochs=60" in block
    namespace: dict = {}
    exec(compile(block.replace("epochs=60", f"epochs={epochs}"), "README.md", "exec"), namespace)
    assert namespace["module"](namespace["fitted"].splits.validation.x).shape == (240, 10)
    assert Path("digits.pcn").stat().st_size == namespace["compressed"].bytes
    if epochs == 60:
        (told,) = blocks(README, "text")
        assert shown(capsys.readouterr().out) == shown(told)


@pytest.mark.slow
def test_the_session_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three commands, and every line that is shown below one of them."""
    monkeypatch.chdir(tmp_path)
    (session,) = [block for block in blocks(README, "") if "$ pyro-compress" in block]
    for part in session.split("$ pyro-compress ")[1:]:
        command, *lines = part.splitlines()
        done = CliRunner().invoke(main, shlex.split(command))
        assert done.exit_code == 0, done.output
        printed = {shown(line) for line in done.output.splitlines()}
        assert {shown(line) for line in lines if line != "..."} <= printed


@pytest.mark.slow
def test_the_demo_keeps_its_result_and_says_what_is_next(tmp_path: Path) -> None:
    """Twice, in a copy whose environment is there: two results, and a command that works as it is printed."""
    for part in ("scripts", "pyro_compress/pcn"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for part in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / part, tmp_path)
    program = tmp_path / ".venv" / "bin" / "pyro-compress"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pyro_compress "$@"\n')
    program.chmod(0o755)
    (stamp,) = re.findall(r'state="\$\((.*?)\)"', (ROOT / "scripts" / "setup.sh").read_text())
    state = subprocess.run(stamp, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / ".venv" / ".installed").write_text(f"{state} \n")
    for name in ("demo", "demo-2"):
        command = ["bash", "scripts/demo.sh", "--hidden", "8", "--epochs", "2"]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "runs" / name / "network.pcn").is_file()
    following = done.stdout.splitlines()[-1].strip()
    done = subprocess.run(shlex.split(following), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo-2" in following
    assert "probability" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith(("http", "mailto")) or (page.parent / target).exists(), target
