"""Every script runs with --smoke and explains itself with --help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))


def run(script: Path, *arguments: str, cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help(script: Path, tmp_path: Path) -> None:
    assert "--smoke" in run(script, "--help", cwd=tmp_path)


def test_results_priors(tmp_path: Path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "results_priors")
    run(script, "--smoke", "--out", "rows.json", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["report"]["file_bytes"] > 0
    assert [part["tolerance"] for part in row["structural"]] == [0.0, 0.0005, 0.001]
    assert all(part["weights"] > 0 for part in row["structural"])
    assert "digits, mlp | horseshoe | 5" in run(script, "--table", "--out", "rows.json", cwd=tmp_path)


def test_bench_estimators(tmp_path: Path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "bench_estimators")
    run(script, "--smoke", "--json", "rows.json", cwd=tmp_path)
    rows = {row["estimator"]: row["relative"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["local"] == 1
    assert set(rows) == {"weight", "local", "flipout"}


def test_fuzz_files(tmp_path: Path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "fuzz_files")
    assert run(script, "--smoke", "--keep", "hostile", cwd=tmp_path).startswith("300 inputs: ")


@pytest.mark.parametrize("script", sorted((SCRIPTS[0].parent / "records").glob("*.py")), ids=lambda path: path.stem)
def test_records(script: Path, tmp_path: Path) -> None:
    assert "--smoke" in run(script, "--help", cwd=tmp_path)
    run(script, "--smoke", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "docs" / "results" / "records" / "records.json").read_text())
    assert (tmp_path / "docs" / "results" / "records" / row["file"]).stat().st_size == row["bytes"]
    assert row["finetune_epochs"] > 0
