"""A search's front beside files made by hand and published points, from the rows in docs/results.

    python scripts/figure_tuning.py --out docs/figures/tuning

Nothing is searched. Writes OUT.png and OUT.svg.
"""

import argparse
from pathlib import Path

from figure_bytes import TUNED, Files, files, stored
from matplotlib.figure import Figure

from pyro_compress.cli.commands import run_script
from pyro_compress.studies.figures import error_against_bytes, name_once, new_figure, save
from pyro_compress.tuning.published import PUBLISHED

NETWORK = ("mnist", "lenet-300-100")


def draw() -> Figure:
    front = stored("tuning-rates.json")
    shown: Files = {
        f"front ({split})": [[(row["bytes"], 100 * row[f"{split}_error"])] for row in front]
        for split in ("test", "validation")
    }
    shown[TUNED] = files(*NETWORK)[TUNED]
    papers = [(point.name, point.bytes, 100 * point.error) for point in PUBLISHED[NETWORK]]
    figure, (ax,) = new_figure(width=7.0)
    labels = [*shown]
    lines = {label: groups for label, groups in shown.items() if label != TUNED}
    error_against_bytes(ax, lines, joined=True, labels=labels)
    error_against_bytes(ax, {TUNED: shown[TUNED]}, papers, labels=labels)
    ax.set_ylabel("error (%)")
    name_once(figure)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/tuning"))
    parser.add_argument("--smoke", action="store_true", help="nothing to shorten; the same figure")
    options = parser.parse_args()
    for path in save(draw(), options.out):
        print(path)


if __name__ == "__main__":
    run_script(main)
