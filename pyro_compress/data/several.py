"""A task of several outputs: the sum of their losses; examples are independent, and so are an example's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from pyro_compress.data.tasks import TASKS, Task
from pyro_compress.outputs import Output, Outputs, outputs_of


def task_named(name: str) -> Task:
    """A task by its name, which may spell several outputs (`pyro_compress.outputs`).

    Raises:
        KeyError: there is none of that name.
        ValueError: it spells outputs that no network has.
    """
    return TASKS[name] if (outputs := outputs_of(name)) is None else several(outputs)


def parted(outputs: Outputs, found: Tensor, y: Tensor | None) -> Iterator[tuple[Output, Tensor, Tensor]]:
    """Each of several outputs, with its labels as its own task has them.

    Args:
        outputs: what lies in a row.
        found: `(n, values)`; or of several networks `(n, networks, values)`, whose classes and labels are mixed.
        y: rows of labels `(n, columns)`; None: there are none.
    """
    for one, where, labels in zip(outputs.each, outputs.columns, outputs.label_columns, strict=True):
        part = found[..., where]
        if part.dim() == 3 and one.task != "regression":
            part = TASKS[one.task].mixture(list(part.unbind(1)))
        yield one, part, part[:, :0] if y is None else labels_of(one, y[:, labels])


def labels_of(one: Output, columns: Tensor) -> Tensor:
    """Columns of labels as an output's own task has them: class numbers `(n,)`, or the columns."""
    return columns[:, 0].long() if one.task == "classification" else columns


@lru_cache
def several(outputs: Outputs) -> Task:
    """The task of several outputs, of which those of regression share one noise."""

    def log_likelihood(found: Tensor, y: Tensor, noise: float | None) -> Tensor:
        parts = parted(outputs, found, y)
        return torch.stack([TASKS[one.task].log_likelihood(part, own, noise) for one, part, own in parts]).sum(0)

    def loss(found: Tensor, y: Tensor, noise: float) -> Tensor:
        parts = parted(outputs, found, y)
        return torch.stack([TASKS[one.task].loss(part, own, noise) for one, part, own in parts]).sum()

    def predicted(found: Tensor) -> Tensor:
        return torch.cat([TASKS[one.task].predicted(part) for one, part, _ in parted(outputs, found, None)], 1)

    def sample(found: Tensor, noise: float | None) -> Tensor:
        parts = (TASKS[one.task].sample(part, noise) for one, part, _ in parted(outputs, found, None))
        return torch.cat([part.float().reshape(len(found), -1) for part in parts], 1)

    def constant(y: Tensor) -> Tensor:
        pairs = zip(outputs.each, outputs.label_columns, strict=True)
        return torch.cat([_constant(one, labels_of(one, y[:, where])) for one, where in pairs], 1)

    def fisher(found: Tensor, noise: float | None, generator: torch.Generator) -> Tensor:
        """One row: scores of independent outputs, each with the mean 0, have no products with each other on average."""
        rows = [_score(one, part, noise, generator) for one, part, _ in parted(outputs, found, None)]
        return torch.cat(rows, 2)

    def divergence(found: Tensor, others: Tensor, noise: float) -> Tensor:
        pairs = zip(parted(outputs, found, None), parted(outputs, others, None), strict=True)
        return torch.stack(
            [TASKS[one.task].divergence(part, other, noise) for (one, part, _), (_, other, _) in pairs]
        ).sum()

    return Task(
        loss=loss,
        log_likelihood=log_likelihood,
        predicted=predicted,
        sample=sample,
        mixture=lambda given: torch.stack(list(given), 1),
        uniform_nats=lambda values: sum(TASKS[one.task].uniform_nats(one.size) for one in outputs.each),
        constant=constant,
        fisher=fisher,
        divergence=divergence,
        noisy=any(one.task == "regression" for one in outputs.each),
        outputs=outputs,
    )


def _constant(one: Output, y: Tensor) -> Tensor:
    if one.task != "classification":
        return TASKS[one.task].constant(y).float()
    return y.bincount(minlength=one.size).double().log().float().expand(len(y), -1)


def _score(one: Output, part: Tensor, noise: float | None, generator: torch.Generator) -> Tensor:
    if one.task != "regression":
        return TASKS[one.task].fisher(part, noise, generator)
    signs = torch.randint(0, 2, part.shape, generator=generator) * 2 - 1
    return (signs.to(part.dtype) / (noise or 1.0))[:, None]
