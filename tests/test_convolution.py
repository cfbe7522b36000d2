"""Convolutions at few positions are products: the same values and gradients, under the same names elsewhere."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_compress.graph import convolution
from pyro_compress.graph.convolution import convolve
from pyro_compress.training.minibatches import Minibatches
from pyro_compress.training.point import PointPlan, train_point
from pyro_compress.types import Data


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every weight counts as large; the shapes of those that were multiplied."""
    monkeypatch.setattr(convolution, "LEAST_WEIGHTS", 1)
    seen: list[tuple[int, ...]] = []
    product = convolution._product

    def noted(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(weight.shape))
        return product(x, weight, *rest)

    monkeypatch.setattr(convolution, "_product", noted)
    return seen


def gradients(x: Tensor, parameters: list[Tensor], value: Tensor) -> list[Tensor]:
    """Of a sum that weighs every output differently."""
    weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
    return list(torch.autograd.grad((weights * value).sum(), [x, *parameters]))


@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize("padding", [(1, 1), (0, 2), (0, 0), "same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_convolution(
    padding: Any, kernel: tuple[int, int], bias: bool, products: list[tuple[int, ...]]
) -> None:
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, *kernel, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(7, dtype=torch.float64, requires_grad=True) if bias else None
    given = [weight] if offset is None else [weight, offset]
    by_torch = F.conv2d(x, weight, offset, 1, padding)
    ours = convolve(x, weight, offset, [1, 1], padding, [1, 1], 1)
    assert products == [tuple(weight.shape)]
    torch.testing.assert_close(ours, by_torch)
    for one, other in zip(gradients(x, given, ours), gradients(x, given, by_torch), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((5, 4), ([1, 1], [1, 1], [1, 1], 1)),
        ((4, 4), ([2, 2], [1, 1], [1, 1], 1)),
        ((4, 4), ([1, 1], [2, 2], [2, 2], 1)),
        ((4, 4), ([1, 1], [1, 1], [1, 1], 2)),
        ((16,), ([1], [1], [1], 1)),
        ((2, 2, 2), ([1] * 3, [1] * 3, [1] * 3, 1)),
    ],
)
def test_what_is_no_product_is_torchs(
    size: tuple[int, ...], settings: tuple[Any, ...], products: list[tuple[int, ...]]
) -> None:
    x = torch.randn(3, 4, *size)
    weight = torch.randn(6, 4 // settings[-1], *[3] * len(size), requires_grad=True)
    by_torch = convolution.CONVOLUTIONS[len(size) - 1](x, weight, None, *settings)
    torch.testing.assert_close(convolve(x, weight, None, *settings), by_torch)
    assert not products


def test_without_gradients_it_is_torchs(products: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(3, 4, 4, 4), torch.randn(6, 4, 3, 3)
    settings = ([1, 1], [1, 1], [1, 1], 1)
    convolve(x, weight, None, *settings)
    with torch.no_grad():
        convolve(x, weight.requires_grad_(), None, *settings)
    assert not products


def test_steps_of_anybodys_modules(products: list[tuple[int, ...]]) -> None:
    """Training of point weights, whatever a module calls its convolution by; the weights end as torch's do."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.weight = nn.Conv2d(2, 6, 3, padding="same"), nn.Parameter(torch.randn(5, 6, 3, 3) / 7)

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(input=torch.relu(self.near(x)), weight=self.weight, padding=1)
            return F.conv2d(y, self.weight[:, :5], stride=2).mean((2, 3))

    ended = []
    for by_product in (True, False):
        torch.manual_seed(0)
        net, generator = Own(), torch.Generator().manual_seed(1)
        data = Data(torch.randn(24, 2, 4, 4, generator=torch.Generator().manual_seed(2)), torch.arange(24) % 5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution, "LEAST_WEIGHTS", 1 if by_product else 1 << 30)
            train_point(net, Minibatches(data, 8, generator, "cpu"), PointPlan(3, 0.1, "sgd"))
        ended.append(torch.cat([one.detach().flatten() for one in net.parameters()]))
    torch.testing.assert_close(*ended)
    assert set(products) == {(6, 2, 3, 3), (5, 6, 3, 3)}


def test_an_exported_network_keeps_its_convolution(products: list[tuple[int, ...]]) -> None:
    class Convolving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return convolve(x, self.weight, None, [1, 1], [1, 1], [1, 1], 1)

    program = torch.export.export(Convolving(), (torch.randn(2, 4, 4, 4),))
    assert "aten.conv2d.default" in program.graph_module.code.replace("torch.ops.", "")
    assert not products


def test_the_large_ones_are_vgg_16s_last() -> None:
    """Widths of 256 and more at four by four and below."""
    sizes = {(256, 128): False, (512, 256): True, (512, 512): True}
    assert {shape: shape[0] * shape[1] * 9 >= convolution.LEAST_WEIGHTS for shape in sizes} == sizes
