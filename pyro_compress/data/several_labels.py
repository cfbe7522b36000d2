"""Labels of several outputs, each in an array of its own -> rows of labels, and the task that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.held_out import held_out
from pyro_compress.data.npz import LABELS
from pyro_compress.data.outputs import classes_of, splits_of, standardized, with_targets
from pyro_compress.data.preprocessing import numbered
from pyro_compress.outputs import Outputs, is_several, outputs_from, outputs_of
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Data, Preprocessing, Quantity, Splits

Named = Mapping[str, np.ndarray]


def task_of(array: np.ndarray) -> str:
    """What an output is for: floats are numbers, a row of whole ones per example says yes or no, others are classes."""
    if array.dtype.kind == "f":
        return "regression"
    return "multi-label" if array.ndim == 2 and array.shape[1] > 1 else "classification"


def check_several(several: bool, task: str, name: str, given: bool = False) -> None:
    """Refuse labels of several outputs where a task is for one, and the other way round.

    Args:
        several: whether labels have names.
        task: what the data are for.
        name: of the data.
        given: the task is that of a network; else nobody may have said one.

    Raises:
        ValueError: as said.
    """
    if several and given and not is_several(task):
        raise ValueError(
            f"{name} has labels with names, y_test.NAME; this network has one output, for {task}: give y_test"
        )
    if several and task != ReadConfig().task and not is_several(task):
        raise ValueError(f"{name}: labels with names, y_train.NAME, say themselves what they are for: leave --task out")
    if is_several(task) and not several:
        raise ValueError(f"{name} has one array of labels; this network has several outputs: give y_test.NAME of each")


def several_splits(
    x: Mapping[str, Any],
    y: Mapping[str, Named],
    name: str,
    reading: ReadConfig,
    known: Preprocessing | None,
    **about: Any,
) -> Splits:
    """Splits whose examples have several labels, each under a name.

    Args:
        x: part -> inputs, as a network takes them.
        y: part -> labels or targets by the name of the output.
        name: of the data, in messages.
        reading: its task may spell the outputs of the network that the data are for.
        known: what is known of that network.
        about: `validation`, the share to hold out, and fields of `Splits`.

    Raises:
        ValueError: labels that are missing, that fit no task, or that the network does not know.
    """
    validation, network = about.pop("validation"), outputs_of(reading.task)
    kinds = {one: task_of(array) for one, array in y["train"].items()}
    if network:
        kinds = {one.name: one.task for one in network.each}
    for part, own in y.items():
        if {*own} != {*kinds}:
            raise ValueError(
                f"{name}: y_{part} has {', '.join(sorted(own))}; wanted are labels for {', '.join(sorted(kinds))}"
            )
    rows, sizes, classes = dict[str, list[np.ndarray]](), dict[str, tuple[str, int]](), tuple[str, ...]()
    places = network.of_classes(known.classes) if network and known and known.classes else [()] * len(kinds)
    for (one, task), own_classes in zip(sorted(kinds.items()), places, strict=True):
        arrays = {f"{name}: y_{part}.{one}": own[one] for part, own in y.items()}
        for (what, array), inputs in zip(arrays.items(), x.values(), strict=True):
            if array.ndim < 1 or len(array) != len(inputs):
                raise ValueError(f"{what}: {len(array) if array.ndim else 1} labels for {len(inputs)} examples")
        told_of_it = Preprocessing(0.0, tuple(own_classes)) if own_classes else None
        rows[one], names, size = _columns(arrays, task, name, told_of_it)
        sizes[one], classes = (task, size), (*classes, *names)
    outputs = outputs_from(sizes)
    if network and outputs != network:
        raise ValueError(f"{name}: labels for {outputs.task}; this network gives {network.task}")
    found = {
        part: Data(x[part], torch.from_numpy(np.concatenate([rows[one.name][i] for one in outputs.each], 1)))
        for i, part in enumerate(y)
    }
    parts = held_out(found, validation, ReadConfig(task=outputs.task, limit=reading.limit), name)
    parts, targets = _in_units(parts, outputs, name, known)
    return splits_of(parts, classes, targets=targets, task=outputs.task, **about)


def several_rows(y: Named, outputs: Outputs, known: Preprocessing, what: str) -> Tensor:
    """Rows of labels `(n, columns)` of examples for a network of which so much is known.

    Raises:
        ValueError: labels that are missing, or that the network does not know.
    """
    if {*y} != {one.name for one in outputs.each}:
        wanted = ", ".join(one.name for one in outputs.each)
        raise ValueError(f"{what} has {', '.join(sorted(y))}; this network wants labels for {wanted}")
    names = outputs.of_classes(known.classes) if known.classes else [numbered(one.size) for one in outputs.each]
    columns = []
    for one, classes in zip(outputs.each, names, strict=True):
        known_one = Preprocessing(0.0, tuple(classes) or numbered(one.size))
        found, _, size = _columns({f"{what}.{one.name}": y[one.name]}, one.task, what, known_one)
        if size != one.size:
            raise ValueError(f"{what}.{one.name} has {size} values per example; this network gives {one.size}")
        columns.append(found[0])
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(str(len(column)) for column in columns)
        raise ValueError(f"{what}: every output has as many labels as there are examples; got {lengths}")
    rows = torch.from_numpy(np.concatenate(columns, 1))
    return _standard(Data(rows, rows), outputs, known.targets).y if known.targets else rows.float()


def _columns(
    arrays: Mapping[str, np.ndarray], task: str, name: str, known: Preprocessing | None
) -> tuple[list[np.ndarray], tuple[str, ...], int]:
    """Labels of one output as columns, of every array; names of its classes; how many values it has."""
    labels = {what: LABELS[task](array, what) for what, array in arrays.items()}
    if task == "classification":
        classes, numbers = classes_of(labels, (), name, known)
        return [rows[:, None].astype(np.float64) for rows in numbers], classes, len(classes)
    columns = [tensor.double().numpy() for tensor in labels.values()]
    if len(widths := {rows.shape[1] for rows in columns}) > 1:
        counts = ", ".join(str(width) for width in sorted(widths))
        raise ValueError(f"{', '.join(arrays)}: they have {counts} columns; all must have the same number")
    size = columns[0].shape[1]
    names = () if task == "regression" else (known.classes if known else numbered(size))
    return columns, tuple(names), size


def _in_units(
    parts: list[Data], outputs: Outputs, name: str, known: Preprocessing | None
) -> tuple[list[Data], tuple[Quantity, ...]]:
    """Parts with numbers in standard deviations of the training rows."""
    places = _numbers(outputs)
    if not places:
        return [Data(part.x, part.y.float()) for part in parts], ()
    own = [Data(part.x, part.y[:, places]) for part in parts]
    names = [
        one.name if one.size == 1 else f"{one.name} {i}"
        for one in outputs.each
        if one.task == "regression"
        for i in range(one.size)
    ]
    _, targets = with_targets(own, names, name, known)
    return [_standard(part, outputs, targets) for part in parts], targets


def _standard(part: Data, outputs: Outputs, targets: tuple[Quantity, ...]) -> Data:
    places, y = _numbers(outputs), part.y.float()
    y[:, places] = standardized(Data(part.x, part.y[:, places]), targets).y.float()
    return Data(part.x, y)


def _numbers(outputs: Outputs) -> list[int]:
    """Columns of labels that are numbers with a unit."""
    pairs = zip(outputs.each, outputs.label_columns, strict=True)
    return [place for one, where in pairs if one.task == "regression" for place in range(where.start, where.stop)]
