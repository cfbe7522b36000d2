"""One folder of runs for studies and searches: what one of them fitted the others find."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyro_compress.cli.main import main
from pyro_compress.runs import store
from pyro_compress.runs.store import share, store_of

FIT = '[fit]\nprior = "none"\nhidden = [8]\nlimit = 400\nepochs = 1\n'
STUDY = 'name = "small"\ndatasets = ["digits"]\nnetworks = ["mlp"]\nsparsities = [0.5]\nseeds = [0]\n'
STUDY += FIT + '[[methods]]\nname = "SGD"\n'
SEARCH = 'name = "small"\nsampler = "random"\ntrials = 1\n' + FIT + 'data = "digits"\n[space.fit]\n'


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu", "--threads", "1"])


def test_a_study_and_a_search_share_their_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(STUDY)
    Path("search.toml").write_text(SEARCH)
    assert invoke("compare", "study.toml", "--out", "a/study", "--runs", "shared").exit_code == 0
    (run,) = (path for path in Path("shared").iterdir() if path.is_dir())
    before = (run / "history.jsonl").stat()
    result = invoke("tune", "search.toml", "--out", "b", "--runs", "shared")
    assert result.exit_code == 0, result.output
    assert [path for path in Path("shared").iterdir() if path.is_dir()] == [run]
    assert (run / "history.jsonl").stat() == before
    assert run.name in Path("b/trials.csv").read_text()
    assert Path("a/study/runs").samefile("shared")
    monkeypatch.setattr(store, "fit_run", None)  # and without the option, whoever goes on
    assert invoke("compare", "study.toml", "--out", "a/study").exit_code == 0


def test_runs_of_its_own_are_not_given_up(tmp_path: Path) -> None:
    out, other, another = tmp_path / "out", tmp_path / "other", tmp_path / "another"
    (out / "runs").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"out/runs holds runs of its own; leave --runs .*other out, or choose"):
        share(out, other)
    share(out, out / "runs")
    share(tmp_path, other)
    share(tmp_path, other)
    assert store_of(tmp_path).folder.samefile(other)
    with pytest.raises(ValueError, match="runs links to other; leave --runs"):
        share(tmp_path, another)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file exists and is not a folder; choose another --runs"):
        share(other, tmp_path / "file")
