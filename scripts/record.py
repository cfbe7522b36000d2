"""The smallest files of a network: fit, fine-tune at a few values of λ, one file and one row per seed and λ.

    python scripts/record.py --data mnist --net lenet-300-100 --seeds 0 1 2 --lambdas 2 4
    python scripts/record.py --data mnist --net lenet-5-caffe --shrink-every 5 --teacher runs/teacher --lambdas 4
    python scripts/record.py --augment affine --teacher runs/one runs/two --finetune 100 --label taught-augmented

A fit is kept in --runs and not repeated (one that was interrupted goes on with `pyro-compress fit --resume`); a row
that is there is not made again. Recipe and λ were chosen on the validation split; the test split is read once per
row. `--recode` writes the files that are there anew, the same integers as today's coder and order of units have them,
and measures them again; nothing is fitted.
`--smoke` makes one tiny row on the embedded digits.
"""

import argparse
import json
import os
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.finetuned import FineTuning, Teacher
from pyro_compress.compression.order import reordered
from pyro_compress.compression.pipeline import compress_run, save
from pyro_compress.compression.prune import kept
from pyro_compress.data.splits import load_splits
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FineTune, FitConfig, Goal

RECIPE = FineTune(epochs=30, masked_epochs=1, step=0.7, noise=0.4, lr=1e-3)
PASSES = 2000
"""Of the coder over every file, for the order of its units."""
FITS = {name: name for name in ("prior", "net", "data", "epochs", "kl_weight", "shrink_every")}
FITS |= {"augment": "fit_augment"}
"""Options of the fit -> of the script."""
PLACES = ("data", "data_dir", "seeds", "lambdas", "runs", "out", "recode", "smoke")
"""Options that are told apart, or not at all, in a row's command."""


def fitted(config: FitConfig, folder: Path) -> Run:
    """The run folder of a configuration, fitted if it is not there."""
    if not folder.exists():
        return fit_run(config, folder)
    run = load_run(folder)
    for name in FITS:
        if (there := getattr(run.config, name)) != (asked := getattr(config, name)):
            raise SystemExit(f"{folder} was fitted with {name} {there}, not {asked}: choose another --runs")
    return run


def sparsity(run: Run) -> float:
    """Share of the weights below the criterion's rule of thumb: log alpha > 3 under the log-uniform prior."""
    masks = kept(run.posterior.layers, run.posterior.criterion).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def record(run: Run, data_dir: str, how: FineTune, teacher: Teacher | None, path: Path, passes: int) -> dict:
    """Compress a run into a file; its row."""
    report = compress_run(
        run.posterior, run.splits(data_dir), path, Goal(sparsity=sparsity(run)), FineTuning(how, how.lam, teacher),
        passes=passes,
    )  # fmt: skip
    return {
        "file": path.name,
        "network": run.config.net,
        "dataset": run.config.data,
        "prior": run.config.prior,
        "seed": run.config.seed,
        "bytes": report.file_bytes,
        "spelled_out_bytes": report.spelled_out_bytes,
        "ratio": round(report.ratio, 1),
        "validation_error_percent": round(100 * (1 - report.validation_after.accuracy), 3),
        "validation_nll_nats": round(report.validation_after.nll_nats, 5),
        "test_error_percent": round(100 * (1 - report.test_after.accuracy), 3),
        "test_error_percent_before": round(100 * (1 - report.test_before.accuracy), 3),
        "teacher": teacher.name if teacher else "",
        "finetune_epochs": report.finetuned.epochs,
        "finetune_augment": report.finetuned.augment,
        "finetune_svi": report.finetuned.svi,
        "rate": how.lam,
        "values": report.parameters_kept,
        "units": report.units_kept,
        "sections_bytes": report.sections_bytes,
        "recipe": asdict(how),
        "fit": {key: value for key, value in asdict(run.config).items() if key != "data_dir"},
        "versions": {name: version(name) for name in ("torch", "pyro-ppl", "numpy")},
    }


def recode(folder: Path, data_dir: str, passes: int) -> None:
    """Write every file of a folder anew, and what changes of its row."""
    table = folder / "records.json"
    if not table.is_file():
        raise SystemExit(f"{folder} has no records.json: there is nothing to write anew; choose another --out")
    rows = json.loads(table.read_text())
    for row in rows:
        path = folder / row["file"]
        splits = load_splits(row["dataset"], data_dir, row["fit"]["validation"])
        before, network = path.stat().st_size, reordered(file.read(path), passes)
        row["sections_bytes"] = save(path, network, splits)
        row["bytes"] = path.stat().st_size
        row["spelled_out_bytes"] = file.spelled_out_bytes(network, row["sections_bytes"]["header"], row["bytes"])
        row["ratio"] = round(4 * network.meta["parameters_total"] / row["bytes"], 1)
        for split in ("validation", "test"):
            scores = evaluate(to_module(file.read(path)), splits, split)
            row[f"{split}_error_percent"] = round(100 * (1 - scores.accuracy), 3)
        write_atomically(table, (json.dumps(rows, indent=1) + "\n").encode())
        print(f"{path.name}: {before} -> {row['bytes']} bytes, test error {row['test_error_percent']} %", flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="log-uniform")
    parser.add_argument("--data", default="mnist", choices=["digits", "mnist", "fashion-mnist"])
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--net", default="lenet-300-100")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    # records of before say --rates
    parser.add_argument("--lambdas", "--rates", nargs="+", type=float, default=[2.0, 4.0])
    parser.add_argument("--epochs", type=int, default=50, help="of the fit")
    parser.add_argument("--kl-weight", type=float, default=1.0, help="of the fit; 1 is the ELBO")
    parser.add_argument("--shrink-every", type=int, default=0, help="epochs after which dead units leave the fit")
    parser.add_argument("--fit-augment", default="none", help="how images are changed in the fit")
    parser.add_argument("--finetune", type=int, default=RECIPE.epochs, help="epochs of fine-tuning as integers")
    parser.add_argument("--finetune-lr", type=float, default=RECIPE.lr, help="Adam's rate in fine-tuning")
    parser.add_argument("--finetune-batch-size", type=int, default=RECIPE.batch_size, help="examples per step")
    parser.add_argument("--step", type=float, default=RECIPE.step, help="of the weights, in units of their size")
    parser.add_argument("--noise", type=float, default=RECIPE.noise, help="on the weights in fine-tuning, in steps")
    parser.add_argument("--sam-rho", type=float, default=RECIPE.sam_rho, help="radius of sharpness-aware fine-tuning")
    parser.add_argument("--augment", default="none", help="how images are changed in fine-tuning")
    parser.add_argument("--finetune-svi", action="store_true", help="go on with SVI in fine-tuning")
    parser.add_argument("--teacher", type=Path, nargs="+", default=[], help="run folders of networks to distil from")
    parser.add_argument("--teacher-weight", type=float, default=RECIPE.teacher_weight, help="its share of the loss")
    parser.add_argument("--label", default="", help="goes into the file names; default taught, with a teacher")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/records"))
    parser.add_argument("--recode", action="store_true", help="write the files of --out anew; nothing is fitted")
    parser.add_argument(
        "--smoke", action="store_true", help="one tiny row on the embedded digits; --recode: few passes"
    )
    return parser


def command(options: argparse.Namespace, seed: int, lam: float) -> str:
    """The command of one row: what differs from the defaults, whatever folders it read and wrote left out."""
    told = ["python scripts/record.py", f"--data {options.data}"]
    for name in [name for name in vars(options) if name not in PLACES]:
        value = getattr(options, name)
        if value != parser().get_default(name):
            shown = " ".join(path.as_posix() for path in value) if isinstance(value, list) else value
            told.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join([*told, f"--seeds {seed} --lambdas {lam:g}"])


def main() -> None:
    options = parser().parse_args()
    prepare("cpu", 1)
    recipe = replace(
        RECIPE, epochs=options.finetune, lr=options.finetune_lr, augment=options.augment,
        teacher_weight=options.teacher_weight, svi=options.finetune_svi, step=options.step, noise=options.noise,
        sam_rho=options.sam_rho, batch_size=options.finetune_batch_size,
    )  # fmt: skip
    if options.smoke:
        options.data, options.net, options.seeds, options.lambdas, options.epochs = "digits", "mlp", [0], [2.0], 4
        recipe = replace(recipe, epochs=1, batch_size=64)
    passes = 50 if options.smoke else PASSES
    if options.recode:
        recode(options.out, options.data_dir, passes)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "records.json"
    rows = json.loads(table.read_text()) if table.exists() else []
    taught_by = [load_run(path) for path in options.teacher]
    teacher = Teacher.of([(run.posterior, run.config.net) for run in taught_by]) if taught_by else None
    label = f"-{options.label or 'taught'}" if options.label or teacher else ""
    for seed in options.seeds:
        for lam in options.lambdas:
            path = options.out / f"{options.data}-{options.net}{label}-rate{lam:g}-seed{seed}.pcn"
            if path.name in {row["file"] for row in rows}:
                continue
            config = FitConfig(
                data_dir=options.data_dir, seed=seed, validation=None if options.smoke else 0.05, device="cpu",
                threads=1, hidden=(30,) if options.smoke else (500, 500),
                **{name: getattr(options, told) for name, told in FITS.items()},
            )  # fmt: skip
            run = fitted(config, options.runs / f"{options.data}-{options.net}-{seed}")
            row = record(run, options.data_dir, replace(recipe, lam=lam, seed=seed), teacher, path, passes)
            rows = [*rows, row | {"command": command(options, seed, lam)}]
            write_atomically(table, (json.dumps(rows, indent=1) + "\n").encode())
            shown = ("file", "bytes", "validation_error_percent", "test_error_percent")
            print(", ".join(f"{key} {row[key]}" for key in shown), flush=True)


if __name__ == "__main__":
    run_script(main)
