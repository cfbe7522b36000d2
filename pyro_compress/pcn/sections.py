"""The tensors of a file: how each is coded, and the bytes.

Every tensor has a descriptor, then come the sections of those that stand alone, then those coded in context
(`streams.py`). The writer takes for every tensor what is smaller in actual bytes.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from pyro_compress.pcn import codec, streams
from pyro_compress.pcn.layout import Layout
from pyro_compress.types import Quantized

STATIC_FLOAT, CONTEXT_FLOAT, DENSE = 240, 241, 255
"""Descriptors: a block of `codec`, or context coding, with a float32 step behind it; float32 values.
Below 240: bit 0 is context coding, the rest a step of 2^((n - 100) / 4)."""
LOWEST, HIGHEST = -100, 19
MIN_STEP, MAX_STEP = 2.0**-126, 2.0**110
"""A smaller one is zero where torch flushes such numbers; times any code the largest is a float32."""

Tensors = dict[str, Quantized | np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def write(
    tensors: Tensors, layouts: dict[str, Layout], in_context: bool = True, several: bool = False
) -> tuple[bytes, dict[str, int]]:
    """All tensors as bytes, and how many of them each takes.

    Args:
        tensors: in the file's order.
        layouts: of those that hold values.
        in_context: False leaves context coding out: faster, and somewhat larger.
        several: code in several streams, as version 6 does; else tensors that one stream cannot hold stand alone.

    Raises:
        ValueError: codes span too many values.
    """
    alone = {name: _section(tensor) for name, tensor in tensors.items()}
    codes = able(tensors, layouts) if in_context and (several or not too_many(tensors, layouts)) else {}
    stream, spent = streams.encode(codes, layouts, several)
    smaller = {name: each for name, each in codes.items() if spent[name] <= len(alone[name])}
    if smaller.keys() != codes.keys():
        stream, spent = streams.encode(smaller, layouts, several)
    parts, descriptors, sections = dict[str, int](), list[bytes](), list[bytes]()
    for name, tensor in tensors.items():
        descriptors.append(_descriptor(tensor, name in smaller))
        sections.append(b"" if name in smaller else alone[name])
        parts[name] = len(descriptors[-1]) + len(sections[-1]) + spent.get(name, 0)
    return b"".join((*descriptors, *sections, stream)), parts


def too_many(tensors: Tensors, layouts: dict[str, Layout]) -> bool:
    """Whether one stream cannot hold all that can be coded in context."""
    return not streams.fits_one({name: layouts[name] for name in able(tensors, layouts)})


def able(tensors: Tensors, layouts: dict[str, Layout]) -> dict[str, np.ndarray]:
    """Integers of the tensors that can be coded in context, by name."""
    return {name: t.codes for name, t in tensors.items() if isinstance(t, Quantized) and name in layouts}


def read(reader: codec.Reader, shapes: Shapes, layouts: dict[str, Layout], several: bool = False) -> Tensors:
    """Read what `write` wrote, to the end.

    Args:
        reader: at the first descriptor.
        shapes: of the tensors, in the file's order.
        layouts: of those that hold values.
        several: whether there are several streams, as in version 6.

    Raises:
        ValueError: truncated or inconsistent.
    """
    kinds = {name: _read_descriptor(reader) for name in shapes}
    found: Tensors = {}
    for name, (kind, step) in kinds.items():
        if kind == "dense":
            found[name] = read_dense(codec.Reader(reader.take(reader.varint())), shapes[name])
        elif kind == "static":
            found[name] = Quantized(codec.decode(reader.take(reader.varint()), shapes[name]), step)
    chosen = {name: step for name, (kind, step) in kinds.items() if kind == "context"}
    decoded = streams.decode(reader, {name: layouts.get(name, (0, 0, 0, 0)) for name in chosen}, several)
    for name, step in chosen.items():
        found[name] = Quantized(decoded[name].reshape(shapes[name]), step)
    return {name: found[name] for name in shapes}


def read_dense(content: codec.Reader, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values, all finite, and nothing behind them."""
    values = np.frombuffer(content.take(4 * math.prod(shape)), "<f4").astype(np.float32).reshape(shape)
    if content.rest() or not np.isfinite(values).all():
        raise ValueError("a dense tensor of the wrong size or with values that are not finite")
    return values


def read_step(reader: codec.Reader) -> float:
    """A float32 step, positive and no denormal, and small enough for its multiples."""
    (step,) = struct.unpack("<f", reader.take(4))
    if not MIN_STEP <= step <= MAX_STEP:
        raise ValueError(f"impossible step {step}")
    return float(step)


def _section(tensor: Quantized | np.ndarray) -> bytes:
    content = codec.encode(tensor.codes) if isinstance(tensor, Quantized) else tensor.astype("<f4").tobytes()
    return codec.varint(len(content)) + content


def _descriptor(tensor: Quantized | np.ndarray, in_context: bool) -> bytes:
    if not isinstance(tensor, Quantized):
        return bytes([DENSE])
    exponent = codec.nearest_exponent(tensor.step)
    if LOWEST <= exponent <= HIGHEST and codec.quarter_power(exponent) == tensor.step:
        return bytes([2 * (exponent - LOWEST) + in_context])
    return bytes([CONTEXT_FLOAT if in_context else STATIC_FLOAT]) + struct.pack("<f", tensor.step)


def _read_descriptor(reader: codec.Reader) -> tuple[str, float]:
    (byte,) = reader.take(1)
    if byte == DENSE:
        return "dense", 1.0
    if byte in (STATIC_FLOAT, CONTEXT_FLOAT):
        return "context" if byte == CONTEXT_FLOAT else "static", read_step(reader)
    if byte > CONTEXT_FLOAT:
        raise ValueError(f"unknown kind of tensor {byte}")
    return "context" if byte % 2 else "static", codec.quarter_power(byte // 2 + LOWEST)
