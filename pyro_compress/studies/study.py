"""A study from its file to its table: what `compare` does."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from pyro_compress.foreign import NO_CODE, shown
from pyro_compress.kinds import is_study
from pyro_compress.places import check_results
from pyro_compress.runs.slurm import Submitted, checked, submitted
from pyro_compress.runs.starting import command
from pyro_compress.runs.store import share
from pyro_compress.settings.studies import Machine
from pyro_compress.studies import tables
from pyro_compress.studies.compare import OnOutcome, attempt, by_commands, run_planned, write_tables
from pyro_compress.studies.plan import Planned, plan, read_study
from pyro_compress.studies.ranking import Ranked, rank, write_ranking
from pyro_compress.studies.results import Outcome, cached_rows, keep_study
from pyro_compress.studies.tables import Row


@dataclass(frozen=True, repr=False)
class Comparison:
    """A study's results.

    Attributes:
        out: folder of the results.
        outcomes: what became of every fit, in order.
        ranked: its posteriors by ELPD; empty where nobody asked.
    """

    out: Path
    outcomes: tuple[Outcome, ...]
    ranked: tuple[Ranked, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """A row per fit and sparsity."""
        return [row for outcome in self.outcomes for row in outcome.rows]

    @property
    def failed(self) -> list[Outcome]:
        """Fits without rows."""
        return [outcome for outcome in self.outcomes if outcome.failure]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"rows": [vars(row) for row in self.rows], "elpd": [asdict(one) for one in self.ranked]}

    def __repr__(self) -> str:
        """The table."""
        return tables.plain(self.rows)


def place_of(study: str | Path, out: str | Path | None) -> Path:
    """Where a study's results lie."""
    return Path(out or Path("studies") / read_study(Path(study)).name)


@dataclass(frozen=True)
class Sweep:
    """A study that is to be run, planned and looked at; nothing is written yet.

    Attributes:
        path: its file.
        out: folder of the results.
        planned: every fit, in order.
        runs: folder of runs that it shares with others, or empty.
        options: of all its commands: seeds, where the data are, what to compute on.
    """

    path: Path
    out: Path
    planned: tuple[Planned, ...]
    runs: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> list[Planned]:
        """Fits whose rows are not there; methods may share one."""
        absent = {one.hash: one for one in reversed(self.planned) if cached_rows(one, self.out) is None}
        return [one for one in self.planned if absent.get(one.hash) is one]

    def command(self, planned: Planned, **more: Any) -> list[str]:
        """The command that makes the rows of a fit, and does nothing where they are there."""
        own = {"out": self.out, "row": planned.hash, "runs": self.runs, "no_code": bool(os.environ.get(NO_CODE))}
        return command("compare", self.path, **own, **self.options, **more)

    def begin(self) -> None:
        """Make the folder: the study's copy, its store."""
        keep_study(self.path, self.out)
        if self.runs:
            share(self.out, Path(self.runs))


def sweep(
    study: str | Path, out: str | Path | None = None, runs: str | Path | None = None, seeds: Sequence[int] = (),
    **machine: Unpack[Machine],
) -> Sweep:  # fmt: skip
    """Read and plan a study; arguments and errors as for `compare`."""
    path, read, place = Path(study), read_study(Path(study)), place_of(study, out)
    check_results(place, is_study, path, "compare")
    planned = plan(replace(read, seeds=tuple(seeds) or read.seeds), **machine)
    given = {name: value for name, value in machine.items() if value not in ("auto", 0)}
    return Sweep(path, place, tuple(planned), str(runs or ""), {"seeds": ",".join(map(str, seeds))} | given)


def run_row(found: Sweep, name: str) -> Outcome | None:
    """Fit and evaluate what one of a study's rows needs; None where another process works on it.

    Args:
        found: the study.
        name: of the rows: `Planned.hash`.

    Raises:
        ValueError: there is no such row.
        OSError: the folder cannot be written.
    """
    began = time.time()
    if not (named := [one for one in found.planned if one.hash == name]):
        raise ValueError(
            f"{found.path} has no row {shown(name)}: it or its data have changed; list its rows with --rows"
        )
    found.begin()
    outcomes = [attempt(one, found.out, began) for one in named]  # methods may share it
    write_tables(found.planned, found.out, 0.0, {})
    return next((one for one in outcomes if not (one and one.rows)), outcomes[0])


def submit_rows(found: Sweep, slurm: Sequence[str] = ()) -> Submitted | None:
    """Hand the rows of a study that are missing to Slurm, a job each; None where none is.

    Args:
        found: the study.
        slurm: settings of the jobs, as `runs.slurm.checked` takes them.

    Raises:
        ValueError: a setting that is unknown, no Slurm, no submitit.
        OSError: the folder cannot be written.
    """
    checked(slurm)
    if not (missing := found.missing):
        return None
    found.begin()
    return submitted([found.command(one) for one in missing], found.out / "slurm", slurm, found.out.name)


def compare(
    study: str | Path, out: str | Path | None = None, jobs: int = 1, *, runs: str | Path | None = None,
    seeds: Sequence[int] = (), table: bool = False, elpd: bool = False,
    on_outcome: OnOutcome = lambda outcome, done, total: None, **machine: Unpack[Machine],
) -> Comparison:  # fmt: skip
    """Fit and prune what a study file names; what is there already is not fitted again.

    Args:
        study: TOML file.
        out: folder of the results; None: `studies/NAME`.
        jobs: fits at a time, one process each.
        runs: folder of runs that studies and searches share, found by their configurations; None: `OUT/runs` alone.
        seeds: only these of the study; empty: all.
        table: fit nothing, give what is there.
        elpd: rank the posteriors by ELPD, too, in `elpd.json`.
        on_outcome: called with (outcome, how many are done, how many there are).
        **machine: `data_dir`, folder of the torchvision data sets; `device`: `auto`, `cpu` or `cuda`; `threads`: of the
            CPU, 0 leaves torch's default.

    Returns:
        The rows; a fit that failed does not stop the others.

    Raises:
        ValueError: no such study, nothing to show, a folder that holds something else.
        OSError: the folder cannot be written.
    """
    found = sweep(study, out, runs, seeds, **machine)
    path, place = found.path, found.out
    if not (wanted := [one for one in found.planned if not table or cached_rows(one, place)]):
        raise ValueError(f"{place} holds no row of {path}; run it without --table")
    fitted = Counter((one.config.data, one.config.seed) for one in wanted if one.config.prior != "none")
    if elpd and max(fitted.values(), default=0) < 2:
        raise ValueError(f"{path} has no two posteriors of the same data set and seed; --elpd ranks two or more")
    found.begin()
    attempts = by_commands(place, partial(found.command, json=True), jobs) if jobs > 1 else None
    done = Comparison(place, tuple(run_planned(wanted, place, attempts, on_outcome)))
    if not elpd:
        return done
    write_ranking(ranked := rank(done.rows, place, machine.get("data_dir", "")), place)
    return replace(done, ranked=tuple(ranked))
