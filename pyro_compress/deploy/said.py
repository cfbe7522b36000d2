"""What the program of an export prints, held against what the package says of the same examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_compress.data.preprocessing import preprocessing_of, reading_of
from pyro_compress.inputs import unpacked
from pyro_compress.outputs import outputs_of
from pyro_compress.pcn.file import plan_of
from pyro_compress.runs.answers import Answer, answer_of, told
from pyro_compress.runs.predictions import HALF
from pyro_compress.types import PER_POSITION, Compressed, Graph

EXAMPLES = 64
"""How many are said something of."""
CLOSE = 1e-5
"""Relative difference of numbers and of prepared inputs that passes."""


class Program(Protocol):
    """What `run.py` offers."""

    def prepare(self, examples: Any) -> np.ndarray:
        """Inputs as the network takes them."""

    def run(self, x: np.ndarray) -> np.ndarray:
        """Outputs for prepared inputs."""

    def predict(self, examples: Any) -> list[str]:
        """A line per example."""


def check_said(network: Compressed, program: Program, x: Tensor) -> None:
    """Give a program examples as people have them, and compare what it prints with what `predict` says.

    Args:
        network: what was exported.
        program: what was written.
        x: examples as the network takes them.

    Raises:
        ValueError: it takes them for others, or says something else.
    """
    x = x[:EXAMPLES]
    given = raw(x.numpy(), network.graph, preprocessing_of(network.meta).scale)
    prepared = program.prepare(given)
    if not np.allclose(prepared, x.numpy(), rtol=CLOSE, atol=CLOSE):
        raise ValueError("the export takes the test examples for others than they are; nothing was written")
    outputs = torch.from_numpy(np.ascontiguousarray(program.run(prepared))).reshape(len(x), *plan_of(network).output)
    wanted, found = list(lines(network, outputs, torch.from_numpy(prepared))), program.predict(given)
    for place, (one, other) in enumerate(zip(wanted, found, strict=True), 1):
        if not _same(one, other.split("\t") if outputs_of(network.task) else [other]):
            raise ValueError(
                f"the export says {other!r:.80} of test example {place}, predict {'; '.join(one)!r:.80}; nothing was "
                "written"
            )


def raw(x: np.ndarray, graph: Graph, scale: float) -> Any:
    """Examples as people have them: whole numbers where the network divides them, several inputs by their names."""
    if not graph.inputs:
        return _whole(x, scale)
    parts = unpacked(x, graph.inputs)
    return {one.name: _whole(parts[one.name], one.scale) if one.scale else parts[one.name] for one in graph.inputs}


def _whole(x: np.ndarray, scale: float) -> np.ndarray:
    found = np.rint(x * scale)
    return found.astype(np.int64) if scale != 1 and np.allclose(found, x * scale, atol=1e-3) else x


def lines(network: Compressed, outputs: Tensor, x: Tensor) -> Iterator[list[str]]:
    """What is printed of every example: of several outputs each, with its name."""
    task = network.task
    answer = answer_of(plan_of(network).output, preprocessing_of(network.meta), reading_of(network.meta), network.noise)
    if task in PER_POSITION and task != "next-token":
        for row in outputs.argmax(1).flatten(1).tolist():
            yield [" ".join(answer.classes[i] for i in row)]
        return
    several = outputs_of(task)
    kinds = {one.name: one.task for one in several.each} if several else {"": task}
    read = told(task, outputs, x, answer)
    for row in zip(*read.values(), strict=True):
        pairs = zip(kinds.items(), row, strict=True)
        said = [(name, _line(kind, one, answer.parts.get(name, answer))) for (name, kind), one in pairs]
        yield [f"{name}={line}" if name else line for name, line in said]


def _line(task: str, one: tuple[Sequence[str], Sequence[float], Sequence[float]], answer: Answer) -> str:
    classes, shares, values = one
    if task == "multi-label":
        given = {name for name, share in zip(classes, shares, strict=True) if share > HALF}
        return ";".join(name for name in answer.classes if name in given)
    return " ".join(f"{value:.7g}" for value in values) if values else classes[0]


def _same(wanted: Sequence[str], found: Sequence[str]) -> bool:
    return len(wanted) == len(found) and all(map(_alike, wanted, found))


def _alike(wanted: str, found: str) -> bool:
    """Whether two lines are the same, or numbers that differ by rounding."""
    if wanted == found:
        return True
    try:
        one, other = ([float(part) for part in line.rpartition("=")[2].split(" ")] for line in (wanted, found))
    except ValueError:
        return False
    return len(one) == len(other) and np.allclose(one, other, rtol=CLOSE, atol=CLOSE)
