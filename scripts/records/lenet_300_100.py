"""The smallest files of LeNet-300-100: fit, fine-tune at a few rates, one file and one row per seed and rate.

    python scripts/records/lenet_300_100.py --data mnist --seeds 0 1 2 --rates 2 4

A fit is kept in --runs and not repeated; a row that is there is not made again. Recipe and rates were chosen on the
validation split; the test split is read once per row. `--smoke` makes one tiny row on the embedded digits.
"""

import argparse
import json
import os
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from pyro_compress.compression import file
from pyro_compress.compression.finetune import FineTune
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.compression.tuned import Teacher
from pyro_compress.machine import prepare
from pyro_compress.run import Run, fit_run, load_run
from pyro_compress.types import FitConfig

RECIPE = FineTune(epochs=30, masked_epochs=1, step=0.7, noise=0.4, lr=1e-3)
SPARSITY_OF_LOG_ALPHA = 3.0
"""Weights with log alpha = log(std² / mean²) above this go (Molchanov et al. 2017, section 5)."""


def fitted(config: FitConfig, folder: Path) -> Run:
    """The run folder of a configuration, fitted if it is not there."""
    return load_run(folder) if folder.exists() else fit_run(config, folder)


def sparsity(run: Run) -> float:
    """Share of the weights beyond the threshold on log alpha."""
    layers = run.posterior.layers.values()
    over = [(2 * (layer.std / layer.mean.abs()).log() > SPARSITY_OF_LOG_ALPHA) for layer in layers]
    return sum(int(one.sum()) for one in over) / sum(one.numel() for one in over)


def record(run: Run, data_dir: str, how: FineTune, teacher: Teacher | None, path: Path) -> dict:
    """Compress a run into a file; its row."""
    report = compress_run(
        run.posterior, run.splits(data_dir), path, "cpu", 1,
        how=how, rate=how.rate, sparsity=sparsity(run), teacher=teacher,
    )  # fmt: skip
    return {
        "file": path.name,
        "network": run.config.net,
        "dataset": run.config.data,
        "prior": run.config.prior,
        "seed": run.config.seed,
        "bytes": report.file_bytes,
        "ratio": round(report.ratio, 1),
        "validation_error_percent": round(100 * (1 - report.validation_after.accuracy), 3),
        "validation_nll_nats": round(report.validation_after.nll_nats, 5),
        "test_error_percent": round(100 * (1 - report.test_after.accuracy), 3),
        "test_error_percent_before": round(100 * (1 - report.test_before.accuracy), 3),
        "teacher": teacher.name if teacher else "",
        "finetune_epochs": report.finetune_epochs,
        "rate": how.rate,
        "values": report.parameters_kept,
        "units": report.units_kept,
        "sections_bytes": report.sections_bytes,
        "recipe": asdict(how),
        "fit": {key: value for key, value in asdict(run.config).items() if key != "data_dir"},
        "versions": {name: version(name) for name in ("torch", "pyro-ppl", "numpy")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion-mnist"])
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=[2.0, 4.0])
    parser.add_argument("--epochs", type=int, default=50, help="of the fit")
    parser.add_argument("--teacher", type=Path, help="run folder of a network to distil from")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/records"))
    parser.add_argument("--smoke", action="store_true", help="one tiny row on the embedded digits")
    options = parser.parse_args()
    prepare("cpu", 1)
    recipe, net = RECIPE, "lenet-300-100"
    if options.smoke:
        options.data, options.seeds, options.rates, options.epochs, net = "digits", [0], [2.0], 4, "mlp"
        recipe = replace(recipe, epochs=1, batch_size=64)
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "records.json"
    rows = json.loads(table.read_text()) if table.exists() else []
    taught = load_run(options.teacher) if options.teacher else None
    teacher = Teacher(taught.posterior, taught.config.net) if taught else None
    for rate in options.rates:
        for seed in options.seeds:
            told = "-taught" if teacher else ""
            path = options.out / f"{options.data}-{net}{told}-rate{rate:g}-seed{seed}.pcn"
            if path.name in {row["file"] for row in rows}:
                continue
            config = FitConfig(
                prior="log-uniform", data=options.data, data_dir=options.data_dir, net=net, seed=seed,
                epochs=options.epochs, validation=None if options.smoke else 0.05, device="cpu", threads=1,
                hidden=(30,) if options.smoke else (500, 500),
            )  # fmt: skip
            run = fitted(config, options.runs / f"{options.data}-{net}-{seed}")
            row = record(run, options.data_dir, replace(recipe, rate=rate, seed=seed), teacher, path)
            taught_by = f" --teacher {options.teacher.as_posix()}" if teacher else ""
            command = f"python scripts/records/lenet_300_100.py --data {options.data} --seeds {seed} --rates {rate:g}"
            rows = [*rows, row | {"command": command + taught_by}]
            file.write_atomically(table, (json.dumps(rows, indent=1) + "\n").encode())
            shown = ("file", "bytes", "validation_error_percent", "test_error_percent")
            print(", ".join(f"{key} {row[key]}" for key in shown), flush=True)


if __name__ == "__main__":
    main()
