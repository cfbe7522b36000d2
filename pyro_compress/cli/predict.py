"""The command `predict`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_compress.cli.commands import echo, one_line_errors, quiet_option, tell
from pyro_compress.cli.console import table
from pyro_compress.cli.ignored import PREDICT, StrictCommand
from pyro_compress.cli.options import data_options, device_options, memory_option
from pyro_compress.cli.values import RunPath
from pyro_compress.foreign import name_shown

if TYPE_CHECKING:
    from pyro_compress.runs.predictions import Prediction, Predictions


@click.command(
    cls=StrictCommand, ignored=PREDICT, short_help="Say what a network makes of images, rows or texts.",
    examples=(
        "predict network.pcn photos --top 3 -o predictions.csv", "predict network.pcn new.csv --json",
        "predict runs/digits-mlp-horseshoe-0 digits",
    ),
)  # fmt: skip
@click.argument("file", metavar="FILE.pcn|RUN", type=RunPath())
@click.argument("data", metavar="DATA")
@click.option(
    "--top", type=click.IntRange(1), default=None, metavar="K", help="Classes that are told of each input; default: 1."
)
@click.option(
    "-o", "--csv", "out", type=click.Path(path_type=Path), default=None, metavar="OUT.csv",
    help="Write a table instead of printing the predictions.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing table of predictions.")
@click.option("--json", "as_json", is_flag=True, help="Print the predictions as one JSON object and nothing else.")
@memory_option
@data_options
@device_options
@quiet_option
def predict(
    file: Path, data: str, top: int | None, out: Path | None, force: bool, as_json: bool, **options: Any
) -> None:
    """Say what a .pcn file, or the posterior mean of a run folder, makes of inputs that need no labels.

    DATA is an image, a folder of images, a table (.csv, .tsv, .parquet; its target may be absent), arrays (.npz, .npy),
    a text, or the name of a data set, whose test split is taken. It is scaled, coloured and put into categories as the
    network's own data were. Classes are told with their probabilities, numbers in the units of the target; of a text
    the token behind its end, of images and sequences with a class per position the classes that most positions have.
    """
    with one_line_errors():
        if out is not None:
            from pyro_compress.places import check_file

            check_file(out, "predictions", force, "--csv")
        from pyro_compress.runs.prediction import predict as predicted

        found = predicted(file, data, top, **options)
        if out is not None:
            found.write_csv(out)
    if as_json:
        echo(json.dumps({"file": str(file), "data": data} | found.to_dict()))
    elif out is None:
        tell(predictions_text(found))
    else:
        tell(f"{out}: {len(found):,} predictions")


def predictions_text(found: Predictions) -> str:
    """Predictions for people."""
    if found.outputs:
        return "\n\n".join(f"{name_shown(name)}\n{predictions_text(one)}" for name, one in found.outputs.items())
    first = found.rows[0]
    if found.targets:
        heads: tuple[str, ...] = found.targets
    elif found.task == "multi-label":
        heads = ("labels",)
    else:
        ends = ["", *(f" {i}" for i in range(2, len(first.classes) + 1))]
        heads = tuple(f"{name}{end}" for end in ends for name in ("class", found.measure))
    lines = table([(found.kind, *map(name_shown, heads)), *((name_shown(r.name), *_cells(r, found)) for r in found)])
    if found.noise:
        spreads = zip(found.targets, found.noise, strict=True)
        listed = ", ".join(f"{name_shown(name)} ± {std:.6g}" for name, std in spreads)
        lines += ["", f"noise that was learned, as a standard deviation: {listed}"]
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: Prediction, found: Predictions) -> Iterator[str]:
    if found.targets:
        yield from (f"{value:.6g}" for value in row.values)
    elif found.task == "multi-label":
        pairs = list(zip(row.classes, row.probabilities, strict=True))[: len(row.labels)]
        yield ", ".join(f"{name_shown(one)} {100 * p:.2f} %" for one, p in pairs) or "none above one half"
    else:
        for one, p in zip(row.classes, row.probabilities, strict=True):
            yield name_shown(one)
            yield f"{100 * p:.2f} %"
