"""Wall time against test error of every method of a study, at one sparsity; one panel per data set.

    python scripts/figure_time.py --csv docs/results/study.csv --sparsity 0.9 --out docs/figures/time

Writes OUT.png and OUT.svg.
"""

import argparse
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from pyro_compress.cli.commands import run_script
from pyro_compress.studies.figures import error_against_time, labels_of, name_once, new_figure, save
from pyro_compress.studies.plan import of_studies
from pyro_compress.studies.study import compare
from pyro_compress.studies.tables import Row, groups, read_csv


def draw(rows: list[Row], sparsity: float) -> Figure:
    shown = groups([row for row in rows if "ensemble" not in row.variant and row.sparsity == sparsity])
    if not shown:
        raise SystemExit(f"no row at sparsity {sparsity:g}; there are {sorted({row.sparsity for row in rows})}")
    labels = labels_of([row for members in shown.values() for row in members])
    figure, axes = new_figure(len(shown))
    for ax, ((data, network), members) in zip(axes, shown.items(), strict=True):
        error_against_time(ax, members, sparsity, labels).set_title(f"{data}, {network}", fontsize="medium")
    name_once(figure)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("docs/results/study.csv"))
    parser.add_argument("--network", default="", help="only this network")
    parser.add_argument("--studies", type=Path, nargs="+", default=[], help="only the methods of these study files")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/time"))
    parser.add_argument("--smoke", action="store_true", help="a small study on the embedded digits")
    options = parser.parse_args()
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            rows = compare(Path(__file__).parent / "studies/smoke.toml", Path(folder), device="cpu", threads=1)
    else:
        rows = read_csv(options.csv.read_text())
    rows = of_studies([row for row in rows if options.network in ("", row.network)], options.studies)
    for path in save(draw(rows, options.sparsity), options.out):
        print(path)


if __name__ == "__main__":
    run_script(main)
