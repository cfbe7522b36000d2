"""Fine-tuning by likelihood and bits: the surviving means, trained on as the integers that the file will hold.

First a masked fine-tune of the means that pruning left, then training through rounding (straight-through, Bengio et al.
2013) with the loss `cross entropy + λ · ln 2 / N · bits`, where `bits` is what the coder is about to spend
(`code_length.py`) and λ the multiplier. Units that die on the way are removed. Optionally the logits of a teacher are
matched (Hinton et al. 2015).

With `svi` the second stage goes on with variational inference under the mask: every survivor keeps a Gaussian
posterior around its integer, with a spread of its own that is learned, and the coder takes the prior's place. At λ = 1
the loss is the negative ELBO per example under the prior density `2^-bits(w)`, up to a constant:
`E_q[cross entropy] + λ / N · (E_q[ln 2 · bits] - sum log spread)`, one draw per step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pyro_compress.compression.quantization_aware import QuantizationAware
from pyro_compress.data.augment import AUGMENTATIONS, check_images
from pyro_compress.data.several import task_named
from pyro_compress.graph.statistics import batch_statistics
from pyro_compress.settings import FineTune
from pyro_compress.types import Data, Graph, Masks, Posterior, Quantized

OnEpoch = Callable[[int, int, int], None]
"""(epoch, epochs, non-zero values)."""
Teach = Callable[[Tensor], Tensor]
"""Inputs -> a teacher's logits."""


def finetune(
    posterior: Posterior, masks: Masks, train: Data, how: FineTune,
    teacher: Teach | None = None, on_epoch: OnEpoch = lambda epoch, epochs, kept: None,
) -> tuple[Graph, dict[str, Quantized | np.ndarray]]:  # fmt: skip
    """Fine-tune what the masks keep of the posterior mean, as integers.

    Returns:
        The smaller network and its tensors as a file holds them; arguments and refusals are those of `finetuned`.
    """
    work = finetuned(posterior, masks, train, how, teacher, on_epoch)
    return work.graph, work.packed()


def finetuned(
    posterior: Posterior, masks: Masks, train: Data, how: FineTune,
    teacher: Teach | None = None, on_epoch: OnEpoch = lambda epoch, epochs, kept: None,
) -> QuantizationAware:  # fmt: skip
    """Fine-tune what the masks keep of the posterior mean.

    Args:
        posterior: moments of every weight, and the network.
        masks: weights to keep.
        train: training examples; nothing else is looked at.
        how: the recipe.
        teacher: whose logits are matched; None trains on the labels alone.
        on_epoch: called after every epoch.

    Raises:
        ValueError: the images cannot be changed as asked, there is no posterior to go on with, or the weights diverge.
    """
    tensors = {name: torch.where(masks[name], layer.mean, 0.0) for name, layer in posterior.layers.items()}
    tensors |= posterior.dense
    spreads = {name: layer.std for name, layer in posterior.layers.items()} if how.svi else {}
    if not all(bool((std > 0).all()) for std in spreads.values()):
        raise ValueError(
            "SVI under the mask goes on from a posterior, and this network has point weights only: fit one with "
            "--prior, or leave --finetune-svi out"
        )
    work = QuantizationAware(
        posterior.graph, tensors | batch_statistics(posterior.graph, tensors, train.x), how, spreads
    )
    task = task_named(posterior.task)
    loss, noise, counted = task.loss, posterior.noise or 1.0, task.counted(train.y)
    work.loss = lambda outputs, y: loss(outputs, y, noise)
    read = _reader(train, teacher, how, work.generator)
    total = how.masked_epochs + how.epochs
    for epoch in range(total):
        if epoch == how.masked_epochs:
            work.choose_steps()
        within = how.epochs if work.steps else how.masked_epochs
        done = epoch - (how.masked_epochs if work.steps else 0)
        order = torch.randperm(len(train), generator=work.generator)
        batches = order.split(how.batch_size)
        for index, rows in enumerate(batches):
            progress = (done + index / len(batches)) / within
            work.train(*read(rows), progress, counted)
        work.drop_dead_units()
        on_epoch(epoch + 1, total, work.kept())
    if not work.steps:
        work.choose_steps()
        work.drop_dead_units()
    return work


def _reader(
    train: Data, teacher: Teach | None, how: FineTune, generator: torch.Generator
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
    """Rows -> (inputs, targets, teacher's logits); a teacher sees what the network sees, changed images too."""
    augment = AUGMENTATIONS.get(how.augment)
    check_images(augment, train)
    if augment is None:
        logits = teacher(train.x) if teacher else None
        return lambda rows: (train.x[rows], train.y[rows], None if logits is None else logits[rows])

    def changed(rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = augment(train.x[rows], generator)
        return x, train.y[rows], teacher(x) if teacher else None

    return changed
