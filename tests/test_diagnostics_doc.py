"""The session of docs/diagnostics.md, typed in as it stands there."""

import contextlib
import io
import re
import shlex
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyro_compress.cli.main import main
from pyro_compress.inspection import arviz_compat

DOC = (Path(__file__).parents[1] / "docs/diagnostics.md").read_text()
SESSION = DOC[DOC.index("## A session with ArviZ") :]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SESSION, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and line runs; counts may differ a little between machines, verdicts may not."""
    monkeypatch.chdir(tmp_path)
    for line in blocks("")[0].splitlines():
        done = CliRunner().invoke(main, shlex.split(line.removeprefix("$ pyro-compress ")))
        assert done.exit_code == 0, done.output
    arviz_compat.arviz()  # imports it without its daily notice
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")  # ArviZ's own, about high Pareto k: the subject of the session
        exec(compile(blocks("python")[0], "diagnostics.md", "exec"), {})
    told, shown = printed.getvalue().splitlines()[-5:], blocks("text")[0].splitlines()
    assert told[-1] == shown[-1]
    for line, expected in zip(told[:-1], shown[:-1], strict=True):
        (count, of), (wanted, total) = (re.findall(r"\d+", text)[-2:] for text in (line, expected))
        assert re.sub(r"\d+", "", line) == re.sub(r"\d+", "", expected)
        assert of == total
        assert abs(int(count) - int(wanted)) <= 0.1 * int(total)
