"""What a network says of inputs without labels: classes with probabilities, numbers in the targets' own units."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.datasets import DATASETS
from pyro_compress.data.several import task_named
from pyro_compress.data.unlabelled import Inputs, array_inputs, load_inputs, rows
from pyro_compress.graph.packing import pack_for
from pyro_compress.machine import prepare
from pyro_compress.metrics import TALLIED, examples_of, logits_of
from pyro_compress.networks.bounded import bounded, check_inputs
from pyro_compress.outputs import outputs_of
from pyro_compress.pcn.gate import MAX_MEMORY_MIB, limited
from pyro_compress.runs.answers import Answer, answer_of, told
from pyro_compress.runs.evaluation import Loaded, load_target
from pyro_compress.runs.predictions import Prediction, Predictions
from pyro_compress.types import kind_of

BATCH = 1000
"""Examples whose outputs are held at a time."""


def predict(
    file: str | Path, data: str | Path | np.ndarray | Tensor | Mapping[str, Any], top: int | None = None,
    data_dir: str = "", device: str = "auto", threads: int = 0, max_memory: float = MAX_MEMORY_MIB,
) -> Predictions:  # fmt: skip
    """What a compressed network, or the posterior mean of a run, says of inputs that need no labels.

    They are read as for evaluation: scales, colours and categories are those of the network's own data.

    Args:
        file: a `.pcn` file or a run folder.
        data: an image, a folder with images in it or below, a table with the columns of the fit (its target may be
            absent), a `.npz` file (`x`, `x_test`, or its only array) or `.npy` file, a text, the name of a data set,
            whose test split is taken, or an array or tensor `(n, ...)`. Of a text the token behind its end is
            predicted.
        top: classes that are named for each input; None: one.
        data_dir: folder of the torchvision data sets.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads; 0 leaves torch's default.
        max_memory: MiB that a `.pcn` file may ask for.

    Raises:
        ValueError: a damaged file, data that the network does not take, outputs that are no numbers, `top` for a task
            that tells everything.

    Examples:
        >>> import pyro_compress as pc
        >>> pc.predict("missing.pcn", "photos")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.pcn'
    """
    device, path = prepare(device, threads), Path(file)
    loaded = load_target(path, data_dir, None, limited(max_memory), "predict")
    answer = _answer(loaded, top, str(file))
    given = _inputs(data, loaded, data_dir)
    network, answers = bounded(loaded.network.to(device), loaded.plan), answer.parts or {"": answer}
    named, found = list[str](), {own: list[Prediction]() for own in answers}
    for part in given.parts:
        check_inputs(
            loaded.graph,
            tuple(part.shape[1:]),
            kind_of(part),
            str(data) if _named(data) else "the array",
            loaded.graph.inputs,
        )
        for x in part.split(TALLIED if task_named(loaded.reading.task).positions else BATCH):
            names = given.names[len(named) : len(named) + len(x)]
            named += names
            for own, read in told(loaded.reading.task, logits_of(network, x, device), x, answer).items():
                found[own] += [Prediction(name, *one) for name, one in zip(names, read, strict=True)]
    tasks = (
        [one.task for one in several.each] if (several := outputs_of(loaded.reading.task)) else [loaded.reading.task]
    )
    all_of = {
        own: Predictions(tuple(found[own]), task, given.kind, one.classes, one.values, one.noise)
        for (own, one), task in zip(answers.items(), tasks, strict=True)
    }
    if not answer.parts:
        return all_of[""]
    return Predictions(tuple(map(Prediction, named)), loaded.reading.task, given.kind, outputs=all_of)


def _named(data: Any) -> bool:
    return isinstance(data, str | Path)


def _inputs(data: str | Path | np.ndarray | Tensor | Mapping[str, Any], loaded: Loaded, data_dir: str) -> Inputs:
    if isinstance(data, Mapping):
        if not loaded.graph.inputs:
            raise ValueError(
                f"inputs {', '.join(map(str, data))}; this network takes one without a name: give its array"
            )
        return rows(pack_for(data, loaded.graph.inputs, "the arrays"))
    if isinstance(data, list | tuple):
        data = torch.stack(list(data)) if all(isinstance(one, Tensor) for one in data) else np.asarray(data)
    if not _named(data) and not isinstance(data, np.ndarray | Tensor):
        raise ValueError(
            f"the inputs are a {type(data).__name__}; give an array (n, ...), or the name of a file or folder"
        )
    if isinstance(data, np.ndarray | Tensor):
        array = data.detach().cpu().numpy() if isinstance(data, Tensor) else data
        return rows(array_inputs(array, "the array", loaded.graph, loaded.known, loaded.reading))
    if str(data) in DATASETS:
        splits = loaded.splits(str(data), data_dir)
        return rows(examples_of(splits, "test").x)
    return load_inputs(str(data), loaded.graph, loaded.known, loaded.reading)


def _answer(loaded: Loaded, top: int | None, file: str) -> Answer:
    task, output, known = loaded.reading.task, loaded.plan.output, loaded.known
    fits = output == loaded.graph.input_shape if task == "reconstruction" else len(output) >= 1
    if not fits or (task != "reconstruction" and (len(output) > 1) is not task_named(task).positions):
        raise ValueError(f"{file}: outputs of shape {output} are none of {task}, which it says to be its task")
    if outputs_of(task):
        if top is not None:
            raise ValueError(f"top {top}: of several outputs the most probable class of each is told; leave it out")
        return answer_of(loaded.plan.output, known, loaded.reading, loaded.noise)
    if top is not None and (task in ("regression", "reconstruction", "multi-label") or top < 1):
        why = "every label above one half is told" if task == "multi-label" else f"{task} predicts numbers"
        raise ValueError(f"top {top}: give a positive number" if top < 1 else f"top {top}: {why}; leave it out")
    return answer_of(loaded.plan.output, known, loaded.reading, loaded.noise, top or 1)
