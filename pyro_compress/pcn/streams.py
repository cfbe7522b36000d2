"""Tensors coded in context: one stream of bytes, or several that are coded side by side.

A file of up to `MAX_VALUES` such values has one stream. In a larger one (version 6) tensors are cut between rows into
pieces of at most `MAX_VALUES` values, or of one row; what the coder has learned starts afresh with every piece. Pieces
fill one stream after the other up to as many values, and every stream is decoded on its own, by as many threads as
there are processors where the compiled coder is at hand.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pyro_compress.pcn import codec, context
from pyro_compress.pcn.layout import Layout

try:
    from pyro_compress.pcn.released import code  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # no compiler was at hand
    code = context.code

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Done = TypeVar("Done")

COMPILED = not str(context.__file__).endswith(".py")
"""Whether the compiled coder is at hand; it takes a hundredth of the time of the same file run by Python."""
MAX_VALUES = 1 << 20
"""Values of one stream, unless a single row has more."""
MAX_TENSORS = 1 << 10
"""Tensors of a file with one stream."""
SLOW_VALUES, PER_SECOND = 1 << 19, 30_000
"""Without the compiled coder: from how many values on it is said that they take long, and how many a second takes."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor.

    Attributes:
        name: of the tensor.
        first: the first row.
        layout: of these rows.
    """

    name: str
    first: int
    layout: Layout

    @property
    def values(self) -> int:
        """How many values it has."""
        return math.prod(self.layout)


def fits_one(layouts: dict[str, Layout]) -> bool:
    """Whether tensors may share the one stream that files before version 6 have."""
    return len(layouts) <= MAX_TENSORS and sum(math.prod(layout) for layout in layouts.values()) <= MAX_VALUES


def cut(layouts: dict[str, Layout]) -> list[list[Piece]]:
    """The pieces of tensors, as they share out in streams."""
    streams, held = list[list[Piece]](), 0
    for name, (rows, *row) in layouts.items():
        at_a_time = max(MAX_VALUES // max(math.prod(row), 1), 1)
        for first in range(0, rows, at_a_time):
            piece = Piece(name, first, (min(at_a_time, rows - first), row[0], row[1], row[2]))
            if not streams or held + piece.values > MAX_VALUES:
                streams.append([])
                held = 0
            streams[-1].append(piece)
            held += piece.values
    return streams


def encode(codes: dict[str, np.ndarray], layouts: dict[str, Layout], several: bool) -> tuple[bytes, dict[str, int]]:
    """Tensors as one stream or as several behind their lengths, and the bytes that each tensor takes.

    Args:
        codes: integers by name, in the file's order.
        layouts: of each.
        several: as version 6 has them.

    Raises:
        ValueError: an integer is too large.
    """
    chosen = {name: layouts[name] for name in codes}
    streams = cut(chosen) if several else _one(chosen)
    done = _side_by_side(lambda pieces: _encode(codes, pieces), streams)
    spent = dict.fromkeys(codes, 0)
    lengths = [codec.varint(len(stream)) if several else b"" for stream, _ in done]
    for pieces, length, (_, sizes) in zip(streams, lengths, done, strict=True):
        spent[pieces[0].name] += len(length)
        for piece, size in zip(pieces, sizes, strict=True):
            spent[piece.name] += size
    return b"".join((*lengths, *(stream for stream, _ in done))), spent


def decode(reader: codec.Reader, layouts: dict[str, Layout], several: bool) -> dict[str, np.ndarray]:
    """What `encode` wrote, to the end: integers `(rows, planes * height * width)` by name.

    Raises:
        ValueError: truncated or inconsistent.
    """
    total = sum(math.prod(layout) for layout in layouts.values())
    if not several and not fits_one(layouts):
        raise ValueError(f"{total} values in {len(layouts)} tensors coded in context, more than the format allows")
    if not COMPILED and total > SLOW_VALUES:
        log.warning(
            "decoding %d values takes about %.0f minutes: the compiled coder is missing, which takes seconds; install "
            "a wheel, or again where a C compiler is at hand", total, total / PER_SECOND / 60,
        )  # fmt: skip
    streams = cut(layouts) if several else _one(layouts)
    lengths = [reader.varint() for _ in streams] if several else []
    contents = [reader.take(length) for length in lengths] if several else [reader.rest() for _ in streams]
    if reader.rest():
        raise ValueError("bytes left over after the last tensor")
    found = {name: np.empty((rows, math.prod(row)), np.int32) for name, (rows, *row) in layouts.items()}
    _side_by_side(lambda one: _decode(one[0], one[1], found), list(zip(contents, streams, strict=True)))
    return found


def bits(codes: np.ndarray, layout: Layout) -> float:
    """What the coder spends on a tensor in one piece, in bits and fractions of them."""
    coder = context.Coder()
    context.code(coder, array("q", codes.astype("<i8").tobytes()), *layout)
    return 8 * coder.written() + 32 - math.log2(coder.range)


def _one(layouts: dict[str, Layout]) -> list[list[Piece]]:
    """All tensors in one stream, whole; none where there are no tensors."""
    pieces = [Piece(name, 0, layout) for name, layout in layouts.items() if layout[0]]
    return [pieces] if pieces else []


def _side_by_side(work: Callable[[Item], Done], items: Sequence[Item]) -> list[Done]:
    """In threads, where the coder lets go of Python's lock and there is more than one thing to do."""
    if not COMPILED or len(items) < 2:
        return list(map(work, items))
    with ThreadPoolExecutor(min(len(items), os.cpu_count() or 1)) as threads:
        return list(threads.map(work, items))


def _encode(codes: dict[str, np.ndarray], pieces: list[Piece]) -> tuple[bytes, list[int]]:
    """A stream, and the bytes that it grew by with every piece."""
    coder, ends = context.Coder(), [0]
    for piece in pieces:
        rows = codes[piece.name].reshape(-1, piece.values // piece.layout[0])[piece.first :][: piece.layout[0]]
        code(coder, array("q", rows.astype("<i8").tobytes()), *piece.layout)
        ends.append(coder.written())
    stream = coder.finish()
    ends = [min(end, len(stream)) for end in ends[:-1]] + [len(stream)]
    return stream, [end - start for start, end in itertools.pairwise(ends)]


def _decode(stream: bytes, pieces: list[Piece], found: dict[str, np.ndarray]) -> None:
    """Fill the rows that a stream holds."""
    coder = context.Coder(stream)
    for piece in pieces:
        values = array("q", bytes(8 * piece.values))
        code(coder, values, *piece.layout)
        rows = found[piece.name][piece.first :][: piece.layout[0]]
        rows[:] = np.frombuffer(values, "q").reshape(rows.shape)
    if coder.position < len(stream):
        raise ValueError("bytes left over after the last tensor")
