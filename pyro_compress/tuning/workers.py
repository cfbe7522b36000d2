"""Workers: each takes a trial, measures it, tells the study, until the budget is spent; what a dead one left is redone.

A worker holds a lock on `workers/NUMBER.lock` while it lives. The system lets go of it however the process ends, so
that whoever looks next knows at once that a trial in its name will not come back. A worker on another machine, or with
another folder, is known by the data base alone, which fails the trials of those that it no longer hears of.

A fit serves `compressions_per_fit` trials: while one that lies on this machine has served fewer, the next trial's
parameters of the fit are its, and the sampler chooses the others (Optuna's `PartialFixedSampler`: its model then
speaks of these alone and takes what the fit adds for noise); else it chooses all together, from everything seen.
"""

from __future__ import annotations

import itertools
import logging
import math
import platform
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from pyro_compress.doubts import doubt
from pyro_compress.locks import Silence, claimed, is_free, stopped
from pyro_compress.runs.store import store_of
from pyro_compress.tuning.front import best_of, on_front
from pyro_compress.tuning.plan import Plan, point_of
from pyro_compress.tuning.reported import OnTrial, Reported, Spent, seconds_left
from pyro_compress.tuning.storage import (
    as_begun,
    create_studies,
    open_study,
    opened_storage,
    quietly,
    requeue,
    samplers,
    suggested,
)
from pyro_compress.tuning.trial import Measured, measure
from pyro_compress.types import Splits

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Between two looks at trials of others that are still running."""
NAMELESS_SECONDS = 300.0
"""A running trial that never got a worker's name is taken for lost after this time, or when nobody else is there."""
HOPELESS = 5
"""Trials after which a study whose every trial failed is given up."""


class _Surplus(Exception):
    """Two workers took the last trial at the same moment; the later one is dropped."""


@dataclass(frozen=True)
class Work:
    """What a worker needs to know.

    Attributes:
        plan: the study.
        splits: its data.
        out: its folder.
        url: of its data base; empty for the journal in `out`.
        grace: seconds after which the others give up on a silent worker.
        on_trial: called after every trial, whosever it is.
    """

    plan: Plan
    splits: Splits
    out: Path
    url: str = ""
    grace: float = 60.0
    on_trial: OnTrial = lambda reported: None


def begin(work: Work) -> None:
    """Make a study's folder and its entries in the storage.

    Raises:
        ValueError: there is one already.
    """
    for name in ("files", "workers"):
        (work.out / name).mkdir(parents=True, exist_ok=True)
    with quietly(), opened_storage(work.out, work.url, work.grace) as storage:
        free = next(
            path for n in itertools.count(2) if not (path := work.out.with_name(f"{work.out.name}-{n}")).exists()
        )
        create_studies(work.plan, storage, "another name" if work.url else f"another --out, like {free}")


def run_worker(work: Work) -> None:
    """Take trials until the budget is spent and nobody's trial is left running.

    Raises:
        ValueError: no such study, or every trial fails.
    """
    (work.out / "workers").mkdir(parents=True, exist_ok=True)
    with quietly(), registered(work) as name, opened_storage(work.out, work.url, work.grace) as storage:
        work = replace(work, plan=as_begun(work.plan, storage))
        below: Study | None = None
        for index, epochs in enumerate(work.plan.fidelities):
            study = open_study(work.plan, storage, epochs)
            if below is not None:
                promote(below, study, work.plan)
            _search(work, study, name, index)
            below = study


@contextmanager
def registered(work: Work) -> Iterator[str]:
    """A worker's name: the first number whose lock is free, held until the end."""
    folder, number = work.out / "workers", 0
    while True:
        with claimed(folder / f"{number}.lock") as free:
            if free:
                yield _name(work, number)
                return
        number += 1


def _name(work: Work, number: int) -> str:
    return f"{platform.node()}:{work.out.resolve()}/{number}" if work.url else f"{number}"


def _dead(work: Work, own: str, trial: FrozenTrial) -> bool:
    """Whether a running trial will never be told; asked between two trials, when none of this worker runs."""
    name = trial.user_attrs.get("worker")
    if name is None:
        started = trial.datetime_start or datetime.now(UTC)
        old = (datetime.now(UTC) - started.astimezone(UTC)).total_seconds() > NAMELESS_SECONDS
        return old or (not work.url and _alone(work, own))
    place, _, number = name.rpartition("/")
    if name == own:
        return True
    if place != own.rpartition("/")[0]:
        return False  # elsewhere: the data base's own clock decides
    return _free(work, number)


def _left_by_the_silent(work: Work, own: str, trials: list[FrozenTrial], silence: Silence) -> bool:
    """Whether all trials that still run are those of workers of this folder that give no sign; says so if they are.

    Such a worker is stopped, or hangs. It keeps its locks, so that nobody else can take its trial.
    """
    running, here = [t for t in trials if t.state == TrialState.RUNNING], own.rpartition("/")[0]
    names = [str(trial.user_attrs.get("worker", "")) for trial in running]
    paths = [work.out / "workers" / f"{name.rpartition('/')[2]}.lock" for name in names]
    quiet = [silence.seconds(path) >= work.grace for path in paths]  # asks all: the clock of each begins at once
    if not running or not all(quiet) or any(name.rpartition("/")[0] != here for name in names):
        return False
    for trial, path in zip(running, paths, strict=True):
        sentence = f"trial {trial.number} is left out: {stopped(path)}. Then go on with --resume, which tries it again"
        doubt(log, sentence)
    return True


def _free(work: Work, number: str) -> bool:
    return is_free(work.out / "workers" / f"{number}.lock")


def _alone(work: Work, own: str) -> bool:
    """Whether no other worker of this folder lives."""
    return all(path.stem == own or _free(work, path.stem) for path in (work.out / "workers").glob("*.lock"))


def revive(work: Work, study: Study, own: str) -> None:
    """Fail the trials of dead workers and let them be tried again."""
    if work.url:
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if _dead(work, own, trial):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, RuntimeError):  # somebody else was quicker
                continue
            requeue(study, trial)


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count: completed, or failed for a reason that lies in their configuration."""
    return [t for t in trials if t.state == TrialState.COMPLETE or "failure" in t.user_attrs]


def _alive(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return finished(trials) + [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]


def minutes_of(trials: list[FrozenTrial]) -> float:
    """Computing time of finished trials, over all workers."""
    seconds = [t.duration.total_seconds() for t in finished(trials) if t.duration is not None]
    return sum(seconds) / 60


def _search(work: Work, study: Study, name: str, index: int) -> None:
    plan, epochs = work.plan, work.plan.fidelities[index]
    full = index == len(plan.fidelities) - 1
    wanted = (plan.trials if full else plan.cheap_trials) or math.inf
    minutes = plan.minutes / len(plan.fidelities) if plan.minutes else math.inf
    known, silence = study.get_trials(deepcopy=False), Silence()
    first, seen = _spent(known), {trial.number for trial in finished(known)}
    base = samplers(plan.sampler, zlib.crc32(f"{plan.seed} {name.rpartition('/')[2]} {len(known)}".encode()))
    while True:
        revive(work, study, name)
        trials = study.get_trials(deepcopy=False)
        done = finished(trials)
        for trial in done:
            if trial.number not in seen:  # this worker's, or another's
                seen.add(trial.number)
                _report(work, trials, trial, len(seen), (first, epochs, wanted, minutes))
        if len(done) >= wanted or minutes_of(trials) >= minutes:
            return
        if len(done) >= HOPELESS and all("failure" in t.user_attrs for t in done):
            raise ValueError(f"each of {len(done)} trials failed; the last: {done[-1].user_attrs['failure']}")
        waiting = any(t.state == TrialState.WAITING for t in trials)
        if len(_alive(trials)) >= wanted and not waiting:
            if _left_by_the_silent(work, name, trials, silence):
                return
            time.sleep(POLL_SECONDS)
            continue
        study.sampler = base.given(open_fit(plan, trials, store_of(work.out).folder))
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken for dead and tried again by somebody else
            study.optimize(
                lambda trial: _objective(work, study, trial, name, (epochs, wanted)),
                n_trials=1, catch=(ValueError, _Surplus),
            )  # fmt: skip


def _spent(trials: list[FrozenTrial]) -> Spent:
    return Spent(time.monotonic(), len(finished(trials)), minutes_of(trials))


def _report(
    work: Work, trials: list[FrozenTrial], trial: FrozenTrial, done: int, of: tuple[Spent, int, float, float]
) -> None:
    first, epochs, wanted, minutes = of
    now, complete = _spent(trials), [coordinates(t) for t in trials if t.state == TrialState.COMPLETE]
    best = best_of(complete, work.plan.objective, work.plan.bound)
    failure = str(trial.user_attrs.get("failure", ""))
    work.on_trial(
        Reported(
            epochs, trial.number, trial.duration.total_seconds() if trial.duration else 0.0,
            None if failure else coordinates(trial), failure, done, int(wanted) if wanted < math.inf else 0,
            None if best is None else complete[best], seconds_left(first, now, wanted, minutes),
        )
    )  # fmt: skip


def open_fit(plan: Plan, trials: list[FrozenTrial], runs: Path) -> dict[str, Any]:
    """Parameters of a fit that lies here and has served fewer trials than it should; or nothing."""
    if not plan.before:
        return {}
    served = Counter(t.user_attrs["fit"] for t in _alive(trials) if "fit" in t.user_attrs)
    for trial in trials:
        fit = trial.user_attrs.get("fit", "")
        if 0 < served[fit] < plan.compressions_per_fit and (runs / fit).is_dir():
            return {p.name: trial.params[p.name] for p in plan.before}
    return {}


def _objective(work: Work, study: Study, trial: Trial, name: str, of: tuple[int, float]) -> float | list[float]:
    epochs, wanted = of
    try:
        trial.set_user_attr("worker", name)
        if sum(other.number < trial.number for other in _alive(study.get_trials(deepcopy=False))) >= wanted:
            raise _Surplus
        params = suggested(trial, work.plan.space)
        point = point_of(work.plan, params, epochs, len(work.splits.train))
        trial.set_user_attr("fit", point.fit_hash)
        found = measure(point, work.splits, work.out)
    except ValueError as error:
        trial.set_user_attr("failure", " ".join(str(error).split()))
        raise
    except KeyboardInterrupt:
        requeue(study, study.get_trials()[trial.number])
        raise
    for key, value in asdict(found).items():
        trial.set_user_attr(key, value)
    return _values(work.plan, trial, found, len(work.splits.validation))


def _values(plan: Plan, trial: Trial, found: Measured, examples: int) -> float | list[float]:
    """Logarithms: neither changes which point dominates which, and a model of them is not ruled by the worst trials."""
    error, size = math.log(max(found.error, 0.5 / examples)), math.log(found.bytes)
    if plan.bound:
        bounded = size if plan.objective == "error-at-bytes" else error
        trial.set_constraint("bound", bounded - math.log(plan.bound))
    if plan.objective == "pareto":
        return [error, size]
    return size if plan.objective == "bytes-at-error" else error


def coordinates(trial: FrozenTrial) -> tuple[float, float]:
    """(validation error, bytes) of a completed trial."""
    return trial.user_attrs["error"], trial.user_attrs["bytes"]


def front_of(plan: Plan, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Completed trials that no other dominates, smallest file first; those within a front's bound, if there are any."""
    within = [t for t in trials if coordinates(t)[0] <= plan.bound] if plan.objective == "pareto" else []
    kept = within or trials
    return [kept[index] for index in on_front([coordinates(trial) for trial in kept])]


def promote(below: Study, study: Study, plan: Plan) -> None:
    """Start a fidelity with the front of the one below: of the fits with most points on it, as many as go on."""
    if study.get_trials(deepcopy=False):
        return
    front = front_of(plan, below.get_trials(states=(TrialState.COMPLETE,)))
    fits = Counter(trial.user_attrs["fit"] for trial in front)
    chosen = {fit for fit, _ in fits.most_common(plan.promote)}
    queued = Counter[str]()
    for trial in front:
        fit = trial.user_attrs["fit"]
        if (
            fit in chosen
            and queued[fit] < plan.compressions_per_fit
            and sum(queued.values()) < (plan.trials or math.inf)
        ):
            queued[fit] += 1
            study.enqueue_trial(trial.params, skip_if_exists=True)
