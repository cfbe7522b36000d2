"""The commands that take a compressed network elsewhere: export and bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import Command, echo, one_line_errors, quiet_option, tell
from pyro_compress.cli.console import bench_text, export_text, progress_shown
from pyro_compress.cli.ignored import EXPORT, StrictCommand
from pyro_compress.cli.options import (
    data_options,
    device_options,
    given,
    memory_option,
    setting_options,
    threads_option,
)
from pyro_compress.cli.values import FilePath, RunPath
from pyro_compress.settings.export import ExportConfig


@click.command(
    cls=StrictCommand, ignored=EXPORT, short_help="Write a .pcn file as ONNX, torch, C, wasm, ..., verified.",
    examples=(
        "export network.pcn -o model.onnx --int8",
        "export network.pcn -o model.c --raw",
        "export runs/digits-mlp-horseshoe-0 --ensemble 10 -o draws.onnx",
    ),
)  # fmt: skip
@click.argument("source", metavar="FILE.pcn|RUN", type=RunPath())
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True,
    help="model.onnx, model.pt2, model.pte (ExecuTorch), model.tflite (LiteRT), model.safetensors, model.c, model.wasm "
    "(with model.js beside it), or a name without suffix: a folder of numpy arrays.",
)  # fmt: skip
@setting_options(ExportConfig)
@click.option("--data", default=None, metavar="NAME", help="Data to compare on; default: what it was fitted on.")
@click.option("--force", is_flag=True, help="Replace an existing export.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object and nothing else.")
@data_options
@threads_option
@quiet_option
def export(
    source: Path, out: Path, data: str | None, force: bool, as_json: bool, data_dir: str, threads: int, **_: Any
) -> None:  # fmt: skip
    """Write a .pcn file in another format, loaded again and compared on the test inputs."""
    with one_line_errors():
        from pyro_compress.deploy.export import export as write

        request = ExportConfig.of(given(click.get_current_context(), ExportConfig))
        exported = write(source, out, request, data, data_dir, force, threads)
    if as_json:
        echo(json.dumps(exported.to_dict()))
    else:
        tell(export_text(exported))


@click.command(
    cls=Command, short_help="Measure latency, throughput, size and memory.",
    examples=(
        "bench runs/digits-mlp-horseshoe-0/network.pcn --threads 1",
        "bench network.pcn --dense runs/digits-mlp-horseshoe-0 --batches 1,64",
    ),
)  # fmt: skip
@click.argument(
    "pcn",
    metavar="FILE.pcn...",
    nargs=-1,
    required=True,
    type=FilePath("a .pcn file, as compress writes it into a run's folder"),
)
@click.option(
    "--dense", type=RunPath(file_okay=False), default=None,
    help="Run folder of the original network; default: the folder that FILE.pcn lies in, if it is one.",
)  # fmt: skip
@click.option("--batches", default="1,16,256", metavar="N,N,...", help="Batch sizes.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=1.0, help="Seconds per measured cell of the table."
)
@click.option("--no-memory", is_flag=True, help="Leave out peak memory, which starts one process per row.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object and nothing else.")
@memory_option
@data_options
@device_options
@quiet_option
def bench(pcn: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Measure latency, throughput, size and memory, and say which kind of pruning gained what."""
    with one_line_errors():
        from pyro_compress.deploy.bench import bench as measured

        with progress_shown(ticking=False):
            results = measured(pcn, **options)
    if as_json:
        echo(json.dumps([result.to_dict() for result in results]))
    else:
        tell(bench_text(results))
