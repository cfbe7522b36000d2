"""Examples as a Python program has them, read into memory in their own order: inputs and targets.

Tensors or arrays `(x, y)`, where either may be a dictionary of several by their names, a torch `Dataset` or
`DataLoader`, a dictionary of named inputs with targets, a Hugging Face `Dataset`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler, TensorDataset

from pyro_compress.settings import ReadConfig

TARGETS = ("y", "label", "labels", "target", "targets")
"""What the targets are called in a dictionary or a data set with names."""
KINDS = (
    "(x, y), a Dataset, a DataLoader, a dictionary of inputs with 'y', a Hugging Face Dataset, Splits, or the name of "
    "a data set"
)

ARRAYS = (Tensor, np.ndarray)


class Examples(NamedTuple):
    """Inputs and targets in memory.

    Attributes:
        x: `(n, ...)`, or arrays of several inputs by name.
        y: labels or targets, `(n, ...)`, or arrays of several outputs by name.
        classes: names of the classes; empty: none are known.
    """

    x: np.ndarray | dict[str, np.ndarray]
    y: Any
    classes: tuple[str, ...] = ()


def examples_of(given: Any, what: str, reading: ReadConfig, names: Sequence[str] = ()) -> Examples:
    """Inputs and targets of anything but a name, in memory.

    Args:
        given: as the module says.
        what: names it in messages.
        reading: how much may be held in memory.
        names: of several inputs that come without, in their order.

    Raises:
        ValueError: none of these, examples of different shapes, targets that are not there.
    """
    given = spread(given, names)
    if isinstance(getattr(given, "column_names", None), list | tuple):
        found = _of_columns(given, what, reading)
    elif isinstance(given, Mapping):
        found = _of_names({str(name): _array(values, f"{what}: {name}") for name, values in given.items()}, what)
    elif isinstance(given, TensorDataset) and len(given.tensors) == 2:
        found = _of_pair(given.tensors, what)
    elif isinstance(given, DataLoader):
        found = _of_loader(given, what, reading, names)
    elif isinstance(given, tuple | list) and len(given) == 2 and not _is_example(given[0]):
        found = _of_pair(given, what)
    elif isinstance(given, Dataset) or (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        found = _named(
            _collected((spread(one, names) for one in _items(given)), what, reading), getattr(given, "classes", ())
        )
    else:
        raise ValueError(f"{what} is a {type(given).__name__}; give {KINDS}")
    lengths = {len(one) for side in (found.x, found.y) for one in (side.values() if isinstance(side, dict) else [side])}
    if len(lengths) != 1:
        sides = (("inputs", found.x), ("targets", found.y))
        counts = [f"{called} {_rows(side)}" for called, side in sides]
        raise ValueError(f"{what}: as many targets as inputs are wanted; got rows of {', of '.join(counts)}")
    if not lengths - {0}:
        raise ValueError(f"{what}: no examples")
    return found


def _rows(side: Any) -> str:
    """How many rows inputs or targets have."""
    if isinstance(side, dict):
        return f"({', '.join(f'{name}: {len(one)}' for name, one in side.items())})"
    return str(len(side))


def spread(item: Any, names: Sequence[str]) -> Any:
    """`(a, b, y)` or `((a, b), y)` with the inputs by their names; anything else as it is."""
    if not isinstance(item, tuple | list) or len(names) < 2:
        return item
    x, y = (item[:-1], item[-1]) if len(item) > 2 else (item[0], item[1]) if len(item) == 2 else ((), None)
    if isinstance(x, tuple | list) and 1 < len(x) <= len(names) and all(isinstance(one, ARRAYS) for one in x):
        return dict(zip(names, x, strict=False)), y
    return item


def batch_size_of(given: Any) -> int | None:
    """Examples of a minibatch, where a DataLoader says it."""
    return given.batch_size if isinstance(given, DataLoader) else None


def _is_example(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2


def _of_pair(pair: Sequence[Any], what: str) -> Examples:
    x, y = pair
    return Examples(_side(x, what, "inputs"), _side(y, what, "targets"))


def _side(given: Any, what: str, called: str) -> Any:
    """Inputs or targets as an array, or several as arrays by name."""
    if isinstance(given, Mapping):
        return {str(name): _array(values, f"{what}: {name}") for name, values in given.items()}
    return _array(given, f"{what}: {called}")


def _of_names(arrays: dict[str, np.ndarray], what: str) -> Examples:
    """Inputs by name, and the targets among them."""
    there = [name for name in TARGETS if name in arrays]
    if len(there) != 1 or len(arrays) < 2:
        raise ValueError(
            f"{what} has {', '.join(arrays) or 'nothing'}; it needs inputs, and targets under one of the names "
            f"{', '.join(TARGETS)}"
        )
    y = arrays.pop(there[0])
    return Examples(arrays if len(arrays) > 1 else next(iter(arrays.values())), y)


def _of_columns(given: Any, what: str, reading: ReadConfig) -> Examples:
    """A Hugging Face data set: one input per column, names of classes from its features."""
    names = [str(name) for name in given.column_names]
    found = _collected(({name: row[name] for name in names} for row in given), what, reading)
    features = getattr(given, "features", None) or {}
    return _named(found, next((features[n].names for n in TARGETS if hasattr(features.get(n), "names")), ()))


def _named(found: Examples, classes: Any) -> Examples:
    """Examples whose whole numbers are those of classes with names."""
    if not classes or isinstance(found.y, dict) or found.y.dtype.kind not in "iu":
        return found
    return found._replace(classes=tuple(str(name) for name in classes))


def _of_loader(loader: DataLoader, what: str, reading: ReadConfig, names: Sequence[str]) -> Examples:
    """In the order of its data set, where it gives each example once; else as it comes."""
    sampler, dataset = loader.sampler, loader.dataset
    once = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(dataset)  # type: ignore[arg-type]
    if isinstance(sampler, SequentialSampler) or once:
        loader = DataLoader(dataset, loader.batch_size or 1, collate_fn=loader.collate_fn)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = [_of_batch(spread(batch, names), what) for batch in _bounded(loader, what, reading)]
    if not batches:
        raise ValueError(f"{what}: the DataLoader gives no minibatch")
    return _joined(batches, what)


def _of_batch(batch: Any, what: str) -> Examples:
    if isinstance(batch, Mapping):
        return _of_names({str(n): _array(v, f"{what}: {n}") for n, v in batch.items()}, what)
    _check_pair(batch, what)
    return _of_pair(batch, what)


def _check_pair(item: Any, what: str) -> None:
    if not isinstance(item, tuple | list) or len(item) != 2:
        kind = f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        raise ValueError(
            f"{what} gives {kind} at a time; it must give (inputs, targets), several inputs as a dictionary by the "
            "names of forward's parameters, or in their order"
        )


def _joined(parts: Sequence[Examples], what: str) -> Examples:
    """Minibatches, one behind the other."""
    inputs, targets = [one.x for one in parts], [one.y for one in parts]
    return Examples(_side_joined(inputs, what, "inputs"), _side_joined(targets, what, "targets"))


def _side_joined(parts: Sequence[Any], what: str, called: str) -> Any:
    if not isinstance(parts[0], dict):
        return _concatenated(parts, f"{what}: {called}")
    if len(names := {tuple(sorted(one)) for one in parts}) > 1:
        raise ValueError(f"{what}: {called} of different names, {' and '.join(map(str, sorted(names)[:2]))}")
    return {name: _concatenated([one[name] for one in parts], f"{what}: {name}") for name in parts[0]}


def _concatenated(arrays: Sequence[Any], what: str) -> np.ndarray:
    if len(shapes := {array.shape[1:] for array in arrays}) > 1:
        raise ValueError(f"{what}: examples of different shapes, {', '.join(map(str, sorted(shapes)[:3]))}")
    return np.concatenate(arrays)


def _items(given: Any) -> Iterator[Any]:
    """Examples of a data set, in its order."""
    return (given[row] for row in range(len(given))) if hasattr(given, "__len__") else iter(given)


def _collected(items: Iterable[Any], what: str, reading: ReadConfig) -> Examples:
    """Examples that come one by one."""
    found = [_of_batch(_as_batch(item, what), what) for item in _bounded(items, what, reading)]
    if not found:
        raise ValueError(f"{what}: no examples")
    return _joined(found, what)


def _as_batch(item: Any, what: str) -> Any:
    """One example as a minibatch of one."""
    if isinstance(item, Mapping):
        return {name: _array(value, f"{what}: {name}")[None] for name, value in item.items()}
    _check_pair(item, what)
    x, y = (_side(side, what, called) for side, called in zip(item, ("inputs", "targets"), strict=True))
    return tuple({name: one[None] for name, one in s.items()} if isinstance(s, dict) else s[None] for s in (x, y))


def _bounded(items: Iterable[Any], what: str, reading: ReadConfig) -> Iterator[Any]:
    """The same, as long as they fit into memory.

    Raises:
        ValueError: they do not.
    """
    size = 0
    for item in items:
        size += _bytes(item)
        if size > reading.in_memory_mib * 2**20:
            raise ValueError(
                f"{what}: more than {reading.in_memory_mib:g} MiB; write them as x_train.npy, y_train.npy into a "
                "folder and give its name, which is read from disk, or raise in_memory_mib"
            )
        yield item


def _bytes(item: Any) -> int:
    if isinstance(item, Mapping):
        return sum(_bytes(value) for value in item.values())
    if isinstance(item, tuple | list):
        return sum(_bytes(value) for value in item)
    return int(getattr(item, "nbytes", 8))


def _array(values: Any, what: str) -> np.ndarray:
    """Values of whatever kind as an array; an image of Pillow's has its colours first."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    try:
        found = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{what}: no array of one shape: {error}") from error
    if found.dtype == object:
        raise ValueError(f"{what} holds {type(values).__name__} of different shapes or kinds; give numbers")
    coloured = hasattr(values, "getbands") and found.ndim == 3
    return np.moveaxis(found, -1, 0) if coloured else found
