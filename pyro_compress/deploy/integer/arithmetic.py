"""Functions that integer C is given where it calls them: rounding, and what has a table.

Largest errors, which the tests hold: `logistic` 3.4e-4 (of 1), `tangent` 6.8e-4, `power` 4e-5 (of 1),
`logarithm` 1.1e-4, `inverse_root` 2^-28 of itself.
"""

from __future__ import annotations

import re

import numpy as np

from pyro_compress.graph.faces.c_text import table

CLAMPED = """
static int8_t clamped(int32_t value, int32_t low, int32_t high)
{
return (int8_t)(value < low ? low : value > high ? high : value);
}
"""

REQUANTIZED = """
/* sum * multiplier / 2^shift, halves up, plus the zero point */
static int8_t requantized(int32_t sum, int32_t multiplier, int32_t shift, int32_t zero, int32_t low, int32_t high)
{
const int64_t product = (int64_t)sum * multiplier + ((int64_t)1 << (shift - 1));
return clamped((int32_t)(product >> shift) + zero, low, high);
}
"""

SHIFTED = """
static int8_t shifted(int32_t sum, int32_t shift, int32_t zero, int32_t low, int32_t high)
{
return clamped(((sum + ((int32_t)1 << (shift - 1))) >> shift) + zero, low, high);
}
"""

LARGER = """
static int8_t larger(int8_t one, int8_t other)
{
return one > other ? one : other;
}
"""

SMALLER = """
static int8_t smaller(int8_t one, int8_t other)
{
return one < other ? one : other;
}
"""

SCALED = """
static int32_t scaled(int32_t sum, int32_t multiplier, int32_t shift)
{
return (int32_t)(((int64_t)sum * multiplier + ((int64_t)1 << (shift - 1))) >> shift);
}
"""

LOGISTIC = """
/* 1 / (1 + exp(-x)) in 32768ths, of 4096ths */
static int32_t logistic(int32_t x)
{
const int32_t v = x < 0 ? -x : x, i = v >> 8;
int32_t found = logistics[128];
if (v < 32768)
found = logistics[i] + (((logistics[i + 1] - logistics[i]) * (v & 255) + 128) >> 8);
return x < 0 ? 32768 - found : found;
}
"""

TANGENT = """
/* tanh(x) in 32768ths, of 4096ths */
static int32_t tangent(int32_t x)
{
return 2 * logistic(x > 65536 ? 131072 : x < -65536 ? -131072 : 2 * x) - 32768;
}
"""

LOGARITHM = """
/* the natural logarithm in 65536ths, of a number from 1 on */
static int32_t logarithm(uint32_t value)
{
int32_t bits = 31;
while (!(value >> 31)) {
value <<= 1;
bits--;
}
const int32_t i = (value >> 25) & 63, rest = (value >> 9) & 65535;
return bits * 45426 + logarithms[i] + (((logarithms[i + 1] - logarithms[i]) * rest) >> 16);
}
"""

POWER = """
/* 2^-x in 65535ths, of 65536ths */
static int32_t power(int32_t x)
{
const int32_t i = (x >> 10) & 63;
return (powers[i] - (((powers[i] - powers[i + 1]) * (x & 1023)) >> 10)) >> (x >> 16);
}
"""

SHARED = """
/* softmax: scores, of which multiplier / 2^shift makes logarithms to base 2 in 65536ths, become shares of 2^20 */
static void shared(int32_t *score, int32_t n, int32_t multiplier, int32_t shift)
{
int32_t most = score[0];
uint32_t sum = 0;
for (int32_t j = 1; j < n; j++)
most = most > score[j] ? most : score[j];
for (int32_t j = 0; j < n; j++) {
const int64_t below = ((int64_t)(most - score[j]) * multiplier + ((int64_t)1 << (shift - 1))) >> shift;
score[j] = below < 1048576 ? power((int32_t)below) : 0;
sum += (uint32_t)score[j];
}
const uint64_t part = ((uint64_t)1 << 46) / sum;
for (int32_t j = 0; j < n; j++)
score[j] = (int32_t)(((uint64_t)score[j] * part) >> 26);
}
"""

INVERSE_ROOT = """
/* 1 / sqrt(value) is what is returned, divided by 2^(shift + 12) */
static int32_t inverse_root(int64_t value, int32_t *shift)
{
uint64_t left = value > 0 ? (uint64_t)value : 1, root = 0;
*shift = 49;
for (; left < (uint64_t)1 << 60; left <<= 2)
--*shift;
for (uint64_t bit = (uint64_t)1 << 60; bit; bit >>= 2)
if (left >= root + bit) {
left -= root + bit;
root = (root >> 1) + bit;
} else
root >>= 1;
return (int32_t)((((uint64_t)1 << 61) - 1) / root);
}
"""

NORMAL = """
/* in 4096ths */
static int32_t normal(int32_t value, int32_t root, int32_t shift)
{
return (int32_t)(((int64_t)value * root + ((int64_t)1 << (shift - 1))) >> shift);
}
"""

FUNCTIONS = {
    "clamped": CLAMPED, "requantized": REQUANTIZED, "shifted": SHIFTED, "larger": LARGER, "smaller": SMALLER,
    "scaled": SCALED, "logistic": LOGISTIC, "tangent": TANGENT, "logarithm": LOGARITHM, "power": POWER,
    "shared": SHARED, "inverse_root": INVERSE_ROOT, "normal": NORMAL,
}  # fmt: skip
"""By name; one calls those before it alone."""
LOGISTICS = np.rint(32768 / (1 + np.exp(-np.arange(129) / 16))).astype(np.int64)
LOGARITHMS = np.rint(65536 * np.log1p(np.arange(65) / 64)).astype(np.int64)
POWERS = np.rint(65535 * 2.0 ** (-np.arange(65) / 64)).astype(np.int64)
TABLES = {"logistic": LOGISTICS, "logarithm": LOGARITHMS, "power": POWERS}


def needed(code: str) -> list[str]:
    """The functions that code calls, and those that these call, in order; the table of each before it."""
    found: list[str] = []
    for name, text in reversed(FUNCTIONS.items()):
        if re.search(rf"\b{name}\(", "\n".join([code, *found])):
            values = TABLES.get(name)
            arrays = table("uint16_t", f"{name}s", map(str, values.tolist())) if values is not None else ""
            found.insert(0, "\n".join([arrays, text]))
    return found
