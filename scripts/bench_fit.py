"""What a whole fit costs: Bayes by Backprop against our own training of point weights.

    python scripts/bench_fit.py [--epochs 50] [--priors gaussian spike-and-slab] [--json FILE] [--smoke]

784-500-500-10 on MNIST, batch 100, one process, one run after the other, point weights first; no pretraining, weight
sampling unless --estimator says otherwise. Seconds are those of `fit_run`: loading, shuffling, compiling,
evaluating and writing included. They are told apart as well: seconds per epoch, from the end of the first to the end of
the last, and what is left, which no longer fit pays twice. A few epochs tell both (with --compile on: `auto` leaves
short fits alone).
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from pyro_compress.cli.commands import run_script
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--priors", nargs="+", default=["gaussian", "spike-and-slab"])
    parser.add_argument("--estimator", default="weight")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="two epochs on the embedded digits, one prior")
    options = parser.parse_args()
    if options.smoke:
        options.data, options.epochs, options.priors = "digits", 2, ["gaussian"]
    common = {
        "data": options.data, "data_dir": options.data_dir, "epochs": options.epochs, "batch_size": 100,
        "threads": options.threads, "device": "cpu", "compile": options.compile,
    }  # fmt: skip
    rows: list[dict] = []
    print(f"{'prior':<17}{'seconds':>8}{'ratio':>8}{'per epoch':>11}{'ratio':>8}{'once':>8}")
    for prior in ("none", *options.priors):
        bayes = {} if prior == "none" else {"pretrain_epochs": 0, "estimator": options.estimator}
        with tempfile.TemporaryDirectory() as folder:
            started, ends = time.perf_counter(), []
            note = lambda epoch, ends=ends: ends.append(time.perf_counter())  # noqa: E731
            run = fit_run(FitConfig(prior=prior, **common, **bayes), Path(folder) / "run", on_epoch=note)
            seconds = time.perf_counter() - started
        each = (ends[-1] - ends[0]) / (len(ends) - 1)
        rows.append({
            "prior": prior, "estimator": run.config.estimator, "epochs": options.epochs, "seconds": seconds,
            "seconds_per_epoch": each, "seconds_once": seconds - each * len(ends),
        })  # fmt: skip
        ratio, slope = seconds / rows[0]["seconds"], each / rows[0]["seconds_per_epoch"]
        print(
            f"{prior:<17}{seconds:8.1f}{ratio:8.2f}{each:11.2f}{slope:8.2f}{rows[-1]['seconds_once']:8.1f}", flush=True
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
