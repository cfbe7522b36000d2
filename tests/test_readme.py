"""What the README and the docs say to type must work as written."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyro_compress.cli.main import main

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(path.name, block) for path in DOCS for block in pattern.findall(path.read_text())]


def commands() -> list[str]:
    lines = [line.partition("  #")[0].removeprefix("$ ") for _, block in blocks("") for line in block.splitlines()]
    return sorted(
        {
            line.strip()
            for line in lines
            if line.startswith(
                ("pyro-compress ", "bash scripts/", "python scripts/", "bash examples/", "python examples/")
            )
        }
    )


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


# the session of docs/diagnostics.md has a test of its own
@pytest.mark.parametrize(("name", "block"), [b for b in blocks("python") if b[0] == "README.md"])
def test_python_examples_run(name: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(block, name, "exec"), namespace)
    assert namespace["module"](namespace["splits"].validation.x).shape == (240, 10)
    assert namespace["probabilities"].shape == (20, 240, 10)


def test_links_lead_somewhere() -> None:
    for path in DOCS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"
