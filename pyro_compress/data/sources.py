"""Examples as a Python program has them -> `Splits`; what a file would bring along is held out the same way.

They are read once, into memory (`examples`). Large data lie in a folder of `.npy` arrays (`folders`), which is read
from disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.datasets import Arrays
from pyro_compress.data.examples import Examples, examples_of
from pyro_compress.data.held_out import drawn
from pyro_compress.data.npz import check_finite
from pyro_compress.data.outputs import splits_of
from pyro_compress.data.positions import check_counting
from pyro_compress.data.preprocessing import numbered
from pyro_compress.data.several import task_named
from pyro_compress.data.splits import load_splits, split
from pyro_compress.data.table_splits import TEST_SHARE
from pyro_compress.data.tasks import TASKS
from pyro_compress.graph.packing import pack, pack_for
from pyro_compress.inputs import Input, kind_of
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Data, Quantity, Splits

PARTS = ("validation", "val", "valid")
"""What a validation split is called where splits have names."""


class Takes(NamedTuple):
    """What a network takes.

    Attributes:
        names: of `forward`'s parameters, in order: several inputs without names are these.
        vocabulary: how many kinds of tokens it knows: whole numbers `(n, length)` are tokens then; 0: they are numbers.
    """

    names: tuple[str, ...] = ()
    vocabulary: int = 0


NOTHING = Takes()


def splits_from(
    train: Any, validation: Any = None, test: Any = None, reading: ReadConfig | None = None, data_dir: str = "",
    task: str = "", takes: Takes = NOTHING,
) -> Splits:  # fmt: skip
    """Splits from whatever a program has.

    Args:
        train: as the module says, or `Splits`, or what `load_splits` reads.
        validation: the same, or a share of the training examples to hold out; None: as `load_splits`.
        test: the same; None: a fifth of the rows is held out first.
        reading: how they are read; a task that it does not name is told by the targets.
        data_dir: folder of the downloaded data sets.
        task: name in `TASKS`; empty: floats are targets of a regression, everything else labels of classes.
        takes: what is known of the network that they are for.

    Raises:
        ValueError: none of these, or what `split` refuses.

    Examples:
        >>> x, y = torch.randn(300, 4), torch.arange(300) % 3
        >>> splits_from((x, y)).sizes
        {'train': 160, 'validation': 80, 'test': 60}
    """
    reading = reading or ReadConfig()
    share = None if validation is None or not isinstance(validation, float | int) else float(validation)
    given = None if isinstance(validation, float | int) else validation
    if isinstance(train, Splits | str | Path):
        if given is not None or test is not None:
            raise ValueError(f"{type(train).__name__} brings its own splits; leave validation and test out")
        if isinstance(train, Splits):
            return train
        named = replace(reading, task=task) if task else reading
        return load_splits(str(train), data_dir, share, reading=named)
    if _is_split_by_name(train):
        given = given if given is not None else next((train[name] for name in PARTS if name in train), None)
        test = test if test is not None else train.get("test")
        train = train["train"]
    found = {"train": examples_of(train, "train", reading, takes.names)}
    found |= {
        p: examples_of(e, p, reading, takes.names) for p, e in (("validation", given), ("test", test)) if e is not None
    }
    for part, one in found.items():  # before rows change their places
        for called, side in (("inputs", one.x), ("targets", one.y)):
            for name, array in side.items() if isinstance(side, dict) else [(called, side)]:
                if array.dtype.kind == "f":
                    check_finite([array], f"{part}: {name}")
    reading = replace(reading, task=task or _task_of(found["train"], reading))
    x = found["train"].x
    if takes.vocabulary and not reading.tokens and not isinstance(x, dict) and kind_of(x) == "int64" and x.ndim == 2:
        reading = replace(reading, tokens=takes.vocabulary)
    arrays = _arrays(found, reading)
    splits = replace(split(arrays, share, "train", reading), inputs=arrays.inputs)
    check_counting(reading, "train")
    return splits


class Shapes(NamedTuple):
    """What must be known of data that only a loop of one's own will see.

    Attributes:
        inputs: shape of one example.
        outputs: number of classes or targets.
        examples: how many the training set has.
        task: name in `TASKS`.
        tokens: how many kinds of tokens the inputs are of; 0: they are none.
    """

    inputs: tuple[int, ...]
    outputs: int
    examples: int
    task: str = "classification"
    tokens: int = 0


def taken_whole(given: Any, reading: ReadConfig | None = None, task: str = "", takes: Takes = NOTHING) -> Splits:
    """Examples as they are, all of them in every split: for loops that give `model(x, y)` the same numbers.

    Nothing is held out, no target is standardised, and labels are class numbers from 0 on. `Splits` stay as they are.

    Args:
        given: as for `splits_from`, or `Shapes`.
        reading: how much may be held in memory.
        task: name in `TASKS`; empty: as for `splits_from`.
        takes: as for `splits_from`.
    """
    if isinstance(given, Splits | str | Path) or _is_split_by_name(given):
        return splits_from(given, reading=reading, task=task, takes=takes)
    if isinstance(given, Shapes):
        return _of_shapes(given)
    reading = reading or ReadConfig()
    found = examples_of(given, "train", reading, takes.names)
    if isinstance(found.y, dict):
        raise ValueError(
            "targets of several outputs are held out and standardised first: give what load_splits returns"
        )
    rows, inputs = _packed({"train": found.x})
    task = task or _task_of(found, reading)
    tokens = takes.vocabulary if not inputs and kind_of(rows["train"]) == "int64" and rows["train"].ndim == 2 else 0
    x = torch.from_numpy(np.ascontiguousarray(rows["train"], np.int64 if tokens else np.float32))
    y = torch.from_numpy(np.ascontiguousarray(found.y)).long() if found.y.dtype.kind in "iub" else None
    if task_named(task).noisy or task == "multi-label" or y is None:
        y = torch.from_numpy(np.ascontiguousarray(found.y, np.float32))
        y = y[:, None] if y.ndim == 1 else y
    outputs = y.shape[1] if y.is_floating_point() else int(y.max()) + 1
    return replace(_all_in_each(Data(x, y), outputs, task, tokens), inputs=inputs)


def _of_shapes(shapes: Shapes) -> Splits:
    """Splits without numbers in them; they take no memory."""
    kind = torch.int64 if shapes.tokens else torch.float32
    x = torch.zeros(1, *shapes.inputs, dtype=kind).expand(shapes.examples, *shapes.inputs)
    if task_named(shapes.task).noisy or shapes.task == "multi-label":
        y = torch.zeros(1, shapes.outputs).expand(shapes.examples, -1)
    else:
        y = torch.zeros(1, *(shapes.inputs if task_named(shapes.task).positions else ()), dtype=torch.int64)
        y = y.expand(shapes.examples, *y.shape[1:])
    return _all_in_each(Data(x, y), shapes.outputs, shapes.task, shapes.tokens)


def without_numbers(splits: Splits) -> bool:
    """Whether splits are those of `Shapes`."""
    x = splits.train.x
    return isinstance(x, Tensor) and len(x) > 1 and x.stride()[0] == 0


def _all_in_each(data: Data, outputs: int, task: str, tokens: int) -> Splits:
    targets = tuple(Quantity(f"target {i}") for i in range(outputs)) if task == "regression" else ()
    return splits_of([data] * 3, () if targets else numbered(outputs), targets=targets, task=task, tokens=tokens)


def _task_of(train: Examples, reading: ReadConfig) -> str:
    """What the targets of the training examples say; those of several outputs say it one by one."""
    if isinstance(train.y, dict):
        return reading.task
    if reading.task != ReadConfig().task or train.y.dtype.kind != "f":
        if reading.task == "classification" and train.y.ndim > 1:
            raise ValueError(
                f"targets of shape {train.y.shape} are no class per example; say what they are with task=, one of "
                f"{', '.join(TASKS)}"
            )
        return reading.task
    return "regression"


def _arrays(found: dict[str, Examples], reading: ReadConfig) -> Arrays:
    """Training, validation and test examples as `split` takes them; a fifth is held out where there is no test."""
    rows, inputs = _packed({part: one.x for part, one in found.items()})
    parts = {part: (rows[part], one.y) for part, one in found.items()}
    if "test" not in parts:
        x, y = parts["train"]
        labels = y if reading.task == "classification" and not isinstance(y, dict) else None
        held_in, held_out = drawn(np.arange(len(x)), TEST_SHARE, labels, "test split")
        parts |= {"train": (x[held_in], _rows(y, held_in)), "test": (x[held_out], _rows(y, held_out))}
    arrays = Arrays(*parts["train"], *parts["test"], found["train"].classes, inputs=inputs)
    if "validation" not in parts:
        return arrays
    x, y = parts["validation"]
    return arrays._replace(x_validation=x, y_validation=y)


def _rows(y: Any, rows: np.ndarray) -> Any:
    return {name: one[rows] for name, one in y.items()} if isinstance(y, dict) else y[rows]


def _packed(x: dict[str, Any]) -> tuple[dict[str, np.ndarray], tuple[Input, ...]]:
    """Arrays by part, several inputs in one row each, and what lies in it."""
    if not isinstance(x["train"], dict):
        if several := [part for part, one in x.items() if isinstance(one, dict)]:
            raise ValueError(f"{several[0]} has inputs {', '.join(x[several[0]])}, train has one without a name")
        return x, ()
    _, inputs = pack({name: array[:1] for name, array in x["train"].items()})
    if single := [part for part, one in x.items() if not isinstance(one, dict)]:
        raise ValueError(f"{single[0]} has one input without a name, train has {', '.join(x['train'])}")
    return {part: pack_for(one, inputs, part).numpy() for part, one in x.items()}, inputs


def _is_split_by_name(given: Any) -> bool:
    """Whether a mapping holds data sets by the names of splits, as a Hugging Face `DatasetDict`."""
    return isinstance(given, Mapping) and "train" in given and not isinstance(given["train"], Tensor | np.ndarray)
