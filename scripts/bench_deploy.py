"""What exports weigh and how fast they are: rows and tables of docs/results/exports.md.

    python scripts/bench_deploy.py speed FILE.pcn --dense RUN
    python scripts/bench_deploy.py exports FILE.pcn --data-dir data
    python scripts/bench_deploy.py ensemble RUN --members 5 10 --data-dir data
    python scripts/bench_deploy.py everywhere --data-dir data
    python scripts/bench_deploy.py --table

Every call adds its rows to `--out`, in place of older ones of the same name. Speed is one thread, all rows in turns
within one run. `everywhere` takes the networks of `NETWORKS` through every export, each beside the dense network in
the same engine, in processor time; data that are missing there are made by `examples/keywords.py`, which wants
espeak-ng. `--smoke` does all for tiny networks.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.deploy.bench import bench as measure
from pyro_compress.deploy.bench import in_turns
from pyro_compress.deploy.card import card
from pyro_compress.deploy.engines import ENGINES, Call
from pyro_compress.deploy.entries import UNSCORED, random_inputs, told
from pyro_compress.deploy.export import export, splits_of
from pyro_compress.deploy.formats import EXPORTERS
from pyro_compress.deploy.integer import library as integer_library
from pyro_compress.deploy.measured import Bench, Cell, Row
from pyro_compress.deploy.wasm.node import Timed
from pyro_compress.metrics import examples_of
from pyro_compress.networks.fitted import with_graph
from pyro_compress.networks.nets import build_net
from pyro_compress.pcn import file as pcn
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.settings.export import ExportConfig, Members
from pyro_compress.types import Compressed, Splits

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
EXPORTS = {
    "model.onnx": {},
    "model.onnx --float32": {"float32": True},
    "model.onnx --raw": {"raw": True},
    "model.onnx --int8": {"int8": True},
    "model.onnx --int8-dynamic": {"int8_dynamic": True},
    "model.pt2": {},
    "model.safetensors": {},
    "model.c": {},
    "model.wasm": {},
    "folder": {},
    "folder --sparse": {"sparse": True},
}
ANYWHERE = {
    name: {} if len(parts := name.split(" --")) == 1 else {parts[1]: True}
    for name in (
        "model.onnx", "model.onnx --int8", "model.onnx --int4", "model.pt2", "model.safetensors", "folder", "model.c",
        "model.c --integer", "model.wasm", "model.pte", "model.pte --int8", "model.tflite", "model.tflite --int8",
    )
}  # fmt: skip
"""What every network of `everywhere` goes through."""
ENGINE = {
    ".onnx": "ONNX Runtime", ".safetensors": "torch", "folder": "scipy CSR", ".c": "C", ".wasm": "WebAssembly",
    ".pte": "ExecuTorch", ".tflite": "LiteRT",
}  # fmt: skip
"""What runs the exports; others are called as they are loaded."""
NETWORKS = {
    "LeNet-5": ("records/mnist-lenet-5-caffe-rate2-seed0.pcn", "mnist", "lenet-5-caffe"),
    "ResNet-20": ("cifar/resnet-20-compensated-0.005.pcn", "cifar-10", "resnet-20"),
    "keywords, GRU": ("keywords/keywords-gru.pcn", "keywords.npz", "keywords:gru"),
    "keywords, transformer": ("keywords/keywords-transformer.pcn", "keywords.npz", "keywords:transformer"),
}
"""File under docs/results, its data, the dense network."""
VERSIONS = ("torch", "onnxruntime", "numpy", "executorch", "litert-torch", "ai-edge-litert")
"""Packages whose versions stand beside the rows."""
WARM = 3
"""Calls that `in_turns` makes before it measures."""
FEW = {"train": 10_000, "test": 2_000}
"""Examples that exports are calibrated, judged and scored on, at most, in even steps: some engines are slow."""


def exports(file: Path, data_dir: str) -> list[dict]:
    """Every export of a file: bytes, differences, scores."""
    found = []
    for name, options in EXPORTS.items():
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / name.split()[0]
            found.append(export(file, out, ExportConfig(**options), data_dir=data_dir).to_dict() | {"path": name})
    return found


def ensembles(run: Path, members: list[int], data_dir: str) -> list[dict]:
    """The posterior mean's file at its default threshold, and ensembles of draws."""
    found = []
    for count in members:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "model.onnx"
            told = export(run, out, ExportConfig(members=Members(count)), data_dir=data_dir).to_dict()
            found.append(told | {"members": count, "path": out.name})
    return found


def everywhere(file: Path, data: str, net: str, data_dir: str, seconds: float, names: Sequence[str]) -> Iterator[dict]:
    """A file through every export: bytes, scores, time of one example beside the dense network's in the same engine."""
    network = pcn.read(file)
    if data.endswith(".npz"):
        data = at_hand(Path(data_dir) / data)
    with tempfile.TemporaryDirectory() as place:
        splits = splits_of(network, data, data_dir)
        data = few(splits, Path(place) / "few.npz")
        splits = splits_of(network, data, data_dir)
        original = dense(net, splits, network)
        for number, (name, options) in enumerate((name, ANYWHERE[name]) for name in names):
            small, large = (Path(place) / f"{one}{number}" / name.split()[0] for one in ("small", "large"))
            row = {"export": name}
            try:
                scored = export(file, made(small), ExportConfig(**options), data, data_dir, threads=1).to_dict()
                row |= {key: scored[key] for key in ("bytes", "before", "after", "difference")}
                ready = [called(small, network)]
                try:
                    request, exporter = ExportConfig(**options), EXPORTERS[large.suffix or "folder"]
                    if made(large).suffix == "":
                        large.mkdir()
                    exporter.write(original, card(original, UNSCORED, 0, False), large, request, splits)
                    ready.append(called(large, network))
                except Exception as error:  # whatever a tool chain says
                    row["dense_refused"] = told(error)
                row["us"] = [float(np.median(times)) / 1e3 for times in processor_times(ready, seconds)]
            except ValueError as error:
                row["refused"] = str(error)
            print(f"{file.name} {name}: {row.get('refused') or row['us']}", file=sys.stderr)
            shutil.rmtree(small.parent, ignore_errors=True)
            shutil.rmtree(large.parent, ignore_errors=True)
            yield row


def at_hand(path: Path) -> str:
    """Recordings of keywords, made where they are not there."""
    import keywords  # examples/keywords.py

    if not path.exists():
        keywords.write_keywords(path)
    return str(path)


def made(path: Path) -> Path:
    """The path, in a folder that is there."""
    path.parent.mkdir()
    return path


def few(splits: Splits, path: Path) -> str:
    """Some examples of every split as a file of their own, which the network reads like all of them."""
    arrays, scale = {"classes": np.array(splits.classes)}, splits.scale
    for part, most in FEW.items():
        of = examples_of(splits, part)
        rows = np.arange(count := min(len(of), most)) * len(of) // count
        values = of.x[torch.from_numpy(rows)].numpy()
        arrays |= {f"y_{part}": of.y[torch.from_numpy(rows)].numpy()}
        arrays |= {f"x_{part}": (values * scale).round().astype(np.uint8) if scale == 255 else values}
    np.savez(path, **arrays)
    return str(path)


def dense(name: str, splits: Splits, network: Compressed) -> Compressed:
    """The network that a file was made from, with random weights, on which time does not depend."""
    torch.manual_seed(0)
    net, graph = with_graph(build_net(name, splits.input_shape, splits.outputs), splits)
    return Compressed(graph, {name: tensor.numpy() for name, tensor in net.state_dict().items()}, network.meta)


def called(path: Path, network: Compressed) -> Call:
    """An export on one example, ready to be timed in the engine that is for it."""
    kind, x = path.suffix or "folder", random_inputs(network, 1)
    if kind in ENGINE:
        engine = "C integers" if kind == ".c" and integer_library.is_integer(path) else ENGINE[kind]
        return ENGINES[engine](path, 1)(x)
    predict = EXPORTERS[kind].load(path)
    return lambda: predict(x)


def processor_times(calls: list[Call], seconds: float) -> list[list[int]]:
    """Nanoseconds of every call as `in_turns` has them, without those in which the processor did other work.

    A long call is interrupted by whatever else runs on the machine, a short one is not: that would be no comparison.
    node times itself, with its own clock.
    """
    ready = [call if isinstance(call, Timed) else Counted(call) for call in calls]
    times = in_turns(ready, seconds)
    return [call.times[WARM:] if isinstance(call, Counted) else of for call, of in zip(ready, times, strict=True)]


class Counted:
    """A call that counts the processor time of this process, all of its threads together."""

    def __init__(self, call: Call):
        self._call, self.times = call, list[int]()

    def __call__(self) -> None:
        before = time.process_time_ns()
        self._call()
        self.times.append(time.process_time_ns() - before)


def kept(told: dict) -> dict:
    """A benchmark without what was left out on this machine."""
    return {key: value for key, value in told.items() if key != "missing"}


def speed_table(told: dict) -> list[str]:
    """Markdown of a benchmark."""
    rows = tuple(Row(**(row | {"cells": tuple(Cell(**cell) for cell in row["cells"])})) for row in told["rows"])
    bench = Bench(**{**told, "rows": rows, "missing": ()})
    widths = "-".join(map(str, bench.widths))
    scored = bool(bench.measure)
    lines = [
        f"{bench.file}: {bench.file_bytes:,} bytes, {100 * bench.density:.0f} % non-zero, units {widths}",
        "",
        "| network | engine | file, bytes | process peak, MiB | "
        + " | ".join([f"batch {cell.batch}, µs" for cell in rows[0].cells] + [bench.measure] * scored) + " |",
        "| --- | --- | ---: | ---: |" + " ---: |" * (len(rows[0].cells) + scored),
    ]  # fmt: skip
    for row in rows:
        cells = [row.variant, row.engine, f"{row.bytes:,}", f"{row.peak_mib:.0f}" if row.peak_mib else ""]
        for cell in row.cells:
            gain = bench.gain(row, cell.batch)
            cells.append(f"{cell.median_us:,.1f}" + (f", {gain:.1f}×" if gain and row.variant != "dense" else ""))
        cells += [row.score] * scored
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def exports_table(rows: list[dict]) -> list[str]:
    """Markdown of exports."""
    lines = [
        f"| export | bytes | largest difference of outputs (up to {rows[0]['largest_output']:.0f}) | of probabilities "
        "| test accuracy |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [f"`{row['path']}`", f"{row['bytes']:,}", f"{row['difference']:.2g}"]
        cells += [f"{row['probability_difference']:.2g}", f"{100 * row['after']['accuracy']:.2f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ensemble_table(rows: list[dict]) -> list[str]:
    """Markdown of ensembles."""
    lines = ["| draws | accuracy | NLL, nats | ECE | bytes |", "| ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        scores = row["after"]
        cells = [str(row["members"]), f"{100 * scores['accuracy']:.2f} %", f"{scores['nll_nats']:.4f}"]
        cells += [f"{scores['ece']:.3f}", f"{row['bytes']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def everywhere_table(rows: dict[str, list[dict]]) -> list[str]:
    """Markdown of networks through every export; what was refused below it, in the words of the refusal."""
    lines = [
        "| network | export | bytes | test accuracy | points against `.pcn` | one example, µs | dense, µs | |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    refused = list[str]()
    for network, exports in rows.items():
        for row in exports:
            cells = [network, f"`{row['export']}`"]
            if "refused" in row:
                cells += ["refused", *[""] * 5]
                refused.append(f"- {network}, `{row['export']}`: {row['refused']}")
            else:
                before, after = (100 * row[when]["accuracy"] for when in ("before", "after"))
                mine, *others = row["us"]
                cells += [f"{row['bytes']:,}", f"{after:.2f} %", f"{after - before:+.2f}", f"{mine:,.1f}"]
                cells += [f"{others[0]:,.1f}", f"{others[0] / mine:.1f}×"] if others else ["", ""]
                if "dense_refused" in row:
                    refused.append(f"- {network}, dense, `{row['export']}`: {row['dense_refused']}")
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *refused] if refused else lines


def store(out: Path, found: dict, name: str, rows: object) -> None:
    """Put rows among those that were found, and these into their file."""
    versions = dict[str, str]()
    for one in VERSIONS:
        with suppress(PackageNotFoundError):
            versions[one] = version(one)
    found[name] = {"rows": rows, "versions": versions}
    write_atomically(out, (json.dumps(found, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["speed", "exports", "ensemble", "everywhere"])
    parser.add_argument("source", nargs="?", type=Path, help="a .pcn file, a run folder, or one of NETWORKS")
    parser.add_argument("--dense", type=Path, help="run folder of the original network")
    parser.add_argument("--members", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--exports", nargs="+", choices=ANYWHERE, help="of everywhere; default: all")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--batches", default="1,16,256")
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--name", help="of the rows; default: that of the source")
    parser.add_argument("--out", type=Path, default=Path("docs/results/deploy.json"))
    parser.add_argument("--table", action="store_true", help="print the Markdown tables of --out and stop")
    parser.add_argument("--smoke", action="store_true", help="everything for a tiny network")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    networks = {name: (RESULTS / file, *more) for name, (file, *more) in NETWORKS.items()}
    with tempfile.TemporaryDirectory() as place:
        if options.smoke:
            if find_spec("ziglang") is None:
                del EXPORTS["model.wasm"]
            config = FitConfig(prior="horseshoe", hidden=(12,), epochs=2, limit=200, device="cpu", threads=1)
            run, file = fit_run(config, Path(place) / "run"), Path(place) / "run" / "network.pcn"
            compress_run(run.posterior, run.splits(), file, Goal(sparsity=0.5), passes=0)
            asked = [("speed", file), ("exports", file), ("ensemble", run.path), ("everywhere", "tiny")]
            options.seconds, options.members, networks = 0.01, [2], {"tiny": (file, "digits", "mlp")}
        elif options.what == "everywhere":
            asked = [("everywhere", str(one)) for one in ([options.source] if options.source else networks)]
        else:
            asked = [] if options.table or not options.what else [(options.what, options.source)]
        for what, source in asked:
            name = what if what == "everywhere" else f"{what} {options.name or source.name}"
            if what == "everywhere":
                rows = found.get(name, {"rows": {}})["rows"]
                names = options.exports or list(ANYWHERE)
                rows[source] = [row for row in rows.get(source, []) if row["export"] not in names]
                for row in everywhere(*networks[source], options.data_dir, options.seconds, names):
                    rows[source] = sorted([*rows[source], row], key=lambda row: list(ANYWHERE).index(row["export"]))
                    store(options.out, found, name, rows)
            elif what == "speed":
                (told,) = measure([source], options.dense, options.batches, options.seconds, threads=1)
                rows = kept(told.to_dict() | {"file": source.name})
            elif what == "exports":
                rows = exports(source, options.data_dir)
            else:
                rows = ensembles(source, options.members, options.data_dir)
            store(options.out, found, name, rows)
    tables = {
        "speed": speed_table,
        "exports": exports_table,
        "ensemble": ensemble_table,
        "everywhere": everywhere_table,
    }
    for name, told in found.items():
        print("\n".join([f"<!-- {name} -->", *tables[name.split()[0]](told["rows"]), ""]))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "examples"))
    run_script(main)
