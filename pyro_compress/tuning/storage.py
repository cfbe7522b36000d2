"""Optuna, as far as this program uses it: where trials are kept, who proposes them, how one is tried again.

Without a URL trials lie in `journal.log` of the study's folder, which any number of processes of one machine (or of
several that share the folder) append to. With one (`postgresql+psycopg://...`, `mysql+pymysql://...`) they lie in
that data base, and its clock tells a silent worker from a busy one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_compress.foreign import ordinary, unknown
from pyro_compress.tuning.plan import Plan
from pyro_compress.tuning.space import Parameter

try:
    import optuna
except ImportError as error:
    raise ValueError(f"tune needs Optuna: pip install 'pyro-compress[search]' ({error})") from error
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

RETRIES = 3
"""Times that a trial is tried again after its worker vanished."""
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
    "tpe": lambda seed: TPESampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=12),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Who proposes: Bayesian optimisation with Gaussian processes, a tree of Parzen estimators, an evolution, chance."""


@contextmanager
def quietly() -> Iterator[None]:
    """Optuna without its log and without its remarks on what it calls experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def opened_storage(out: Path, url: str = "", grace: float = 60.0) -> Iterator[BaseStorage]:
    """The journal in a study's folder, or a data base, whose connections are closed at the end of the block.

    Args:
        out: the study's folder.
        url: of the data base, as SQLAlchemy takes it; empty for the journal.
        grace: seconds after which the trial of a worker that the data base no longer hears of is tried again.

    Raises:
        ValueError: the data base cannot be reached, or its driver is missing.
    """
    if not url:
        yield JournalStorage(
            JournalFileBackend(str(ordinary(out / "journal.log")))
        )  # opens its file anew for every look
        return
    storage = _data_base(url, grace)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _data_base(url: str, grace: float) -> RDBStorage:
    interval = max(int(grace / 4), 1)
    try:
        with quietly():
            return RDBStorage(
                url,
                heartbeat_interval=interval,
                grace_period=max(int(grace), 2),
                heartbeat_stale_trial_callback=requeue,
            )
    except Exception as error:  # whatever the driver raises: its classes are not known here
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"cannot open the storage: {reason}; give a URL like postgresql+psycopg://user@host/name "
            "(pip install 'pyro-compress[postgres]')"
        ) from error


def study_name(plan: Plan, epochs: int) -> str:
    """One study of Optuna's per fidelity: errors after few and after many epochs are different functions."""
    return plan.name if epochs == plan.fidelities[-1] else f"{plan.name}, {epochs} epochs"


def create_studies(plan: Plan, storage: BaseStorage, another: str = "another name") -> None:
    """Begin a study; `another` is what to choose where there is one.

    Raises:
        ValueError: there is one of that name.
    """
    directions = [optuna.study.StudyDirection.MINIMIZE] * (2 if plan.objective == "pareto" else 1)
    for epochs in plan.fidelities:
        name = study_name(plan, epochs)
        try:
            study = optuna.create_study(storage=storage, study_name=name, directions=directions)
        except optuna.exceptions.DuplicatedStudyError:
            raise ValueError(f"there is a study {name!r} already; go on with --resume, or choose {another}") from None
        study.set_user_attr("digest", plan.digest)


def as_begun(plan: Plan, storage: BaseStorage) -> Plan:
    """A plan in the words that its study was begun with: settings have had other names, which its trials hold."""
    with suppress(KeyError):
        study = optuna.load_study(study_name=study_name(plan, plan.fidelities[-1]), storage=storage)
        if study.user_attrs.get("digest") == (earlier := plan.in_earlier_words).digest:
            return earlier
    return plan


def open_study(plan: Plan, storage: BaseStorage, epochs: int) -> Study:
    """The study of a fidelity.

    Raises:
        ValueError: there is none, or its trials are about something else.
    """
    try:
        study = optuna.load_study(study_name=study_name(plan, epochs), storage=storage)
    except KeyError:
        raise ValueError(f"there is no study {plan.name!r} to go on with; leave --resume and --worker out") from None
    if study.user_attrs.get("digest") != plan.digest:
        raise ValueError(
            f"study {plan.name!r} was begun with another fit, space, objective or other fidelities, or by a "
            "version with other defaults; only trials, minutes and sampler may change while it goes on. Take the old "
            "file, or give the new one another name"
        )
    return study


def requeue(study: Study, trial: FrozenTrial) -> None:
    """Let a trial whose worker vanished be tried again with the parameters that it had, `RETRIES` times at most."""
    retries = trial.user_attrs.get("retries", 0) + 1
    if retries <= RETRIES:
        again = optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs={key: value for key, value in trial.system_attrs.items() if key == "fixed_params"},
            user_attrs={"retries": retries, "retry_of": trial.user_attrs.get("retry_of", trial.number)},
        )
        study.add_trial(again)


def samplers(name: str, seed: int) -> Samplers:
    """Samplers by name.

    Raises:
        ValueError: unknown name.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return Samplers(SAMPLERS[name](seed), SAMPLERS[name](seed + 1))


@dataclass(frozen=True)
class Samplers:
    """One for whole configurations, one for what is left of them when the fit is given.

    They are two because Optuna's Gaussian-process sampler (5.0) keeps models of the bounds between its calls and
    fails where the number of parameters changes in between.
    """

    whole: BaseSampler
    rest: BaseSampler

    def given(self, fixed: dict[str, Any]) -> BaseSampler:
        """The sampler for a trial some of whose parameters are fixed, or none."""
        return PartialFixedSampler(fixed, self.rest) if fixed else self.whole


def suggested(trial: Trial, space: tuple[Parameter, ...]) -> dict[str, Any]:
    """A trial's values."""
    return {parameter.name: _suggested(trial, parameter) for parameter in space}


def _suggested(trial: Trial, parameter: Parameter) -> Any:
    name, low, high = parameter.name, parameter.low, parameter.high
    if parameter.choices:
        return trial.suggest_categorical(name, parameter.choices)
    if parameter.integer:
        return trial.suggest_int(name, int(low), int(high), log=parameter.log)
    return trial.suggest_float(name, low, high, log=parameter.log)
