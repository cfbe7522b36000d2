"""Test error against bytes on disk: every method of a study, written as .pcn files.

    python scripts/figure_study_bytes.py --results studies/tables --data mnist --seeds 0
    python scripts/figure_study_bytes.py

Each run is pruned at each sparsity, rounded by the search on the validation split, written, read back and measured by
the file system. The points go to --points as they come and are not measured again; then OUT.png and OUT.svg. Without
--results nothing is measured: the figure is that of the points which are there.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.runs.folder import load_run
from pyro_compress.settings import Goal
from pyro_compress.studies.figures import error_against_bytes, name_once, new_figure, save
from pyro_compress.studies.results import read_results
from pyro_compress.studies.study import compare
from pyro_compress.studies.tables import Row

SMOKE = Path(__file__).parent / "studies/smoke.toml"
POINTS = Path(__file__).parents[1] / "docs/results/study-bytes.json"


def measured(row: Row, results: Path, data_dir: str) -> dict:
    """One file: what it holds, its bytes and its test accuracy."""
    run = load_run(results / "runs" / row.config_hash)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pcn"
        report = compress_run(run.posterior, run.splits(data_dir), path, Goal(sparsity=row.sparsity))
    return {
        "dataset": row.dataset, "label": row.label, "sparsity": row.sparsity, "seed": row.seed,
        "file_bytes": report.file_bytes, "test_accuracy": report.test_after.accuracy,
        "dense_bytes": report.dense_bytes, "config_hash": row.config_hash,
    }  # fmt: skip


def measure(results: Path, data: str, seeds: list[int], path: Path, data_dir: str) -> list[dict]:
    path.parent.mkdir(parents=True, exist_ok=True)
    points = json.loads(path.read_text()) if path.exists() else []
    for row in read_results(results):
        known = {(point["config_hash"], point["sparsity"]) for point in points}
        wanted = row.dataset == data and not row.ensemble and (not seeds or row.seed in seeds)
        if wanted and (row.config_hash, row.sparsity) not in known:
            points.append(measured(row, results, data_dir))
            write_atomically(path, (json.dumps(points, indent=1) + "\n").encode())
    return points


def draw(points: list[dict]) -> Figure:
    figure, (ax,) = new_figure(width=7.0)
    files: dict[str, dict[float, list]] = {}
    for point in points:
        group = files.setdefault(point["label"], {}).setdefault(point["sparsity"], [])
        group.append((point["file_bytes"], 100 * (1 - point["test_accuracy"])))
    shown = {label: [*groups.values()] for label, groups in files.items()}
    whole = [(1 - point["test_accuracy"]) * 100 for point in points if point["sparsity"] == 0]
    dense = (points[0]["dense_bytes"], min(whole)) if whole else None
    error_against_bytes(ax, shown, dense=dense, joined=True).set_title(points[0]["dataset"], fontsize="medium")
    name_once(figure)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="results folder of compare: measure what is missing of it")
    parser.add_argument("--data", help="data set; default: the first of the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="only these; default: all")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--points", type=Path, default=POINTS)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/study-bytes"))
    parser.add_argument("--smoke", action="store_true", help="a small study on the embedded digits first")
    options = parser.parse_args()
    if options.smoke:
        options.results, options.points = options.results or Path("studies/smoke"), options.out.with_suffix(".json")
        compare(SMOKE, options.results, device="cpu", threads=1)
    if options.results:
        data = options.data or read_results(options.results)[0].dataset
        points = measure(options.results, data, options.seeds, options.points, options.data_dir)
    else:
        points = json.loads(options.points.read_text())
    for path in save(draw(points), options.out):
        print(path)


if __name__ == "__main__":
    run_script(main)
