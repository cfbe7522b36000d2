"""A study: data sets × networks × methods × seeds, read from a TOML file, spelled out as a list of fits.

    name = "tables"
    datasets = ["mnist"]
    networks = ["mlp"]
    sparsities = [0, 0.5, 0.9]
    seeds = [0, 1, 2]
    out-of-domain = {mnist = "fashion-mnist"}   # optional: where predictive entropy is compared
    choose-by = "accuracy"                      # optional: what `choose` goes by on validation; "nll" is the default

    [fit]                                       # options of `pyro-compress fit` that all methods share
    epochs = 50

    [[methods]]
    name = "SGD"
    variant = "Adam"                            # optional
    sparsities = [0, 0.9]                       # optional: other sparsities than the study's
    criterion = "magnitude"                     # optional: other than the posterior's own
    prior = "none"                              # and any other option of fit
    choose = {lr = [1e-4, 1e-3]}                # optional: the best of these on validation, for every seed anew

A method that prunes while training (option `pruning`) is fitted once per sparsity above 0, every other one once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyro_compress.data.splits import load_splits
from pyro_compress.foreign import file_name, read_toml
from pyro_compress.runs.config import refuse_criterion, resolve
from pyro_compress.runs.identity import config_hash, digest, earlier_fingerprint, earlier_hash, fingerprint
from pyro_compress.settings import FitConfig
from pyro_compress.settings.declared import declared, having, options_in
from pyro_compress.settings.studies import MethodConfig, StudyConfig
from pyro_compress.studies.tables import Row

DRAWS = 10
"""Networks in an ensemble."""
LISTS = ("datasets", "networks", "sparsities", "seeds")
CHOOSE_BY: dict[str, Callable[[dict[str, Any]], tuple[float, ...]]] = {
    "nll": lambda epoch: (epoch["validation_nll_nats"],),
    "accuracy": lambda epoch: (-epoch["validation_accuracy"], epoch["validation_nll_nats"]),
}
"""Name -> last epoch of a fit's history -> what is to be small; equal accuracies are told apart by their NLL."""
ALLOWED = tuple(n for n in having(FitConfig) if n not in ("data", "net", "seed", "prune_to", "task"))
"""Options of fit that a study may give: its tables say the others, and speak of accuracy."""
MAX_FITS = 1 << 16
"""Fits of a study: data sets, networks, methods, seeds and what validation chooses among, multiplied."""


@dataclass(frozen=True)
class Method(MethodConfig):
    """One row of the comparison; `options` are fields of `FitConfig`."""

    options: dict[str, Any] = field(default_factory=dict)

    def row_variant(self, ensemble: bool) -> str:
        """The variant that its rows bear: of the posterior mean, or of an ensemble of draws."""
        return f"{self.variant}, ensemble of {DRAWS}".removeprefix(", ") if ensemble else self.variant


@dataclass(frozen=True)
class Study(StudyConfig):
    """What a study file says."""

    methods: tuple[Method, ...] = ()


@dataclass(frozen=True)
class Planned:
    """One fit, or several of which validation chooses one, and the sparsities it is evaluated at.

    Attributes:
        method: the method.
        configs: resolved; all but the one that is best on validation are dropped unseen by the test split.
        sparsities: shares of the weights to remove.
        other: data set for the out-of-domain comparison, or empty.
        choose_by: name in `CHOOSE_BY`: what the best one is.
    """

    method: Method
    configs: tuple[FitConfig, ...]
    sparsities: tuple[float, ...]
    other: str = ""
    choose_by: str = "nll"

    @property
    def config(self) -> FitConfig:
        """The configuration; the first candidate where there are several."""
        return self.configs[0]

    @property
    def network(self) -> str:
        """Name of the network, with the widths of an `mlp`."""
        return "-".join(["mlp", *map(str, self.config.hidden)]) if self.config.net == "mlp" else self.config.net

    @property
    def hash(self) -> str:
        """Name of its rows: of the configurations, and of what else they depend on."""
        return self._named(config_hash, fingerprint)

    @property
    def earlier_hash(self) -> str:
        """The name that earlier versions gave them."""
        return self._named(earlier_hash, earlier_fingerprint)

    def _named(self, one: Callable[[FitConfig], str], values_of: Callable[[FitConfig], dict[str, Any]]) -> str:
        by = self.choose_by if len(self.configs) > 1 else ""
        how = {
            key: value
            for key, value in (("criterion", self.method.criterion), ("other", self.other), ("by", by))
            if value
        }
        return digest([*map(values_of, self.configs), how]) if how else one(self.config)


def read_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        ValueError: no TOML, a key that is unknown or missing, a value out of range.
        OSError: the file cannot be read.
    """
    tables = {"fit": dict[str, Any], "methods": list[dict[str, Any]]}
    document = options_in(read_toml(path), StudyConfig, str(path), beside=tables)
    for key in (*LISTS, "methods"):
        if not document.get(key):
            raise ValueError(f"{path}: {key} must be a list with something in it")
    document["sparsities"] = tuple(map(float, document["sparsities"]))
    shared = options_in(document.pop("fit", {}), FitConfig, f"{path}: fit", ALLOWED)
    methods = tuple(_method(dict(table), shared, document["sparsities"], path) for table in document["methods"])
    labels = [(method.name, method.variant) for method in methods]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(
            f"{path}: method {' '.join(twice[0]).strip()!r} stands there twice; tell them apart by variant"
        )
    counted = sum(math.prod(len(values) for values in method.choose.values()) for method in methods)
    fits = counted * math.prod(len(document[key]) for key in LISTS)
    if fits > MAX_FITS:
        raise ValueError(f"{path}: {fits} fits, more than {MAX_FITS}; make several studies of it")
    name = file_name(document.get("name", path.stem), f"{path}: name")
    return Study(**document | {"name": name, "methods": methods})


def of_studies(rows: Iterable[Row], paths: Iterable[Path]) -> list[Row]:
    """Rows that bear the name of a method of these study files, in the files' order; all rows where no file is given.

    Raises:
        ValueError, OSError: as `read_study`.
    """
    methods = [method for path in paths for method in read_study(path).methods]
    named = [(method.name, method.row_variant(ensemble)) for method in methods for ensemble in (False, True)]
    if not methods:
        return list(rows)
    return sorted(
        (row for row in rows if (row.method, row.variant) in named), key=lambda r: named.index((r.method, r.variant))
    )


def _method(table: dict[str, Any], shared: dict[str, Any], sparsities: tuple[float, ...], path: Path) -> Method:
    if "name" not in table:
        raise ValueError(f"{path}: a method has no name")
    own = {key: table.pop(key) for key in declared(MethodConfig) if key in table}
    own = {"sparsities": sparsities} | options_in(own, MethodConfig, f"{path}: methods")
    own["sparsities"] = tuple(map(float, own["sparsities"]))
    choose = dict[str, list[Any]]()
    for key, values in own.get("choose", {}).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: choose {key}: give a list of values")
        for value in values:
            for name, plain in options_in({key: value}, FitConfig, f"{path}: choose", ALLOWED).items():
                choose.setdefault(name, []).append(plain)
    options = shared | options_in(table, FitConfig, f"{path}: method {own['name']}", ALLOWED)
    return Method(**own | {"options": options, "choose": choose})


def plan(study: Study, data_dir: str = "", device: str = "auto", threads: int = 0) -> list[Planned]:
    """Every fit of a study, all methods of a data set side by side, seed after seed.

    Raises:
        ValueError: an option that is refused, missing data.
    """
    sizes = dict[tuple[str, float | None], int]()
    found = []
    for seed in study.seeds:
        for dataset in study.datasets:
            for net in study.networks:
                for method in study.methods:
                    config = FitConfig(**method.options, data=dataset, net=net, seed=seed)
                    config = replace(config, data_dir=data_dir, device=device, threads=threads)
                    if (dataset, config.validation) not in sizes:
                        splits = load_splits(dataset, data_dir, config.validation, reading=config.reading)
                        sizes[dataset, config.validation] = len(splits.train)
                    found += _fits(method, config, sizes[dataset, config.validation], study)
    return found


def _fits(method: Method, config: FitConfig, examples: int, study: Study) -> list[Planned]:
    other = study.out_of_domain.get(config.data, "")
    choices = [dict(zip(method.choose, values, strict=True)) for values in itertools.product(*method.choose.values())]
    targets = [(0.0, method.sparsities)]
    if config.pruning != "none":
        targets = [(sparsity, (sparsity,)) for sparsity in method.sparsities if sparsity]
    candidates = [
        (tuple(resolve(replace(config, prune_to=to, **c), examples) for c in choices), at) for to, at in targets
    ]
    for tried in (each for configs, _ in candidates for each in configs if method.criterion):
        refuse_criterion(method.criterion, tried)
    return [Planned(method, configs, at, other, study.choose_by) for configs, at in candidates]
