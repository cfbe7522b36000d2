"""Networks from outside while they run: in parts that fit into memory, to outputs that are numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_compress.pcn.gate import Plan

HELD_VALUES = 1 << 28
"""Values that a run holds at a time, unless a single example holds more: a gibibyte."""


def bounded(predict: Callable[[Tensor], Tensor], plan: Plan) -> Callable[[Tensor], Tensor]:
    """The same function, which works off large batches part by part, and refuses to return what is no number.

    Args:
        predict: inputs -> outputs.
        plan: what is known of the network behind it.
    """
    most = max(1, HELD_VALUES // plan.peak)

    def run(x: Tensor) -> Tensor:
        outputs = torch.cat([predict(part) for part in x.split(most)])
        if broken := int((~outputs.isfinite()).flatten(1).any(1).sum()):
            raise ValueError(
                f"the network's outputs are not finite (NaN or infinity) for {broken} of {len(x)} examples"
            )
        return outputs

    return run


def check_outputs(plan: Plan, wanted: int, task: str, data: str) -> None:
    """Check that a network gives one value per class (or more), or one per target.

    Args:
        plan: what is known of the network.
        wanted: classes or targets of the data.
        task: of the data.
        data: their name, for the message.

    Raises:
        ValueError: it does not.
    """
    got = plan.output
    if len(got) != 1 or got[0] < wanted or (task == "regression" and got[0] != wanted):
        kind = "targets" if task == "regression" else "classes"
        raise ValueError(f"{data} has {wanted} {kind}; this network gives outputs of shape {got}")


def shown(y: Tensor) -> tuple[int, str]:
    """How many classes or targets examples of unknown origin show, and their task."""
    if y.dim() > 1:
        return y.shape[1], "regression"
    return (int(y.max()) + 1 if len(y) else 0), "classification"
