"""Posteriors of a study ranked by their expected log predictive density, by ArviZ's `compare`.

The rows are training rows, left out one at a time by importance sampling (PSIS-LOO, Vehtari et al. 2017), the same ones
for every fit of a data set and seed. Deterministic networks have no draws, hence no place in the ranking.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.bayes.diagnostics import Size, diagnose
from pyro_compress.bayes.marginals import read_marginals
from pyro_compress.foreign import json_of, of_type, record
from pyro_compress.inspection import arviz_compat
from pyro_compress.inspection.arviz_compat import HIGH
from pyro_compress.runs.folder import load_run
from pyro_compress.studies.tables import Row

FILE = "elpd.json"


@dataclass(frozen=True)
class Ranked:
    """One posterior among those of its data set and seed.

    Attributes:
        dataset: data set.
        seed: seed of the fit.
        label: network, method and variant.
        rows: training rows.
        elpd: PSIS-LOO expected log predictive density of the rows, summed, in nats.
        se: its standard error.
        elpd_diff: how much less than that of the best.
        dse: standard error of that difference, from the same rows.
        high_k: rows whose importance weights are not to be trusted (Pareto k above 0.7).
    """

    dataset: str
    seed: int
    label: str
    rows: int
    elpd: float
    se: float
    elpd_diff: float
    dse: float
    high_k: int


def rank(rows: Sequence[Row], out: Path, data_dir: str = "", size: Size | None = None) -> list[Ranked]:
    """Rank the posteriors behind a study's rows.

    Args:
        rows: as `compare` gives them.
        out: its results folder, with the run folders.
        data_dir: folder of the torchvision data sets.
        size: how much is drawn.

    Returns:
        By data set and seed, best first.

    Raises:
        ValueError: no two posteriors of one data set and seed; fits of different training rows; ArviZ not installed.
    """
    arviz_compat.arviz()
    fits = {(row.dataset, row.seed, row.config_hash): f"{row.network}, {row.label}" for row in rows if not row.ensemble}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for (dataset, seed, name), label in fits.items():
        folder = out / "runs" / name
        if (folder / "guide.safetensors").is_file():
            found.setdefault((dataset, seed), {})[label] = _drawn(folder, data_dir, size or Size())
    ranked = [one for (dataset, seed), runs in found.items() if len(runs) > 1 for one in _ranked(dataset, seed, runs)]
    if not ranked:
        raise ValueError(f"{out} holds no two posteriors of the same data set and seed; a ranking needs two or more")
    return ranked


def _drawn(folder: Path, data_dir: str, size: Size) -> Any:
    run = load_run(folder)
    marginals = read_marginals(folder / "guide.safetensors", run.config, run.posterior)
    diagnosis = diagnose(run.posterior, marginals, run.splits(data_dir).train, size)
    return arviz_compat.inference_data(diagnosis.groups)


def _ranked(dataset: str, seed: int, runs: dict[str, Any]) -> list[Ranked]:
    labels = {name: tuple(data.observed_data["row"].values.tolist()) for name, data in runs.items()}
    if len(set(labels.values())) > 1:
        raise ValueError(f"the fits of {dataset}, seed {seed}, saw different training rows; give them one `validation`")
    loos = {name: arviz_compat.loo(data) for name, data in runs.items()}
    return [
        Ranked(
            dataset, seed, one["name"], len(labels[one["name"]]), one["elpd"], one["se"], one["elpd_diff"], one["dse"],
            int((loos[one["name"]].pareto_k > HIGH).sum()),
        )
        for one in arviz_compat.compare(runs)
    ]  # fmt: skip


def lines(ranked: Sequence[Ranked]) -> list[list[str]]:
    """A table: header, then one line per posterior."""
    head = ["data set", "seed", "posterior", "ELPD, nats", "less than the best", "k > 0.7"]
    return [head] + [
        [
            one.dataset, str(one.seed), one.label, f"{one.elpd:.1f} ± {one.se:.1f}",
            f"{one.elpd_diff:.1f} ± {one.dse:.1f}" if one.elpd_diff else "", f"{one.high_k} of {one.rows}",
        ]
        for one in ranked
    ]  # fmt: skip


def write_ranking(ranked: Sequence[Ranked], out: Path) -> None:
    """Write `elpd.json` into a results folder."""
    write_atomically(out / FILE, (json.dumps([asdict(one) for one in ranked], indent=1) + "\n").encode())


def read_ranking(out: Path) -> list[Ranked]:
    """What `write_ranking` wrote; empty where there is none."""
    path = out / FILE
    if not path.is_file():
        return []
    entries = of_type(json_of(path.read_bytes(), str(path)), list[Any], str(path))
    return [record(Ranked, one, str(path)) for one in entries]
