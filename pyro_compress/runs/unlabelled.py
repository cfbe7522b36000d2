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

from pyro_compress.data.sources import splits_from
from pyro_compress.data.unlabelled import examples_without_labels
from pyro_compress.doubts import keep
from pyro_compress.metrics import SPLITS, examples_of, logits_of
from pyro_compress.networks.weights import read_weights
from pyro_compress.pcn import file
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import FitConfig
from pyro_compress.types import Data, Splits

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


def placed(x: Tensor, classes: int, config: FitConfig) -> Splits:
    """Examples in their splits, with labels that mean nothing yet."""
    if len(x) < 2 * classes:
        raise ValueError(f"{len(x)} examples are too few for {classes} classes: give {2 * classes} or more")
    labels = torch.arange(len(x)) % classes
    return splits_from((x, labels), config.validation, reading=config.reading, task="classification")


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
