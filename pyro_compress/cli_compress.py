"""compress: run folder -> .pcn file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli_options import Widths, data_options, device_options, names_in, one_line_errors
from pyro_compress.console import report_text, trial_printer, tune_printer

CRITERIA = names_in("compression/prune.py", "CRITERIA")


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--criterion",
    type=click.Choice(CRITERIA),
    default=None,
    help="Pruning score; the default fits the prior.",
)
@click.option("--sparsity", type=float, default=None, help="Share of the weights to remove, instead of a search.")
@click.option(
    "--tolerance",
    type=float,
    default=0.005,
    help="Validation accuracy that may be lost (0.005: half a point).",
)
@click.option(
    "--nll-tolerance",
    type=float,
    default=None,
    metavar="NATS",
    help="Validation NLL that may be lost; default twice --tolerance, less below 3,000 examples.",
)
@click.option(
    "--target-error", type=click.FloatRange(0, 1), default=None, metavar="SHARE",
    help="Validation error that may be reached (0.02: two points), instead of a tolerance.",
)  # fmt: skip
@click.option(
    "--max-bytes", type=click.IntRange(1), default=None,
    help="Largest file; the best that fits, instead of a tolerance.",
)  # fmt: skip
@click.option(
    "--bits", type=Widths(), default=None,
    help="Bits per weight, sign included, one number or one per layer, instead of a search for the steps.",
)  # fmt: skip
@click.option(
    "--bit-price", type=click.FloatRange(0), multiple=True, metavar="PRICE",
    help="Round for a price per bit, by the posterior's spread; 0: to the nearest. Repeatable: the best is taken.",
)  # fmt: skip
@click.option(
    "--finetune", type=click.IntRange(1), default=None, metavar="EPOCHS",
    help="Train what is left on as integers, under the price of their bits.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(0), default=None,
    help="Price of a bit in fine-tuning; 1 is the description length. Default: searched for on validation.",
)  # fmt: skip
@click.option(
    "--teacher", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None, metavar="RUN",
    help="Run whose network is distilled into this one while fine-tuning.",
)  # fmt: skip
@click.option(
    "--curve", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="CSV",
    help="Write size against error of every candidate (and a .png beside it, with matplotlib).",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The .pcn file; default RUN/network.pcn.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object and nothing else.")
@data_options
@device_options
def compress(
    run: Path, out: Path | None, force: bool, as_json: bool, data_dir: str, curve: Path | None, **options: Any
) -> None:
    """Prune, round and shrink a run's network into one .pcn file, read back and re-evaluated."""
    with one_line_errors():
        from pyro_compress.compression.curve import write_curve
        from pyro_compress.compression.pipeline import compress_run
        from pyro_compress.compression.target import Trial
        from pyro_compress.run import load_run

        out = out or run / "network.pcn"
        if out.exists() and not force:
            raise ValueError(f"{out} exists; choose another --out, or replace it with --force")
        loaded, trials = load_run(run), list[Trial]()
        splits = loaded.splits(data_dir)
        with search_options(options, as_json) as chosen:
            report = compress_run(loaded.posterior, splits, out, on_candidate=trials.append, **chosen)
        drawn = write_curve(curve, trials) if curve else []
    click.echo(json.dumps(report.as_dict() | {"file": str(out)}) if as_json else report_text(report, out))
    if drawn and not as_json:
        click.echo(f"{len(trials)} candidates: {', '.join(map(str, drawn))}")


@contextmanager
def search_options(options: dict[str, Any], quiet: bool) -> Iterator[dict[str, Any]]:
    """Options of `compress_run` from those of the command line, with the progress display that fits."""
    given = ("sparsity", "target_error", "max_bytes")
    if len(several := [name for name in given if options[name] is not None]) > 1:
        raise ValueError(f"{' and '.join(several)} exclude each other: give one of them")
    epochs, rate, teacher = (options.pop(name) for name in ("finetune", "rate", "teacher"))
    bits, prices = (options.pop(name) for name in ("bits", "bit_price"))
    if epochs is None:
        if rate is not None or teacher is not None:
            raise ValueError("--rate and --teacher go with --finetune EPOCHS")
        with trial_printer(quiet) as on_trial:
            yield options | {"on_trial": on_trial, "bits": bits or (), "prices": prices or (0.0,)}
        return
    if bits or prices:
        raise ValueError("--bits and --bit-price go without --finetune, which chooses every integer itself")
    from pyro_compress.compression.finetune import FineTune
    from pyro_compress.compression.tuned import Teacher
    from pyro_compress.run import load_run

    if teacher is not None:
        taught = load_run(teacher)
        teacher = Teacher(taught.posterior, taught.config.net)
    with tune_printer(quiet) as on_epoch:
        yield options | {"how": FineTune(epochs=epochs), "rate": rate, "teacher": teacher, "on_epoch": on_epoch}
