"""What a search leaves behind; the only place of a search that reads the test split, and of each file only once.

trials.csv          every trial of every fidelity
pareto/N.pcn        the files that no other dominates in validation error and bytes, N the number of the trial
pareto/N.toml       what `fit --config` and `compress --config` make each of
pareto.json         the same as numbers, with test scores; a file whose scores stand there is not scored again
pareto.md           as a table
front.png, .svg     error against bytes, with published points (where matplotlib is installed)
importances.json    share of each parameter in what sets the better trials apart
best.toml           the configuration that the objective asked for
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.candidates import to_module
from pyro_compress.foreign import cell, json_of, of_type, record
from pyro_compress.locks import locked
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.runs.identity import identity
from pyro_compress.settings import CompressConfig, FineTune
from pyro_compress.settings.declared import current
from pyro_compress.tuning.front import best_of
from pyro_compress.tuning.plan import Plan, Point, point_of
from pyro_compress.tuning.published import PUBLISHED
from pyro_compress.tuning.storage import as_begun, open_study, opened_storage, quietly
from pyro_compress.tuning.trial import file_of, measure
from pyro_compress.tuning.workers import Work, coordinates, finished, front_of, minutes_of
from pyro_compress.types import Splits

OF_A_TRIAL = re.compile(r"\d+\.(pcn|toml)")
"""Files of `pareto/`; whatever else lies there stays."""
ENOUGH = 4
"""Completed trials from which on importances mean something."""


@dataclass(frozen=True)
class Member:
    """A file on the front.

    Attributes:
        trial: its number.
        bytes: of the file.
        validation_error: share of the validation examples that it gets wrong.
        test_error: of the test examples.
        validation_nll_nats: per example.
        test_nll_nats: per example.
        parameters: non-zero values in it.
        sha256: of the file.
        settings: options of `compress`.
        fit: options of `fit` that differ from the defaults.
    """

    trial: int
    bytes: int
    validation_error: float
    test_error: float
    validation_nll_nats: float
    test_nll_nats: float
    parameters: int
    sha256: str
    settings: dict[str, Any]
    fit: dict[str, Any]


@dataclass(frozen=True, repr=False)
class Outcome:
    """A search, ended or interrupted.

    Attributes:
        finished: trials that count, at the last fidelity.
        failed: those of them whose configuration could not be fitted or compressed.
        minutes: of computing, at every fidelity, over all workers.
        front: smallest file first.
        best: of the front what the objective asked for; None where nothing meets its bound.
        importances: parameter -> share, most important first.
        out: folder with all of it.
    """

    finished: int
    failed: int
    minutes: float
    front: tuple[Member, ...]
    best: Member | None
    importances: dict[str, float]
    out: Path

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"out": str(self.out)}

    def __repr__(self) -> str:
        """The front, smallest file first."""
        lines = [f"{self.out}: {self.finished} trials, {self.failed} without a file, {self.minutes:.1f} minutes"]
        for m in self.front:
            best = ", the best" if m is self.best else ""
            lines.append(
                f"  trial {m.trial}: {m.bytes:,} bytes, validation error {100 * m.validation_error:.2f} %{best}"
            )
        return "\n".join(lines)


def conclude(work: Work) -> Outcome:
    """Write the outcome of a search as far as it has come.

    Raises:
        ValueError: no trial was completed.
        OSError: the folder cannot be written.
    """
    with quietly(), locked(work.out / "outcome.lock"), opened_storage(work.out, work.url, work.grace) as storage:
        work = replace(work, plan=as_begun(work.plan, storage))
        studies = {epochs: open_study(work.plan, storage, epochs) for epochs in work.plan.fidelities}
        trials = {epochs: study.get_trials() for epochs, study in studies.items()}
        write_atomically(work.out / "trials.csv", _csv(trials, work.plan).encode())
        last = work.plan.fidelities[-1]
        complete = [trial for trial in trials[last] if trial.state == TrialState.COMPLETE]
        if not complete:
            raise ValueError(
                f"no trial of {work.plan.name!r} was completed at {last} epochs; allow more trials or minutes"
            )
        front = _front(work, complete)
        shares = _importances(studies[last], complete)
    outcome = Outcome(
        finished=len(finished(trials[last])),
        failed=len(finished(trials[last])) - len(complete),
        minutes=sum(map(minutes_of, trials.values())),
        front=front,
        best=_best(work.plan, front),
        importances=shares,
        out=work.out,
    )
    _write(work, outcome, [coordinates(trial) for trial in complete])
    return outcome


def _csv(trials: dict[int, list[FrozenTrial]], plan: Plan) -> str:
    numbers = ("error", "bytes", "nll_nats", "parameters", "fit", "fit_seconds", "seconds", "retry_of", "failure")
    names = [parameter.name for parameter in plan.space]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epochs", "trial", "state", *numbers, *names])
    for epochs, own in trials.items():
        for trial in own:
            cells = [trial.user_attrs.get(key, "") for key in numbers]
            cells = [trial.number, trial.state.name.lower(), *cells, *map(trial.params.get, names)]
            writer.writerow([epochs, *map(cell, cells)])
    return text.getvalue()


def _front(work: Work, trials: list[FrozenTrial]) -> tuple[Member, ...]:
    """The front's files, made again where they lie on another machine, each read back and scored."""
    known = {member.sha256: member for member in read_members(work.out)}
    members = []
    for trial in front_of(work.plan, trials):
        point = point_of(work.plan, trial.params, work.plan.fidelities[-1], len(work.splits.train))
        path = file_of(point, work.out)
        if not path.is_file():
            measure(point, work.splits, work.out)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        members.append(known.get(digest) or scored(trial.number, path, point, work.splits))
    return tuple(members)


def read_members(out: Path) -> list[Member]:
    """What `pareto.json` says; nothing where there is none."""
    path, names = out / "pareto.json", [field.name for field in fields(Member)]
    if not path.is_file():
        return []
    found = of_type(json_of(path.read_bytes(), str(path)), list[dict[str, Any]], str(path))
    return [record(Member, {name: one[name] for name in names if name in one}, str(path)) for one in found]


def scored(trial: int, path: Path, point: Point, splits: Splits) -> Member:
    """Read a file back and score it; reads the test split."""
    network = file.read(path)
    module = to_module(network)
    validation, test = (evaluate(module, splits, split, noise=network.noise) for split in ("validation", "test"))
    return Member(
        trial=trial,
        bytes=path.stat().st_size,
        validation_error=validation.error,
        test_error=test.error,
        validation_nll_nats=validation.nll_nats,
        test_nll_nats=test.nll_nats,
        parameters=network.parameters,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        settings=point.settings,
        fit=identity(point.config),
    )


def _best(plan: Plan, front: tuple[Member, ...]) -> Member | None:
    """Chosen on validation alone."""
    chosen = best_of([(m.validation_error, m.bytes) for m in front], plan.objective, plan.bound)
    return None if chosen is None else front[chosen]


def _importances(study: Study, complete: list[FrozenTrial]) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al. 2023): how differently a parameter is spread among the better trials."""
    if len(complete) < ENOUGH:
        return {}
    found = optuna.importance.get_param_importances(study)
    return {name: float(share) for name, share in found.items()}


def _write(work: Work, outcome: Outcome, points: list[tuple[float, float]]) -> None:
    out, folder = work.out, work.out / "pareto"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if OF_A_TRIAL.fullmatch(old.name) and old.stem not in {str(member.trial) for member in outcome.front}:
            old.unlink()
    for member in outcome.front:
        path = next(p for p in (out / "files").glob("*.pcn") if _is(p, member.sha256))
        write_atomically(folder / f"{member.trial}.pcn", path.read_bytes())
        write_atomically(folder / f"{member.trial}.toml", configuration(member).encode())
    write_atomically(out / "pareto.json", (json.dumps([asdict(m) for m in outcome.front], indent=1) + "\n").encode())
    write_atomically(out / "pareto.md", (markdown(outcome) + "\n").encode())
    write_atomically(out / "importances.json", (json.dumps(outcome.importances, indent=1) + "\n").encode())
    if outcome.best is not None:
        write_atomically(out / "best.toml", configuration(outcome.best).encode())
    if importlib.util.find_spec("matplotlib") is not None:
        from pyro_compress.studies.figures import new_figure, save, search_front

        figure, (ax,) = new_figure()
        references = work.plan.references + PUBLISHED.get((work.plan.fit.data, work.plan.fit.net), ())
        tested = [(float(member.bytes), 100 * member.test_error) for member in outcome.front]
        tried = [(size, 100 * error) for error, size in points]
        search_front(ax, tried, tested, [(r.name, r.bytes, 100 * r.error) for r in references])
        save(figure, out / "front")


def _is(path: Path, sha256: str) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def configuration(member: Member) -> str:
    """TOML that `fit --config` and `compress --config` take."""
    import tomli_w

    settings = current(member.settings, CompressConfig)
    settings = {"reorder": 0} | settings  # trials leave units where they are, which is quick
    if "finetune" in settings:
        settings = {"finetune_lambda": FineTune.lam} | settings  # `compress` would search for one
    return tomli_w.dumps({"fit": member.fit, "compress": settings})


def markdown(outcome: Outcome) -> str:
    """The front as a table, smallest file first."""
    lines = [
        "| trial | bytes | validation error | test error | values | settings |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for m in outcome.front:
        errors = f"{100 * m.validation_error:.2f} % | {100 * m.test_error:.2f} %"
        lines.append(f"| {m.trial} | {m.bytes:,} | {errors} | {m.parameters:,} | {settings_text(m.settings)} |")
    return "\n".join(lines)


def settings_text(settings: dict[str, Any]) -> str:
    """Settings on one line."""
    texts = []
    for name, value in settings.items():
        shares = ", ".join(f"{layer} {share:.4f}" for layer, share in value.items()) if isinstance(value, dict) else ""
        texts.append(f"{name} {shares or (f'{value:.4g}' if isinstance(value, float) else value)}")
    return ", ".join(texts)
