"""The command `doctor`: every way of working tried, what fails said."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyro_compress.cli.main import main
from pyro_compress.runs import doctor as doctors
from pyro_compress.runs.doctor import Check, doctor
from pyro_compress.runs.ways import WAYS, Missing

QUICK = ("fit, eager", "compress", "predict", "export numpy", "export .c", "export .safetensors", "tune")


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Ways that take no time: a compiler and several processes are for the slow tests."""
    few = {name: WAYS[name] for name in QUICK}
    monkeypatch.setattr(doctors, "WAYS", few)
    return few


def run(*words: object):
    return CliRunner().invoke(main, ["doctor", *map(str, words)])


def test_what_works_works(ways: dict, tmp_path: Path) -> None:
    result = run("--device", "cpu", "-o", tmp_path / "doctor.json")
    assert result.exit_code == 0, result.output
    for name in ways:
        assert any(line.startswith(name) and " works " in line for line in result.stdout.splitlines())
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert found["machine"]["--device auto"] == "cpu"
    assert found["packages"]["torch"].startswith("2.")
    assert [check["name"] for check in found["checks"]] == list(ways)
    notes = {check["name"]: check["note"] for check in found["checks"]}
    assert notes["tune"].startswith("2 trials, by Optuna ")  # it was tried
    assert notes["predict"] == "360 inputs"
    again = run("-o", tmp_path / "doctor.json")
    assert again.exit_code == 1
    assert "replace it with --force" in again.output
    (tmp_path / "other.json").write_text('{"of": "somebody"}')
    assert "no report of doctor of this program" in run("-o", tmp_path / "other.json", "--force").output


def test_the_function_writes_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctors, "WAYS", {"nothing": lambda device, place: "done"})
    found = doctor("cpu", out=(out := tmp_path / "d.json"))
    assert json.loads(out.read_text()) == json.loads(found.to_json())
    with pytest.raises(ValueError, match="replace it with"):
        doctor("cpu", out=str(out))
    assert doctor("cpu", out=str(out), force=True).checks[0].note == "done"


def test_what_fails_is_said_and_the_rest_goes_on(ways: dict) -> None:
    def broken(device: str, place: Path) -> str:
        raise RuntimeError("an old driver\nand more of it")

    def absent(device: str, place: Path) -> str:
        raise Missing("no card")

    ways.clear()
    ways |= {"fit, on the moon": broken, "fit, on a card": absent, "fit, eager": lambda device, place: "done"}
    seen = list[Check]()
    found = doctor("cpu", on_check=seen.append)
    assert tuple(seen) == found.checks
    assert [check.name for check in found.failed] == ["fit, on the moon"]
    assert found.checks[-2] == Check("fit, on a card", "missing", "no card", found.checks[-2].seconds)
    assert found.checks[-1].outcome == "works"
    result = run()
    assert result.exit_code == 1
    assert "1 of 3 ways fail; the first: fit, on the moon" in result.output
    assert "RuntimeError: an old driver and more of it" in result.output


def test_a_card_that_is_not_there_is_one_line() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = run("--device", "cuda")
    assert result.exit_code == 1
    assert "torch finds no CUDA device" in result.output


@pytest.mark.slow
def test_all_ways_work_here() -> None:
    """Compiled, in several processes, every export: as a developer's machine has them."""
    result = run("--json")
    found = json.loads(result.stdout)
    assert [check["name"] for check in found["checks"]] == list(WAYS)
    assert {check["name"]: check["note"] for check in found["checks"] if check["outcome"] == "fails"} == {}
    assert result.exit_code == 0
