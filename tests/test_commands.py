"""What all commands have in common: their order, examples that parse, names of options, quiet runs, completion."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from pyro_compress.cli.main import main
from pyro_compress.foreign import NO_CODE
from pyro_compress.runs.folder import Run

ORDER = "fit compress evaluate inspect report info predict export bench compare tune doctor".split()
EXAMPLES = [(name, example) for name, command in main.commands.items() for example in command.examples]
SHARED = {
    "quiet": "fit compress inspect report predict export bench compare tune",
    "as_json": "fit compress evaluate inspect report info predict export bench compare tune doctor",
    "force": "fit compress inspect report predict export doctor",
    "threads": "fit compress evaluate inspect report predict export bench compare tune",
    "device": "fit compress evaluate predict bench compare tune doctor",
    "seed": "fit compress inspect export tune",
}
"""Parameter -> the commands that have it."""
NAMES = {"quiet": ["-q", "--quiet"], "as_json": ["--json"]}
FILE = "fit compress inspect report predict export compare tune doctor".split()
"""Commands that write: `-o` says where."""


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_commands_stand_in_the_order_of_work() -> None:
    lines = run("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == ORDER


def test_the_same_names_everywhere() -> None:
    for parameter, commands in SHARED.items():
        having = {n: [p for p in c.params if p.name == parameter] for n, c in main.commands.items()}
        assert {name for name, found in having.items() if found} == set(commands.split()), parameter
        for found in having.values():
            assert all(one.opts == NAMES.get(parameter, [f"--{parameter}"]) for one in found)
    assert {name for name, c in main.commands.items() if any("-o" in p.opts for p in c.params)} == set(FILE)


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_examples_parse(name: str, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, *words = shlex.split(example, comments=True)
    for word in words:  # a name without suffix may be a folder
        if not word.startswith("-"):
            path = Path(word)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
    assert command == name
    assert len(f"  pyro-compress {example}") <= 100
    main.commands[name].make_context(name, words, parent=click.Context(main))


def test_every_help_ends_in_examples() -> None:
    for name, command in main.commands.items():
        assert 2 <= len(command.examples) <= 3
        told = run(name, "--help").stdout.rstrip().rpartition("Examples:\n")[2].splitlines()
        assert [line.strip() for line in told] == [f"pyro-compress {example}" for example in command.examples]


def test_quiet_says_nothing_but_warnings(fitted_run: Run, tmp_path: Path) -> None:
    small = ("fit", "--hidden", 6, "--epochs", 1, "--device", "cpu", "-o", tmp_path / "run")
    found = run(*small, "-q")
    assert (found.exit_code, found.stdout) == (0, "")
    assert all(line.startswith(("warning: ", "  ")) for line in found.stderr.splitlines())
    found = run("compress", fitted_run.path, "-q", "--sparsity", 0.9999, "-o", tmp_path / "small.pcn")
    assert (found.exit_code, found.stdout) == (0, "")
    assert found.stderr.startswith("warning: ")
    for words in (("export", tmp_path / "small.pcn", "-o", tmp_path / "arrays"),
                  ("predict", tmp_path / "small.pcn", "digits", "-o", tmp_path / "told.csv")):  # fmt: skip
        found = run(*words, "-q")
        assert (found.exit_code, found.output) == (0, "")
        assert words[-1].exists()
    assert run("compress", fitted_run.path, "-q", "-o", tmp_path / "small.pcn").exit_code == 1


def test_a_fit_as_json(tmp_path: Path) -> None:
    found = run("fit", "--hidden", 6, "--epochs", 1, "--device", "cpu", "-o", tmp_path / "run", "--json")
    told = json.loads(found.stdout)
    assert (told["run"], told["epoch"]) == (str(tmp_path / "run"), 1)
    assert "epoch   1" not in found.stderr


@pytest.mark.parametrize(
    ("words", "begun", "wanted"),
    [([], "ex", "export"), (["fit"], "--pri", "--prior"), (["compress", "--rounding"], "comp", "compensated")],
)
def test_completion(words: list[str], begun: str, wanted: str) -> None:
    completer = ShellComplete(main, {}, "pyro-compress", "_PYRO_COMPRESS_COMPLETE")
    assert wanted in [one.value for one in completer.get_completions(words, begun)]


@pytest.mark.parametrize("words", ["fit --no-code --epochs x", "fit --no-code --help", "tune --no-code"])
def test_no_code_ends_with_its_command(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another option is refused: what a program does afterwards is not this command's."""
    monkeypatch.delenv(NO_CODE, raising=False)
    assert run(*words.split()).exit_code in (0, 2)
    assert NO_CODE not in os.environ


def test_no_code_begins_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where its words are only read."""
    monkeypatch.delenv(NO_CODE, raising=False)
    main.commands["fit"].make_context("fit", ["--no-code"], parent=click.Context(main))
    assert NO_CODE not in os.environ
    assert "--no-code" in run("fit", "--no-code", "--net", "math:pi").output
    assert NO_CODE not in os.environ


@pytest.fixture(autouse=True, scope="module")
def heard() -> Iterator[None]:
    """Ctrl-C is heard, by what is started here too, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ORDER)
def test_an_interrupt_is_no_failure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and exit code 130, whatever the command was about."""

    def interrupted(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(main.commands[name], "parse_args", interrupted)
    result = run(name)
    assert (result.exit_code, result.stderr, result.stdout) == (130, "stopped before it was done\n", "")


SLOW = """
import os, signal, torch
def net(input_shape, classes):
    os.kill(os.getpid(), signal.SIGINT)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
"""


def test_an_interrupt_before_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "pyro_compress", "fit", "--net", "slow:net", "--out", "run", "--epochs", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "stopped before it was done"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_interrupt_while_the_program_is_loaded() -> None:
    """It is no command yet that is interrupted."""
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'pyro_compress.cli.main':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from pyro_compress.__main__ import run\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped before it was done\n")
