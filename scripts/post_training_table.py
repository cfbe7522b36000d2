"""Networks that are trained already as files, without any training: bytes at what may be lost, for several seeds.

    python scripts/post_training_table.py --weights FOLDER --data-dir data
    python scripts/post_training_table.py --weights FOLDER --tolerances 0.005 --seeds 0 --networks lenet5-sparse

FOLDER holds the networks of dynamic network surgery (Guo et al. 2016) as safetensors; they want pixels / 256. A row is
what `pyro-compress compress --net NET --init FILE --data mnist --input-mean 0 --input-std 1.00392157 --tolerance T
--seed S` does: everything is chosen on the validation split, and the test split is read once per row, at the end. Seeds
draw the calibration examples. A row that is there is not made again. `--smoke` makes two tiny rows on the digits.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.compensated import Compensation
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.machine import prepare
from pyro_compress.networks.nets import build_net
from pyro_compress.runs.post_training import Trained, load_trained
from pyro_compress.settings import FitConfig, Goal


@dataclass(frozen=True)
class Case:
    """A network, the file of its weights, and how it is called in the tables."""

    net: str
    file: str
    title: str


CASES = {
    "lenet300100-original": Case("lenet-300-100", "lenet300100-original.safetensors", "LeNet-300-100"),
    "lenet300100-sparse": Case("lenet-300-100", "lenet300100-sparse.safetensors", "LeNet-300-100, pruned"),
    "lenet5-original": Case("lenet-5-caffe", "lenet5-original.safetensors", "LeNet-5"),
    "lenet5-sparse": Case("lenet-5-caffe", "lenet5-sparse.safetensors", "LeNet-5, pruned"),
}
PIXELS = 1.00392157
"""Pixels / 256, where this package reads pixels / 255."""


def trained(case: Case, options: argparse.Namespace) -> Trained:
    """A network with its data."""
    scaled = {} if options.smoke else {"input_mean": (0.0,), "input_std": (PIXELS,)}
    widths = {"hidden": (20,)} if options.smoke else {}
    config = FitConfig(
        prior="log-uniform", net=case.net, init=str(Path(options.weights) / case.file), data=options.data,
        data_dir=options.data_dir, device="cpu", threads=1, **scaled, **widths,
    )  # fmt: skip
    return load_trained(config)


def row_of(name: str, given: Trained, tolerance: float, seed: int, repair: int) -> dict[str, Any]:
    """One file, written, read back and measured."""
    started, spent = time.perf_counter(), time.process_time()
    with TemporaryDirectory() as folder:
        goal, how = Goal(tolerance=tolerance, reference=given.network), Compensation(seed=seed, repair=repair)
        report = compress_run(given.network, given.splits, Path(folder) / "network.pcn", goal, how)
    numbers = ("file_bytes", "ratio", "parameters_kept", "parameters_total", "within_tolerance")
    told = {number: getattr(report, number) for number in numbers}
    scores = {
        f"{split}_{when}": asdict(getattr(report, f"{split}_{when}"))
        for split in ("validation", "test")
        for when in ("before", "after")
    }
    return {
        "network": name, "tolerance": tolerance, "seed": seed, **told, **scores,
        "cpu_seconds": time.process_time() - spent, "seconds": time.perf_counter() - started,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per network and tolerance, means over seeds."""
    lines = [
        "| network | may be lost | seeds | file | ratio | test error before | after | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, tolerance in sorted({(row["network"], row["tolerance"]) for row in rows}):
        mine = [row for row in rows if (row["network"], row["tolerance"]) == (name, tolerance)]
        sizes = [row["file_bytes"] for row in mine]
        spread = f" ± {statistics.stdev(sizes):,.0f}" if len(sizes) > 1 else ""
        error = [100 * (1 - row["test_after"]["accuracy"]) for row in mine]
        off = f" ± {statistics.stdev(error):.2f}" if len(error) > 1 else ""
        dense = mine[0]["ratio"] * mine[0]["file_bytes"]
        title = CASES[name].title if name in CASES else name
        lines.append(
            f"| {title} | {100 * tolerance:.1f} points | {len(mine)} | {statistics.mean(sizes):,.0f}{spread} B "
            f"| {dense / statistics.mean(sizes):.1f} | {100 * (1 - mine[0]['test_before']['accuracy']):.2f} % "
            f"| {statistics.mean(error):.2f}{off} % | {statistics.mean(row['cpu_seconds'] for row in mine):.0f} |"
        )
    return "\n".join(lines)


def put(document: Path, text: str) -> None:
    """Put the table between its marks."""
    start, end = "<!-- table without-training -->\n", "\n<!-- end -->"
    before, _, rest = document.read_text().partition(start)
    _, _, after = rest.partition(end)
    write_atomically(document, (before + start + "\n" + text + "\n" + end + after).encode())


def tiny(options: argparse.Namespace, folder: Path) -> dict[str, Case]:
    """A network of the digits, trained for a moment, for --smoke."""
    from safetensors.torch import save_file

    from pyro_compress.data.splits import load_splits

    splits = load_splits("digits")
    torch.manual_seed(0)
    net = build_net("mlp", splits.input_shape, 10, (20,))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(splits.train.x), splits.train.y).backward()
        optimizer.step()
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "tiny.safetensors")
    options.weights, options.data, options.tolerances, options.seeds = folder, "digits", [0.005], [0, 1]
    return {"tiny": Case("mlp", "tiny.safetensors", "tiny")}


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tolerances", nargs="+", type=float, default=[0.005, 0.001, 0.01])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--repair", type=int, default=Compensation.repair, help="Epochs, as of compress; 0: none.")
    parser.add_argument("--json", type=Path, default=None, help="Rows, read and added to.")
    parser.add_argument("--document", type=Path, default=None, help="Page whose table is renewed.")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    prepare("cpu", 1)
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    with TemporaryDirectory() as folder:
        cases = tiny(options, Path(folder)) if options.smoke else {name: CASES[name] for name in options.networks}
        given = dict[str, Trained]()
        for seed in options.seeds:
            for tolerance in options.tolerances:
                for name in cases:
                    key = {"network": name, "tolerance": tolerance, "seed": seed}
                    if any(key.items() <= row.items() for row in rows):
                        continue
                    given[name] = given.get(name) or trained(cases[name], options)
                    rows.append(row_of(name, given[name], tolerance, seed, options.repair))
                    print(json.dumps({**key, **{k: rows[-1][k] for k in ("file_bytes", "seconds")}}), flush=True)
                    if options.json:
                        write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
    rows.sort(key=lambda row: (row["network"], row["tolerance"], row["seed"]))
    if options.json:
        write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
    print(table(rows))
    if options.document:
        put(options.document, table(rows))


if __name__ == "__main__":
    run_script(main)
