"""The compressed file: literal bytes, round trips, hostile input."""

import json
import struct
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_shrink import PROBLEMS, prepared

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.shrink import shrink
from pyro_compress.graph.capture import capture
from pyro_compress.graph.ir import graph_of
from pyro_compress.graph.network import Network
from pyro_compress.networks.nets import build_net
from pyro_compress.pcn import codec, file, gate, header, runner, sections
from pyro_compress.types import Compressed, Graph, Node, Quantized

GOLDEN = Path(__file__).parent / "golden"


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
    """A file written by version 4, byte by byte; if this changes, the version must."""
    data, parts = file.dumps(tiny(), in_context=False)
    assert data[:5].hex() == "9350434e04"
    assert data[5] == 0  # no template: the graph is spelled out
    length = data[6]
    assert parts["header"] == 2 + length
    weight, bias = bytes.fromhex(WEIGHT_BLOCK), struct.pack("<ff", 0.0, 1.0)
    # descriptors: step 2^(-8/4) without context, dense
    body = bytes([2 * (100 - 8), 255, len(weight)]) + weight + bytes([len(bias)]) + bias
    assert data[7 + length : -4] == body
    assert data == sealed(data[:-4])
    assert sum(parts.values()) == len(data)
    assert same(file.loads(data), tiny())


WEIGHT_BLOCK = "02ab01016451a5a9"


def test_header_is_deflated_json() -> None:
    data, _ = file.dumps(tiny())
    text = zlib.decompressobj(-15, header.DICTIONARY_4).decompress(data[7 : 7 + data[6]])
    assert text == (
        b'{"graph":{"input":[3],"nodes":[["linear",0,{"weight":"w","bias":"b"}]]},'
        b'"tensors":[[2,3],[2]],"meta":{"prior":"none","parameters_total":8}}'
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_graphs_are_spelled_out_in_few_words_and_read_in_full(name: str) -> None:
    _, _, graph, tensors = prepared(name, 0, 0)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for stated_shapes in (shapes, dict(reversed(shapes.items())), shapes | {"nobody.names": (2,)}):
        told = json.dumps(header.shortened(graph, stated_shapes) | {"meta": {}})
        read, declared, _ = header.parse(told.encode(), 4)
        assert read == graph_of(json.loads(json.dumps(asdict(graph))))
        assert [(key, shape) for key, shape, _ in declared] == list(stated_shapes.items())


def golden() -> Compressed:
    """What the files in `golden/` hold: every kind of section."""
    rng = np.random.default_rng(5)
    conv = {"stride": [1, 1], "padding": [[0, 0], [0, 0]], "dilation": [1, 1]}
    nodes = (
        Node("input"),
        Node("conv2d", (0,), {"weight": "0.weight", "bias": "0.bias"}, conv),
        Node("relu", (1,)),
        Node("reshape", (2,), {}, {"shape": [108]}),
        Node("linear", (3,), {"weight": "3.weight", "bias": "3.bias"}),
    )

    def sparse(*shape: int) -> np.ndarray:
        return (rng.integers(-3, 4, shape) * (rng.random(shape) < 0.3)).astype(np.int32)

    tensors = {
        "0.weight": Quantized(sparse(3, 1, 3, 3), 0.125),
        "0.bias": rng.normal(size=3).astype(np.float32),
        "3.weight": Quantized(sparse(10, 108), float(np.float32(0.07))),
        "3.bias": Quantized(sparse(10), 0.5),
    }
    return Compressed(Graph(nodes, (1, 8, 8)), tensors, {"data": "digits", "parameters_total": 1130})


def golden_kept() -> Compressed:
    """What the golden file of version 5 holds: words as numbers, operations of torch, whole numbers in a tensor."""
    nodes = (
        Node("input"),
        Node("aten", (0,), {"t0": "embed"}, {
            "call": "embedding.default", "arguments": [{"tensor": "t0"}, {"value": 0}],
        }),
        Node("aten", (), {"t0": "places"}, {
            "call": "cumsum.default", "arguments": [{"tensor": "t0", "kind": "int64"}, 0],
            "keywords": {"dtype": {"kind": "float32"}},
        }),
        Node("aten", (1, 2), {}, {"call": "mul.Tensor", "arguments": [{"value": 0}, {"value": 1}]}),
        Node("regroup", (3,), {}, {"shape": [3, 2]}),
        Node("linear", (4,), {"weight": "last.weight"}),
        Node("regroup", (5,), {}, {"shape": [2, 3, 3]}),
        Node("reshape", (6,), {}, {"shape": [18]}),
    )  # fmt: skip
    rng = np.random.default_rng(6)
    tensors = {
        "embed": Quantized(rng.integers(-9, 9, (5, 3)).astype(np.int32), 0.125),
        "places": Quantized(np.array([1, 0, 2], np.int32), 1.0),
        "last.weight": Quantized(rng.integers(-9, 9, (3, 2)).astype(np.int32), 0.25),
    }
    return Compressed(Graph(nodes, (4,), "int64"), tensors, {"data": "words"})


def test_golden_file_of_version_5() -> None:
    """What torch runs is read, and runs, as it was when it was new."""
    network = file.read(GOLDEN / "version-5.pcn")
    assert same(network, golden_kept())
    x = np.array([[0, 1, 2, 4], [4, 4, 0, 3]])
    embedded = network.tensors["embed"].codes[x] * 0.125 * np.array([1, 1, 3])  # type: ignore[union-attr]
    wanted = embedded.reshape(4, 3, 2) @ (network.tensors["last.weight"].codes * 0.25).T  # type: ignore[union-attr]
    np.testing.assert_array_equal(runner.run(network, x), wanted.reshape(2, 18).astype(np.float32))


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_golden_files(version: int) -> None:
    """Files written when a version was new decode to the same integers for ever."""
    path = GOLDEN / f"version-{version}.pcn"
    assert path.read_bytes()[4] == version
    network = file.read(path)
    assert same(network, golden())
    assert [type(t) for t in network.tensors.values()] == [type(t) for t in golden().tensors.values()]


@pytest.mark.parametrize("name", ["template-mlp", "template-lenet-5"])
def test_golden_templates(name: str) -> None:
    """Networks that a file names, as version 2 wrote them and as version 3 does."""
    old, new = (file.read(GOLDEN / f"{name}{ending}.pcn") for ending in ("", "-version-3"))
    assert same(old, new)
    assert file.dumps(old)[0] == (GOLDEN / f"{name}-version-3.pcn").read_bytes()


def test_the_newest_golden_file_is_what_is_written() -> None:
    assert file.dumps(golden())[0] == (GOLDEN / "version-4.pcn").read_bytes()
    assert file.dumps(golden_kept())[0] == (GOLDEN / "version-5.pcn").read_bytes()


@pytest.mark.parametrize("name", ["mlp", "lenet-300-100", "lenet-5-caffe", "lenet-5-relu"])
def test_builtin_networks_are_named_not_spelled_out(name: str) -> None:
    graph = capture(build_net(name, (1, 28, 28), 10, (7, 6)), (1, 28, 28))
    net = Network(graph, build_net(name, (1, 28, 28), 10, (7, 6)).state_dict())
    tensors = {key: torch.where(torch.rand_like(t) < 0.02, t, 0.0) for key, t in net.state_dict().items()}
    graph, small = shrink(graph, tensors)
    packed = {key: Quantized(torch.round(8 * t).int().numpy(), 0.125) for key, t in small.items()}
    network = Compressed(graph, packed, {"prior": "none", "data": "mnist", "parameters_total": 266610})
    data, parts = file.dumps(network)
    assert parts["header"] < 40
    assert same(file.loads(data), network)


def test_steps_that_are_no_quarter_power_take_five_bytes() -> None:
    odd = Compressed(tiny().graph, tiny().tensors | {"w": Quantized(tiny().tensors["w"].codes, 0.3)}, {})  # type: ignore[union-attr]
    assert file.loads(file.dumps(odd)[0]).tensors["w"].step == np.float32(0.3)  # type: ignore[union-attr]


@settings(deadline=None)
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
            with pytest.raises(ValueError, match=r"version|damaged|not a \.pcn|truncated"):
                file.loads(bytes(broken))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_forged_files_decode_or_are_refused(draw: st.DataObject) -> None:
    """Bytes changed anywhere behind the version, with a checksum that fits."""
    data = bytearray(file.dumps(tiny())[0][:-4])
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(5, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        network = file.loads(sealed(bytes(data)), gate.Limits(1000, 100_000))
    except ValueError:
        return
    assert isinstance(network, Compressed)


def forged(text: bytes, body: bytes = b"", version: int = 3) -> bytes:
    dictionary = header.DICTIONARY if version == 1 else header.DICTIONARIES[version][0]
    packed = header._deflate(text, dictionary)
    length = struct.pack("<I", len(packed)) if version == 1 else b"\0" + codec.varint(len(packed))
    return sealed(file.MAGIC + bytes([version]) + length + packed + body)


def stated(number: int, *sizes: int, body: bytes = b"") -> bytes:
    """A file whose header names a template, with empty metadata."""
    packed = header._deflate(b"{}", header.DICTIONARY_3)
    head = b"".join(codec.varint(size) for size in (number, *sizes, len(packed)))
    return sealed(file.MAGIC + b"\3" + head + packed + body)


def spelled(nodes: bytes, tensors: bytes = b"[[1]]") -> bytes:
    """A file of version 4 with these nodes and tensors."""
    return forged(b'{"graph":{"input":[3],"nodes":' + nodes + b'},"tensors":' + tensors + b',"meta":{}}', version=4)


ONE = b'{"graph":{"input":[1],"nodes":[["linear",[0],{"weight":"w"},{}]]},"tensors":[["w",[1,1],1]],"meta":{}}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04" + bytes(50), "not a .pcn file"),
        (b"", "not a .pcn file"),
        (sealed(file.MAGIC + b"\x07" + bytes(20)), "format version 7"),
        (sealed(file.MAGIC + b"\x01" + struct.pack("<I", 1 << 30) + bytes(9)), "a header of 1073741824 bytes"),
        (sealed(file.MAGIC + b"\x03\x00" + codec.varint(1 << 30) + bytes(9)), "a header of 1073741824 bytes"),
        (spelled(b'[["linear",0,["0","weight"]]]', b"[[1],[2]]"), "the header is not understood"),
        (spelled(b'[["linear",0,[]]]'), "the header is not understood"),
        (spelled(b"[[]]"), "the header is not understood"),
        (spelled(b'[["linear",0,["0",["weight"]]]]'), "the header is not understood"),
        (spelled(b'[["relu",[1]],["linear",0,["0","weight"]]]'), "a node reads one that comes later"),
        (spelled(b'[["relu",0,{},{},{}]]', b"[]"), "the header is not understood"),
        (spelled(b'[["linear",0,["0","weight"]]]', b"[[-1]]"), "impossible shape"),
        (stated(9, 1, 3, 1, 2), "unknown template"),
        (stated(1, 99), "99 sizes"),
        (stated(1, 1, 1 << 33, 1, 2), "impossible shape"),
        (stated(1, 2, 1 << 30, 1 << 30, 2, 1 << 30, 1 << 30), "values declared"),
        (stated(2, 3, 1, 8, 8, 4, 1, 1, 1, 1), "LeNet-5"),
        (stated(1, 1, 3, 1, 2), "truncated"),
        (stated(1, 1, 3, 1, 2, body=b"\xf5\xf5"), "unknown kind of tensor"),
        (stated(1, 1, 3, 1, 2, body=b"\xc9\xc9" + b"\xff" * 99), "left over"),
        (stated(1, 1, 3000, 1, 3000, body=b"\xc9\xc9"), "coded in context, more than"),
        (forged(b"[]"), "not understood"),
        (forged(b"{" * 100_000), "not understood"),
        (forged(b" " * (9 << 20)), "more than 8388608"),
        (forged(ONE.replace(b"[1,1],1", b"[99999,99999],1")), "values declared"),
        (forged(ONE.replace(b"[1,1],1", b"[-1],1")), "impossible shape"),
        (forged(b'{"graph":{"input":[3],"nodes":[["relu",[7],{},{}]]},"tensors":[],"meta":{}}'), "comes later"),
        (forged(b'{"graph":{"input":[3],"nodes":[["linear",[0],{"weight":"w"},{}]]},"tensors":[],"meta":{}}'), "uses"),
        (forged(ONE, b"\xff\x04" + bytes(4) + b"x"), "left over"),
        (forged(ONE, b"\xff\x04\x00\x00\xc0\x7f"), "finite"),
        (forged(ONE, b"\xf0\x00\x00\xc0\x7f\x00"), "step"),
        (forged(ONE, b"\xf1\x00\x00\x00\x80"), "step"),
        (forged(ONE, b"\xc8\x50\x00"), "truncated"),
        (forged(ONE, b"\x05\x00\x00\xc0\x7f\x00", 1), "step"),
        (forged(ONE.replace(b"1],1]", b"1],0]"), b"\x04\x00\x00\xc0\x7f", 1), "finite"),
        (forged(ONE, b"\x50\x00", 1), "truncated"),
    ],
)
def test_hostile_files(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        file.loads(data)


@pytest.mark.parametrize("step", [0.0, -1.0, 1e-45, 2.0**-127, 2.0**111, float("inf"), float("nan")])
def test_steps_that_are_none(step: float) -> None:
    """A denormal one is zero in a process that has torch flush such numbers, and not in others."""
    with pytest.raises(ValueError, match="impossible step"):
        sections.read_step(codec.Reader(struct.pack("<f", step)))


def test_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a.pcn"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "nowhere" / "a.pcn", b"three")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pcn"]


def test_too_many_values_need_leave() -> None:
    data, _ = file.dumps(tiny())
    with pytest.raises(ValueError, match="8 values declared, more than the 7 allowed"):
        file.loads(data, gate.Limits(7, 1000))
