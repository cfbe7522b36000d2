"""Runs a study: fits what is missing, evaluates every fit at its sparsities, writes rows as they come.

Results lie in one folder:

    runs/HASH/              one run folder per configuration, as `fit` writes it
    rows/HASH.json          its evaluation; the two together are the cache
    rows/HASH.failed        or why there is none; tried again by whoever starts later
    rows/HASH.lock, runs/HASH.lock   held while it is worked on
    study.csv               one line per (fit, sparsity)
    study.json              the same and more, with resolved configurations, versions and machine
    study.md                the table
    study.toml              the study that was run
    elpd.json               if asked for: its posteriors ranked (`pyro_compress.studies.ranking`)

A fit whose rows are there is not repeated; a run folder without rows is evaluated again, not fitted again.

Several processes may work on one folder, on one machine or, where they share it, on several: each takes the next fit
that nobody holds (`rows/HASH.lock`), and all end with the same tables. What a killed one held is free at once, and its
unfinished fit is gone on with.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.candidates import Candidates
from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.compression.rounding import COMPARED
from pyro_compress.data.splits import load_splits
from pyro_compress.doubts import gathered, keep
from pyro_compress.foreign import printable
from pyro_compress.graph.network import Network
from pyro_compress.locks import Silence, claimed, is_free, locked
from pyro_compress.machine import prepare
from pyro_compress.metrics import Predict, evaluate, out_of_domain_auroc
from pyro_compress.networks.draws import Ensemble, has_spread, masked
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.identity import config_hash
from pyro_compress.runs.starting import Ended, some_at_a_time
from pyro_compress.runs.store import store_of
from pyro_compress.scores import Scores
from pyro_compress.settings import FitConfig
from pyro_compress.studies.plan import CHOOSE_BY, DRAWS, Planned
from pyro_compress.studies.results import (
    Outcome,
    failed_path,
    lock_path,
    rows_path,
    settled,
    with_stored,
    write_results,
)
from pyro_compress.studies.tables import Row
from pyro_compress.training.history import read_history
from pyro_compress.types import Posterior, Splits

POLL_SECONDS = 1.0
"""Between two looks at fits that other processes work on."""
BUSY = 75
"""Exit status of a command for one row that another process works on: EX_TEMPFAIL, try again later."""

OnOutcome = Callable[[Outcome, int, int], None]
Tried = tuple[int, Outcome | None]
"""A fit, by its place in the study, and its outcome; None while another process works on it."""
Attempts = Callable[[Mapping[int, Planned], float], Iterator[Tried | None]]
"""Fits that wait, and when this began -> each tried once; None now and then while nothing ends."""


def run_planned(
    planned: Sequence[Planned], out: Path, attempts: Attempts | None = None,
    on_outcome: OnOutcome = lambda outcome, done, total: None,
) -> list[Outcome]:  # fmt: skip
    """Run what is missing, and write the tables after each fit.

    Args:
        planned: every fit of the study, in order.
        out: folder of the results.
        attempts: how fits are tried; None: here, one after the other.
        on_outcome: called with (outcome, how many are done, how many there are).

    Returns:
        One outcome per fit, in order; a fit that failed does not stop the others.

    Raises:
        OSError: the folder cannot be written.
    """
    (out / "rows").mkdir(parents=True, exist_ok=True)
    began, found = time.time(), dict[int, Outcome]()
    for index, outcome in _outcomes(planned, out, attempts or here(out), began):
        found[index] = outcome
        for sentence in outcome.doubts:
            keep(sentence)
        write_tables(planned, out, began, found)
        on_outcome(outcome, len(found), len(planned))
    return [found[i] for i in sorted(found)]


def write_tables(planned: Sequence[Planned], out: Path, began: float, found: Mapping[int, Outcome]) -> None:
    """Write the tables of what is there: what others finished is in them, so that tables only ever grow."""
    with locked(out / "rows" / "tables.lock"):
        everything = [found.get(i) or settled(one, out, began) for i, one in enumerate(planned)]
        write_results([one for one in everything if one], out)


def _outcomes(planned: Sequence[Planned], out: Path, attempts: Attempts, began: float) -> Iterator[tuple[int, Outcome]]:
    """Every outcome once it is there, this process's or another's."""
    waiting, silence = dict(enumerate(planned)), Silence()
    while waiting:
        for tried in attempts(dict(waiting), began):
            if tried is None:
                _say_who_is_silent(waiting, out, silence)
            elif outcome := tried[1]:
                del waiting[tried[0]]
                yield tried[0], outcome
        if waiting:
            _say_who_is_silent(waiting, out, silence)
            time.sleep(POLL_SECONDS)


def _say_who_is_silent(waiting: Mapping[int, Planned], out: Path, silence: Silence) -> None:
    for one in waiting.values():
        silence.warn_once(lock_path(one, out))


def here(out: Path) -> Attempts:
    """Fits in this process, one after the other."""
    return lambda waiting, began: ((index, attempt(one, out, began)) for index, one in waiting.items())


def by_commands(out: Path, command: Callable[[Planned], list[str]], jobs: int) -> Attempts:
    """Fits by commands that print their outcome as JSON, so many at a time.

    Args:
        out: folder of the results.
        command: for a fit.
        jobs: processes.
    """

    def tried(waiting: Mapping[int, Planned], began: float) -> Iterator[Tried | None]:
        free = []
        for index, one in waiting.items():
            if outcome := settled(one, out, began):
                yield index, outcome
            elif is_free(lock_path(one, out)):
                free.append(index)
        with closing(some_at_a_time([command(waiting[index]) for index in free], jobs)) as commands:
            for ended in commands:
                index = free[ended.place] if ended else 0
                yield (index, _ended(waiting[index], out, began, ended)) if ended else None

    return tried


def _ended(planned: Planned, out: Path, began: float, ended: Ended) -> Outcome | None:
    printed = json.loads(ended.output or "{}")
    if outcome := settled(planned, out, began):
        return replace(outcome, doubts=tuple(printed.get("doubts", ())))
    if ended.code == BUSY:
        return None
    how = f"by signal {-ended.code}" if ended.code < 0 else f"with status {ended.code}"
    return Outcome(planned, (), printed.get("failure") or f"its process ended {how} before there was a row")


def attempt(planned: Planned, out: Path, began: float) -> Outcome | None:
    """The outcome of a fit; None while another process works on it.

    Args:
        planned: the fit.
        out: folder of the results.
        began: when this process began (seconds since the epoch): failures that others noted since are not tried again.
    """
    if outcome := settled(planned, out, began):
        return outcome
    with claimed(lock_path(planned, out)) as free:
        if not free:
            return None
        if outcome := settled(planned, out, began):  # by whoever held it just now
            return outcome
        with gathered() as doubts:  # perhaps in a process of its own
            outcome = replace(run_one(planned, out), doubts=tuple(doubts))
        if outcome.failure:
            write_atomically(failed_path(planned, out), outcome.failure.encode())
        else:
            failed_path(planned, out).unlink(missing_ok=True)
        return outcome


def run_one(planned: Planned, out: Path) -> Outcome:
    """Fit and evaluate; a user's error becomes the outcome's failure."""
    try:
        config, folder = chosen(planned, out)
        rows = evaluated(replace(planned, sparsities=with_stored(planned, out)), config, folder)
    except ValueError as error:
        return Outcome(planned, (), printable(" ".join(str(error).split())))
    document = {
        "config": asdict(replace(config, data_dir="")),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "pyro-ppl")},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "candidates": [config_hash(candidate) for candidate in planned.configs],
        "rows": [asdict(row) for row in rows],
    }
    write_atomically(rows_path(planned, out), (json.dumps(document, indent=1) + "\n").encode())
    return Outcome(planned, tuple(row for row in rows if row.sparsity in planned.sparsities))


def chosen(planned: Planned, out: Path) -> tuple[FitConfig, Path]:
    """Fit what is missing; the configuration that is best on validation at its end, and its run folder."""
    rank, found = CHOOSE_BY[planned.choose_by], []
    for config in planned.configs:
        folder = store_of(out).fitted(config)  # methods may share a fit
        found.append((rank(last_epoch(folder)), config, folder))
    _, config, folder = min(found, key=lambda candidate: candidate[0])
    return config, folder


def last_epoch(folder: Path) -> dict[str, Any]:
    """Last line of a run's history.

    Raises:
        ValueError: it has none.
    """
    if not (epochs := read_history(folder)):
        raise ValueError(f"{folder} has no history")
    return epochs[-1]


def evaluated(planned: Planned, config: FitConfig, folder: Path) -> tuple[Row, ...]:
    """Rows of a fitted run: pruned globally by its criterion, float weights, on the test split."""
    run = load_run(folder)
    prepare(config.device, config.threads)
    splits = load_splits(config.data, config.data_dir, config.validation, reading=config.reading)
    other = load_splits(planned.other, config.data_dir) if planned.other else None
    criterion = planned.method.criterion or run.posterior.criterion
    ranks = scores(run.posterior, criterion)
    origin = (config_hash(config), float(last_epoch(folder)["seconds"]))
    found, files = [], Candidates(run.posterior, splits, criterion, "cpu", planned.sparsities)
    for sparsity in planned.sparsities:
        posterior = masked(run.posterior, masks_at(ranks, sparsity))
        size = files.bytes_of(sparsity, COMPARED)
        for ensemble, predict in _predictors(posterior).items():
            row = _row(planned, sparsity, ensemble, predict, origin, (splits, other))
            found.append(row if ensemble else replace(row, file_bytes=size))
    return tuple(found)


def _predictors(posterior: Posterior) -> dict[bool, Predict]:
    """The posterior mean, and the ensemble of draws where weights can be drawn."""
    mean: dict[bool, Predict] = {False: Network(posterior.graph, posterior.tensors).eval()}
    return mean | ({True: Ensemble(posterior, DRAWS)} if has_spread(posterior) else {})


def _row(
    planned: Planned, sparsity: float, ensemble: bool, predict: Predict, origin: tuple[str, float],
    data: tuple[Splits, Splits | None],
) -> Row:  # fmt: skip
    splits, other = data
    measured = evaluate(predict, splits, "test")
    assert isinstance(measured, Scores)
    return Row(
        dataset=planned.config.data,
        network=planned.network,
        method=planned.method.name,
        variant=planned.method.row_variant(ensemble),
        sparsity=sparsity,
        seed=planned.config.seed,
        accuracy=measured.accuracy,
        nll_nats=measured.nll_nats,
        ece=measured.ece,
        train_seconds=origin[1],
        config_hash=origin[0],
        brier=measured.brier,
        ood_auroc=out_of_domain_auroc(predict, splits, other, "test") if other else None,
        ensemble=ensemble,
    )
