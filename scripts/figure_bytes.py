"""Test error against bytes: files of this program and published points, from the rows in docs/results.

    python scripts/figure_bytes.py

Nothing is measured. Three figures: OUT (the networks with published points), OUT-more (the others), OUT-trained
(networks that somebody else trained, beside other coders). A point is the mean over seeds, its bars are a standard
deviation; a single seed has none. Hollow: published; what is no file is called computed.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from post_training_table import CASES

from pyro_compress.cli.commands import run_script
from pyro_compress.studies.figures import error_against_bytes, name_once, new_figure, save
from pyro_compress.tuning.published import PUBLISHED

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TUNED = "log-uniform, fine-tuned"
Files = dict[str, list[list[tuple[float, float]]]]
TITLES = {
    ("mnist", "lenet-300-100"): "LeNet-300-100, MNIST",
    ("mnist", "lenet-5-caffe"): "LeNet-5, MNIST",
    ("fashion-mnist", "lenet-300-100"): "LeNet-300-100, Fashion-MNIST",
}


def stored(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def grouped(
    rows: Iterable[dict], by: Callable[[dict], Any], point: Callable[[dict], tuple[float, float]]
) -> list[list]:
    """Points of each setting over its seeds."""
    groups: dict[Any, list] = {}
    for row in rows:
        groups.setdefault(by(row), []).append(point(row))
    return [*groups.values()]


def files(data: str, network: str) -> Files:
    """Every method with files of this network: without fine-tuning, then with it."""
    found: Files = {}
    priors = [row for row in stored("priors.json") if (row["data"], row["net"]) == (data, network)]
    for prior in dict.fromkeys(row["prior"] for row in priors):
        own = [row["report"] for row in priors if row["prior"] == prior]
        found[prior] = [[(one["file_bytes"], 100 * (1 - one["test_accuracy_after"])) for one in own]]
    pruned = [row for row in stored("ablation.json") if (row["dataset"], row["network"]) == (data, network)]
    for method, name in {"magnitude": "magnitude", "magnitude, gradual to 95 %": "gradual magnitude pruning"}.items():
        ends = [row["stages"]["file"] for row in pruned if row["method"] == method]
        if ends:
            found[name] = [[(end["bytes"], end["test_error_percent"]) for end in ends]]
    tuned = [row for row in stored("records/records.json") if (row["dataset"], row["network"]) == (data, network)]
    if tuned:
        setting = lambda row: row["file"].rpartition("-seed")[0]  # noqa: E731
        found[TUNED] = grouped(tuned, setting, lambda row: (row["bytes"], row["test_error_percent"]))
    return found


def dense(data: str, network: str) -> tuple[float, float] | None:
    """Bytes in float32 and test error of the posterior means that the files were made from."""
    rows = [row for row in stored("records/records.json") if (row["dataset"], row["network"]) == (data, network)]
    if not rows:
        return None
    errors = [row["test_error_percent_before"] for row in rows]
    return rows[0]["bytes"] * rows[0]["ratio"], sum(errors) / len(errors)


def of_networks(names: list[tuple[str, str]]) -> Figure:
    figure, axes = new_figure(len(names), 4.7, 3.6)
    shown = [files(*name) for name in names]
    labels = [*dict.fromkeys(label for one in shown for label in one)]
    for ax, name, own in zip(axes, names, shown, strict=True):
        papers = [(point.name, point.bytes, 100 * point.error) for point in PUBLISHED.get(name, ())]
        error_against_bytes(ax, own, papers, dense(*name), labels=labels).set_title(TITLES[name], fontsize="medium")
    name_once(figure)
    return figure


def of_trained() -> Figure:
    """Files of weights that somebody else trained: one panel per network."""
    rows = [row for row in stored("compared.json") if row["file_bytes"] is not None and row["network"] in CASES]
    networks = [*dict.fromkeys(row["network"] for row in rows)]
    figure, axes = new_figure(len(networks), 4.7, 3.1, rows=2)
    for ax, network in zip(axes, networks, strict=True):
        own = [row for row in stored("post_training.json") if row["network"] == network]
        of = lambda row: (row["file_bytes"], 100 * (1 - row["test_after"]["accuracy"]))  # noqa: E731
        found: Files = {"pyro-compress": grouped(own, lambda row: row["tolerance"], of)}
        for row in rows:
            if row["network"] == network and row["method"] != "pyro-compress":
                found.setdefault(row["method"], []).append([(row["file_bytes"], 100 * (1 - row["test"]["accuracy"]))])
        whole = (own[0]["file_bytes"] * own[0]["ratio"], 100 * (1 - own[0]["test_before"]["accuracy"]))
        error_against_bytes(ax, found, dense=whole).set_title(CASES[network].title, fontsize="medium")
    name_once(figure)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/bytes"))
    parser.add_argument("--smoke", action="store_true", help="nothing to shorten; the same figures")
    options = parser.parse_args()
    papers = [name for name in TITLES if name in PUBLISHED]
    figures = {
        "": of_networks(papers),
        "-more": of_networks([name for name in TITLES if name not in PUBLISHED]),
        "-trained": of_trained(),
    }
    for ending, figure in figures.items():
        for path in save(figure, options.out.with_name(options.out.name + ending)):
            print(path)


if __name__ == "__main__":
    run_script(main)
