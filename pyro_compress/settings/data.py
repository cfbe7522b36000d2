"""How data are found and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pyro_compress.outputs import is_several
from pyro_compress.settings.declared import Config, having, setting
from pyro_compress.settings.registries import Names

MOST = 1 << 24
"""Of anything that is counted: a larger number is a slip."""
TASKS = Names("data/tasks.py", "TASKS")


@dataclass(frozen=True)
class DataSource(Config):
    """Which data."""

    heading: ClassVar = "Data"

    data: str = setting(
        "digits",
        "{names}, a .npz, .csv, .tsv or .parquet file, or a folder of images or arrays.",
        among=Names("data/datasets.py", "DATASETS"), other="file or folder", unit="NAME", path=True, searched=False,
    )  # fmt: skip
    data_dir: str = setting(
        "", "Folder that MNIST and the like lie in (also PYRO_COMPRESS_DATA).",
        unit="DIR", envvar="PYRO_COMPRESS_DATA", path=True, identity=False, searched=False,
    )  # fmt: skip


@dataclass(frozen=True)
class ReadConfig(Config):
    """How data are read, beside their name."""

    heading: ClassVar = "Data"

    task: str = setting(
        "classification",
        "What is predicted: classes, numbers, the next token of a text, a class per position, several labels.",
        among=TASKS, also=is_several, stored=True,
    )  # fmt: skip
    target: tuple[str, ...] = setting((), "Column of a table to predict. Repeatable.", unit="COLUMN", stored=True)
    test_data: str = setting("", "Table of test rows; default: a fifth of --data.", unit="FILE", stored=True, path=True)
    image_size: int = setting(
        0, "Height and width that a folder's images are brought to; 0: they are all of one size.",
        least=0, most=1 << 14, unit="PIXELS", stored=True,
    )  # fmt: skip
    series: bool = setting(
        False, "Arrays (n, channels, length) are series, not grey images; (n, length): of one channel.", stored=True
    )
    limit: int = setting(0, "Training examples to keep, stratified; 0: all.", least=0, most=1 << 62, stored=True)
    in_memory_mib: float = setting(
        4096.0, "Folders of more than this are read while training, not before.", least=0, unit="MIB", identity=False
    )
    workers: int = setting(2, "Processes that read them while training.", least=0, most=1 << 10, identity=False)
    vocabulary: str = setting(
        "", "With a text: what its tokens are; default: bytes.", among=("", "bytes", "characters"), stored=True
    )
    context: int = setting(64, "With a text: tokens that the network sees at a time.", least=2, most=MOST, stored=True)
    tokens: int = setting(
        0, "Whole numbers in arrays are tokens, from 0 to N - 1, not features or pixels.", least=0, stored=True
    )
    pad: int = setting(
        -1, "Token that fills up short sequences; it counts in no loss and no score; -1: none.", least=-1, unit="TOKEN",
        stored=True,
    )  # fmt: skip
    ignore: int = setting(
        -1, "Label of positions that have none, beside -100; -1: no other.", least=-1, unit="LABEL", stored=True
    )

    def example_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one example of an array, with the dimension of channels that it may leave out."""
        return (1, *shape) if len(shape) == (1 if self.series else 2) else shape

    @property
    def stored(self) -> dict[str, Any]:
        """What a compressed file must say of it, so that the same rows are found again: whatever is no default."""
        plain = ReadConfig()
        found = {name: getattr(self, name) for name in STORED if getattr(self, name) != getattr(plain, name)}
        return found | ({"target": list(self.target)} if self.target else {})


STORED = having(ReadConfig, stored=True)
"""Fields that a compressed file repeats where they are no defaults."""


@dataclass(frozen=True)
class DataConfig(ReadConfig, DataSource):
    """Data, how they are read, and how they are trained on."""

    heading: ClassVar = "Data"

    validation: float | None = setting(
        None, "Share of the training set held out; default: a tenth, or more where that is under 240 rows.",
        above=0, below=1, unit="SHARE", searched=False,
    )  # fmt: skip
    class_weights: str = setting(
        "none", "Of the likelihood; balanced: every class counts alike.", among=("none", "balanced")
    )
    augment: str = setting(
        "none", "How training images are changed every time they are seen.",
        among=Names("data/augment.py", "AUGMENTATIONS", ("none",)),
    )  # fmt: skip
