"""Shapes of recurrent layers for `torch.export`, which otherwise works them out step by step.

Traced on tensors without values, an LSTM over 256 steps takes `torch.export` twenty seconds to learn the shape of its
output: torch takes the layer apart into its steps. While a network is exported, the two layers tell their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def _lstm(x: Tensor, start: list[Tensor], parameters: list[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    hidden, cell = start
    return _outputs(x, hidden, *rest), torch.empty_like(hidden), torch.empty_like(cell)


def _gru(x: Tensor, start: Tensor, parameters: list[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    return _outputs(x, start, *rest), torch.empty_like(start)


def _outputs(
    x: Tensor, hidden: Tensor, biases: bool, layers: int, dropout: float, train: bool, both: bool, batch_first: bool
) -> Tensor:
    return x.new_empty((*x.shape[:2], hidden.shape[-1] * (1 + both)))


@contextmanager
def shapes_only() -> Iterator[None]:
    """`torch.lstm` and `torch.gru` give tensors of the right shapes and any values: for tracing only."""
    kernels: tuple[tuple[torch._ops.OpOverload, Callable[..., tuple[Tensor, ...]]], ...] = (
        (torch.ops.aten.lstm.input, _lstm),
        (torch.ops.aten.gru.input, _gru),
    )
    before = [dict(operation.py_kernels) for operation, _ in kernels]
    try:
        for operation, shapes in kernels:
            operation.py_kernels.update(dict.fromkeys(operation.py_kernels, shapes))
            operation._dispatch_cache.clear()
        yield
    finally:
        for (operation, _), found in zip(kernels, before, strict=True):
            operation.py_kernels.update(found)
            operation._dispatch_cache.clear()
