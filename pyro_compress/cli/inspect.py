"""The commands `inspect` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import echo, one_line_errors, quiet_option, tell
from pyro_compress.cli.console import inspection_text, progress_shown, restarts_text
from pyro_compress.cli.ignored import INSPECT, REPORT, StrictCommand
from pyro_compress.cli.options import code_options, data_options, threads_option
from pyro_compress.cli.values import FilePath, RunPath

MOVED = click.option(
    "--data", default="", show_default=False, metavar="NAME", help="Where the run's data are now, if they were moved."
)


DRAWS = "Networks drawn from the posterior, at least 50; default: 200, of networks of over five million values 80."


@click.command(
    "inspect", cls=StrictCommand, ignored=INSPECT,
    short_help="Say what a run's posterior learned, and how far to trust it.",
    examples=(
        "inspect runs/digits-mlp-horseshoe-0", "inspect runs/digits-mlp-horseshoe-0 --draws 50 --netcdf draws.nc",
        "inspect --restarts runs/digits-mlp-horseshoe-0 runs/digits-mlp-horseshoe-1",
    ),
)  # fmt: skip
@click.argument("runs", type=RunPath(file_okay=False), nargs=-1, required=True)
@click.option("--restarts", is_flag=True, help="Compare two or more runs that differ in their seed only.")
@click.option("--draws", type=click.IntRange(50), default=None, help=DRAWS)
@click.option("--rows", type=click.IntRange(1), default=500, help="Training rows of the leave-one-out estimate.")
@click.option(
    "--all-rows", is_flag=True, help="k-hat from every training row instead of --rows: exact, slow on large sets."
)
@click.option(
    "-o", "--netcdf", type=click.Path(path_type=Path), default=None, help="Write the draws for ArviZ and xarray."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--seed", type=int, default=0, help="Seeds the draws.")
@threads_option
@MOVED
@code_options
@data_options
@quiet_option
def inspect_command(runs: tuple[Path, ...], restarts: bool, as_json: bool, **options: Any) -> None:
    """Look at what a run's posterior learned, and how far to trust it."""
    if restarts:
        with one_line_errors():
            text = _restarts(runs, as_json, **options)
    elif len(runs) > 1:
        raise click.UsageError("several runs go with --restarts only")
    else:
        with one_line_errors(), progress_shown():
            text = _inspect(runs[0], as_json, **options)
    if as_json:
        echo(text)
    else:
        tell(text)


def _restarts(
    runs: tuple[Path, ...], as_json: bool, data_dir: str, draws: int | None, threads: int, data: str, **_: Any
) -> str:
    from pyro_compress.inspection.restarts import compare_restarts

    found = compare_restarts(runs, data_dir, draws or 200, threads, data)
    return json.dumps([vars(agreement) for agreement in found]) if as_json else restarts_text(found)


def _inspect(
    run: Path, as_json: bool, netcdf: Path | None, force: bool, draws: int | None, rows: int, **options: Any
) -> str:
    from pyro_compress.bayes.diagnostics import AUTO, Size
    from pyro_compress.inspection.summary import inspect_run, save_netcdf
    from pyro_compress.places import check_file

    if netcdf is not None:
        check_file(netcdf, "netcdf", force, "--netcdf")
    inspection, diagnosis = inspect_run(run, size=Size(draws=draws or AUTO, rows=rows), **options)
    if netcdf is not None:
        save_netcdf(diagnosis, netcdf)
    return json.dumps(inspection.to_dict()) if as_json else inspection_text(inspection)


@click.command(
    cls=StrictCommand, ignored=REPORT, short_help="Write one HTML page on a run or on compare's results.",
    examples=("report runs/digits-mlp-horseshoe-0", "report studies/smoke -o smoke.html --force"),
)  # fmt: skip
@click.argument("folder", metavar="RUN|RESULTS", type=RunPath(file_okay=False))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="The page; default report.html in the folder."
)
@click.option(
    "--network",
    type=FilePath("a .pcn file, as compress writes it"),
    default=None,
    help="A .pcn file of the run; default RUN/network.pcn, if there is one.",
)
@click.option("--draws", type=click.IntRange(50), default=None, help=DRAWS)
@click.option("--force", is_flag=True, help="Replace an existing page.")
@click.option("--json", "as_json", is_flag=True, help="Print the page's name and size as one JSON object.")
@threads_option
@MOVED
@code_options
@data_options
@quiet_option
def report(folder: Path, draws: int | None, as_json: bool, **options: Any) -> None:
    """Write one self-contained HTML page: of a run (result, bytes, pictures, diagnostics) or of compare's results."""
    with one_line_errors():
        from pyro_compress.inspection.report import report as write

        with progress_shown():
            page = write(folder, draws=draws or 0, **options)
    size = page.stat().st_size
    if as_json:
        echo(json.dumps({"page": str(page), "bytes": size}))
    else:
        tell(f"{page}: {size:,} bytes; open it in any browser, it loads nothing")
