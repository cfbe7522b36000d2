"""Networks over tokens: recurrent ones and a small transformer, which predict the next token or a class per position.

They take whole numbers `(n, length)` and give logits `(n, length, classes)`; without a vocabulary the recurrent ones
take series `(n, channels, length)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 128
"""Width of embeddings and of hidden units."""
HEADS = 4
BLOCKS = 2


class Recurrent(nn.Module):
    """Embedding, one recurrent layer, head.

    Args:
        layer: `nn.LSTM` or `nn.GRU`.
        into: tokens, or channels of a series.
        classes: logits at every position.
        tokens: whether the inputs are tokens.
    """

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU], into: int, classes: int, tokens: bool):
        super().__init__()
        self.embedding = nn.Embedding(into, WIDTH) if tokens else None
        self.recurrent = layer(WIDTH if tokens else into, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, length, classes)`."""
        values = x.transpose(1, 2) if self.embedding is None else self.embedding(x)
        logits: Tensor = self.head(self.recurrent(values)[0])
        return logits


def lstm(input_shape: tuple[int, ...], classes: int, vocabulary: int = 0) -> nn.Module:
    """LSTM of 128 units (Hochreiter & Schmidhuber 1997): a language model, or a class at every position."""
    return _recurrent("lstm", nn.LSTM, input_shape, classes, vocabulary)


def gru(input_shape: tuple[int, ...], classes: int, vocabulary: int = 0) -> nn.Module:
    """GRU of 128 units (Cho et al. 2014), likewise."""
    return _recurrent("gru", nn.GRU, input_shape, classes, vocabulary)


def _recurrent(
    name: str, layer: type[nn.LSTM] | type[nn.GRU], shape: tuple[int, ...], classes: int, vocabulary: int
) -> nn.Module:
    if len(shape) != (1 if vocabulary else 2):
        raise ValueError(
            f"{name} takes tokens (length,), as of a text or of arrays with --tokens, or series (channels, length); "
            f"got examples of shape {shape}"
        )
    return Recurrent(layer, vocabulary or shape[0], classes, bool(vocabulary))


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each after a layer norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, `(n, length, width)`."""
        normal = self.norm_attention(x)
        query, key, value = (
            part(normal).unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        fed: Tensor = x + self.narrow(F.gelu(self.wide(self.norm_feed(x))))
        return fed


class Gpt(nn.Module):
    """Decoder-only transformer: the table of the embedding is also the head, where there are as many classes.

    Args:
        length: of the sequences, each place of which has an embedding of its own.
        classes: logits at every position.
        vocabulary: kinds of tokens.
    """

    def __init__(self, length: int, classes: int, vocabulary: int):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(length, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.head = nn.Linear(WIDTH, classes, bias=False)
        if classes == vocabulary:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, length, classes)`."""
        logits: Tensor = self.head(self.norm(self.blocks(self.tokens(x) + self.places[: x.shape[1]])))
        return logits


def gpt(input_shape: tuple[int, ...], classes: int, vocabulary: int = 0) -> nn.Module:
    """Small decoder-only transformer (Radford et al. 2019): 2 blocks of 4 heads, 128 wide, tied embeddings."""
    if len(input_shape) != 1 or not vocabulary:
        raise ValueError(
            f"gpt takes tokens (length,), as of a text or of arrays with --tokens; got examples of shape {input_shape}"
        )
    return Gpt(input_shape[0], classes, vocabulary)
