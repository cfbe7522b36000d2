"""A fit, watched while it runs: `fit --log tensorboard`. The history in `history.jsonl` stays the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyro_compress.foreign import unknown
from pyro_compress.training.history import Epoch
from pyro_compress.types import LayerPosterior

FOLDER = "tensorboard"
"""Where the events lie in a run folder."""


class TensorBoard:
    """Writes one step per epoch: the terms of the ELBO, validation scores, and what becomes of every layer's weights.

    Args:
        folder: the run folder.
        done: epochs of an earlier part of this fit; what was logged beyond them is dropped.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, done: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"--log tensorboard needs TensorBoard: pip install 'pyro-compress[log]' ({error})"
            ) from None
        self.writer: Any = SummaryWriter(str(folder / FOLDER), purge_step=done + 1 if done else None)

    def epoch(self, epoch: Epoch) -> None:
        """Note the numbers of an epoch."""
        values = epoch.to_dict()
        numbers = {name: values[name] for name in ("validation_accuracy", "validation_nll_nats", "seconds")}
        for name in ("negative_elbo_nats", "expected_log_likelihood_nats", "kl_nats", "kl_weight"):
            if values[name] is not None:
                numbers[f"elbo/{name}"] = values[name]
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, epoch.epoch)
        self.writer.flush()

    def layers(self, epoch: int, layers: dict[str, LayerPosterior]) -> None:
        """Note the distribution of every layer's posterior means, and of its signal-to-noise ratios."""
        for name, layer in layers.items():
            self.writer.add_histogram(f"mean/{name}", layer.mean, epoch)
            ratio = layer.mean.abs() / layer.std.clamp_min(torch.finfo(layer.std.dtype).tiny)
            self.writer.add_histogram(f"log10_snr/{name}", ratio.clamp(1e-6, 1e6).log10(), epoch)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


LOGS: dict[str, Callable[[Path, int], TensorBoard]] = {
    "tensorboard": TensorBoard,
}
"""Name -> (run folder, epochs already done) -> what is told of every epoch."""


@contextmanager
def watched(name: str, folder: Path, done: int) -> Iterator[TensorBoard | None]:
    """The log of this name, closed at the end; None for an empty name.

    Raises:
        ValueError: unknown name, or not installed.
    """
    if not name:
        yield None
        return
    if name not in LOGS:
        raise unknown("log", name, LOGS)
    log = LOGS[name](folder, done)
    try:
        yield log
    finally:
        log.close()
