"""The inlined functions against double precision, through the compiler; what no number is stays none."""

import math

import pytest
import torch
from torch import Tensor

from pyro_compress.bayes import elementary
from pyro_compress.bayes.compiler import compiled, traced

SIZE = 1 << 16
RANGES = {"exp": (-87.0, 88.0), "log": (1e-37, 1e37), "sigmoid": (-80.0, 80.0)}


def inputs(name: str) -> Tensor:
    low, high = RANGES[name]
    if name != "log":
        return torch.linspace(low, high, SIZE)
    near_one = torch.linspace(0.5, 2.0, SIZE // 2)
    return torch.cat([torch.logspace(math.log10(low), math.log10(high), SIZE // 2), near_one])


LIMITS = torch.tensor([-math.inf, -1e12, -200.0, -1.0, 0.0, 1.0, 200.0, 5e9, 1e12, math.inf, math.nan])


@pytest.fixture(scope="module")
def through_the_compiler() -> dict[str, Tensor]:
    """What torch's functions are turned into, all by one compilation: of the inputs between the limits, twice."""
    given = [torch.cat([LIMITS, inputs(name), LIMITS]) for name in RANGES]
    outs = [torch.zeros_like(x) for x in given]

    def functions(given: list[Tensor], outs: list[Tensor]) -> None:
        for name, x, out in zip(RANGES, given, outs, strict=True):
            out.copy_(getattr(torch, name)(x))

    compiled(traced(functions, (given, outs)), (given, outs))(*given, *outs)
    return dict(zip(RANGES, outs, strict=True))


@pytest.mark.parametrize("name", RANGES)
def test_accuracy(name: str, through_the_compiler: dict[str, Tensor]) -> None:
    """Within 3 units in the last place (of 2^-24, relative) of double precision."""
    x = inputs(name)
    wanted = getattr(torch, name)(x.double())
    for found in (getattr(elementary, name)(x), through_the_compiler[name][len(LIMITS) : -len(LIMITS)]):
        error = (found - wanted).abs() / wanted.abs().clamp_min(1e-30)
        assert float(error.max()) < 6 * 2.0**-24


@pytest.mark.parametrize("name", RANGES)
def test_limits(name: str, through_the_compiler: dict[str, Tensor]) -> None:
    """Infinities, numbers past any integer and NaN come out as the library's, within what float32 holds."""
    wanted = getattr(torch, name)(LIMITS)
    if name == "log":
        wanted = wanted.clamp(-127 * math.log(2), 128 * math.log(2))
    first, last = through_the_compiler[name][: len(LIMITS)], through_the_compiler[name][-len(LIMITS) :]
    for found in (getattr(elementary, name)(LIMITS), first, last):
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-37, equal_nan=True)


def test_softplus_backward() -> None:
    x = torch.linspace(-60, 60, SIZE).requires_grad_()
    (wanted,) = torch.autograd.grad(torch.nn.functional.softplus(x).sum(), x)
    found = elementary.softplus_backward(torch.ones(SIZE), x.detach(), 1.0, 20.0)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-30)


def test_small_tensors_and_other_types_are_left_alone() -> None:
    for x in (torch.zeros(elementary.SMALLEST - 1), torch.zeros(SIZE, dtype=torch.float64)):
        assert elementary.ELEMENTARY[torch.ops.aten.exp.default](x) is NotImplemented
