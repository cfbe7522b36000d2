"""compress: run folder, or trained weights and data -> .pcn file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_compress.cli.commands import RESULTS, Option, echo, hushed, one_line_errors, quiet_option, tell
from pyro_compress.cli.console import progress_shown, report_text
from pyro_compress.cli.ignored import COMPRESS, StrictCommand
from pyro_compress.cli.options import (
    NETWORK,
    announce_option,
    as_defaults,
    code_options,
    data_options,
    device_options,
    given,
    network_given,
    network_options,
    setting_options,
)
from pyro_compress.cli.sources import command_of, default_name, of_run, of_weights, rounding_of
from pyro_compress.cli.values import FilePath, RunPath
from pyro_compress.doubts import keep, kept
from pyro_compress.settings import CompressConfig, FitConfig
from pyro_compress.settings.declared import declared, flat, having, options_in
from pyro_compress.settings.fit import MachineConfig

if TYPE_CHECKING:
    from pyro_compress.cli.sources import Source
    from pyro_compress.compression.pipeline import Report
    from pyro_compress.compression.target import Trial

RESULT: dict[str, Any] = {"cls": Option, "heading": RESULTS}


def load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make the `[compress]` table of a TOML file the defaults; what stands on the command line wins."""
    if path is None:
        return
    with one_line_errors():
        from pyro_compress.foreign import read_toml

        table = read_toml(path).get("compress")
        if not isinstance(table, dict):
            raise ValueError(f"{path} has no [compress] table; tune writes one, or leave --config out")
        options = as_defaults(ctx, options_in(table, CompressConfig, f"{path}: compress", beside=BESIDE))
        if "posterior" in options:
            options["how"] = options.pop("posterior")
        ctx.default_map = options


BESIDE = dict.fromkeys(("posterior", "how", "calibration"), str) | {
    name: declared(FitConfig)[name].whole for name in (*NETWORK, "data_dir", *having(MachineConfig))
}
"""What else a file may give -> its type: what is written and where, and what is refused, says the command line."""

OF_FILE = "give a run folder, or --init FILE with its network (--net; a .pcn file is both) and --data"


@click.command(
    cls=StrictCommand, ignored=COMPRESS, short_help="Prune, round and shrink into a .pcn file.",
    examples=(
        "compress runs/digits-mlp-horseshoe-0 --tolerance 0.01",
        "compress runs/digits-mlp-horseshoe-0 --finetune 10 -o small.pcn",
        "compress --net torchvision:resnet18 --init weights.pt --data photos",
    ),
)  # fmt: skip
@click.argument("run", type=RunPath(OF_FILE, file_okay=False), required=False)
@network_options
@code_options
@click.option(
    "--config", type=FilePath("a TOML file with a [compress] table"), callback=load_config, is_eager=True,
    expose_value=False, help="TOML file with these options in a [compress] table, as tune writes it.",
)  # fmt: skip
@setting_options(CompressConfig)
@click.option(
    "--curve", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="CSV",
    help="Write size against error of every candidate (and a .png beside it, with matplotlib).", **RESULT,
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None,
    help="The .pcn file; default RUN/network.pcn or NET.pcn.", **RESULT,
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing file.", **RESULT)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object and nothing else.", **RESULT)
@click.option(
    "--print-config", is_flag=True, help="Print the configuration as TOML, with all defaults, and compress nothing.",
    **RESULT,
)  # fmt: skip
@data_options
@device_options
@quiet_option
def compress(
    run: Path | None, out: Path | None, force: bool, as_json: bool, curve: Path | None, print_config: bool, **_: Any
) -> None:  # fmt: skip
    """Prune, round and shrink a network into one .pcn file, read back and re-evaluated.

    The network is that of a run folder, or with --net, --init and --data one that was trained elsewhere, whose own
    accuracy is what the report counts against: its weights are rounded as they are, without any training. Where an
    option asks for pruning or for fine-tuning, a posterior is found around them first.
    """
    with one_line_errors():
        from pyro_compress.compression.curve import check_curve
        from pyro_compress.compression.target import Trial
        from pyro_compress.places import check_file

        context = click.get_current_context()
        announce_option(context)
        asked, named = CompressConfig.of(given(context, CompressConfig)), network_given(context)
        if print_config:
            echo(printed(asked, run, named))
            return
        out = out or (run / "network.pcn" if run else default_name(named.get("net", "")))
        if run or "net" in named:
            check_file(out, "pcn", force)
        if curve:
            check_curve(curve, out, force)
        trials, started = list[Trial](), time.perf_counter()
        source, report = compressed(asked, run, named, out, hushed(), trials.append if curve else None)
        seconds = {"posterior_seconds": source.seconds, "seconds": time.perf_counter() - started}
    for sentence in report.warnings:
        keep(sentence)
    document = report.to_dict() | {"file": str(out), "warnings": kept()} | ({} if run else seconds)
    if as_json:
        echo(json.dumps(document))
    else:
        tell(report_text(report, out))
    if not run and not as_json:
        minutes = [seconds[name] / 60 for name in ("posterior_seconds", "seconds")]
        spent = f"{minutes[0]:.1f} of {minutes[1]:.1f} minutes their posterior"
        tell(f"before: the weights of {named['init']}; {spent if minutes[0] else f'{minutes[1]:.1f} minutes'}")
    if curve:
        draw(curve, trials, out, hushed())


def printed(asked: CompressConfig, run: Path | None, named: dict[str, Any]) -> str:
    """A configuration as TOML, as `--config` takes it: what was asked for, and what follows from it."""
    import tomli_w

    from pyro_compress.runs.folder import load_run

    config = replace(asked, rounding=rounding_of(run, named, asked))
    if run and config.rounding == "nearest":
        config = replace(config, criterion=config.criterion or load_run(run).posterior.criterion)
    machine = given(click.get_current_context(), FitConfig, ("data_dir", *having(MachineConfig)))
    network = {"posterior" if name == "how" else name: v for name, v in named.items() if name != "folder"}
    return tomli_w.dumps({"compress": network | flat(config) | machine}).rstrip()


def compressed(
    asked: CompressConfig, run: Path | None, named: dict[str, Any], out: Path, quiet: bool,
    on_candidate: Callable[[Trial], None] | None,
) -> tuple[Source, Report]:  # fmt: skip
    """What is compressed, and what came of it, with the progress display that fits."""
    from pyro_compress.compression.finetuned import Teacher
    from pyro_compress.compression.pipeline import compress_run, way_of
    from pyro_compress.compression.target import SearchCallbacks
    from pyro_compress.machine import prepare
    from pyro_compress.runs.folder import load_run

    params = click.get_current_context().params
    config = replace(asked, rounding=rounding_of(run, named, asked))
    command = command_of(config)
    source = of_run(command, run, params["data_dir"], named) if run else of_weights(command, named, asked, quiet)
    if asked.rounding is None:
        config = replace(config, rounding=source.rounding)
    device = prepare(params["device"], params["threads"])
    taught_by = [load_run(Path(teacher)) for teacher in config.teacher]
    teacher = Teacher.of([(taught.posterior, taught.config.net) for taught in taught_by]) if taught_by else None
    way = way_of(config, named.get("seed", 0), teacher)
    with progress_shown() as show:
        callbacks = SearchCallbacks(
            trial=lambda done, total: show("searching on the validation split", done, total),
            epoch=lambda epoch, epochs, kept: show("fine-tuning", epoch, epochs, f"fine-tuning, {kept:,} values left"),
        )
        report = compress_run(
            source.posterior, source.splits, out, replace(config, reference=source.reference), way, device,
            replace(callbacks, candidate=on_candidate), config.reorder,
        )  # fmt: skip
    return source, report


def draw(curve: Path, trials: list[Trial], out: Path, quiet: bool) -> None:
    """Write the candidates of a search; where that fails, the file is there all the same."""
    from pyro_compress.compression.curve import write_curve

    try:
        drawn = write_curve(curve, trials)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        echo(f"warning: {out} is written, but not its curve: {reason}", err=True)
        return
    if drawn and not quiet:
        echo(f"{len(trials)} candidates: {', '.join(map(str, drawn))}")
