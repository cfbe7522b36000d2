"""Studies on the embedded digits: what is planned, cached, resumed, and what the rows say."""

import csv
import json
import logging
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

import pyro_compress as pc
from pyro_compress import locks
from pyro_compress.cli.main import main
from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.graph.network import Network
from pyro_compress.metrics import evaluate
from pyro_compress.networks.draws import Ensemble, has_spread, masked
from pyro_compress.runs import evaluation, starting, store
from pyro_compress.runs import identity as named
from pyro_compress.runs.config import config_toml
from pyro_compress.runs.folder import load_run, unfinished
from pyro_compress.runs.identity import config_hash, differing, earlier_hash, identity
from pyro_compress.studies import compare, results
from pyro_compress.studies.plan import of_studies, plan, read_study
from pyro_compress.studies.tables import COLUMNS, Row, read_csv
from pyro_compress.types import Splits

STUDY = """
name = "small"
datasets = ["digits"]
networks = ["mlp"]
sparsities = [0, 0.5]
seeds = [0, 1]
out-of-domain = {digits = "digits"}
[fit]
hidden = [12]
epochs = 3
batch-size = 200
[[methods]]
name = "SGD"
variant = "Adam"
prior = "none"
[[methods]]
name = "gradual"
prior = "none"
pruning = "gradual"
sparsities = [0, 0.5, 0.8]
[[methods]]
name = "Bayes by Backprop"
prior = "spike-and-slab"
bias-prior = "same"
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments), "--device", "cpu", "--threads", "1"])


def test_plan(study: Path) -> None:
    planned = plan(read_study(study))
    assert [(p.config.seed, p.method.name, p.config.prune_to, p.sparsities) for p in planned[:4]] == [
        (0, "SGD", 0.0, (0.0, 0.5)),
        (0, "gradual", 0.5, (0.5,)),
        (0, "gradual", 0.8, (0.8,)),
        (0, "Bayes by Backprop", 0.0, (0.0, 0.5)),
    ]
    assert planned[0].network == "mlp-12"
    assert len({p.hash for p in planned}) == len(planned) == 8
    assert [p.hash for p in plan(read_study(study), data_dir="elsewhere", threads=2)] == [p.hash for p in planned]
    changed = replace(planned[0].config, lr=0.5)
    assert replace(planned[0], configs=(changed,)).hash != planned[0].hash
    assert identity(planned[0].config)["lr"] == 0.001
    assert not {"guide", "threads", "seed"} & set(identity(planned[0].config))  # defaults and machinery


def test_rows_of_a_study_among_those_of_several(study: Path, tmp_path: Path) -> None:
    """In the order of the studies' methods, whatever order they were run in."""
    other = tmp_path / "other.toml"
    other.write_text(STUDY.replace('variant = "Adam"', 'variant = "momentum"').replace('"gradual"', '"iterative"', 1))
    names = [("SGD", "Adam"), ("SGD", "momentum"), ("Bayes by Backprop", ""), ("Bayes by Backprop", "ensemble of 10")]
    rows = [Row("digits", "mlp-12", *name, 0.5, 0, 0.9, 0.3, 0.01, 1.0, "hash") for name in names]
    assert of_studies(rows, [study]) == [rows[0], *rows[2:]]
    assert of_studies(rows, [other]) == rows[1:]
    assert of_studies(rows, [study, other]) == [rows[0], *rows[2:], rows[1]]
    assert of_studies(reversed(rows), [study]) == [rows[0], *rows[2:]]
    assert of_studies(rows, []) == rows
    with pytest.raises(FileNotFoundError):
        of_studies(rows, [tmp_path / "absent.toml"])


def test_named_files_count_by_content(study: Path, tmp_path: Path) -> None:
    config = plan(read_study(study))[0].config
    one, other, folder = tmp_path / "one.pcn", tmp_path / "other.pcn", tmp_path / "run"
    one.write_bytes(b"a network")
    other.write_bytes(b"a network")
    hashed = config_hash(replace(config, net=str(one)))
    assert hashed == config_hash(replace(config, net=str(other)))
    assert identity(replace(config, net=str(one)))["net"] == str(one)
    other.write_bytes(b"another network")
    assert hashed != config_hash(replace(config, net=str(other)))
    folder.mkdir()
    (folder / "posterior.safetensors").write_bytes(b"weights")
    started = config_hash(replace(config, init=str(folder)))
    (folder / "posterior.safetensors").write_bytes(b"other weights")
    assert started != config_hash(replace(config, init=str(folder)))


def test_whole_study_then_resumed(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    result = invoke(study, "--out", out, "--seeds", "0", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(r["method"], r["variant"], r["sparsity"]) for r in rows] == [
        ("SGD", "Adam", 0.0),
        ("SGD", "Adam", 0.5),
        ("gradual", "", 0.5),
        ("gradual", "", 0.8),
        *[("Bayes by Backprop", variant, s) for s in (0.0, 0.5) for variant in ("", "ensemble of 10")],
    ]
    assert all(row["ood_auroc"] == pytest.approx(0.5) for row in rows)  # digits against digits
    with (out / "study.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert [float(line["accuracy"]) for line in lines] == [row["accuracy"] for row in rows]
    document = json.loads((out / "study.json").read_text())
    told = {row["config_hash"]: name for name, run in document["runs"].items() for row in run["rows"]}
    assert told.keys() == {row["config_hash"] for row in rows}
    assert all(run["config"]["seed"] == 0 and run["versions"]["torch"] for run in document["runs"].values())

    fitted = []
    real = store.fit_run
    monkeypatch.setattr(
        store, "fit_run", lambda config, *rest, **more: (fitted.append(config.seed), real(config, *rest, **more))
    )
    victim = told[rows[0]["config_hash"]]
    (out / "rows" / f"{victim}.json").unlink()  # as after an interruption between fit and evaluation
    again = invoke(study, "--out", out, "--seeds", "0", "--json")
    assert json.loads(again.stdout) == rows
    assert fitted == []
    table = invoke(study, "--out", out, "--table", "--markdown")
    assert "| SGD (Adam) |" in table.stdout
    assert fitted == []
    assert len(read_csv((out / "study.csv").read_text())) == len(rows)
    found = pc.compare(study, out, table=True, device="cpu", threads=1)
    assert (found.to_dict()["rows"], [row.seed for row in found]) == (rows, [row["seed"] for row in rows])
    assert repr(found) in invoke(study, "--out", out, "--table").stdout
    everything = invoke(study, "--out", out)
    assert everything.exit_code == 0
    assert fitted == [1] * 4
    assert re.search(r"SGD \(Adam\) +\d+\.\d\d ± \d+\.\d\d", everything.stdout)
    assert "[8/8] digits mlp-12 Bayes by Backprop seed 1: 0 %" in everything.stderr


def test_validation_chooses(study: Path, tmp_path: Path) -> None:
    study.write_text(
        STUDY.replace('variant = "Adam"\n', "choose = {lr = [1e-6, 1e-2]}\n").partition('[[methods]]\nname = "gr')[0]
    )
    planned = plan(read_study(study), device="cpu", threads=1)
    assert [[config.lr for config in one.configs] for one in planned] == [[1e-6, 1e-2]] * 2
    (outcome,) = compare.run_planned(planned[:1], tmp_path / "out")
    assert {row.config_hash for row in outcome.rows} == {config_hash(planned[0].configs[1])}
    (run,) = json.loads((tmp_path / "out/study.json").read_text())["runs"].values()
    assert run["config"]["lr"] == 1e-2
    assert len([path for path in (tmp_path / "out/runs").iterdir() if path.is_dir()]) == 2
    assert compare.run_one(planned[0], tmp_path / "out") == outcome


def test_what_validation_chooses_by(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is surer of its mistakes may be right more often; of equal ones the better NLL counts."""
    candidates = STUDY.replace('variant = "Adam"\n', "choose = {lr = [1e-3, 1e-2, 3e-2]}\n").partition(
        '[[methods]]\nname = "gr'
    )[0]
    ends = {1e-3: (0.90, 0.3), 1e-2: (0.95, 0.5), 3e-2: (0.95, 0.4)}
    fitted = {config_hash(c): c.lr for c in plan(read_study(study), device="cpu", threads=1)[0].configs}
    monkeypatch.setattr(store, "fit_run", lambda config, folder, checkpointing: fitted.update({folder.name: config.lr}))
    monkeypatch.setattr(
        compare,
        "last_epoch",
        lambda folder: dict(
            zip(("validation_accuracy", "validation_nll_nats"), ends[fitted[folder.name]], strict=True)
        ),
    )
    for by, wanted in (("nll", 1e-3), ("accuracy", 3e-2)):
        study.write_text(f'choose-by = "{by}"\n{candidates}')
        planned = plan(read_study(study), device="cpu", threads=1)[0]
        assert compare.chosen(planned, tmp_path)[0].lr == wanted


def test_rows_are_of_their_own_criterion(study: Path, tmp_path: Path) -> None:
    """Two methods may share a fit, and are evaluated each by its own score."""
    bayes = STUDY[STUDY.index('[[methods]]\nname = "Bayes') :]
    study.write_text(STUDY + bayes + 'variant = "by magnitude"\ncriterion = "magnitude"\n')
    planned = plan(read_study(study), device="cpu", threads=1)[3:5]
    assert planned[0].configs == planned[1].configs
    by_noise, by_magnitude = compare.run_planned(planned, tmp_path / "out")
    same = [one.nll_nats == other.nll_nats for one, other in zip(by_noise.rows, by_magnitude.rows, strict=True)]
    assert [row.sparsity for row in by_noise.rows] == [0.0, 0.0, 0.5, 0.5]
    assert same == [True, True, False, False]


def test_rows_are_what_evaluate_says(study: Path, tmp_path: Path) -> None:
    planned = plan(read_study(study), device="cpu", threads=1)
    sgd, bayes = planned[0], planned[3]
    (outcome, other) = compare.run_planned([sgd, bayes], tmp_path / "out")
    folder = tmp_path / "out/runs" / config_hash(sgd.config)
    assert evaluation.evaluate(folder)[0].accuracy == outcome.rows[0].accuracy
    run = load_run(folder)
    weights = {name: layer.mean.clone() for name, layer in run.posterior.layers.items()}
    everything = sorted(float(value) for weight in weights.values() for value in weight.abs().flatten())
    for weight in weights.values():
        weight[weight.abs() < everything[len(everything) // 2]] = 0
    pruned = Network(run.posterior.graph, run.posterior.tensors | weights).eval()
    assert evaluate(pruned, run.splits(), "test").nll_nats == pytest.approx(outcome.rows[1].nll_nats)
    assert [row.ensemble for row in other.rows] == [False, True, False, True]


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_fit_that_fails_does_not_stop_the_others(jobs: str, study: Path, tmp_path: Path) -> None:
    study.write_text(
        STUDY.replace('variant = "Adam"', 'lr = 1e30\nvariant = "Adam"').partition('[[methods]]\nname = "gr')[0]
        + '[[methods]]\nname = "b"\nprior = "none"\n'
    )
    result = invoke(study, "--out", tmp_path / "out", "--jobs", jobs)
    assert result.exit_code == 1
    assert "2 of 4 fits failed; the first: loss is nan" in result.stderr
    assert len(read_csv((tmp_path / "out/study.csv").read_text())) == 4
    assert len(json.loads((tmp_path / "out/study.json").read_text())["failures"]) == 2


def test_ensemble_of_a_posterior_without_noise_is_its_mean(study: Path, tmp_path: Path) -> None:
    planned = plan(read_study(study), device="cpu", threads=1)[3]
    compare.run_planned([planned], tmp_path / "out")
    run = load_run(tmp_path / "out/runs" / config_hash(planned.config))
    assert has_spread(run.posterior)
    pruned = masked(run.posterior, masks_at(scores(run.posterior, "snr"), 0.7))
    zeros = sum(int((layer.mean == 0).sum()) for layer in pruned.layers.values())
    assert zeros == round(0.7 * (64 * 12 + 12 * 10))
    assert all(bool((layer.std[layer.mean == 0] == 0).all()) for layer in pruned.layers.values())
    still = {name: replace(layer, std=layer.std * 0) for name, layer in pruned.layers.items()}
    x = run.splits().validation.x
    quiet = replace(pruned, layers=still)
    mean = Network(quiet.graph, quiet.tensors)(x).softmax(1)
    assert (Ensemble(quiet, 3)(x).exp() - mean).abs().max() < 1e-5
    assert (Ensemble(pruned, 3)(x).exp().sum(1) - 1).abs().max() < 1e-5
    assert not has_spread(quiet)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0, 1]", "seed = 0", "unknown option 'seed'; allowed: choose_by, datasets"),
        ("seeds = [0, 1]", "seeds = []", "seeds must be a list with something in it"),
        ("sparsities = [0, 0.5]\n", "sparsities = [1.5]\n", "sparsities 1.5: allowed are values from 0"),
        ("epochs = 3", "epoch = 3", "unknown option 'epoch'; did you mean epochs?"),
        ("epochs = 3", "seed = 3", "unknown option 'seed'"),
        ('name = "SGD"\n', "", "a method has no name"),
        ('name = "SGD"', 'name = "SGD"\ncriterion = "size"', "unknown criterion 'size'; allowed: snr"),
        ('prior = "spike-and-slab"', 'prior = "normal-jeffreys"\ncriterion = "group-mode"', "take group-snr"),
        ('name = "SGD"', 'name = "SGD"\ncriterion = "group-snr"', "needs a prior with group scales"),
        ('name = "SGD"', 'name = "SGD"\noptimizer = "lbfgs"', "unknown optimizer 'lbfgs'; allowed: natural, adam, sgd"),
        ('pruning = "gradual"', 'pruning = "rewind"', "use lr_schedule 'constant'"),
        ('prior = "spike-and-slab"', 'prior = "spike-and-slab"\npruning = "gradual"', "go with --prior none"),
        ('variant = "Adam"', "choose = {lr = 1}", "choose lr: give a list of values"),
        ("[fit]", 'choose-by = "size"\n[fit]', "unknown choose_by 'size'; allowed: nll, accuracy"),
        ('name = "gradual"', 'name = "SGD"\nvariant = "Adam"', "'SGD Adam' stands there twice"),
        ('["digits"]', '["nowhere"]', "unknown data set 'nowhere'"),
        ("[fit]", "[fit", "no valid TOML"),
    ],
)
def test_refused(old: str, new: str, message: str, study: Path, tmp_path: Path) -> None:
    assert old in STUDY
    study.write_text(STUDY.replace(old, new, 1))
    result = invoke(study, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_table_without_rows(study: Path, tmp_path: Path) -> None:
    assert "holds no row" in invoke(study, "--table", "--out", tmp_path / "out").stderr
    assert invoke(study, "--seeds", "a").exit_code == 2


def test_tables_only_grow(study: Path, tmp_path: Path) -> None:
    """A process that has only begun to gather what others finished does not take their rows out of the tables."""
    planned, table = plan(read_study(study), device="cpu", threads=1)[:2], tmp_path / "study.csv"
    compare.run_planned(planned, tmp_path)
    full, seen = table.read_text(), []
    compare.run_planned(planned, tmp_path, on_outcome=lambda outcome, done, total: seen.append(table.read_text()))
    assert seen == [full, full]


def worker(study: Path, out: Path, log: Path) -> None:
    """Run the study, noting every fit that is begun."""
    real = store.fit_run

    def noted(config, folder, **more):
        with log.open("a") as file:
            file.write(f"{folder.name}\n")
        return real(config, folder, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "fit_run", noted)
        patch.setattr(compare, "POLL_SECONDS", 0.05)
        planned = plan(read_study(study), device="cpu", threads=1)  # before the wait: they are to begin together
        log.with_suffix(f".{os.getpid()}").touch()
        deadline = time.monotonic() + 120
        while len(list(log.parent.glob(f"{log.stem}.*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        compare.run_planned(planned, out)


@pytest.mark.slow
def test_processes_share_a_study(study: Path, tmp_path: Path) -> None:
    """Two processes on one folder: every fit once, a failure too, and the tables of one process."""
    study.write_text(STUDY + '[[methods]]\nname = "diverging"\nprior = "none"\nlr = 1e30\n')
    (tmp_path / "begun").mkdir()
    arguments = (study, tmp_path / "out", tmp_path / "begun" / "fits.log")
    other = multiprocessing.get_context("spawn").Process(target=worker, args=arguments)
    other.start()
    worker(*arguments)
    tables = [(tmp_path / "out" / name).read_text() for name in ("study.csv", "study.md")]
    other.join(60)
    assert other.exitcode == 0
    begun = arguments[2].read_text().split()
    assert sorted(begun) == sorted({config_hash(c) for p in plan(read_study(study)) for c in p.configs})
    assert [(tmp_path / "out" / name).read_text() for name in ("study.csv", "study.md")] == tables
    rows = read_csv(tables[0])
    assert len(rows) == 2 * (2 + 1 + 1 + 4)
    assert len(list((tmp_path / "out" / "rows").glob("*.failed"))) == 2


# --- one command per row


OTHER = 'out-of-domain = {digits = "digits"}\n'
ONE = STUDY.replace("seeds = [0, 1]", "seeds = [0]").partition('[[methods]]\nname = "gr')[0]
TWO = ONE + '[[methods]]\nname = "fast"\nprior = "none"\nlr = 1e-2\n'


def commands(study: Path, out: Path, *more: str) -> list[list[str]]:
    """What `--rows` prints, as arguments of `invoke`."""
    result = invoke(study, "--out", out, "--rows", *more)
    assert result.exit_code == 0, result.output
    return [shlex.split(line)[5:] for line in result.stdout.splitlines()]


def test_a_command_per_missing_row(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a results folder"
    study.write_text(TWO)
    first, second = commands(study, out)
    assert not out.exists()  # they are printed and nothing else
    names = [one.hash for one in plan(read_study(study))]
    assert [[words[words.index("--row") + 1] for words in (first, second)], first[0]] == [names, str(study)]
    made = invoke(*second)
    assert (made.exit_code, made.stdout) == (0, "")
    assert re.fullmatch(r"digits mlp-12 fast seed 0: 0 %: \d+\.\d\d, 50 %: \d+\.\d\d\n", made.stderr)
    assert [path.stem for path in (out / "rows").glob("*.json")] == names[1:]
    assert {row.method for row in read_csv((out / "study.csv").read_text())} == {"fast"}
    assert commands(study, out) == [first]
    monkeypatch.setattr(store, "fit_run", None)
    before = (out / "rows" / f"{names[1]}.json").stat()
    assert invoke(*second).exit_code == 0  # it is there
    assert (out / "rows" / f"{names[1]}.json").stat() == before
    with FileLock(out / "rows" / f"{names[0]}.lock"):
        busy = invoke(*first)
    assert (busy.exit_code, busy.stdout) == (compare.BUSY, "")
    assert f"row {names[0]}: another process works on it, so nothing was done" in busy.stderr
    monkeypatch.undo()
    assert invoke(*first).exit_code == 0
    done = invoke(study, "--out", out, "--rows")
    assert (done.exit_code, done.stdout, "no row is missing" in done.stderr) == (0, "", True)


def test_a_row_that_fails_and_one_that_is_none(study: Path, tmp_path: Path) -> None:
    study.write_text(ONE.replace('variant = "Adam"', "lr = 1e30"))
    (words,) = commands(study, tmp_path / "out")
    for _ in range(2):  # it is tried again
        failed = invoke(*words)
        assert failed.exit_code == 1
        assert re.fullmatch(r"Error: digits mlp-12 SGD seed 0: loss is nan.*\n", failed.stderr.splitlines(True)[-1])
    told = json.loads(invoke(*words, "--json").stdout)
    assert (told["rows"], told["failure"][:11]) == ([], "loss is nan")
    assert commands(study, tmp_path / "out") == [words]
    study.write_text(ONE)
    other = invoke(*words)
    assert other.exit_code == 1
    assert "it or its data have changed; list its rows with --rows" in other.stderr
    unset = invoke(study, "--out", tmp_path / "new", "--row", "")  # a variable of the shell, say
    assert (unset.exit_code, unset.stderr.count("has no row ''")) == (1, 1)
    assert not (tmp_path / "new").exists()


def test_methods_with_the_same_fit_keep_each_others_rows(study: Path, tmp_path: Path) -> None:
    again = '[[methods]]\nname = "again"\nprior = "none"\nsparsities = [0.5, 0.9]\n'
    study.write_text(ONE.replace(OTHER, "") + again)
    (words,) = commands(study, tmp_path / "out")
    assert invoke(*words).exit_code == 0
    rows = [(row.method, row.sparsity) for row in read_csv((tmp_path / "out/study.csv").read_text())]
    assert rows == [("SGD", 0.0), ("SGD", 0.5), ("again", 0.5), ("again", 0.9)]
    assert [(row.method, row.sparsity) for row in results.read_results(tmp_path / "out")] == rows
    assert commands(study, tmp_path / "out") == []


def test_a_process_that_died_is_a_failure(study: Path, tmp_path: Path) -> None:
    study.write_text(TWO)
    planned = plan(read_study(study), device="cpu", threads=1)
    die = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    attempts = compare.by_commands(tmp_path, lambda one: [sys.executable, "-c", die], 2)
    found = compare.run_planned(planned, tmp_path, attempts)
    assert [one.failure for one in found] == ["its process ended by signal 9 before there was a row"] * 2


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    time.sleep(1.5)
"""


def test_a_process_that_gives_no_sign_is_told_of(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, while it holds its row; it did not make it in the end."""
    study.write_text(ONE)
    planned = plan(read_study(study), device="cpu", threads=1)[:1]
    monkeypatch.setattr(starting, "TICK_SECONDS", 0.1)
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.4)
    hold = [sys.executable, "-c", HOLD, str(results.lock_path(planned[0], tmp_path))]
    (outcome,) = compare.run_planned(planned, tmp_path, compare.by_commands(tmp_path, lambda one: hold, 2))
    assert outcome.failure == "its process ended with status 0 before there was a row"
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.partition(": ")[0] for message in told] == [f"waiting for {hold[-1]}"]


@pytest.mark.slow
def test_any_shell_fills_the_rows(study: Path, tmp_path: Path) -> None:
    study.write_text(TWO)
    arguments = [str(study), "--out", str(tmp_path / "it's here"), "--device", "cpu", "--threads", "1"]
    listed = shlex.join([sys.executable, "-m", "pyro_compress", "compare", *arguments, "--rows"])
    subprocess.run(f"{listed} | tr '\\n' '\\0' | xargs -0 -n 1 -P 2 sh -c", shell=True, check=True)
    assert subprocess.run(listed, shell=True, check=True, capture_output=True).stdout == b""
    straight = invoke(study, "--out", tmp_path / "straight", "--json")
    rows = [json.loads(one) for one in (invoke(*arguments, "--table", "--json").stdout, straight.stdout)]
    told, wanted = ([row | {"train_seconds": 0.0} for row in each] for each in rows)
    assert told == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "number"), [("1", signal.SIGTERM), ("2", signal.SIGKILL)])
def test_stopped_while_pruning(jobs: str, number: signal.Signals, study: Path, tmp_path: Path) -> None:
    """One signal ends the study and its workers, in a fit that prunes while it trains; the same command goes on."""
    study.write_text(STUDY.replace('pruning = "gradual"', 'pruning = "gradual"\nepochs = 100'))
    out, straight = tmp_path / "out", tmp_path / "straight"
    arguments = ["compare", str(study), "--seeds", "0", "--device", "cpu", "--threads", "1", "--jobs", jobs, "--out"]
    command = [sys.executable, "-m", "pyro_compress", *arguments, str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    gradual = plan(replace(read_study(study), seeds=(0,)), device="cpu", threads=1)[1]
    folder, deadline = unfinished(out / "runs" / config_hash(gradual.config)), time.monotonic() + 120
    while not list(folder.glob("checkpoint-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate()[1].decode()  # closed once the last worker has gone
    assert process.returncode == (130 if jobs == "1" else -number)
    assert jobs == "2" or f"stopped, what is done is kept; the same command goes on, in {out}" in error
    assert list(folder.glob("checkpoint-*"))
    assert not (out / "rows" / f"{gradual.hash}.json").exists()
    if jobs == "2":
        return  # how a study goes on does not depend on it
    for place in (out, straight):
        result = CliRunner().invoke(main, [*arguments, str(place)])
        assert result.exit_code == 0, result.output
    tables = [read_csv((place / "study.csv").read_text()) for place in (out, straight)]
    stopped, uninterrupted = ([replace(row, train_seconds=0.0) for row in rows] for rows in tables)
    assert stopped == uninterrupted


# --- what a changed default does


def test_every_option_is_part_of_the_name(study: Path) -> None:
    """Also one that stands at its default: where the default changes, so does the name."""
    config = plan(read_study(study))[0].config
    for change in ({"momentum": 0.8}, {"kl_weight": 2.0}, {"epochs": 99}, {"lr_scale": 0.5}, {"batch_size": 7}):
        assert config_hash(replace(config, **change)) != config_hash(config)
    told = named.fingerprint(config)
    assert told["momentum"] == 0.9
    assert told["schema"] == named.SCHEMA
    assert not {"threads", "device", "data_dir"} & told.keys()


def test_a_changed_schema_is_another_name(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = plan(read_study(study))[0].config
    before = config_hash(config)
    monkeypatch.setattr(named, "SCHEMA", named.SCHEMA + 1)
    assert config_hash(config) != before


def test_rows_of_an_earlier_version_count_where_they_are_the_same_fit(study: Path, tmp_path: Path) -> None:
    planned = plan(read_study(study))[0]
    row = Row("digits", "mlp-12", "SGD", "Adam", 0.0, 0, 0.9, 0.3, 0.01, 1.0, "0" * 12)
    rows = [vars(replace(row, sparsity=sparsity)) for sparsity in planned.sparsities]
    path = tmp_path / "rows" / f"{planned.earlier_hash}.json"
    path.parent.mkdir()
    stored = {key: value for key, value in asdict(planned.config).items() if key != "accumulate"}  # added later
    path.write_text(json.dumps({"config": stored, "rows": rows}))
    found = results.cached_rows(planned, tmp_path)
    assert found is not None
    assert [row.accuracy for row in found] == [0.9] * len(planned.sparsities)
    path.write_text(json.dumps({"config": stored | {"momentum": 0.8}, "rows": rows}))  # a default of then
    assert results.cached_rows(planned, tmp_path) is None


def test_runs_of_an_earlier_version_count_where_they_are_the_same_fit(
    study: Path, tmp_path: Path, digits: Splits, caplog: pytest.LogCaptureFixture
) -> None:
    config = plan(read_study(study))[0].config
    earlier = tmp_path / earlier_hash(config)
    earlier.mkdir()
    (earlier / "config.toml").write_text(config_toml(config, digits))
    assert store.RunStore(tmp_path).path(config) == earlier
    (earlier / "config.toml").write_text(config_toml(replace(config, momentum=0.8), digits))
    assert store.RunStore(tmp_path).path(config) == tmp_path / config_hash(config)
    assert "was fitted with other defaults: momentum 0.8, now 0.9; it is fitted anew" in caplog.text
    assert differing(asdict(config), config) == []


def test_a_ranking_of_one_posterior_is_refused_before_any_fit(tmp_path: Path) -> None:
    study = tmp_path / "one.toml"
    study.write_text(
        'name = "one"\ndatasets = ["digits"]\nnetworks = ["mlp"]\nsparsities = [0]\nseeds = [0]\n[fit]\nepochs = 1\n'
        '[[methods]]\nname = "SGD"\nprior = "none"\n[[methods]]\nname = "log-uniform"\nprior = "log-uniform"\n'
    )
    done = CliRunner().invoke(main, ["compare", str(study), "--out", str(tmp_path / "out"), "--elpd"])
    assert done.exit_code == 1
    assert "has no two posteriors of the same data set and seed; --elpd ranks two or more" in done.output
    assert not (tmp_path / "out").exists()
