"""Exponentials of whole vectors: without them an LSTM or a transformer spends most of its time in libm.

A compiler of plain C makes one call per number of `expf`. The functions here do the same arithmetic for a vector:
within 2 units in the last place for exp and tanh, 4e-7 for erf. What is left behind the last whole vector goes through
libm.
"""

from __future__ import annotations

import re

WIDEST = 8
"""Numbers of a vector at most: what is a multiple of it leaves none behind."""
VECTORS = {"expf": "vector_exp", "tanhf": "vector_tanh", "erff": "vector_erf"}
"""Of libm -> of a vector."""
NEEDS = {"vector_tanh": ("vector_exp", "chosen"), "vector_exp": ("chosen",), "vector_erf": ("chosen",)}
"""What a function calls."""
CODE = {
    "chosen": """
/* a where the bits of a mask are set, elsewhere b */
static vector chosen(whole mask, vector a, vector b)
{
return (vector)((mask & (whole)a) | (~mask & (whole)b));
}
""",
    "vector_exp": """
/* 2^n times a polynomial (Cephes); n is rounded by a number whose last bit is worth one */
static vector vector_exp(vector v)
{
const vector zero = {0}, low = zero - 87.0f, high = zero + 88.0f;
const vector least = chosen((whole)(v < low), low, v), x = chosen((whole)(least > high), high, least);
const vector shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
const vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
const vector tail = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
+ 1.6666665459e-1f) * r + 0.5f;
return (r * r * tail + r + 1) * (vector)(((whole)shifted + 127u) << 23);
}
""",
    "vector_tanh": """
/* a polynomial near zero (Cephes), elsewhere by the exponential */
static vector vector_tanh(vector v)
{
const vector zero = {0}, size = chosen((whole)(v < zero), -v, v), z = v * v;
const vector tail = (((-5.70498872745e-3f * z + 2.06390887954e-2f) * z - 5.37397155531e-2f) * z + 1.33314422036e-1f) * z
- 3.33332819422e-1f;
const vector large = 1 - 2 / (vector_exp(2 * size) + 1);
return chosen((whole)(size < zero + 0.625f), v + v * z * tail, chosen((whole)(v < zero), -large, large));
}
""",
    "vector_erf": """
/* a quotient of polynomials, as in XLA */
static vector vector_erf(vector v)
{
const vector zero = {0}, low = zero - 4.0f, high = zero + 4.0f;
const vector least = chosen((whole)(v < low), low, v), x = chosen((whole)(least > high), high, least), z = x * x;
const vector above = ((((((-2.72614225801306e-10f * z + 2.77068142495902e-08f) * z - 2.10102402082508e-06f) * z
- 5.69250639462346e-05f) * z - 7.34990630326855e-04f) * z - 2.95459980854025e-03f) * z - 1.60960333262415e-02f) * x;
const vector below = (((-1.45660718464996e-05f * z - 2.13374055278905e-04f) * z - 1.68282697438203e-03f) * z
- 7.37332916720468e-03f) * z - 1.42647390514189e-02f;
return above / below;
}
""",
}
"""The functions, of gcc's and clang's vectors; a scalar beside a vector stands for as many of it."""


def is_vectorable(text: str) -> bool:
    """Whether an expression of C is arithmetic and functions of `VECTORS` alone, one of these at least."""
    called = re.findall(r"([a-z]\w*)\(", text)
    return bool(called) and set(called) <= set(VECTORS) and "?" not in text


def of_vectors(text: str) -> str:
    """The same with vectors for numbers."""
    return re.sub(r"\b(expf|tanhf|erff)\(", lambda found: f"{VECTORS[found[1]]}(", text)


def functions(code: str) -> str:
    """The functions that a code calls, where there are vectors; elsewhere they are those of libm."""
    asked = [name for name in VECTORS.values() if f"{name}(" in code]
    if not asked:
        return ""
    needed = set(asked).union(*(NEEDS[name] for name in asked))
    plain = "\n".join(f"#define {name} {libm}" for libm, name in VECTORS.items() if name in asked)
    kind = "typedef uint32_t whole __attribute__((vector_size(4 * VECTOR), aligned(4), may_alias));"
    found = "".join(text for name, text in CODE.items() if name in needed)
    return f"\n#if VECTOR > 1\n{kind}\n{found}#else\n{plain}\n#endif\n"
