"""Convolutions of which few weights are zero: stored whole, sixteen outputs side by side.

A vector of weights, one per output channel, is multiplied by one pixel: whatever the stride and however short a row,
nothing is read across the end of a vector, and every pixel read counts for all outputs of its block.
"""

from __future__ import annotations

import numpy as np

from pyro_compress.graph.faces.c import Loop

ROW = 8
"""Pixels per row from which on a convolution runs example by example: the widest vector that is used."""
WHOLE = 2 / 5
"""Share of non-zeros from which on a convolution is stored whole."""
BLOCK = 16
"""Outputs of a tile; all sums of its pixels fit into registers."""

TYPES = """
#if defined(__AVX512F__) && defined(__GNUC__)
#define WIDE 16
#define PIXELS 8
typedef float wide __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
#else
#define WIDE VECTOR
#define PIXELS 4
typedef vector wide;
#endif
"""
"""The widest vectors: pixels of a row are too few for them, outputs are not."""


def is_whole(loop: Loop) -> bool:
    """Whether a layer is such a convolution, with a block of outputs; those of short rows run on blocks of examples."""
    assert loop.weights is not None
    codes = loop.weights.codes
    wide = loop.op != "linear" and loop.weights.groups == 1 and loop.shape[2] >= ROW and len(codes) >= BLOCK
    return wide and bool(np.count_nonzero(codes) > WHOLE * codes.size)


def scratch(loop: Loop) -> int:
    """Values behind its outputs: the weights of a block as floats."""
    if loop.weights is None or not is_whole(loop):
        return 0
    return BLOCK * int(loop.weights.codes[0].size)


def ordered(loop: Loop) -> tuple[np.ndarray, np.ndarray]:
    """Weights block by block, of every pixel those of all outputs; and the places of these pixels."""
    assert loop.weights is not None
    weights, (_, height, width) = loop.weights, loop.shapes[0]
    codes = weights.codes.reshape(len(weights.codes), -1)
    padded = np.pad(codes, [(0, -len(codes) % BLOCK), (0, 0)])
    channel, row, column = np.indices(weights.codes.shape[1:])
    places = (channel * height + row * weights.dilation[0]) * width + column * weights.dilation[1]
    return padded.reshape(-1, BLOCK, codes.shape[1]).transpose(0, 2, 1).ravel(), places.ravel()


def body(tag: str, loop: Loop, result: str) -> str:
    """What the layer's function does; `result` is what becomes of the sum `total[u][l]` of output `o`."""
    assert loop.weights is not None
    (outputs, height, width), weights = loop.shape, loop.weights
    count = weights.codes[0].size
    down, aside = weights.stride[0] * loop.shapes[0][2], weights.stride[1]
    each = f"for (size_t u = 0; u < PIXELS; u++)\nfor (size_t j = 0; j < {BLOCK} / WIDE; j++)"
    return f"""
        float *const weights = y + {outputs * height * width};
        for (size_t block = 0; block < {outputs}; block += {BLOCK}) {{
        for (size_t i = 0; i < {count * BLOCK}; i++)
        weights[i] = {tag}_codes[block * {count} + i];
        for (size_t top = 0; top < {height}; top++)
        for (size_t column = 0; column < {width}; column += PIXELS) {{
        const size_t left = column + PIXELS <= {width} ? column : {width} - PIXELS;
        const float *from = x + top * {down} + left * {aside};
        const wide zero = {{0}};
        wide sum[PIXELS][{BLOCK} / WIDE];
        {each}
        sum[u][j] = zero;
        for (size_t k = 0; k < {count}; k++) {{
        const float *p = from + {tag}_places[k];
        {each}
        sum[u][j] += p[u * {aside}] * *(const wide *)(weights + k * {BLOCK} + j * WIDE);
        }}
        float total[PIXELS][{BLOCK}];
        {each}
        *(wide *)(total[u] + j * WIDE) = sum[u][j];
        for (size_t o = block; o < {outputs} && o < block + {BLOCK}; o++)
        for (size_t u = 0; u < PIXELS; u++)
        y[(o * {height} + top) * {width} + left + u] = {result};
        }}
        }}"""
