"""Configurations: a TOML file, what the user left open, what a run records."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pyro_compress.compression.prune import refuse_unfit
from pyro_compress.data.datasets import DATASETS
from pyro_compress.data.preprocessing import preprocessing, preprocessing_of
from pyro_compress.foreign import MAX_TOML, read_toml, table
from pyro_compress.machine import prepare
from pyro_compress.networks.decoded import SUFFIX
from pyro_compress.networks.normalized import INPUTS
from pyro_compress.networks.weights import torchvision_inputs
from pyro_compress.pcn.meta import ENTRIES
from pyro_compress.settings import FitConfig
from pyro_compress.settings.declared import having, options_in
from pyro_compress.training.sparse import PRUNING
from pyro_compress.types import Preprocessing, Splits

PREPROCESSED = "preprocessing"
"""Table of a run's config.toml that says how its data became inputs and outputs."""
DEFAULT_STEPS = 2000
"""Optimiser steps that the default number of epochs aims at, within `DEFAULT_EPOCHS`."""
DEFAULT_EPOCHS = (30, 100)
NATURAL_REACH, MOST_NATURAL_RATE = (10.0, 25.0), 0.1
"""Default rates of natural gradients, of means and of precisions, times the steps of a fit; and how high they are at
most. A posterior comes as far as rate × steps, and minibatches leave noise of rate × their number per epoch, so that
what is right for one set of data is for another."""
BASELINE_LR = {"adam": 1e-3, "sgd": 0.1}
"""Default learning rate without a prior, by optimizer."""


def refuse_criterion(criterion: str, config: FitConfig) -> None:
    """Refuse, before the fit, a pruning criterion that says nothing about what the fit will leave.

    Raises:
        ValueError: as `pyro_compress.compression.prune.refuse_unfit`.
    """
    from pyro_compress.bayes.assignment import assigned

    priors = None if config.prior == "none" else assigned(config)
    refuse_unfit(criterion, priors.criterion if priors else "magnitude", priors is not None and priors.scaled)


def resolve(config: FitConfig, examples: int) -> FitConfig:
    """Fill in what a configuration leaves to the prior's recipe, and check the rest.

    Args:
        config: may hold None and `auto`.
        examples: size of the training split.

    Raises:
        ValueError: a value that is out of range or does not go with the prior, CUDA asked for and absent.
    """
    device = prepare(config.device, config.threads, config.deterministic)
    batch_size = config.batch_size or (64 if examples < 10_000 else 128)
    epochs = config.epochs or min(max(DEFAULT_STEPS * batch_size // examples, DEFAULT_EPOCHS[0]), DEFAULT_EPOCHS[1])
    common = replace(config, device=device, batch_size=batch_size, epochs=epochs, **_inputs_of_start(config))
    return _resolve_baseline(common) if config.prior == "none" else _resolve_prior(common, epochs, examples)


def _inputs_of_start(config: FitConfig) -> dict[str, Any]:
    """How the weights that a fit starts from want their inputs, where nobody says how."""
    if config.input_mean or config.input_std or not config.init or config.net.endswith(SUFFIX):
        return {}
    if config.init.startswith("torchvision:"):
        return torchvision_inputs(config.init)
    path = Path(config.init) / "config.toml"
    start = read_config(path) if path.is_file() else {}
    return {name: tuple(start[name]) for name in INPUTS if name in start}


def _resolve_baseline(config: FitConfig) -> FitConfig:
    if (config.pruning == "none") != (config.prune_to == 0):
        raise ValueError(
            f"pruning {config.pruning!r} with prune_to {config.prune_to}: pruning while training needs both a rule "
            f"({', '.join(PRUNING)}) and a sparsity above 0"
        )
    if config.shrink_every:
        raise ValueError(f"shrink_every {config.shrink_every} goes with a prior, whose posterior says which units go")
    if config.pruning != "none" and config.patience:
        raise ValueError(f"patience {config.patience} could end pruning {config.pruning!r} early; leave it out")
    if config.pruning == "rewind" and config.lr_schedule != "constant":
        raise ValueError("pruning 'rewind' trains every round alike; use lr_schedule 'constant'")
    for name in ("grouping", "estimator", "keep", "batch_norm", "precision"):
        if (value := getattr(config, name)) not in (None, "weight", (), "update", "float32", "bfloat16"):
            raise ValueError(f"{name} {value!r} goes with a prior only; with prior 'none' leave it out")
    if config.optimizer not in BASELINE_LR:
        raise ValueError(
            f"optimizer {config.optimizer!r} goes with a prior, whose posterior it moves; without one take "
            f"{' or '.join(BASELINE_LR)}"
        )
    lr = config.lr or BASELINE_LR[config.optimizer]
    return replace(
        config, lr=lr, grouping="weight", estimator="weight", pretrain_epochs=0, kl_warmup=0.0,
        lr_scale=lr, lr_group=lr, init_scale=None, max_scale=0.0,
    )  # fmt: skip


def _resolve_prior(config: FitConfig, epochs: int, examples: int) -> FitConfig:
    from pyro_compress.bayes.assignment import assigned
    from pyro_compress.bayes.estimators import COARSE
    from pyro_compress.bayes.guides import GUIDES
    from pyro_compress.bayes.own_guides import own_guide

    priors = assigned(config)
    prior, grouping = priors.first, config.grouping or priors.groupings[0]
    if grouping not in priors.groupings:
        raise ValueError(
            f"grouping {grouping!r} is not defined for prior {config.prior!r}; allowed: {', '.join(priors.groupings)}"
        )
    if config.dropout or config.dropout_input:
        rate = config.dropout or config.dropout_input
        raise ValueError(f"dropout {rate} goes with --prior none; a prior brings its own noise")
    if config.optimizer == "sgd":
        raise ValueError("optimizer 'sgd' goes with --prior none; posteriors are fitted by adam or natural")
    if config.pruning != "none" or config.prune_to or config.weight_decay:
        raise ValueError(
            "weight_decay, pruning and prune_to go with --prior none; the prior takes the place of weight decay"
        )
    if config.guide not in GUIDES:
        own_guide(config.guide, GUIDES)
    auto = config.guide != "mean-field"
    natural = config.optimizer == "natural"
    if auto and natural:
        raise ValueError(
            f"optimizer 'natural' moves means and spreads of --guide mean-field; guide {config.guide!r} has others: "
            "use --optimizer adam, or --guide mean-field"
        )
    estimator = config.estimator or ("weight" if auto or natural else priors.estimator)
    if auto and estimator != "weight":
        raise ValueError(
            f"estimator {estimator!r} needs the marginal of every weight, which guide {config.guide!r} draws through "
            "an auxiliary site; use --estimator weight, or --guide mean-field"
        )
    if config.precision == COARSE and estimator != "local":
        raise ValueError(
            f"precision {COARSE!r} is of the products of variances, and estimator {estimator!r} has none: use "
            "--estimator local, or --precision bfloat16"
        )
    if config.shrink_every and (auto or config.bias_prior != "none"):
        raise ValueError(
            f"shrink_every {config.shrink_every} needs --guide mean-field and --bias-prior none: it cuts the posterior "
            "weight by weight, and folds what dead units emit into the biases"
        )
    pretrain = config.pretrain_epochs
    if pretrain is None:
        pretrain = round(max(one.pretrain for one in priors.priors) * epochs)
    if pretrain >= epochs:
        raise ValueError(
            f"pretrain_epochs {pretrain} of {epochs} epochs: at least one epoch must be left for the posterior"
        )
    warmup = max(one.warmup for one in priors.priors) * (epochs - pretrain)
    warmup = warmup if config.kl_warmup is None else config.kl_warmup
    config = _with_natural_rates(config, (epochs - pretrain) * math.ceil(examples / (config.batch_size or 1)))
    return replace(
        config, grouping=grouping, estimator=estimator, pretrain_epochs=pretrain, kl_warmup=float(warmup),
        lr=config.lr or prior.lr,
        lr_scale=config.lr_scale or prior.lr_scale, lr_group=config.lr_group or prior.lr_group,
        init_scale=config.init_scale or prior.init_scale,
        max_scale=priors.max_scale if config.max_scale is None else config.max_scale,
    )  # fmt: skip


def _with_natural_rates(config: FitConfig, steps: int) -> FitConfig:
    """Fill in rates of natural gradients for a fit of so many steps."""
    if config.optimizer != "natural":
        return config
    lr, precision = (min(reach / steps, MOST_NATURAL_RATE) for reach in NATURAL_REACH)
    beta2 = 1 - precision if config.natural_beta2 is None else config.natural_beta2
    return replace(config, natural_lr=config.natural_lr or lr, natural_beta2=beta2)


def never_shrinks(config: FitConfig) -> str:
    """That a fit is too short for its `shrink_every` to come, in words; empty if it is not, or has none.

    Args:
        config: resolved.
    """
    epochs = (config.epochs or 0) - (config.pretrain_epochs or 0)
    if not config.shrink_every or config.shrink_every < epochs:
        return ""
    return (
        f"--shrink-every {config.shrink_every} removed nothing: the posterior has {epochs} of {config.epochs} epochs, "
        "and none is removed after the last; take a smaller number, or more --epochs"
    )


def absolute(config: FitConfig) -> dict[str, str]:
    """Those options that name a file or folder, as they are found from every working directory."""
    paths = {name: str(getattr(config, name)) for name in having(FitConfig, path=True)}
    if config.data in DATASETS:
        del paths["data"]
    if not config.net.endswith(SUFFIX):
        del paths["net"]
    return {name: str(Path(path).absolute()) for name, path in paths.items() if path and Path(path).exists()}


def table_of(config: FitConfig) -> dict[str, Any]:
    """A configuration as a TOML file's `[fit]` table."""
    return {key: value for key, value in asdict(config).items() if value is not None}


def config_toml(config: FitConfig, splits: Splits, rewinds: Sequence[dict[str, Any]] = (), processes: int = 1) -> str:
    """The resolved configuration with what else is needed to repeat the run.

    Args:
        config: resolved, its paths absolute; after a rewind, with the rates that count from then on.
        splits: the data.
        rewinds: when and why the fit was put back, and the rates that it had had.
        processes: how many fit together.
    """
    import tomli_w

    packages = ("pyro-compress", "torch", "pyro-ppl", "numpy", "constriction")
    document = {
        "fit": table_of(config),
        "splits": splits.sizes,
        **_preprocessed(splits),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads(), "processes": processes},
    }
    return tomli_w.dumps(document | ({"rewinds": list(rewinds)} if rewinds else {}))


def preprocessing_in(document: dict[str, Any], path: str) -> Preprocessing | None:
    """What a run's config.toml says of its inputs and outputs; None in those of earlier versions.

    Raises:
        ValueError: something else.
    """
    if PREPROCESSED not in document:
        return None
    stored = table(document[PREPROCESSED], f"{path}: {PREPROCESSED}")
    for name in (one.name for one in fields(Preprocessing)):
        if name in stored and not ENTRIES[name].allows(stored[name]):
            raise ValueError(f"{path}: {PREPROCESSED}: {name}: give {ENTRIES[name].name}")
    return preprocessing_of({name: value for name, value in stored.items() if name != "data"})


def _preprocessed(splits: Splits) -> dict[str, Any]:
    """What the run needs to read its data again, unless it would be most of the file: then the data say it again."""
    import tomli_w

    entry = {PREPROCESSED: asdict(preprocessing(splits))}
    return entry if len(tomli_w.dumps(entry).encode()) < MAX_TOML // 2 else {}


def read_config(path: Path) -> dict[str, Any]:
    """Options of a TOML file: its `[fit]` table (as in a run's config.toml), or its top level.

    Raises:
        ValueError: no TOML, a key that is no option, a value of another type.
        OSError: the file cannot be read.
    """
    return options_of(read_toml(path), str(path))


def options_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    """Options that such a document holds, every one of the type that its field has.

    Raises:
        ValueError: as `read_config`.
    """
    return options_in(table(document.get("fit", document), f"{path}: fit"), FitConfig, path)
