"""Trained networks made small without training, by this package and by others, in one run and under one rule.

    python scripts/compare_post_training.py --weights FOLDER --data-dir data --json docs/results/compared.json
    python scripts/compare_post_training.py --weights FOLDER --methods nncodec --nncodec-python ENV/bin/python

FOLDER holds the networks of `post_training_table.py`, and those of `language_models.py` with their text. Every method
is given the same network and the same rule: the fewest bytes whose validation scores lose no more than a tolerance
(`pyro_compress.compression.target`; of texts the share by which bits per byte may grow). The test split is read once
per row, at the end.

| method | what is searched on validation | bytes |
| --- | --- | --- |
| pyro-compress | `compress --net --init --data` | of the file |
| nncodec | the quantisation parameter (ISO/IEC 15938-17, trellis-coded, DeepCABAC) of NNCodec 2 | of the bitstream |
| magnitude + xz | the share of weights that are pruned, of all layers together | of the values as float16 under xz |
| int8 + zstd | nothing: ONNX Runtime, static, a scale per channel | of the ONNX model under zstd |
| int4 + zstd | weights per scale, bits of convolutions: torchao, weights alone | of all that it keeps under zstd |

NNCodec wants another numpy than this package, torchao nothing but torch: --nncodec-python and --torchao-python name the
Pythons of environments that have them (`pip install nncodec` compiles C++); without, their rows are left out. torchao
has no 4 bits for recurrent weights: they stay float32.

Every row is made in a process of its own. Its peak memory is that process's and the other Python's together; beside it
stands what of both came on top of imports, network and data (on Linux; elsewhere of the peaks); CPU seconds are on top
of the same. A row that is there is not made again. With --rows, those of this package that are missing are seed 0 of a
file of `post_training_table.py`, without memory. `--smoke` makes a row of every method that is at hand on the digits.
"""

import argparse
import importlib
import json
import lzma
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
import zstandard
from post_training_table import CASES, Case, tiny, trained
from torch import Tensor

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.candidates import origin_of
from pyro_compress.compression.compensated import Compensation
from pyro_compress.compression.pipeline import compress_run, load
from pyro_compress.compression.target import Target, target_of
from pyro_compress.deploy.card import card
from pyro_compress.deploy.memory import high_water_from_now, high_water_mib
from pyro_compress.deploy.onnx_files import load_onnx, write_int8
from pyro_compress.graph.network import Network
from pyro_compress.machine import prepare
from pyro_compress.metrics import Predict, evaluate
from pyro_compress.runs.post_training import Trained, load_trained
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.types import Compressed

HERE = Path(__file__).parent
HALVINGS = 8
CALIBRATION = 500
GROUPS = (0, 256, 128, 64, 32)
"""Weights per scale of torchao; 0: a whole row."""
TEXTS = {
    "lstm": Case("language:lstm", "lstm.safetensors", "LSTM, bytes of text"),
    "transformer": Case("language:transformer", "transformer.safetensors", "transformer, bytes of text"),
}
NETWORKS = CASES | TEXTS
OTHERS = {"nncodec": "nncodec_python", "int4 + zstd": "torchao_python"}
"""Method -> the option that names its Python."""


class Made(NamedTuple):
    """A candidate: what it predicts, its bytes, and its setting in words."""

    predict: Predict
    size: int
    setting: str


MISSED = "none reaches the tolerance"
Found = Made | str
"""What a method found, or why there is nothing."""


class Coder:
    """A program of `other_coders` in the Python of another environment."""

    def __init__(self, python: str, program: str, tensors: dict[str, Tensor], folder: Path):
        self.python, self.after, self.log = python, folder / "coded.npz", folder / "log"
        before = folder / "given.npz"
        np.savez(before, **{name: tensor.numpy() for name, tensor in tensors.items()})
        self.spent = np.zeros(3)
        command = [python, str(HERE / "other_coders" / f"{program}.py"), str(before), str(self.after)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def __call__(self, setting: Any) -> dict[str, np.ndarray]:
        """What it writes at a setting."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            print(json.dumps(setting), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # what it has said tells why
        told = next((line.split() for line in self.process.stdout if line.startswith("coded ")), None)
        if told is None:
            raise ValueError(f"{self.python}: {(self.log.read_text().splitlines() or ['it said nothing'])[-1]}")
        self.spent = np.array(told[1:], float)
        return dict(np.load(self.after))


@contextmanager
def coder(python: str, program: str, given: Trained, spent: np.ndarray) -> Iterator[Coder]:
    """A running coder of a network; what it has spent is added to `spent`: peak and growth in MiB, CPU seconds."""
    with TemporaryDirectory() as folder:
        running = Coder(python, program, dict(given.network.tensors), Path(folder))
        with running.process:
            yield running
        spent += running.spent


def values_in(coded: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name[7:]: torch.from_numpy(value).float() for name, value in coded.items() if name.startswith("tensor ")}


def network_of(given: Trained, tensors: dict[str, Tensor]) -> Network:
    """The given network with other values."""
    return Network(given.network.graph, given.network.tensors | tensors, own=True).eval()


def smallest(given: Trained, target: Target, at: Callable[[int], Made], steps: int) -> Found:
    """The smallest of candidates 0 (finest) to `steps` (coarsest) that reaches a target, by bisection."""
    low, high = -1, steps + 1
    best: Made | None = None
    while high - low > 1:
        middle = (low + high) // 2
        found = at(middle)
        if target.reached(evaluate(found.predict, given.splits, "validation")):
            low, best = middle, found if best is None or found.size < best.size else best
        else:
            high = middle
    return best or MISSED


def ours(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Found:
    """Rounding with compensation."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.pcn"
        compress_run(given.network, given.splits, path, Goal(tolerance=tolerance), Compensation())
        return Made(load(path), path.stat().st_size, "")


def magnitude(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Found:
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


def nncodec(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Found:
    """NNCodec at the coarsest quantisation parameter that reaches the target."""
    with coder(options.nncodec_python, "by_nncodec", given, options.spent) as coded_at:

        def at(step: int) -> Made:
            coded = coded_at(step - 60)
            return Made(network_of(given, values_in(coded)), coded["stream"].size, f"qp {step - 60}")

        return smallest(given, target, at, 60)


def int8(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Found:
    """ONNX Runtime's static quantisation, under zstd."""
    values = {name: tensor.numpy() for name, tensor in given.network.tensors.items()}
    network = Compressed(given.network.graph, values, origin_of(given.network, given.splits, "magnitude"))
    scores = evaluate(network_of(given, {}), given.splits, "validation")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        write_int8(network, card(network, scores, 0), path, given.splits.train.x[:CALIBRATION].numpy())
        run, data = load_onnx(path), path.read_bytes()
    made = Made(lambda x: torch.from_numpy(run(x.numpy())), len(zstandard.compress(data, 22)), "")
    return made if target.reached(evaluate(made.predict, given.splits, "validation")) else MISSED


def int4(given: Trained, tolerance: float, target: Target, options: argparse.Namespace) -> Found:
    """torchao's 4-bit weights of linear layers and embeddings, convolutions in 4 or 8 bits or as they are, under zstd.

    The smallest file that reaches the target, of all weights per scale.
    """
    weights = {node.parameters["weight"]: node.op for node in given.network.graph.nodes if "weight" in node.parameters}
    dense = [name for name, op in weights.items() if op in ("linear", "embedding")]
    convolutions = [name for name, op in weights.items() if op == "conv2d"]
    if not dense + convolutions:
        return "no layer that torchao has 4 bits for"
    with coder(options.torchao_python, "by_torchao", given, options.spent) as coded_at:
        candidates = []
        for group in GROUPS:
            for bits in (4, 8, 0) if convolutions else (0,):
                coded = coded_at({"group": group, "bits": dict.fromkeys(dense, 4) | dict.fromkeys(convolutions, bits)})
                size = min(len(zstandard.compress(coded[way].tobytes(), 22)) for way in ("packed", "loose"))
                said = f"groups of {group}" if group else "a scale per row"
                said += f", convolutions in {bits or 32} bits" if convolutions else ""
                candidates.append(Made(network_of(given, values_in(coded)), size, said))
    for made in sorted(candidates, key=lambda made: made.size):
        if target.reached(evaluate(made.predict, given.splits, "validation")):
            return made
    return MISSED


METHODS = {
    "pyro-compress": ours, "nncodec": nncodec, "magnitude + xz": magnitude, "int8 + zstd": int8, "int4 + zstd": int4
}  # fmt: skip


def language() -> Any:
    """The module of the language models, which networks are named by."""
    sys.path.append(str(HERE.parent / "examples"))
    return importlib.import_module("language")


def given_of(case: Case, options: argparse.Namespace) -> Trained:
    """A network with its data; of a language model the text beside its weights."""
    if case not in TEXTS.values():
        return trained(case, options)
    language()
    folder = Path(options.weights)
    config = FitConfig(
        prior="log-uniform", net=case.net, init=str(folder / case.file), data=str(folder / "text"), task="next-token",
        context=64, device="cpu", threads=1,
    )  # fmt: skip
    return load_trained(config)


def row_of(name: str, method: str, given: Trained, tolerance: float, options: argparse.Namespace) -> dict[str, Any]:
    """One method on one network, in this process."""
    target = target_of(given.network, given.splits, Goal(tolerance=tolerance))
    options.spent = np.zeros(3)
    resident, started, worked = high_water_from_now(), time.perf_counter(), time.process_time()
    found = METHODS[method](given, tolerance, target, options)
    peak = high_water_mib()
    own = np.array([peak, peak - resident, time.process_time() - worked])
    row = {
        "network": name, "method": method, "tolerance": tolerance, "seconds": time.perf_counter() - started,
        **dict(zip(("peak_mib", "growth_mib", "cpu_seconds"), (own + options.spent).tolist(), strict=True)),
        "dense_bytes": 4 * given.network.parameters_total,
    }  # fmt: skip
    if isinstance(found, str):
        return row | {"file_bytes": None, "setting": found}
    scores = {split: asdict(evaluate(found.predict, given.splits, split)) for split in ("validation", "test")}
    return row | {"file_bytes": found.size, "setting": found.setting} | scores


def print_rows(job: dict[str, Any]) -> None:
    """Load a network, then make every row in a process that starts from there and ends with it."""
    prepare("cpu", 1)
    options = argparse.Namespace(**job["options"])
    given = given_of(Case(**job["case"]), options)
    for method, tolerance in job["rows"]:

        def one(method: str = method, tolerance: float = tolerance) -> None:
            print(json.dumps(row_of(job["name"], method, given, tolerance, options)), flush=True)

        row = multiprocessing.get_context("fork").Process(target=run_script, args=(one,))
        row.start()
        row.join()
        if row.exitcode:
            sys.exit(row.exitcode)


def rows_of(name: str, case: Case, wanted: list[tuple[str, float]], options: argparse.Namespace) -> Iterator[Any]:
    """The rows of one network, as they come from a process that this one shares nothing with."""
    job = {"name": name, "case": asdict(case), "rows": wanted, "options": vars(options)}
    command = [sys.executable, __file__, "--job", json.dumps(job, default=str)]
    with (
        TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout
        yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
        if process.wait():
            log.seek(0)
            told = log.read().splitlines() or [f"exit code {process.returncode}"]
            raise ValueError(f"{name}: {told[-1].removeprefix('Error: ')}")


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
    """Markdown: a line per network and method, a column per tolerance; mean seconds, most memory."""
    tolerances = sorted({row["tolerance"] for row in rows})
    heads = [f"{100 * t:g} may be lost: bytes (test)" for t in tolerances]
    heads = ["network", "method", *heads, "CPU seconds", "peak MiB (on top)"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["network"] for row in rows):
        for method in METHODS:
            mine = {row["tolerance"]: row for row in rows if (row["network"], row["method"]) == (name, method)}
            if not mine:
                continue
            cells = [_cell(mine[t]) if t in mine else "not made" for t in tolerances]
            spent = [row["cpu_seconds"] for row in mine.values() if "cpu_seconds" in row]
            seconds = f"{sum(spent) / len(spent):.0f}" if spent else "not measured"
            most = max((row for row in mine.values() if "peak_mib" in row), key=lambda row: row["peak_mib"], default={})
            memory = f"{most['peak_mib']:,.0f} ({most['growth_mib']:,.0f})" if most else "not measured"
            title = NETWORKS[name].title if name in NETWORKS else name
            lines.append(f"| {title} | {method} | {' | '.join(cells)} | {seconds} | {memory} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["file_bytes"] is None:
        return "misses it" if row["setting"] == MISSED else f"none: {row['setting']}"
    test = row["test"]
    score = f"{test['bits']:.3f} bits" if "bits" in test else f"{100 * (1 - test['accuracy']):.2f} %"
    return f"{row['file_bytes']:,} ({score})"


def at_hand(options: argparse.Namespace) -> list[str]:
    """The methods to compare; those without their Python are left out, or an error where they are asked for."""
    found = []
    for method in options.methods or METHODS:
        if method not in OTHERS or getattr(options, OTHERS[method]):
            found.append(method)
            continue
        missing = f"{method}: name the Python that has it with --{OTHERS[method].replace('_', '-')}"
        if options.methods:
            raise ValueError(missing)
        print(f"left out: {missing}", file=sys.stderr)
    return found


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=None, help="Default: those at hand.")
    parser.add_argument("--tolerances", nargs="+", type=float, default=[0.001, 0.005, 0.01])
    parser.add_argument("--nncodec-python", default=None, metavar="PYTHON")
    parser.add_argument("--torchao-python", default=None, metavar="PYTHON")
    parser.add_argument("--rows", type=Path, default=None, help="Rows of post_training_table.py, for this package.")
    parser.add_argument("--json", type=Path, default=None, help="Rows, read and added to.")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--job", type=json.loads, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        return print_rows(options.job)
    prepare("cpu", 1)
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    there = {(row["network"], row["method"], row["tolerance"]) for row in rows}
    for row in known(options.rows, options.tolerances):
        if (row["network"], row["method"], row["tolerance"]) not in there:
            rows.append(row)
    methods = at_hand(options)
    with TemporaryDirectory() as folder:
        cases = tiny(options, Path(folder)) if options.smoke else {name: NETWORKS[name] for name in options.networks}
        for name, case in cases.items():
            there = {(row["method"], row["tolerance"]) for row in rows if row["network"] == name}
            wanted = [(m, t) for t in options.tolerances for m in methods if (m, t) not in there]
            for row in rows_of(name, case, wanted, options) if wanted else ():
                rows.append(row)
                if options.json:
                    write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
    print(table(rows))


if __name__ == "__main__":
    run_script(main)
