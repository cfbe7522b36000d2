"""Large files: tensors in pieces, several streams side by side (version 6)."""

import logging
from pathlib import Path

import numpy as np
import pytest

from pyro_compress.pcn import codec, file, sections, streams
from pyro_compress.pcn.streams import Piece
from pyro_compress.types import Compressed, Graph, Node, Quantized

GOLDEN = Path(__file__).parent / "golden" / "version-6.pcn"
LAYOUTS = {"a": (7, 1, 5, 5), "none": (0, 0, 0, 0), "b": (3, 40, 1, 1), "c": (9, 1, 1, 1)}


def codes_of(layouts: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    found = {}
    for name, layout in layouts.items():
        shape = (layout[0], int(np.prod(layout[1:])))
        found[name] = (draw.integers(-5, 6, shape) * (draw.random(shape) < 0.4)).astype(np.int32)
    return found


def structured(columns: int, rows: int) -> Compressed:
    """A layer whose rows are full or nearly empty: what the coder that learns sees and the other one does not."""
    draw = np.random.default_rng(3)
    there = draw.random((rows, columns)) < np.where(draw.random((rows, 1)) < 0.2, 0.7, 0.01)
    codes = draw.choice([-2, -1, 1, 2], (rows, columns)) * there
    graph = Graph((Node("input"), Node("linear", (0,), {"weight": "w"})), (columns,))
    return Compressed(graph, {"w": Quantized(codes.astype(np.int32), 0.25)}, {})


def golden() -> Compressed:
    """Three long rows, of which two fit a stream."""
    codes = np.zeros((3, 1 << 19), np.int32)
    codes[np.arange(1, 3), (np.arange(500) * 7)[:, None]] = np.arange(500)[:, None] % 3 - 1
    graph = Graph((Node("input"), Node("linear", (0,), {"weight": "w"})), (1 << 19,))
    return Compressed(graph, {"w": Quantized(codes, 0.5)}, {})


def test_tensors_are_cut_between_rows_and_fill_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_VALUES", 60)
    assert streams.cut(LAYOUTS) == [
        [Piece("a", 0, (2, 1, 5, 5))],
        [Piece("a", 2, (2, 1, 5, 5))],
        [Piece("a", 4, (2, 1, 5, 5))],
        [Piece("a", 6, (1, 1, 5, 5))],
        [Piece("b", 0, (1, 40, 1, 1))],
        [Piece("b", 1, (1, 40, 1, 1))],
        [Piece("b", 2, (1, 40, 1, 1)), Piece("c", 0, (9, 1, 1, 1))],
    ]
    monkeypatch.setattr(streams, "MAX_VALUES", 20)  # a row is never cut
    assert [len(stream) for stream in streams.cut(LAYOUTS)] == [1] * 11
    assert streams.cut({}) == []


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("most", [20, 60, 1 << 20])
def test_streams_come_back(compiled: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_VALUES", most)
    monkeypatch.setattr(streams, "COMPILED", compiled)  # one after the other, then
    wanted = codes_of(LAYOUTS)
    data, spent = streams.encode(wanted, LAYOUTS, several=True)
    found = streams.decode(codec.Reader(data), LAYOUTS, several=True)
    assert found.keys() == wanted.keys()
    for name, codes in wanted.items():
        np.testing.assert_array_equal(found[name].reshape(codes.shape), codes)
    assert sum(spent.values()) == len(data)


def test_a_large_file_has_several_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_VALUES", 2000)
    network = structured(100, 60)
    data, parts = file.dumps(network)
    assert data[4] == 6
    assert sum(parts.values()) == len(data)
    assert len(data) < len(file.dumps(network, in_context=False)[0])
    np.testing.assert_array_equal(file.loads(data).tensors["w"].codes, network.tensors["w"].codes)
    monkeypatch.setattr(streams, "MAX_VALUES", 1 << 20)
    assert file.dumps(network)[0][4] == 4
    with pytest.raises(ValueError, match=r"left over|truncated"):
        file.loads(data)  # cut otherwise, it is another file


def test_a_large_file_that_gains_nothing_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_VALUES", 10)
    network = Compressed(structured(30, 2).graph, {"w": Quantized(np.ones((2, 30), np.int32), 0.25)}, {})
    assert file.dumps(network)[0] == file.dumps(network, in_context=False)[0]


def test_golden_file_of_version_6() -> None:
    assert GOLDEN.read_bytes()[4] == 6
    network, wanted = file.read(GOLDEN), golden()
    assert network.graph == wanted.graph
    np.testing.assert_array_equal(network.tensors["w"].codes, wanted.tensors["w"].codes)
    assert file.dumps(wanted)[0] == GOLDEN.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lengths, body: (lengths[:-1], body), r"left over|truncated"),
        (lambda lengths, body: (lengths, body + b"x"), "left over"),
        (lambda lengths, body: ([*lengths[:-1], lengths[-1] + 1], body), "truncated"),
        (lambda lengths, body: ([lengths[0] + 9, lengths[1] - 9, *lengths[2:]], body), "left over"),
        (lambda lengths, body: ([1 << 34, *lengths[1:]], body), "truncated"),
    ],
)
def test_hostile_lengths(change, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_VALUES", 60)
    data, _ = streams.encode(codes_of(LAYOUTS), LAYOUTS, several=True)
    count = len(streams.cut(LAYOUTS))
    lengths, body = change(list(data[:count]), data[count:])
    with pytest.raises(ValueError, match=message):
        streams.decode(codec.Reader(b"".join(map(codec.varint, lengths)) + body), LAYOUTS, several=True)


def test_too_large_an_integer_is_refused() -> None:
    codes = np.array([[1, 1 << 16]], np.int32)
    with pytest.raises(ValueError, match="a magnitude is larger than the format allows"):
        streams.encode({"w": codes}, {"w": (1, 2, 1, 1)}, several=False)


def test_one_stream_holds_no_more_than_it_may() -> None:
    shapes = {"w": (2, 1 << 20)}
    reader = codec.Reader(bytes([2 * 100 + 1]) + bytes(9))
    with pytest.raises(ValueError, match="2097152 values in 1 tensors coded in context, more than the format allows"):
        sections.read(reader, shapes, {"w": (2, 1 << 20, 1, 1)})


def test_who_has_no_compiled_coder_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = codes_of(LAYOUTS)
    data, _ = streams.encode(wanted, LAYOUTS, several=False)
    monkeypatch.setattr(streams, "COMPILED", False)
    monkeypatch.setattr(streams, "SLOW_VALUES", 100)
    with caplog.at_level(logging.WARNING):
        streams.decode(codec.Reader(data), LAYOUTS, several=False)
    assert "the compiled coder is missing" in caplog.text
