"""What a CUDA device does with this package: right, how fast, in how much memory. Under ten minutes.

    bash scripts/check_cuda.sh [--minutes 10] [--only agreement step] [--device cpu --smoke]

Sections, in this order; one that would begin after the minutes are over is left out, and that is said:

  doctor     every way of working, a tiny fit each
  agreement  one step of every prior and estimator from the same noise on both devices: largest difference of a
             gradient, relative to the largest of its tensor; a file decoded and run on both
  mnist      50 epochs of Bayes by Backprop on MNIST, 784-500-500-10, batch 100: seconds of the whole command
  step       SVI steps as multiples of a fused-Adam step on point weights of the same network
  images     VGG-16 and ResNet-20 at CIFAR-10's size: images per second of plain training and of the grouped priors, in
             float32 and bfloat16, and the device's peak memory
  kernels    of one captured step: how many the device runs, and the share of those that take longest

The exit code is 1 where something fails or differs by more than rounding.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from bench_step import ESTIMATORS, Key, Subject, clock_of, minibatch, timed, variants
from bench_step import state as state_of
from torch.profiler import ProfilerActivity, profile

from pyro_compress.bayes.capture import capture_graph, new_scalars, set_scalars
from pyro_compress.bayes.noise import lift_noise
from pyro_compress.bayes.step import Rule
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.pipeline import compress_run, load
from pyro_compress.machine import GIB, prepare
from pyro_compress.runs.doctor import doctor
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.training.history import Epoch

ROUNDING = 1e-3
"""Largest relative difference of a step's changes between two devices: their sums run in other orders."""


def check_doctor(device: str, options: argparse.Namespace) -> dict[str, Any]:
    found = doctor(
        device, on_check=lambda check: print(f"  {check.name:<28}{check.outcome:<9}{check.note}", flush=True)
    )
    return found.to_dict() | {"failed": [check.name for check in found.failed]}


def gradients(of: Subject, prior: str, estimator: str, noise: tuple[torch.Tensor, torch.Tensor] | None) -> Any:
    """Gradient of every parameter in one captured step, uncompiled, and the noise that it was given.

    As Adam's first moment has it; a spread that moves by natural gradients has none, its change stands in.
    """
    made = state_of(of, prior, estimator)
    objective, trained, state = made.objective, made.trained, made.state
    scalars = new_scalars(trained, of.x.device)
    graph = capture_graph(objective, trained, Rule(), state, scalars, *of.data)
    lifted = lift_noise(graph, of.x.device)
    if noise is None:
        lifted.fill_reference()
    else:
        for buffer, values in zip((lifted.normal, lifted.coin), noise, strict=True):
            buffer.copy_(values)
    natural = next((one.natural for one in trained if one.natural), None)
    set_scalars(scalars, 1, 1.0, 1.0, natural)
    before = [value.clone() for value in state.parameters]
    with torch.no_grad():
        moving = (state.parameters, state.first, state.second, state.buffers, state.noted)
        graph(*moving, scalars, *of.data, lifted.normal, lifted.coin)
    moved = zip(state.first, state.parameters, before, strict=True)
    found = [(first if first.numel() else after - value).cpu() for first, after, value in moved]
    return found, (lifted.normal.cpu(), lifted.coin.cpu())


def check_agreement(device: str, options: argparse.Namespace) -> dict[str, Any]:
    net, rows = ("16" if options.smoke else "lenet-5-caffe"), dict[str, float]()
    for prior, estimators in ESTIMATORS.items():
        for estimator in (*estimators, "natural"):
            here, noise = gradients(minibatch(net, 32), prior, estimator, None)
            there, _ = gradients(minibatch(net, 32, device=device), prior, estimator, noise)
            gap = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(here, there, strict=True))
            rows[f"{prior}, {estimator}"] = gap
            print(f"  {prior:<17}{estimator:<10}{gap:10.1e}", flush=True)
    rows["a decoded file"] = decoded(device)
    print(f"  a decoded file             {rows['a decoded file']:10.1e}")
    return {"gaps": rows, "failed": [name for name, gap in rows.items() if not gap <= ROUNDING]}


def decoded(device: str) -> float:
    """Largest difference of a fitted, decoded network's outputs on both devices, relative to the largest output."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run = fit_run(FitConfig(hidden=(20,), epochs=3, device=device, seed=1), place / "run")
        splits = run.splits()
        compress_run(run.posterior, splits, place / "a.pcn", Goal(sparsity=0.5), device=device)
        x, network = splits.validation.x, load(place / "a.pcn")
        with torch.no_grad():
            here, there = network(x), network.to(device)(x.to(device)).cpu()
    return float((here - there).abs().max() / here.abs().max())


def check_mnist(device: str, options: argparse.Namespace) -> dict[str, Any]:
    data, epochs = ("digits", 2) if options.smoke else ("mnist", 50)
    rows = {}
    for prior in ("none", "gaussian", "spike-and-slab"):
        bayes = {} if prior == "none" else {"pretrain_epochs": 0, "estimator": "weight", "compile": "on"}
        config = FitConfig(
            prior=prior, data=data, data_dir=os.environ.get("PYRO_COMPRESS_DATA", ""), epochs=epochs, batch_size=100,
            device=device, **bayes,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            started, epochs_seen = time.perf_counter(), list[Epoch]()
            fit_run(config, Path(folder) / "run", on_epoch=epochs_seen.append)
            seconds = time.perf_counter() - started
        first, last = epochs_seen[0], epochs_seen[-1]
        each, error = (last.seconds - first.seconds) / (len(epochs_seen) - 1), 1 - last.validation_accuracy
        rows[prior] = {"seconds": seconds, "seconds_per_epoch": each, "validation_error": error}
        print(f"  {prior:<17}{seconds:8.1f} s, {each:.3f} s an epoch, validation error {error:.2%}", flush=True)
    return {"epochs": epochs, "data": data, "rows": rows}


def measured(of: Subject, chosen: dict[Key, Callable[[], Callable[[], object]]], device: str, rounds: int) -> list[Any]:
    """Milliseconds and ratios to the first; one that fails says why."""
    runs, failed = {}, {}
    for key, build in chosen.items():
        try:
            runs[key] = build()
            runs[key]()
        except Exception as error:  # whatever a driver or a compiler says
            failed[key] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    times = timed(runs, rounds, 5, clock_of(device))
    first = times.get(next(iter(chosen)))
    base = sorted(first)[rounds // 2] if first else float("nan")
    rows = []
    for key, found in times.items():
        ms = sorted(found)[rounds // 2]
        rows.append({"key": ":".join(key), "ms": ms, "ratio": ms / base, "per_second": 1e3 * len(of.y) / ms})
        print(f"  {of.name:<14}{of.precision:<10}{':'.join(key):<36}{ms:9.3f} ms{ms / base:8.2f}", flush=True)
    for key, why in failed.items():
        rows.append({"key": ":".join(key), "failed": why})
        print(f"  {of.name:<14}{of.precision:<10}{':'.join(key):<36}{why}", flush=True)
    return rows


def check_step(device: str, options: argparse.Namespace) -> dict[str, Any]:
    of = minibatch("16" if options.smoke else "500", 100, device=device)
    rows = measured(of, variants(of, list(ESTIMATORS)), device, 3 if options.smoke else 15)
    return {"rows": rows, "failed": [row["key"] for row in rows if "failed" in row]}


IMAGES = ("none:adam:eager", "none:adam:captured", "normal-jeffreys:weight:captured", "horseshoe:weight:captured")


def check_images(device: str, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for net in ("lenet-5-caffe",) if options.smoke else ("resnet-20", "vgg-16"):
        for precision in ("float32", "bfloat16"):
            of = minibatch(net, 8 if options.smoke else 128, precision, device)
            every, rows = variants(of, ["normal-jeffreys", "horseshoe"]), list[Any]()
            for key in IMAGES:
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                build = every[tuple(key.split(":"))]  # type: ignore[index]
                (row,) = measured(of, {tuple(key.split(":")): build}, device, 3 if options.smoke else 9)  # type: ignore[dict-item]
                peak = torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None
                rows.append(row | {"peak_gib": peak})
            for row in rows:
                row["ratio"] = row.get("ms", float("nan")) / rows[0].get("ms", float("nan"))
            found[f"{net}, {precision}"] = rows
    return {"rows": found, "failed": [row["key"] for rows in found.values() for row in rows if "failed" in row]}


def check_kernels(device: str, options: argparse.Namespace) -> dict[str, Any]:
    of, found = minibatch("16" if options.smoke else "500", 100, device=device), {}
    every = variants(of, ["gaussian", "horseshoe"])
    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    for key in (("none", "adam", "eager"), ("gaussian", "weight", "captured"), ("horseshoe", "local", "captured")):
        run = every[key]()
        for _ in range(3):
            run()
        with profile(activities=[kind]) as seen:
            run()
            if device == "cuda":
                torch.cuda.synchronize()
        events = seen.key_averages()
        spent = {e.key: e.self_device_time_total if device == "cuda" else e.self_cpu_time_total for e in events}
        number, total = sum(e.count for e in events), sum(spent.values())
        longest = sorted(spent, key=lambda name: -spent[name])[:8]
        found[":".join(key)] = {
            "kernels": number, "microseconds": total, "longest": {name: spent[name] for name in longest},
        }  # fmt: skip
        print(f"  {':'.join(key):<36}{number:6} kernels, {total:9.0f} µs; longest: {longest[0][:60]}", flush=True)
    return found


SECTIONS: dict[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {
    "doctor": check_doctor,
    "agreement": check_agreement,
    "mnist": check_mnist,
    "step": check_step,
    "images": check_images,
    "kernels": check_kernels,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script")
    parser.add_argument("--minutes", type=float, default=10.0, help="no section begins after so many")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", type=Path, help="written anew after every section")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, few rounds")
    options = parser.parse_args()
    device, started = prepare(options.device), time.perf_counter()
    pyro.enable_validation(False)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    document: dict[str, Any] = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "sections": {}}
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    bad, left = list[str](), list[str]()
    for section in options.only:
        spent = time.perf_counter() - started
        if spent > 60 * options.minutes:
            document["sections"][section] = {"left out": f"{spent:.0f} s were over"}
            print(f"{section}: left out, {spent:.0f} s are over")
            left.append(section)
            continue
        print(f"{section}, after {spent:.0f} s", flush=True)
        try:
            found = SECTIONS[section](device, options)
        except Exception as error:  # the other sections still say something
            found = {"failed": [f"{type(error).__name__}: {error}"]}
            print(f"  failed: {found['failed'][0]}")
        found["seconds"] = time.perf_counter() - started - spent
        bad += [f"{section}: {what}" for what in found.get("failed", [])]
        document["sections"][section] = found
        if options.json:
            options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(
        f"{time.perf_counter() - started:.0f} s; " + (f"failed: {'; '.join(bad)}" if bad else "what was tried is well")
    )
    if left:
        print(f"left out: {', '.join(left)}; --only {' '.join(left)} tries them")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    run_script(main)
