"""A study of settings: a TOML file, read and checked.

Its keys are those of `SearchConfig` and four tables: `[fit]` and `[compress]` hold options that all trials share,
`[space.fit]` and `[space.compress]` what varies; `[[reference]]`s with name, bytes and error are points of the picture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pyro_compress.data.splits import load_splits
from pyro_compress.foreign import file_name, read_toml, typed
from pyro_compress.runs.config import refuse_criterion, resolve
from pyro_compress.runs.identity import config_hash, digest, fingerprint
from pyro_compress.settings import CompressConfig, FitConfig
from pyro_compress.settings.declared import declared, flat, having, options_in
from pyro_compress.settings.studies import SearchConfig
from pyro_compress.tuning.published import Reference
from pyro_compress.tuning.space import (
    FINETUNED,
    KEPT,
    ROUNDED,
    Parameter,
    compression_space,
    fit_space,
    layer_sizes,
    read_compression_space,
    read_fit_space,
)
from pyro_compress.types import Splits

TABLES: dict[str, Any] = {
    "fit": dict[str, Any], "compress": dict[str, Any], "space": dict[str, dict[str, Any]],
    "reference": list[dict[str, Any]],
}  # fmt: skip
"""Table of a study -> its type."""


@dataclass(frozen=True)
class Plan(SearchConfig):
    """What a study file says.

    Attributes:
        fit: options that all fits share; its epochs are the last fidelity's.
        compress: options that all compressions share.
        before: parameters of the fit.
        after: parameters of the compression.
        references: points of the picture beside the published ones.
        recipe: `fit` with everything filled in that a study leaves open: another default makes another study.
    """

    fit: FitConfig = field(kw_only=True)
    compress: dict[str, Any] = field(kw_only=True)
    before: tuple[Parameter, ...] = field(kw_only=True)
    after: tuple[Parameter, ...] = field(kw_only=True)
    references: tuple[Reference, ...] = ()
    recipe: FitConfig | None = None

    @property
    def space(self) -> tuple[Parameter, ...]:
        """All parameters."""
        return self.before + self.after

    @property
    def digest(self) -> str:
        """Names what a trial's values depend on; budget, sampler and seed may change while a study goes on."""
        parts = [
            fingerprint(self.recipe or self.fit),
            self.compress,
            [asdict(p) for p in self.space],
            self.objective,
            self.bound,
        ]
        return digest([*parts, self.fidelities])

    @property
    def in_earlier_words(self) -> Plan:
        """The same with the names that settings of `compress` had before."""
        former = {name: row.setting.former or name for name, row in declared(CompressConfig).items()}
        after = tuple(replace(one, name=f"compress.{former.get(one.option, one.option)}") for one in self.after)
        return replace(self, compress={former[name]: value for name, value in self.compress.items()}, after=after)


@dataclass(frozen=True)
class Point:
    """One configuration of the whole compression.

    Attributes:
        config: the fit, resolved.
        settings: options of `compress`.
    """

    config: FitConfig
    settings: dict[str, Any]

    @property
    def fit_hash(self) -> str:
        """Name of the run folder."""
        return config_hash(self.config)

    @property
    def hash(self) -> str:
        """Name of the file."""
        return digest([fingerprint(self.config), self.settings])


def point_of(plan: Plan, params: dict[str, Any], epochs: int, examples: int) -> Point:
    """The configuration that a trial's parameters stand for.

    Args:
        plan: the study.
        params: parameter name -> value.
        epochs: the fidelity.
        examples: size of the training split.

    Raises:
        ValueError: the fit's configuration is refused, or a criterion that does not go with its prior.
    """
    options, extra = dict[str, Any](), dict(plan.fit.prior_options)
    settings, kept = dict(plan.compress), dict[str, float]()
    for parameter in plan.space:
        value, option = params[parameter.name], parameter.option
        if parameter.name.startswith("fit."):
            target, name = (
                (extra, option.partition(".")[2]) if option.startswith("prior_options.") else (options, option)
            )
            target[name] = value
        elif option == KEPT or option.startswith(f"{KEPT}."):
            kept[option.partition(".")[2]] = value
        else:
            settings[option] = value
    if kept:
        shares = {name: 1 - value for name, value in kept.items()}
        settings["sparsity"] = shares[""] if "" in shares else shares
    config = resolve(replace(plan.fit, **options, prior_options=extra, epochs=epochs), examples)
    if "criterion" in settings:
        refuse_criterion(settings["criterion"], config)
    return Point(config, settings)


def read_plan(path: Path, data_dir: str = "", device: str = "auto", threads: int = 0) -> tuple[Plan, Splits]:
    """Read and check a study file, with the data it is about.

    Raises:
        ValueError: no TOML, a key that is unknown, a value out of range, options that do not go together.
        OSError: the file cannot be read.
    """
    document = options_in(read_toml(path), SearchConfig, str(path), beside=TABLES)
    shared = options_in(document.get("fit", {}), FitConfig, f"{path}: fit", having(FitConfig, identity=True))
    fit = FitConfig(**shared, data_dir=data_dir, device=device, threads=threads)
    splits = load_splits(fit.data, data_dir, fit.validation, reading=fit.reading)
    search = _search(document, path)
    fidelities = search.fidelities or (resolve(fit, len(splits.train)).epochs or 1,)
    fit = replace(fit, epochs=fidelities[-1])
    recipe = resolve(fit, len(splits.train))
    space, compress = (
        document.get("space", {}),
        _compress(document.get("compress", {}), document.get("space", {}), path),
    )
    finetuned = "finetune" in compress or "finetune" in space.get("compress", {})
    before = read_fit_space(space["fit"]) if "fit" in space else fit_space(fit.prior, fit.optimizer)
    layers = layer_sizes(fit, splits) if search.layer_wise or "compress" not in space else {}
    after = (
        read_compression_space(space["compress"], layers, finetuned, search.layer_wise)
        if "compress" in space
        else compression_space(layers, finetuned, search.layer_wise)
    )
    if not before + after:
        raise ValueError(f"{path}: the space is empty; leave [space.compress] out for the built-in one")
    if not any(p.option.partition(".")[0] == KEPT for p in after) and "sparsity" not in compress:
        raise ValueError(f"{path}: how much is pruned stands nowhere; give space.compress.kept, or compress.sparsity")
    references = tuple(_reference(one, path) for one in document.get("reference", []))
    own = flat(search) | {"fidelities": fidelities, "references": references, "recipe": recipe}
    return Plan(fit=fit, compress=compress, before=before, after=after, **own), splits


def _search(document: dict[str, Any], path: Path) -> SearchConfig:
    own = {name: value for name, value in document.items() if name not in TABLES}
    own["name"] = file_name(own.get("name", path.stem), f"{path}: name")
    own["bound"] = float(own.get("bound", 0.0))  # as a study's digest has it
    if own.get("minutes"):
        own.setdefault("trials", 0)
    try:
        return SearchConfig(**own)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _reference(given: dict[str, Any], path: Path) -> Reference:
    if set(given) != {"name", "error", "bytes"}:
        raise ValueError(f"{path}: reference: give name, error and bytes, got {', '.join(given) or 'nothing'}")
    typed(given, Reference, f"{path}: reference")
    return Reference(given["name"], float(given["error"]), given["bytes"])


def _compress(table: dict[str, Any], space: dict[str, Any], path: Path) -> dict[str, Any]:
    options = options_in(table, CompressConfig, f"{path}: compress")
    finetuned = "finetune" in options or "finetune" in space.get("compress", {})
    allowed = {"sparsity", *(FINETUNED if finetuned else ROUNDED)} - {KEPT}
    if unknown := sorted(set(options) - allowed):
        raise ValueError(
            f"{path}: compress: {', '.join(unknown)} does not go with this study; allowed "
            f"{'with' if finetuned else 'without'} finetune: {', '.join(sorted(allowed))}"
        )
    return options
