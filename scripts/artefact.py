"""What the published pruning of Bayes by Backprop did, beside what it meant to do, on one fitted posterior.

    python scripts/artefact.py studies/tables/runs/HASH

Test accuracy at each sparsity, three times: pruned by |mu| / sigma; pruned by the published score |mu| / rho, where
sigma = softplus(rho); and as published, where pruning replaced a tensor that the forward pass never reads. `--smoke`
fits a small posterior on the embedded digits first.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch

from pyro_compress.cli.commands import run_script
from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.graph.network import Network
from pyro_compress.metrics import evaluate
from pyro_compress.networks.draws import masked
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.studies.tables import markdown_table
from pyro_compress.types import LayerPosterior, Posterior

SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)


def published_score(layer: LayerPosterior) -> torch.Tensor:
    """|mu| / rho: for sigma < log 2 rho is negative, so the largest weights score lowest and go first."""
    return layer.mean.abs() / torch.log(torch.expm1(layer.std.double())).float()


def accuracy(run: Run, posterior: Posterior, data_dir: str) -> str:
    network = Network(posterior.graph, posterior.tensors).eval()
    return f"{100 * evaluate(network, run.splits(data_dir), 'test').accuracy:.2f}"


def table(run: Run, data_dir: str) -> str:
    right = scores(run.posterior, "snr")
    wrong = {name: published_score(layer) for name, layer in run.posterior.layers.items()}
    lines = [["score", *(f"{100 * sparsity:g} %" for sparsity in SPARSITIES)]]
    for label, ranks in (("|mu| / sigma", right), ("|mu| / rho, applied", wrong), ("|mu| / rho, as published", None)):
        posteriors = [
            run.posterior if ranks is None else masked(run.posterior, masks_at(ranks, sparsity))
            for sparsity in SPARSITIES
        ]
        lines.append([label.replace("|", "\\|"), *(accuracy(run, posterior, data_dir) for posterior in posteriors)])
    return markdown_table(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder of a posterior without group scales")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--smoke", action="store_true", help="a small fit on the embedded digits")
    options = parser.parse_args()
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            config = FitConfig(prior="gaussian", hidden=(30, 20), epochs=20, device="cpu", threads=1)
            print(table(fit_run(config, Path(folder) / "run"), ""))
    elif options.run:
        print(table(load_run(options.run), options.data_dir))
    else:
        parser.error("name a run folder, or ask for --smoke")


if __name__ == "__main__":
    run_script(main)
