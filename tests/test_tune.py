"""Searches on the embedded digits: spaces, fronts, reused fits, workers that end before their time, the outcome."""

import csv
import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import optuna
import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock
from optuna._hypervolume import compute_hypervolume

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.prune import masks_at
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.runs.identity import config_hash
from pyro_compress.tuning.front import hypervolume, on_front
from pyro_compress.tuning.plan import point_of, read_plan
from pyro_compress.tuning.reported import Reported
from pyro_compress.tuning.storage import SAMPLERS, opened_storage, quietly
from pyro_compress.tuning.workers import Work, begin, revive, run_worker
from pyro_compress.types import Splits

HEAD = """
name = "small"
sampler = "random"
trials = 6
"""
FIT = """
[fit]
data = "digits"
prior = "log-uniform"
hidden = [8]
limit = 400
epochs = 3
"""
ONE_FIT = FIT + "[space.fit]\n"


def written(folder: Path, head: str = HEAD, tail: str = ONE_FIT) -> Path:
    path = folder / "study.toml"
    path.write_text(head + tail)
    return path


def invoke(command: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments), "--device", "cpu", "--threads", "1"])


def trials_of(out: Path, name: str = "small") -> list[optuna.trial.FrozenTrial]:
    with quietly(), opened_storage(out) as storage:
        return optuna.load_study(study_name=name, storage=storage).get_trials()


def completed(out: Path) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in trials_of(out) if trial.state == optuna.trial.TrialState.COMPLETE]


@pytest.mark.parametrize("seed", range(3))
def test_front_and_hypervolume(seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 9, (30, 2)).astype(float)
    pairs = [(float(a), float(b)) for a, b in points]
    dominated = [any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert {pairs[i] for i in on_front(pairs)} == {p for p, worse in zip(pairs, dominated, strict=True) if not worse}
    reference = (7.0, 6.0)
    below = points[(points < reference).all(1)]
    assert hypervolume(pairs, reference) == pytest.approx(compute_hypervolume(below, np.array(reference)))


def test_one_share_per_layer() -> None:
    scores = {"a": torch.rand(20, 30), "b": torch.rand(10, 20)}
    masks = masks_at(scores, {"a": 0.9, "b": 0.25})
    for name, removed in (("a", 540), ("b", 50)):
        assert int((~masks[name]).sum()) == removed
        assert scores[name][~masks[name]].max() < scores[name][masks[name]].min()
    with pytest.raises(ValueError, match="give one for each of a, b"):
        masks_at(scores, {"a": 0.9})


@pytest.mark.parametrize(
    ("head", "tail", "told"),
    [
        ("colour = 1\n", FIT, "unknown option 'colour'"),
        ('objective = "small"\n', FIT, "unknown objective"),
        ('objective = "bytes-at-error"\n', FIT, "bound 0"),
        ("fidelities = [8, 2]\n", FIT, "fewest first"),
        ("trials = 0\n", FIT, "give a budget"),
        ("compressions-per-fit = 0\n", FIT, "compressions_per_fit 0: it must be positive"),
        ("", FIT + "[space.fit]\nepochs = {low = 1, high = 2}\n", "unknown option to search 'epochs'"),
        ("", FIT + "[space.fit]\nlr = 3\n", "give {low"),
        ("", FIT + "[space.fit]\nlr = {low = 0.0, high = 1.0, log = true}\n", "no range"),
        ("", FIT + "[space.fit]\nbatch-size = {low = 64.0, high = 128}\n", "from 64.0 to 128: give whole numbers"),
        ("", FIT + "[space.fit]\nlr = {low = 'a', high = 1.0}\n", "from 'a' to 1.0: give numbers"),
        ("", FIT + "[space.fit]\naugment = {low = 1, high = 2}\n", "augment: is no number; give a list"),
        ("", FIT + "[space.compress]\nrate = {low = 1, high = 2}\n", "without finetune"),
        ("", FIT + "[space.compress]\nkept = {low = 0.5, high = 1.5}\n", "up to 1"),
        ("", FIT + "[space.compress]\nrelative-step = {low = 0.5, high = 1.5}\n", "stands nowhere"),
        ("", FIT + "[compress]\nrate = 1\n", "does not go with this study"),
    ],
)
def test_refused_studies(head: str, tail: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        read_plan(written(tmp_path, head, tail))


def test_the_option_says_whether_a_range_holds_whole_numbers_alone(tmp_path: Path) -> None:
    """However its bounds are written: 1 to 8 as λ is not one of eight values."""
    compress = "finetune-lambda = {low = 1, high = 8}\nfinetune-batch-size = {low = 32, high = 64}\n"
    compress += "noise = {low = 0, high = 1}\n"
    tail = (
        FIT
        + "[compress]\nfinetune = 1\nsparsity = 0.9\n[space.fit]\nsamples = {low = 1, high = 3}\n[space.compress]\n"
        + compress
    )
    plan, _ = read_plan(written(tmp_path, "", tail))
    whole = {parameter.option: parameter.integer for parameter in plan.space}
    assert whole == {"samples": True, "finetune_lambda": False, "finetune_batch_size": True, "noise": False}


def test_points(tmp_path: Path) -> None:
    tail = ONE_FIT + "prior-options = {scale = {low = 0.1, high = 1.0}}\n[space.compress]\nkept = [0.5]\nstep = [1.0]\n"
    tail = tail.replace("log-uniform", "gaussian") + "[compress]\nfinetune = 1\n"
    plan, splits = read_plan(written(tmp_path, "layer-wise = true\n", tail))
    names = [p.name for p in plan.space]
    layers = [name.removeprefix("compress.kept.") for name in names if "kept" in name]
    assert len(layers) == 2
    params = {"fit.prior_options.scale": 0.25, "compress.step": 0.5} | {f"compress.kept.{n}": 0.125 for n in layers}
    assert names == [*list(params)[:1], *list(params)[2:], "compress.step"]
    point = point_of(plan, params, 3, len(splits.train))
    wrong = replace(plan, compress={"criterion": "group-mode"})
    with pytest.raises(ValueError, match="needs a prior with group scales"):
        point_of(wrong, params, 3, len(splits.train))
    assert point.config.prior_options == {"scale": 0.25}
    assert point.settings == {"finetune": 1, "step": 0.5, "sparsity": dict.fromkeys(layers, 0.875)}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with two fidelities, two fits at each and three compressions of each."""
    folder = tmp_path_factory.mktemp("search")
    head = 'name = "small"\nsampler = "gp"\ntrials = 6\nfidelities = [2, 5]\ncheap-trials = 6\npromote = 1\n'
    study = written(folder, head + "compressions-per-fit = 3\n", FIT.replace("epochs = 3\n", ""))
    result = invoke("tune", study, "--out", folder / "out", "--json")
    assert result.exit_code == 0, result.output
    (folder / "outcome.json").write_text(result.stdout)
    return folder


@pytest.mark.slow
def test_a_fit_serves_many_trials(searched: Path) -> None:
    out = searched / "out"
    for name in ("small", "small, 2 epochs"):
        fits = [trial.user_attrs["fit"] for trial in trials_of(out, name)]
        assert len(fits) == 6
        assert all(fits.count(fit) == 3 for fit in fits)
    runs = [path for path in (out / "runs").iterdir() if path.is_dir()]
    assert len(runs) == 4
    assert len(list((out / "files").iterdir())) == 12


def test_the_next_fidelity_starts_with_the_front(searched: Path) -> None:
    cheap, full = (trials_of(searched / "out", name) for name in ("small, 2 epochs", "small"))
    front = on_front([(t.user_attrs["error"], t.user_attrs["bytes"]) for t in cheap])
    promoted = [t.params for t in full if "fixed_params" in t.system_attrs]
    assert promoted
    assert all(params in [cheap[i].params for i in front] for params in promoted)
    assert len({params["fit.lr"] for params in promoted}) == 1


def test_outcome(searched: Path, digits: Splits) -> None:
    out = searched / "out"
    outcome = json.loads((searched / "outcome.json").read_text())
    assert (outcome["finished"], outcome["failed"]) == (6, 0)
    with (out / "trials.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["epochs"] == "5"]
    points = [(float(row["error"]), int(row["bytes"])) for row in rows]
    assert [m["trial"] for m in outcome["front"]] == [int(rows[i]["trial"]) for i in on_front(points)]
    for member in outcome["front"]:
        path = out / "pareto" / f"{member['trial']}.pcn"
        assert path.stat().st_size == member["bytes"]
        module = to_module(file.read(path))
        assert evaluate(module, digits, "validation").accuracy == pytest.approx(1 - member["validation_error"])
        assert evaluate(module, digits, "test").accuracy == pytest.approx(1 - member["test_error"])
    assert {path.stem for path in (out / "pareto").iterdir()} == {str(m["trial"]) for m in outcome["front"]}
    assert sum(outcome["importances"].values()) == pytest.approx(1)
    assert (out / "front.png").read_bytes()[:4] == b"\x89PNG"
    assert len((out / "pareto.md").read_text().splitlines()) == 2 + len(outcome["front"])


def test_best_configuration_makes_the_same_file(searched: Path, tmp_path: Path) -> None:
    best = searched / "out" / "best.toml"
    fit = invoke("fit", "--config", best, "--out", tmp_path / "run")
    assert fit.exit_code == 0, fit.output
    compressed = invoke("compress", tmp_path / "run", "--config", best)
    assert compressed.exit_code == 0, compressed.output
    chosen = json.loads((searched / "outcome.json").read_text())["best"]
    made = (tmp_path / "run" / "network.pcn").read_bytes()
    assert made == (searched / "out" / "pareto" / f"{chosen['trial']}.pcn").read_bytes()


def test_a_finetuned_configuration_makes_the_same_file(tmp_path: Path) -> None:
    """Also where the study names no rate, which `compress` would search for; noise and SVI may stand side by side."""
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "svi"\ntrials = 3\ncompressions-per-fit = 3\n[fit]\ndata = "digits"\nprior = "log-uniform"\n'
        "hidden = [12]\nepochs = 3\n[compress]\nfinetune = 1\nfinetune-svi = true\n"
        "[space.compress]\nkept = {low = 0.1, high = 0.3}\nnoise = {low = 0.1, high = 0.6}\n"
        'finetune-augment = ["none", "shift"]\n'
    )
    out = tmp_path / "out"
    result = invoke("tune", study, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    (run,) = (path for path in (out / "runs").iterdir() if path.is_dir())
    made = invoke("compress", run, "--config", out / "best.toml", "--out", tmp_path / "best.pcn")
    assert made.exit_code == 0, made.output
    trial = json.loads(result.stdout)["best"]["trial"]
    assert (tmp_path / "best.pcn").read_bytes() == (out / "pareto" / f"{trial}.pcn").read_bytes()


def test_the_test_split_is_read_once(searched: Path) -> None:
    path = searched / "out" / "pareto.json"
    members = json.loads(path.read_text())
    path.write_text(json.dumps([member | {"test_error": 0.125} for member in members]))
    result = invoke("tune", searched / "study.toml", "--out", searched / "out", "--resume", "--json")
    assert result.exit_code == 0, result.output
    assert {member["test_error"] for member in json.loads(result.stdout)["front"]} == {0.125}
    told = pc.tune(searched / "study.toml", searched / "out", resume=True)
    assert json.loads(json.dumps(told.to_dict())) == json.loads(result.stdout)
    assert repr(told).count("bytes, validation error") == len(members)
    path.write_text(json.dumps(members))


def test_a_study_that_is_there_names_a_free_folder(searched: Path) -> None:
    result = invoke("tune", searched / "study.toml", "--out", searched / "out")
    assert result.exit_code == 1
    assert f"go on with --resume, or choose another --out, like {searched / 'out-2'}" in result.output


def test_layer_wise_and_finetuned(tmp_path: Path) -> None:
    tail = ONE_FIT + "[compress]\nfinetune = 1\nmasked-epochs = 1\n"
    study = written(tmp_path, HEAD.replace("6", "2") + "layer-wise = true\n", tail)
    assert invoke("tune", study, "--out", tmp_path / "out").exit_code == 0
    best = tomllib.loads((tmp_path / "out" / "best.toml").read_text())
    assert len(best["compress"]["sparsity"]) == 2
    (run,) = [path for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir()]
    compressed = invoke("compress", run, "--config", tmp_path / "out" / "best.toml", "--json")
    assert compressed.exit_code == 0, compressed.output
    assert json.loads(compressed.stdout)["file_bytes"] in [t.user_attrs["bytes"] for t in completed(tmp_path / "out")]


@pytest.mark.parametrize(
    ("sampler", "objective", "bound"),
    [(name, *(("bytes-at-error", 0.6), ("error-at-bytes", 200))[index % 2]) for index, name in enumerate(SAMPLERS)],
)
def test_bounded_objectives(sampler: str, objective: str, bound: float, searched: Path, tmp_path: Path) -> None:
    head = f'name = "small"\ntrials = 12\nsampler = "{sampler}"\nobjective = "{objective}"\nbound = {bound}\n'
    study = written(tmp_path, head)
    out = searched.parent / "bounded"  # the fit is the same for all
    (tmp_path / "out").mkdir()
    (out / "runs").mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / "runs").symlink_to(out / "runs")
    result = invoke("tune", study, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    points = [(t.user_attrs["error"], t.user_attrs["bytes"]) for t in completed(tmp_path / "out")]
    assert len(points) == 12
    by_size = objective == "error-at-bytes"
    inside = [(p[0] if by_size else p[1]) for p in points if p[by_size] <= bound]
    best = json.loads(result.stdout)["best"]
    assert (best is None) == (not inside)
    if best:
        assert best["validation_error" if by_size else "bytes"] == pytest.approx(min(inside))


def test_failures_count_and_are_told(tmp_path: Path) -> None:
    study = written(tmp_path, HEAD.replace("6", "8"), ONE_FIT + "init-scale = [0.01, -1.0]\n")
    result = invoke("tune", study, "--out", tmp_path / "out", "--json")
    outcome = json.loads(result.stdout)
    assert outcome["finished"] == 8
    assert 0 < outcome["failed"] < 8
    assert "it must be positive" in (tmp_path / "out" / "trials.csv").read_text()
    hopeless = written(tmp_path, HEAD.replace("small", "hopeless"), ONE_FIT + "init-scale = [-1.0]\n")
    result = invoke("tune", hopeless, "--out", tmp_path / "hopeless")
    assert result.exit_code == 1
    assert "each of 5 trials failed" in result.output


def test_what_may_change_while_a_study_goes_on(searched: Path, tmp_path: Path) -> None:
    study, out = searched / "study.toml", searched / "out"
    assert "go on with --resume" in invoke("tune", study, "--out", out).output
    assert "no study 'small' to go on with" in invoke("tune", study, "--out", tmp_path / "new", "--resume").output
    other = written(tmp_path, study.read_text().replace("hidden = [8]", "hidden = [9]"), "")
    assert "was begun with another fit" in invoke("tune", other, "--out", out, "--resume").output


def test_a_search_that_was_begun_with_earlier_names_goes_on(tmp_path: Path) -> None:
    """In its own words, with the files that are there; what it makes of the best has the names of today."""
    study = written(tmp_path, HEAD.replace("6", "1"))
    plan, splits = read_plan(study, device="cpu", threads=1)
    work = Work(plan.in_earlier_words, splits, tmp_path / "out")
    begin(work)
    run_worker(work)
    (first,) = (tmp_path / "out" / "files").iterdir()
    assert "compress.coarseness" in completed(tmp_path / "out")[0].params
    study.write_text(study.read_text().replace("trials = 1", "trials = 2"))
    result = invoke("tune", study, "--out", tmp_path / "out", "--resume")
    assert result.exit_code == 0, result.output
    assert [sorted(trial.params) for trial in completed(tmp_path / "out")] == [
        ["compress.coarseness", "compress.kept"]
    ] * 2
    assert len(list((tmp_path / "out" / "files").iterdir())) == 2
    assert first.is_file()
    written_best = next((tmp_path / "out" / "pareto").glob("*.toml")).read_text()
    assert "relative_step" in written_best
    assert "coarseness" not in written_best


@pytest.mark.parametrize(
    ("compress", "told"),
    [
        ("relative-step = {low = 0.5, high = 1.5}\n", ["relative_step"]),
        ("coarseness = {low = 0.5, high = 1.5}\n", ["relative_step"]),
        ("coarseness = [0.5]\nrelative-step = [0.5]\n", "coarseness and relative_step are one setting"),
    ],
)
def test_a_space_by_earlier_names(compress: str, told: list[str] | str, tmp_path: Path) -> None:
    study = written(tmp_path, HEAD, FIT + "[compress]\nsparsity = 0.5\n[space.compress]\n" + compress)
    if isinstance(told, str):
        with pytest.raises(ValueError, match=told):
            read_plan(study, device="cpu", threads=1)
    else:
        plan, _ = read_plan(study, device="cpu", threads=1)
        assert [one.option for one in plan.after] == told
        assert plan.digest != plan.in_earlier_words.digest


def test_a_data_base_is_closed_behind_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is left to the garbage collector, also where a command is refused."""
    study, out = written(tmp_path, HEAD.replace("6", "1")), tmp_path / "out"
    monkeypatch.setenv("PYRO_COMPRESS_STORAGE", f"sqlite:///{tmp_path / 'trials.db'}")
    gc.disable()
    try:
        assert invoke("tune", study, "--out", out).exit_code == 0
        assert "go on with --resume" in invoke("tune", study, "--out", tmp_path / "other").output
        other = written(tmp_path, study.read_text().replace("hidden = [8]", "hidden = [9]"), "")
        assert "was begun with another fit" in invoke("tune", other, "--out", out, "--resume").output
        opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    finally:
        gc.enable()
    assert not [path for path in opened if path.endswith("trials.db")]


def interrupted(work: Work) -> None:
    """Ctrl-C in the middle of a fit, the third one unless it was over between two looks."""
    told = []

    def look(number: int, frame: FrameType | None) -> None:
        if list(work.out.glob("runs/.*.unfinished/checkpoint-*")):
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), signal.SIGINT)

    def note(reported: Reported) -> None:
        told.append(reported.trial)
        if len(told) == 2:
            signal.signal(signal.SIGALRM, look)
            signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)

    before = signal.getsignal(signal.SIGALRM)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_worker(Work(work.plan, work.splits, work.out, on_trial=note))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_trials_of_others_are_told_of(tmp_path: Path) -> None:
    """Each once, those of other workers when this one looks at them."""
    study, own, others = written(tmp_path, HEAD.replace("6", "3")), list[Reported](), list[Reported]()
    work = Work(*read_plan(study, device="cpu", threads=1), tmp_path / "out")
    begin(work)

    def note(reported: Reported) -> None:
        own.append(reported)
        if len(own) == 1:
            run_worker(replace(work, on_trial=others.append))

    run_worker(replace(work, on_trial=note))
    assert [(told.trial, told.done, told.wanted) for told in own] == [(0, 1, 3), (1, 2, 3), (2, 3, 3)]
    assert [told.trial for told in others] == [1, 2]


@pytest.mark.slow
def test_interrupted_and_resumed(tmp_path: Path) -> None:
    space = FIT.replace("epochs = 3", "epochs = 8") + "[space.fit]\nseed = {low = 0, high = 1000}\n"
    study = written(tmp_path, HEAD + "compressions-per-fit = 1\n", space)  # a fit per trial: the signal meets one
    out = tmp_path / "out"
    work = Work(*read_plan(study, device="cpu", threads=1), out)
    begin(work)
    interrupted(work)
    before = {path: path.read_bytes() for path in (out / "files").iterdir()}
    assert 2 <= len(before) < 6
    result = invoke("tune", study, "--out", out, "--resume", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["finished"] == 6
    found = trials_of(out)
    assert all(trial.state.is_finished() for trial in found)
    assert len(completed(out)) == 6
    for trial in found:  # whatever the interrupt broke off was made again
        if trial.state == optuna.trial.TrialState.FAIL:
            assert any(trial.params.items() <= other.params.items() for other in completed(out))
    assert len(list((out / "files").iterdir())) == 6
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_a_killed_workers_trial_is_made_again(tmp_path: Path) -> None:
    space = FIT.replace("epochs = 3", "epochs = 16") + "[space.fit]\nseed = {low = 0, high = 1000}\n"
    study = written(tmp_path, HEAD.replace("6", "3") + "compressions-per-fit = 1\n", space)
    out = tmp_path / "out"
    work = Work(*read_plan(study, device="cpu", threads=1), out)
    begin(work)
    command = [sys.executable, "-m", "pyro_compress", "tune", str(study), "--out", str(out), "--worker"]
    worker = subprocess.Popen([*command, "--device", "cpu", "--threads", "1"], stderr=subprocess.DEVNULL)
    busy: list[optuna.trial.FrozenTrial] = []
    while not busy:
        assert worker.poll() is None
        time.sleep(0.05)
        running = [t for t in trials_of(out) if not t.state.is_finished() and "fit" in t.user_attrs]
        busy = [t for t in running if not (out / "runs" / t.user_attrs["fit"]).is_dir()]
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    run_worker(work)
    lost = trials_of(out)[busy[-1].number]
    (again,) = [trial for trial in completed(out) if trial.user_attrs.get("retry_of") == lost.number]
    assert lost.state == optuna.trial.TrialState.FAIL
    assert again.params == lost.params
    assert len(completed(out)) == 3
    assert all(math.isfinite(value) for trial in completed(out) for value in trial.values)
    hashes = {config_hash(point_of(work.plan, t.params, 16, len(work.splits.train)).config) for t in completed(out)}
    assert {path.name for path in (out / "runs").iterdir() if path.is_dir()} == hashes


def test_a_stopped_worker_is_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its lock is held and gives no sign: the others end, say so, and a resumed search tries its trial again."""
    study = written(tmp_path, HEAD.replace("6", "1"))
    work = Work(*read_plan(study, device="cpu", threads=1), tmp_path / "out", grace=0.3)
    begin(work)
    with quietly(), opened_storage(work.out) as storage:
        running = optuna.load_study(study_name="small", storage=storage).ask()
        running.set_user_attr("worker", "1")
    with FileLock(work.out / "workers" / "1.lock"):
        run_worker(work)
        assert trials_of(work.out)[0].state == optuna.trial.TrialState.RUNNING
    assert "trial 0 is left out: " in caplog.text
    assert "go on with --resume" in caplog.text
    with quietly(), opened_storage(work.out) as storage:
        revive(work, optuna.load_study(study_name="small", storage=storage), "0")
    assert [trial.state.name for trial in trials_of(work.out)] == ["FAIL", "WAITING"]
