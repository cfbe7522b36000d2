"""Convolutions of a step: as torch's own, or as one matrix product where torch's own are slow.

At the end of a deep network many channels meet at few positions (VGG-16: 512 x 512 of them at 4x4 and 2x2). There the
convolutions of CPUs, and most of all their gradients, take two to twelve times as long as the product of the gathered
neighbourhoods by the weight, which is the same sum in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
MOST_POSITIONS = 16
LEAST_WEIGHTS = 1 << 19
"""Of an image's positions and a weight's values: where the product is the faster one (measured on AVX-512 and AMX)."""


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int | str = 0, dilation: Sequence[int] | int = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.conv1d`, `conv2d` or `conv3d`, by the dimensions of the weight."""
    if weight.numel() >= LEAST_WEIGHTS and _in_a_step(x, weight) and _is_small(x, weight, stride, dilation, groups):
        return _product(x, weight, bias, padding)
    return CONVOLUTIONS[weight.dim() - 3](x, weight, bias, stride, padding, dilation, groups)


def convolving(net: nn.Module) -> AbstractContextManager[object]:
    """What a step of a network of anybody's modules runs in, to have its 2-D convolutions by `convolve`."""
    large = any(one.dim() == 4 and one.numel() >= LEAST_WEIGHTS for one in net.parameters())
    return _Convolving() if large else nullcontext()


class _Convolving(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = {"x" if name == "input" else name: value for name, value in (kwargs or {}).items()}
        return convolve(*args, **named) if func is F.conv2d else func(*args, **(kwargs or {}))


def _in_a_step(x: Tensor, weight: Tensor) -> bool:
    """Whether gradients are wanted, on a CPU; what is exported has the operation's own name."""
    on_cpu = x.device.type == "cpu"
    return on_cpu and weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting()


def _is_small(
    x: Tensor, weight: Tensor, stride: Sequence[int] | int, dilation: Sequence[int] | int, groups: int
) -> bool:
    plain = groups == 1 and x.dim() == 4 and {*_pair(stride), *_pair(dilation)} == {1}
    return plain and x.shape[2] * x.shape[3] <= MOST_POSITIONS


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int] | int | str) -> Tensor:
    """The neighbourhoods of all positions side by side, by the weight; channels are last in memory."""
    high, wide = weight.shape[2:]
    before, after = _sides(padding, (high, wide))
    around = F.pad(x.permute(0, 2, 3, 1), (0, 0, before[1], after[1], before[0], after[0]))
    rows, columns = around.shape[1] - high + 1, around.shape[2] - wide + 1
    near = [around[:, i : i + rows, j : j + columns] for i in range(high) for j in range(wide)]
    product = F.linear(torch.cat(near, -1), weight.permute(0, 2, 3, 1).flatten(1), bias)
    return product.permute(0, 3, 1, 2)


def _sides(padding: Sequence[int] | int | str, kernel: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    if padding == "same":
        return [(k - 1) // 2 for k in kernel], [k - 1 - (k - 1) // 2 for k in kernel]
    each = (0, 0) if isinstance(padding, str) else _pair(padding)
    return each, each


def _pair(given: Sequence[int] | int) -> Sequence[int]:
    return (given, given) if isinstance(given, int) else given if len(given) > 1 else (*given, *given)
