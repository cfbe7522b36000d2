"""Steps of a C program that only move values: per axis of the output, what each of its places adds to an index."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_compress.graph.faces.c import LoopRule, Planning, Sources, along, around, strides
from pyro_compress.types import Node

MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""Borders, as numpy calls them."""
Offsets = Callable[[tuple[int, ...], dict[str, Any]], list[list[int]]]
"""`(shape of the input, attributes)` -> offsets per axis of the output."""


def moving(offsets: Offsets) -> LoopRule:
    """The face of an operation that only moves values."""

    def place(planning: Planning, node: Node, index: int) -> int:
        first = node.inputs[0]
        shape = planning.shapes[first]
        return planning.moved(planning.value[first], shape, offsets(shape, node.attributes))

    return LoopRule(None, place)


def permuted(shape: tuple[int, ...], a: dict[str, Any]) -> list[list[int]]:
    """Axes in another order."""
    return [along(shape)[axis - 1] for axis in a["axes"]]


def part(shape: tuple[int, ...], a: dict[str, Any]) -> list[list[int]]:
    """Some places of an axis, or a single one."""
    places = slice(a["start"], a["stop"], a.get("step", 1)) if "start" in a else slice(a["index"], a["index"] + 1)
    return [axis[places] if k == a["axis"] else axis for k, axis in enumerate(along(shape), 1)]


def repeated(shape: tuple[int, ...], a: dict[str, Any]) -> list[list[int]]:
    """Axes of one place, as often as asked for."""
    sizes = dict(zip(a["axes"], a["sizes"], strict=True))
    return [[0] * sizes[k] if k in sizes else axis for k, axis in enumerate(along(shape), 1)]


def widened(shape: tuple[int, ...], whole: tuple[int, ...]) -> list[list[int]]:
    """Axes of one place as often as a larger shape has places there."""
    pairs = zip(along(shape), whole, strict=True)
    return [axis * size if len(axis) == 1 else axis for axis, size in pairs]


def flipped(shape: tuple[int, ...], a: dict[str, Any]) -> list[list[int]]:
    """Some axes from behind."""
    return [axis[::-1] if k in a["axes"] else axis for k, axis in enumerate(along(shape), 1)]


def rolled(shape: tuple[int, ...], a: dict[str, Any]) -> list[list[int]]:
    """Some axes in a circle."""
    shifts = dict(zip(a["axes"], a["shifts"], strict=True))
    return [np.roll(axis, shifts.get(k, 0)).tolist() for k, axis in enumerate(along(shape), 1)]


def enlarged(shape: tuple[int, ...], a: dict[str, Any]) -> list[list[int]]:
    """Every place behind the first axis as often as asked for."""
    return [np.repeat(axis, times).tolist() for axis, times in zip(along(shape), [1, *a["factors"]], strict=True)]


def place_pad(planning: Planning, node: Node, index: int) -> int:
    """A border around rows and columns at once, then around one axis after the other of those before them."""
    first, sizes, mode = node.inputs[0], node.attributes["sizes"], node.attributes["mode"]
    value, shape = planning.value[first], list(planning.shapes[first])
    pairs = [(sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)]  # torch names the last dimension first
    pairs = [(0, 0)] * (len(shape) - len(pairs)) + pairs[::-1]
    sources = [_sources(size, pair, mode) for size, pair in zip(shape, pairs, strict=True)]
    inside = min(2, len(shape) - 1)
    lead = len(shape) - inside
    plane: Sources = [[0]] * (2 - inside) + sources[lead:]
    height, width = [1] * (2 - inside) + shape[lead:]
    value = planning.padded(value, (math.prod(shape[:lead]), height, width), plane, 0.0)
    shape[lead:] = [len(places) for places in sources[lead:]]
    for axis in range(lead):
        before, size, behind = around(shape, [axis + 1])
        value = planning.padded(value, (before, size, behind), [sources[axis], list(range(behind))], 0.0)
        shape[axis] = len(sources[axis])
    return value


def _sources(size: int, pair: tuple[int, int], mode: str) -> list[int]:
    """Where every place of a padded axis comes from; -1 is the border of zeros."""
    filled = {"constant_values": -1} if mode == "constant" else {}
    return [int(place) for place in np.pad(np.arange(size), pair, MODES[mode], **filled)]  # type: ignore[call-overload]


def interleaved(
    channels: int, phases: list[int], sizes: list[int], starts: list[int], ends: list[int]
) -> list[list[int]]:
    """Every so many channels as neighbouring places of the axes behind them.

    Args:
        channels: of the output.
        phases: per axis, how many of them become neighbours.
        sizes: places of every axis before.
        starts: per axis, the first place that is taken of those that there are then.
        ends: per axis, the place behind the last.
    """
    whole = strides([channels, *phases, *sizes])
    axes = [[channel * whole[0] for channel in range(channels)]]
    for k, (phase, start, end) in enumerate(zip(phases, starts, ends, strict=True)):
        near, far = whole[1 + k], whole[1 + len(phases) + k]
        axes.append([place % phase * near + place // phase * far for place in range(start, end)])
    return axes
