"""exp, log and logistic as arithmetic that a compiler inlines, for large float32 tensors on a CPU.

What inductor calls instead, a library's vector function, costs three times as much: at every call the registers of the
loop around it go to memory and back. Polynomials and range reductions are Cephes' (Moshier 1984-1992, expf.c and
logf.c), good to 2 units in the last place; they reinterpret bits, which inductor compiles to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

SMALLEST = 1024
"""Tensors of fewer values are left to the library."""

EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
       2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts: the first has so few digits that its multiples are exact."""
ROOT_HALF_BITS = 0x3F3504F3
"""√½ as float32, read as an integer."""
MANTISSA, BIAS = 23, 127


def exp(x: Tensor) -> Tensor:
    """e^x; about 1e-38 below -87.3.

    Bounds cost three instructions each, for the sake of NaN. The upper one stands before the conversion, which makes
    the smallest of all integers of what is too large; what it leaves to the polynomial ends at ∞.
    """
    x = x.clamp_min(-87.3)
    power = (x * (1 / math.log(2))).round().clamp_max(BIAS)
    rest = (x - power * LN2_HIGH) - power * LN2_LOW
    value = polynomial(EXP, rest) * (rest * rest) + rest + 1.0
    return value * ((power.to(torch.int32) + BIAS) << MANTISSA).view(torch.float32)


def log(x: Tensor) -> Tensor:
    """Natural logarithm, NaN where there is none; 0 and ∞ count as 2^-127 and 2^128.

    Conditions are avoided: a compiler that keeps one for later stores it byte by byte.
    """
    bits = x.view(torch.int32)
    power = (bits - ROOT_HALF_BITS) >> MANTISSA
    rest = (bits - (power << MANTISSA)).view(torch.float32) - 1.0
    square = rest * rest
    value = polynomial(LOG, rest) * rest * square - 0.5 * square + rest + power.to(torch.float32) * math.log(2)
    return value + x.clamp_max(0.0).sqrt()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return 1 / (1 + exp(-x))


def softplus_backward(gradient: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    """Derivative of `log(1 + e^(βx)) / β`; beyond torch's threshold of 20 it is 1 in float32."""
    return gradient * sigmoid(x * beta)


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Value of a polynomial, its highest coefficient first (Estrin's scheme: few steps that wait for each other)."""
    values: list[Any] = list(coefficients[::-1])
    while len(values) > 1:
        pairs = [a + b * x for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[2 * len(pairs) :]
        x = x * x
    return cast(Tensor, values[0])


def _where_it_pays(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def chosen(*args: Any) -> Any:
        x: Tensor = args[-1] if len(args) == 1 else args[1]
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() < SMALLEST:
            return NotImplemented
        return function(*args)

    return chosen


ELEMENTARY: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.exp.default: _where_it_pays(exp),
    torch.ops.aten.log.default: _where_it_pays(log),
    torch.ops.aten.sigmoid.default: _where_it_pays(sigmoid),
    torch.ops.aten.softplus_backward.default: _where_it_pays(softplus_backward),
}
"""Operation -> its replacement, as `make_fx` takes decompositions."""
