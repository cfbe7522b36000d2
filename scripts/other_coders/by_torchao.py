"""torchao's weight-only integers in groups, in an environment with torch and torchao.

`IntxWeightOnlyConfig` is the one whose 4 bits run on every CPU: the weights become float32 again when they are used.
"""

import logging

import numpy as np
import torch
from serve import Arrays, serve
from torch import Tensor, nn

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao registers what torch has already

from torchao.quantization import IntxWeightOnlyConfig, quantize_  # noqa: E402
from torchao.quantization.granularity import PerAxis, PerGroup  # noqa: E402


def divided(width: int, group: int) -> int:
    """The largest group of at most this size that divides a row; 0: the whole row."""
    return next(size for size in range(min(group or width, width), 0, -1) if width % size == 0)


def rounded(weight: Tensor, bits: int, size: int) -> Tensor:
    """A weight `(out, in)` or `(out, in, height, width)` as torchao keeps it, a scale for so many of `in`."""
    with torch.device("meta"):
        layer = nn.Linear(1, 1, bias=False) if weight.ndim == 2 else nn.Conv2d(1, 1, 1, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    granularity = PerAxis(0) if size == weight.shape[1] else PerGroup(size)
    config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity)
    quantize_(layer, config, filter_fn=lambda module, name: True)
    return layer.weight


def packed(integers: Tensor, bits: int) -> bytes:
    """Two integers of 4 bits in a byte."""
    values = integers.flatten().numpy()
    if bits != 4:
        return values.tobytes()
    low, high = (np.resize(part, (len(values) + 1) // 2) for part in (values[::2], values[1::2]))
    return (low & 15 | (high & 15) << 4).astype(np.uint8).tobytes()


def code(given: Arrays, setting: dict) -> Arrays:
    """What is kept of every tensor, once with two integers in a byte and once with one; and its values.

    A weight whose integers, scales and zero points would take more than its float32 stays as it is.
    """
    integers, loose, scales, others, values = b"", b"", b"", b"", {}
    for name, array in given.items():
        bits = setting["bits"].get(name)
        size = divided(array.shape[1], setting["group"]) if bits else 0
        if not bits or 5 / size + bits / 8 >= 4:
            others += array.tobytes()
            continue
        weight = rounded(torch.from_numpy(array), bits, size)
        integers += packed(weight.qdata, bits)
        loose += packed(weight.qdata, 8)
        scales += weight.scale.numpy().tobytes() + weight.zero_point.numpy().tobytes()
        values[f"tensor {name}"] = weight.dequantize().numpy()
    parts = {"packed": integers + scales + others, "loose": loose + scales + others}
    return {name: np.frombuffer(part, np.uint8) for name, part in parts.items()} | values


if __name__ == "__main__":
    serve(code)
