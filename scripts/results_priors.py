"""Every prior on one network and data set, several seeds: the rows of docs/results/files.md.

    python scripts/results_priors.py --data mnist --net lenet-300-100 --epochs 30 --out docs/results/priors.json

A row is added to the file as soon as its run ends; rows that are already there are not run again. Recipes and
thresholds come from the validation split; the test split is read once per row. `--smoke` runs one tiny row.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.fixed_point import occupied
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.compression.search import remove_units
from pyro_compress.graph.ir import widths
from pyro_compress.metrics import evaluate
from pyro_compress.runs.folder import Run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.studies.tables import spread
from pyro_compress.types import Splits

PRIORS = ("log-uniform", "spike-and-slab", "horseshoe", "normal-jeffreys")

STRUCTURAL_TOLERANCES = (0.0, 0.0005, 0.001)
"""Validation accuracy that removing units alone may cost; the table shows the first."""


def structural(run: Run, splits: Splits, tolerance: float) -> dict:
    """What removing units alone gives, in float32, at the threshold that validation allows."""
    network = remove_units(run.posterior, splits, tolerance=tolerance)
    total = sum(layer.mean.numel() for layer in run.posterior.layers.values())
    tensors = to_module(network).state_dict()
    kept = sum(occupied(tensors[name]) for name in run.posterior.layers)
    return {
        "tolerance": tolerance,
        "units": widths(network.graph, tensors),
        "weights": kept,
        "ratio": total / kept,
        "validation_error_percent": 100 * (1 - evaluate(to_module(network), splits, "validation").accuracy),
        "test_error_percent": 100 * (1 - evaluate(to_module(network), splits, "test").accuracy),
    }


def row(config: FitConfig) -> dict:
    """Fit, compress, measure."""
    with tempfile.TemporaryDirectory() as folder:
        epochs = []
        run = fit_run(config, Path(folder) / "run", on_epoch=epochs.append)
        splits = run.splits()
        report = compress_run(run.posterior, splits, Path(folder) / "network.pcn").to_dict()
        return {
            "data": config.data,
            "net": config.net,
            "prior": config.prior,
            "seed": config.seed,
            "epochs": run.config.epochs,
            "seconds": epochs[-1].seconds,
            "seconds_per_svi_epoch": (epochs[-1].seconds - epochs[run.config.pretrain_epochs].seconds)
            / max(len(epochs) - run.config.pretrain_epochs - 1, 1),
            "structural": [structural(run, splits, tolerance) for tolerance in STRUCTURAL_TOLERANCES]
            if run.posterior.criterion.startswith("group-")
            else [],
            "report": report,
            "config": {key: value for key, value in asdict(run.config).items() if key != "data_dir"},
            "versions": {name: version(name) for name in ("torch", "pyro-ppl", "numpy", "constriction")},
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        }


def table(rows: list[dict]) -> str:
    """Markdown: one line per (data, net, prior, epochs), mean ± standard deviation over its seeds."""
    lines = [
        "| data, net | prior | epochs | seeds | test error %, uncompressed | test error %, file | file bytes | ratio "
        "| weights kept % | units alone: ratio | units alone: test error % | s per SVI epoch | minutes |",
        "| --- " * 13 + "|",
    ]
    groups: dict[tuple, list[dict]] = {}
    for one in rows:
        groups.setdefault((one["data"], one["net"], one["prior"], one["epochs"]), []).append(one)
    for (data, net, prior, epochs), members in groups.items():
        reports, parts = [m["report"] for m in members], [part for m in members for part in m["structural"][:1]]
        cells = [
            f"{data}, {net}", prior, str(epochs), ", ".join(str(m["seed"]) for m in members),
            spread([100 * (1 - r["test_accuracy_before"]) for r in reports]),
            spread([100 * (1 - r["test_accuracy_after"]) for r in reports]),
            spread([r["file_bytes"] for r in reports], 0),
            spread([r["ratio"] for r in reports], 1),
            spread([100 * r["parameters_kept"] / r["parameters_total"] for r in reports]),
            spread([p["ratio"] for p in parts], 1) if parts else "",
            spread([p["test_error_percent"] for p in parts]) if parts else "",
            spread([m["seconds_per_svi_epoch"] for m in members], 1),
            spread([m["seconds"] / 60 for m in members], 1),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--net", default="lenet-300-100")
    parser.add_argument("--priors", nargs="+", default=PRIORS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--validation", type=float, help="share of the training set held out; default as for fit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/priors.json"))
    parser.add_argument("--smoke", action="store_true", help="one tiny row on the embedded digits")
    parser.add_argument("--table", action="store_true", help="print the Markdown table of --out and stop")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return
    if options.smoke:
        options.data, options.net, options.priors, options.seeds, options.epochs = (
            "digits",
            "mlp",
            ["horseshoe"],
            [0],
            5,
        )
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    for seed in options.seeds:
        for prior in options.priors:
            key = (options.data, options.net, prior, seed, options.epochs)
            if key in {(r["data"], r["net"], r["prior"], r["seed"], r["epochs"]) for r in rows}:
                continue
            config = FitConfig(
                prior=prior, data=options.data, data_dir=options.data_dir, net=options.net, seed=seed,
                epochs=options.epochs, device="cpu", validation=options.validation, threads=options.threads,
                hidden=(20, 10) if options.smoke else (500, 500),
            )  # fmt: skip
            rows = [*rows, row(config)]
            write_atomically(options.out, (json.dumps(rows, indent=1) + "\n").encode())
            last = rows[-1]["report"]
            print(
                f"{prior} seed {seed}: test error {100 * (1 - last['test_accuracy_before']):.2f} -> "
                f"{100 * (1 - last['test_accuracy_after']):.2f} %, {last['file_bytes']} B, {last['ratio']:.1f}x, "
                f"units {last['units_kept']}, structural {rows[-1]['structural']}, {rows[-1]['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    run_script(main)
