"""Layers with weights in C: only the non-zeros are stored and multiplied.

A layer is a list of non-zeros per output: an integer code and the place of the value that it multiplies. Convolutions
add `code * value` to a tile of output pixels at once, layers of a block to one value per lane, both in vectors that
stay in registers. A linear layer at one example keeps four sums, so that additions do not wait for each other. A linear
layer of which more than `DENSE` is not zero is stored whole, without places: fewer bytes, and for one example a product
of whole vectors. At every position of a sequence it is the same again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_compress.deploy.c import whole
from pyro_compress.graph.faces.c import Loop, Weights
from pyro_compress.graph.faces.c_text import floats, integers, number

DENSE = 2 / 3
"""Share of non-zeros above which a linear layer is stored whole. For one example that takes half of the time then (at a
third, as long); in a block, longer by the zeros that are multiplied (measured with gcc 12)."""
DENSE_REPEATED = 1 / 5
"""The same of a layer that runs at every step of a sequence, or at a few positions: at a sixth, both take as long."""
SUMS, SCALARS = 64, 16
"""Sums of a tile that fit into registers, in vectors and one by one."""


@dataclass(frozen=True)
class Tile:
    """Outputs that are computed together: `rows` by `units` by `span` values side by side, in vectors or not."""

    rows: int
    units: int
    span: int
    vectors: bool


def is_dense(loop: Loop) -> bool:
    """Whether a layer is stored whole."""
    assert loop.weights is not None
    codes, share = loop.weights.codes, DENSE_REPEATED if "positions" in loop.attributes else DENSE
    return loop.op == "linear" and bool(np.count_nonzero(codes) > share * codes.size)


def read(loop: Loop) -> np.ndarray:
    """Which of the values that a layer is given it reads."""
    found = np.zeros(int(np.prod(loop.shapes[0])), bool)
    found[:] = is_dense(loop) or "positions" in loop.attributes
    found[_sparse(loop)[1]] = True
    return found


def tables(tag: str, loop: Loop) -> str:
    """The arrays of a layer."""
    assert loop.weights is not None
    weights = loop.weights
    if is_dense(loop):
        codes, parts = weights.codes.reshape(len(weights.codes), -1).T.ravel(), []
    elif whole.is_whole(loop):
        codes, places = whole.ordered(loop)
        parts = [integers(f"{tag}_places", places)]
    else:
        codes, places, starts = _sparse(loop)
        parts = [integers(f"{tag}_places", places), integers(f"{tag}_starts", starts)]
    parts.insert(0, (floats if codes.dtype.kind == "f" else integers)(f"{tag}_codes", codes))
    if weights.scale.size > 1:
        parts.append(floats(f"{tag}_scale", weights.scale))
    if weights.bias.any():
        parts.append(floats(f"{tag}_bias", weights.bias))
    return "".join(parts)


def _sparse(loop: Loop) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-zeros in the order of their outputs, the place of what each multiplies, and where each output begins."""
    assert loop.weights is not None
    weights, (channels, height, width) = loop.weights, loop.shapes[0]
    if "positions" in loop.attributes:
        channels, height, width = weights.codes.shape[1], 1, 1
    out, channel, row, column = np.nonzero(weights.codes)
    group = out // (len(weights.codes) // weights.groups)
    channel = channel + group * (channels // weights.groups)
    if _is_point(loop):
        height = width = 1
    places = (channel * height + row * weights.dilation[0]) * width + column * weights.dilation[1]
    starts = np.searchsorted(out, np.arange(len(weights.codes) + 1))
    return weights.codes[weights.codes != 0], places, starts


def _is_point(loop: Loop) -> bool:
    """Whether a convolution looks at one pixel of every channel: its tables name the channel alone."""
    assert loop.weights is not None
    return loop.op != "linear" and loop.weights.codes.shape[2:] == (1, 1)


def body(tag: str, loop: Loop, lanes: str) -> str:
    """What a layer's function does; `lanes` is empty for one example."""
    assert loop.weights is not None
    if loop.op == "linear":
        return _at_positions(tag, loop, lanes)
    if whole.is_whole(loop):
        return whole.body(tag, loop, result(tag, loop.weights, "total[u][o - block]"))
    return _pairs(tag, loop, lanes) if loop.shape[1:] == (1, 1) and lanes else _tiles(tag, loop, lanes)


def _at_positions(tag: str, loop: Loop, lanes: str) -> str:
    """A linear layer, at one position after the other where there are several."""
    assert loop.weights is not None
    once = _dense_once if is_dense(loop) else _sparse_once
    inside = _pairs(tag, loop, lanes) if lanes else once(tag, loop)
    if loop.attributes.get("positions", 1) == 1:
        return inside
    (outputs, inputs), per = loop.weights.codes.shape[:2], f" * {lanes}" if lanes else ""
    return f"""
        float *const first = y;
        for (size_t t = 0; t < {loop.attributes["positions"]}; t++, x += {inputs}{per}, y += {outputs}{per}) {{
        {inside}
        }}
        y = first;"""


def result(tag: str, weights: Weights, sums: str) -> str:
    """What becomes of a sum."""
    scale = f"{tag}_scale[o]" if weights.scale.size > 1 else number(weights.scale.item())
    scaled = sums if scale == "1.0f" else f"{sums} * {scale}"
    return f"{scaled} + {tag}_bias[o]" if weights.bias.any() else scaled


def _sparse_once(tag: str, loop: Loop) -> str:
    assert loop.weights is not None
    term = f"{tag}_codes[k{{0}}] * x[{tag}_places[k{{0}}]]"
    return f"""
        for (size_t o = 0; o < {len(loop.weights.codes)}; o++) {{
        const size_t end = {tag}_starts[o + 1];
        float a = 0, b = 0, c = 0, d = 0;
        size_t k = {tag}_starts[o];
        for (; k + 4 <= end; k += 4) {{
        a += {term.format("")};
        b += {term.format(" + 1")};
        c += {term.format(" + 2")};
        d += {term.format(" + 3")};
        }}
        for (; k < end; k++)
        a += {term.format("")};
        y[o] = {result(tag, loop.weights, "((a + b) + (c + d))")};
        }}"""


def _dense_once(tag: str, loop: Loop) -> str:
    assert loop.weights is not None
    outputs, inputs = loop.weights.codes.shape[:2]
    return f"""
        for (size_t o = 0; o < {outputs}; o++)
        y[o] = 0;
        for (size_t i = 0; i < {inputs}; i++) {{
        const float value = x[i];
        for (size_t o = 0; o < {outputs}; o++)
        y[o] += value * {tag}_codes[i * {outputs} + o];
        }}
        for (size_t o = 0; o < {outputs}; o++)
        y[o] = {result(tag, loop.weights, "y[o]")};"""


def _walk(tag: str, loop: Loop) -> tuple[str, str, str, str]:
    """First and last index of an output's weights, a weight, and the place of what it multiplies."""
    assert loop.weights is not None
    if is_dense(loop):
        outputs, inputs = loop.weights.codes.shape[:2]
        return "0", str(inputs), f"{tag}_codes[{{0}} * {outputs} + o]", "({0})"
    _, height, width = loop.shapes[0]
    apart = f" * {height * width}" if _is_point(loop) and height * width > 1 else ""
    place = f"(size_t){tag}_places[{{0}}]{apart}" if apart else f"{tag}_places[{{0}}]"
    return f"{tag}_starts[o]", f"{tag}_starts[o + 1]", f"{tag}_codes[{{0}}]", place


def _pairs(tag: str, loop: Loop, lanes: str) -> str:
    """One output for all lanes, from two weights at a time into sums that do not wait for each other."""
    assert loop.weights is not None
    begin, end, code, place = _walk(tag, loop)
    lane = f"for (size_t j = 0; j < {lanes} / VECTOR; j++)"
    return f"""
        for (size_t o = 0; o < {len(loop.weights.codes)}; o++) {{
        const size_t end = {end};
        const vector zero = {{0}};
        vector sum[{lanes} / VECTOR], other[{lanes} / VECTOR];
        size_t k = {begin};
        {lane}
        sum[j] = other[j] = zero;
        for (; k + 2 <= end; k += 2) {{
        const float first = {code.format("k")}, second = {code.format("(k + 1)")};
        const float *p = x + (size_t){place.format("k")} * {lanes};
        const float *q = x + (size_t){place.format("k + 1")} * {lanes};
        {lane} {{
        sum[j] += first * FROM(p + j * VECTOR);
        other[j] += second * FROM(q + j * VECTOR);
        }}
        }}
        if (k < end) {{
        const float last = {code.format("k")};
        const float *p = x + (size_t){place.format("k")} * {lanes};
        {lane}
        sum[j] += last * FROM(p + j * VECTOR);
        }}
        {lane}
        AT(y + o * {lanes} + j * VECTOR) = {result(tag, loop.weights, "(sum[j] + other[j])")};
        }}"""


def tile(loop: Loop, lanes: str) -> Tile:
    """The tile that a convolution is computed in."""
    assert loop.weights is not None
    _, height, width = loop.shape
    dense_rows = loop.weights.stride[1] == 1
    if lanes:  # 16 of them
        pixels = _even(width, SUMS // 16)
        rows = _even(height, SUMS // 16 // pixels)
        return Tile(rows, 1, pixels, True) if dense_rows else Tile(rows, pixels, 1, True)
    if dense_rows and width >= whole.ROW:
        span = _even(width, SUMS)
        return Tile(_even(height, SUMS // span), 1, span, True)
    units = _even(width, SCALARS)
    return Tile(_even(height, SCALARS // units), units, 1, False)


def _even(total: int, most: int) -> int:
    """Size of the parts that a total is cut into, none larger than `most` and all about as large."""
    parts = -(-total // max(most, 1))
    return -(-total // parts)


def _tiles(tag: str, loop: Loop, lanes: str) -> str:
    assert loop.weights is not None
    weights, cut = loop.weights, tile(loop, lanes)
    into, (outputs, height, width) = loop.shapes[0][2], loop.shape
    down, aside = weights.stride[0] * into, weights.stride[1]
    per = f" * {lanes}" if lanes else ""
    unit = _unit(cut, per)
    across = [_part("row", "top", height, cut.rows), _part("column", "left", width, cut.units * cut.span)]
    loops = "\n".join(
        f"for (size_t {index} = 0; {index} < {size}; {index}++)"
        for index, size in (("i", cut.rows), ("u", cut.units), ("j", unit.number))
        if str(size) != "1"
    )
    summed = f"sum[{'i' if cut.rows > 1 else 0}][{'u' if cut.units > 1 else 0}][{'j' if unit.number != '1' else 0}]"
    begin, end, code, place = _walk(tag, loop)
    return f"""
        for (size_t o = 0; o < {outputs}; o++) {{
        {across[0]}
        {across[1]}
        const float *from = x + (top * {down} + left * {aside}){per};
        float *to = y + ((o * {height} + top) * {width} + left){per};
        const {unit.kind} zero = {{0}};
        {unit.kind} sum[{cut.rows}][{cut.units}][{unit.number}];
        {loops}
        {summed} = zero;
        for (size_t k = {begin}; k < {end}; k++) {{
        const float weight = {code.format("k")};
        const float *p = from + {place.format("k")}{per};
        {loops}
        {summed} += weight * {unit.read.format("p" + _offset(cut, down, aside, per) + unit.shift)};
        }}
        {loops}
        {unit.write.format("to" + _offset(cut, width, 1, per) + unit.shift)} = {result(tag, weights, summed)};
        {chr(10).join("}" * (1 + "".join(across).count("{")))}"""


@dataclass(frozen=True)
class _Unit:
    """What a tile is added up in: type, how many cover a span, where each begins, memory read and written as it."""

    kind: str
    number: str
    shift: str
    read: str
    write: str


def _unit(cut: Tile, per: str) -> _Unit:
    if not cut.vectors:
        return _Unit("float", "1", "", "*({})", "*({})")
    span = f"{cut.span}{per}"
    return _Unit("vector", f"VECTORS({span})", f" + PLACE(j, {span})", "FROM({})", "AT({})")


def _part(index: str, first: str, total: int, size: int) -> str:
    """Where a tile begins: at 0, at multiples of its size, or so that the last tile ends where the whole does."""
    if size == total:
        return f"const size_t {first} = 0;"
    if total % size == 0:
        return f"for (size_t {first} = 0; {first} < {total}; {first} += {size}) {{"
    last = total - size
    return (
        f"for (size_t {index} = 0; {index} < {total}; {index} += {size}) {{\n"
        f"const size_t {first} = {index} < {last} ? {index} : {last};"
    )


def _offset(cut: Tile, down: int, aside: int, per: str) -> str:
    """What row `i` and unit `u` of a tile add to an address."""
    rows = f" + i * {down}{per}" if cut.rows > 1 else ""
    return rows + (f" + u * {aside}{per}" if cut.units > 1 else "")
