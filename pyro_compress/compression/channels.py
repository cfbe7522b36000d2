"""Channels while a network is made smaller: which of them must agree, which are alive, in which order they stay.

Every channel of every layer has a number. Channels that must agree (both sides of an addition, all rows of a head of
attention) are joined, and go together. What a layer makes is one *range* of numbers; where it is met as a whole
everywhere, its channels may change places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(eq=False)
class Value:
    """What is known of one node's output.

    Attributes:
        shape: of one example.
        axes: where its channels lie, the batch being 0, ascending; none where they were not followed: all stay.
        ids: the channel's number of every entry along these axes.
        constant: value of every entry along them, NaN where it varies, float64.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    ids: Tensor = field(default_factory=_none)
    constant: Tensor = field(default_factory=lambda: varying(0))

    def spread(self, axes: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Numbers and constants with a dimension for each of more axes, of size 1 where no channels lie."""
        sizes = [self.shape[axis - 1] if axis in self.axes else 1 for axis in axes]
        return self.ids.reshape(sizes), self.constant.reshape(sizes)


class Spaces:
    """All channels of a network.

    Attributes:
        ranges: the numbers that were made together, first and one behind the last.
        root: number -> the one that stands for all that it was joined with; known when settled, as all below.
        fixed: by number that stands for others: whether it stays in any case.
        alive: likewise: whether it still stays.
        group: likewise: which range it may change places in; -1: none.
        place: likewise: where in its range it is.
    """

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.parent: list[int] = []  # union-find
        self.stay: list[Tensor] = []
        self.rigid: list[Tensor] = []  # ranges of these keep their order
        self.root = self.fixed = self.alive = self.group = self.place = _none()

    def new(self, channels: int, fixed: bool = False) -> Tensor:
        """Channels of their own."""
        start = len(self.parent)
        self.parent += range(start, start + channels)
        self.ranges.append((start, start + channels))
        ids = torch.arange(start, start + channels)
        if fixed:
            self.stay.append(ids)
        return ids

    def find(self, one: int) -> int:
        """The number that stands for one."""
        while self.parent[one] != one:
            self.parent[one] = self.parent[self.parent[one]]
            one = self.parent[one]
        return one

    def fix(self, *values: Value) -> None:
        """All channels of these values stay."""
        self.stay += [value.ids.flatten() for value in values]

    def keep_order(self, value: Value) -> None:
        """The channels of a value do not change places: it is cut along them, or moved."""
        self.rigid.append(value.ids.flatten())

    def join(self, one: Tensor, other: Tensor) -> None:
        """Channels go together, entry by entry."""
        one, other = torch.broadcast_tensors(one, other)
        differs = one != other
        if differs.any():
            for a, b in set(zip(one[differs].tolist(), other[differs].tolist(), strict=True)):
                first, second = sorted((self.find(a), self.find(b)))
                self.parent[second] = first

    def along(self, ids: Tensor, dims: tuple[int, ...]) -> None:
        """All entries that differ in the other dimensions alone go together."""
        first = ids
        for dim in range(ids.dim()):
            if dim not in dims:
                first = first.narrow(dim, 0, 1)
        self.join(first, ids)

    def restrict(self, value: Value, axes: tuple[int, ...]) -> Value:
        """The value as one whose channels lie along some of its axes alone: what lies across goes together."""
        axes = tuple(axis for axis in value.axes if axis in axes)
        if axes == value.axes:
            return value
        if not axes:
            self.fix(value)
            return Value(value.shape)
        self.keep_order(value)
        self.along(value.ids, tuple(dim for dim, axis in enumerate(value.axes) if axis in axes))
        ids, low, high = value.ids, value.constant, value.constant
        for dim in reversed(range(len(value.axes))):
            if value.axes[dim] not in axes:
                ids, low, high = ids.select(dim, 0), low.amin(dim), high.amax(dim)
        return Value(value.shape, axes, ids, torch.where(low == high, low, torch.nan))

    # --- once all is joined

    def settle(self, values: Iterable[Value]) -> None:
        """Know who stands for whom, who stays, and who may change places.

        A value whose channels lie along several axes is cut along one of them: the one that leaves most of a choice.
        """
        for value in values:
            if len(value.axes) > 1:
                self.keep_order(value)
                self.along(value.ids, (self.widest(value.ids),))
        self.root = torch.tensor([self.find(one) for one in range(len(self.parent))], dtype=torch.int64)
        size = len(self.root)
        self.fixed, self.alive = torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
        rigid = torch.zeros(size, dtype=torch.bool)
        for marks, found in ((self.fixed, self.stay), (rigid, self.rigid)):
            for ids in found:
                marks[self.root[ids]] = True
        self.group, self.place = torch.full((size,), -1), torch.zeros(size, dtype=torch.int64)
        bound = (rigid | self.fixed).numpy()
        roots = [self.root[start:end].numpy() for start, end in self.ranges]
        first: dict[int, int] = {}  # number that stands for others -> the first range that has it
        for index, there in enumerate(roots):
            owners = {first.setdefault(one, index) for one in there.tolist()}
            alike = len(owners) == 1 and np.array_equal(roots[min(owners)], there)
            if bound[there].any() or not alike or len(set(there.tolist())) < len(there):
                for owner in owners:
                    bound[roots[owner]] = True
                bound[there] = True
        for index, there in enumerate(roots):
            if first[int(there[0])] == index and not bound[there].any():
                self.group[there] = index
                self.place[there] = torch.arange(len(there))

    def widest(self, ids: Tensor) -> int:
        """The dimension along which most channels can go one by one."""
        stays = {self.find(one) for fixed in self.stay for one in set(fixed.tolist())}
        best, most = 0, -1
        for dim in range(ids.dim()):
            rows = ids.movedim(dim, 0).flatten(1).tolist()
            owner: dict[int, int] = {}
            parts = list(range(len(rows)))
            for index, row in enumerate(rows):
                for one in {self.find(one) for one in row}:
                    a, b = _end(parts, owner.setdefault(one, index)), _end(parts, index)
                    parts[max(a, b)] = min(a, b)
            stuck = {_end(parts, owner[one]) for one in owner if one in stays}
            found = len({_end(parts, index) for index in range(len(rows))} - stuck)
            if found > most:
                best, most = dim, found
        return best

    def live(self, value: Value) -> Tensor:
        """Which entries along the channels' axes of a value are alive."""
        return self.alive[self.root[value.ids]]

    def is_fixed(self, value: Value) -> bool:
        """Whether all channels of a value stay in any case."""
        return bool(self.fixed[self.root[value.ids]].all())

    def mark(self, read: Tensor, value: Value, entries: Tensor) -> None:
        """Note in `read` the channels of which some entry is read."""
        read[self.root[value.ids[entries]]] = True

    def count(self, made: Tensor, value: Value, counts: Tensor) -> None:
        """Add to `made` what the entries of every channel have together."""
        made.index_add_(0, self.root[value.ids], counts.to(made.dtype))

    def ranks(self, made: Tensor) -> Tensor:
        """Where every channel goes among those that it may change places with: those with most first."""
        ranks = torch.zeros(len(self.root), dtype=torch.int64)
        for start, end in self.ranges:
            roots = self.root[start:end]
            if self.group[roots[0]] >= 0:
                live = roots[self.alive[roots]]
                ranks[live[torch.argsort(made[live], descending=True, stable=True)]] = torch.arange(len(live))
        return ranks

    def runs(self, value: Value) -> Tensor:
        """Per entry of a value with channels along one axis, the how manieth run of a whole range it belongs to."""
        roots = self.root[value.ids]
        group, place = self.group[roots], self.place[roots]
        begins = (group[1:] != group[:-1]) | (place[1:] < place[:-1])
        return torch.cat([torch.zeros(1, dtype=torch.int64), begins.to(torch.int64).cumsum(0)])

    def kept(self, value: Value, ranks: Tensor) -> Tensor:
        """Indices along the channels' axis of the entries that stay, in their new order."""
        live = self.live(value).nonzero().flatten()
        keys = (ranks[self.root[value.ids]][live].numpy(), self.runs(value)[live].numpy())
        return live[torch.from_numpy(np.lexsort(keys))]

    def sizes(self, value: Value) -> tuple[int, ...]:
        """Shape of a value once it is cut."""
        sizes = list(value.shape)
        for axis in value.axes:
            sizes[axis - 1] = int(self.there(value, axis).sum())
        return tuple(sizes)

    def there(self, value: Value, axis: int) -> Tensor:
        """Which places along one axis of its channels stay."""
        live = self.live(value).movedim(value.axes.index(axis), 0)
        return live.reshape(len(live), -1).any(1)


def _end(parts: list[int], one: int) -> int:
    while parts[one] != one:
        one = parts[one]
    return one


def varying(channels: int) -> Tensor:
    """Channels of which nothing is known."""
    return torch.full((channels,), torch.nan, dtype=torch.float64)
