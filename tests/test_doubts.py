"""What is doubtful of a result stands in the last lines of the command that found it, whatever found it."""

import json
import logging
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from pyro_compress.cli.commands import Command
from pyro_compress.cli.main import main
from pyro_compress.doubts import doubt, gathered, keep, kept

log = logging.getLogger("pyro_compress.test")
FIT = ["fit", "--epochs", "1", "--hidden", "4", "--threads", "1", "--prior", "none"]


def test_doubts_are_kept_once_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    with gathered() as found:
        doubt(log, "one")
        keep("two")
        doubt(log, "one")
        doubt(log, "")
        assert kept() == ["one", "two"]
    assert found == ["one", "two"]
    assert [record.getMessage() for record in caplog.records] == ["one", "one"]


def test_nobody_gathers(caplog: pytest.LogCaptureFixture) -> None:
    doubt(log, "a library's user sees the log alone")
    assert kept() == []
    assert len(caplog.records) == 1


def test_whoever_gathers_inside_has_them_alone() -> None:
    with gathered() as outer:
        with gathered() as inner:
            keep("of a trial")
        keep("of the result")
    assert (inner, outer) == (["of a trial"], ["of the result"])


@pytest.mark.parametrize("as_json", [False, True])
def test_a_command_ends_in_them(as_json: bool) -> None:
    @click.command(cls=Command)
    @click.option("--json", "as_json", is_flag=True)
    def work(as_json: bool) -> None:
        keep("it may be wrong")
        click.echo("{}" if as_json else "result")

    result = CliRunner().invoke(work, ["--json"] * as_json)
    assert result.exit_code == 0
    assert result.stdout == ("{}\n" if as_json else "result\nwarning: it may be wrong\n")
    assert result.stderr == "warning: it may be wrong\n" * as_json


def table(path: Path) -> list[str]:
    """A constant column."""
    rows = np.random.default_rng(0).normal(size=(60, 2))
    lines = [f"{a:.3f},{b:.3f},7,{'yes' if a > 0 else 'no'}" for a, b in rows]
    path.write_text("\n".join(["a,b,same,c", *lines]) + "\n")
    return ["--data", str(path), "--target", "c"]


def labels(path: Path) -> list[str]:
    """A label that often means that there is none."""
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = np.arange(60) % 3
    np.savez(path, x_train=x, y_train=np.where(y == 2, 255, y), x_test=x[:9], y_test=y[:9] % 2)
    return ["--data", str(path)]


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (table, "rows.csv", "column 'same' is the same in all training rows: it says nothing"),
        (labels, "rows.npz", "if 255 marks examples to ignore, leave these out"),
    ],
)
def test_notes_on_data_stand_in_the_last_lines(make, name: str, said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [*FIT, *make(tmp_path / name), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.stdout.split("next: ")[1].split())


SOFTMAX = "the network ends in a softmax"
NET = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(3, 3), nn.Softmax(1))\n"


def test_a_softmax_at_the_end_is_said_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fit, and by whoever compresses it; beside JSON on standard error."""
    (tmp_path / "ends_in_softmax.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = str(tmp_path / "run")
    words = [word for word in FIT if word not in ("--hidden", "4")]
    data = labels(tmp_path / "a.npz")
    result = CliRunner().invoke(main, [*words, *data, "--net", "ends_in_softmax:net", "--out", run])
    assert result.exit_code == 0, result.output
    assert SOFTMAX in " ".join(result.stdout.split("warning: ", 1)[1].split())
    result = CliRunner().invoke(main, ["compress", run, "--threads", "1", "--sparsity", "0.1", "--json"])
    assert result.exit_code == 0, result.output
    assert SOFTMAX in " ".join(json.loads(result.stdout)["warnings"])
    assert SOFTMAX in " ".join(result.stderr.split())
