"""A trained network and examples without labels: its own predictions stand for them.

What is lost is then agreement with the network as it was given: an accuracy of 99.5 % says that the file decides
otherwise on one example of two hundred. Its NLL is that of the class which the given network finds most probable.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_compress.compression.candidates import to_module
from pyro_compress.data.sources import NOTHING, Takes, splits_from
from pyro_compress.data.unlabelled import examples_without_labels
from pyro_compress.doubts import keep
from pyro_compress.metrics import SPLITS, examples_of, logits_of
from pyro_compress.networks.weights import read_weights
from pyro_compress.pcn import file
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import FitConfig, ReadConfig
from pyro_compress.types import Compressed, Data, Splits

FEWEST = 4
"""Examples per class, to have some in every split."""
NOTE = (
    "labels are the network's own predictions: every accuracy is the share of examples on which the result agrees with "
    "the network as it was given"
)


def network_and_splits(config: FitConfig, calibration: str) -> tuple[nn.Module, Splits]:
    """The network that a configuration names, and examples that it has labelled itself.

    Args:
        config: names network and weights.
        calibration: file or folder of examples.

    Raises:
        ValueError: no classification, no such examples, weights that do not say how many classes there are.
    """
    if config.task != "classification":
        raise ValueError(f"examples without labels go with classification, not with {config.task}; give --data")
    x = examples_without_labels(calibration, config.reading)
    splits = placed(x, classes_of(config), config)
    net = initial_net(config, splits).eval()
    return net, labelled(net, splits)


def classes_of(config: FitConfig) -> int:
    """How many classes the last tensor of a network's weights tells apart.

    Raises:
        ValueError: none of its tensors says.
    """
    if config.net.endswith(".pcn"):
        return int(file.plan_of(file.read(Path(config.net))).output[0])
    tensors = [tensor for tensor in read_weights(config.init).values() if tensor.dim()]
    if not tensors or len(tensors[-1]) < 2:
        raise ValueError(f"{config.init} does not say how many classes there are; give labelled examples with --data")
    return len(tensors[-1])


def placed(x: Tensor, classes: int, config: FitConfig, takes: Takes = NOTHING) -> Splits:
    """Examples in their splits, with labels that mean nothing yet.

    Raises:
        ValueError: too few examples, settings that need labels.
    """
    if config.target:
        raise ValueError("target names labels, and these examples have none: leave it out, or give labelled ones")
    if len(x) < FEWEST * classes or 0 < config.limit < FEWEST * classes:
        count = f"{config.limit} of {len(x)}" if config.limit else len(x)
        raise ValueError(f"{count} examples are too few for {classes} classes: give {FEWEST * classes} or more")
    labels = torch.arange(len(x)) % classes
    return splits_from((x, labels), config.validation, None, config.reading, task="classification", takes=takes)


def labelled_by(network: Compressed, calibration: str, reading: ReadConfig) -> Splits:
    """Examples without labels, with the classes that a file's network finds most probable.

    Raises:
        ValueError: no such examples, or others than the network takes.
    """
    x, plan = examples_without_labels(calibration, reading), file.plan_of(network)
    if tuple(x.shape[1:]) != network.graph.input_shape:
        raise ValueError(f"{calibration} has examples of shape {tuple(x.shape[1:])}, not {network.graph.input_shape}")
    splits = placed(x, plan.output[0], FitConfig())
    return labelled(to_module(network), splits)


def labelled(net: nn.Module, splits: Splits) -> Splits:
    """The same examples with the classes that a network finds most probable; says so.

    Raises:
        ValueError: outputs that are no classes.
    """

    def named(data: Data) -> Data:
        outputs = logits_of(net, data.x, "cpu")
        if outputs.shape[1:] != (len(splits.classes),):
            raise ValueError(f"outputs of shape {tuple(outputs.shape[1:])} are no {len(splits.classes)} classes")
        return replace(data, y=outputs.argmax(1))

    keep(NOTE)
    parts: dict[str, Any] = {name: named(examples_of(splits, name)) for name in SPLITS}
    return replace(splits, **parts)
