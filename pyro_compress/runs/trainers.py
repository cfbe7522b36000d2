"""Networks that Lightning or Hugging Face's Trainer trains, handed over when their training ends."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


class AfterTraining:
    """Takes the trained network over.

    Args:
        then: called with a copy of it on the CPU, in evaluation mode; what it returns is `result`.
        part: the network that counts of what was trained, `lambda module: module.net`; by default all of it.

    Attributes:
        net: the network; None until training has ended.
        result: what `then` made of it.

    Examples:
        >>> import pyro_compress as pc
        >>> after = pc.AfterTraining(lambda net: sum(tensor.numel() for tensor in net.parameters()))
        >>> after.take(nn.Linear(4, 3))
        >>> after.result
        15
    """

    def __init__(
        self, then: Callable[[nn.Module], Any] | None = None, part: Callable[[Any], nn.Module] = lambda whole: whole
    ):
        self.then, self.part = then, part
        self.net: nn.Module | None = None
        self.result: Any = None

    def take(self, whole: Any) -> None:
        """Take a trained module over."""
        self.net = copy.deepcopy(self.part(whole)).cpu().eval()
        self.result = None if self.then is None else self.then(self.net)

    def lightning(self) -> Any:
        """A callback for `lightning.Trainer(callbacks=[...])`.

        Raises:
            ValueError: Lightning is not installed.
        """

        def on_train_end(callback: Any, trainer: Any, module: Any) -> None:
            self.take(module)

        return _made(("lightning.pytorch", "pytorch_lightning"), "Callback", on_train_end)

    def hugging_face(self) -> Any:
        """A callback for `transformers.Trainer(callbacks=[...])`.

        Raises:
            ValueError: transformers are not installed.
        """

        def on_train_end(callback: Any, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            self.take(model)

        return _made(("transformers",), "TrainerCallback", on_train_end)


def _made(packages: Sequence[str], base: str, on_train_end: Callable[..., None]) -> Any:
    """A callback of a class of theirs, the first of the packages that is there."""
    for package in packages:
        try:
            kind = getattr(importlib.import_module(package), base)
        except ImportError:
            continue
        return type("AfterTraining", (kind,), {"on_train_end": on_train_end})()
    raise ValueError(f"this needs {packages[0].partition('.')[0]}, which is not installed")
