"""What is searched: parameters of the fit (a new fit each) and of its compression (one fit serves many).

A parameter of the fit is an option of `fit`, or `prior-options.NAME`. Of the compression:

    kept            share of the weights that stay (`sparsity` = 1 - kept); layer-wise one per layer
    relative-step   step size of the weights, without fine-tuning
    finetune-lambda, step, noise, sam-rho, finetune-lr, finetune-batch-size, finetune-svi, finetune-augment,
    masked-epochs, finetune: of the fine-tuning
    criterion       pruning score

Where a study names no space, `FIT_SPACES` has one for its prior and `compression_space` one for its network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from pyro_compress.foreign import fits, of_type, unknown
from pyro_compress.graph.capture import capture
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import CompressConfig, FitConfig
from pyro_compress.settings.compress import FINE_TUNING
from pyro_compress.settings.declared import Config, current, declared, having
from pyro_compress.types import Splits

KEPT = "kept"
_COMPRESSION = {row.name: row for row in declared(CompressConfig).values() if row.setting.searched}
ROUNDED = (KEPT, *(name for name, row in _COMPRESSION.items() if row.group != FINE_TUNING))
"""Parameters of a compression without fine-tuning; the names of the options of `compress`."""
FINETUNED = (KEPT, "criterion", *(name for name, row in _COMPRESSION.items() if row.group == FINE_TUNING))
"""And with it."""

ROWS = {f"fit.{name}": row for name, row in declared(FitConfig).items()}
ROWS |= {f"compress.{name}": row for name, row in declared(CompressConfig).items()}
"""Parameter -> its setting; those that are missing are real numbers."""


@dataclass(frozen=True)
class Parameter:
    """One dimension: a range, or choices.

    Attributes:
        name: `fit.OPTION` or `compress.OPTION`, as the trials store it.
        low: smallest value.
        high: largest value.
        log: whether the range is even on a log scale.
        integer: whether only integers are allowed.
        choices: values to choose from; empty for a range.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def option(self) -> str:
        """Name of the option, without its part of the space."""
        return self.name.partition(".")[2]


def _log(name: str, low: float, high: float) -> Parameter:
    return Parameter(f"fit.{name}", low, high, log=True)


_RATES = (_log("kl_weight", 0.3, 3.0), _log("lr", 1e-3, 1e-2), _log("lr_scale", 1e-3, 1e-2))
FIT_SPACES: dict[str, tuple[Parameter, ...]] = {
    "none": (_log("lr", 3e-4, 3e-3), Parameter("fit.dropout", 0.0, 0.6)),
    "gaussian": (*_RATES, _log("prior_options.scale", 0.03, 1.0)),
    "spike-and-slab": (*_RATES, Parameter("fit.prior_options.pi", 0.1, 0.9), _log("prior_options.sigma2", 3e-4, 0.03)),
    "spike-and-slab-bound": (
        *_RATES, Parameter("fit.prior_options.pi", 0.1, 0.9), _log("prior_options.sigma2", 3e-4, 0.03),
    ),
    "log-uniform": (*_RATES, _log("init_scale", 2e-3, 2e-2)),
    "normal-jeffreys": (*_RATES, _log("lr_group", 1e-3, 1e-2)),
    "horseshoe": (*_RATES, _log("lr_group", 1e-2, 1e-1), _log("prior_options.tau0", 1e-7, 1e-3)),
}  # fmt: skip
"""Prior -> what its fit is searched over: around its own recipe, a factor of about three to either side. One that has
no row here is searched over its rates alone (`fit_space`)."""


def fit_space(prior: str, optimizer: str = "adam") -> tuple[Parameter, ...]:
    """The space of a prior's fit: its row, or around the rates of its own recipe where it has none.

    With natural gradients the rate of the means stands for those of Adam.
    """
    if optimizer == "natural":
        adams = ("lr", "lr_scale")
        return (*(one for one in fit_space(prior) if one.option not in adams), _log("natural_lr", 3e-4, 3e-2))
    if prior in FIT_SPACES:
        return FIT_SPACES[prior]
    from pyro_compress.bayes.assignment import assignment_of

    priors = assignment_of(prior)
    recipe, names = priors.first, ["lr", "lr_scale", *(["lr_group"] if priors.more_sites else [])]
    return (_log("kl_weight", 0.3, 3.0), *(_log(n, getattr(recipe, n) / 3, getattr(recipe, n) * 3) for n in names))


def compression_space(layers: dict[str, int], finetuned: bool, layer_wise: bool) -> tuple[Parameter, ...]:
    """The space of a network: kept shares from 1/sqrt(weights) to a half, global or per layer, and the precision.

    Args:
        layers: weight tensor name -> number of weights.
        finetuned: whether the weights that are left are trained on.
        layer_wise: one kept share per layer (Ma et al. 2019).
    """
    sizes = layers if layer_wise else {"": sum(layers.values())}
    kept = [
        Parameter(f"compress.{KEPT}.{name}".removesuffix("."), min(size**-0.5, 0.25), 1.0 if layer_wise else 0.5, True)
        for name, size in sizes.items()
    ]
    if not finetuned:
        return (*kept, Parameter("compress.relative_step", 1 / 16, math.sqrt(2), True))
    return (
        *kept,
        Parameter("compress.finetune_lambda", 0.25, 16.0, True),
        Parameter("compress.step", 0.35, 1.4, True),
        Parameter("compress.noise", 0.0, 0.6),
        Parameter("compress.finetune_lr", 5e-4, 5e-3, True),
    )


def layer_sizes(config: FitConfig, splits: Splits) -> dict[str, int]:
    """Weights of every layer that is pruned, by the name of its tensor.

    Raises:
        ValueError: the network is not supported.
    """
    net = initial_net(config, splits)
    names = [
        n.parameters["weight"]
        for n in capture(net, splits.input_shape, trained=False, kind=splits.kind).nodes
        if is_weighted(n.op)
    ]
    state = net.state_dict()
    kept = [name for name in names if not any(fnmatch(name.rpartition(".")[0], p) for p in config.keep)]
    return {name: state[name].numel() for name in kept}


def read_fit_space(table: dict[str, Any]) -> tuple[Parameter, ...]:
    """The `[space.fit]` table.

    Raises:
        ValueError: an option that is unknown or cannot be searched, a bad range.
    """
    allowed = [name for name in having(FitConfig, searched=True) if name != "prior_options"]
    found = []
    for key, value in _current(_flat(table, "prior-options"), FitConfig, "space.fit").items():
        if key not in allowed and not key.startswith("prior_options."):
            raise ValueError(f"space.fit: {unknown('option to search', key, allowed, 'prior-options.*')}")
        found.append(_parameter(f"fit.{key}", value))
    return tuple(found)


def read_compression_space(
    table: dict[str, Any], layers: dict[str, int], finetuned: bool, layer_wise: bool
) -> tuple[Parameter, ...]:
    """The `[space.compress]` table; `kept` becomes one parameter per layer where the study is layer-wise.

    Raises:
        ValueError: an option that is unknown or does not go with the study, a bad range.
    """
    allowed = FINETUNED if finetuned else ROUNDED
    found = []
    for key, value in _current(_flat(table, KEPT), CompressConfig, "space.compress").items():
        name, _, layer = key.partition(".")
        if name not in allowed or (layer and not layer_wise) or (layer and layer not in layers):
            with_layers = f"; kept.LAYER for {', '.join(layers)}" if layer_wise else ""
            raise ValueError(
                f"space.compress: {key} does not go with this study; allowed {'with' if finetuned else 'without'} "
                f"finetune: {', '.join(allowed)}{with_layers}"
            )
        names = [f"{KEPT}.{one}" for one in layers] if name == KEPT and layer_wise and not layer else [key]
        found += [_parameter(f"compress.{one}", value) for one in names]
    return tuple(found)


def _current(table: dict[str, Any], of: type[Config], where: str) -> dict[str, Any]:
    """With the names that settings have now."""
    try:
        return current(table, of)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _flat(table: dict[str, Any], nested: str) -> dict[str, Any]:
    """Option names with underscores; the table called `nested` is spelled out with dots unless it is a range."""
    found = dict[str, Any]()
    for key, value in table.items():
        name = key.replace("-", "_")
        if key.replace("_", "-") == nested and isinstance(value, dict) and "low" not in value:
            found |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            found[name] = value
    return found


def _parameter(name: str, value: Any) -> Parameter:
    shown, row = name.replace("_", "-"), ROWS.get(name)
    hint = row.whole if row else float
    if isinstance(value, list) and value:
        for one in value:
            of_type(one, hint, f"space {shown}:")
        if any(isinstance(one, dict | list) for one in value):
            raise ValueError(f"space {shown}: give a list of numbers or names to choose from")
        return Parameter(name, choices=tuple(value))
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise ValueError(
            f"space {shown}: {value!r}: give {{low = 0.1, high = 1.0, log = true}} or a list of values to choose from"
        )
    low, high, log = value["low"], value["high"], of_type(value.get("log", False), bool, f"space {shown}: log")
    kind = next((one for one in (int, float) if hint in (one, one | None)), None)
    if kind is None:
        raise ValueError(f"space {shown}: is no number; give a list of values to choose from")
    if not all(fits(bound, kind) and math.isfinite(bound) for bound in (low, high)):
        allowed = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"space {shown}: from {low!r} to {high!r}: give {allowed}")
    if not low <= high or (log and low <= 0):
        raise ValueError(f"space {shown}: from {low} to {high}{' on a log scale' if log else ''} is no range")
    if name.startswith(f"compress.{KEPT}") and not 0 < low <= high <= 1:
        raise ValueError(f"space {shown}: from {low} to {high}: shares lie above 0 and up to 1")
    return Parameter(name, low, high, log, kind is int)
