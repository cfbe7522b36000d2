"""What every ingredient contributes to a file: posterior, precision, coder, fine-tuning, teacher, one after the other.

    python scripts/ablation.py runs/svd runs/gnj runs/ghs runs/dense --finetune 30 --finetune-lambda 4 \
        --teacher runs/teacher
    python scripts/ablation.py --table

One row per run folder, merged into --json; then the table of means over seeds between `<!-- table ablation -->` and
`<!-- end -->` of --document is written anew. Ratios of the first two stages are computed as in the literature (Louizos
et al. 2017: 32 bits a value against the bits of what is left, without biases, header or index); those of all others are
sizes of files. Thresholds and steps are chosen on the validation split; the test split is read once per stage.
`--smoke` fits three tiny networks and prints their table.
"""

import argparse
import json
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.finetuned import FineTuning, Teacher, compress_finetuned
from pyro_compress.compression.fixed_point import EXPONENT_AND_SIGN, FLOAT32, fixed_point
from pyro_compress.compression.search import compress, prune
from pyro_compress.compression.target import target_of
from pyro_compress.graph.network import Network
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FineTune, FitConfig, Goal
from pyro_compress.studies.tables import spread
from pyro_compress.types import Compressed, Splits

RECIPE = FineTune(masked_epochs=1, step=0.7, noise=0.4, lr=1e-3)
STAGES = {
    "pruned": "after pruning (computed)",
    "fixed": "with precision reduction (computed)",
    "static": "file, static tables",
    "file": "file, context coder",
    "tuned static": "+ fine-tuning, static tables",
    "tuned": "+ fine-tuning",
    "svi": "the same as SVI under the mask",
    "taught": "+ teacher",
}
PUBLISHED = {
    ("mnist", "lenet-300-100", "log-uniform"): {"pruned": "68×, 1.92 %", "static": "113× (computed)"},
    ("mnist", "lenet-300-100", "normal-jeffreys"): {"pruned": "9×, 1.8 %", "fixed": "36×", "static": "58× (computed)"},
    ("mnist", "lenet-300-100", "horseshoe"): {"pruned": "9×, 1.8 %", "fixed": "23×", "static": "59× (computed)"},
    ("mnist", "lenet-300-100", "magnitude"): {"pruned": "12×, 1.59 % (retrained)", "static": "40×, 1.58 % (retrained)"},
}
"""Molchanov et al. 2017; Louizos et al. 2017, their largest ratio beside our static tables; Han et al. 2015, 2016."""
ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- table ablation -->\n).*?(<!-- end -->)", re.DOTALL)


def scored(network: Network, splits: Splits) -> dict[str, float]:
    """Errors of a stage's network, in percent."""
    errors = {split: 100 * (1 - evaluate(network, splits, split).accuracy) for split in ("validation", "test")}
    return {f"{split}_error_percent": round(error, 3) for split, error in errors.items()}


def computed(run: Run, splits: Splits, tolerance: float) -> dict[str, dict]:
    """The stages without a file: masks within the tolerance, and fixed point by the posterior's variances."""
    posterior, goal = run.posterior, Goal(tolerance=tolerance)
    masks, _ = prune(posterior, splits, goal, target_of(posterior, splits, goal))
    found = fixed_point(posterior, masks, posterior.criterion.startswith("group-"))
    weights = {name: torch.where(masks[name], layer.mean, 0.0) for name, layer in posterior.layers.items()}
    coarse = {
        name: weight if bits == FLOAT32 else torch.round(weight * 2.0 ** (bits - EXPONENT_AND_SIGN))
        / 2.0 ** (bits - EXPONENT_AND_SIGN)
        for (name, weight), bits in zip(weights.items(), found.bits, strict=True)
    }  # fmt: skip
    pruned, rounded = (Network(posterior.graph, posterior.dense | part).eval() for part in (weights, coarse))
    return {
        "pruned": {"ratio": found.pruned} | scored(pruned, splits),
        "fixed": {"ratio": found.reduced, "bits": found.bits} | scored(rounded, splits),
    }


def filed(network: Compressed, splits: Splits, dense: int, names: tuple[str, str]) -> dict[str, dict]:
    """A network as a file, without and with the context coder."""
    told = scored(to_module(network), splits)
    sizes = [len(file.dumps(network, in_context=in_context)[0]) for in_context in (False, True)]
    return {name: {"bytes": size, "ratio": dense / size} | told for name, size in zip(names, sizes, strict=True)}


def row(run: Run, splits: Splits, tolerance: float, how: FineTune, teacher: Teacher | None) -> dict:
    """Every stage of one run."""
    goal = Goal(tolerance=tolerance)
    posterior, dense = run.posterior, 4 * run.posterior.parameters_total
    stages = computed(run, splits, tolerance)
    stages |= filed(compress(posterior, splits, goal)[0], splits, dense, ("static", "file"))
    tunings = {"tuned": FineTuning(how, how.lam)}
    if run.config.prior != "none":
        tunings["svi"] = FineTuning(replace(how, svi=True), how.lam)
    if teacher:
        tunings["taught"] = FineTuning(how, how.lam, teacher)
    for name, tuning in tunings.items():
        network, _ = compress_finetuned(posterior, splits, tuning, goal)
        stages |= filed(network, splits, dense, (f"{name} static", name))
    config = run.config
    return {
        "run": run.path.name, "method": method(config), "network": config.net, "dataset": config.data,
        "seed": config.seed, "epochs": config.epochs, "dense_bytes": dense, "tolerance": tolerance,
        "finetune_epochs": how.epochs, "rate": how.lam, "teacher": teacher.name if teacher else "",
        "stages": {name: stages[name] for name in stages},
    }  # fmt: skip


def method(config: FitConfig) -> str:
    """Prior, or how the baseline was pruned."""
    if config.prior != "none":
        return config.prior
    return "magnitude" if config.pruning == "none" else f"magnitude, {config.pruning} to {100 * config.prune_to:g} %"


def table(rows: list[dict]) -> str:
    """Markdown: a line per prior, mean ± standard deviation over its seeds, and the published one below it."""
    names = [name for name in STAGES if any(name in row["stages"] for row in rows)]
    lines = [
        f"| data, network | prior, or baseline | seeds | {' | '.join(STAGES[name] for name in names)} |",
        f"| --- | --- | --- |{' --- |' * len(names)}",
    ]
    groups = dict[tuple[str, str, str], list[dict]]()
    for row in rows:
        groups.setdefault((row["dataset"], row["network"], row["method"]), []).append(row)
    for (dataset, network, what), members in groups.items():
        cells = [cell([row["stages"][name] for row in members if name in row["stages"]]) for name in names]
        seeds = ", ".join(str(row["seed"]) for row in members)
        lines.append(f"| {dataset}, {network} | {what} | {seeds} | {' | '.join(cells)} |")
        published = PUBLISHED.get((dataset, network, what))
        if published:
            cells = [f"*{published[name]}*" if name in published else "" for name in names]
            lines.append(f"| | *published* | | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(stages: list[dict]) -> str:
    """Ratio, bytes where there is a file, test error: mean ± sample standard deviation."""
    if not stages:
        return ""
    parts = [f"{spread([s['ratio'] for s in stages], 1)}×"]
    if "bytes" in stages[0]:
        parts.append(f"{spread([s['bytes'] for s in stages], 0)} B")
    return "<br>".join([*parts, f"{spread([s['test_error_percent'] for s in stages], 2)} %"])


def refresh(document: Path, rows: list[dict]) -> None:
    """Write the table into the document."""
    text = document.read_text()
    if not MARKED.search(text):
        raise SystemExit(f"{document} has no place for the table: <!-- table ablation --> and <!-- end -->")
    text = MARKED.sub(lambda found: f"{found[1]}\n{table(rows)}\n\n{found[2]}", text)
    write_atomically(document, text.encode())


def smoke() -> None:
    """Three tiny networks, every stage."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for prior in ("log-uniform", "normal-jeffreys", "none"):
            run = fit_run(FitConfig(prior=prior, hidden=(16,), epochs=6, device="cpu"), Path(folder) / prior)
            how = replace(RECIPE, epochs=1, batch_size=64, lam=1.0)
            teacher = Teacher.of([(run.posterior, "mlp")]) if prior == "none" else None
            rows.append(row(run, run.splits(), 0.05, how, teacher))
        print(table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    parser.add_argument("--tolerance", type=float, default=0.005, help="validation accuracy that may be lost")
    parser.add_argument("--finetune", type=int, default=30, help="epochs of fine-tuning")
    parser.add_argument("--finetune-lambda", "--rate", type=float, default=4.0, help="λ of fine-tuning")
    parser.add_argument("--teacher", type=Path, nargs="+", default=[], help="run folders of networks to distil from")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "ablation.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "results" / "files.md")
    parser.add_argument("--table", action="store_true", help="only write the table of the rows that are there")
    parser.add_argument("--smoke", action="store_true", help="three tiny networks on the embedded digits")
    options = parser.parse_args()
    prepare("cpu", 1)
    if options.smoke:
        smoke()
        return
    if not options.runs and not options.table:
        parser.error("name the run folders, or give --table")
    rows = json.loads(options.json.read_text()) if options.json.exists() else []
    taught_by = [load_run(path) for path in options.teacher]
    teacher = Teacher.of([(run.posterior, run.config.net) for run in taught_by]) if taught_by else None
    for path in options.runs:
        run = load_run(path)
        how = replace(RECIPE, epochs=options.finetune, lam=options.finetune_lambda, seed=run.config.seed)
        new = row(run, run.splits(options.data_dir), options.tolerance, how, teacher)
        rows = [*(old for old in rows if old["run"] != new["run"]), new]
        write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
        print(table([new]), flush=True)
    refresh(options.document, rows)


if __name__ == "__main__":
    run_script(main)
