"""The commands that take a compressed network elsewhere: export and bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import Command, echo, one_line_errors
from pyro_compress.cli.console import bench_text, export_text
from pyro_compress.cli.ignored import EXPORT, StrictCommand
from pyro_compress.cli.options import data_options, device_options, memory_option
from pyro_compress.cli.values import RunPath


@click.command(cls=StrictCommand, ignored=EXPORT, short_help="Write a .pcn file as ONNX, torch or numpy, verified.")
@click.argument("source", metavar="FILE.pcn|RUN", type=RunPath())
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True,
    help="model.onnx, model.pt2, model.safetensors, model.c, or a name without suffix: a folder of numpy arrays.",
)  # fmt: skip
@click.option("--int8", is_flag=True, help="ONNX: 8-bit integers, calibrated on training examples.")
@click.option("--int8-dynamic", is_flag=True, help="ONNX: 8-bit integers, ranges found at run time.")
@click.option("--raw", is_flag=True, help="ONNX, C: the model takes raw bytes and scales them itself.")
@click.option("--float32", is_flag=True, help="ONNX: plain float32 weights, for runtimes that fold no constants.")
@click.option("--sparse", is_flag=True, help="Folder: layers as CSR where that pays.")
@click.option(
    "--ensemble", type=click.IntRange(2), default=None, metavar="K",
    help="Export K draws from the posterior of a RUN as one network: calibrated uncertainty at K times the cost.",
)  # fmt: skip
@click.option(
    "--sparsity", type=click.FloatRange(0, 1, max_open=True), default=None,
    help="Share of an ensemble's weights to remove; default: those below the criterion's threshold.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, help="Seeds the draws of an ensemble.")
@click.option("--data", default=None, metavar="NAME", help="Data to compare on; default: what it was fitted on.")
@click.option("--force", is_flag=True, help="Replace an existing export.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object and nothing else.")
@memory_option
@data_options
def export(
    source: Path, out: Path, int8: bool, int8_dynamic: bool, ensemble: int | None, sparsity: float | None, seed: int,
    data: str | None, force: bool, as_json: bool, data_dir: str, **flags: Any,
) -> None:  # fmt: skip
    """Write a .pcn file in another format, loaded again and compared on the test inputs."""
    with one_line_errors():
        if sparsity is not None and ensemble is None:
            raise ValueError("--sparsity goes with --ensemble K; a .pcn file is pruned already")
        from pyro_compress.deploy.export import Members, Request
        from pyro_compress.deploy.export import export as write

        request = Request(int8="dynamic" if int8_dynamic else "static" if int8 else "", **flags)
        members = None if ensemble is None else Members(ensemble, sparsity, seed)
        exported = write(source, out, request, data, data_dir, force, members)
    echo(json.dumps(exported.as_dict()) if as_json else export_text(exported))


@click.command(cls=Command, short_help="Measure latency, throughput, size and memory.")
@click.argument(
    "pcn", metavar="FILE.pcn...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
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
def bench(pcn: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Measure latency, throughput, size and memory, and say which kind of pruning gained what."""
    with one_line_errors():
        from pyro_compress.deploy.bench import bench_files

        results = bench_files(pcn, **options)
    echo(json.dumps([result.as_dict() for result in results]) if as_json else bench_text(results))
