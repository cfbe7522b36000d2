"""What a network says of inputs without labels: classes with probabilities, numbers in the targets' own units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.datasets import DATASETS
from pyro_compress.data.preprocessing import numbered
from pyro_compress.data.several import parted, task_named
from pyro_compress.data.unlabelled import Inputs, array_inputs, load_inputs, rows
from pyro_compress.graph.packing import pack_for
from pyro_compress.machine import prepare
from pyro_compress.metrics import TALLIED, examples_of, logits_of
from pyro_compress.networks.bounded import bounded, check_inputs
from pyro_compress.outputs import Outputs, outputs_of
from pyro_compress.pcn.gate import MAX_MEMORY_MIB, limited
from pyro_compress.runs.evaluation import Loaded, load_target
from pyro_compress.runs.predictions import Prediction, Predictions
from pyro_compress.types import Quantity, kind_of

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
            parts = _each(loaded.reading.task, logits_of(network, x, device))
            for (own, before), (task, outputs) in zip(found.items(), parts, strict=True):
                read = READERS[task](outputs, x, answers[own])
                before += [Prediction(name, *one) for name, one in zip(names, read, strict=True)]
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


def _each(task: str, outputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The task of every output of a network, and its values."""
    if (several := outputs_of(task)) is None:
        yield task, outputs
        return
    for one, part, _ in parted(several, outputs, None):
        yield one.task, part


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


class Answer(NamedTuple):
    """How outputs are read.

    Attributes:
        classes: their names.
        top: how many are named for each input.
        targets: of regression, in the order of the outputs.
        values: names of the numbers that are predicted.
        noise: of each of them, in its own units.
        pad: token that fills up short sequences; -1: none.
        parts: of several outputs how each is read.
    """

    classes: tuple[str, ...]
    top: int
    targets: tuple[Quantity, ...]
    values: tuple[str, ...]
    noise: tuple[float, ...]
    pad: int
    parts: Mapping[str, Answer] = {}


def _answer(loaded: Loaded, top: int | None, file: str) -> Answer:
    task, output, known = loaded.reading.task, loaded.plan.output, loaded.known
    fits = output == loaded.graph.input_shape if task == "reconstruction" else len(output) >= 1
    if not fits or (task != "reconstruction" and (len(output) > 1) is not task_named(task).positions):
        raise ValueError(f"{file}: outputs of shape {output} are none of {task}, which it says to be its task")
    if outputs := outputs_of(task):
        if top is not None:
            raise ValueError(f"top {top}: of several outputs the most probable class of each is told; leave it out")
        return Answer((), 0, (), (), (), -1, _parts(outputs, loaded))
    if top is not None and (task in ("regression", "reconstruction", "multi-label") or top < 1):
        why = "every label above one half is told" if task == "multi-label" else f"{task} predicts numbers"
        raise ValueError(f"top {top}: give a positive number" if top < 1 else f"top {top}: {why}; leave it out")
    if task == "reconstruction":
        return Answer((), 0, (), ("error (RMSE)",), (), -1)
    if task == "regression":
        plain = tuple(Quantity(f"target {i}") for i in range(output[0]))
        targets = known.targets if len(known.targets) == output[0] else plain
        noise = () if loaded.noise is None else tuple(loaded.noise * one.std for one in targets)
        return Answer((), 0, targets, tuple(one.name for one in targets), noise, -1)
    names = known.classes if len(known.classes) == output[0] else tuple(map(str, range(output[0])))
    if task == "next-token" and not loaded.reading.tokens and loaded.reading.vocabulary in ("", "bytes"):
        names = tuple(chr(i) if i < 128 and chr(i).isprintable() else f"0x{i:02x}" for i in range(len(names)))
    return Answer(names, top or 1, (), (), (), loaded.reading.pad if loaded.reading.tokens else -1)


def _parts(outputs: Outputs, loaded: Loaded) -> dict[str, Answer]:
    """How each of several outputs is read."""
    known, found = loaded.known, dict[str, Answer]()
    units = known.targets or [Quantity(f"target {i}") for i in range(outputs.targets)]
    named = known.classes if len(known.classes) == outputs.size - outputs.targets else ()
    pairs = zip(outputs.each, outputs.of_classes(named), outputs.of_numbers(units), strict=True)
    for one, classes, targets in pairs:
        names = tuple(classes) if one.task == "regression" or classes else numbered(one.size)
        noise = () if loaded.noise is None else tuple(loaded.noise * quantity.std for quantity in targets)
        found[one.name] = Answer(names, 1, tuple(targets), tuple(unit.name for unit in targets), noise, -1)
    return found


Told = tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]
"""Classes, their probabilities, values."""


def _ranked(shares: Tensor, classes: Sequence[str], top: int) -> Iterator[Told]:
    """The largest of `(n, classes)` first; of equal ones the class that comes first, as when they are scored."""
    ordered, places = shares.sort(dim=1, descending=True, stable=True)
    for which, numbers in zip(places[:, :top].tolist(), ordered[:, :top].tolist(), strict=True):
        yield tuple(classes[i] for i in which), tuple(numbers), ()


def _classes(outputs: Tensor, x: Tensor, answer: Answer) -> Iterator[Told]:
    return _ranked(outputs.double().log_softmax(1).exp(), answer.classes, answer.top)


def _labels(outputs: Tensor, x: Tensor, answer: Answer) -> Iterator[Told]:
    return _ranked(outputs.double().sigmoid(), answer.classes, len(answer.classes))


def _numbers(outputs: Tensor, x: Tensor, answer: Answer) -> Iterator[Told]:
    means, stds = (torch.tensor([getattr(t, name) for t in answer.targets]).double() for name in ("mean", "std"))
    return (((), (), tuple(row)) for row in (outputs.double() * stds + means).tolist())


def _next_token(outputs: Tensor, x: Tensor, answer: Answer) -> Iterator[Told]:
    """Behind the last token of every sequence that is no padding."""
    there = x != answer.pad
    last = (there * torch.arange(x.shape[1])).amax(1)
    return _classes(outputs[torch.arange(len(x)), :, last], x, answer)


def _positions(outputs: Tensor, x: Tensor, answer: Answer) -> Iterator[Told]:
    """How many of the positions have each class, those of padding apart."""
    guess, classes = outputs.argmax(1).flatten(1), outputs.shape[1]
    there = (x != answer.pad).flatten(1) if answer.pad >= 0 else torch.ones_like(guess, dtype=torch.bool)
    placed = guess + classes * torch.arange(len(guess))[:, None]
    counts = placed[there].bincount(minlength=classes * len(guess)).view(-1, classes).double()
    return _ranked(counts / counts.sum(1, keepdim=True).clamp(min=1), answer.classes, answer.top)


def _errors(outputs: Tensor, x: Tensor, answer: Answer) -> Iterator[Told]:
    gaps = (outputs.double() - x.double()).flatten(1).square().mean(1).sqrt()
    return (((), (), (gap,)) for gap in gaps.tolist())


READERS: dict[str, Callable[[Tensor, Tensor, Answer], Iterator[Told]]] = {
    "classification": _classes,
    "regression": _numbers,
    "next-token": _next_token,
    "tagging": _positions,
    "segmentation": _positions,
    "multi-label": _labels,
    "reconstruction": _errors,
}
"""Task -> (outputs, inputs, how they are read) -> what is said of every input."""
