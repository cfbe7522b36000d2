"""Steps of a C program: what a rule says of an operation in C, and what it is given to say it.

Three faces: a function of single values (`Single`), a loop nest of its own (`LoopRule`), and a layer with weights
(`Layer`), whose code is `deploy.c.layers`. In a body `tag` begins the names of the loop's own tables, and `per` is what
an index is multiplied by: empty for one example, ` * LANES` for a block of them. Operations that only move values are
all one loop, `moved`: per axis of the output, what each of its places adds to the index that is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pyro_compress.types import Compressed, Node, Quantized

LOWEST = -3.402823466e38
"""The smallest float32: what max pooling sees outside of its input."""

Shape = tuple[int, int, int]
"""Channels, height, width of one example; a vector is all channels."""
Sources = list[list[int]]
"""Per row and per column, which of those before it is; -1 is the border."""


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
        op: an operation whose rule has a body, or `pad`, `affine`, `copy`, `moved`.
        inputs: values it reads: -1 is the network's input, others are indices of loops.
        shapes: theirs.
        shape: of its output.
        weights: of a layer; of `affine` and what has a number per channel, scale and bias; of `constant`, the codes.
        attributes: as in the graph; of `pad` a list `sources` of rows and columns, and `fill`.
        after: functions of single values that run over the output.
        node: of the graph, which it is a part of.
        inner: a layer that its body calls, as `{tag}_inner`.
        scratch: values that it holds behind its output while it runs.
    """

    op: str
    inputs: list[int]
    shapes: list[Shape]
    shape: Shape
    weights: Weights | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    after: list[Node] = field(default_factory=list)
    node: int = -1
    inner: Loop | None = None
    scratch: int = 0


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

    def linear(self, value: int, shape: tuple[int, ...], weights: Weights) -> int:
        """A linear layer at every position of a value, or on a vector; returns its loop."""

    def padded(self, value: int, shape: Shape, sources: Sources, fill: float) -> int:
        """Values with a border; `sources` names the row and the column that every row and column comes from."""

    def moved(self, value: int, shape: tuple[int, ...], offsets: Sequence[Sequence[int]], layer: int = 0) -> int:
        """Values in another order, some of them, or some several times.

        Args:
            value: the loop that has them.
            shape: theirs.
            offsets: per axis of the output, what each of its places adds to the index.
            layer: outputs of the layer before it that make a channel of its output; 0: it keeps no channels.
        """


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
    """A layer with weights.

    Attributes:
        turned: its weight has its inputs first.
    """

    turned: bool = False


Face = Single | LoopRule | Layer


def spatial(shape: tuple[int, ...]) -> Shape:
    """A shape as channels, height, width; further dimensions are part of the last."""
    channels, *sizes = shape or (1,)
    if len(sizes) > 2:
        sizes = [sizes[0], math.prod(sizes[1:])]
    height, width = [1] * (2 - len(sizes)) + sizes
    return channels, height, width


def strides(shape: Sequence[int]) -> list[int]:
    """By how much an index grows along every axis."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def along(shape: Sequence[int]) -> list[list[int]]:
    """The offsets of values that stay where they are."""
    return [[place * stride for place in range(size)] for size, stride in zip(shape, strides(shape), strict=True)]


def around(shape: Sequence[int], axes: Sequence[int]) -> Shape:
    """A shape as what lies before some neighbouring axes, counted from 1, these, and what lies behind them."""
    first, last = min(axes) - 1, max(axes)
    return math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])


def coded(tensor: Quantized | np.ndarray) -> tuple[np.ndarray, float]:
    """A tensor as integers, or as float32 where it has none, and what they are multiplied by."""
    return (tensor.codes, tensor.step) if isinstance(tensor, Quantized) else (tensor, 1.0)


def zero_border(size: int, before: int, after: int) -> list[int]:
    """Where the rows of a padded value come from; -1 is the border."""
    return [-1] * before + list(range(size)) + [-1] * after


def each(per: str) -> str:
    """The loop over lanes."""
    return f"for (size_t l = 0; l < 1{per}; l++)"
