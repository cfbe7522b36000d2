"""How outputs are read, task by task: names, units, and what is said of every input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_compress.data.preprocessing import class_names, described, pad_of, target_names
from pyro_compress.data.several import parted
from pyro_compress.outputs import Outputs, outputs_of
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Preprocessing, Quantity


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


def answer_of(
    output: tuple[int, ...], known: Preprocessing, reading: ReadConfig, noise: float | None, top: int = 1
) -> Answer:
    """How the outputs of a network are read.

    Args:
        output: shape of one example's.
        known: its preprocessing.
        reading: how the data of its fit were read; names its task.
        noise: of regression, in standard deviations of the targets.
        top: classes that are named for each input.
    """
    if outputs := outputs_of(reading.task):
        return Answer((), 0, (), (), (), -1, _parts(outputs, known, noise))
    if reading.task == "reconstruction":
        return Answer((), 0, (), ("error (RMSE)",), (), -1)
    if reading.task == "regression":
        targets = target_names(known, output[0])
        return Answer((), 0, targets, tuple(one.name for one in targets), _noise(noise, targets), -1)
    return Answer(class_names(known, output[0], reading), top, (), (), (), pad_of(reading))


def _noise(noise: float | None, targets: Sequence[Quantity]) -> tuple[float, ...]:
    return () if noise is None else tuple(noise * one.std for one in targets)


def _parts(outputs: Outputs, known: Preprocessing, noise: float | None) -> dict[str, Answer]:
    """How each of several outputs is read."""
    return {
        one.name: Answer(names, 1, targets, tuple(unit.name for unit in targets), _noise(noise, targets), -1)
        for one, names, targets in described(outputs, known)
    }


def told(task: str, outputs: Tensor, x: Tensor, answer: Answer) -> dict[str, Iterator[Told]]:
    """What outputs say of inputs: of several each under its name, else under the empty one.

    Args:
        task: name in `pyro_compress.data.tasks.TASKS`, or several outputs.
        outputs: of the network.
        x: its inputs.
        answer: how they are read.
    """
    if (several := outputs_of(task)) is None:
        return {"": READERS[task](outputs, x, answer)}
    parts = parted(several, outputs, None)
    return {one.name: READERS[one.task](part, x, answer.parts[one.name]) for one, part, _ in parts}


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
