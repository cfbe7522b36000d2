"""Test error against sparsity, the tables as a picture: mean over seeds, their range as a band, one panel per set.

    python scripts/figure_sparsity.py --csv docs/results/study.csv --out docs/figures/sparsity

Hollow markers on thin lines are the published values (docs/results/published.json). Writes OUT.png and OUT.svg.
"""

import argparse
import json
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from pyro_compress.cli.commands import run_script
from pyro_compress.studies.figures import error_against_sparsity, labels_of, name_once, new_figure, save
from pyro_compress.studies.plan import of_studies
from pyro_compress.studies.study import compare
from pyro_compress.studies.tables import Row, groups, read_csv

PUBLISHED = Path(__file__).parents[1] / "docs/results/published.json"
PUBLISHED_NETWORK = "mlp-500-500"


def claims(data: str, network: str, rows: list[Row]) -> dict[str, dict[float, float]]:
    """Published accuracies under our labels, of the one network that they are of."""
    table = json.loads(PUBLISHED.read_text()).get(data, {}) if network == PUBLISHED_NETWORK else {}
    return {
        label: {float(sparsity): accuracy for sparsity, accuracy in table[label].items()}
        for label in {row.label for row in rows}
        if label in table
    }


def draw(rows: list[Row]) -> Figure:
    shown = {key: [r for r in members if "ensemble" not in r.variant] for key, members in groups(rows).items()}
    labels = labels_of([row for members in shown.values() for row in members])
    figure, axes = new_figure(len(shown))
    for ax, ((data, network), members) in zip(axes, shown.items(), strict=True):
        published = claims(data, network, members)
        error_against_sparsity(ax, members, published, labels).set_title(f"{data}, {network}", fontsize="medium")
    name_once(figure)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("docs/results/study.csv"))
    parser.add_argument("--network", default="", help="only this network")
    parser.add_argument("--studies", type=Path, nargs="+", default=[], help="only the methods of these study files")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/sparsity"))
    parser.add_argument("--smoke", action="store_true", help="a small study on the embedded digits")
    options = parser.parse_args()
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            rows = compare(Path(__file__).parent / "studies/smoke.toml", Path(folder), device="cpu", threads=1)
    else:
        rows = read_csv(options.csv.read_text())
    rows = of_studies([row for row in rows if options.network in ("", row.network)], options.studies)
    for path in save(draw(rows), options.out):
        print(path)


if __name__ == "__main__":
    run_script(main)
