"""What a fit will hold in memory, estimated before it begins, and refused if that is too much."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyro_compress.machine import available_bytes
from pyro_compress.settings import FitConfig
from pyro_compress.types import Splits

FORCE = "PYRO_COMPRESS_IGNORE_MEMORY"
"""Environment variable that lets a fit begin whose estimate is too large."""
GIB = 1 << 30


def copies(config: FitConfig) -> int:
    """Floats that a fit holds per weight: value, gradient and two moments of every parameter, and what a step draws.

    A Gaussian posterior's 14, 56 B, are an upper bound: compiled, a step lets go of gradients as soon as it can, and
    the slope of the measured peak is 45 B (docs/performance.md, Scaling).
    """
    if config.prior == "none":
        return 5
    from pyro_compress.bayes.priors import PRIORS

    scales_too = PRIORS[config.prior].factors is not None and config.grouping == "weight"
    return 4 * 2 * (2 if scales_too else 1) + 6


def activations(net: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Values that one example becomes on its way through a network, itself included."""
    sizes = [math.prod(input_shape)]
    modes = [(module, module.training) for module in net.modules()]
    leaves = [module for module, _ in modes if not list(module.children())]
    hooks = [leaf.register_forward_hook(lambda m, args, out: sizes.append(out.numel())) for leaf in leaves]
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, AttributeError):
        pass  # whatever is wrong with the network, capturing it says so
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return sum(sizes)


def needed_bytes(net: nn.Module, splits: Splits, config: FitConfig) -> dict[str, int]:
    """Estimate of what a fit will hold, part by part; activations count twice, for values and gradients."""
    assert config.batch_size
    parameters = sum(parameter.numel() for parameter in net.parameters())
    batch = math.ceil(config.batch_size / config.accumulate)
    needed = {
        "parameters": 4 * parameters * copies(config),
        "minibatch": 4 * 2 * batch * activations(net, splits.input_shape),
    }
    if config.device != "cpu" and isinstance(splits.train.x, Tensor):
        needed["data"] = splits.train.x.numel() * 4
    return needed


def check_memory(
    net: nn.Module, splits: Splits, config: FitConfig, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse a fit that does not fit.

    Raises:
        ValueError: the estimate exceeds what the device has left.
    """
    needed, available = needed_bytes(net, splits, config), available_bytes(config.device)
    if available is None or sum(needed.values()) <= available or environment.get(FORCE):
        return
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in needed.items())
    raise ValueError(
        f"this fit needs about {sum(needed.values()) / GIB:.1f} GiB ({parts}), {config.device} has "
        f"{available / GIB:.1f} left: use a smaller network, a smaller --batch-size, or --accumulate "
        f"({FORCE}=1 tries all the same)"
    )
