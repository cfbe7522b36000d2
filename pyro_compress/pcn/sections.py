"""The tensors of a file: how each is coded, and the bytes.

Every tensor has a descriptor, then come the sections of those that stand alone, then one stream that holds all tensors
coded in context (`context.py`). The writer takes for every tensor what is smaller in actual bytes.
"""

from __future__ import annotations

import math
import struct
from array import array

import numpy as np

from pyro_compress.pcn import codec, context
from pyro_compress.pcn.layout import Layout
from pyro_compress.types import Quantized

STATIC_FLOAT, CONTEXT_FLOAT, DENSE = 240, 241, 255
"""Descriptors: a block of `codec`, or context coding, with a float32 step behind it; float32 values.
Below 240: bit 0 is context coding, the rest a step of 2^((n - 100) / 4)."""
LOWEST, HIGHEST = -100, 19
MAX_CONTEXT_VALUES = 1 << 20
"""Values that a file may code in context: what bounds the time to decode it."""
MAX_CONTEXT_TENSORS = 1 << 10
MIN_STEP, MAX_STEP = 2.0**-126, 2.0**110
"""A smaller one is zero where torch flushes such numbers; times any code the largest is a float32."""

Tensors = dict[str, Quantized | np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def write(tensors: Tensors, layouts: dict[str, Layout], in_context: bool = True) -> tuple[bytes, dict[str, int]]:
    """All tensors as bytes, and how many of them each takes.

    Args:
        tensors: in the file's order.
        layouts: of those that hold values.
        in_context: False leaves context coding out: faster, and somewhat larger.

    Raises:
        ValueError: codes span too many values.
    """
    alone = {name: _section(tensor) for name, tensor in tensors.items()}
    able = [n for n, t in tensors.items() if isinstance(t, Quantized) and n in layouts] if in_context else []
    if len(able) > MAX_CONTEXT_TENSORS or sum(math.prod(layouts[name]) for name in able) > MAX_CONTEXT_VALUES:
        able = []
    stream, spent = _encode(tensors, layouts, able)
    able = [name for name in able if spent[name] <= len(alone[name])]
    stream, spent = _encode(tensors, layouts, able)
    parts, descriptors, sections = dict[str, int](), b"", b""
    for name, tensor in tensors.items():
        descriptor = _descriptor(tensor, name in able)
        section = b"" if name in able else alone[name]
        parts[name] = len(descriptor) + len(section) + spent.get(name, 0)
        descriptors, sections = descriptors + descriptor, sections + section
    return descriptors + sections + stream, parts


def read(reader: codec.Reader, shapes: Shapes, layouts: dict[str, Layout]) -> Tensors:
    """Read what `write` wrote, to the end.

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
    decoded = _decode(reader.rest(), {name: layouts.get(name, (0, 0, 0, 0)) for name in chosen})
    for name, step in chosen.items():
        found[name] = Quantized(decoded[name].reshape(shapes[name]), step)
    return {name: found[name] for name in shapes}


def context_bits(codes: np.ndarray, layout: Layout) -> float:
    """What the context coder spends on a tensor, in bits and fractions of them."""
    coder = context.Coder()
    context.code(coder, array("q", codes.astype("<i8").tobytes()), *layout)
    return 8 * coder.written() + 32 - math.log2(coder.range)


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


def _encode(tensors: Tensors, layouts: dict[str, Layout], names: list[str]) -> tuple[bytes, dict[str, int]]:
    """The stream, and the bytes that it grew by with every tensor."""
    coder, ends = context.Coder(), []
    for name in names:
        tensor = tensors[name]
        assert isinstance(tensor, Quantized)
        context.code(coder, array("q", tensor.codes.ravel().tolist()), *layouts[name])
        ends.append(coder.written())
    stream = coder.finish() if names else b""
    ends = [min(end, len(stream)) for end in ends[:-1]] + [len(stream)]
    return stream, {name: end - start for name, start, end in zip(names, [0, *ends], ends, strict=False)}


def _decode(stream: bytes, layouts: dict[str, Layout]) -> dict[str, np.ndarray]:
    total = sum(math.prod(layout) for layout in layouts.values())
    if total > MAX_CONTEXT_VALUES or len(layouts) > MAX_CONTEXT_TENSORS:
        raise ValueError(f"{total} values in {len(layouts)} tensors coded in context, more than the format allows")
    coder, found = context.Coder(stream), dict[str, np.ndarray]()
    for name, layout in layouts.items():
        values = array("q", bytes(8 * math.prod(layout)))
        context.code(coder, values, *layout)
        found[name] = np.array(values, np.int64).astype(np.int32)
    if (coder.position if layouts else 0) < len(stream):
        raise ValueError("bytes left over after the last tensor")
    return found
