"""What exports weigh and how fast they are: rows and tables of docs/results/exports.md.

    python scripts/bench_deploy.py speed FILE.pcn --dense RUN
    python scripts/bench_deploy.py exports FILE.pcn --data-dir data
    python scripts/bench_deploy.py ensemble RUN --members 5 10 --data-dir data
    python scripts/bench_deploy.py --table

Every call adds its rows to `--out`, in place of older ones of the same name. Speed is one thread, all rows in turns
within one run. `--smoke` does all three for a tiny network.
"""

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.deploy.bench import bench as measure
from pyro_compress.deploy.export import export
from pyro_compress.deploy.measured import Bench, Cell, Row
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.settings.export import ExportConfig, Members

EXPORTS = {
    "model.onnx": {},
    "model.onnx --float32": {"float32": True},
    "model.onnx --raw": {"raw": True},
    "model.onnx --int8": {"int8": True},
    "model.onnx --int8-dynamic": {"int8_dynamic": True},
    "model.pt2": {},
    "model.safetensors": {},
    "model.c": {},
    "model.wasm": {},
    "folder": {},
    "folder --sparse": {"sparse": True},
}


def exports(file: Path, data_dir: str) -> list[dict]:
    """Every export of a file: bytes, differences, scores."""
    found = []
    for name, options in EXPORTS.items():
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / name.split()[0]
            found.append(export(file, out, ExportConfig(**options), data_dir=data_dir).to_dict() | {"path": name})
    return found


def ensembles(run: Path, members: list[int], data_dir: str) -> list[dict]:
    """The posterior mean's file at its default threshold, and ensembles of draws."""
    found = []
    for count in members:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "model.onnx"
            told = export(run, out, ExportConfig(members=Members(count)), data_dir=data_dir).to_dict()
            found.append(told | {"members": count, "path": out.name})
    return found


def kept(told: dict) -> dict:
    """A benchmark without what was left out on this machine."""
    return {key: value for key, value in told.items() if key != "missing"}


def speed_table(told: dict) -> list[str]:
    """Markdown of a benchmark."""
    rows = tuple(Row(**(row | {"cells": tuple(Cell(**cell) for cell in row["cells"])})) for row in told["rows"])
    bench = Bench(**{**told, "rows": rows, "missing": ()})
    widths = "-".join(map(str, bench.widths))
    scored = bool(bench.measure)
    lines = [
        f"{bench.file}: {bench.file_bytes:,} bytes, {100 * bench.density:.0f} % non-zero, units {widths}",
        "",
        "| network | engine | file, bytes | process peak, MiB | "
        + " | ".join([f"batch {cell.batch}, µs" for cell in rows[0].cells] + [bench.measure] * scored) + " |",
        "| --- | --- | ---: | ---: |" + " ---: |" * (len(rows[0].cells) + scored),
    ]  # fmt: skip
    for row in rows:
        cells = [row.variant, row.engine, f"{row.bytes:,}", f"{row.peak_mib:.0f}" if row.peak_mib else ""]
        for cell in row.cells:
            gain = bench.gain(row, cell.batch)
            cells.append(f"{cell.median_us:,.1f}" + (f", {gain:.1f}×" if gain and row.variant != "dense" else ""))
        cells += [row.score] * scored
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def exports_table(rows: list[dict]) -> list[str]:
    """Markdown of exports."""
    lines = [
        f"| export | bytes | largest difference of outputs (up to {rows[0]['largest_output']:.0f}) | of probabilities "
        "| test accuracy |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [f"`{row['path']}`", f"{row['bytes']:,}", f"{row['difference']:.2g}"]
        cells += [f"{row['probability_difference']:.2g}", f"{100 * row['after']['accuracy']:.2f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ensemble_table(rows: list[dict]) -> list[str]:
    """Markdown of ensembles."""
    lines = ["| draws | accuracy | NLL, nats | ECE | bytes |", "| ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        scores = row["after"]
        cells = [str(row["members"]), f"{100 * scores['accuracy']:.2f} %", f"{scores['nll_nats']:.4f}"]
        cells += [f"{scores['ece']:.3f}", f"{row['bytes']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["speed", "exports", "ensemble"])
    parser.add_argument("source", nargs="?", type=Path, help="a .pcn file, or a run folder")
    parser.add_argument("--dense", type=Path, help="run folder of the original network")
    parser.add_argument("--members", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--batches", default="1,16,256")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--name", help="of the rows; default: that of the source")
    parser.add_argument("--out", type=Path, default=Path("docs/results/deploy.json"))
    parser.add_argument("--table", action="store_true", help="print the Markdown tables of --out and stop")
    parser.add_argument("--smoke", action="store_true", help="everything for a tiny network")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        if options.smoke:
            if find_spec("ziglang") is None:
                del EXPORTS["model.wasm"]
            config = FitConfig(prior="horseshoe", hidden=(12,), epochs=2, limit=200, device="cpu", threads=1)
            run, file = fit_run(config, Path(place) / "run"), Path(place) / "run" / "network.pcn"
            compress_run(run.posterior, run.splits(), file, Goal(sparsity=0.5), passes=0)
            asked = [("speed", file), ("exports", file), ("ensemble", run.path)]
            options.seconds, options.members = 0.01, [2]
        else:
            asked = [] if options.table or not options.what else [(options.what, options.source)]
        for what, source in asked:
            name = f"{what} {options.name or source.name}"
            if what == "speed":
                (told,) = measure([source], options.dense, options.batches, options.seconds, threads=1)
                rows = kept(told.to_dict() | {"file": source.name})
            elif what == "exports":
                rows = exports(source, options.data_dir)
            else:
                rows = ensembles(source, options.members, options.data_dir)
            found[name] = {"rows": rows, "versions": {one: version(one) for one in ("torch", "onnxruntime", "numpy")}}
            write_atomically(options.out, (json.dumps(found, indent=1) + "\n").encode())
    tables = {"speed": speed_table, "exports": exports_table, "ensemble": ensemble_table}
    for name, told in found.items():
        print("\n".join([f"<!-- {name} -->", *tables[name.split()[0]](told["rows"]), ""]))


if __name__ == "__main__":
    run_script(main)
