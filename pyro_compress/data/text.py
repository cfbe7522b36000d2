"""Text files -> windows of tokens, each with the token that follows it.

A file, or every text file of a folder and those below it, one after the other. The text is cut into `STRETCHES`
stretches, of which some are held out; windows lie inside one stretch, so that none reaches into another split.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pyro_compress.data.datasets import SPLIT_SEED
from pyro_compress.data.layout import leftover
from pyro_compress.data.preprocessing import numbered
from pyro_compress.data.streaming import MIB
from pyro_compress.doubts import doubt
from pyro_compress.foreign import ordinary
from pyro_compress.pcn.meta import VOCABULARIES
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Data, Preprocessing, Splits

log = logging.getLogger(__name__)

BYTES = 256
"""Tokens of the vocabulary of bytes."""
UNKNOWN = "\ufffd"
"""Token 0 of a vocabulary of characters: all that the training text does not show."""
STRETCHES = 100
"""Stretches that a text is cut into."""
SHARE = 0.1
"""Share of them that is held out for the test, and for validation where nobody says."""
TOKEN_BYTES = 24
"""Bytes that a token takes in memory: its number as input and as target, and on the way there."""


def is_text(path: Path, reading: ReadConfig) -> bool:
    """Whether data are read as text: any file or folder of next-token prediction that holds no arrays."""
    arrays = path.suffix.lower() == ".npz" or (path / "x_train.npy").is_file()
    return reading.task == "next-token" and path.exists() and not arrays


def text_splits(path: Path, validation: float | None, reading: ReadConfig, known: Preprocessing | None) -> Splits:
    """Windows of a text: training, validation and test.

    Args:
        path: a file or a folder.
        validation: share of the text; None: a tenth.
        reading: vocabulary, length of the windows, how many are kept for training.
        known: of the network that the text is for: its characters count.

    Raises:
        ValueError: no text, one that is no UTF-8 where characters are wanted, or too short a one.
    """
    share = SHARE if validation is None else validation
    if not 0 < share < 1 - SHARE:
        raise ValueError(f"validation share {share}: of a text allowed are values between 0 and {1 - SHARE:g}")
    units = _units(path, reading)
    length = len(units) // STRETCHES
    if length <= reading.context:
        raise ValueError(
            f"{path}: {len(units):,} {with_vocabulary(reading)} are too few: a hundred stretches are cut from a text, "
            f"each with a window of {reading.context} and what follows it; give "
            f"{STRETCHES * (reading.context + 1):,}, or a smaller --context"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(STRETCHES)
    test, held = round(SHARE * STRETCHES), max(1, round(share * STRETCHES))
    which = {"test": order[:test], "validation": order[test : test + held], "train": order[test + held :]}
    ends = np.linspace(0, len(units), STRETCHES + 1).astype(np.int64)
    parts = {name: [units[ends[i] : ends[i + 1]] for i in np.sort(rows)] for name, rows in which.items()}
    names = _names(parts["train"], reading, known)
    found = {name: _windows([_numbers(one, names, reading) for one in part], reading) for name, part in parts.items()}
    train = found["train"]
    if 0 < reading.limit < len(train):
        generator = torch.Generator().manual_seed(SPLIT_SEED)
        rows = torch.randperm(len(train), generator=generator)[: reading.limit].sort()[0]
        train = Data(train.x[rows], train.y[rows])
    _say(found, names, reading, str(path))
    return Splits(train, found["validation"], found["test"], names, task="next-token", tokens=len(names))


def text_examples(path: Path, reading: ReadConfig, known: Preprocessing) -> Data:
    """All windows of a text, for a network of which its vocabulary is known.

    Raises:
        ValueError: as `text_splits`.
    """
    units = _units(path, reading)
    if len(units) <= reading.context:
        raise ValueError(
            f"{path}: {len(units):,} {with_vocabulary(reading)} hold no window of {reading.context} and one more"
        )
    return _windows([_numbers(units, known.classes, reading)], reading)


def last_window(path: Path, reading: ReadConfig, known: Preprocessing, least: int = 0) -> torch.Tensor:
    """The last tokens of a text, as many as a network sees at a time, `(1, context)`; all of a shorter one.

    Args:
        path: the text.
        reading: how it is read.
        known: its vocabulary.
        least: the shortest texts that the network takes; 0: it takes no shorter ones.

    Raises:
        ValueError: as `text_examples`.
    """
    units = _units(path, reading)
    if len(units) < (least or reading.context):
        length = f"{len(units):,} {with_vocabulary(reading)}"
        sees = f"takes {least} at least" if least else f"sees {reading.context} at a time"
        raise ValueError(f"{path}: {length} are too few: the network {sees}; give a longer text")
    numbers = _numbers(units[-reading.context :], known.classes, reading)
    return torch.from_numpy(numbers[None].astype(np.int64))


def with_vocabulary(reading: ReadConfig) -> str:
    """The vocabulary of a text: bytes, where nobody says."""
    return reading.vocabulary or VOCABULARIES[0]


def _units(path: Path, reading: ReadConfig) -> np.ndarray:
    """The text as bytes, or as code points."""
    files = _files(path) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    if size * TOKEN_BYTES > reading.in_memory_mib * MIB:
        raise ValueError(
            f"{path}: {size:,} bytes of text take {size * TOKEN_BYTES // MIB:,} MiB; allow it with --in-memory-mib, or "
            "give less of it"
        )
    texts = [ordinary(file).read_bytes() for file in files]
    if path.is_dir():
        texts = _without_doubles(_without_binaries(dict(zip(files, texts, strict=True)), path))
    elif not texts[0]:
        raise ValueError(f"{path} is empty")
    if with_vocabulary(reading) == "bytes":
        return np.frombuffer(b"".join(texts), np.uint8)
    try:
        joined = "".join(text.decode() for text in texts)
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start:,}"
        raise ValueError(f"{path} is no UTF-8 ({reason}): use --vocabulary bytes") from error
    return np.frombuffer(joined.encode("utf-32-le"), np.uint32)


def _files(folder: Path) -> list[Path]:
    """Files of a folder and below, in the order of their names; links are left out, as they may lead to each other."""
    below = (path for path in folder.rglob("*") if not any(map(leftover, path.relative_to(folder).parts)))
    found = sorted(path for path in below if path.is_file() and not path.is_symlink())
    if not found:
        raise ValueError(f"{folder} holds no text files")
    return found


def _without_binaries(texts: dict[Path, bytes], folder: Path) -> list[bytes]:
    kept = {path: text for path, text in texts.items() if b"\0" not in text}
    if left := [path for path in texts if path not in kept]:
        doubt(log, f"{folder}: {len(left)} files such as {left[0].name} are no text and are passed over")
    if not any(kept.values()):
        raise ValueError(f"{folder} holds no text files")
    return list(kept.values())


def _without_doubles(texts: Sequence[bytes]) -> list[bytes]:
    """Every text once: its double could lie in another split."""
    return list({hashlib.sha256(text).digest(): text for text in reversed(texts)}.values())[::-1]


def _names(train: Sequence[np.ndarray], reading: ReadConfig, known: Preprocessing | None) -> tuple[str, ...]:
    """Names of the tokens: numbers of bytes, or the characters that the training text shows."""
    if with_vocabulary(reading) == "bytes":
        return numbered(BYTES)
    if known and known.classes:
        return known.classes
    return (UNKNOWN, *(char for char in map(chr, np.unique(np.concatenate(train))) if _holds(char)))


def _holds(char: str) -> bool:
    """Whether a file can hold a character: no control characters beside the white space of texts."""
    return char in "\t\n" or (char.isprintable() and char != UNKNOWN) or char in "\u00a0\u00ad"


def _numbers(units: np.ndarray, names: Sequence[str], reading: ReadConfig) -> np.ndarray:
    if with_vocabulary(reading) == "bytes":
        return units
    table: np.ndarray = np.zeros(0x110000, np.int64)
    table[[ord(name) for name in names if len(name) == 1]] = [i for i, name in enumerate(names) if len(name) == 1]
    return table[units]


def _windows(stretches: Sequence[np.ndarray], reading: ReadConfig) -> Data:
    """Windows next to each other `(n, context)`, and the same one token further on."""
    each = reading.context
    x, y = [], []
    for one in stretches:
        rows = (len(one) - 1) // each
        x.append(one[: rows * each].reshape(rows, each))
        y.append(one[1 : rows * each + 1].reshape(rows, each))
    inputs, labels = (torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in (x, y))
    return Data(inputs, labels)


def _say(found: dict[str, Data], names: Sequence[str], reading: ReadConfig, path: str) -> None:
    if with_vocabulary(reading) == "characters":
        unknown = {name: float((part.y == 0).double().mean()) for name, part in found.items()}
        if (most := max(unknown, key=lambda name: unknown[name])) and unknown[most] > 0.01:
            doubt(log, f"{path}: {100 * unknown[most]:.1f} % of the {most} characters are not in the vocabulary")
