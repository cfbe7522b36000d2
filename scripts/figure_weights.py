"""Weight distributions of every method of a study, with their variances (its figures 8 and 9).

    python scripts/figure_weights.py --results studies/tables --data mnist --out docs/figures/weights

Reads the run folders that compare left in RESULTS; posterior means on the left, posterior standard deviations of the
methods that have some on the right. Writes OUT.png and OUT.svg.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_compress.cli.commands import run_script
from pyro_compress.inspection.palette import looks
from pyro_compress.runs.folder import load_run
from pyro_compress.studies.figures import new_figure, save, weight_distributions
from pyro_compress.studies.results import read_results
from pyro_compress.studies.study import compare

SMOKE = Path(__file__).parent / "studies/smoke.toml"


def draw(results: Path, data: str) -> Figure:
    means: dict[str, np.ndarray] = {}
    deviations: dict[str, np.ndarray] = {}
    for row in read_results(results):
        folder = results / "runs" / row.config_hash
        if row.dataset == data and not row.ensemble and row.label not in means and folder.exists():
            layers = load_run(folder).posterior.layers.values()
            means[row.label] = torch.cat([layer.mean.flatten() for layer in layers]).numpy()
            spread = torch.cat([layer.std.flatten() for layer in layers]).numpy()
            if spread.any():
                deviations[row.label] = np.log10(spread)
    if not means:
        raise SystemExit(f"{results} has no run on {data}")
    figure, (left, right) = new_figure(2)
    weight_distributions(left, means).set_title(f"weights, {data}", fontsize="medium")
    for label, values in deviations.items():
        look = looks([*means])[label]
        line = {"color": look.colour, "linestyle": look.dash, "linewidth": 1.6}
        right.hist(values, 80, density=True, histtype="step", label=label, **line)
    right.set(xlabel="log10 of the posterior standard deviation", ylabel="density")
    right.legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("studies/tables"), help="results folder of compare")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/weights"))
    parser.add_argument("--data", help="data set; default: the first of the results")
    parser.add_argument("--smoke", action="store_true", help="a small study on the embedded digits first")
    options = parser.parse_args()
    if options.smoke:
        compare(SMOKE, options.results, device="cpu", threads=1)
    for path in save(draw(options.results, options.data or read_results(options.results)[0].dataset), options.out):
        print(path)


if __name__ == "__main__":
    run_script(main)
