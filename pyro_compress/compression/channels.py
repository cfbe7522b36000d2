"""Channels while a network is made smaller: which of them must agree, which are alive, what is known of their values.

Channels that must agree (both sides of an addition) form one *space* and go together. The channels of a value are parts
of spaces, one behind the other: one part behind a layer, several behind a concatenation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Part = tuple[int, int]
"""A space, and how many entries along the axis each of its channels has: after flattening, the number of pixels."""


@dataclass
class Value:
    """What is known of one node's output.

    Attributes:
        shape: of one example.
        constant: value per entry along the channels' axis, NaN where it varies, float64.
        parts: spaces that its channels belong to.
        axis: where the channels lie, the batch being 0: 1, or the last one behind a linear layer.
    """

    shape: tuple[int, ...]
    constant: Tensor
    parts: tuple[Part, ...]
    axis: int = 1


class Spaces:
    """All spaces of a network.

    Attributes:
        fixed: those whose channels all stay.
        alive: space -> which of its channels are alive.
        several: those that are a part beside others somewhere.
    """

    def __init__(self) -> None:
        self.parent: list[int] = []  # union-find
        self.fixed: set[int] = set()
        self.alive: dict[int, Tensor] = {}
        self.several: set[int] = set()

    def new(self, channels: int, fixed: bool = False) -> tuple[Part, ...]:
        """A space of its own, as the only part of a value."""
        space = len(self.parent)
        self.parent.append(space)
        self.alive[space] = torch.ones(channels, dtype=torch.bool)
        if fixed:
            self.fixed.add(space)
        return ((space, 1),)

    def find(self, space: int) -> int:
        """The space that stands for all that it was joined with."""
        while self.parent[space] != space:
            space = self.parent[space]
        return space

    def fix(self, *values: Value) -> None:
        """All channels of these values stay."""
        self.fixed |= {self.find(space) for value in values for space, _ in value.parts}

    def is_fixed(self, space: int) -> bool:
        """Whether the channels of a space all stay."""
        return self.find(space) in self.fixed

    def form(self, value: Value) -> list[tuple[int, int]]:
        """Channels and entries per channel of every part."""
        return [(len(self.alive[self.find(space)]), factor) for space, factor in value.parts]

    def join(self, a: Value, b: Value) -> None:
        """The channels of two values go together; where they are not of one form, all stay."""
        if self.form(a) != self.form(b):
            self.fix(a, b)
            return
        for (one, _), (two, _) in zip(a.parts, b.parts, strict=True):
            first, second = self.find(one), self.find(two)
            if first != second:
                self.parent[second] = first
                if second in self.fixed:
                    self.fixed.add(first)
                if second in self.several:
                    self.several.add(first)

    def behind(self, values: list[Value]) -> tuple[Part, ...]:
        """The parts of values that are put one behind the other."""
        parts = tuple(part for value in values for part in value.parts)
        if len(parts) > 1:
            self.several |= {self.find(space) for space, _ in parts}
        return parts

    def live(self, value: Value) -> Tensor:
        """Which entries along the channels' axis of a value are alive."""
        return torch.cat([self.alive[self.find(space)].repeat_interleave(factor) for space, factor in value.parts])

    def mark(self, read: dict[int, Tensor], value: Value, entries: Tensor) -> None:
        """Note in `read` the channels of which some entry is read."""
        sizes = [channels * factor for channels, factor in self.form(value)]
        for (space, factor), some in zip(value.parts, entries.split(sizes), strict=True):
            read[self.find(space)] |= some.view(-1, factor).any(1)

    def count(self, made: dict[int, Tensor], value: Value, counts: Tensor) -> None:
        """Add to `made` what the entries of every channel have together."""
        sizes = [channels * factor for channels, factor in self.form(value)]
        for (space, factor), some in zip(value.parts, counts.split(sizes), strict=True):
            made[self.find(space)] += some.view(-1, factor).sum(1)

    def kept(self, value: Value, orders: dict[int, Tensor]) -> Tensor:
        """Indices along the channels' axis of the entries that stay, in their new order."""
        found, start = [], 0
        for (space, factor), (channels, _) in zip(value.parts, self.form(value), strict=True):
            order = orders[self.find(space)]
            found.append(start + (order[:, None] * factor + torch.arange(factor)).flatten())
            start += channels * factor
        return torch.cat(found)


def varying(channels: int) -> Tensor:
    """Channels of which nothing is known."""
    return torch.full((channels,), torch.nan, dtype=torch.float64)
