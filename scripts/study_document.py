"""Takes results of compare into the repository and writes the tables of docs/results/study.md from them.

    python scripts/study_document.py --add scripts/studies/tables.toml studies/tables

`--add` takes a study and its results folder, as far as it has come, and merges them into docs/results/study.csv (rows)
and docs/results/study.json (resolved configurations, versions, machine, uncertainty); rows that are there already of
the same method and seed are replaced. Without it only the document is refreshed: what
stands between `<!-- table KIND DATA NETWORK [STUDY ...] -->` and `<!-- end -->`, of the methods of those files of
scripts/studies, or of all. `--smoke` runs a small study in a temporary folder and prints its table.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.studies.compare import run_planned
from pyro_compress.studies.plan import of_studies, plan, read_study
from pyro_compress.studies.results import cached_rows, csv_text, read_results
from pyro_compress.studies.study import compare
from pyro_compress.studies.tables import Row, exceeds_noise, grid, markdown_table, read_csv, spread, table

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "scripts/studies"
MARKED = re.compile(r"(<!-- table (\S+) (\S+) (\S+)((?: \S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
EXTRA = ("method", "variant", "sparsity", "brier", "ood_auroc")
COMPARED = ("Bayes by Backprop (faithful)", "SGD (Adam)")


def add(study: Path, folder: Path, results: Path, data_dir: str) -> None:
    """Merge what a results folder holds of a study into study.csv and study.json; nothing is fitted."""
    planned = plan(read_study(study), data_dir, "cpu", 1)
    run_planned([one for one in planned if cached_rows(one, folder)], folder)
    rows = read_results(folder)
    cells = {_cell(row) for row in rows}
    path = results / "study.csv"
    before = read_csv(path.read_text()) if path.exists() else []
    both = (*(row for row in before if _cell(row) not in cells), *rows)
    labels, sets = list(dict.fromkeys(r.label for r in both)), list(dict.fromkeys((r.dataset, r.network) for r in both))
    place = {label: index for index, label in enumerate(labels)} | {pair: index for index, pair in enumerate(sets)}
    merged = sorted(both, key=lambda r: (place[r.dataset, r.network], place[r.label], r.seed, r.sparsity))
    write_atomically(path, csv_text(merged).encode())
    runs = json.loads((results / "study.json").read_text()) if (results / "study.json").exists() else {}
    for run in json.loads((folder / "study.json").read_text())["runs"].values():
        told = run.pop("rows")
        extra = [{key: row[key] for key in EXTRA} for row in told if row["brier"] is not None]
        known = runs.get(told[0]["config_hash"], {"uncertainty": []})["uncertainty"]
        own = {(row["method"], row["variant"]) for row in told}
        others = [row for row in known if (row["method"], row["variant"]) not in own]
        runs[told[0]["config_hash"]] = run | {"uncertainty": others + extra}
    runs = {key: run for key, run in runs.items() if key in {row.config_hash for row in merged}}
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(run)}" for key, run in sorted(runs.items()))
    write_atomically(results / "study.json", f"{{\n{lines}\n}}\n".encode())


def _cell(row: Row) -> tuple[str, str, str, int]:
    """What two fits of one method have in common where validation chose another configuration the second time."""
    return row.dataset, row.network, row.label, row.seed


def beside_published(rows: list[Row], claims: dict[str, dict[str, float]]) -> str:
    """Ours, mean ± standard deviation, and under each line what was published."""
    header, *lines = table(rows)
    sparsities = list(grid(rows))
    found = [header]
    for line in lines:
        found.append(line)
        if line[0] in claims:
            claimed = claims[line[0]]
            cells = [f"{100 * claimed[f'{s:g}']:.2f}" if f"{s:g}" in claimed else "" for s in sparsities]
            found.append(["*published*", *(f"*{cell}*" if cell else "" for cell in cells), "", ""])
    return markdown_table(found)


def uncertainty(rows: list[Row], runs: dict[str, dict]) -> str:
    """NLL, calibration error, Brier score and out-of-domain AUROC, unpruned and at 90 %."""
    extra = {
        (key, told["method"], told["variant"], told["sparsity"]): told
        for key, run in runs.items()
        for told in run["uncertainty"]
    }
    lines = [["method", "removed", "NLL (nats)", "ECE", "Brier", "out-of-domain AUROC"]]
    for label in dict.fromkeys(row.label for row in rows):
        for sparsity in (0.0, 0.9):
            own = [row for row in rows if row.label == label and row.sparsity == sparsity]
            keys = [(row.config_hash, row.method, row.variant, sparsity) for row in own]
            told = [extra[key] for key in keys if key in extra]
            if not own:
                continue
            cells = [spread([row.nll_nats for row in own], 3), spread([row.ece for row in own], 3)]
            for key in ("brier", "ood_auroc"):
                values = [one[key] for one in told if one[key] is not None]
                cells.append(spread(values, 3) if values else "")
            lines.append([label, f"{100 * sparsity:g} %", *cells])
    return markdown_table(lines)


def gaps(rows: list[Row]) -> str:
    """Paired differences of the first of `COMPARED` from the second, in points, by sparsity."""
    lines = [["removed", f"{COMPARED[0]} − {COMPARED[1]} (points)", "seeds", "beyond the noise"]]
    for sparsity, column in grid(rows).items():
        first, second = (column.get(label, {}) for label in COMPARED)
        paired = [first[seed] - second[seed] for seed in first if seed in second]
        if paired:
            sure = exceeds_noise(first, second) or exceeds_noise(second, first)
            verdict = "yes" if sure else "no" if len(paired) > 1 else "one seed: unknown"
            lines.append([f"{100 * sparsity:g} %", spread(paired), str(len(paired)), verdict])
    return markdown_table(lines)


def renewed(text: str, results: Path) -> str:
    """A page with its marked tables as the rows have them."""
    if not MARKED.search(text):
        return text
    rows = read_csv((results / "study.csv").read_text())
    runs = json.loads((results / "study.json").read_text())
    claims = json.loads((results / "published.json").read_text())
    makers: dict[str, Callable[[list[Row], str], str]] = {
        "accuracy": lambda own, data: beside_published(own, claims.get(data, {})),
        "plain": lambda own, data: markdown_table(table(own)),
        "uncertainty": lambda own, data: uncertainty(own, runs),
        "gaps": lambda own, data: gaps(own),
    }

    def written(match: re.Match[str]) -> str:
        head, name, data, network, studies, end = match.groups()
        shown = of_studies(rows, [STUDIES / f"{study}.toml" for study in studies.split()])
        own = [row for row in shown if row.dataset == data and row.network == network]
        return f"{head}\n{makers[name](own, data) if own else '(not run)'}\n\n{end}"

    return MARKED.sub(written, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, nargs=2, action="append", default=[], metavar=("STUDY", "FOLDER"))
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results")
    parser.add_argument("--document", type=Path, default=ROOT / "docs/results/study.md")
    parser.add_argument("--smoke", action="store_true", help="a small study on the embedded digits")
    options = parser.parse_args()
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            smoke, options.results = STUDIES / "smoke.toml", Path(folder)
            compare(smoke, options.results / "out", device="cpu", threads=1)
            add(smoke, options.results / "out", options.results, "")
            print(markdown_table(table(read_csv((options.results / "study.csv").read_text()))))
        return
    for study, folder in options.add:
        add(study, folder, options.results, options.data_dir)
    text = options.document.read_text(encoding="utf-8")
    write_atomically(options.document, renewed(text, options.results).encode())


if __name__ == "__main__":
    run_script(main)
