"""The order of hidden units that takes the fewest bytes.

Any order of a layer's units computes the same function, and a coder that learns while it codes spends more on some
orders than on others: n units leave up to log2(n!) bits to gain. `shrink` has put them in the order of their non-zero
weights; from there single units are moved, and a move stays where the bits that the context coder spends on the tensors
it touches become fewer.
"""

from __future__ import annotations

import logging
import math
import random
from dataclasses import replace

import numpy as np
import torch

from pyro_compress.advance import advanced
from pyro_compress.compression.shrink import Units, free_units
from pyro_compress.doubts import doubt
from pyro_compress.pcn import file, streams
from pyro_compress.pcn.layout import layouts
from pyro_compress.types import Compressed, Quantized

log = logging.getLogger(__name__)

CODED = 16_000_000
"""Values that are coded in the search where nothing else is said: some seconds of the compiled coder."""
REPORTS = 100
"""How often a search says how far it has come."""
MOST_PASSES = 300
"""Passes over a small network where nothing else is said."""
SLOW = (
    "the compiled coder is missing: compression is slow, and the file larger than it has to be; install a wheel, or "
    "again where a C compiler is at hand"
)

Codes = dict[str, np.ndarray]


def reordered(network: Compressed, passes: int | None = None) -> Compressed:
    """The same network with its hidden units in an order that takes fewer bytes, or in the one they have.

    Args:
        network: as it would go into a file.
        passes: how often as many values as the network has are coded in the search. None: as many as some seconds
            allow, and none without the compiled coder, which is about a hundred times faster; 0: none.

    Returns:
        A network that computes the same up to the rounding of sums in another order.
    """
    if passes is None and not streams.COMPILED:
        doubt(log, SLOW)
    passes = passes_over(network, passes)
    if passes == 0:
        return network
    search = _Search(network)
    if search.units:
        search.run(passes * _values(network))
    return search.found()


def passes_over(network: Compressed, passes: int | None = None) -> int:
    """As many as `reordered` spends on a network; 0: it leaves the units where they are."""
    values = _values(network)
    if passes is None:
        passes = min(MOST_PASSES, CODED // max(values, 1)) if streams.COMPILED else 0
    return passes if 0 < values <= streams.MAX_VALUES else 0


def _values(network: Compressed) -> int:
    return sum(tensor.codes.size for tensor in network.tensors.values() if isinstance(tensor, Quantized))


class _Search:
    """Hill climbing over orders; deterministic.

    Attributes:
        codes: the integers of every quantised tensor, as they lie now.
        bits: what the coder spends on each.
        units: sets of units that are free to move.
        orders: where each unit of a set comes from.
    """

    def __init__(self, network: Compressed):
        self.network = network
        self.codes: Codes = {name: t.codes for name, t in network.tensors.items() if isinstance(t, Quantized)}
        dense = {name: torch.from_numpy(file.dense(tensor)) for name, tensor in network.tensors.items()}
        self.units = [units for units in free_units(network.graph, dense) if units.count > 1]
        self.orders = [np.arange(units.count) for units in self.units]
        self.layouts = layouts(network.graph, {name: tuple(tensor.shape) for name, tensor in dense.items()})
        self.random = random.Random(0)

    def run(self, budget: int) -> None:
        """Move units until this many values were coded."""
        self.bits = {name: streams.bits(codes, self.layouts[name]) for name, codes in self.codes.items()}
        chances, whole, heard = [units.count for units in self.units], budget, budget
        while budget > 0:
            (chosen,) = self.random.choices(range(len(self.units)), chances)
            units = self.units[chosen]
            order = moved(units.count, self.random)
            codes = {name: part for name, part in arranged(self.codes, units, order).items() if part.size}
            bits = {name: streams.bits(part, self.layouts[name]) for name, part in codes.items()}
            budget -= sum(part.size for part in codes.values()) + 1
            if heard - budget >= whole / REPORTS:
                heard = budget
                advanced("order of units", whole - max(budget, 0), whole)
            if sum(bits.values()) < sum(self.bits[name] for name in bits):
                self.codes |= codes
                self.bits |= bits
                self.orders[chosen] = self.orders[chosen][order]

    def found(self) -> Compressed:
        """The network with all its tensors in the order that was found."""
        tensors = dict(self.network.tensors)
        plain = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, Quantized)}
        for units, order in zip(self.units, self.orders, strict=True):
            plain |= arranged(plain, units, order)
        for name, tensor in tensors.items():
            tensors[name] = replace(tensor, codes=self.codes[name]) if isinstance(tensor, Quantized) else plain[name]
        return replace(self.network, tensors=tensors)


def moved(count: int, chance: random.Random) -> np.ndarray:
    """An order of `count` units in which one has moved; how far is log-uniform: most moves are short."""
    order = list(range(count))
    unit = chance.randrange(count)
    far = int(math.exp(chance.random() * math.log(count)))
    to = unit + far if chance.random() < 0.5 else unit - far
    order.insert(min(max(to, 0), count - 1), order.pop(unit))
    return np.array(order)


def arranged(tensors: Codes, units: Units, order: np.ndarray) -> Codes:
    """Those of the tensors that have something of each unit, with the units in another order."""
    found: Codes = {}
    for name, axis, entries in units.axes:
        if name in tensors:
            places = (order[:, None] * entries + np.arange(entries)).ravel()
            found[name] = np.ascontiguousarray(np.take(found.get(name, tensors[name]), places, axis))
    return found
