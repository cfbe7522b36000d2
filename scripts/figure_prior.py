"""The scale-mixture prior of Bayes by Backprop: its density and that of its two parts (the study's figure 2).

    python scripts/figure_prior.py --out docs/figures/prior

Writes OUT.png and OUT.svg.
"""

import argparse
import math
from pathlib import Path

from pyro_compress.cli.commands import run_script
from pyro_compress.studies.figures import new_figure, save, scale_mixture_prior


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pi", type=float, default=0.5)
    parser.add_argument("--sigma1", type=float, default=1.0)
    parser.add_argument("--sigma2", type=float, default=math.exp(-6))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/prior"))
    parser.add_argument("--smoke", action="store_true", help="nothing to shorten; the same figure")
    options = parser.parse_args()
    figure, (ax,) = new_figure()
    scale_mixture_prior(ax, options.pi, options.sigma1, options.sigma2)
    for path in save(figure, options.out):
        print(path)


if __name__ == "__main__":
    run_script(main)
