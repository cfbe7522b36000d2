"""The constant arrays of a layer in integer C: its non-zeros, unless all of its weights take fewer bytes.

In a body `tag` begins the names of the arrays, and `o` is the output that is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_compress.deploy.integer.fixed_point import IntegerLayer
from pyro_compress.deploy.integer.steps import Step
from pyro_compress.graph.faces.c_text import integer_type, integers, table
from pyro_compress.types import count


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


def _width(values: np.ndarray) -> int:
    """Bytes of an integer of a table."""
    return 1 if values.max(initial=0) < 256 else 2 if values.max(initial=0) < 65536 else 4


def is_whole(step: Step) -> bool:
    """Whether a layer is stored with its zeros: that takes no more bytes."""
    codes, taps = weights_of(step).codes, taps_of(step)
    if not is_vector(step):
        each = 3 if is_bordered(step) and step.shapes[0][0] < 257 else 4 if is_bordered(step) else 1
        each += 0 if is_bordered(step) else _width(places_of(step))
        return bool(len(taps.codes) * each + 2 * len(taps.starts) >= codes.size)
    readable = codes.shape[1:] == step.shapes[0]
    return readable and bool(len(taps.codes) * (1 + _width(places_of(step))) + 2 * len(taps.starts) >= codes.size)


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


def places_of(step: Step) -> np.ndarray:
    """Where in the input each non-zero finds the value for the first output of its channel."""
    taps = taps_of(step)
    return taps.channels * count(step.shapes[0][1:]) + offsets(step)[taps.taps]


def tables(tag: str, step: Step) -> str:
    """The arrays of a layer."""
    weights, taps = weights_of(step), taps_of(step)
    whole, bordered = is_whole(step), is_bordered(step)
    codes = weights.codes.ravel() if whole else taps.codes
    parts = [table("int8_t", f"{tag}_codes", map(str, codes.tolist()))]
    if not whole:
        parts.append(integers(f"{tag}_starts", taps.starts))
        if bordered:
            parts += [integers(f"{tag}_channels", taps.channels), integers(f"{tag}_taps", taps.taps)]
        else:
            parts.append(integers(f"{tag}_places", places_of(step)))
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
            const {integer_type(places_of(step))} *place = {tag}_places + {tag}_starts[o];
            while (code < end) {{
            const int32_t w = *code++;
            const int8_t *p = {base} + *place++;
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
