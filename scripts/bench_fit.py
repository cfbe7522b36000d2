"""What a whole fit costs: Bayes by Backprop against our own training of point weights.

    python scripts/bench_fit.py [--epochs 50] [--priors gaussian spike-and-slab] [--json FILE] [--smoke]

784-500-500-10 on MNIST, batch 100, one process, one run after the other, point weights first; no pretraining, weight
sampling unless --estimator says otherwise. Seconds are those of `fit_run`: loading, shuffling, compiling,
evaluating and writing included.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from pyro_compress.runs.run import fit_run
from pyro_compress.types import FitConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--priors", nargs="+", default=["gaussian", "spike-and-slab"])
    parser.add_argument("--estimator", default="weight")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="two epochs on the embedded digits, one prior")
    options = parser.parse_args()
    if options.smoke:
        options.data, options.epochs, options.priors = "digits", 2, ["gaussian"]
    common = {
        "data": options.data, "data_dir": options.data_dir, "epochs": options.epochs, "batch_size": 100,
        "threads": options.threads, "device": "cpu",
    }  # fmt: skip
    rows = []
    for prior in ("none", *options.priors):
        bayes = {} if prior == "none" else {"pretrain_epochs": 0, "estimator": options.estimator}
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run = fit_run(FitConfig(prior=prior, **common, **bayes), Path(folder) / "run")
            seconds = time.perf_counter() - started
        rows.append({"prior": prior, "estimator": run.config.estimator, "epochs": options.epochs, "seconds": seconds})
        print(f"{prior:<17}{seconds:8.1f} s {seconds / rows[0]['seconds']:6.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
