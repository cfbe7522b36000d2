"""Ten spoken keywords: a GRU behind convolutions, a tiny transformer, and recordings that every machine can make.

    pyro-compress fit --net keywords:gru --data keywords.npz --series

`python keywords.py keywords.npz` has espeak-ng speak the words in each of its voices, at several speeds and pitches,
and writes log mel spectrograms `(n, 24, 49)` of one second each: shifted, louder or softer, in noise. Voices of the
test split are heard in no other.
"""

import io
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
RATE, FRAME, HOP, MELS = 22_050, 882, 441, 24
"""Of espeak-ng; a frame of 40 ms every 20 ms."""
WIDTH, HEADS = 48, 4


class Keywords(nn.Module):
    """Two convolutions over time, each of every second place; a GRU; its last state is classified."""

    def __init__(self, mels: int, classes: int):
        super().__init__()
        self.first = nn.Conv1d(mels, WIDTH, 5, stride=2, padding=2)
        self.second = nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2)
        self.memory = nn.GRU(WIDTH, 2 * WIDTH, batch_first=True)
        self.last = nn.Linear(2 * WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, mels, frames)` -> logits."""
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.last(self.memory(x.transpose(1, 2))[0][:, -1])


class Block(nn.Module):
    """Attention and two linear layers, each behind a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, frames, width)` -> the same shape."""
        parts = self.attend(self.before(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(query, key, value)
        x = x + self.project(found.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """Three frames at a time become a token, two blocks look at all of them, their mean is classified."""

    def __init__(self, mels: int, frames: int, classes: int):
        super().__init__()
        self.embed = nn.Conv1d(mels, WIDTH, 3, stride=3)
        self.place = nn.Parameter(0.1 * torch.randn(frames // 3, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, mels, frames)` -> logits."""
        x = self.blocks(self.embed(x).transpose(1, 2) + self.place)
        return self.last(self.norm(x).mean(1))


def gru(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """60,000 weights."""
    return Keywords(input_shape[0], classes)


def transformer(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """61,000 weights."""
    return Transformer(*input_shape, classes)


def spoken(word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """A second of a word, between -1 and 1, where in it chance will say later."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    with wave.open(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)) as file:
        sound = np.frombuffer(file.readframes(1 << 20), np.int16)[:RATE]
    return np.pad(sound / 32768, (0, RATE - len(sound)))


def heard(sounds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Log mel spectrograms `(n, mels, frames)` of sounds `(n, samples)`, each elsewhere in its second and in noise."""
    moved = np.stack(
        [np.roll(one, shift) for one, shift in zip(sounds, generator.integers(0, 5000, len(sounds)), strict=True)]
    )
    count = (len(sounds), 1)
    moved = moved * generator.uniform(0.2, 1, count) + generator.uniform(0.005, 0.08, count) * generator.normal(
        size=moved.shape
    )
    frames = np.lib.stride_tricks.sliding_window_view(moved, FRAME, 1)[:, ::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=2)) ** 2
    return np.log(power @ filters() + 1e-3).transpose(0, 2, 1).astype(np.float32) / 4


def filters() -> np.ndarray:
    """Triangles `(frequencies, mels)` from 60 to 7,600 Hz."""
    mel = np.linspace(*(2595 * np.log10(1 + np.array([60, 7600]) / 700)), MELS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    places = np.fft.rfftfreq(FRAME, 1 / RATE)[:, None]
    rising, falling = (places - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - places) / np.diff(edges)[1:]
    return np.clip(np.minimum(rising, falling), 0, None)


def voices() -> list[str]:
    """espeak-ng's variants of a voice, each a speaker."""
    told = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True).stdout
    return sorted({line.split("!v/")[1].split()[0] for line in told.splitlines() if "!v/" in line})


def write_keywords(path: Path, seed: int = 0) -> None:
    """Every fifth voice is of the test split."""
    generator, arrays = np.random.default_rng(seed), {"classes": np.array(WORDS)}
    for part in ("train", "test"):
        x, y = [], []
        for place, voice in enumerate(voices()):
            if (place % 5 == 0) == (part == "test"):
                ways = [
                    (f"{accent}+{voice}", *map(int, generator.integers((110, 20), (230, 80)))) for accent in ACCENTS
                ]
                sounds = np.stack([spoken(word, *way) for way in ways * 2 for word in WORDS])
                x.append(heard(sounds, generator))
                y += [*range(len(WORDS))] * 2 * len(ways)
        arrays |= {f"x_{part}": np.concatenate(x), f"y_{part}": np.array(y)}
    np.savez(path, **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python keywords.py keywords.npz")
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng, which speaks the words, is not installed: apt install espeak-ng")
    write_keywords(Path(sys.argv[1]))
