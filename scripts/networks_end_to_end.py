"""Whole networks through the whole program, and a trained network compressed after training: docs/results/trained.md.

    python scripts/networks_end_to_end.py networks --nets resnet-18 vgg-16 --batch 32
    python scripts/networks_end_to_end.py post-training --data fashion-mnist --net lenet-300-100 --data-dir data

`networks` fits each for a few SVI steps on generated images of CIFAR-10's shape, prunes it to `--sparsity`, writes,
decodes, exports to ONNX and compares the outputs. Seconds are those of the processor (one thread), peak memory is that
of a process of its own. `post-training` trains a network as anybody would, writes its weights as safetensors, and gives
those and the data to `compress`. Rows go to `--json`, their tables to the marked places of `--document`.
`--smoke` runs a tiny network through either.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyro_compress.cli.commands import run_script

LEVELS = np.linspace(-1, 1, 32)


def images(path: Path, examples: int, seed: int = 0) -> None:
    """Write learnable images (3, 32, 32) of ten classes as uint8: a wave per class and channel, and noise."""
    generator = np.random.default_rng(seed)
    waves = generator.uniform(1, 6, (10, 3, 2)), generator.uniform(0, 6.3, (10, 3))
    across = waves[0][:, :, :1] * LEVELS
    down = waves[0][:, :, 1:] * LEVELS
    patterns = np.sin(across[:, :, None, :] + down[:, :, :, None] + waves[1][:, :, None, None])
    arrays = {}
    for part, count in (("train", examples), ("test", max(examples // 4, 40))):
        y = np.arange(count) % 10
        x = 128 + 50 * patterns[y] + generator.normal(0, 40, (count, 3, 32, 32))
        arrays |= {f"x_{part}": x.clip(0, 255).astype(np.uint8), f"y_{part}": y}
    np.savez(path, **arrays)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def end_to_end(name: str, options: argparse.Namespace, folder: Path) -> dict:
    """One network: fit, compress, decode, export, verify."""
    from pyro_compress.compression.pipeline import compress_run
    from pyro_compress.deploy.export import export
    from pyro_compress.pcn import file
    from pyro_compress.runs.run import fit_run
    from pyro_compress.settings import FitConfig, Goal
    from pyro_compress.training.history import Epoch
    from pyro_compress.training.minibatches import batch_count

    images(folder / "images.npz", options.examples)
    marks, epochs = [time.process_time()], list[Epoch]()

    def note(epoch: Epoch) -> None:
        epochs.append(epoch)
        marks.append(time.process_time())

    config = FitConfig(
        prior="log-uniform", net=name, data=str(folder / "images.npz"), batch_size=options.batch, device="cpu",
        threads=1, epochs=options.epochs + options.pretrain_epochs, pretrain_epochs=options.pretrain_epochs,
        compile="off",
    )  # fmt: skip
    run = fit_run(config, folder / "run", on_epoch=note)
    splits, fit_peak = run.splits(), peak_mib()
    steps = options.epochs * batch_count(len(splits.train), options.batch)
    report, compressing = timed(
        lambda: compress_run(run.posterior, splits, folder / "a.pcn", Goal(sparsity=options.sparsity))
    )
    _, decoding = timed(lambda: file.read(folder / "a.pcn"))
    exported, exporting = timed(lambda: export(folder / "a.pcn", folder / "a.onnx"))
    return {
        "net": name, "parameters": report.parameters_total, "batch": options.batch, "svi_steps": steps,
        "train_examples": len(splits.train), "seconds_per_step": (marks[-1] - marks[-1 - options.epochs]) / steps,
        "fit_peak_mib": fit_peak, "validation_fitted": epochs[-1].validation_accuracy, "sparsity": report.sparsity,
        "validation_file": report.validation_after.accuracy, "units_before": sum(report.units_before[1:]),
        "units_kept": sum(report.units_kept[1:]), "file_bytes": report.file_bytes, "ratio": report.ratio,
        "compress_seconds": compressing, "decode_seconds": decoding, "export_seconds": exporting,
        "onnx_bytes": exported.bytes, "onnx_difference": exported.difference, "peak_mib": peak_mib(),
    }  # fmt: skip


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds of the processor that it took."""
    started = time.process_time()
    return call(), time.process_time() - started


def in_process(name: str, options: argparse.Namespace) -> dict:
    """`end_to_end` in a process of its own, for its peak memory."""
    passed = [
        f"--{key}={getattr(options, key)}" for key in ("epochs", "pretrain_epochs", "batch", "examples", "sparsity")
    ]
    command = [sys.executable, __file__, "networks", "--one", name, *(part.replace("_", "-", 1) for part in passed)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{name}: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def post_training(options: argparse.Namespace, folder: Path) -> list[dict]:
    """Train, write the weights as safetensors, compress them by the command line in every way."""
    from safetensors.torch import save_file

    from pyro_compress.runs.run import fit_run
    from pyro_compress.settings import FitConfig

    widths = {"hidden": tuple(map(int, options.hidden.split(",")))} if options.hidden else {}
    config = FitConfig(
        prior="none", net=options.net, data=options.data, data_dir=options.data_dir, device="cpu", threads=1,
        epochs=options.train_epochs, **widths,
    )  # fmt: skip
    trained = fit_run(config, folder / "trained").posterior.tensors
    save_file({name: tensor.contiguous() for name, tensor in trained.items()}, folder / "weights.safetensors")
    rows = []
    for how, finetune in (("laplace", 0), ("svi", 0), ("laplace", options.finetune)):
        out = folder / f"{how}-{finetune}.pcn"
        command = ["--net", options.net, "--init", str(folder / "weights.safetensors"), "--data", options.data]
        command += ["--data-dir", options.data_dir, "--posterior", how, "--out", str(out), "--json", "--threads", "1"]
        command += ["--hidden", options.hidden] if options.hidden else []
        command += ["--finetune", str(finetune)] if finetune else []
        command += ["--epochs", str(options.epochs)] if options.epochs and how == "svi" else []
        told, seconds = ran(command)
        report = json.loads(told)
        names = ("test_accuracy_before", "test_accuracy_after", "validation_accuracy_before",
                 "validation_accuracy_after", "ratio", "file_bytes", "parameters_kept", "parameters_total")  # fmt: skip
        rows.append(
            {"net": options.net, "data": options.data, "posterior": how, "finetune_epochs": finetune}
            | {name: report[name] for name in names}
            | {"cpu_minutes": seconds / 60, "wall_minutes": report["seconds"] / 60}
        )
    return rows


def ran(arguments: list[str]) -> tuple[str, float]:
    """Output of `pyro-compress compress`, and the seconds of the processor that it took."""
    from click.testing import CliRunner

    from pyro_compress.cli.main import main

    result, seconds = timed(lambda: CliRunner().invoke(main, ["compress", *arguments]))
    if result.exit_code:
        raise SystemExit(result.stderr)
    return result.stdout, seconds


def tables(rows: dict[str, list[dict]]) -> dict[str, str]:
    """Markdown tables by the name of their place in the document."""
    found = {}
    if networks := rows.get("networks"):
        lines = ["| network | parameters | batch | SVI steps | s/step | peak MiB | pruned | units | file | ratio |"
                 " compress s | decode s | ONNX off by |", "|---" * 13 + "|"]  # fmt: skip
        lines += [
            f"| {r['net']} | {r['parameters']:,} | {r['batch']} | {r['svi_steps']} | {r['seconds_per_step']:.2f} "
            f"| {r['fit_peak_mib']:,.0f} | {100 * r['sparsity']:.0f} % | {r['units_before']:,} → {r['units_kept']:,} "
            f"| {r['file_bytes']:,} B | {r['ratio']:.1f} | {r['compress_seconds']:.0f} | {r['decode_seconds']:.1f} "
            f"| {r['onnx_difference']:.1g} |"
            for r in networks
        ]
        found["networks"] = "\n".join(lines)
    if trained := rows.get("post-training"):
        columns = ("posterior", "fine-tuning", "test accuracy before", "after", "weights kept", "file", "ratio")
        lines = ["| " + " | ".join((*columns, "CPU minutes")) + " |", "|---" * 8 + "|"]
        said = [f"{r['finetune_epochs']} epochs, λ searched" if r["finetune_epochs"] else "none" for r in trained]
        lines += [
            f"| {r['posterior']} | {tuning} "
            f"| {100 * r['test_accuracy_before']:.2f} % | {100 * r['test_accuracy_after']:.2f} % "
            f"| {100 * r['parameters_kept'] / r['parameters_total']:.1f} % | {r['file_bytes']:,} B | {r['ratio']:.1f} "
            f"| {r['cpu_minutes']:.1f} |"
            for r, tuning in zip(trained, said, strict=True)
        ]
        found["post-training"] = "\n".join(lines)
    return found


def put(document: Path, rows: dict[str, list[dict]]) -> None:
    """Put the tables between their marks, `<!-- table NAME -->` and `<!-- end -->`."""
    text = document.read_text()
    for name, table in tables(rows).items():
        before, mark, rest = text.partition(f"<!-- table {name} -->\n")
        if mark:
            text = before + mark + "\n" + table + "\n\n" + rest[rest.index("<!-- end -->") :]
    document.write_text(text)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["networks", "post-training"], nargs="?", default="networks")
    parser.add_argument("--nets", nargs="+", default=["resnet-18", "vgg-16"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=int, default=1000, help="training images, validation included")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pretrain-epochs", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0, help="SVI epochs; default 4, or the command's own")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--net", default="lenet-300-100")
    parser.add_argument("--hidden", default="", help="widths of the hidden layers, where --net takes them")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--train-epochs", type=int, default=10)
    parser.add_argument("--finetune", type=int, default=10)
    parser.add_argument("--json", type=Path, default=Path("docs/results/networks.json"))
    parser.add_argument("--document", type=Path, help="Markdown file whose tables are renewed")
    parser.add_argument("--smoke", action="store_true", help="tiny networks through both parts")
    options = parser.parse_args()
    if options.smoke:
        options.nets, options.examples, options.epochs, options.batch = ["lenet-5-relu"], 300, 1, 60
        options.data, options.net, options.train_epochs, options.finetune = "digits", "mlp", 3, 1
        options.hidden = "30,20"
    with tempfile.TemporaryDirectory() as folder:
        if options.one:
            print(json.dumps(end_to_end(options.one, options, Path(folder))))
            return
        rows = json.loads(options.json.read_text()) if options.json.exists() and not options.smoke else {}
        if options.smoke or options.what == "post-training":
            rows["post-training"] = post_training(options, Path(folder))
        if options.smoke or options.what == "networks":
            options.epochs = options.epochs or 4
            rows["networks"] = [in_process(name, options) for name in options.nets]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.document:
        put(options.document, rows)
    print("\n\n".join(tables(rows).values()))


if __name__ == "__main__":
    run_script(main)
