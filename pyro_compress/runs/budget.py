"""What a fit will hold in memory, estimated before it begins, and refused if too much."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_compress.machine import require
from pyro_compress.metrics import BATCH_VALUES
from pyro_compress.settings import COMPILE_STEPS, FitConfig
from pyro_compress.types import Splits

MIB = 1 << 20
LIBRARIES = {"eager": 198 * MIB, "captured": 262 * MIB}
"""What a fit loads beside everything else: torch's export, and where the step is compiled the compiler."""
STAYS = 160 * MIB
"""Of that, what an eager fit of a large network does not use again for its tensors."""
PER_WEIGHT = {
    "eager": {"gaussian": 112, "log-uniform": 122, "horseshoe": 126, "normal-jeffreys": 126},
    "captured": {"gaussian": 86, "log-uniform": 100, "horseshoe": 107, "normal-jeffreys": 99},
}
"""Bytes per weight at the peak of a fit, measured (`scripts/bench_memory.py`) and a few per cent more: parameters,
gradients, moments, what a step draws and keeps for its gradient, and what the allocator cannot use again."""
SPLIT = 60 / 86
"""Of the bytes per weight of a captured step, what is shared out where the posterior is split: none freed is kept."""
WHOLE, LAYER = 8, 16
"""Bytes that every process holds then: per weight, of the posterior mean; per weight of the largest tensor, while it is
whole, with its gradient and what the processes send."""
POINT = 32
"""The same of point weights."""
PER_OUTPUT = {"weight": 3, "local": 7, "flipout": 5}
"""Values that a training step holds of every activation, by estimator."""
LIKELIHOOD = 4
"""Values that it holds of every output besides."""
SCORED = 40
"""Bytes per row and output of a split that is scored: its probabilities and their errors, in double precision."""
EVALUATED = 1000
"""Rows that are evaluated at a time, at most."""


def mode_of(config: FitConfig, steps: int) -> str:
    """Whether the step will be compiled."""
    if config.compile == "off" or config.prior == "none":
        return "eager"
    return "captured" if config.compile == "on" or steps >= COMPILE_STEPS else "eager"


def per_weight(config: FitConfig, steps: int) -> int:
    """Bytes per weight at the peak of a fit; more where every weight has scales of its own, which is not measured."""
    if config.prior == "none":
        return POINT
    from pyro_compress.bayes.assignment import assigned

    known = PER_WEIGHT[mode_of(config, steps)]
    scales_too = assigned(config).scaled and config.grouping == "weight"
    return known.get(config.prior, max(known.values())) * (2 if scales_too else 1)


def activations(net: nn.Module, input_shape: tuple[int, ...], kind: str = "float32") -> list[int]:
    """Values that one example becomes on its way through a network, layer by layer, itself the first."""
    sizes = [math.prod(input_shape)]
    modes = [(module, module.training) for module in net.modules()]
    leaves = [module for module, _ in modes if not list(module.children())]
    hooks = [leaf.register_forward_hook(lambda m, args, out: sizes.append(_values(out))) for leaf in leaves]
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *input_shape, dtype=getattr(torch, kind)))
    except (RuntimeError, ValueError, AttributeError):
        pass  # whatever is wrong with the network, capturing it says so
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return sizes


def _values(output: Any) -> int:
    """Values of what a layer returns, a recurrent one also with its state."""
    if isinstance(output, Tensor):
        return output.numel()
    return sum(map(_values, output)) if isinstance(output, tuple | list) else 0


def needed_bytes(net: nn.Module, splits: Splits, config: FitConfig, sharing: int = 1) -> dict[str, int]:
    """Estimate of what a fit will hold, part by part, beside the network that is there.

    Args:
        net: the network.
        splits: the data.
        config: resolved.
        sharing: processes that its posterior is split among.
    """
    assert config.batch_size
    parameters = sum(parameter.numel() for parameter in net.parameters())
    steps = (config.epochs or 0) * math.ceil(len(splits.train) / config.batch_size)
    batch, sizes = math.ceil(config.batch_size / config.accumulate), activations(net, splits.input_shape, splits.kind)
    held = 2 if config.prior == "none" else PER_OUTPUT.get(config.estimator or "weight", max(PER_OUTPUT.values()))
    mode, weights = mode_of(config, steps), per_weight(config, steps) * parameters
    if sharing > 1 and config.prior != "none":
        weights = split_bytes(net, config, sharing)
    libraries = LIBRARIES[mode] if mode == "captured" else max(LIBRARIES[mode] - weights, STAYS)
    minibatch = 4 * batch * (held * sum(sizes) + LIKELIHOOD * math.prod(splits.output_shape))
    needed = {
        "libraries": libraries,
        "parameters": weights,
        "minibatch": minibatch,
        "evaluation": max(0, evaluated_bytes(sizes, splits) - minibatch),
    }
    if config.device != "cpu" and isinstance(splits.train.x, Tensor):
        needed["data"] = splits.train.x.numel() * 4
    return needed


def split_bytes(net: nn.Module, config: FitConfig, sharing: int) -> int:
    """What each of several processes holds for weights whose posterior is split among them."""
    sizes = [parameter.numel() for parameter in net.parameters()]
    own = SPLIT * per_weight(replace(config, compile="on"), 0) * sum(sizes) / sharing
    together = round(own) + WHOLE * sum(sizes) + LAYER * max(sizes)
    return max(together, POINT * sum(sizes) if config.pretrain_epochs else 0)


def evaluated_bytes(sizes: list[int], splits: Splits) -> int:
    """What scoring the validation split holds: two layers' values of a batch, and the scores of every class."""
    rows = min(EVALUATED, len(splits.validation), max(1, BATCH_VALUES // max(sizes[0], 1)))
    scored = rows if len(splits.output_shape) > 1 else len(splits.validation)
    return 4 * rows * 2 * max(sizes) + SCORED * scored * math.prod(splits.output_shape)


def check_memory(
    net: nn.Module, splits: Splits, config: FitConfig, environment: Mapping[str, str] = os.environ, sharing: int = 1
) -> None:
    """Refuse a fit that does not fit.

    Raises:
        ValueError: the estimate exceeds what the device has left.
    """
    require(
        needed_bytes(net, splits, config, sharing), config.device, "this fit",
        "use a smaller network, a smaller --batch-size, or --accumulate", environment,
    )  # fmt: skip
