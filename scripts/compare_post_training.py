"""Trained networks made small without training, by this package and by others, in one run and under one rule.

    python scripts/compare_post_training.py --weights FOLDER --data-dir data --json docs/results/compared.json
    python scripts/compare_post_training.py --weights FOLDER --methods nncodec --nncodec-python ENV/bin/python

Every method is given the same network and the same rule: the fewest bytes whose validation scores lose no more than a
tolerance (`pyro_compress.compression.target`). The test split is read once per row, at the end.

| method | what is searched on validation | bytes |
| --- | --- | --- |
| pyro-compress | `compress --net --init --data` | of the file |
| nncodec | the quantisation parameter (ISO/IEC 15938-17, trellis-coded, DeepCABAC) of NNCodec 2 | of the bitstream |
| magnitude + xz | the share of weights that are pruned, of all layers together | of the values as float16 under xz |
| int8 + zstd | nothing: ONNX Runtime, static, a scale per channel | of the ONNX model under zstd |

NNCodec wants another numpy than this package: --nncodec-python names the Python of an environment that has it (`pip
install nncodec`, which compiles C++); without, its rows are left out. A row that is there is not made again. With
--rows, those of this package are seed 0 of a file of `post_training_table.py`: the same command gives the same bytes.
`--smoke` makes a row of every method that is at hand on the embedded digits.
"""

import argparse
import json
import lzma
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import zstandard
from post_training_table import CASES, tiny, trained
from torch import Tensor

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.candidates import origin_of
from pyro_compress.compression.compensated import Compensation
from pyro_compress.compression.pipeline import compress_run, load
from pyro_compress.compression.target import Target, target_of
from pyro_compress.deploy.card import card
from pyro_compress.deploy.onnx_files import load_onnx, write_int8
from pyro_compress.graph.network import Network
from pyro_compress.machine import prepare
from pyro_compress.metrics import Predict, evaluate
from pyro_compress.runs.post_training import Trained
from pyro_compress.settings import Goal
from pyro_compress.types import Compressed

HALVINGS = 8
CALIBRATION = 500
WORKER = """
import sys
import numpy as np
from nncodec.nn import decode, encode
given = dict(np.load(sys.argv[1]))
for line in sys.stdin:
    args = {"qp": int(line), "use_dq": True, "results": sys.argv[3], "verbose": False}
    stream = encode(given, args=args)
    np.savez(sys.argv[2], bytes=len(stream), **{"t/" + name: value for name, value in decode(stream).items()})
    print("coded", flush=True)
"""
"""Encodes tensors at one quantisation parameter after the other, and decodes them, in an environment with nncodec."""


class Made(NamedTuple):
    """A candidate: what it predicts, its bytes, and its setting in words."""

    predict: Predict
    size: int
    setting: str


def network_of(given: Trained, tensors: dict[str, Tensor]) -> Network:
    """The given network with other values."""
    return Network(given.network.graph, given.network.tensors | tensors, own=True).eval()


def smallest(given: Trained, target: Target, at: Callable[[int], Made], steps: int) -> Made | None:
    """The smallest of candidates 0 (finest) to `steps` (coarsest) that reaches a target, by bisection."""
    low, high, best = -1, steps + 1, None
    while high - low > 1:
        middle = (low + high) // 2
        found = at(middle)
        if target.reached(evaluate(found.predict, given.splits, "validation")):
            low, best = middle, found if best is None or found.size < best.size else best
        else:
            high = middle
    return best


def ours(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Made | None:
    """Rounding with compensation."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.pcn"
        compress_run(given.network, given.splits, path, Goal(tolerance=tolerance), Compensation())
        return Made(load(path), path.stat().st_size, "")


def magnitude(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Made | None:
    """The smallest weights of all layers become 0, the others float16, all under xz."""
    sizes = torch.cat([layer.mean.abs().flatten() for layer in given.network.layers.values()])
    order = sizes.sort().values
    steps = 2**HALVINGS

    def at(step: int) -> Made:
        least = order[min(step * len(order) // steps, len(order) - 1)]
        pruned = {
            name: torch.where(layer.mean.abs() >= least, layer.mean, 0.0)
            for name, layer in given.network.layers.items()
        }
        halves = {name: tensor.half() for name, tensor in (given.network.tensors | pruned).items()}
        values = b"".join(tensor.numpy().tobytes() for tensor in halves.values())
        size = len(lzma.compress(values, preset=9 | lzma.PRESET_EXTREME))
        values_of = {name: tensor.float() for name, tensor in halves.items()}
        return Made(network_of(given, values_of), size, f"{100 * step / steps:.1f} % pruned")

    return smallest(given, target, at, steps)


def nncodec(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Made | None:
    """NNCodec at the coarsest quantisation parameter that reaches the target."""
    if options.nncodec_python is None:
        return None
    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "given.npz", Path(folder) / "coded.npz"
        np.savez(before, **{name: tensor.numpy() for name, tensor in given.network.tensors.items()})

        command = [options.nncodec_python, "-c", WORKER, str(before), str(after), folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdin
            assert worker.stdout
            asked, told = worker.stdin, worker.stdout

            def at(step: int) -> Made:
                qp = step - 60
                print(qp, file=asked, flush=True)
                if not any(line == "coded\n" for line in told):
                    raise ValueError(f"nncodec failed at qp {qp}: see above")
                coded = dict(np.load(after))
                values = {name[2:]: torch.from_numpy(v).float() for name, v in coded.items() if name.startswith("t/")}
                return Made(network_of(given, values), int(coded["bytes"]), f"qp {qp}")

            return smallest(given, target, at, 60)


def int8(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Made | None:
    """ONNX Runtime's static quantisation, under zstd; None where that loses more than the tolerance."""
    values = {name: tensor.numpy() for name, tensor in given.network.tensors.items()}
    network = Compressed(given.network.graph, values, origin_of(given.network, given.splits, "magnitude"))
    scores = evaluate(network_of(given, {}), given.splits, "validation")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        write_int8(network, card(network, scores, 0), path, given.splits.train.x[:CALIBRATION].numpy())
        run, data = load_onnx(path), path.read_bytes()
    made = Made(lambda x: torch.from_numpy(run(x.numpy())), len(zstandard.compress(data, 22)), "")
    return made if target.reached(evaluate(made.predict, given.splits, "validation")) else None


METHODS = {"pyro-compress": ours, "nncodec": nncodec, "magnitude + xz": magnitude, "int8 + zstd": int8}


def row_of(name: str, method: str, given: Trained, tolerance: float, options: argparse.Namespace) -> dict[str, Any]:
    """One method on one network."""
    started = time.perf_counter()
    target = target_of(given.network, given.splits, Goal(tolerance=tolerance))
    found = METHODS[method](given, tolerance, target, options)
    row = {"network": name, "method": method, "tolerance": tolerance, "seconds": time.perf_counter() - started}
    row["dense_bytes"] = 4 * given.network.parameters_total
    if found is None:
        return row | {"file_bytes": None, "setting": "none reaches the tolerance"}
    scores = {split: asdict(evaluate(found.predict, given.splits, split)) for split in ("validation", "test")}
    return row | {"file_bytes": found.size, "setting": found.setting} | scores


def known(path: Path | None, tolerances: list[float]) -> list[dict[str, Any]]:
    """Rows of this package that `post_training_table.py` has made, seed 0 of each network and tolerance."""
    made = [] if path is None else json.loads(path.read_text())
    return [
        {name: row[name] for name in ("network", "tolerance", "seconds", "file_bytes")}
        | {"method": "pyro-compress", "setting": f"seed 0 of {path}", "dense_bytes": 4 * row["parameters_total"]}
        | {split: row[f"{split}_after"] for split in ("validation", "test")}
        for row in made
        if row["seed"] == 0 and row["tolerance"] in tolerances
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per network and method, a column per tolerance."""
    tolerances = sorted({row["tolerance"] for row in rows})
    heads = [f"{100 * t:g} points: bytes (test error)" for t in tolerances]
    lines = ["| network | method | " + " | ".join(heads) + " | seconds |", "|---" * (len(heads) + 3) + "|"]
    for name in dict.fromkeys(row["network"] for row in rows):
        for method in METHODS:
            mine = {row["tolerance"]: row for row in rows if (row["network"], row["method"]) == (name, method)}
            if not mine:
                continue
            cells = [_cell(mine[t]) if t in mine else "" for t in tolerances]
            seconds = sum(row["seconds"] for row in mine.values()) / len(mine)
            title = CASES[name].title if name in CASES else name
            lines.append(f"| {title} | {method} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["file_bytes"] is None:
        return "misses it"
    return f"{row['file_bytes']:,} ({100 * (1 - row['test']['accuracy']):.2f} %)"


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tolerances", nargs="+", type=float, default=[0.001, 0.005, 0.01])
    parser.add_argument("--nncodec-python", default=None, metavar="PYTHON")
    parser.add_argument("--rows", type=Path, default=None, help="Rows of post_training_table.py, for this package.")
    parser.add_argument("--json", type=Path, default=None, help="Rows, read and added to.")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    prepare("cpu", 1)
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    rows = rows or known(options.rows, options.tolerances)
    methods = [method for method in options.methods if method != "nncodec" or options.nncodec_python]
    with TemporaryDirectory() as folder:
        cases = tiny(options, Path(folder)) if options.smoke else {name: CASES[name] for name in options.networks}
        for name, case in cases.items():
            given = None
            for tolerance in options.tolerances:
                for method in methods:
                    key = {"network": name, "method": method, "tolerance": tolerance}
                    if any(key.items() <= row.items() for row in rows):
                        continue
                    given = given or trained(case, options)
                    rows.append(row_of(name, method, given, tolerance, options))
                    if options.json:
                        write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
    print(table(rows))


if __name__ == "__main__":
    run_script(main)
