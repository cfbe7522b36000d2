"""Training curves of every method of a study (its figures 3 to 7): validation error and NLL.

    python scripts/figure_training.py --results studies/tables --data mnist --out docs/figures/training

Reads the run folders that compare left in RESULTS: the mean over the seeds, their range as a band. Writes OUT.png and
OUT.svg.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from pyro_compress.cli.commands import run_script
from pyro_compress.inspection.drawing import log_axes
from pyro_compress.studies.figures import new_figure, save, training_curves
from pyro_compress.studies.results import read_results
from pyro_compress.studies.study import compare

SMOKE = Path(__file__).parent / "studies/smoke.toml"


def draw(results: Path, data: str) -> Figure:
    rows = [row for row in read_results(results) if row.dataset == data and not row.ensemble]
    histories: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        path = results / "runs" / row.config_hash / "history.jsonl"
        if path.exists():
            epochs = [json.loads(line) for line in path.read_text().splitlines()]
            histories.setdefault(row.label, {})[row.config_hash] = epochs
    if not histories:
        raise SystemExit(f"{results} has no run on {data}")
    figure, (left, right) = new_figure(2)
    errors = {
        label: [[100 * (1 - epoch["validation_accuracy"]) for epoch in epochs] for epochs in seeds.values()]
        for label, seeds in histories.items()
    }
    losses = {
        label: [[epoch["validation_nll_nats"] for epoch in epochs] for epochs in seeds.values()]
        for label, seeds in histories.items()
    }
    log_axes(training_curves(left, errors, f"validation error (%), {data}"), "y")
    log_axes(training_curves(right, losses, "validation NLL (nats)"), "y")
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
