"""Natural gradients beside Adam on mean and log-scale: the same ELBO, the same epochs, one thread.

    python scripts/natural_gradients.py --json docs/results/natural.json [--seeds 0 1] [--epochs 20] [--smoke]

784-300-100-10 on MNIST, by the priors' own recipes and each optimiser's default rates. One row per fit, written as soon
as it is there; rows that the file has are not measured again. The ELBO is that of the last epoch, with its expected
log-likelihood from the draws of the steps. Accuracy, NLL and ECE are of the posterior mean on the test split, which is
read at the end; pruned by |mean| / standard deviation over all layers, not trained on. `seconds` is the whole fit,
compiling included; `seconds_per_epoch` the median over the epochs of the posterior.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict
from itertools import pairwise, product
from pathlib import Path

import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.prune import masks_at
from pyro_compress.data.splits import load_splits
from pyro_compress.graph.network import Network
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate
from pyro_compress.runs.config import resolve
from pyro_compress.runs.run import initial_net
from pyro_compress.settings import FitConfig
from pyro_compress.studies.tables import markdown_table, spread
from pyro_compress.types import Posterior, Splits

ARMS = {
    "gaussian": (("adam", "local"), ("adam", "weight"), ("natural", "local"), ("natural", "weight")),
    "log-uniform": (("adam", "local"), ("adam", "weight"), ("natural", "weight")),
    "spike-and-slab": (("adam", "weight"), ("natural", "weight")),
}
"""Prior -> optimiser and estimator."""
SPARSITIES = (0.75, 0.9, 0.95, 0.98)
SIDES = ("prior", "optimizer", "estimator", "seed")


def measured(config: FitConfig, splits: Splits) -> dict:
    """One fit and what its posterior mean is worth, dense and pruned."""
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    fit = fit_posterior(initial_net(config, splits), splits, config)
    seconds, last = time.perf_counter() - started, fit.history[-1]
    ends = [epoch.seconds for epoch in fit.history if epoch.phase == "svi"]
    posterior = extract(fit)
    scores = evaluate(pruned(posterior, 0.0), splits, "test")
    return {
        **{name: getattr(config, name) for name in SIDES},
        "negative_elbo_nats": last.negative_elbo_nats, "kl_nats": last.kl_nats,
        "validation_nll_nats": last.validation_nll_nats, "test_accuracy": scores.accuracy,
        "test_nll_nats": scores.nll_nats, "test_ece": scores.ece,
        "pruned_test_accuracy": {
            str(share): evaluate(pruned(posterior, share), splits, "test").accuracy for share in SPARSITIES
        },
        "seconds": seconds, "seconds_per_epoch": statistics.median(b - a for a, b in pairwise(ends)),
        "torch": torch.__version__, "config": asdict(config) | {"data_dir": ""},
    }  # fmt: skip


def pruned(posterior: Posterior, share: float) -> Network:
    """The posterior mean without the given share of its weights, lowest |mean| / standard deviation first."""
    masks = masks_at({name: layer.mean.abs() / layer.std for name, layer in posterior.layers.items()}, share)
    weights = {name: torch.where(masks[name], layer.mean, 0.0) for name, layer in posterior.layers.items()}
    return Network(posterior.graph, posterior.dense | weights).eval()


def table(rows: list[dict]) -> str:
    """Markdown, means over seeds."""
    heads = ["prior", "optimizer", "estimator", "-ELBO, nats", "accuracy", "NLL", "ECE"]
    heads += [f"{100 * share:g} % pruned" for share in SPARSITIES] + ["seconds per epoch"]
    cells = []
    for key in dict.fromkeys(tuple(row[name] for name in SIDES[:3]) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in SIDES[:3]) == key]
        of = lambda name, digits, own=own: spread([row[name] for row in own], digits)  # noqa: E731
        left = [statistics.mean(row["pruned_test_accuracy"][str(share)] for row in own) for share in SPARSITIES]
        cells.append([
            *key, of("negative_elbo_nats", 0), f"{100 * statistics.mean(row['test_accuracy'] for row in own):.2f} %",
            of("test_nll_nats", 4), of("test_ece", 4), *(f"{100 * share:.2f} %" for share in left),
            of("seconds_per_epoch", 2),
        ])  # fmt: skip
    return markdown_table([heads, *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--priors", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="one prior, two epochs of the embedded digits")
    options = parser.parse_args()
    data, hidden = ("digits", (12,)) if options.smoke else ("mnist", (300, 100))
    if options.smoke:
        options.priors, options.seeds, options.epochs = ["gaussian"], [0], 2
    prepare("cpu", 1)
    splits = load_splits(data, options.data_dir)
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    arms = [(prior, *arm) for prior in options.priors for arm in ARMS[prior]]
    for (prior, optimizer, estimator), seed in product(arms, options.seeds):
        config = FitConfig(
            prior=prior, optimizer=optimizer, estimator=estimator, seed=seed, epochs=options.epochs, data=data,
            hidden=hidden, threads=1, device="cpu", compile="off" if options.smoke else "on",
        )  # fmt: skip
        config = resolve(config, len(splits.train))
        if any(all(row[name] == getattr(config, name) for name in SIDES) for row in rows):
            continue
        rows.append(measured(config, splits))
        print(" ".join(str(rows[-1][name]) for name in SIDES), flush=True)
        if options.json:
            write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
    print(table(rows))


if __name__ == "__main__":
    run_script(main)
