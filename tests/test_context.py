"""The context coder: round trips, the compiled module beside the source, hostile streams."""

import importlib.util
from array import array
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_compress.pcn import codec, context

SOURCE = Path(context.__file__).parent / "context.py"


def interpreted() -> ModuleType:
    """The coder as Python runs it, whether or not a compiled one is there."""
    spec = importlib.util.spec_from_file_location("interpreted_context", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PYTHON = interpreted()

LAYOUTS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[tuple[int, int, int, int], list[int]]:
    layout = draw(LAYOUTS)
    size = int(np.prod(layout))
    values = st.one_of(st.just(0), st.integers(-3, 3), st.integers(-32767, 32767))
    return layout, draw(st.lists(values, min_size=size, max_size=size))


def encode(module: ModuleType, values: list[int], layout: tuple[int, int, int, int]) -> bytes:
    coder = module.Coder()
    module.code(coder, array("q", values), *layout)
    return coder.finish()


def decode(module: ModuleType, data: bytes, layout: tuple[int, int, int, int]) -> list[int]:
    values = array("q", bytes(8 * int(np.prod(layout))))
    module.code(module.Coder(data), values, *layout)
    return values.tolist()


@settings(max_examples=60, deadline=None)
@given(tensors())
def test_round_trip(tensor: tuple[tuple[int, int, int, int], list[int]]) -> None:
    layout, values = tensor
    assert decode(context, encode(context, values, layout), layout) == values


@settings(max_examples=25, deadline=None)
@given(tensors())
def test_compiled_and_interpreted_write_the_same_bytes(tensor: tuple[tuple[int, int, int, int], list[int]]) -> None:
    layout, values = tensor
    data = encode(PYTHON, values, layout)
    assert data == encode(context, values, layout), "rebuild the compiled coder: pip install -e ."
    assert decode(PYTHON, data, layout) == values


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), LAYOUTS)
def test_any_stream_decodes_or_is_refused(data: bytes, layout: tuple[int, int, int, int]) -> None:
    try:
        values = decode(context, data, layout)
    except ValueError:
        return
    assert max(map(abs, values)) < context_limit()


def context_limit() -> int:
    return 1 << 15


def blobs(rows: int = 30) -> np.ndarray:
    """Weights as first layers of image networks have them: each row looks at one place."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:28, 0:28]
    found = []
    for _ in range(rows):
        middle = rng.normal(14, 4, 2)
        chance = 0.35 * np.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / 20)
        found.append((rng.random((28, 28)) < chance) * np.round(rng.laplace(0, 1.5, (28, 28))))
    return np.array(found).astype(np.int32).reshape(rows, 784)


def test_it_sees_pixels() -> None:
    codes = blobs()
    data = encode(context, codes.ravel().tolist(), (len(codes), 1, 28, 28))
    assert len(data) < 0.97 * len(codec.encode(codes))
    assert len(data) < 0.97 * len(encode(context, codes.ravel().tolist(), (len(codes), 784, 1, 1)))


def test_tables_are_what_they_say() -> None:
    """Integer recurrences against floating point: to 1 in 16 bits, and to 1/50 of a nat, coarser in the tails."""
    logits = np.arange(-12 * 64, 12 * 64 + 1) / 64
    assert np.abs(np.array(PYTHON.SQUASH) - 65536 / (1 + np.exp(-logits))).max() < 2
    chances = (np.arange(4096) + 0.5) / 4096
    off = np.abs(np.array(PYTHON.STRETCH) / 4096 - np.log(chances / (1 - chances)))
    assert off.max() < 0.15
    assert off[8:-8].max() < 0.02


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 65535)), max_size=300))
def test_bits_with_any_probability_come_back(bits: list[tuple[int, int]]) -> None:
    coder = PYTHON.Coder()
    for bit, probability in bits:
        coder.bit(bit, probability)
    data = coder.finish()
    reader = PYTHON.Coder(data)
    assert [reader.bit(0, probability) for _, probability in bits] == [bit for bit, _ in bits]
    cost = sum(-np.log2((p if bit else 65536 - p) / 65536) for bit, p in bits) / 8
    assert len(data) <= cost * 1.01 + 2


def test_magnitudes_beyond_the_format_are_refused() -> None:
    with pytest.raises(ValueError, match="larger than the format allows"):
        encode(context, [0, 1 << 20], (2, 1, 1, 1))
