"""Which language is a word of? Trigrams of its letters, on the word lists that Debian installs.

    apt install wamerican wdutch wfrench wngerman witalian wportuguese wspanish wswedish
    python word_languages.py words.npz
    pyro-compress fit --data words.npz --tokens 256 --net word_languages:network --prior log-uniform -o words

A word is its bytes in Latin-1, in small letters, filled up with 0. Words that several languages have are left out. A
word and its language are in one split only: a tenth of the words is the test split.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path("/usr/share/dict")
LANGUAGES = ("american-english", "dutch", "french", "ngerman", "italian", "portuguese", "spanish", "swedish")
LONGEST = 20
LETTERS = 256


class Trigrams(nn.Module):
    """Bytes `(batch, 20)` -> logits `(batch, languages)`: an embedding, two convolutions, the most of all places."""

    def __init__(self, languages: int, features: int = 32, units: int = 128):
        super().__init__()
        self.embed = nn.Embedding(LETTERS, features)
        self.near = nn.Conv1d(features, units, 3, padding=1)
        self.far = nn.Conv1d(units, units, 3, padding=1)
        self.last = nn.Linear(units, languages)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, steps)` -> `(batch, languages)`."""
        letters = self.embed(x).transpose(1, 2)
        return self.last(torch.relu(self.far(torch.relu(self.near(letters)))).amax(-1))


def network(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """What `--net word_languages:network` builds."""
    return Trigrams(classes)


def words_of(path: Path) -> set[bytes]:
    """The words of a list, of 3 to 20 letters of Latin-1."""
    found, data = set(), path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:  # the Swedish one
        text = data.decode("latin-1")
    for line in text.splitlines():
        word = line.partition("/")[0].strip().lower()
        if word.isalpha() and 3 <= len(word) <= LONGEST:
            try:
                found.add(word.encode("latin-1"))
            except UnicodeEncodeError:
                continue
    return found


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=".npz file to write")
    parser.add_argument("--words", type=int, default=5_000, help="of every language")
    parser.add_argument("--lists", type=Path, default=FOLDER, help="folder with a list of words per language")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    missing = [name for name in LANGUAGES if not (given.lists / name).is_file()]
    if missing:
        parser.error(f"{given.lists} has no {', '.join(missing)}; the packages are named at the top of this file")
    lists = [words_of(given.lists / name) for name in LANGUAGES]
    generator = np.random.default_rng(given.seed)
    rows, labels = [], []
    for label, words in enumerate(lists):
        own = sorted(words - set().union(*(other for other in lists if other is not words)))
        chosen = generator.permutation(len(own))[: given.words]
        rows += [np.frombuffer(own[i].ljust(LONGEST, b"\0"), np.uint8) for i in chosen]
        labels += [label] * len(chosen)
    order = generator.permutation(len(rows))
    x, y = np.stack(rows).astype(np.int64)[order], np.array(labels)[order]
    test = len(x) // 10
    np.savez(given.out, x_train=x[test:], y_train=y[test:], x_test=x[:test], y_test=y[:test])


if __name__ == "__main__":
    main()
