"""Hidden units of recurrent layers, across their gates: which are silent, who is needed, which rows are theirs.

LSTM and GRU have a block of rows for every gate, a row of each for every unit; the third block is the candidate: what a
unit's state moves towards. A unit whose candidate is always 0 begins with 0 and stays there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

CANDIDATE = 2
"""Block of the candidate among the gates of LSTM (i, f, g, o) and GRU (r, z, n)."""


def silent(tensors: Mapping[str, Tensor], units: int) -> Tensor:
    """Which units give 0 at every step: the rows of their candidate are zero, biases too.

    Args:
        tensors: of the layer, by role.
        units: hidden units.
    """
    rows = slice(CANDIDATE * units, (CANDIDATE + 1) * units)
    found = torch.ones(units, dtype=torch.bool)
    for tensor in tensors.values():
        found &= (tensor[rows].reshape(units, -1) == 0).all(1)
    return found


def needed(read: Tensor, across: Tensor) -> Tensor:
    """The units that are read, and those that they need in turn; a unit that only itself and its like read is none.

    Args:
        read: which units somebody else reads.
        across: the recurrent weight, `(gates · units, units)`.
    """
    units = across.shape[1]
    uses = (across != 0).view(-1, units, units).any(0)  # row: who reads, column: whom
    while True:
        more = read | uses[read].any(0)
        if torch.equal(more, read):
            return read
        read = more


def rows_of_units(keep: Tensor, units: int, rows: int) -> Tensor:
    """Rows of all gates of some units, gate by gate."""
    return torch.cat([keep + start for start in range(0, rows, units)])
