"""What the published pruning of Bayes by Backprop did, beside what it meant to do, on one fitted posterior.

    python scripts/artefact.py runs/faithful --data-dir data --json docs/results/artefact.json
    python scripts/artefact.py --json docs/results/artefact.json --document docs/results/artefact.md

Test accuracy at each sparsity, three times: pruned by |mu| / sigma; pruned by the published score |mu| / rho, where
sigma = softplus(rho); and as published, where pruning replaced a tensor that the forward pass never reads. Where there
is no run folder of that name the first seed of `faithful` in scripts/studies/tables.toml is fitted into it. Without a
name the rows of `--json` are shown. `--smoke` fits a small posterior on the embedded digits.
"""

import argparse
import json
import os
import platform
import re
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.prune import masks_at, scores
from pyro_compress.graph.network import Network
from pyro_compress.machine import prepare
from pyro_compress.metrics import evaluate
from pyro_compress.networks.draws import masked
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.studies.plan import plan, read_study
from pyro_compress.studies.tables import markdown_table
from pyro_compress.types import LayerPosterior

STUDY = Path(__file__).parent / "studies/tables.toml"
MARKED = re.compile(r"(<!-- table artefact -->\n).*?(<!-- end -->)", re.DOTALL)
SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)


def published_score(layer: LayerPosterior) -> torch.Tensor:
    """|mu| / rho: for sigma < log 2 rho is negative, so the largest weights score lowest and go first."""
    return layer.mean.abs() / torch.log(torch.expm1(layer.std.double())).float()


def accuracy(network: Network, run: Run, data_dir: str) -> float:
    return evaluate(network.eval(), run.splits(data_dir), "test").accuracy


def measured(run: Run, data_dir: str) -> dict[str, Any]:
    """The row of a run: accuracies by score, one per sparsity; configuration, versions, machine."""
    right = scores(run.posterior, "snr")
    wrong = {name: published_score(layer) for name, layer in run.posterior.layers.items()}
    found = {}
    for label, ranks in (("|mu| / sigma", right), ("|mu| / rho, applied", wrong), ("|mu| / rho, as published", None)):
        posteriors = [
            run.posterior if ranks is None else masked(run.posterior, masks_at(ranks, sparsity))
            for sparsity in SPARSITIES
        ]
        found[label] = [accuracy(Network(one.graph, one.tensors), run, data_dir) for one in posteriors]
    return {
        "sparsities": SPARSITIES, "test_accuracy": found,
        "fit_seconds": json.loads((run.path / "history.jsonl").read_text().splitlines()[-1])["seconds"],
        "config": {key: value for key, value in asdict(run.config).items() if key != "data_dir"},
        "versions": {name: version(name) for name in ("torch", "pyro-ppl", "numpy")},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }  # fmt: skip


def faithful(folder: Path, data_dir: str) -> Run:
    """The run in a folder, fitted first where there is none."""
    if folder.exists():
        return load_run(folder)
    planned = next(p for p in plan(read_study(STUDY), data_dir, "cpu", 1) if p.method.variant == "faithful")
    return fit_run(planned.configs[0], folder, on_epoch=lambda epoch: print(epoch.to_dict(), flush=True))


def table(row: dict[str, Any]) -> str:
    lines = [["score", *(f"{100 * sparsity:g} %" for sparsity in row["sparsities"])]]
    for label, accuracies in row["test_accuracy"].items():
        lines.append([label.replace("|", "\\|"), *(f"{100 * one:.2f}" for one in accuracies)])
    return markdown_table(lines)


def put(document: Path, row: dict[str, Any]) -> None:
    """Renew the table of the document."""
    text, renewed = MARKED.subn(lambda found: f"{found[1]}\n{table(row)}\n\n{found[2]}", document.read_text())
    if not renewed:
        raise ValueError(f"{document} has no place for the table: <!-- table artefact --> and <!-- end -->")
    write_atomically(document, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, nargs="?", help="run folder of a posterior without group scales, or a new one"
    )
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--json", type=Path, help="the row: written with a run, read without one")
    parser.add_argument("--document", type=Path, help="page whose table is renewed")
    parser.add_argument("--smoke", action="store_true", help="a small fit on the embedded digits")
    options = parser.parse_args()
    prepare("cpu", 1)
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            config = FitConfig(prior="gaussian", hidden=(30, 20), epochs=20, device="cpu", threads=1)
            row = measured(fit_run(config, Path(folder) / "run"), "")
    elif options.run:
        row = measured(faithful(options.run, options.data_dir), options.data_dir)
    elif options.json:
        row = json.loads(options.json.read_text())
    else:
        parser.error("name a run folder, or rows by --json, or ask for --smoke")
    if options.json and (options.run or options.smoke):
        write_atomically(options.json, (json.dumps(row, indent=1) + "\n").encode())
    if options.document:
        put(options.document, row)
    print(table(row))


if __name__ == "__main__":
    run_script(main)
