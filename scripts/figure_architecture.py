"""The architecture as a drawn hourglass: Pyro on one side, bytes on the other, plain tensors between them.

    python scripts/figure_architecture.py --out docs/figures/architecture

Every box names a folder of the package, or what passes between two. Writes OUT.png and OUT.svg.
"""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from pyro_compress.cli.commands import run_script
from pyro_compress.inspection.drawing import bare, style
from pyro_compress.inspection.palette import ACCENT, GREY, INK, SECOND
from pyro_compress.studies.figures import save

GREEN = "#55803a"
BOXES = {  # name: (left, bottom, width, height, colour, title, lines)
    "network": (0, 34, 14, 8, GREY, "networks/", "an nn.Module,\ntrained or not"),
    "data": (0, 18, 14, 8, GREY, "data/", "a name, a file,\na folder: Splits"),
    "graph": (19, 34, 17, 8, SECOND, "graph/", "captured once, held\nagainst the module"),
    "bayes": (19, 23, 17, 8, SECOND, "bayes/", "prior, guide, estimator,\nELBO: a Pyro program"),
    "training": (19, 12, 17, 8, SECOND, "training/", "point weights, baselines,\nLaplace"),
    "posterior": (41, 21.5, 14, 11, ACCENT, "Posterior", "of each layer:\nmean, std,\nunit mean, unit std"),
    "prune": (60, 34, 17, 8, GREEN, "compression/", "prune and shrink:\nunits and weights go"),
    "round": (60, 23, 17, 8, GREEN, "compression/", "round, compensate or\nfine-tune: integers"),
    "pcn": (60, 12, 17, 8, GREEN, "pcn/", "code; decode and run in\nnumpy before it has a name"),
    "file": (82, 27, 16, 8, ACCENT, "network.pcn", "graph, integers,\nsteps"),
    "deploy": (82, 13, 16, 8, GREEN, "deploy/", "torch, ONNX, C, numpy:\nverified and timed"),
    "inspection": (22.5, 0, 16, 7, GREY, "inspection/", "numbers, pictures, pages"),
    "studies": (40, 0, 16, 7, GREY, "studies/", "methods compared"),
    "tuning": (57.5, 0, 14, 7, GREY, "tuning/", "settings searched"),
    "settings": (0, 48, 98, 7, GREY, "settings/, cli/, runs/", "every setting once; a run is a folder"),
}  # fmt: skip
ARROWS = [
    ("network", "graph"), ("data", "bayes"), ("data", "training"), ("graph", "bayes"), ("bayes", "posterior"),
    ("training", "posterior"), ("posterior", "prune"), ("prune", "round"), ("round", "pcn"), ("pcn", "file"),
    ("file", "deploy"), ("posterior", "inspection"), ("posterior", "studies"), ("posterior", "tuning"),
]  # fmt: skip
FUNNELS = {
    SECOND: ((16.5, 46), (16.5, 10), (41, 22), (41, 32)),
    GREEN: ((55, 32), (55, 22), (79.5, 10), (79.5, 46)),
}


def draw() -> Figure:
    figure = Figure(figsize=(10.6, 6.2), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-1, 99), ylim=(-1, 56), aspect="equal")
    bare(ax)
    for colour, corners in FUNNELS.items():
        ax.add_patch(Polygon(corners, color=colour, alpha=0.12, linewidth=0))
    ax.text(17.2, 43.4, "samples", color=SECOND, fontsize=9, style="italic")
    ax.text(78.8, 43.4, "deterministic", color=GREEN, fontsize=9, style="italic", ha="right")
    for name in BOXES:
        box(ax, name)
    for start, end in ARROWS:
        arrow(ax, start, end)
    return figure


def box(ax: Axes, name: str) -> None:
    left, bottom, width, height, colour, title, lines = BOXES[name]
    edge: Any = {"edgecolor": colour, "facecolor": "white", "linewidth": 1.6, "zorder": 2}
    ax.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=1", **edge))
    middle, centre = left + width / 2, bottom + height / 2
    rise = 0.85 * (1 + lines.count("\n"))
    ax.text(middle, centre + rise, title, fontsize=9.5, weight="bold", ha="center", va="center", zorder=3)
    ax.text(middle, centre - 1.2, lines, fontsize=8, linespacing=1.25, ha="center", va="center", zorder=3)


def arrow(ax: Axes, start: str, end: str) -> None:
    """From a box's right side to the next one's left, or down where one stands above the other."""
    x, y, width, height = BOXES[start][:4]
    to_x, to_y, to_width, to_height = BOXES[end][:4]
    beneath = y > to_y + to_height and (start == "posterior" or to_x < x + width)
    if beneath:
        ends = ((x + width / 2, y), (to_x + to_width / 2, to_y + to_height))
    else:
        ends = ((x + width, y + height / 2), (to_x, to_y + to_height / 2))
    line = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", ends[1], ends[0], arrowprops=line, zorder=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/architecture"))
    parser.add_argument("--smoke", action="store_true", help="nothing to shorten; the same figure")
    options = parser.parse_args()
    with style():
        for path in save(draw(), options.out):
            print(path)


if __name__ == "__main__":
    run_script(main)
