"""Predictions as values: of one input, of all of them, as JSON and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.foreign import cell

HALF = 0.5
"""Probability above which a label of several is given."""


@dataclass(frozen=True)
class Prediction:
    """What a network says of one input.

    Attributes:
        name: of the input: its file, or the number of its row, from 1.
        classes: the most probable first; with several labels per input all of them, with a class per position those
            that most positions have.
        probabilities: of these classes; with a class per position the share of the positions that have it.
        values: of regression: each target in its own units; of a reconstruction its root mean squared error.
    """

    name: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes whose probability is above one half."""
        return tuple(one for one, p in zip(self.classes, self.probabilities, strict=True) if p > HALF)


@dataclass(frozen=True)
class Predictions:
    """What a network says of every input, in their order.

    Attributes:
        rows: one for each input.
        task: name in `pyro_compress.data.tasks.TASKS`.
        kind: what an input is called: `row`, `image` or `text`.
        classes: all that the network knows, in the order of its outputs.
        targets: names of the values; empty where classes are predicted.
        noise: standard deviation of the noise that was learned, of every target in its own units; empty for none.
        outputs: of a network with several outputs what each says, by its name; `rows` then have names alone.
    """

    rows: tuple[Prediction, ...]
    task: str
    kind: str = "row"
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    noise: tuple[float, ...] = ()
    outputs: Mapping[str, Predictions] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Predictions({len(self)} {self.kind}s, {self.task})"

    @property
    def measure(self) -> str:
        """What the numbers beside classes are."""
        return "share" if self.task in ("tagging", "segmentation") else "probability"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        if self.outputs:
            return {"task": self.task, "outputs": {name: one.to_dict() for name, one in self.outputs.items()}}
        document: dict[str, Any] = {"task": self.task, "predictions": [self._row(row) for row in self.rows]}
        return document | ({"noise": dict(zip(self.targets, self.noise, strict=True))} if self.noise else {})

    def _row(self, row: Prediction) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": row.name}
        if self.targets:
            return entry | {"values": dict(zip(self.targets, row.values, strict=True))}
        if self.task == "multi-label":
            entry |= {"labels": list(row.labels)}
        pairs = zip(row.classes, row.probabilities, strict=True)
        return entry | {"classes": [{"class": one, self.measure: share} for one, share in pairs]}

    def as_csv(self) -> str:
        """A table with a line per input; no cell of it is a formula to a spreadsheet.

        Its first column is `predicted_for`. Behind it stand `class` and `probability` (`class_2` and so on, where
        several were asked for), or a column per target, each with one of its noise, or with several labels per input
        those above one half, separated by semicolons, and a column with the probability of each.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([cell(value) for value in line] for line in self._lines())
        return text.getvalue()

    def _lines(self) -> Iterator[list[Any]]:
        if self.outputs:
            names = [["predicted_for"], *([row.name] for row in self.rows)]
            for first, *parts in zip(names, *self._columns(), strict=True):
                yield [*first, *(cell for part in parts for cell in part)]
            return
        if self.targets:
            heads = [head for name in self.targets for head in (name, f"{name}, noise std")[: 1 + bool(self.noise)]]
            yield ["predicted_for", *heads]
            for row in self.rows:
                values = zip(row.values, self.noise or row.values, strict=True)
                yield [row.name, *(value for pair in values for value in pair[: 1 + bool(self.noise)])]
            return
        if self.task == "multi-label":
            yield ["predicted_for", "labels", *self.classes]
            for row in self.rows:
                found = dict(zip(row.classes, row.probabilities, strict=True))
                yield [row.name, ";".join(row.labels), *(found[name] for name in self.classes)]
            return
        most = len(self.rows[0].classes) if self.rows else 1
        ends = ["", *(f"_{i}" for i in range(2, most + 1))]
        yield ["predicted_for", *(f"{name}{end}" for end in ends for name in ("class", self.measure))]
        for row in self.rows:
            pairs = zip(row.classes, row.probabilities, strict=True)
            yield [row.name, *(value for pair in pairs for value in pair)]

    def _columns(self) -> Iterator[list[list[Any]]]:
        """The lines of every output without the first column, its heads with the output's name before them."""
        for name, one in self.outputs.items():
            heads, *lines = ([*line[1:]] for line in one._lines())
            named = heads if one.targets else [f"{name}, {head}" for head in heads]
            yield [named, *lines]

    def write_csv(self, path: str | Path) -> None:
        """Write the table in UTF-8; what a name of a file holds beyond that is spelled out.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(Path(path), self.as_csv().encode(errors="backslashreplace"))
