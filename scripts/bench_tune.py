"""What a model of the trials is worth: hypervolume of a search on one fit, sampler against sampler, seed by seed.

    python scripts/bench_tune.py --data mnist --net lenet-300-100 --trials 60 --seeds 0 1 2 --samplers gp random

The fit is made once (or taken from --run) and every search works on it: only the compression varies, one
kept share for the network (`global`) or one per layer (`layer-wise`), and the precision. The hypervolume is the area
below the trials' front in log10(validation error) and log10(bytes), up to a reference point of 10 % and a fiftieth of
the dense bytes. Rows come as they are done and are not made again; an interrupted search goes on.
`--smoke` searches a tiny network on the embedded digits.
"""

import argparse
import json
import math
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.data.splits import load_splits
from pyro_compress.machine import prepare
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.identity import config_hash
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.tuning.front import hypervolume
from pyro_compress.tuning.plan import Plan
from pyro_compress.tuning.space import compression_space
from pyro_compress.tuning.storage import SAMPLERS, open_study, opened_storage, quietly
from pyro_compress.tuning.workers import Work, begin, coordinates, finished, run_worker

REFERENCE_ERROR, DENSE_PER_REFERENCE = 0.1, 50
MODES = ("global", "layer-wise")
LEVELS = (0.02, 0.025, 0.03)


def planned(options: argparse.Namespace, config: FitConfig, mode: str, sampler: str, seed: int) -> tuple[Plan, dict]:
    layers = {name: layer.mean.numel() for name, layer in load_run(options.run).posterior.layers.items()}
    compress = {"finetune": options.finetune, "masked_epochs": 1} if options.finetune else {}
    space = compression_space(layers, bool(options.finetune), mode == "layer-wise")
    epochs = config.epochs or 1
    name = f"{mode}-{sampler}-{seed}"
    return Plan(
        name, fit=config, compress=compress, before=(), after=space, sampler=sampler, trials=options.trials,
        fidelities=(epochs,), seed=seed, bound=REFERENCE_ERROR,
    ), layers  # fmt: skip


def row(options: argparse.Namespace, config: FitConfig, arm: tuple[str, str, int]) -> dict:
    mode, sampler, seed = arm
    plan, layers = planned(options, config, mode, sampler, seed)
    out = options.out / plan.name
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "runs").exists():
        (out / "runs").symlink_to(Path(os.path.relpath(options.run.parent, out)))
    splits = load_splits(config.data, config.data_dir, config.validation)
    work = Work(plan, splits, out)
    if not (out / "journal.log").exists():
        begin(work)
    started = time.process_time()
    run_worker(work)
    with quietly(), opened_storage(out) as storage:
        trials = finished(open_study(plan, storage, plan.fidelities[-1]).get_trials())
    points = [coordinates(trial) for trial in trials if "error" in trial.user_attrs]
    reference = (math.log10(REFERENCE_ERROR), math.log10(4 * sum(layers.values()) / DENSE_PER_REFERENCE))
    logs = [(math.log10(max(error, 0.5 / len(splits.validation))), math.log10(size)) for error, size in points]
    stops = sorted({*range(10, len(logs), 10), len(logs)})
    return {
        "mode": mode,
        "sampler": sampler,
        "seed": seed,
        "trials": len(trials),
        "finetune": options.finetune,
        "fit": config_hash(config),
        "reference": {"error": REFERENCE_ERROR, "bytes": round(10 ** reference[1])},
        "hypervolume": {str(n): round(hypervolume(logs[:n], reference), 5) for n in stops},
        "bytes_at_error": {f"{e:g}": min((b for v, b in points if v <= e), default=None) for e in LEVELS},
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def table(rows: list[dict]) -> str:
    lines = ["| search | seeds | trials | hypervolume | each | bytes at 2 % | at 2.5 % |", "| --- " * 7 + "|"]
    for arm in dict.fromkeys((r["mode"], r["sampler"]) for r in rows):
        own = [r for r in rows if (r["mode"], r["sampler"]) == arm]
        volumes = [list(r["hypervolume"].values())[-1] for r in own]
        spread = f" ± {statistics.stdev(volumes):.3f}" if len(volumes) > 1 else ""
        sizes = [", ".join(str(r["bytes_at_error"][e]) for r in own) for e in ("0.02", "0.025")]
        lines.append(
            f"| {arm[0]}, {arm[1]} | {len(own)} | {own[0]['trials']} | {statistics.mean(volumes):.3f}{spread} | "
            f"{', '.join(f'{v:.3f}' for v in volumes)} | {sizes[0]} | {sizes[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--net", default="lenet-300-100")
    parser.add_argument("--prior", default="log-uniform")
    parser.add_argument("--epochs", type=int, default=30, help="of the fit")
    parser.add_argument("--run", type=Path, help="a run folder in place of a new fit")
    parser.add_argument("--finetune", type=int, default=0, help="epochs of fine-tuning in every trial")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samplers", nargs="+", choices=[*SAMPLERS], default=["gp", "random"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES])
    parser.add_argument("--out", type=Path, default=Path("tuning/bench"))
    parser.add_argument("--smoke", action="store_true", help="a few trials on the embedded digits")
    options = parser.parse_args()
    prepare("cpu", 1)
    if options.smoke:
        options.data, options.net, options.epochs, options.trials, options.seeds = "digits", "mlp", 8, 12, [0]
    if options.run is None:
        config = FitConfig(
            prior=options.prior, data=options.data, data_dir=options.data_dir, net=options.net, epochs=options.epochs,
            validation=None if options.smoke else 0.05, hidden=(20,) if options.smoke else (500, 500),
            device="cpu", threads=1,
        )  # fmt: skip
        config = resolve(config, len(load_splits(config.data, config.data_dir, config.validation).train))
        options.run = options.out / "runs" / config_hash(config)
        if not options.run.is_dir():
            fit_run(config, options.run)
    config = replace(load_run(options.run).config, data_dir=options.data_dir, device="cpu", threads=1)
    if options.run.name != config_hash(config):
        parser.error(f"--run {options.run}: call the folder {config_hash(config)}, the name by which trials find it")
    path = options.out / "rows.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for mode in options.modes:
        for seed in options.seeds:
            for sampler in options.samplers:
                if not any((r["mode"], r["sampler"], r["seed"]) == (mode, sampler, seed) for r in rows):
                    rows.append(row(options, config, (mode, sampler, seed)))
                    write_atomically(path, (json.dumps(rows, indent=1) + "\n").encode())
                    print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    run_script(main)
