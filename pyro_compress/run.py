"""Run folders: what `fit` writes and every other command reads.

    config.toml             everything that determined the fit, resolved, with versions and split sizes
    history.jsonl           one line per epoch (`pyro_compress.training.Epoch`)
    posterior.safetensors   the waist: moments of every weight, and the graph of the network as metadata

A folder appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_compress.data import load_splits
from pyro_compress.machine import prepare
from pyro_compress.nets import build_net
from pyro_compress.training import Epoch, OnEpoch
from pyro_compress.types import FitConfig, Graph, LayerPosterior, Node, Posterior, Splits

DEFAULT_STEPS = 1500
"""Optimiser steps that the default number of epochs aims at, within `DEFAULT_EPOCHS`."""
DEFAULT_EPOCHS = (30, 100)
BASELINE_LR = 1e-3
"""Adam's default learning rate without a prior."""


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    config: FitConfig
    posterior: Posterior

    def splits(self, data_dir: str = "") -> Splits:
        """The data it was fitted on."""
        return load_splits(self.config.data, data_dir or self.config.data_dir, self.config.validation)


def resolve(config: FitConfig, examples: int) -> FitConfig:
    """Fill in what a configuration leaves to the prior's recipe, and check the rest.

    Args:
        config: may hold None and `auto`.
        examples: size of the training split.

    Raises:
        ValueError: a value that is out of range or does not go with the prior, CUDA asked for and absent.
    """
    _check_ranges(config)
    device = prepare(config.device, config.threads)
    batch_size = config.batch_size or (64 if examples < 10_000 else 128)
    epochs = config.epochs or min(max(DEFAULT_STEPS * batch_size // examples, DEFAULT_EPOCHS[0]), DEFAULT_EPOCHS[1])
    common = replace(config, device=device, batch_size=batch_size, epochs=epochs)
    return _resolve_baseline(common) if config.prior == "none" else _resolve_prior(common, epochs)


def _resolve_baseline(config: FitConfig) -> FitConfig:
    for name in ("grouping", "estimator", "keep"):
        if (value := getattr(config, name)) not in (None, "weight", ()):
            raise ValueError(f"{name} {value!r} goes with a prior only; with prior 'none' leave it out")
    lr = config.lr or BASELINE_LR
    return replace(
        config, lr=lr, grouping="weight", estimator="weight", pretrain_epochs=0, kl_warmup=0.0,
        lr_scale=lr, lr_group=lr, init_scale=None, max_scale=0.0,
    )  # fmt: skip


def _resolve_prior(config: FitConfig, epochs: int) -> FitConfig:
    from pyro_compress.bayes.estimators import ESTIMATORS
    from pyro_compress.bayes.guides import GUIDES
    from pyro_compress.bayes.priors import PRIORS

    _one_of("prior", config.prior, (*PRIORS, "none"))
    prior = PRIORS[config.prior].with_options(config.prior_options)
    grouping = config.grouping or prior.groupings[0]
    if grouping not in prior.groupings:
        raise ValueError(
            f"grouping {grouping!r} is not defined for prior {config.prior!r}; allowed: {', '.join(prior.groupings)}"
        )
    if config.dropout:
        raise ValueError(f"dropout {config.dropout} goes with --prior none; a prior brings its own noise")
    _one_of("guide", config.guide, GUIDES)
    auto = config.guide != "mean-field"
    estimator = config.estimator or ("weight" if auto else prior.estimator)
    _one_of("estimator", estimator, ESTIMATORS)
    if auto and estimator != "weight":
        raise ValueError(
            f"estimator {estimator!r} needs the marginal of every weight, which guide {config.guide!r} draws through "
            "an auxiliary site; use --estimator weight, or --guide mean-field"
        )
    pretrain = config.pretrain_epochs
    if pretrain is None:
        pretrain = round(prior.pretrain * epochs)
    if pretrain >= epochs:
        raise ValueError(
            f"pretrain_epochs {pretrain} of {epochs} epochs: at least one epoch must be left for the posterior"
        )
    warmup = prior.warmup * (epochs - pretrain) if config.kl_warmup is None else config.kl_warmup
    return replace(
        config, grouping=grouping, estimator=estimator, pretrain_epochs=pretrain, kl_warmup=float(warmup),
        lr=config.lr or prior.lr,
        lr_scale=config.lr_scale or prior.lr_scale, lr_group=config.lr_group or prior.lr_group,
        init_scale=config.init_scale or prior.init_scale,
        max_scale=prior.max_scale if config.max_scale is None else config.max_scale,
    )  # fmt: skip


def _check_ranges(config: FitConfig) -> None:
    positive = ("epochs", "batch_size", "lr", "lr_scale", "lr_group", "samples", "init_scale", "kl_weight")
    for name in positive:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} {value}: it must be positive")
    for name in ("pretrain_epochs", "kl_warmup", "patience", "threads", "max_scale"):
        if (value := getattr(config, name)) is not None and value < 0:
            raise ValueError(f"{name} {value}: it must not be negative")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout {config.dropout}: allowed are values from 0 up to, but not including, 1")
    if not config.hidden or min(config.hidden) < 1:
        raise ValueError(f"hidden {config.hidden}: widths must be positive")
    _one_of("bias_prior", config.bias_prior, ("none", "same"))
    _one_of("kl_schedule", config.kl_schedule, ("uniform", "blundell"))


def _one_of(what: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")


def fit_run(
    config: FitConfig,
    out: Path,
    force: bool = False,
    download: bool = False,
    on_epoch: OnEpoch = lambda epoch: None,
) -> Run:
    """Load data, build the network, fit it, write the run folder.

    Args:
        config: what the user asked for; None and `auto` are resolved.
        out: folder to make; refused if it exists and is not empty, unless `force`.
        force: replace an existing folder, once the new one is complete.
        download: fetch a missing torchvision data set.
        on_epoch: called after every epoch.

    Raises:
        ValueError: bad configuration, data or network.
        OSError: the folder cannot be written.
    """
    with new_folder(out, force) as folder:
        splits = load_splits(config.data, config.data_dir, config.validation, download)
        config = resolve(config, len(splits.train))
        net = initial_net(config, splits)
        history = (folder / "history.jsonl").open("w")
        with history:

            def note(epoch: Epoch) -> None:
                history.write(json.dumps(epoch.as_dict()) + "\n")
                history.flush()
                on_epoch(epoch)

            posterior = _fit(net, splits, config, note)
        (folder / "config.toml").write_text(config_toml(config, splits))
        (folder / "posterior.safetensors").write_bytes(posterior_bytes(posterior))
    return Run(out, config, posterior)


def _fit(net: nn.Module, splits: Splits, config: FitConfig, note: OnEpoch) -> Posterior:
    if config.prior == "none":
        from pyro_compress.baselines import fit_baseline

        return fit_baseline(net, splits, config, note)[0]
    from pyro_compress.bayes.extract import extract
    from pyro_compress.bayes.fit import fit_posterior

    return extract(fit_posterior(net, splits, config, note))


def initial_net(config: FitConfig, splits: Splits) -> nn.Module:
    """The plain network that a configuration names, seeded or carrying given weights."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = build_net(config.net, splits.input_shape, len(splits.classes), config.hidden)
    if config.init:
        given = initial_weights(Path(config.init))
        try:
            net.load_state_dict(given, strict=True)
        except RuntimeError as error:
            reason = "; ".join(line.strip() for line in str(error).split("\n")[1:])
            raise ValueError(f"{config.init} does not fit network {config.net}: {reason}") from error
    return net


def initial_weights(path: Path) -> dict[str, Tensor]:
    """Weights from a safetensors file, or the posterior mean of a run folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir():
        return load_run(path).posterior.tensors
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} is neither a run folder nor a safetensors file: {error}") from error


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name on success and vanishes on failure."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} exists and is not a folder")
    if out.exists() and any(out.iterdir()) and not force:
        raise ValueError(f"{out} exists and is not empty; choose another --out, or replace it with --force")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield folder
        folder.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-old-"))
            os.replace(out, old)
            os.replace(folder, out)
            shutil.rmtree(old)
        else:
            os.replace(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def config_toml(config: FitConfig, splits: Splits) -> str:
    """The resolved configuration with what else is needed to repeat the run."""
    import tomli_w

    packages = ("pyro-compress", "torch", "pyro-ppl", "numpy", "constriction")
    document = {
        "fit": {key: value for key, value in asdict(config).items() if value is not None},
        "splits": splits.sizes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
    }
    return tomli_w.dumps(document)


def read_config(path: Path) -> dict[str, Any]:
    """Options of a TOML file: its `[fit]` table (as in a run's config.toml), or its top level.

    Raises:
        ValueError: no TOML, or a key that is no option.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid TOML: {error}") from error
    table = document.get("fit", document)
    options = {str(key).replace("-", "_"): value for key, value in table.items()}
    allowed = [field.name for field in fields(FitConfig)]
    if unknown := sorted(set(options) - set(allowed)):
        raise ValueError(f"{path}: unknown option {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return options


def load_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: not a run folder, or a damaged one.
    """
    if not (path / "config.toml").is_file() or not (path / "posterior.safetensors").is_file():
        raise ValueError(
            f"{path} is no run folder (it needs config.toml and posterior.safetensors, as fit writes them)"
        )
    options = read_config(path / "config.toml")
    for name in ("hidden", "keep"):
        options[name] = tuple(options.get(name, ()))
    return Run(path, FitConfig(**options), read_posterior(path / "posterior.safetensors"))


def posterior_bytes(posterior: Posterior) -> bytes:
    """A posterior as safetensors: `mean/NAME`, `std/NAME`, `unit_mean/NAME`, `unit_std/NAME`, `dense/NAME`."""
    from safetensors.torch import save

    tensors = {f"dense/{name}": tensor for name, tensor in posterior.dense.items()}
    for name, layer in posterior.layers.items():
        moments = {
            "mean": layer.mean,
            "std": layer.std,
            "unit_mean": layer.unit_mean,
            "unit_std": layer.unit_std,
        }
        tensors |= {f"{key}/{name}": tensor for key, tensor in moments.items() if tensor is not None}
    metadata = {
        "graph": asdict(posterior.graph),
        "layers": {name: layer.grouping for name, layer in posterior.layers.items()},
        "criterion": posterior.criterion,
        "provenance": posterior.provenance,
    }
    data: bytes = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        {"pyro_compress": json.dumps(metadata)},  # one key: safetensors writes several in random order
    )
    return data


def read_posterior(path: Path) -> Posterior:
    """Read what `posterior_bytes` wrote.

    Raises:
        ValueError: a damaged or foreign file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["pyro_compress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        nodes = tuple(Node(**(node | {"inputs": tuple(node["inputs"])})) for node in metadata["graph"]["nodes"])
        layers = {
            name: LayerPosterior(
                tensors[f"mean/{name}"], tensors[f"std/{name}"],
                tensors.get(f"unit_mean/{name}"), tensors.get(f"unit_std/{name}"), grouping,
            )
            for name, grouping in metadata["layers"].items()
        }  # fmt: skip
        return Posterior(
            graph=Graph(nodes, tuple(metadata["graph"]["input_shape"])),
            layers=layers,
            dense={name.removeprefix("dense/"): t for name, t in tensors.items() if name.startswith("dense/")},
            criterion=metadata["criterion"],
            provenance=metadata["provenance"],
        )
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no posterior of this program: {error}") from error
