"""The table of Bayesian compression (Louizos et al. 2017, tables 1 and 2), every row fitted, compressed and measured.

    python scripts/paper.py --net lenet-5-caffe --methods BC-GHS BC-GNJ --seeds 0 1 2 --data-dir data

A row is one fit and one file; it is added to docs/results/paper.json as soon as it is there, and not made again. Run
folders are kept in --runs and used where they are there. Thresholds come from the validation split; the test split is
read once per row. The columns of the paper are computed from the same network as it computed them: surviving weights,
at the bits that the posterior's variances ask for, or as Huffman codes; no biases, headers, indices of surviving rows.
`--smoke` makes one tiny row on the embedded digits.
"""

import argparse
import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.codebooks import huffman_bits, shared, sparse_bits
from pyro_compress.compression.fixed_point import FLOAT32, fixed_point_of, occupied
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.compression.search import remove_units
from pyro_compress.graph.ir import widths
from pyro_compress.graph.network import Network
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.runs.run import fit_run, initial_net
from pyro_compress.settings import CompressConfig, FitConfig
from pyro_compress.studies.tables import markdown_table, spread
from pyro_compress.types import Compressed, Quantized

ROOT = Path(__file__).parents[1]
TOLERANCE = 0.001
"""Validation accuracy that removal and rounding may cost."""
RATIOS = ("pruned", "fixed_point", "maximum")
CODEBOOK_BITS = {4: 8, 2: 5}
"""Of deep compression: of convolutions, and of linear layers, by the dimensions of their weights (its table 4)."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        source: paper and equation.
        fit: options of `fit`.
        by_units: whether units go, and what lies in rows and columns that are left is counted, as for priors with
            groups; if not, single weights.
        codebooks: whether the weights share values, as deep compression computes its ratio.
    """

    source: str
    fit: dict[str, Any] = field(default_factory=dict)
    by_units: bool = False
    codebooks: bool = False


METHODS = {
    "DC": Method(
        "Han et al. 2016, sections 2 to 4", {"prior": "none", "pruning": "iterative", "prune_to": 0.92}, codebooks=True,
    ),
    "DNS": Method("Guo et al. 2016, equations 2 and 3", {"prior": "none", "pruning": "surgery"}),
    "SWS": Method("Ullrich et al. 2017, section 4", {"prior": "soft-weight-sharing", "kl_weight": 0.3}),
    "Sparse VD": Method("Molchanov et al. 2017, equation 14", {"prior": "log-uniform", "shrink_every": 4}),
    "BC-GNJ": Method(
        "Louizos et al. 2017, section 4.1",
        {"prior": "normal-jeffreys", "grouping": "filter", "shrink_every": 4}, True,
    ),
    "BC-GHS": Method(
        "Louizos et al. 2017, section 4.2",
        {"prior": "horseshoe", "grouping": "filter", "shrink_every": 4}, True,
    ),
    "ARD": Method(
        "MacKay 1995, by groups", {"prior": "relevance", "grouping": "filter", "shrink_every": 4}, True,
    ),
}  # fmt: skip
PRUNE_TO = {("DNS", "lenet-300-100"): 0.982, ("DNS", "lenet-5-caffe"): 0.991}
"""What the authors report of each network, where it differs."""
EPOCHS = {"DC": 40, "DNS": 40, "SWS": 40}
"""Of a fit; of all others 100."""


def maximum_bits(network: Compressed, weights: Iterable[str], by_units: bool) -> int:
    """Huffman codes of every layer's integers: all of them in rows and columns that are left, or with gaps."""
    total = 0
    for name in weights:
        if not isinstance(found := network.tensors.get(name), Quantized):
            continue
        if by_units:
            live = found.codes[:, found.codes.any(axis=(0, *range(2, found.codes.ndim)))]
            total += huffman_bits(live.ravel().tolist())
        else:
            total += sparse_bits(found.codes)
    return total


def measured(run: Run, method: Method, data_dir: str, path: Path) -> dict[str, Any]:
    """The columns of one fit; its file is written to `path`."""
    posterior, splits = run.posterior, run.splits(data_dir)
    total = sum(weight.numel() for weight in initial_net(run.config, splits).parameters() if weight.dim() > 1)
    report = compress_run(posterior, splits, path, CompressConfig(tolerance=TOLERANCE, rounding="compensated"))
    network = file.read(path)
    if method.by_units:
        units = remove_units(posterior, splits, tolerance=TOLERANCE)
        module = to_module(units)
        tensors = module.state_dict()
        left = sum(occupied(tensors[name]) for name in posterior.layers if name in tensors)
        fixed = fixed_point_of(posterior, tensors, posterior.criterion).reduced
        structure = {
            "units_of_structure": widths(units.graph, tensors),
            "structure_error_percent": 100 * (1 - evaluate(module, splits, "test").accuracy),
        }
    else:
        point = posterior.criterion == "magnitude"
        tensors = posterior.tensors if point else to_module(network).state_dict()
        left = sum(int((tensors[name] != 0).sum()) for name in posterior.layers if name in tensors)
        fixed = None if point else fixed_point_of(posterior, tensors, posterior.criterion).reduced
        structure = {}
    bits = maximum_bits(network, posterior.layers, method.by_units)
    if method.codebooks:
        widths_of = {name: CODEBOOK_BITS[layer.mean.dim()] for name, layer in posterior.layers.items()}
        found = shared(posterior, splits.train, widths_of, seed=run.config.seed)
        bits = found.bits
        by_codebook = evaluate(Network(posterior.graph, found.tensors).eval(), splits, "test")
        structure = {"structure_error_percent": 100 * (1 - by_codebook.accuracy)}
    return {
        "test_error_percent": 100 * (1 - report.test_after.accuracy),
        "validation_error_percent": 100 * (1 - report.validation_after.accuracy),
        "fit_error_percent": 100 * (1 - report.test_before.accuracy),
        "nonzero_percent": 100 * left / total,
        "ratio_pruned": total / left,
        "ratio_fixed_point": fixed,
        "ratio_maximum": FLOAT32 * total / bits,
        "file": path.name,
        "bytes": report.file_bytes,
        "ratio_file": report.ratio,
        "units": report.units_kept,
        **structure,
        "warnings": report.warnings,
    }


def row(name: str, net: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Fit, compress, measure."""
    method = METHODS[name]
    if (name, net) in PRUNE_TO:
        method = replace(method, fit=method.fit | {"prune_to": PRUNE_TO[name, net]})
    label = f"{net}-{name.lower().replace(' ', '-')}-{seed}"
    epochs = given.epochs or EPOCHS.get(name, 100)
    config = FitConfig(
        net=net, data=given.data, data_dir=given.data_dir, seed=seed, epochs=epochs, validation=given.validation,
        device="cpu", threads=given.threads, hidden=(20, 10) if given.smoke else (500, 500), **method.fit,
    )  # fmt: skip
    folder = given.runs / label
    run = load_run(folder) if folder.exists() else fit_run(config, folder)
    for option, asked in {**method.fit, "net": net, "seed": seed, "epochs": epochs}.items():
        if (there := getattr(run.config, option)) != asked:
            raise SystemExit(f"{folder} was fitted with {option} {there}, not {asked}: choose another --runs")
    words = ["--net", net, "--data", given.data, "--epochs", str(epochs), "--validation", str(given.validation)]
    words += [str(w) for key, value in method.fit.items() for w in (f"--{key.replace('_', '-')}", value)]
    found = measured(run, method, given.data_dir, given.files / f"{label}.pcn")
    return {
        "network": net,
        "dataset": given.data,
        "method": name,
        "source": method.source,
        "seed": seed,
        **found,
        "epochs": epochs,
        "command": shlex.join(["pyro-compress", "fit", *words, "--seed", str(seed)]),
        "compress": f"pyro-compress compress RUN --rounding compensated --tolerance {TOLERANCE}",
        "fit": {key: value for key, value in asdict(run.config).items() if key != "data_dir"},
        "versions": {package: version(package) for package in ("torch", "pyro-ppl", "numpy")},
    }


def table(rows: list[dict[str, Any]], published: dict[str, Any], net: str) -> str:
    """Markdown of one network: published and measured, a line for each."""
    heads = ["method", "", "error %", "pruned", "fixed point", "Huffman", "file", "ratio", "its error %"]
    cells, rows = [], [row for row in rows if row["network"] == net]
    for method in [name for name in METHODS if any(row["method"] == name for row in rows)]:
        if told := published.get(net, {}).get(method):
            ratios = [f"{ratio}×" if ratio else "–" for ratio in told[2:]]
            cells.append([method, "*p*", f"{told[0]:.1f}", *ratios, "–", "–", "–"])
        own = [row for row in rows if row["method"] == method]

        def of(name: str, digits: int, own: list[dict[str, Any]] = own) -> str:
            values = [row[name] for row in own if row.get(name) is not None]
            return spread(values, digits) if values else "–"

        error = "structure_error_percent" if "structure_error_percent" in own[0] else "test_error_percent"
        ratios = [of(f"ratio_{name}", 0) + "×" * (own[0][f"ratio_{name}"] is not None) for name in RATIOS]
        cells.append([
            method, str(len(own)), of(error, 2), *ratios, f"{of('bytes', 0)} B",
            of("ratio_file", 0) + "×", of("test_error_percent", 2),
        ])  # fmt: skip
    return markdown_table([heads, *cells])


def commands(rows: list[dict[str, Any]]) -> str:
    """What was typed for each row, in a block."""
    return "\n".join(["```", *dict.fromkeys(row["command"] for row in rows), rows[0]["compress"], "```"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="lenet-5-caffe")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0, help="of the fit; default 100, of point weights 40")
    parser.add_argument("--validation", type=float, default=0.05, help="share of the training set held out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--files", type=Path, default=ROOT / "docs" / "results" / "paper")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "paper.json")
    parser.add_argument("--smoke", action="store_true", help="one tiny row on the embedded digits")
    given = parser.parse_args()
    if given.smoke:
        given.net, given.data, given.methods, given.seeds, given.epochs = "mlp", "digits", ["BC-GHS"], [0], 5
    given.files.mkdir(parents=True, exist_ok=True)
    rows = json.loads(given.json.read_text()) if given.json.exists() else []
    for seed in given.seeds:
        for name in given.methods:
            if (given.net, given.data, name, seed) in {
                (r["network"], r["dataset"], r["method"], r["seed"]) for r in rows
            }:
                continue
            rows = [*rows, row(name, given.net, seed, given)]
            write_atomically(given.json, (json.dumps(rows, indent=1) + "\n").encode())
            last = {
                key: rows[-1][key] for key in ("method", "seed", "test_error_percent", "ratio_pruned", "bytes", "units")
            }
            print(json.dumps(last), flush=True)


if __name__ == "__main__":
    run_script(main)
