"""Steps of a C program: what a rule says of an operation in C, and what it is given to say it.

Three faces: a function of single values (`Single`), a loop nest of its own (`LoopRule`), and a layer with weights
(`Layer`), whose code is `deploy.c.layers`. In a body `tag` begins the names of the loop's own tables, and `per` is what
an index is multiplied by: empty for one example, ` * LANES` for a block of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pyro_compress.types import Compressed, Node

LOWEST = -3.402823466e38
"""The smallest float32: what max pooling sees outside of its input."""

Shape = tuple[int, int, int]
"""Channels, height, width of one example; a vector is all channels."""


@dataclass(frozen=True)
class Weights:
    """The non-zeros of a layer and what its sums become: `sum * scale + bias`.

    Attributes:
        codes: `(out, in / groups, height, width)`, integers or float32.
        scale: one number, or one per output.
        bias: one per output.
        stride: of rows and columns; `dilation` likewise.
        groups: groups of channels.
    """

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass
class Loop:
    """One loop nest.

    Attributes:
        op: an operation whose rule has a body, or `pad`, `affine`, `copy`.
        inputs: values it reads: -1 is the network's input, others are indices of loops.
        shapes: theirs.
        shape: of its output.
        weights: of a layer; of `affine` and what has a number per channel, scale and bias; of `constant`, the codes.
        attributes: as in the graph; of `pad` a list `sources` of rows and columns, and `fill`.
        after: functions of single values that run over the output.
    """

    op: str
    inputs: list[int]
    shapes: list[Shape]
    shape: Shape
    weights: Weights | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    after: list[Node] = field(default_factory=list)


class Planning(Protocol):
    """The plan so far, as a rule sees it.

    Attributes:
        network: what is exported.
        shapes: of one example's value behind every node.
        value: node of the graph -> the loop that computes it (-1: the input).
    """

    network: Compressed
    shapes: tuple[tuple[int, ...], ...]
    value: dict[int, int]

    def add(self, loop: Loop) -> int:
        """Append a loop; returns its index."""

    def padded(self, source: int, sources: list[list[int]], fill: float) -> int:
        """Values with a border; `sources` names the row and the column that every row and column comes from."""


Body = Callable[[str, Loop, str], str]
"""`(tag, loop, per)` -> the lines of the loop's function."""


@dataclass(frozen=True)
class Single:
    """A function of single values `v`, which runs over the output of the loop before it.

    Attributes:
        expression: what becomes of `v`, given the attributes.
    """

    expression: Callable[[dict[str, Any]], str]


def placed(planning: Planning, node: Node, index: int) -> int:
    """A loop that reads values as they are, and has the attributes of its node."""
    values, planes = [planning.value[i] for i in node.inputs], [spatial(planning.shapes[i]) for i in node.inputs]
    return planning.add(Loop(node.op, values, planes, spatial(planning.shapes[index]), None, dict(node.attributes)))


@dataclass(frozen=True)
class LoopRule:
    """A loop nest of its own.

    Attributes:
        body: what it does; None where `place` adds loops of other operations only.
        place: puts it into a plan, returns the loop that has its value, and refuses what it cannot do.
        tables: the constants of a loop, given its tag.
    """

    body: Body | None
    place: Callable[[Planning, Node, int], int] = placed
    tables: Callable[[str, Loop], str] = lambda tag, loop: ""


@dataclass(frozen=True)
class Layer:
    """A layer with weights."""


Face = Single | LoopRule | Layer


def spatial(shape: tuple[int, ...]) -> Shape:
    """A shape as channels, height, width.

    Raises:
        ValueError: more dimensions, or none.
    """
    if not 0 < len(shape) <= 3:
        raise ValueError(f"values of shape {shape} are not supported in C: vectors, series and images only")
    channels, *sizes = shape
    height, width = [1] * (2 - len(sizes)) + sizes
    return channels, height, width


def zero_border(size: int, before: int, after: int) -> list[int]:
    """Where the rows of a padded value come from; -1 is the border."""
    return [-1] * before + list(range(size)) + [-1] * after


def each(per: str) -> str:
    """The loop over lanes."""
    return f"for (size_t l = 0; l < 1{per}; l++)"
