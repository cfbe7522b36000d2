"""A posterior around weights that were trained elsewhere: what compression needs, and nothing is trained from scratch.

To add a way, write a function `(Trained, on_epoch) -> Posterior` and add a row to `POSTERIORS`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from pyro_compress.compression.smallest import spared
from pyro_compress.compression.target import default_nll_tolerance
from pyro_compress.data.several import task_named
from pyro_compress.data.splits import load_splits
from pyro_compress.doubts import doubt
from pyro_compress.foreign import unknown
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network, tensors_of
from pyro_compress.metrics import evaluate, residual_noise
from pyro_compress.networks.fitted import check_all_tokens
from pyro_compress.networks.layered import Layered
from pyro_compress.networks.outputs import doubtful_end
from pyro_compress.networks.standardized import in_standard_units
from pyro_compress.provenance import Provenance
from pyro_compress.runs.command_budget import check_network
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import check_run_folder
from pyro_compress.runs.run import fit_run, initial_net, made_from
from pyro_compress.runs.unlabelled import network_and_splits
from pyro_compress.settings import CompressConfig, FitConfig
from pyro_compress.training.baselines import point_posterior
from pyro_compress.training.history import OnEpoch
from pyro_compress.training.laplace import gradient_bytes, laplace
from pyro_compress.training.minibatches import batch_count
from pyro_compress.types import Posterior, Splits

log = logging.getLogger(__name__)

STEPS = 2000
"""SVI steps that the default number of epochs aims at, within `EPOCHS`."""
EPOCHS = (3, 30)
TOLERANCE = 0.005
"""Accuracy whose worth in nats (`default_nll_tolerance`) the mean of a fit may lose against the given weights."""


@dataclass(frozen=True)
class Trained:
    """A trained network and its data.

    Attributes:
        network: its weights as a posterior without spread: the reference of what is lost.
        splits: its data.
        config: names network, weights and data; resolved.
        folder: where the fit is to be kept as a run folder; None: nowhere.
    """

    network: Posterior
    splits: Splits
    config: FitConfig
    folder: Path | None = None


@dataclass(frozen=True)
class Around:
    """A posterior around a trained network.

    Attributes:
        trained: the network.
        posterior: moments of every weight, and the network.
        seconds: what finding it took.
    """

    trained: Trained
    posterior: Posterior
    seconds: float


def _svi(trained: Trained, on_epoch: OnEpoch) -> Posterior:
    if trained.folder is not None:
        if not trained.config.data:
            raise ValueError("a run folder finds its data by name, and these have none: leave --run out")
        return _anchored(trained, fit_run(trained.config, trained.folder, on_epoch=on_epoch).posterior)
    from pyro_compress.bayes.extract import extract
    from pyro_compress.bayes.fit import fit_posterior

    net = Layered(trained.network.graph, dict(trained.network.tensors))
    return _anchored(trained, extract(fit_posterior(net, trained.splits, trained.config, on_epoch)))


def _anchored(trained: Trained, fitted: Posterior) -> Posterior:
    """The fitted posterior; where its mean has become worse than the given weights, its spread around those.

    On few examples the prior outweighs the data and draws the means away; the spread still tells which weights matter.
    """
    given, found = (
        evaluate(Network(p.graph, p.tensors).eval().to(trained.config.device), trained.splits, "validation",
                 trained.config.device)
        for p in (trained.network, fitted)
    )  # fmt: skip
    counted = task_named(trained.splits.task).counted(trained.splits.validation.y)
    if found.nll_nats <= given.nll_nats + default_nll_tolerance(TOLERANCE, counted):
        return fitted
    layers = {name: replace(layer, mean=trained.network.layers[name].mean) for name, layer in fitted.layers.items()}
    return replace(fitted, layers=layers, dense=trained.network.dense)


def _laplace(trained: Trained, on_epoch: OnEpoch) -> Posterior:
    if trained.folder is not None:
        raise ValueError("--run keeps the fit of --posterior svi; a Laplace approximation leaves no run folder")
    config = trained.config
    return laplace(trained.network, trained.splits.train, config.device, config.seed)


POSTERIORS: dict[str, Callable[[Trained, OnEpoch], Posterior]] = {
    "svi": _svi,
    "laplace": _laplace,
}
"""Ways to a posterior around given weights: a short variational fit that starts there, or one pass of curvature."""


def load_trained(
    config: FitConfig, folder: Path | None = None, command: str = "compress", how: str = "", calibration: str = ""
) -> Trained:  # fmt: skip
    """Load the data and the weights that a configuration names, and fill in the recipe of a short fit around them.

    The recipe: no pretraining, batch norm frozen, means that move slowly (a tenth of the prior's own rate) and scales
    that move fast, the KL warmed up over half of `STEPS` steps or so.

    Args:
        config: names `net`, `init` and `data`; what else it leaves open is filled in.
        folder: where to keep the fit.
        command: what will be done with it, a name in `command_budget.COMMANDS`.
        how: name in `POSTERIORS` of what will be found around it; empty: nothing will, or it asks by itself.
        calibration: file or folder of examples without labels, in place of the data that the configuration names.

    Raises:
        ValueError: no weights named, weights that do not fit, what `capture` refuses, too little memory.
    """
    if not config.init:
        raise ValueError("a network without trained weights: name them with --init, or train with `pyro-compress fit`")
    if folder is not None:
        check_run_folder(folder)
    if calibration:
        net, splits = network_and_splits(config, calibration)
        return trained_of(net, splits, config.on({}, config.task), folder, command, how, calibration)
    splits = load_splits(config.data, config.data_dir, config.validation, reading=config.reading)
    return trained_of(None, splits, config, folder, command, how)


def trained_of(
    net: nn.Module | None, splits: Splits, config: FitConfig, folder: Path | None = None, command: str = "compress",
    how: str = "", calibration: str = "",
) -> Trained:  # fmt: skip
    """The same of data, and perhaps of a network, that are there already.

    Args:
        net: the network with its weights; None: the one that the configuration names.
        splits: its data.
        config: as for `load_trained`.
        folder: likewise.
        command: likewise.
        how: likewise.
        calibration: likewise; a file says it in place of its data.

    Raises:
        ValueError: likewise.
    """
    examples = len(splits.train)
    batch_size = config.batch_size or (64 if examples < 10_000 else 128)
    epochs = config.epochs or min(max(round(STEPS / batch_count(examples, batch_size)), EPOCHS[0]), EPOCHS[1])
    config = replace(
        config, batch_size=batch_size, epochs=epochs, pretrain_epochs=0,
        lr=config.lr or 3e-4, lr_scale=config.lr_scale or 1e-2, init_scale=config.init_scale or 1e-3,
        kl_warmup=epochs / 2 if config.kl_warmup is None else config.kl_warmup,
    )  # fmt: skip
    config = resolve(config, examples)
    net = in_standard_units((initial_net(config, splits) if net is None else net).eval(), splits)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(net).items()}
    graph = capture(net, splits.input_shape, splits.output_shape, trained=False, kind=splits.kind)
    check_all_tokens(net, graph, splits)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    weights = sum(math.prod(shape) for shape in shapes.values() if len(shape) > 1)
    check_network(command, graph, shapes, config.net, gradient_bytes(weights) if how == "laplace" else 0)
    doubt(log, doubtful_end(graph, splits.task))
    if any(node.op == "batch_norm" for node in graph.nodes):
        config = replace(config, batch_norm="frozen")
    noise = residual_noise(net.to(config.device), splits, config.device)
    provenance = Provenance(config.provenance).but(noise=noise, calibration=calibration or None)
    given = point_posterior(graph, tensors, provenance)
    network = made_from(Path(config.net), given)
    return Trained(network, splits, config, folder)


def posterior_around(trained: Trained, how: str = "laplace", on_epoch: OnEpoch = lambda epoch: None) -> Around:
    """Find a posterior around a trained network.

    Args:
        trained: the network and its data.
        how: name in `POSTERIORS`.
        on_epoch: called after every epoch of a fit.

    Raises:
        ValueError: an unknown way, what a fit refuses.
    """
    if how not in POSTERIORS:
        raise unknown("posterior", how, POSTERIORS)
    started = time.perf_counter()
    posterior = POSTERIORS[how](trained, on_epoch)
    return Around(trained, posterior, time.perf_counter() - started)


@dataclass(frozen=True)
class Start:
    """What a compression of a trained network starts from.

    Attributes:
        posterior: around its weights; where they are rounded with compensation, without spread.
        rounding: name of the way.
        seconds: what finding the posterior took.
    """

    posterior: Posterior
    rounding: str
    seconds: float = 0.0


def start_of(
    trained: Trained, config: CompressConfig, how: str | None = None, on_epoch: OnEpoch = lambda epoch: None
) -> Start:
    """What a compression starts from: the weights themselves, or a posterior around them where it asks for one.

    Args:
        trained: the network and its data.
        config: the compression.
        how: name in `POSTERIORS`; None: no posterior is asked for, `laplace` where one is needed.
        on_epoch: called after every epoch of a fit.

    Raises:
        ValueError: an unknown way, what a fit refuses.
    """
    compensated = config.rounding == "compensated" or (how is None and config.rounds_only)
    if compensated and (config.rounding or not spared(trained.network)):
        return Start(trained.network, "compensated")
    around = posterior_around(trained, how or "laplace", on_epoch)
    return Start(around.posterior, config.rounding or "nearest", around.seconds)
