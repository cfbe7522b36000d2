"""Nothing of the user's is destroyed: what a command may replace, what it refuses, and that it asks before any work."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save
from torch import nn

from pyro_compress import kinds, places
from pyro_compress.cli.main import main
from pyro_compress.cli.sources import Source
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.compression.rounding import Rounding
from pyro_compress.graph.capture import capture
from pyro_compress.inspection import arviz_compat
from pyro_compress.kinds import KINDS, is_run
from pyro_compress.placing import unfinished
from pyro_compress.provenance import Provenance
from pyro_compress.runs import run as runs
from pyro_compress.runs.folder import load_run, unfinished_config
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.baselines import point_posterior
from pyro_compress.training.checkpoint import Checkpointer, Interrupted, Snapshot, write
from pyro_compress.types import Groups, Posterior, Splits

STUDY = (Path(__file__).parents[1] / "scripts" / "studies" / "tiny.toml").read_text()
SEARCH = 'trials = 1\n[fit]\nprior = "gaussian"\ndata = "digits"\nhidden = [4]\n'


def refused(*arguments: object) -> str:
    """What a command says that ends with exit code 1, in one line."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    told = [line for line in result.output.splitlines() if line]
    assert len(told) == 1
    assert told[0].startswith("Error: ")
    assert "Errno" not in told[0]
    return told[0]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with things of the user's in it."""
    here = tmp_path / "home" / "work"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for folder in ("photos", "run", "net"):
        (here / folder).mkdir()
    (here / "photos" / "cat.png").write_bytes(b"a cat")
    (here / "study.toml").write_text(STUDY)
    (here / "search.toml").write_text(SEARCH)
    (here / "net.pcn").write_bytes(b"\x93PCN")
    for name in ("thesis", "thesis.html", "thesis.pcn", "thesis.nc", "thesis.csv", "thesis.png", *EXPORTS):
        (here / name).write_text("three years of work, with pyro-compress")
    return here


EXPORTS = ("thesis.onnx", "thesis.pt2", "thesis.safetensors", "thesis.c")
FOREIGN: dict[str, list[str]] = {
    "fit": ["fit", "--out", "photos", "--force"],
    "fit, a file": ["fit", "--out", "thesis", "--force"],
    "fit, here": ["fit", "--out", ".", "--force"],
    "fit, above": ["fit", "--out", "..", "--force"],
    "fit, by another way": ["fit", "--out", "photos/..", "--force"],
    "compare": ["compare", "study.toml", "--out", "photos"],
    "compare, here": ["compare", "study.toml", "--out", "."],
    "compare, a file": ["compare", "study.toml", "--out", "thesis"],
    "tune": ["tune", "search.toml", "--out", "photos"],
    "tune, here": ["tune", "search.toml", "--out", "."],
    "export, folder": ["export", "net.pcn", "-o", "photos", "--force"],
    "export, here": ["export", "net.pcn", "-o", ".", "--force"],
    "export, above": ["export", "net.pcn", "-o", "../..", "--force"],
    "export, a file": ["export", "net.pcn", "-o", "thesis", "--force"],
    **{f"export, {name}": ["export", "net.pcn", "-o", name, "--force"] for name in EXPORTS},
    "report": ["report", "run", "--out", "thesis.html", "--force"],
    "report, a folder": ["report", "run", "--out", "photos", "--force"],
    "inspect": ["inspect", "run", "--netcdf", "thesis.nc", "--force"],
    "inspect, a folder": ["inspect", "run", "--netcdf", "photos", "--force"],
    "compress": ["compress", "run", "--out", "thesis.pcn", "--force"],
    "compress, a folder": ["compress", "run", "--out", "photos", "--force"],
    "compress, the table": ["compress", "run", "--curve", "thesis.csv", "--force"],
    "compress, the table unasked": ["compress", "run", "--curve", "thesis.csv"],
    "compress, the picture": ["compress", "run", "--curve", "new.csv", "--force"],
    "compress, both one": ["compress", "run", "--curve", "a.png"],
    "compress --run": ["compress", "--net", "mlp", "--init", "w.pt", "--data", "digits", "--posterior", "svi",
                       "--run", "photos"],
}  # fmt: skip
"""Commands that would destroy something, or write among it."""


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_ours_stays(case: str, home: Path) -> None:
    if case == "compress, the picture":
        shutil.copy(home / "thesis.png", home / "new.png")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert "choose another" in (told := refused(*FOREIGN[case])) or "a name of its own" in told
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert not [path.name for path in home.parent.rglob(".*")]


UNWRITABLE: dict[str, list[str]] = {
    "fit": ["fit", "--out"],
    "compress": ["compress", "run", "--out"],
    "curve": ["compress", "run", "--out", "a.pcn", "--curve"],
    "export": ["export", "net.pcn", "-o"],
    "report": ["report", "run", "--out"],
    "inspect": ["inspect", "run", "--netcdf"],
    "compare": ["compare", "study.toml", "--out"],
    "tune": ["tune", "search.toml", "--out"],
}


@pytest.mark.parametrize("command", UNWRITABLE)
@pytest.mark.parametrize("place", ["thesis/x", "/proc/x", "/dev/null", "x" * 300])
def test_what_cannot_be_written_is_refused_first(command: str, place: str, home: Path) -> None:
    """Below a file, where the system lets nobody write, a device, a name too long."""
    name = place if command not in ("export",) or place == "/dev/null" else f"{place}.onnx"
    told = refused(*UNWRITABLE[command], name)
    assert "choose another" in told
    assert Path("/dev/null").is_char_device()


RUN = {"config.toml": b'[fit]\nprior = "none"\n', "posterior.safetensors": save({"a": torch.zeros(1)})}


def a_run(folder: Path, **others: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in (RUN | others).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "ours"),
    [
        ("history.jsonl", b"", True), ("start.pcn", b"", True), ("checkpoint-000001.safetensors", b"", True),
        ("small.pcn", b"\x93PCN...", True), ("small.pcn", b"a list", False), ("notes.txt", b"mine", False),
        ("page.html", b'<p class="lead">pyro-compress, one run', True), ("page.html", b"<p>mine", False),
        ("curve.csv", b"sparsity,relative_step,lambda,bytes,validation_error\n", True),
        ("curve.csv", b"sparsity,coarseness,rate,bytes,validation_error\n", True), ("a.csv", b"a,b\n", False),
        (".DS_Store", b"", True), ("weights.safetensors", save({"a": torch.zeros(1)}), False),
        ("weights.safetensors", save({"a": torch.zeros(1)}, {"pyro_compress": "{}"}), True),
    ],
)  # fmt: skip
def test_a_run_with_something_of_the_users_is_not_replaced(
    name: str, content: bytes, ours: bool, tmp_path: Path
) -> None:
    assert (kinds.foreign_to_run(a_run(tmp_path / "run", **{name: content})) == []) == ours


def test_folders_in_a_run(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for name in ("tensorboard", "net", "photos"):
        (run / name).mkdir()
    (run / "net" / "network.json").write_text('{"producer": "pyro-compress 0.1"}')
    (run / "net" / "run.py").write_text("")
    (run / "link.pcn").symlink_to(run / "config.toml")
    assert kinds.foreign_to_run(run) == ["link.pcn", "photos"]
    (run / "net" / "notes.txt").write_text("")
    assert kinds.foreign_to_run(run) == ["link.pcn", "net", "photos"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_ours_is_known_by_its_content(kind: str, tmp_path: Path) -> None:
    for content in (b"", b"x", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"/* mine */", b"\x08\x07", os.urandom(300)):
        (tmp_path / "a").write_bytes(content)
        assert not KINDS[kind][1](tmp_path / "a")
    assert not KINDS[kind][1](tmp_path / "none")


@pytest.mark.parametrize("cut", [0, 7, 8, 40, -1])
def test_a_damaged_run_is_none(cut: int, tmp_path: Path) -> None:
    assert is_run(a_run(tmp_path / "run"))
    assert not is_run(a_run(tmp_path / "run", **{"posterior.safetensors": RUN["posterior.safetensors"][:cut]}))
    assert not is_run(a_run(tmp_path / "run", **{"config.toml": b'[fit]\nprior = "gaussian"\n'}))


def test_a_file_through_a_link_and_one_that_is_ours(tmp_path: Path) -> None:
    (tmp_path / "real.pcn").write_bytes(b"\x93PCN")
    (tmp_path / "link.pcn").symlink_to("real.pcn")
    places.check_file(tmp_path / "link.pcn", "pcn", force=True)
    with pytest.raises(ValueError, match=r"real.pcn exists; choose another --out, or replace it with --force"):
        places.check_file(tmp_path / "link.pcn", "pcn", force=False)


def data_of(path: Path, classes: int = 3, rows: int = 80) -> Path:
    rng, y = np.random.default_rng(0), np.arange(120) % classes
    x = (rng.normal(size=(120, 4)) + y[:, None]).astype(np.float32)
    np.savez(path, x_train=x[:rows], y_train=y[:rows], x_test=x[80:], y_test=y[80:])
    return path


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Fits in the folder `there`, beside its data; stopped after a checkpoint, or to the end."""
    (tmp_path / "there").mkdir()
    data_of(tmp_path / "there" / "mine.npz")

    def fitted(stopped: bool = False, resume: bool = False, place: str = "there") -> None:
        def quick(net, splits, config, note, kept: tuple[Checkpointer, list]) -> tuple[Posterior, bytes]:
            if stopped:
                write(Snapshot("point", {"a": torch.zeros(1)}, {"history": []}), kept[0].folder)
                raise Interrupted
            return point_posterior(
                capture(net, splits.input_shape), net.state_dict(), Provenance(config.provenance)
            ), b""

        monkeypatch.setattr(runs, "_fit", quick)
        monkeypatch.chdir(tmp_path / place)
        config = FitConfig(prior="none", hidden=(4,), epochs=1, device="cpu", data="mine.npz")
        if resume:
            config = unfinished_config(tmp_path / "there" / "run")
        fit_run(config, tmp_path / "there" / "run", checkpointing=CheckpointConfig(resume=resume))

    return fitted


def test_a_run_finds_its_data_from_everywhere(fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder says where they are, the posterior what they were called; moved, they are checked."""
    fit()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = load_run(Path("../there/run"))
    assert run.config.data == str(tmp_path / "there" / "mine.npz")
    assert run.called == run.posterior.provenance.data == "mine.npz"
    assert run.splits().sizes == run.sizes
    os.replace(run.config.data, "moved.npz")
    with pytest.raises(ValueError, match=r"mine\.npz is not there any more; say with --data \(data= in Python\) where"):
        run.splits()
    assert load_run(run.path, "moved.npz").splits().sizes == run.sizes
    for data, message in (
        (data_of(Path("classes.npz"), classes=2), "2 classes or targets; this network has 3 outputs"),
        (data_of(Path("rows.npz"), rows=70), "test 40 rows, the run was fitted with .*: not the same data"),
        ("digits", r"one example has shape \(1, 8, 8\); this network takes \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_run(run.path, str(data)).splits()


def test_a_fit_goes_on_elsewhere_in_the_same_bytes(fit, tmp_path: Path) -> None:
    fit()
    wanted = (tmp_path / "there" / "run" / "posterior.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "there" / "run")
    with pytest.raises(Interrupted):
        fit(stopped=True)
    (tmp_path / "elsewhere").mkdir()
    fit(resume=True, place="elsewhere")
    assert not unfinished(tmp_path / "there" / "run").exists()
    assert (tmp_path / "there" / "run" / "posterior.safetensors").read_bytes() == wanted


@contextmanager
def files_of(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, whoever writes it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def pcn(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A network of some size."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10)).eval()
    posterior = point_posterior(capture(network, (1, 8, 8)), dict(network.state_dict()), Provenance({"data": "digits"}))
    path = tmp_path_factory.mktemp("pcn") / "net.pcn"
    compress_run(posterior, digits, path, Goal(sparsity=0.1), Rounding(0.5), passes=0)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.pt2", "a.safetensors", "a.c", "a"])
def test_what_does_not_fit_is_one_line_and_leaves_nothing(name: str, pcn: bytes, tmp_path: Path) -> None:
    """A disk that fills up ends every writer alike; torch's own printed a stack of C++."""
    (tmp_path / "net.pcn").write_bytes(pcn)
    with files_of(10_000):
        told = refused("export", tmp_path / "net.pcn", "-o", tmp_path / name, "--data", "digits")
    assert told.endswith("File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pcn"]


def test_netcdf_asks_for_space_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a disk fills up under it, HDF5 may end the process."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    data = arviz_compat.inference_data(Groups({"posterior": {"a": np.zeros((1, 10, 20))}}, {}, {}, {}))
    with pytest.raises(OSError, match="No space left on device"):
        arviz_compat.write_netcdf(data, tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


def test_a_curve_that_fails_does_not_fail_the_command(
    home: Path, monkeypatch: pytest.MonkeyPatch, digits: Splits
) -> None:
    """The file is there, and that is said, with a warning."""

    def full(path: Path, trials: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    posterior = point_posterior(capture(network, (1, 8, 8)), dict(network.state_dict()), Provenance({"data": "digits"}))
    monkeypatch.setattr("pyro_compress.compression.curve.write_curve", full)
    monkeypatch.setattr("pyro_compress.cli.compress.of_run", lambda *given: Source(posterior, digits))
    result = CliRunner().invoke(main, ["compress", "run", "--sparsity", "0.1", "--curve", "c.csv", "--reorder", "0"])
    assert result.exit_code == 0, result.output
    assert (home / "run" / "network.pcn").is_file()
    assert "network.pcn is written, but not its curve: c.csv: No space left on device" in result.stderr
    assert "validation before" in result.stdout
