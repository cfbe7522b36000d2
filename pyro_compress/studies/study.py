"""A study from its file to its table: what `compare` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from pyro_compress.kinds import is_study
from pyro_compress.places import check_results
from pyro_compress.runs.store import share
from pyro_compress.settings.studies import Machine
from pyro_compress.studies import tables
from pyro_compress.studies.compare import OnOutcome, run_planned
from pyro_compress.studies.plan import plan, read_study
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
    path, read, place = Path(study), read_study(Path(study)), place_of(study, out)
    check_results(place, is_study, path, "compare")
    planned = plan(replace(read, seeds=tuple(seeds) or read.seeds), **machine)
    if not (wanted := [one for one in planned if not table or cached_rows(one, place)]):
        raise ValueError(f"{place} holds no row of {path}; run it without --table")
    fitted = Counter((one.config.data, one.config.seed) for one in wanted if one.config.prior != "none")
    if elpd and max(fitted.values(), default=0) < 2:
        raise ValueError(f"{path} has no two posteriors of the same data set and seed; --elpd ranks two or more")
    keep_study(path, place)
    if runs:
        share(place, Path(runs))
    found = Comparison(place, tuple(run_planned(wanted, place, jobs, on_outcome)))
    if not elpd:
        return found
    write_ranking(ranked := rank(found.rows, place, machine.get("data_dir", "")), place)
    return replace(found, ranked=tuple(ranked))
