"""The compressed file: literal bytes, round trips, hostile input."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyro_compress.compression import file
from pyro_compress.types import Compressed, Graph, Node, Quantized


def tiny(codes: np.ndarray | None = None) -> Compressed:
    codes = np.array([[0, 0, 1], [0, -1, 0]], np.int32) if codes is None else codes
    graph = Graph((Node("input"), Node("linear", (0,), {"weight": "w", "bias": "b"})), (codes.shape[1],))
    bias = np.arange(len(codes), dtype=np.float32)
    return Compressed(graph, {"w": Quantized(codes, 0.25), "b": bias}, {"prior": "none", "parameters_total": 8})


def same(a: Compressed, b: Compressed) -> bool:
    tensors = all(np.array_equal(file.dense(a.tensors[name]), file.dense(b.tensors[name])) for name in a.tensors)
    return a.graph == b.graph and a.meta == b.meta and list(a.tensors) == list(b.tensors) and tensors


def sealed(data: bytes) -> bytes:
    """The bytes of a file with a checksum that fits."""
    return data + struct.pack("<I", zlib.crc32(data))


def test_literal_bytes() -> None:
    """A file written by version 1, byte by byte; if this changes, the version must."""
    data, parts = file.dumps(tiny())
    assert data[:5].hex() == "9350434e01"
    (length,) = struct.unpack("<I", data[5:9])
    assert parts["header"] == length
    weight = struct.pack("<f", 0.25) + bytes.fromhex(WEIGHT_BLOCK)
    bias = struct.pack("<ff", 0.0, 1.0)
    assert data[9 + length : -4] == bytes([len(weight)]) + weight + bytes([len(bias)]) + bias
    assert data == sealed(data[:-4])
    assert sum(parts.values()) == len(data)
    assert same(file.loads(data), tiny())


WEIGHT_BLOCK = "02ab01016451a5a9"


def test_header_is_deflated_json() -> None:
    data, parts = file.dumps(tiny())
    text = zlib.decompressobj(-15, file.DICTIONARY).decompress(data[9 : 9 + parts["header"]])
    assert text == (
        b'{"graph":{"input":[3],"nodes":[["linear",[0],{"weight":"w","bias":"b"},{}]]},'
        b'"tensors":[["w",[2,3],1],["b",[2],0]],"meta":{"prior":"none","parameters_total":8}}'
    )


@given(hnp.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-99, 99)))
def test_round_trip(codes: np.ndarray) -> None:
    assert same(file.loads(file.dumps(tiny(codes))[0]), tiny(codes))


def test_every_truncation_and_bit_flip_is_refused() -> None:
    data, _ = file.dumps(tiny())
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"truncated|damaged|not a \.pcn"):
            file.loads(data[:length])
    for position in range(len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[position] ^= 1 << bit
            with pytest.raises(ValueError, match=r"version|damaged|not a \.pcn"):
                file.loads(bytes(broken))


@settings(max_examples=300)
@given(st.data())
def test_forged_files_decode_or_are_refused(draw: st.DataObject) -> None:
    """Bytes changed anywhere behind the version, with a checksum that fits."""
    data = bytearray(file.dumps(tiny())[0][:-4])
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(5, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        network = file.loads(sealed(bytes(data)), max_elements=1000)
    except ValueError:
        return
    assert isinstance(network, Compressed)


def forged(header: bytes, body: bytes = b"") -> bytes:
    packed = file._deflate(header)
    return sealed(file.MAGIC + b"\x01" + struct.pack("<I", len(packed)) + packed + body)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04" + bytes(50), "not a .pcn file"),
        (b"", "not a .pcn file"),
        (sealed(file.MAGIC + b"\x02" + bytes(20)), "format version 2"),
        (sealed(file.MAGIC + b"\x01" + struct.pack("<I", 1 << 30) + bytes(9)), "a header of 1073741824 bytes"),
        (forged(b"[]"), "not understood"),
        (forged(b"{" * 100_000), "not understood"),
        (forged(b" " * (9 << 20)), "more than 8388608"),
        (forged(b'{"graph":{"input":[3],"nodes":[]},"tensors":[["w",[99999,99999],1]],"meta":{}}'), "values declared"),
        (forged(b'{"graph":{"input":[3],"nodes":[]},"tensors":[["w",[-1],1]],"meta":{}}'), "impossible shape"),
        (forged(b'{"graph":{"input":[3],"nodes":[["relu",[7],{},{}]]},"tensors":[],"meta":{}}'), "comes later"),
        (forged(b'{"graph":{"input":[3],"nodes":[["linear",[0],{"weight":"w"},{}]]},"tensors":[],"meta":{}}'), "uses"),
        (forged(b'{"graph":{"input":[3],"nodes":[]},"tensors":[],"meta":{}}', b"x"), "left over"),
        (
            forged(b'{"graph":{"input":[3],"nodes":[]},"tensors":[["w",[1],0]],"meta":{}}', b"\x04\x00\x00\xc0\x7f"),
            "finite",
        ),
        (
            forged(
                b'{"graph":{"input":[3],"nodes":[]},"tensors":[["w",[1],1]],"meta":{}}', b"\x05\x00\x00\xc0\x7f\x00"
            ),
            "step",
        ),
        (forged(b'{"graph":{"input":[3],"nodes":[]},"tensors":[["w",[1],1]],"meta":{}}', b"\x50\x00"), "truncated"),
    ],
)
def test_hostile_files(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        file.loads(data)


def test_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a.pcn"
    file.write_atomically(path, b"one")
    file.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(OSError, match="directory"):
        file.write_atomically(tmp_path / "nowhere" / "a.pcn", b"three")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pcn"]


def test_too_many_values_need_leave() -> None:
    data, _ = file.dumps(tiny())
    with pytest.raises(ValueError, match="8 values declared, more than the 7 allowed"):
        file.loads(data, max_elements=7)
