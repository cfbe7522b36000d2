"""Which estimator is the better bargain: whole weights drawn, or outputs, trained for the same time.

    python scripts/bench_equal_time.py [--json docs/results/equal-time.json] [--nets mlp] [--seeds 0 1] [--smoke]

Local reparameterization has gradients of less variance and costs two products in place of one; with `--precision
bfloat16-variances` the second is cheap where the processor has such products. So each estimator gets the time that
`--epochs` of the first take, measured here by a short fit of each, and trains to the end of its own schedule in it:
more epochs where an epoch is cheaper. Everything else is the prior's recipe. The -ELBO is that of the last epoch, at KL
weight 1; NLL and accuracy are of the posterior mean on the test split, which is read at the end. Time is one thread's
own (of the processor), so others may use the machine. A row that the file has is not measured again.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.bayes.estimators import COARSE
from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.model import Fit
from pyro_compress.cli.commands import run_script
from pyro_compress.data.splits import load_splits
from pyro_compress.graph.network import Network
from pyro_compress.machine import has_bfloat16, prepare
from pyro_compress.metrics import evaluate
from pyro_compress.runs.config import resolve
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import FitConfig
from pyro_compress.studies.tables import markdown_table, spread
from pyro_compress.types import Splits

PRIORS = ("gaussian", "log-uniform", "normal-jeffreys", "horseshoe")
ARMS = {"local": ("local", "float32"), "local, bfloat16": ("local", COARSE), "weight": ("weight", "float32")}
"""What is compared -> estimator, `--precision`; the second where the processor multiplies in bfloat16."""
PILOT_EPOCHS = 4


def timed(config: FitConfig, splits: Splits) -> tuple[Fit, list[float], float]:
    """A fit, the seconds of its epochs with a posterior (the first left out: it compiles), and those of all of it."""
    torch.manual_seed(config.seed)
    ends: list[tuple[str, float]] = []
    started = time.process_time()
    fit = fit_posterior(
        initial_net(config, splits), splits, config, lambda epoch: ends.append((epoch.phase, time.process_time()))
    )
    of_posterior = [end for phase, end in ends if phase == "svi"]
    return fit, [after - before for before, after in pairwise(of_posterior)], time.process_time() - started


def rows_of(config: FitConfig, splits: Splits) -> list[dict]:
    """All estimators on one prior, network and seed."""
    train = len(splits.train)
    arms = {
        name: replace(config, estimator=estimator, precision=precision)
        for name, (estimator, precision) in ARMS.items()
        if precision == "float32" or has_bfloat16("cpu")
    }
    pilots = {
        name: statistics.median(timed(resolve(replace(arm, epochs=PILOT_EPOCHS, pretrain_epochs=0), train), splits)[1])
        for name, arm in arms.items()
    }
    rows = []
    for name, arm in arms.items():
        epochs = max(round(config.epochs * pilots["local"] / pilots[name]), 2)
        fit, seconds, whole = timed(resolve(replace(arm, epochs=epochs), train), splits)
        last, posterior = fit.history[-1], extract(fit)
        scores = evaluate(Network(posterior.graph, posterior.tensors).eval(), splits, "test")
        rows.append({
            "network": config.net, "prior": config.prior, "seed": config.seed, "estimator": name, "epochs": epochs,
            "seconds_per_epoch": statistics.median(seconds), "seconds": whole,
            "negative_elbo_nats": last.negative_elbo_nats, "kl_nats": last.kl_nats,
            "test_nll_nats": scores.nll_nats, "test_accuracy": scores.accuracy, "torch": torch.__version__,
        })  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """Markdown, means over seeds; the lowest -ELBO in bold."""
    heads = ["network", "prior", "estimator", "epochs", "seconds per epoch", "-ELBO, nats", "NLL, nats", "accuracy"]
    cells = []
    for network, prior in dict.fromkeys((row["network"], row["prior"]) for row in rows):
        here = [row for row in rows if (row["network"], row["prior"]) == (network, prior)]
        arms = {one: [row for row in here if row["estimator"] == one] for one in ARMS}
        arms = {one: own for one, own in arms.items() if own}
        loss = {one: statistics.mean(row["negative_elbo_nats"] for row in own) for one, own in arms.items()}
        for one, own in arms.items():
            elbo = spread([row["negative_elbo_nats"] for row in own], 0)
            cells.append([
                network, prior, one, spread([row["epochs"] for row in own], 0),
                spread([row["seconds_per_epoch"] for row in own], 2),
                f"**{elbo}**" if loss[one] == min(loss.values()) else elbo,
                spread([row["test_nll_nats"] for row in own], 4),
                f"{100 * statistics.mean(row['test_accuracy'] for row in own):.2f} %",
            ])  # fmt: skip
    return markdown_table([heads, *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["lenet-300-100"])
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), choices=PRIORS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=20, help="of local reparameterization; the others as long")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="one prior, two epochs of the embedded digits")
    options = parser.parse_args()
    data = "digits" if options.smoke else "mnist"
    if options.smoke:
        options.nets, options.priors, options.seeds, options.epochs = ["mlp"], ["gaussian"], [0], 2
    prepare("cpu", 1)
    splits = load_splits(data, options.data_dir)
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    for net, prior, seed in product(options.nets, options.priors, options.seeds):
        if any((row["network"], row["prior"], row["seed"]) == (net, prior, seed) for row in rows):
            continue
        config = FitConfig(
            prior=prior, net=net, data=data, seed=seed, epochs=options.epochs, threads=1, device="cpu",
            hidden=(12,) if options.smoke else FitConfig.hidden, compile="off" if options.smoke else "on",
        )  # fmt: skip
        rows += rows_of(config, splits)
        print(net, prior, seed, flush=True)
        if options.json:
            write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
    print(table(rows))


if __name__ == "__main__":
    run_script(main)
