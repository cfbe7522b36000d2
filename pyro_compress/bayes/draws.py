"""Draws that several processes make as one would: each knows its place among those of all.

An estimator draws for the examples of a minibatch, a guide for the rows of a weight. Where weights are split, `Placed`
makes both operations of the graph that say which rows of the whole draw these are; `pyro_compress.bayes.noise` computes
them from a counter. Without it they are torch's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor

from pyro_compress.bayes.shards import Rows


@torch.library.custom_op("pyro_compress::normal_rows", mutates_args=())
def normal_rows(like: Tensor, whole: int, first: int, step: int) -> Tensor:
    """N(0, 1) of a tensor's shape: rows `first`, `first + step`, ... of a draw of `whole` rows."""
    return torch.randn_like(like)


@torch.library.custom_op("pyro_compress::coin_rows", mutates_args=())
def coin_rows(like: Tensor, whole: int, first: int, step: int) -> Tensor:
    """Fair coins, 0 or 1, likewise."""
    return torch.empty_like(like).bernoulli_(0.5)


normal_rows.register_fake(lambda like, whole, first, step: torch.empty_like(like))
coin_rows.register_fake(lambda like, whole, first, step: torch.empty_like(like))


@effectful(type="normal_of_examples")
def normal_of_examples(like: Tensor) -> Tensor:
    """N(0, 1) of a tensor's shape, whose first dimension is that of the minibatch."""
    return torch.randn_like(like)


@effectful(type="coins_of_examples")
def coins_of_examples(like: Tensor) -> Tensor:
    """Fair coins, 0 or 1, likewise."""
    return torch.empty_like(like).bernoulli_(0.5)


class Placed(Messenger):
    """Says of every draw of examples, and of split weights, which rows of the whole it is.

    Args:
        split: site -> this process's rows.
        examples: of the whole minibatch.
        first: which of them this process's first one is.
        step: and how far its next one is.
    """

    def __init__(self, split: Mapping[str, Rows], examples: int, first: int, step: int):
        super().__init__()
        self.split, self.place = split, (examples, first, step)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        rows = self.split.get(msg["name"])
        if rows is None or msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        q = msg["fn"].base_dist
        msg["value"], msg["done"] = q.loc + normal_rows(q.loc.detach(), rows.whole[0], rows.first, 1) * q.scale, True

    def _pyro_normal_of_examples(self, msg: dict[str, Any]) -> None:
        msg["value"], msg["done"] = normal_rows(msg["args"][0].detach(), *self.place), True

    def _pyro_coins_of_examples(self, msg: dict[str, Any]) -> None:
        msg["value"], msg["done"] = coin_rows(msg["args"][0].detach(), *self.place), True
