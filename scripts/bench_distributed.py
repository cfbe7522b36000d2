"""One fit by 1, 2, 4, ... processes: seconds per step, what they send, whether all end with the same network.

    python scripts/bench_distributed.py [--sizes 1 2 4] [--epochs 4] [--shard all] [--json FILE] [--smoke]

Every row is a fit started with torchrun (one process: without): the same minibatches, split among the processes, one
thread each. Seconds per step are those of the history, from the end of the first epoch with a posterior to the last:
shuffling, evaluation and checkpoints included, start and compiler not. `peak` is how far resident memory grew, in the
process where it grew most, from the moment the guard looks. All other numbers are of the last epoch.

With --shard several processes split the posterior; what they send then is part of their graphs, and not counted.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pyro_compress.cli.commands import run_script
from pyro_compress.deploy.memory import high_water_mib
from pyro_compress.process_group import ProcessGroup, joined
from pyro_compress.runs import budget
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig


def resident_mib() -> float:
    """Resident memory of this process now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def member(out: Path, options: dict) -> None:
    """One process of a fit: what it sends, and a digest of the parameters it ends with."""
    sent, began = {"bytes": 0, "messages": 0}, 0.0

    def watched(*_: object) -> None:
        nonlocal began
        began = resident_mib()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew

    budget.require = watched
    add = ProcessGroup.add_

    def counted(self: ProcessGroup, tensors: list, factor: float = 1.0) -> None:
        sent["bytes"] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        sent["messages"] += 1
        add(self, tensors, factor)

    ProcessGroup.add_ = counted
    with joined("cpu") as group:
        run = fit_run(FitConfig(**options), out, group=group)
        peak = high_water_mib() - began
    digest = hashlib.sha256()
    for name, tensor in sorted(run.posterior.tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    told = {"rank": group.rank, "digest": digest.hexdigest(), "peak_mib": peak} | sent
    (out.parent / f"process-{group.rank}.json").write_text(json.dumps(told))


def measured(size: int, options: dict, folder: Path) -> dict:
    """One row: a fit by so many processes."""
    out = folder / f"run-{size}"
    work = folder / f"work-{size}"
    work.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(size), "--standalone"]
    arguments = [__file__, "--member", str(work / out.name), "--options", json.dumps(options)]
    command = [sys.executable, *(torchrun if size > 1 else []), *arguments]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    members = [json.loads(path.read_text()) for path in sorted(work.glob("process-*.json"))]
    history = [json.loads(line) for line in (work / out.name / "history.jsonl").read_text().splitlines()]
    first, last = next(epoch for epoch in history if epoch["phase"] == "svi"), history[-1]
    steps = last["step"] - first["step"]
    weights = sum(layer.mean.numel() for layer in load_run(work / out.name).posterior.layers.values())
    return {
        "processes": size,
        "steps": steps,
        "ms_per_step": 1000 * (last["seconds"] - first["seconds"]) / steps,
        "bytes_per_step": members[0]["bytes"] / last["step"] if size > 1 and options["shard"] == "none" else 0,
        "peak_mib": max(one["peak_mib"] for one in members),
        "same_parameters": len({one["digest"] for one in members}) == 1 and len(members) == size,
        "negative_elbo_nats": last["negative_elbo_nats"],
        "validation_nll_nats": last["validation_nll_nats"],
        "validation_accuracy": last["validation_accuracy"],
        "weights": weights,
        "options": options,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prior", default="log-uniform")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--hidden", type=int, nargs="+", default=[300, 100])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--limit", type=int, default=0, help="training examples; 0: all")
    parser.add_argument("--compile", default="off", choices=["on", "off"], help="of the step")
    parser.add_argument("--shard", default="none", choices=["none", "all", "machine"], help="of fits by several")
    parser.add_argument("--estimator", default=None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="two processes, a tiny network on the embedded digits")
    parser.add_argument("--member", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.member:
        member(told.member, told.options)
        return
    if told.smoke:
        told.sizes, told.data, told.hidden, told.epochs = [2], "digits", [8], 2
    options = {
        "prior": told.prior, "data": told.data, "data_dir": told.data_dir, "hidden": told.hidden,
        "epochs": told.epochs, "batch_size": told.batch_size, "limit": told.limit, "compile": told.compile,
        "estimator": told.estimator, "shard": told.shard,
        "pretrain_epochs": 0, "device": "cpu", "threads": 1,
    }  # fmt: skip
    rows = []
    print(
        "processes | ms per step | peak MiB | KiB per step | same parameters | -ELBO (nats) | validation NLL | accuracy"
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in told.sizes:
            rows.append(row := measured(size, options, Path(folder)))
            print(
                f"{size} | {row['ms_per_step']:.2f} | {row['peak_mib']:.0f} | {row['bytes_per_step'] / 1024:.0f} | "
                f"{row['same_parameters']} | "
                f"{row['negative_elbo_nats']:,.0f} | {row['validation_nll_nats']:.4f} | "
                f"{100 * row['validation_accuracy']:.2f} %",
                flush=True,
            )
    if told.json:
        told.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
