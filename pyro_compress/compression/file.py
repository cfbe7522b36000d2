"""The compressed-network file `.pcn`: write it, read it. Needs numpy and the range coder, neither torch nor Pyro.

Layout (little-endian; `docs/format.md` has the details):

    4 bytes   magic 93 50 43 4E
    1 byte    version, 1
    4 bytes   length of the header, at most 1 MiB
    ...       header: raw deflate of a JSON object with the graph, the tensors' names and shapes, and the metadata
    ...       one section per tensor: varint length, then its bytes
    4 bytes   CRC-32 of everything before

A quantised section is its step (float32) and a block of `codec`; a dense section is float32 values.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pyro_compress.compression import codec
from pyro_compress.types import Compressed, Graph, Node, Quantized

MAGIC = b"\x93PCN"
VERSION = 1
MAX_HEADER = 1 << 20
MAX_HEADER_JSON = 8 << 20
MAX_ELEMENTS = 1 << 28
"""Values that a file may hold unless the reader allows more: a gibibyte of float32."""

DICTIONARY = (
    b'"batch_norm",[],{"weight":".running_mean",".running_var"},{"eps":1e-05}],["avg_pool",["gelu","tanh","sigmoid",'
    b'"silu","pad","add",["conv1d","conv3d","provenance":{"dropout":"spike-and-slab","log-uniform","normal-jeffreys",'
    b'"gaussian","none","fashion-mnist","digits","criterion":"magnitude","group-snr","group-mode","snr"'
    b'{"graph":{"input":[1,28,28],"nodes":[["reshape",[0],{},{"shape":[784]}],["conv2d",[0],{"weight":"0.weight",'
    b'"bias":"0.bias"},{"stride":[1,1],"padding":[[0,0],[0,0]],"dilation":[1,1]}],["max_pool",[1],{},{"kernel":[2,2],'
    b'"stride":[2,2],"padding":[0,0]}],["linear",[1],{"weight":"1.weight","bias":"1.bias"},{}],["relu",[2],{},{}],'
    b'["linear",[3],{"weight":"3.weight","bias":"3.bias"},{}],["relu",[4],{},{}],["linear",[5],{"weight":"5.weight",'
    b'"bias":"5.bias"},{}]]},"tensors":[["1.weight",[300,784],1],["1.bias",[300],1],["3.weight",[100,300],1],["3.bias",'
    b'[100],1],["5.weight",[10,100],1],["5.bias",[10],1]],"meta":{"prior":"horseshoe","data":"mnist","seed":0,'
    b'"parameters_total":266610}}'
)
"""Preset deflate dictionary, part of format version 1: what most headers have in common."""


def dumps(network: Compressed) -> tuple[bytes, dict[str, int]]:
    """The bytes of a file, and how many of them each part takes.

    Raises:
        ValueError: the header is longer than the format allows, or codes span too many values.
    """
    sections = {name: _section(tensor) for name, tensor in network.tensors.items()}
    header = _deflate(_header(network))
    if len(header) > MAX_HEADER:
        raise ValueError(f"the header takes {len(header)} bytes, more than the {MAX_HEADER} that the format allows")
    data = MAGIC + bytes([VERSION]) + struct.pack("<I", len(header)) + header + b"".join(sections.values())
    parts = {"frame": len(MAGIC) + 1 + 4 + 4, "header": len(header)}
    parts |= {name: len(section) for name, section in sections.items()}
    return data + struct.pack("<I", zlib.crc32(data)), parts


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: Path, max_elements: int = MAX_ELEMENTS) -> Compressed:
    """Read a file, checking everything before it is used.

    Args:
        path: the file.
        max_elements: refuse files that declare more values than this.

    Raises:
        ValueError: not such a file, a damaged one, or one that is too large.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        return loads(data, max_elements)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def loads(data: bytes, max_elements: int = MAX_ELEMENTS) -> Compressed:
    """Decode the bytes of a file; see `read`."""
    if data[:4] != MAGIC:
        raise ValueError("not a .pcn file (its first four bytes are others)")
    if len(data) < 14:
        raise ValueError(f"truncated: {len(data)} bytes")
    if data[4] != VERSION:
        raise ValueError(f"format version {data[4]}; this program reads version {VERSION}")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ValueError("damaged: the checksum does not fit")
    reader = codec.Reader(data[5:-4])
    (length,) = struct.unpack("<I", reader.take(4))
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length} bytes, more than the {MAX_HEADER} allowed")
    graph, declared, meta = _parse_header(_inflate(reader.take(length)))
    if (total := sum(math.prod(shape) for _, shape, _ in declared)) > max_elements:
        raise ValueError(f"{total} values declared, more than the {max_elements} allowed")
    tensors = {name: _read_section(reader, shape, quantized) for name, shape, quantized in declared}
    if reader.rest():
        raise ValueError("bytes left over after the last tensor")
    if missing := {name for node in graph.nodes for name in node.parameters.values()} - set(tensors):
        raise ValueError(f"the graph uses tensors that the file does not hold: {', '.join(sorted(missing))}")
    return Compressed(graph, tensors, meta)


def dense(tensor: Quantized | np.ndarray) -> np.ndarray:
    """A tensor's values as float32."""
    if isinstance(tensor, Quantized):
        return tensor.codes.astype(np.float32) * np.float32(tensor.step)
    return tensor


def _section(tensor: Quantized | np.ndarray) -> bytes:
    if isinstance(tensor, Quantized):
        content = struct.pack("<f", tensor.step) + codec.encode(tensor.codes)
    else:
        content = tensor.astype("<f4").tobytes()
    return codec.varint(len(content)) + content


def _read_section(reader: codec.Reader, shape: tuple[int, ...], quantized: bool) -> Quantized | np.ndarray:
    content = codec.Reader(reader.take(reader.varint()))
    if quantized:
        (step,) = struct.unpack("<f", content.take(4))
        if not 0 < step < math.inf:
            raise ValueError(f"impossible step {step}")
        return Quantized(codec.decode(content.rest(), shape), step)
    values = np.frombuffer(content.take(4 * math.prod(shape)), "<f4").astype(np.float32).reshape(shape)
    if content.rest() or not np.isfinite(values).all():
        raise ValueError("a dense tensor of the wrong size or with values that are not finite")
    return values


def _header(network: Compressed) -> bytes:
    nodes = [[n.op, list(n.inputs), n.parameters, n.attributes] for n in network.graph.nodes[1:]]
    tensors = [
        [name, list((t.codes if isinstance(t, Quantized) else t).shape), int(isinstance(t, Quantized))]
        for name, t in network.tensors.items()
    ]
    graph = {"input": list(network.graph.input_shape), "nodes": nodes}
    header = {"graph": graph, "tensors": tensors, "meta": network.meta}
    return json.dumps(header, separators=(",", ":"), allow_nan=False).encode()


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(-15, DICTIONARY)
    try:
        text = unpacker.decompress(data, MAX_HEADER_JSON)
    except zlib.error as error:
        raise ValueError(f"the header cannot be unpacked: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"the header is incomplete or unpacks to more than {MAX_HEADER_JSON} bytes")
    return text


Declared = list[tuple[str, tuple[int, ...], bool]]


def _parse_header(text: bytes) -> tuple[Graph, Declared, dict[str, Any]]:
    try:
        header = json.loads(text)
        nodes = [Node("input")]
        for op, inputs, parameters, attributes in header["graph"]["nodes"]:
            if not all(0 <= int(i) < len(nodes) for i in inputs):
                raise ValueError("a node reads one that comes later")
            roles = {str(role): str(name) for role, name in parameters.items()}
            nodes.append(Node(str(op), tuple(int(i) for i in inputs), roles, dict(attributes)))
        graph = Graph(tuple(nodes), _shape(header["graph"]["input"]))
        declared = [(str(name), _shape(shape), bool(quantized)) for name, shape, quantized in header["tensors"]]
        meta = dict(header["meta"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the header is not understood: {error}") from error
    if len({name for name, _, _ in declared}) != len(declared):
        raise ValueError("the header declares a tensor twice")
    return graph, declared, meta


def _shape(values: Any) -> tuple[int, ...]:
    shape = tuple(values)
    if not all(type(size) is int and 0 <= size < 1 << 31 for size in shape) or len(shape) > 8:
        raise ValueError(f"impossible shape {shape}")
    return shape
