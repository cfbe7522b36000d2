"""Training curves of every method of a study (its figures 3 to 7): validation accuracy and NLL of the first seed.

    python scripts/figure_training.py --results studies/tables --data mnist --out docs/figures/training

Reads the run folders that compare left in RESULTS; writes OUT.png and OUT.svg.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from pyro_compress.cli.commands import run_script
from pyro_compress.studies.figures import new_figure, save, training_curves
from pyro_compress.studies.results import read_results
from pyro_compress.studies.study import compare

SMOKE = Path(__file__).parent / "studies/smoke.toml"


def draw(results: Path, data: str) -> Figure:
    rows = [row for row in read_results(results) if row.dataset == data and not row.ensemble]
    histories = {}
    for row in rows:
        path = results / "runs" / row.config_hash / "history.jsonl"
        if row.label not in histories and path.exists():
            histories[row.label] = [json.loads(line) for line in path.read_text().splitlines()]
    if not histories:
        raise SystemExit(f"{results} has no run on {data}")
    figure, (left, right) = new_figure(2)
    accuracies = {label: [100 * e["validation_accuracy"] for e in epochs] for label, epochs in histories.items()}
    losses = {label: [e["validation_nll_nats"] for e in epochs] for label, epochs in histories.items()}
    training_curves(left, accuracies, f"validation accuracy (%), {data}")
    training_curves(right, losses, "validation NLL (nats)").set_yscale("log")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("studies/tables"), help="results folder of compare")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/training"))
    parser.add_argument("--data", help="data set; default: the first of the results")
    parser.add_argument("--smoke", action="store_true", help="a small study on the embedded digits first")
    options = parser.parse_args()
    if options.smoke:
        compare(SMOKE, options.results, device="cpu", threads=1)
    for path in save(draw(options.results, options.data or read_results(options.results)[0].dataset), options.out):
        print(path)


if __name__ == "__main__":
    run_script(main)
