"""A network that was trained elsewhere, and its data: what `compress --net --init --data` does, for Python programs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_compress.compression.pipeline import way_of
from pyro_compress.data.sources import splits_from
from pyro_compress.data.unlabelled import examples_without_labels
from pyro_compress.doubts import gathered
from pyro_compress.graph.checked import evaluating
from pyro_compress.metrics import evaluate
from pyro_compress.networks.fitted import shaped
from pyro_compress.runs.given import net_name, settings_of, takes
from pyro_compress.runs.in_memory import Compression, compressed, configured, table
from pyro_compress.runs.post_training import Trained, load_trained, start_of, trained_of
from pyro_compress.runs.unlabelled import labelled, placed
from pyro_compress.scores import Quality
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.training.callbacks import Callbacks
from pyro_compress.types import Splits


@dataclass(frozen=True, repr=False)
class TrainedNetwork:
    """What `trained` returns.

    Attributes:
        trained: the network as a posterior without spread, its data, its configuration.
        doubts: what is doubtful of it, in words.
    """

    trained: Trained
    doubts: tuple[str, ...] = ()

    def compress(
        self, goal: Goal | None = None, posterior: str | None = None, callbacks: Iterable[Any] = (), **options: Any
    ) -> Compression:  # fmt: skip
        """Round its weights as they are, without any training; prune or fine-tune it where an option asks for that.

        Args:
            goal: what to reach; by default the smallest file that costs half a point of accuracy.
            posterior: `laplace` or `svi`: what is found around the weights; None: what the options need.
            callbacks: told of every candidate.
            **options: settings of `CompressConfig` by the names of their options: `tolerance`, `max_bytes`, `finetune`,
                ... (docs/settings.md)

        Raises:
            ValueError: what `compress` refuses, an unknown option.
        """
        config, combined = configured(goal, options), Callbacks(callbacks)
        start = start_of(self.trained, config, posterior, combined.on_epoch)
        how = way_of(replace(config, rounding=start.rounding), self.trained.config.seed)
        config = replace(config, reference=config.reference or self.trained.network)
        return compressed(start.posterior, self.trained.splits, config, how, self.trained.config.device, callbacks)

    def evaluate(self, split: str = "validation") -> Quality:
        """Its scores on a split of its data."""
        from pyro_compress.graph.network import Network

        network, device = self.trained.network, self.trained.config.device
        module = Network(network.graph, network.tensors).eval().to(device)
        return evaluate(module, self.trained.splits, split, device, network.noise)

    def __repr__(self) -> str:
        """What it is."""
        return "TrainedNetwork: " + "; ".join(f"{name} {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        return table("Trained network", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        layers, splits = self.trained.network.layers, self.trained.splits
        weights = sum(layer.mean.numel() for layer in layers.values())
        rows = [("network", self.trained.config.net), ("weights", f"{weights:,} in {len(layers)} tensors")]
        rows.append(("examples", ", ".join(f"{size:,} {name}" for name, size in splits.sizes.items())))
        return rows + [("doubt", text) for text in self.doubts]


def trained(
    net: nn.Module | str, train: Any = None, *, init: str | Path = "", validation: Any = None, test: Any = None,
    calibration: Any = None, **settings: Any,
) -> TrainedNetwork:  # fmt: skip
    """A network with its weights, and the data that tell what compression costs it.

    Args:
        net: the network, which stays as it is; or a name of `NETS`, `package.module:function`, a `.pcn` file.
        train: as for `fit`: calibrates, and is trained on where fine-tuning is asked for.
        init: file of the weights (`.safetensors`, `.pt`, a run folder, `.pcn`), with a name.
        validation: as for `fit`: what a tolerance is measured on.
        test: as for `fit`: read once, at the end.
        calibration: in place of `train` inputs `(n, ...)` without labels, or a file or folder of them: the classes that
            the network finds most probable stand for labels, and what is lost is agreement with it.
        **settings: fields of `FitConfig` that name the network and how data are read: `hidden`, `task`, `input_mean`,
            `seed`, `device`, ...

    Raises:
        ValueError: unknown settings, weights that do not fit, what `capture` refuses.

    Examples:
        >>> import pyro_compress as pc
        >>> small = pc.trained(net, (x, y)).compress(tolerance=0.005)  # doctest: +SKIP
        >>> small.save("small.pcn")  # doctest: +SKIP
    """
    if isinstance(net, str) and not init:
        raise ValueError(f"{net} has no trained weights: name them, init='weights.safetensors', or give the network")
    if init and not isinstance(net, str):
        raise ValueError("init goes with the name of a network; load the weights into the network that you give")
    if "prior" in settings:
        raise ValueError("prior goes with pc.fit: here the weights are taken as they are")
    if (train is None) == (calibration is None):
        raise ValueError("give train, examples with labels, or calibration, examples without")
    config = FitConfig(prior="log-uniform", init=str(init), **settings_of(net, settings, "of a network"))
    config = replace(config, net=net_name(net))
    with gathered() as doubts:
        if calibration is not None:
            return TrainedNetwork(_unlabelled(net, calibration, config), tuple(doubts))
        share, task = config.validation if validation is None else validation, settings.get("task", "")
        splits = splits_from(train, share, test, config.reading, config.data_dir, task, takes(net))
        config = config.on(splits.origin, splits.task)
        if not splits.origin.get("vocabulary"):
            config = replace(config, tokens=splits.tokens)
        found = trained_of(None if isinstance(net, str) else _shaped(net, splits), splits, config)
    return TrainedNetwork(found, tuple(doubts))


def _shaped(net: nn.Module, splits: Splits) -> nn.Module:
    return shaped(copy.deepcopy(net).eval(), splits)


def _unlabelled(net: nn.Module | str, calibration: Any, config: FitConfig) -> Trained:
    if isinstance(net, str):
        return load_trained(config, calibration=str(calibration))
    if config.task != "classification":
        raise ValueError(f"examples without labels go with classification, not with {config.task}; give train")
    path = isinstance(calibration, str | Path)
    if not (path or isinstance(calibration, torch.Tensor | np.ndarray)):
        raise ValueError(
            f"calibration is a {type(calibration).__name__}; give inputs alone, as one tensor or array (n, ...), or a "
            "file or folder of them"
        )
    x = examples_without_labels(str(calibration), config.reading) if path else torch.as_tensor(calibration)
    splits = placed(x, _classes(net, x), config, takes(net))
    module = _shaped(net, splits)
    config = replace(config.on({}, splits.task), tokens=splits.tokens)
    return trained_of(module, labelled(module, splits), config, calibration=str(calibration) if path else "")


def _classes(net: nn.Module, x: torch.Tensor) -> int:
    """How many classes a network tells apart.

    Raises:
        ValueError: it does not take these inputs, or returns something else.
    """
    try:
        with torch.no_grad(), evaluating(net):
            outputs = net(x[:2])
    except Exception as error:  # whatever a module says of inputs that it does not take
        reason = " ".join(str(error).split())[:120]
        what = f"{x.dtype} of shape {tuple(x.shape[1:])}"
        raise ValueError(f"the network does not take {what} as inputs: {reason}") from error
    if not isinstance(outputs, torch.Tensor) or outputs.dim() > 2:
        what = f"of shape {tuple(outputs.shape[1:])}" if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(f"outputs {what} are no classes of one example; give labelled examples with train")
    return max(outputs.shape[1] if outputs.dim() == 2 else 1, 2)  # one logit tells two classes apart
