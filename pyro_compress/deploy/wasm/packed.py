"""Smaller tables: places and beginnings of a C source as differences in bytes, which are added up at the first call.

In the C file they are numbers of 16 or 32 bits, as the code reads them. Most differences between neighbours fit into
eight; of 255 and more, every 255 is a byte of its own. Places begin anew with every output: differences are taken
modulo one more than the largest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyro_compress.graph.faces.c_text import table

TABLE = re.compile(r"static const uint(16|32)_t (step\d+(?:_inner)?_(?:places|starts))\[(\d+)\] = \{([^}]*)\};\n")
WORTH = 64
"""Bytes that a table must save: adding it up takes code."""
UNPACK = """
#define UNPACK(bits) \\
static __attribute__((noinline, minsize)) void unpack##bits( \\
    const uint8_t *steps, uint##bits##_t *values, size_t n, uint32_t modulus) \\
{ \\
    uint32_t sum = 0, step; \\
    for (size_t i = 0; i < n; i++) { \\
        do \\
            sum += step = *steps++; \\
        while (step == 255); \\
        sum -= sum < modulus ? 0 : modulus; \\
        values[i] = (uint##bits##_t)sum; \\
    } \\
}
UNPACK(16)
UNPACK(32)
"""


def packed(code: str) -> tuple[str, list[str]]:
    """A C source with smaller tables, and the statements that make them whole; `UNPACK` goes between both."""
    calls = list[str]()

    def smaller(found: re.Match[str]) -> str:
        bits, name, count, text = found.groups()
        values = [int(word) for word in text.split(",") if word.strip()]
        modulus = max(values) + 1
        steps = differences(values, modulus)
        if len(steps) + WORTH > len(values) * int(bits) // 8:
            return found[0]
        calls.append(f"unpack{bits}({name}_packed, {name}, {count}, {modulus});")
        return table("uint8_t", f"{name}_packed", map(str, steps)) + f"static uint{bits}_t {name}[{count}];\n"

    return TABLE.sub(smaller, code), calls


def differences(values: Sequence[int], modulus: int) -> list[int]:
    """Bytes that add up to the values, modulo `modulus`; a byte of 255 goes on."""
    steps, before = list[int](), 0
    for value in values:
        more, rest = divmod((value - before) % modulus, 255)
        steps += [255] * more + [rest]
        before = value
    return steps
