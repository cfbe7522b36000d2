"""compress: run folder, or trained weights and data -> .pcn file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_compress.cli.commands import echo, one_line_errors
from pyro_compress.cli.console import report_text, trial_printer, tune_printer
from pyro_compress.cli.ignored import COMPRESS, StrictCommand
from pyro_compress.cli.options import (
    announce_option,
    code_options,
    convert_defaults,
    data_options,
    device_options,
    names_in,
    network_options,
)
from pyro_compress.cli.sources import NETWORK, command_of, default_name, of_run, of_weights, rounding_of
from pyro_compress.cli.values import RunPath, Shares, Widths
from pyro_compress.doubts import keep, kept
from pyro_compress.settings import FINETUNING

if TYPE_CHECKING:
    from pyro_compress.compression.compensated import Compensation
    from pyro_compress.compression.rounding import Rounding
    from pyro_compress.compression.target import Goal, Watch
    from pyro_compress.compression.tuned import Tuning

AUGMENTATIONS = names_in("data/augment.py", "AUGMENTATIONS")
CRITERIA = names_in("compression/prune.py", "CRITERIA")


def load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make the `[compress]` table of a TOML file the defaults; what stands on the command line wins."""
    if path is None:
        return
    with one_line_errors():
        from pyro_compress.foreign import read_toml

        table = read_toml(path).get("compress")
        if not isinstance(table, dict):
            raise ValueError(f"{path} has no [compress] table; tune writes one, or leave --config out")
        options = {key.replace("-", "_"): value for key, value in table.items()}
        allowed = {str(p.name) for p in ctx.command.params} - {"run", "config", *NOT_BY_FILE}
        if unknown := sorted(set(options) - allowed):
            raise ValueError(f"{path}: unknown option {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}")
        ctx.default_map = convert_defaults(ctx, options, path)


NOT_BY_FILE = ("out", "force", "as_json", "curve", "folder", "no_code")
"""Parameters that no file may give: what is written and where, and what is refused, says the command line."""


HEADINGS = {
    "--net": "Weights that were trained elsewhere, instead of RUN",
    "--config": "What is removed and rounded",
    "--finetune": "Fine-tuning",
    "--reorder": "Results",
    "--data-dir": "Running",
}


@click.command(
    cls=StrictCommand, ignored=COMPRESS, headings=HEADINGS, short_help="Prune, round and shrink into a .pcn file."
)
@click.argument("run", type=RunPath(file_okay=False), required=False)
@network_options
@code_options
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), callback=load_config, is_eager=True,
    expose_value=False, help="TOML file with these options in a [compress] table, as tune writes it.",
)  # fmt: skip
@click.option(
    "--criterion",
    type=click.Choice(CRITERIA),
    default=None,
    help="Score that orders weights for pruning; the default fits the prior.",
)
@click.option(
    "--sparsity", type=Shares(), default=None,
    help="Share of the weights to remove, instead of a search; layer=share,... for one per layer.",
)  # fmt: skip
@click.option(
    "--coarseness", type=click.FloatRange(0, min_open=True), default=None,
    help="Step of the weights, relative to each layer's own scale; goes with --sparsity. Default: found on validation.",
)  # fmt: skip
@click.option(
    "--tolerance",
    type=float,
    default=0.005,
    help="Validation accuracy that may be lost (0.005: half a point); regression: share by which the RMSE may grow, "
    "texts: the bits.",
)
@click.option(
    "--nll-tolerance",
    type=float,
    default=None,
    metavar="NATS",
    help="Validation NLL that may be lost; default twice --tolerance, less below 3,000 examples.",
)
@click.option(
    "--target-error", type=click.FloatRange(0), default=None, metavar="SHARE",
    help="Validation error that may be reached (0.02: two points; regression: RMSE / spread; texts: bits), "
    "instead of a tolerance.",
)  # fmt: skip
@click.option(
    "--max-bytes", type=click.IntRange(1), default=None,
    metavar="BYTES",
    help="Largest file; the best that fits, instead of a tolerance.",
)  # fmt: skip
@click.option(
    "--rounding", type=click.Choice(["nearest", "compensated"]), default=None,
    help="compensated (of --net, the default): every integer for what it costs outputs and file, the weights not yet "
    "rounded make up for it. nearest (of RUN, the default): after pruning by a criterion.",
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
    help="Train what is left on as integers, under the price of their bits; the report counts --masked-epochs too.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(0), default=None,
    help="Price of a bit in fine-tuning; 1 is the description length. Default: searched for on validation.",
)  # fmt: skip
@click.option(
    "--teacher", type=RunPath(file_okay=False), multiple=True, metavar="RUN",
    help="Run whose network is distilled into this one while fine-tuning. Repeatable: their mean probabilities are.",
)  # fmt: skip
@click.option(
    "--teacher-weight",
    type=click.FloatRange(0, 1),
    default=None,
    metavar="SHARE",
    help="Share of the loss that is the teacher's.",
)
@click.option(
    "--temperature", type=click.FloatRange(0, min_open=True), default=None,
    help="Of the softmax under which teacher and network are compared.",
)  # fmt: skip
@click.option(
    "--finetune-augment", type=click.Choice(["none", *AUGMENTATIONS]), default=None,
    help="Training images, changed every time they are seen in fine-tuning; a teacher sees what the network sees.",
)  # fmt: skip
@click.option(
    "--masked-epochs", type=click.IntRange(0), default=None, metavar="EPOCHS",
    help="Epochs before those of --finetune, on the masked weights, which are not rounded yet; default: 2.",
)  # fmt: skip
@click.option(
    "--step", type=click.FloatRange(0, min_open=True), default=None,
    help="Step of the weights in fine-tuning, relative to each layer's own scale.",
)  # fmt: skip
@click.option(
    "--noise",
    type=click.FloatRange(0),
    default=None,
    metavar="STEPS",
    help="Noise on the weights in fine-tuning, in steps.",
)
@click.option(
    "--sam-rho", type=click.FloatRange(0), default=None, metavar="RHO",
    help="Sharpness-aware fine-tuning: descend from the worst weights within this distance. Takes twice the time.",
)  # fmt: skip
@click.option(
    "--finetune-svi", is_flag=True, default=None,
    help="Go on with SVI in fine-tuning: weights learn spreads, the coder is the prior, --noise is for the others.",
)  # fmt: skip
@click.option(
    "--finetune-lr", type=click.FloatRange(0, min_open=True), default=None, help="Adam's rate in fine-tuning."
)
@click.option(
    "--finetune-batch-size", type=click.IntRange(1), default=None, metavar="EXAMPLES",
    help="Examples per step of fine-tuning; fewer take longer, and may generalise better.",
)  # fmt: skip
@click.option(
    "--reorder", type=click.IntRange(0), default=None, metavar="PASSES",
    help="Passes of the coder spent on the order of hidden units that takes the fewest bytes; default: some seconds.",
)  # fmt: skip
@click.option(
    "--curve", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="CSV",
    help="Write size against error of every candidate (and a .png beside it, with matplotlib).",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="The .pcn file; default RUN/network.pcn or NET.pcn."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object and nothing else.")
@data_options
@device_options
def compress(
    run: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    data_dir: str,
    curve: Path | None,
    reorder: int | None,
    **options: Any,
) -> None:
    """Prune, round and shrink a network into one .pcn file, read back and re-evaluated.

    The network is that of a run folder, or with --net, --init and --data one that was trained elsewhere, whose own
    accuracy is what the report counts against: its weights are rounded as they are, without any training. Where an
    option asks for pruning or for fine-tuning, a posterior is found around them first.
    """
    with one_line_errors():
        from pyro_compress.compression.curve import check_curve, write_curve
        from pyro_compress.compression.pipeline import compress_run
        from pyro_compress.compression.target import Trial
        from pyro_compress.machine import prepare
        from pyro_compress.places import check_file

        announce_option(click.get_current_context())
        named = {name: options.pop(name) for name in NETWORK}
        out = out or (run / "network.pcn" if run else default_name(named["net"] or ""))
        if run or named["net"]:
            check_file(out, "pcn", force)
        if curve:
            check_curve(curve, out, force)
        trials, started = list[Trial](), time.perf_counter()
        options["seed"], options["asked"] = named["seed"], options["rounding"] is not None
        options["rounding"] = rounding_of(run, named, options)
        command = command_of(options)
        source = (
            of_run(command, run, data_dir, named) if run else of_weights(command, data_dir, named, options, as_json)
        )
        if not options.pop("asked"):
            options["rounding"] = source.rounding
        device = prepare(options.pop("device"), options.pop("threads"))
        with search_options(options, as_json) as (goal, how, watch):
            report = compress_run(
                source.posterior, source.splits, out, replace(goal, reference=source.reference), how, device,
                replace(watch, candidate=trials.append if curve else None), reorder,
            )  # fmt: skip
        seconds = {"posterior_seconds": source.seconds, "seconds": time.perf_counter() - started}
    for sentence in report.warnings:
        keep(sentence)
    told = report.as_dict() | {"file": str(out), "warnings": kept()} | ({} if run else seconds)
    echo(json.dumps(told) if as_json else report_text(report, out))
    if not run and not as_json:
        minutes = [seconds[name] / 60 for name in ("posterior_seconds", "seconds")]
        spent = f"{minutes[0]:.1f} of {minutes[1]:.1f} minutes their posterior"
        echo(f"before: the weights of {named['init']}; {spent if minutes[0] else f'{minutes[1]:.1f} minutes'}")
    if curve:
        try:
            drawn = write_curve(curve, trials)
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            echo(f"warning: {out} is written, but not its curve: {reason}", err=True)
            drawn = []
        if drawn and not as_json:
            echo(f"{len(trials)} candidates: {', '.join(map(str, drawn))}")


@contextmanager
def search_options(
    options: dict[str, Any], quiet: bool
) -> Iterator[tuple[Goal, Rounding | Compensation | Tuning, Watch]]:
    """What `compress_run` is to reach and how, from the command line, with the progress display that fits."""
    from pyro_compress.compression.compensated import Compensation
    from pyro_compress.compression.recipe import FineTune
    from pyro_compress.compression.rounding import Rounding
    from pyro_compress.compression.target import Goal, Watch
    from pyro_compress.compression.tuned import Teacher, Tuning
    from pyro_compress.runs.folder import load_run

    given = ("sparsity", "target_error", "max_bytes")
    if len(several := [f"--{name.replace('_', '-')}" for name in given if options[name] is not None]) > 1:
        raise ValueError(f"{' and '.join(several)} exclude each other: give one of them")
    epochs, rate, teachers = (options.pop(name) for name in ("finetune", "rate", "teacher"))
    recipe = {field: value for name, field in FINETUNING.items() if (value := options.pop(name)) is not None}
    bits, prices, coarseness = (options.pop(name) for name in ("bits", "bit_price", "coarseness"))
    compensated, seed = options.pop("rounding") == "compensated", options.pop("seed")
    goal = Goal(**options)
    if epochs is None:
        if rate is not None or teachers or recipe:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in FINETUNING)
            raise ValueError(f"--rate, --teacher, {names} go with --finetune EPOCHS")
        with trial_printer(quiet) as on_trial:
            if compensated:
                yield goal, Compensation(seed=seed), Watch(on_trial)
                return
            yield goal, Rounding(coarseness, bits or (), prices or (0.0,)), Watch(on_trial)
        return
    if coarseness is not None:
        raise ValueError("--coarseness goes without --finetune; fine-tuning has --step")
    if bits or prices:
        raise ValueError("--bits and --bit-price go without --finetune, which chooses every integer itself")
    taught_by = [load_run(path) for path in teachers]
    teacher = Teacher.of([(run.posterior, run.config.net) for run in taught_by]) if teachers else None
    how = FineTune(epochs=epochs, **recipe)
    with tune_printer(quiet) as on_epoch:
        yield goal, Tuning(how, rate, teacher), Watch(epoch=on_epoch)
