"""What the programs for phones have in common: one example at a time, the card behind the file, quiet tool chains."""

from __future__ import annotations

import io
import json
import logging
import os
import time
import warnings
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_compress.compression.candidates import to_module
from pyro_compress.deploy.refusals import named_in, reason, standing
from pyro_compress.graph.packing import parts_of, with_inputs
from pyro_compress.inputs import Input, inputs_of
from pyro_compress.types import Compressed, Graph

SEARCH = 60.0
"""Seconds in which the operation that a tool chain refuses is looked for."""
CARD = "pyro_compress.json"
"""Name of the card in the archive behind the program."""


def module_of(network: Compressed) -> nn.Module:
    """The network as a module that takes its inputs one by one, as a program will."""
    module: nn.Module = to_module(network)
    return with_inputs(module, network.graph.inputs) if network.graph.inputs else module.eval()


def given(x: Tensor, network: Compressed) -> tuple[Tensor, ...]:
    """Examples `(n, ...)` as the arguments of `module_of`."""
    if inputs := network.graph.inputs:
        return tuple(parts_of(x, inputs).values())
    return (x.to(getattr(torch, network.graph.kind)),)


def nothing(network: Compressed) -> tuple[Tensor, ...]:
    """One example of zeros, to trace the network with."""
    return given(torch.zeros(1, *network.graph.input_shape), network)


def one_by_one(run: Callable[..., np.ndarray], entry: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A program of one example as a function of several, in the range that the network was trained on.

    Args:
        run: arguments with a first dimension of 1 -> outputs `(1, ...)`.
        entry: `input` of the card.
    """
    inputs: tuple[Input, ...] = inputs_of([[i["name"], i["shape"], i["dtype"]] for i in entry.get("inputs", [])])
    kind = np.dtype(entry["dtype"])

    def arguments(row: np.ndarray) -> list[np.ndarray]:
        if inputs:
            return [part.numpy() for part in parts_of(torch.from_numpy(row), inputs).values()]
        return [row.astype(kind)]

    def predict(x: np.ndarray) -> np.ndarray:
        return np.concatenate([run(*arguments(x[i : i + 1])) for i in range(len(x))])

    return predict


def with_card(program: bytes, card: Mapping[str, Any]) -> bytes:
    """A program and behind it, where its runtime does not look, an archive with the card: `unzip -p FILE`."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr(zipfile.ZipInfo(CARD), json.dumps(card))
    return program + archive.getvalue()


def card_behind(path: Path) -> dict[str, Any]:
    """The card behind a program that was written here a moment ago."""
    with zipfile.ZipFile(path) as archive:
        found: dict[str, Any] = json.loads(archive.read(CARD))
    return found


def need(modules: Sequence[str], what: str, extra: str) -> None:
    """Raise one clear error where the modules of a tool chain are missing, or do not load."""
    try:
        with quiet():
            for module in modules:
                import_module(module)
    except ImportError as error:
        message = f"{what} needs more packages ({reason(error)}); pip install 'pyro-compress[{extra}]'"
        raise ValueError(message) from error
    except Exception as error:  # whatever a library that does not fit this machine says
        message = (
            f"{what} does not load ({type(error).__name__}: {reason(error)}); "
            f"pip install --force-reinstall 'pyro-compress[{extra}]'"
        )
        raise ValueError(message) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what tool chains say: Python's warnings, logs and prints, and lines that C++ writes."""
    before, kept = logging.root.manager.disable, {stream: os.dup(stream) for stream in (1, 2)}
    logging.disable(logging.WARNING)
    try:
        with (
            os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") as nowhere,
            warnings.catch_warnings(),
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            for stream in kept:
                os.dup2(nowhere.fileno(), stream)
            warnings.simplefilter("ignore")
            yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        logging.disable(before)


class Refused(ValueError):
    """A tool chain does not take a network.

    Args:
        who: the tool chain.
        error: what it says.
        instead: what to export to, or without.
    """

    def __init__(self, who: str, error: Exception | str, instead: str):
        said = error if isinstance(error, str) else reason(error)
        self.who, self.said, self.instead = who, said, instead
        super().__init__(f"{who} refuses the network: {said}; export {instead}")


def located(network: Compressed, error: Refused, convert: Callable[[Compressed], object]) -> ValueError:
    """The same with the operation that is refused and the module that it stands behind, where they are found.

    Args:
        network: what is refused.
        error: how.
        convert: does to a network what failed; asked about ever smaller beginnings of this one.
    """
    index = first_refused(network, convert)
    if index is None:
        index = named_in(error, network.graph)
    if index is None:
        return error
    what = standing(network.graph, index)
    return ValueError(
        f"{error.who} refuses {what}: {error.said}; leave it out of the network, or export {error.instead}"
    )


def first_refused(network: Compressed, convert: Callable[[Compressed], object], seconds: float = SEARCH) -> int | None:
    """The operation that a tool chain refuses though it takes all that it reads; None where that is not found in time.

    Args:
        network: what it refuses.
        convert: raises `Refused` for a network that it refuses.
        seconds: after which no further beginning is tried.
    """
    ends, graph = time.monotonic() + seconds, network.graph

    def refused(index: int) -> bool:
        if time.monotonic() > ends:
            raise TimeoutError
        beginning = Compressed(replace(graph, nodes=graph.nodes[: index + 1]), network.tensors, network.meta)
        try:
            convert(beginning)
        except Refused:
            return True
        return False

    index, last = 0, len(graph.nodes) - 1
    try:
        last *= refused(last)
        while last:
            read = _read_by(graph, last)
            index = read[bisect_left(read, True, hi=len(read) - 1, key=refused)]
            last = next((one for one in graph.nodes[index].inputs if one and refused(one)), 0)  # of joined branches
    except TimeoutError:
        return None
    return index or None


def _read_by(graph: Graph, index: int) -> list[int]:
    """An operation and all that its value comes from, in order, without the input."""
    found = {index}
    for place in range(index, 0, -1):
        if place in found:
            found.update(graph.nodes[place].inputs)
    return sorted(found - {0})
