"""Integers <-> bytes: range coding of one tensor's codes with a static model that the block itself carries.

A block is `flags`, an optional mask of live columns, the model's parameters, and the range coder's words:

- model 0: every code is zero, nothing follows;
- model 1 (table): zig-zag varint of the smallest code, varint number of codes, one varint count per code;
- model 2 (geometric): a byte `z`, a byte `r` and a varint K. The weight of 0 is `z / 256` of the total, that of ±k
  falls by `r / 256` per step up to K.

Models are built from transmitted integers by integer arithmetic, and constriction turns counts into its own fixed-point
frequencies, so a file decodes identically on every machine. `encode` writes the smallest block it finds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import constriction
import numpy as np

from pyro_compress.types import BLOCK, blocks, rows_of

ZERO, TABLE, GEOMETRIC = 0, 1, 2
COLUMNS = 4
MAX_ALPHABET = 1 << 16
"""Largest number of distinct codes of a tensor."""
_SCALE = 1 << 30


class Reader:
    """Reads a byte string from front to back; whatever reaches beyond its end is a ValueError."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count < 0 or self.position + count > len(self.data):
            raise ValueError(f"truncated: {count} bytes wanted at {self.position} of {len(self.data)}")
        self.position += count
        return self.data[self.position - count : self.position]

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self.data) - self.position)

    def varint(self) -> int:
        """Unsigned LEB128, below 2**35."""
        value = 0
        for shift in range(0, 35, 7):
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number is longer than five bytes")


def varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


_ROOTS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)


def quarter_power(exponent: int) -> float:
    """2^(exponent / 4) as float32, the same on every machine."""
    return float(np.float32(math.ldexp(_ROOTS[exponent % 4], exponent // 4)))


def nearest_exponent(step: float) -> int:
    """The exponent whose `quarter_power` is nearest to a step, on a logarithmic scale."""
    return round(4 * math.log2(step))


def encode(codes: np.ndarray) -> bytes:
    """Encode integers of any shape; `decode` needs the shape.

    Raises:
        ValueError: codes span more than `MAX_ALPHABET` values.
    """
    matrix = _matrix(codes)
    if not matrix.any():
        return bytes([ZERO])
    low, high = int(matrix.min()), int(matrix.max())
    if max(high, -low, high - low) >= MAX_ALPHABET // 2:
        raise ValueError(f"codes from {low} to {high} are too many to code; use a coarser step")
    live = matrix.any(0)
    found = _blocks(matrix, b"", 0)
    if not live.all():
        found += _blocks(matrix[:, live], np.packbits(live).tobytes(), COLUMNS)
    return _smallest(found)


def decode(block: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decode a block into int32 codes of this shape.

    Raises:
        ValueError: the block is truncated or inconsistent.
    """
    codes = np.zeros(shape, np.int32)
    matrix = _matrix(codes)
    reader = Reader(block)
    (flags,) = reader.take(1)
    model, masked = flags & 3, flags & COLUMNS
    if flags > 7 or model > GEOMETRIC:
        raise ValueError(f"unknown coding {flags}")
    if model == ZERO:
        return codes
    live = np.ones(matrix.shape[1], bool)
    if masked:
        packed = np.frombuffer(reader.take((matrix.shape[1] + 7) // 8), np.uint8)
        live = np.unpackbits(packed, count=matrix.shape[1]).astype(bool)
    low, counts = _read_table(reader) if model == TABLE else _read_geometric(reader)
    count = matrix.shape[0] * int(live.sum())
    if count:
        _decode_words(reader.rest(), low, counts, matrix, live)
    return codes


def _matrix(codes: np.ndarray) -> np.ndarray:
    """View as `(out, rest)`; vectors are one row."""
    return codes.reshape(len(codes), math.prod(codes.shape[1:])) if codes.ndim > 1 else codes.reshape(1, -1)


class _Block(NamedTuple):
    """A block to come.

    Attributes:
        front: what stands before the words.
        values: the codes.
        low: the first code of the model.
        counts: of the model.
        expected: how long the block will be, in bytes.
    """

    front: bytes
    values: np.ndarray
    low: int
    counts: np.ndarray
    expected: float

    def made(self) -> bytes:
        return self.front + _encode_words(self.values, self.low, self.counts)


def _smallest(found: list[_Block]) -> bytes:
    """The shortest block; of many values, those that are expected to be longer by far are not made."""
    least = min(block.expected for block in found)
    most = 1.02 * least + 1000 if found[0].values.size > BLOCK else math.inf
    return min((block.made() for block in found if block.expected <= most), key=len)


def _blocks(matrix: np.ndarray, mask: bytes, flag: int) -> list[_Block]:
    """The block under each model."""
    values = matrix.ravel()
    low, span = int(values.min()), int(values.max()) - int(values.min()) + 1
    histogram = np.zeros(span, np.int64)
    for part in blocks(values):
        histogram += np.bincount(part - low, minlength=span)
    table = varint(2 * low if low >= 0 else -2 * low - 1) + varint(span) + b"".join(varint(int(c)) for c in histogram)
    zero, ratio, bound = _fit_geometric(low, histogram)
    falling = _geometric(zero, ratio, bound)
    found = []
    for kind, front, first, counts in (
        (TABLE, table, low, histogram), (GEOMETRIC, bytes([zero, ratio]) + varint(bound), -bound, falling)
    ):  # fmt: skip
        shares = counts[low - first :][:span] / counts.sum()
        bits = -float((histogram * np.log2(shares, where=histogram > 0, out=np.zeros(span))).sum())
        found.append(_Block(bytes([kind | flag]) + mask + front, values, first, counts, len(mask + front) + bits / 8))
    return found


def _read_table(reader: Reader) -> tuple[int, np.ndarray]:
    zigzag, span = reader.varint(), reader.varint()
    low = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    if not 0 < span < MAX_ALPHABET or abs(low) >= MAX_ALPHABET:
        raise ValueError(f"impossible alphabet: {span} codes from {low}")
    counts = np.array([reader.varint() for _ in range(span)], np.int64)
    if not counts.any():
        raise ValueError("a frequency table without any count")
    return low, counts


def _read_geometric(reader: Reader) -> tuple[int, np.ndarray]:
    zero, ratio = reader.take(2)
    bound = reader.varint()
    if not 0 < bound < MAX_ALPHABET // 2:
        raise ValueError(f"impossible bound {bound} of a geometric model")
    return -bound, _geometric(zero, ratio, bound)


def _geometric(zero: int, ratio: int, bound: int) -> np.ndarray:
    """Counts of -bound..bound, by integer arithmetic; every count is at least 1."""
    side, weight = np.ones(bound, np.int64), _SCALE
    for place in range(bound):
        side[place], weight = weight, weight * ratio >> 8
        if not weight:  # all others are 1
            break
    middle = max(2 * int(side.sum()) * zero // (256 - zero), 1)
    return np.concatenate([side[::-1], [middle], side])


def _fit_geometric(low: int, histogram: np.ndarray) -> tuple[int, int, int]:
    """Parameters of the geometric model with the fewest bits, among all ratios."""
    values = np.arange(low, low + len(histogram))
    bound = int(np.abs(values[histogram > 0]).max())
    total = histogram.sum()
    zeros = int(histogram[-low]) if 0 <= -low < len(histogram) else 0
    zero = int(np.clip(round(256 * zeros / total), 0, 255))
    distances = np.bincount(np.abs(values), weights=histogram, minlength=bound + 1)[1 : bound + 1]
    steps = np.arange(bound)
    ratios = np.arange(1, 256)
    # bits of the magnitudes under a truncated geometric law, for all ratios at once
    log_ratio = np.log2(ratios / 256)
    norm = np.log2((1 - (ratios / 256) ** bound) / (1 - ratios / 256))
    bits = distances.sum() * norm - log_ratio * (distances * steps).sum()
    return zero, int(ratios[np.argmin(bits)]), bound


def _model(counts: np.ndarray) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)


def _encode_words(values: np.ndarray, low: int, counts: np.ndarray) -> bytes:
    """Range-coded values under a model whose first code is `low`; trailing zero bytes are left out."""
    if len(counts) == 1:
        return b""
    encoder, model = constriction.stream.queue.RangeEncoder(), _model(counts)
    for part in blocks(values):
        encoder.encode((part - low).astype(np.int32, copy=False), model)
    words: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return words.rstrip(b"\0")


def _decode_words(data: bytes, low: int, counts: np.ndarray, matrix: np.ndarray, live: np.ndarray) -> None:
    """Fill the live columns of a matrix, row by row, with what `_encode_words` coded."""
    if len(counts) == 1:
        matrix[:, live] = low
        return
    width = int(live.sum())
    words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
    try:
        decoder, model = constriction.stream.queue.RangeDecoder(words), _model(counts)
        for rows in rows_of((len(matrix), width)):
            part = matrix[rows]
            part[:, live] = decoder.decode(model, len(part) * width).reshape(-1, width) + low
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ValueError(f"range decoder: {error}") from error
