"""The constant arrays of a layer in integer C: its non-zeros, or where these are most, all weights.

In a body `tag` begins the names of the arrays, and `o` is the output that is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_compress.deploy.integer.fixed_point import IntegerLayer
from pyro_compress.deploy.integer.steps import Step
from pyro_compress.graph.faces.c_text import integer_type, integers, table
from pyro_compress.types import count

WORTH = 4 / 3
"""How many times the bytes of all weights the non-zeros and their places may take: zeros cost time."""


@dataclass(frozen=True)
class Taps:
    """The non-zeros of a layer in the order of their outputs.

    Attributes:
        codes: of each; `channels` that it reads, and `taps`, its place in the window.
        starts: where each output begins.
    """

    codes: np.ndarray
    channels: np.ndarray
    taps: np.ndarray
    starts: np.ndarray


def weights_of(step: Step) -> IntegerLayer:
    """The integers of a layer."""
    assert step.layer is not None
    return step.layer


def taps_of(step: Step) -> Taps:
    """The non-zeros of a layer."""
    codes = weights_of(step).codes
    out, channel, row, column = np.nonzero(codes)
    group = out // (len(codes) // step.groups)
    channels = channel + group * (step.shapes[0][0] // step.groups)
    starts = np.searchsorted(out, np.arange(len(codes) + 1))
    return Taps(codes[codes != 0], channels, row * codes.shape[3] + column, starts)


def kernel_of(step: Step) -> tuple[int, int]:
    """Rows and columns of a window."""
    return weights_of(step).codes.shape[2], weights_of(step).codes.shape[3]


def offsets(step: Step) -> np.ndarray:
    """Per place of the window, what it adds to an index into one channel."""
    rows, columns = np.indices(kernel_of(step)).reshape(2, -1)
    (top, left), (down, aside) = step.border, step.dilation
    return (rows * down - top) * step.shapes[0][2] + columns * aside - left


@dataclass(frozen=True)
class Gaps:
    """The non-zeros of a layer without a border as steps from one to the next; too long ones stop at zeros between.

    Attributes:
        codes: of each, zeros among them.
        gaps: what is added to the address of the value before, of an output's first to that of its window.
        starts: where each output begins.
    """

    codes: np.ndarray
    gaps: np.ndarray
    starts: np.ndarray

    @property
    def bytes(self) -> int:
        """Bytes of the arrays."""
        return len(self.codes) * (1 + np.dtype(integer_type(self.gaps)[:-2]).itemsize) + 2 * len(self.starts)


def gaps_of(step: Step) -> Gaps:
    """The steps that take the fewest bytes, of 8 bits or of 16."""
    taps = taps_of(step)
    places = taps.channels * count(step.shapes[0][1:]) + offsets(step)[taps.taps]
    before = np.concatenate([[0], places[:-1]])
    before[taps.starts[:-1][taps.starts[:-1] < len(places)]] = 0
    return min((_with_stops(taps, places - before, most) for most in (255, 65535)), key=lambda one: one.bytes)


def _with_stops(taps: Taps, gaps: np.ndarray, most: int) -> Gaps:
    stops = np.maximum(gaps - 1, 0) // most
    ends = np.cumsum(stops + 1)
    codes, steps = np.zeros(ends[-1] if len(ends) else 0, np.int8), np.full(ends[-1] if len(ends) else 0, most)
    codes[ends - 1], steps[ends - 1] = taps.codes, gaps - most * stops
    return Gaps(codes, steps, np.concatenate([[0], ends])[taps.starts])


def is_whole(step: Step) -> bool:
    """Whether a layer is stored with its zeros, which are multiplied then."""
    codes, taps = weights_of(step).codes, taps_of(step)
    if is_bordered(step):
        each = 3 if step.shapes[0][0] <= 256 else 4
        return bool(len(taps.codes) * each + 2 * len(taps.starts) > WORTH * codes.size)
    readable = not is_vector(step) or codes.shape[1:] == step.shapes[0]
    return readable and bool(gaps_of(step).bytes > WORTH * codes.size)


def is_bordered(step: Step) -> bool:
    """Whether a window reaches over the edge of the input."""
    _, height, width = step.shapes[0]
    (rows, columns), (_, high, wide) = kernel_of(step), step.map
    ends = (
        (high - 1) * step.strides[0] - step.border[0] + (rows - 1) * step.dilation[0],
        (wide - 1) * step.strides[1] - step.border[1] + (columns - 1) * step.dilation[1],
    )
    return step.border != (0, 0) or ends[0] >= height or ends[1] >= width


def is_vector(step: Step) -> bool:
    """Whether a layer has one sum per channel."""
    return step.map[1:] == (1, 1) and not is_bordered(step) and step.window is None


def tables(tag: str, step: Step) -> str:
    """The arrays of a layer."""
    weights, bordered = weights_of(step), is_bordered(step)
    if is_whole(step):
        codes, named = weights.codes.ravel(), {}
    elif bordered:
        taps = taps_of(step)
        codes, named = taps.codes, {"starts": taps.starts, "channels": taps.channels, "taps": taps.taps}
    else:
        gaps = gaps_of(step)
        codes, named = gaps.codes, {"starts": gaps.starts, "gaps": gaps.gaps}
    parts = [table("int8_t", f"{tag}_codes", map(str, codes.tolist()))]
    parts += [integers(f"{tag}_{name}", values) for name, values in named.items()]
    if bordered:
        parts.append(_border_tables(tag, step))
    if weights.bias.any():
        parts.append(integers(f"{tag}_bias", weights.bias))
    if len(weights.multipliers) > 1:
        parts += [integers(f"{tag}_multipliers", weights.multipliers), integers(f"{tag}_shifts", weights.shifts)]
    return "".join(parts)


def _border_tables(tag: str, step: Step) -> str:
    """Per place of the window: its row, its offset, and the first and last output that it has a value for."""
    (rows, columns), (_, _, width), aside = kernel_of(step), step.shapes[0], step.strides[1]
    row, column = np.indices((rows, columns)).reshape(2, -1)
    row, column = row * step.dilation[0] - step.border[0], column * step.dilation[1] - step.border[1]
    first = np.clip(-(column // aside), 0, step.map[2])
    last = np.clip((width - 1 - column) // aside + 1, first, step.map[2])
    named = {"rows": row, "offsets": offsets(step), "first": first, "last": last}
    return "".join(integers(f"{tag}_{name}", values) for name, values in named.items())


def finished(tag: str, step: Step, value: str) -> str:
    """The call that makes 8 bits of a sum."""
    weights = weights_of(step)
    several = len(weights.multipliers) > 1
    factor = f"{tag}_multipliers[o], {tag}_shifts[o]" if several else f"{weights.multipliers[0]}, {weights.shifts[0]}"
    return f"requantized({value}, {factor}, {step.grid.zero}, {step.low}, {step.high})"


def bias_of(tag: str, step: Step) -> str:
    """What the sum of output `o` begins with."""
    return f"{tag}_bias[o]" if weights_of(step).bias.any() else "0"


def walk(tag: str, step: Step, base: str, adds: str) -> str:
    """For every weight `w` of output `o` and the address `p` of what it multiplies for the first output of a tile."""
    (_, height, width), codes = step.shapes[0], weights_of(step).codes
    if not is_whole(step):
        return f"""
            const int8_t *code = {tag}_codes + {tag}_starts[o], *const end = {tag}_codes + {tag}_starts[o + 1];
            const {integer_type(gaps_of(step).gaps)} *gap = {tag}_gaps + {tag}_starts[o];
            const int8_t *p = {base};
            while (code < end) {{
            const int32_t w = *code++;
            p += *gap++;
            {adds}
            }}"""
    return f"""
        const int8_t *code = {tag}_codes + o * {codes[0].size};
        for (int32_t c = 0; c < {codes.shape[1]}; c++)
        for (int32_t i = 0; i < {codes.shape[2]}; i++)
        for (int32_t j = 0; j < {codes.shape[3]}; j++) {{
        const int32_t w = *code++;
        const int32_t line = {channel(step)} * {height} + i * {step.dilation[0]};
        const int8_t *p = {base} + line * {width} + j * {step.dilation[1]};
        {adds}
        }}"""


def channel(step: Step) -> str:
    """The channel that the `c`-th of a group is, of output `o`."""
    if step.groups == 1:
        return "c"
    each, outputs = weights_of(step).codes.shape[1], step.shape[0] // step.groups
    group = "o" if outputs == 1 else f"o / {outputs}"
    return group if each == 1 and outputs == 1 else f"({group} * {each} + c)"
