"""The README's example over seeds, and the second fit inside of its file: rows and table of docs/results/trained.md.

    python scripts/digits_chain.py --seeds 0 1 2 3 4
    python scripts/digits_chain.py --table

Stage 1 is `fit --prior horseshoe` and `compress`, stage 2 `fit --prior log-uniform --net FILE --init FILE` and
`compress`, all with their defaults, one thread. A row is added as soon as it is there; what is there is not run again.
`--smoke` runs one tiny row.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.training.history import read_history
from pyro_compress.training.settled import unsettled


def stage(config: FitConfig, folder: Path, name: str) -> tuple[dict, Path]:
    """Fit, compress, measure; and where the file lies."""
    began, file = time.process_time(), folder / f"{name}.pcn"
    run = fit_run(config, folder / name)
    fitted = time.process_time()
    report = compress_run(run.posterior, run.splits(), file).to_dict()
    return {
        "prior": config.prior,
        "epochs": run.config.epochs,
        "fit_cpu_seconds": fitted - began,
        "compress_cpu_seconds": time.process_time() - fitted,
        "unsettled": unsettled(read_history(run.path), run.config.kl_weight),
        "report": report,
    }, file


def row(seed: int, epochs: int | None, hidden: tuple[int, ...]) -> dict:
    """Both stages of one seed."""
    common = {"seed": seed, "epochs": epochs, "device": "cpu", "threads": 1}
    with tempfile.TemporaryDirectory() as place:
        first, file = stage(FitConfig(prior="horseshoe", hidden=hidden, **common), Path(place), "units")
        inside = FitConfig(prior="log-uniform", net=str(file), init=str(file), **common)
        second, _ = stage(inside, Path(place), "weights")
    versions = {name: version(name) for name in ("torch", "pyro-ppl", "numpy")}
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1}
    return {"seed": seed, "stages": [first, second], "versions": versions, "machine": machine}


def table(rows: list[dict]) -> str:
    """Markdown: a line per seed, the mean last."""
    lines = [
        "| seed | horseshoe | test accuracy | then log-uniform | test accuracy |",
        "|---|---|---|---|---|",
    ]
    for one in sorted(rows, key=lambda one: one["seed"]):
        cells = [str(one["seed"])]
        for part in one["stages"]:
            told = part["report"]
            cells += [f"{told['file_bytes']:,} B ({told['ratio']:,.0f}×)", f"{100 * told['test_accuracy_after']:.2f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    cells = ["mean ± std"]
    for index in (0, 1) if len(rows) > 1 else ():
        reports = [one["stages"][index]["report"] for one in rows]
        for key, factor, digits, unit in (("file_bytes", 1, 0, "B"), ("test_accuracy_after", 100, 2, "%")):
            found = [factor * told[key] for told in reports]
            cells.append(f"{statistics.mean(found):,.{digits}f} ± {statistics.stdev(found):,.{digits}f} {unit}")
    return "\n".join([*lines, *([f"| {' | '.join(cells)} |"] if len(cells) > 1 else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("docs/results/digits.json"))
    parser.add_argument("--smoke", action="store_true", help="one tiny row")
    parser.add_argument("--table", action="store_true", help="print the Markdown table of --out and stop")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    epochs, hidden = (3, (20, 10)) if options.smoke else (None, (500, 500))
    for seed in [] if options.table else options.seeds[:1] if options.smoke else options.seeds:
        if seed in {one["seed"] for one in rows}:
            continue
        rows = [*rows, row(seed, epochs, hidden)]
        write_atomically(options.out, (json.dumps(rows, indent=1) + "\n").encode())
    print(table(rows))


if __name__ == "__main__":
    run_script(main)
