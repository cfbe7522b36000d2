"""Byte-level language models: an LSTM, a GRU, a small transformer with tied embeddings; text that every machine has.

    pyro-compress compress --net language:lstm --init lstm.safetensors --data text --task next-token --context 64

`python language.py text` writes the text: the licences that Debian installs, and Python's own documentation.
"""

import sys
from pathlib import Path
from pydoc_data import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256


class Recurrent(nn.Module):
    """Bytes `(batch, steps)` -> logits of the next ones `(batch, steps, 256)`."""

    def __init__(self, kind: type[nn.RNNBase], features: int = 64, units: int = 256):
        super().__init__()
        self.embed = nn.Embedding(BYTES, features)
        self.memory = kind(features, units, batch_first=True)
        self.last = nn.Linear(units, BYTES)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, steps)` -> `(batch, steps, 256)`."""
        return self.last(self.memory(self.embed(x))[0])


class Block(nn.Module):
    """Causal attention and two linear layers, each behind a layer norm."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(features), nn.LayerNorm(features)
        self.attend, self.project = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, steps, features)` -> the same shape."""
        parts = self.attend(self.before(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(found.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """The same by attention; the table of the bytes is the last layer, too."""

    def __init__(self, context: int = 64, features: int = 128, blocks: int = 3, heads: int = 4):
        super().__init__()
        self.embed, self.place = nn.Embedding(BYTES, features), nn.Embedding(context, features)
        self.blocks = nn.ModuleList(Block(features, heads) for _ in range(blocks))
        self.norm, self.last = nn.LayerNorm(features), nn.Linear(features, BYTES, bias=False)
        nn.init.normal_(self.embed.weight, std=features**-0.5)
        nn.init.normal_(self.place.weight, std=features**-0.5)
        self.last.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, steps)` -> `(batch, steps, 256)`."""
        x = self.embed(x) + self.place(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x))


def lstm(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """328,000 weights of an LSTM, and what reads and writes."""
    return Recurrent(nn.LSTM)


def gru(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The same with a GRU."""
    return Recurrent(nn.GRU)


def transformer(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Three blocks, 0.6 million weights."""
    return Transformer(input_shape[0])


def write_text(folder: Path) -> None:
    """The licences, each once, and Python's documentation of its language."""
    folder.mkdir(parents=True, exist_ok=True)
    licences = {path.resolve() for path in Path("/usr/share/common-licenses").glob("*")}
    for path in sorted(licences):
        (folder / f"{path.name}.txt").write_bytes(path.read_bytes())
    (folder / "python.txt").write_text("\n\n".join(topics.topics[name] for name in sorted(topics.topics)))


if __name__ == "__main__":
    write_text(Path(sys.argv[1]))
