"""Integers to bytes and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyro_compress.pcn import codec

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=7)


@settings(deadline=None)  # processors differ, and may have something else to do
@given(hnp.arrays(np.int32, SHAPES, elements=st.integers(-40, 40)))
def test_round_trip(codes: np.ndarray) -> None:
    assert np.array_equal(codec.decode(codec.encode(codes), codes.shape), codes)


@settings(deadline=None)  # processors differ, and may have something else to do
@given(hnp.arrays(np.int32, SHAPES, elements=st.sampled_from([-16000, -1, 0, 0, 0, 1, 16000])))
def test_round_trip_of_sparse_wide_codes(codes: np.ndarray) -> None:
    assert np.array_equal(codec.decode(codec.encode(codes), codes.shape), codes)


@settings(deadline=None)  # processors differ, and may have something else to do
@given(st.binary(max_size=60), SHAPES)
def test_any_bytes_decode_or_are_refused(block: bytes, shape: tuple[int, ...]) -> None:
    try:
        codes = codec.decode(block, shape)
    except ValueError:
        return
    assert codes.shape == shape


def test_literal_bytes() -> None:
    assert codec.encode(np.zeros((3, 4), np.int32)) == bytes([codec.ZERO])
    # geometric model: 0 has 171/256 of the weight (4 of 6), ratio 1/256, bound 1, then one word of the range coder
    codes = np.array([[0, 0, 1], [0, -1, 0]], np.int32)
    assert codec.encode(codes).hex() == LITERAL
    assert np.array_equal(codec.decode(bytes.fromhex(LITERAL), (2, 3)), codes)


LITERAL = "02ab01016451a5a9"


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_close_to_the_entropy(sparsity: float) -> None:
    rng = np.random.default_rng(0)
    codes = np.round(rng.laplace(0, 4, (300, 200))).astype(np.int32) * (rng.random((300, 200)) >= sparsity)
    counts = np.unique(codes, return_counts=True)[1]
    entropy_bytes = -(counts * np.log2(counts / codes.size)).sum() / 8
    assert len(codec.encode(codes)) < 1.02 * entropy_bytes + 100


def test_dead_columns_are_nearly_free() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-2, 3, (100, 400)).astype(np.int32)
    half = codes * (np.arange(400) % 2 == 0)
    assert len(codec.encode(half)) < len(codec.encode(codes)) / 2 + 100


def test_codes_that_span_too_much_are_refused() -> None:
    with pytest.raises(ValueError, match="coarser step"):
        codec.encode(np.array([0, codec.MAX_ALPHABET], np.int64))


@pytest.mark.parametrize(("value", "data"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02")])
def test_varint(value: int, data: str) -> None:
    assert codec.varint(value).hex() == data
    assert codec.Reader(bytes.fromhex(data)).varint() == value


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_no_values(shape: tuple[int, ...]) -> None:
    block = codec.encode(np.zeros(shape, np.int32))
    assert block == b"\0"
    assert codec.decode(block, shape).shape == shape
