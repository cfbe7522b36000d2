"""A study of settings: a TOML file, read and checked.

name = "mnist"
objective = "pareto"            # validation error and file bytes; or bytes-at-error, error-at-bytes
bound = 0.1                     # largest error of interest (pareto: optional), or the bytes of error-at-bytes
sampler = "gp"                  # or tpe, nsga2, random
trials = 60                     # at the last fidelity
minutes = 90                    # of computing, over all workers; both, or one of the two
fidelities = [8, 50]            # epochs of a fit, cheap ones first; only the last enter the front
cheap-trials = 20               # at each fidelity but the last
promote = 2                     # fits of a fidelity with which the next one starts
compressions-per-fit = 6        # trials that share a fit
layer-wise = false              # one kept share per layer
seed = 0

[fit]                           # options of `pyro-compress fit` that all trials share
data = "mnist"
[compress]                      # options of `pyro-compress compress` that all trials share
finetune = 3
[space.fit]                     # optional; empty: one fit serves all trials
kl-weight = {low = 0.3, high = 3.0, log = true}
[space.compress]                # optional
rate = {low = 0.5, high = 8.0, log = true}
[[reference]]                   # optional: points of the picture
name = "by hand"
bytes = 2380
error = 0.0204
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pyro_compress.data.splits import load_splits
from pyro_compress.foreign import MAX_WHOLE, file_name, of_type, read_toml, shown, typed, unknown
from pyro_compress.runs.config import refuse_criterion, resolve
from pyro_compress.settings import CompressConfig, FitConfig
from pyro_compress.settings.data import MOST
from pyro_compress.settings.declared import having, options_in
from pyro_compress.studies.identity import config_hash, digest, fingerprint
from pyro_compress.tuning.published import Reference
from pyro_compress.tuning.space import (
    FINETUNED,
    KEPT,
    ROUNDED,
    Parameter,
    after_the_waist,
    before_the_waist,
    layer_sizes,
    read_after,
    read_before,
)
from pyro_compress.types import Splits

OBJECTIVES = ("pareto", "bytes-at-error", "error-at-bytes")
KEYS = ("name", "objective", "bound", "sampler", "trials", "minutes", "fidelities", "cheap_trials", "promote")
MORE = ("compressions_per_fit", "layer_wise", "seed", "fit", "compress", "space", "reference")
TYPES: dict[str, Any] = {
    "name": str, "objective": str, "bound": float, "sampler": str, "minutes": float, "fidelities": list[Any],
    "layer_wise": bool, "fit": dict[str, Any], "compress": dict[str, Any], "space": dict[str, dict[str, Any]],
    "reference": list[dict[str, Any]],
}  # fmt: skip
"""Key -> its type; `_numbers` looks at the counts."""


@dataclass(frozen=True)
class Plan:
    """What a study file says.

    Attributes:
        name: of the study.
        fit: options that all fits share; its epochs are the last fidelity's.
        compress: options that all compressions share.
        before: parameters of the fit.
        after: parameters of the compression.
        objective: name in `OBJECTIVES`.
        bound: largest validation error in [0, 1], or bytes with `error-at-bytes`; 0: none, with `pareto` only.
        sampler: name in `SAMPLERS`.
        trials: how many at the last fidelity; 0: no limit.
        minutes: of computing, over all workers; 0: no limit.
        fidelities: epochs of a fit, ascending.
        cheap_trials: how many at each fidelity but the last.
        promote: fits that go on to the next fidelity.
        per_fit: trials that share a fit.
        seed: of the sampler.
        references: points of the picture beside the published ones.
        recipe: `fit` with everything filled in that a study leaves open: another default makes another study.
    """

    name: str
    fit: FitConfig
    compress: dict[str, Any]
    before: tuple[Parameter, ...]
    after: tuple[Parameter, ...]
    objective: str = "pareto"
    bound: float = 0.0
    sampler: str = "gp"
    trials: int = 60
    minutes: float = 0.0
    fidelities: tuple[int, ...] = ()
    cheap_trials: int = 20
    promote: int = 2
    per_fit: int = 6
    seed: int = 0
    references: tuple[Reference, ...] = field(default=())
    recipe: FitConfig | None = None

    @property
    def space(self) -> tuple[Parameter, ...]:
        """All parameters."""
        return self.before + self.after

    @property
    def digest(self) -> str:
        """Names what a trial's values depend on; budget, sampler and seed may change while a study goes on."""
        told = [
            fingerprint(self.recipe or self.fit),
            self.compress,
            [asdict(p) for p in self.space],
            self.objective,
            self.bound,
        ]
        return digest([*told, self.fidelities])


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
    document = {key.replace("-", "_"): value for key, value in read_toml(path).items()}
    for key in sorted(set(document) - set(KEYS + MORE)):
        raise ValueError(f"{path}: {unknown('key', key, KEYS + MORE)}")
    for key, kind in TYPES.items():
        if key in document:
            of_type(document[key], kind, f"{path}: {key.replace('_', '-')}")
    fit = _fit(document.get("fit", {}), path)
    fit = replace(fit, data_dir=data_dir, device=device, threads=threads)
    splits = load_splits(fit.data, data_dir, fit.validation, reading=fit.reading)
    numbers = _numbers(document, path)
    fidelities = numbers.pop("fidelities") or (resolve(fit, len(splits.train)).epochs or 1,)
    fit = replace(fit, epochs=fidelities[-1])
    recipe = resolve(fit, len(splits.train))
    space, compress = (
        document.get("space", {}),
        _compress(document.get("compress", {}), document.get("space", {}), path),
    )
    layer_wise = document.get("layer_wise", False)
    finetuned = "finetune" in compress or "finetune" in space.get("compress", {})
    before = read_before(space["fit"]) if "fit" in space else before_the_waist(fit.prior)
    layers = layer_sizes(fit, splits) if layer_wise or "compress" not in space else {}
    after = (
        read_after(space["compress"], layers, finetuned, layer_wise)
        if "compress" in space
        else after_the_waist(layers, finetuned, layer_wise)
    )
    if not before + after:
        raise ValueError(f"{path}: the space is empty; leave [space.compress] out for the built-in one")
    if not any(p.option.partition(".")[0] == KEPT for p in after) and "sparsity" not in compress:
        raise ValueError(f"{path}: how much is pruned stands nowhere; give space.compress.kept, or compress.sparsity")
    references = tuple(_reference(one, path) for one in document.get("reference", []))
    name = file_name(document.get("name", path.stem), f"{path}: name")
    more: dict[str, Any] = {"fidelities": fidelities, "references": references, "recipe": recipe}
    return Plan(name, fit, compress, before, after, **more, **numbers), splits


def _reference(given: dict[str, Any], path: Path) -> Reference:
    if set(given) != {"name", "error", "bytes"}:
        raise ValueError(f"{path}: reference: give name, error and bytes, got {', '.join(given) or 'nothing'}")
    typed(given, Reference, f"{path}: reference")
    return Reference(given["name"], float(given["error"]), given["bytes"])


def _fit(table: dict[str, Any], path: Path) -> FitConfig:
    return FitConfig(**options_in(table, FitConfig, f"{path}: fit", having(FitConfig, identity=True)))


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


def _numbers(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """Objective and budget."""
    objective, bound = document.get("objective", "pareto"), float(document.get("bound", 0.0))
    if objective not in OBJECTIVES:
        raise ValueError(f"{path}: {unknown('objective', objective, OBJECTIVES)}")
    if bound < 0 or (objective != "pareto" and bound == 0) or (objective != "error-at-bytes" and bound >= 1):
        raise ValueError(
            f"{path}: objective {objective!r} with bound {bound:g}: pareto and bytes-at-error take an error below 1 "
            "(0.02 is two points; pareto may leave it out), error-at-bytes a number of bytes"
        )
    minutes = float(document.get("minutes", 0.0))
    trials = document.get("trials", 0 if minutes else Plan.trials)
    fidelities = tuple(document.get("fidelities", ()))
    if any(type(e) is not int or not 1 <= e <= MOST for e in fidelities) or list(fidelities) != sorted(set(fidelities)):
        raise ValueError(f"{path}: fidelities {list(fidelities)}: give epochs, fewest first, like [8, 50]")
    counts = {
        "trials": trials,
        "cheap_trials": document.get("cheap_trials", Plan.cheap_trials),
        "promote": document.get("promote", Plan.promote),
        "per_fit": document.get("compressions_per_fit", Plan.per_fit),
        "seed": document.get("seed", 0),
    }
    for name, value in counts.items():
        least = 0 if name in ("seed", "trials") else 1
        if type(value) is not int or not least <= value < MAX_WHOLE:
            raise ValueError(f"{path}: {name.replace('_', '-')} {shown(value)}: give a whole number from {least} on")
    if not (math.isfinite(minutes) and minutes >= 0 and (trials or minutes)):
        raise ValueError(f"{path}: trials {trials}, minutes {minutes:g}: give a budget, one of them above 0")
    sampler = str(document.get("sampler", Plan.sampler))
    return counts | {
        "objective": objective, "bound": bound, "minutes": minutes, "fidelities": fidelities, "sampler": sampler,
    }  # fmt: skip
