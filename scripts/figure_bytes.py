"""Test accuracy against bytes on disk: every method of a study, its first seed, written as .pcn files.

    python scripts/figure_bytes.py --results studies/tables --data mnist --out docs/figures/bytes

Each run is pruned at each sparsity, rounded by the search on the validation split, written, read back and measured by
the file system. The points go to OUT.json as they come and are not measured again; then OUT.png and OUT.svg.
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
from pyro_compress.studies.figures import accuracy_against_bytes, new_figure, save
from pyro_compress.studies.results import read_results
from pyro_compress.studies.study import compare
from pyro_compress.studies.tables import Row

SMOKE = Path(__file__).parent / "studies/smoke.toml"


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


def measure(results: Path, data: str, out: Path, data_dir: str) -> list[dict]:
    path = out.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    points = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in read_results(results) if row.dataset == data and not row.ensemble]
    first = min(row.seed for row in rows)
    for row in rows:
        known = {(point["config_hash"], point["sparsity"]) for point in points}
        if row.seed == first and (row.config_hash, row.sparsity) not in known:
            points.append(measured(row, results, data_dir))
            write_atomically(path, (json.dumps(points, indent=1) + "\n").encode())
    return points


def draw(points: list[dict]) -> Figure:
    figure, (ax,) = new_figure()
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        lines.setdefault(point["label"], []).append((point["file_bytes"], point["test_accuracy"]))
    accuracy_against_bytes(ax, lines, points[0]["dense_bytes"]).set_title(points[0]["dataset"], fontsize="medium")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("studies/tables"), help="results folder of compare")
    parser.add_argument("--data", help="data set; default: the first of the results")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/bytes"))
    parser.add_argument("--smoke", action="store_true", help="a small study on the embedded digits first")
    options = parser.parse_args()
    if options.smoke:
        compare(SMOKE, options.results, device="cpu", threads=1)
    data = options.data or read_results(options.results)[0].dataset
    points = measure(options.results, data, options.out, options.data_dir)
    for path in save(draw(points), options.out):
        print(path)


if __name__ == "__main__":
    run_script(main)
