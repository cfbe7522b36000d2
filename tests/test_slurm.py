"""Rows of a study and workers of a search handed to Slurm: by a stand-in for it, and by submitit's local jobs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyro_compress.cli.main import main
from pyro_compress.runs.slurm import Handed, checked

SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/script"
env > "$(dirname "$0")/environment"
echo "Submitted batch job 4711"
"""
STUDY = """
name = "small"
datasets = ["digits"]
networks = ["mlp"]
sparsities = [0, 0.5]
seeds = [0, 1]
[fit]
prior = "none"
hidden = [8]
limit = 400
epochs = 1
[[methods]]
name = "SGD"
"""
SEARCH = 'name = "small"\nsampler = "random"\ntrials = 2\n[fit]\ndata = "digits"\nprior = "none"\nhidden = [8]\n'
SEARCH += "limit = 400\nepochs = 1\n[space.fit]\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs that stand in for Slurm's, and what they were told; studies in the working directory."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", "#!/bin/sh\n"), ("sbatch", SBATCH)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(STUDY)
    Path("search.toml").write_text(SEARCH)
    return folder


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu", "--threads", "1"])


def flags(script: Path) -> dict[str, str]:
    """What a script tells sbatch."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(), re.MULTILINE))


def test_missing_rows_are_one_array_of_jobs(slurm: Path) -> None:
    asked = ("--submit", "--slurm", "partition=gpu,time=60,nodelist=a,b", "--slurm", "gpus-per-node=2,mem_gb=1.5")
    result = invoke("compare", "study.toml", "--out", "out", *asked)
    assert result.exit_code == 0, result.output
    jobs, log, afterwards = result.stdout.splitlines()
    assert jobs == "2 rows handed over, as jobs 4711_0 to 4711_1"
    assert log == f"what the first one says: {Path('out/slurm').resolve()}/4711_0_0_log.err"
    assert afterwards == "when they have ended: pyro-compress compare study.toml --out out --table"
    given = flags(slurm / "script")
    wanted = {"partition": "gpu", "time": "60", "nodelist": "a,b", "gpus-per-node": "2", "mem": "1536MB"}
    assert given.items() >= (wanted | {"array": "0-1%2", "job-name": "out"}).items()
    assert not list(Path("out/rows").iterdir())
    (first, *_) = invoke("compare", "study.toml", "--out", "out", "--rows").stdout.splitlines()
    assert invoke(*first.split()[4:]).exit_code == 0
    again = invoke("compare", "study.toml", "--out", "out", "--submit", "--slurm", "name=mine").stdout
    assert again.startswith("1 rows handed over, as jobs 4711\n")
    assert flags(slurm / "script").items() >= {"job-name": "mine", "time": "1440"}.items()


def test_workers_of_a_search(slurm: Path) -> None:
    url = f"sqlite:///{Path('trials.db').resolve()}"
    result = invoke("tune", "search.toml", "--out", "out", "--workers", "3", "--submit", "--storage", url)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("3 workers handed over, as jobs 4711_0 to 4711_2\n")
    assert result.stdout.endswith("when they have ended: pyro-compress tune search.toml --out out --resume\n")
    assert f"PYRO_COMPRESS_STORAGE={url}" in (slurm / "environment").read_text().splitlines()
    assert "PYRO_COMPRESS_STORAGE" not in os.environ
    assert not [path for path in Path("out/slurm").iterdir() if url.encode() in path.read_bytes()]
    assert "go on with --resume" in invoke("tune", "search.toml", "--out", "out", "--submit", "--storage", url).output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("colour=red", "--slurm colour: submitit knows no such setting; allowed: account, "),
        ("time=1:00:00", "--slurm time=1:00:00: give minutes, like time=60"),
        ("nodes=two", "--slurm nodes=two: Parameter \"nodes\" expected type <class 'int'>"),
        ("partition", "--slurm 'partition': give KEY=VALUE, like partition=gpu,time=60"),
        ("cluster=mine", "--slurm cluster=mine: allowed are slurm, local"),
    ],
)
@pytest.mark.parametrize("command", ["compare study.toml", "tune search.toml"])
def test_settings_of_jobs_that_are_refused(given: str, message: str, command: str, slurm: Path) -> None:
    result = invoke(*command.split(), "--out", "out", "--submit", "--slurm", given)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"Error: {message}")
    assert not Path("out").exists()


def test_what_is_not_there_is_said(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: gpu' >&2\nexit 1\n")
    result = invoke("compare", "study.toml", "--out", "out", "--submit")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: sbatch refused: invalid partition specified: gpu"
    (slurm / "srun").unlink()
    with pytest.raises(ValueError, match=r"no Slurm on this machine \(no srun\); .* --slurm cluster=local"):
        checked([])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"--submit needs submitit: pip install 'pyro-compress\[slurm\]'"):
        checked([])


JOB = """
import signal, sys
from pyro_compress.runs.slurm import Handed
def warned(number, frame):
    sys.exit(3)
signal.signal(signal.SIGUSR2, warned)
Handed((sys.executable, "-c", sys.argv[1], sys.argv[2]))()
"""
ROW = """
import os, signal, sys, time
from pathlib import Path
from pyro_compress.runs.starting import end_with_parent
def stop(number, frame):
    Path(sys.argv[1]).write_text("kept")
    sys.exit()
signal.signal(signal.SIGTERM, stop)
end_with_parent()
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""


def test_a_job_that_is_warned_lets_its_command_end_in_peace(tmp_path: Path) -> None:
    """Slurm warns all processes of a job; the command ends by what submitit makes of it, not by the warning."""
    place = tmp_path / "row"
    job = subprocess.Popen([sys.executable, "-c", JOB, ROW, str(place)])
    while not (place.is_file() and place.read_text()):
        assert job.poll() is None
        time.sleep(0.01)
    os.kill(int(place.read_text()), signal.SIGUSR2)
    job.send_signal(signal.SIGUSR2)
    assert job.wait(30) == 3
    assert place.read_text() == "kept"
    again = Handed(("true",)).checkpoint()
    assert (again.function, again.args) == (Handed(("true",)), ())
    Handed(("true",))()
    with pytest.raises(RuntimeError, match="ended with exit status 1"):
        Handed(("false",))()


@pytest.mark.slow
def test_local_jobs(tmp_path: Path) -> None:
    study, search = tmp_path / "study.toml", tmp_path / "search.toml"
    study.write_text(STUDY)
    search.write_text(SEARCH)
    program, local = [sys.executable, "-m", "pyro_compress"], ["--submit", "--slurm", "cluster=local"]
    for words in (["compare", str(study)], ["tune", str(search), "--workers", "2"]):
        subprocess.run([*program, *words, "--out", str(tmp_path / words[0]), "--threads", "1", *local], check=True)
    results = [*(tmp_path / name / "slurm" for name in ("compare", "tune"))]
    deadline = time.monotonic() + 300
    while any(len(list(folder.glob("*_result.pkl"))) < 2 for folder in results) and time.monotonic() < deadline:
        time.sleep(0.1)
    table = invoke("compare", study, "--out", tmp_path / "compare", "--table", "--json")
    assert [row["seed"] for row in json.loads(table.stdout)] == [0, 0, 1, 1]
    assert invoke("compare", study, "--out", tmp_path / "compare", "--rows").stdout == ""
    ended = invoke("tune", search, "--out", tmp_path / "tune", "--resume", "--json")
    assert json.loads(ended.stdout)["finished"] == 2
