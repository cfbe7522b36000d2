"""The compressed-network file `.pcn`: write it, read it. Needs numpy and the range coder, neither torch nor Pyro.

Layout (little-endian; `docs/format.md` has the details):

    4 bytes   magic 93 50 43 4E
    1 byte    version, 4; 3 where the header names a template, 5 where it says more than version 4 can, 6 in large files
    ...       header: the network by a template's number and widths, or spelled out, and the metadata
    ...       one descriptor per tensor, the sections of those that stand alone, the streams of those coded in context
    4 bytes   CRC-32 of everything before

Version 2, whose header is packed with other dictionaries, and version 1, which had a longer header and one section per
tensor, are still read.

What a header says passes the gate (`gate.check`, `meta.check_meta`) before a tensor is decoded.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pyro_compress.foreign import ordinary
from pyro_compress.pcn import codec, header, sections
from pyro_compress.pcn.gate import DEFAULT, UNLIMITED, Limits, Plan, check
from pyro_compress.pcn.layout import layouts
from pyro_compress.pcn.meta import check_meta
from pyro_compress.types import Compressed, Graph, Quantized

MAGIC = b"\x93PCN"
VERSION = header.NEWEST


def dumps(network: Compressed, in_context: bool = True) -> tuple[bytes, dict[str, int]]:
    """The bytes of a file, and how many of them each part takes.

    Args:
        network: what to write.
        in_context: False leaves the context coder out: an upper bound on the size, in less time.

    Raises:
        ValueError: the header is longer than the format allows, or codes span too many values.
    """
    found = written(network, in_context, several=False)
    if in_context and sections.too_many(network.tensors, layouts(network.graph, shapes_of(network))):
        found = min(found, written(network, in_context, several=True), key=lambda one: len(one[0]))
    return found


def written(network: Compressed, in_context: bool, several: bool) -> tuple[bytes, dict[str, int]]:
    """As `dumps`; `several` says whether what is coded in context lies in several streams, as in version 6."""
    tensors, shapes = network.tensors, shapes_of(network)
    version, head = header.write(network.graph, shapes, network.meta, several)
    body, parts = sections.write(tensors, layouts(network.graph, shapes, version), in_context, several)
    data = b"".join((MAGIC, bytes([version]), head, body))
    parts = {"frame": len(MAGIC) + 1 + 4, "header": len(head)} | parts
    return b"".join((data, struct.pack("<I", zlib.crc32(data)))), parts


def parts_of(data: bytes, network: Compressed) -> dict[str, int]:
    """How many bytes of a file each part takes; nothing of one that an older version wrote, or another writer.

    Args:
        data: the bytes.
        network: what they hold.
    """
    try:
        written, parts = dumps(network)
    except ValueError:  # another writer packs more into a header than this one can
        return {}
    return parts if written == data else {}


def read(path: Path, limits: Limits = DEFAULT) -> Compressed:
    """Read a file, checking everything before it is used.

    Args:
        path: the file.
        limits: what it may ask for (`gate.limited`).

    Raises:
        ValueError: not such a file, a damaged one, or one that is too large.
        OSError: the file cannot be read.
    """
    data = ordinary(path).read_bytes()
    try:
        return loads(data, limits)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def loads(data: bytes, limits: Limits = DEFAULT) -> Compressed:
    """Decode the bytes of a file; see `read`."""
    if data[:4] != MAGIC:
        raise ValueError("not a .pcn file (its first four bytes are others)")
    if len(data) < 9:
        raise ValueError(f"truncated: {len(data)} bytes")
    if not 1 <= data[4] <= VERSION:
        raise ValueError(f"format version {data[4]}; this program reads versions 1 to {VERSION}")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ValueError("damaged: the checksum does not fit")
    reader = codec.Reader(data[5:-4])
    return _loads_first(reader, limits) if data[4] == 1 else _loads(reader, data[4], limits)


def _loads(reader: codec.Reader, version: int, limits: Limits) -> Compressed:
    graph, shapes, meta = header.read(reader, version)
    meta = _checked(graph, shapes, meta, limits)
    several = version >= header.OF_STREAMS
    return Compressed(graph, sections.read(reader, shapes, layouts(graph, shapes, version), several), meta)


def _loads_first(reader: codec.Reader, limits: Limits) -> Compressed:
    (length,) = struct.unpack("<I", reader.take(4))
    if length > header.MAX_HEADER:
        raise ValueError(f"a header of {length} bytes, more than the {header.MAX_HEADER} allowed")
    graph, declared, meta = header.parse(header.inflate(reader.take(length)), 1)
    meta = _checked(graph, {name: shape for name, shape, _ in declared}, meta, limits)
    tensors: dict[str, Quantized | np.ndarray] = {}
    for name, shape, quantized in declared:
        content = codec.Reader(reader.take(reader.varint()))
        if quantized:
            step = sections.read_step(content)
            tensors[name] = Quantized(codec.decode(content.rest(), shape), step)
        else:
            tensors[name] = sections.read_dense(content, shape)
    if reader.rest():
        raise ValueError("bytes left over after the last tensor")
    return Compressed(graph, tensors, meta)


def _checked(graph: Graph, shapes: dict[str, tuple[int, ...]], meta: Any, limits: Limits) -> dict[str, Any]:
    """The metadata, if they and the network pass the gate."""
    plan = check(graph, shapes, limits)
    return check_meta(meta, graph.input_shape, plan.output)


def shapes_of(network: Compressed) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name."""
    return {name: (t.codes if isinstance(t, Quantized) else t).shape for name, t in network.tensors.items()}


def spelled_out_bytes(network: Compressed, header_bytes: int, file_bytes: int) -> int:
    """Size of a file of this network whose header names no template and has no preset dictionary."""
    return file_bytes - header_bytes + header.spelled_out(network.graph, shapes_of(network), network.meta)


def plan_of(network: Compressed, limits: Limits = UNLIMITED) -> Plan:
    """What the gate says of a network at hand: shapes behind every node, what running it holds."""
    return check(network.graph, shapes_of(network), limits)


def dense(tensor: Quantized | np.ndarray) -> np.ndarray:
    """A tensor's values as float32."""
    if isinstance(tensor, Quantized):
        values = tensor.codes.astype(np.float32)
        values *= np.float32(tensor.step)
        return values
    return tensor
