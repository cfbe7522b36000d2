"""Peak memory of every command on large networks, beside what its guard says before it begins.

    python scripts/bench_memory.py [--hidden 4200,4500] [--only CASE ...] [--json docs/results/memory.json]
    python scripts/bench_memory.py --small       one of each kind, 2.5 million weights: about two minutes

Every case runs in a process of its own. `growth` is the peak of resident memory, in MiB, from the moment the guard
looks: what the guard speaks of; `ratio` is its estimate over that. `x` is the growth less that of a tiny network, in
multiples of the network's float32 size. For commands on a run one is made without a fit: random features, a last layer
that is trained, spreads drawn. Everything has one thread, `--threads` for commands.

    fit:PRIOR:eager|captured[:checkpoints]    two epochs; with checkpoints after each
    resume:PRIOR:eager                        the same, interrupted and gone on with
    inspect:horseshoe                         of a run with scales of groups
    evaluate, inspect, compress[:HOW]         of a run with a Gaussian posterior; HOW is sparsity, lambda,
                                              compensated, finetune, weights (a network of somebody else's)
"""

import argparse
import importlib
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pyro_compress.cli.commands import run_script
from pyro_compress.deploy.memory import high_water_mib
from pyro_compress.provenance import Provenance

MIB = 1 << 20
PRIORS = ("gaussian", "log-uniform", "horseshoe", "normal-jeffreys")
FITS = [f"fit:{prior}:{mode}" for prior in PRIORS for mode in ("eager", "captured")]
SMALL = "1500,1600"
TINY = "16,16"


def resident_mib() -> float:
    """Resident memory of this process now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Watched:
    """Stands where the commands ask their guard: notes what it says and what is resident by then."""

    def __init__(self) -> None:
        self.said, self.at = 0.0, 0.0

    def __call__(self, needed: dict[str, int], *_: Any) -> None:
        if self.said:
            return  # a part of what was told of before
        self.said, self.at = sum(needed.values()) / MIB, resident_mib()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew


def fit(case: list[str], hidden: str, batch: int, folder: Path) -> list[str]:
    """Arguments of a fit of two epochs."""
    _, prior, mode, *more = case
    every = "1" if "checkpoints" in more or case[0] == "resume" else "100"
    return [
        "fit", "--prior", prior, "--data", "digits", "--hidden", hidden, "--epochs", "2", "--pretrain-epochs", "0",
        "--batch-size", str(batch), "--threads", "1", "--checkpoint-epochs", every, "--out", str(folder / "run"),
        "--compile", "on" if mode == "captured" else "off",
    ]  # fmt: skip


def made_run(hidden: str, path: Path, prior: str = "gaussian") -> None:
    """A run folder of a network that knows the digits, with a posterior of this prior's, made without a fit."""
    import pyro_compress as pc
    from pyro_compress.bayes.extract import moments
    from pyro_compress.bayes.guides import build_guide, starts_of
    from pyro_compress.bayes.layers import bayes_layers
    from pyro_compress.bayes.marginals import write_marginals
    from pyro_compress.bayes.model import classifier
    from pyro_compress.graph.capture import capture
    from pyro_compress.runs.config import config_toml
    from pyro_compress.runs.posterior_file import write_posterior
    from pyro_compress.types import Posterior

    splits = pc.load_splits("digits")
    asked = pc.FitConfig(prior=prior, data="digits", hidden=tuple(map(int, hidden.split(","))), epochs=2)
    config = pc.resolve(asked, len(splits.train))
    net = pc.build_net("mlp", splits.input_shape, 10, config.hidden)
    with torch.no_grad():
        features = net[:-1](splits.train.x)
    optimizer = torch.optim.Adam(net[-1].parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net[-1](features), splits.train.y).backward()
        optimizer.step()
    tensors = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    model = classifier(pc.bayesianize(net, pc.PRIORS[prior]), len(splits.train))
    guide = build_guide("mean-field", model, starts_of(model.net, tensors, None), 0.0, ())
    with torch.no_grad():
        for log_scale in guide.log_scale.values():
            log_scale.add_(torch.randn_like(log_scale))
    layers = {layer.shape.name: moments(layer.shape, layer.prior, guide) for layer in bayes_layers(model.net)}
    dense = {name: tensor for name, tensor in tensors.items() if name not in layers}
    path.mkdir()
    (path / "config.toml").write_text(config_toml(replace(config, data_dir=""), splits, [], 1))
    with (path / "posterior.safetensors").open("wb") as file:
        graph, criterion = capture(net, splits.input_shape), pc.PRIORS[prior].criterion
        write_posterior(file, Posterior(graph, layers, dense, criterion, Provenance(config.provenance)))
    with (path / "guide.safetensors").open("wb") as file:
        write_marginals(file, model.net, guide)
    torch.save(tensors, path.parent / "net.pt")
    (path.parent / "hidden").write_text(hidden)


def compressed(*options: str) -> Callable[[Path], list[str]]:
    """Arguments of `compress`."""
    return lambda folder: [
        "compress", str(folder / "run"), "--out", str(folder / "network.pcn"), "--json", "--reorder", "0", *options
    ]  # fmt: skip


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "evaluate": lambda folder: ["evaluate", str(folder / "run"), "--json"],
    "inspect": lambda folder: ["inspect", str(folder / "run"), "--json"],
    "inspect:horseshoe": lambda folder: ["inspect", str(folder / "run"), "--json"],
    "compress": compressed(),
    "compress:sparsity": compressed("--sparsity", "0.8", "--relative-step", "0.25"),
    "compress:lambda": compressed("--sparsity", "0.5", "--relative-step", "0.25", "--lambda", "1"),
    "compress:compensated": compressed("--rounding", "compensated"),
    "compress:finetune": compressed(
        "--sparsity", "0.9", "--finetune", "1", "--masked-epochs", "0", "--finetune-lambda", "1"
    ),
    "compress:weights": lambda folder: [
        "compress", "--net", "mlp", "--hidden", (folder / "hidden").read_text(), "--init", str(folder / "net.pt"),
        "--data", "digits", "--out", str(folder / "network.pcn"), "--json",
        "--sparsity", "0.5", "--relative-step", "0.25",
    ],
}  # fmt: skip
CASES = [*FITS, "fit:gaussian:eager:checkpoints", "resume:gaussian:eager", *COMMANDS]
FEW = ["fit:gaussian:eager:checkpoints", "fit:horseshoe:eager", *COMMANDS]


def one(case: str, hidden: str, batch: int, folder: Path, threads: int) -> dict[str, Any]:
    """Run one case in this process."""
    from pyro_compress.cli.main import main as command
    from pyro_compress.runs import budget, command_budget

    if case in COMMANDS:
        arguments = [*COMMANDS[case](folder), "--threads", str(threads)]
    else:
        arguments = fit(case.split(":"), hidden, batch, folder)
    if case.startswith("resume"):
        interrupted(arguments)
        arguments = ["fit", "--resume", str(folder / "run")]
    watched, began, busy = Watched(), time.perf_counter(), time.process_time()
    budget.require = command_budget.require = watched
    command(arguments, standalone_mode=False)
    return {
        "growth_mib": high_water_mib() - watched.at, "estimate_mib": watched.said,
        "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy,
    }  # fmt: skip


def interrupted(arguments: list[str]) -> None:
    """A fit that stops after its first checkpoint, in a process of its own."""
    code = (
        "import sys; from pyro_compress.training import checkpoint as c; from pyro_compress.cli.main import main; "
        "w = c.write\ndef write(*a): w(*a); raise KeyboardInterrupt\nc.write = write\nmain(sys.argv[1:])"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)


def fresh(arguments: list[str]) -> None:
    """Run this script in an interpreter of its own and print what it prints."""
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stderr
        for line in child.stdout:
            print(line, end="", flush=True)
        told = child.stderr.read().strip().splitlines()
    if child.returncode:
        raise ValueError(told[-1].removeprefix("Error: ") if told else "the cases ended without a word")


def forked(work: Callable[[], Any], log: Path) -> Any:
    """What `work` gives, as JSON, in a process that has what commands import before their guard looks, and no more."""
    for module in ("cli.main", "compression.pipeline", "runs.run", "runs.evaluation", "inspection.summary"):
        importlib.import_module(f"pyro_compress.{module}")
    out = log.with_suffix(".json")
    child = os.fork()
    if not child:
        code = 1
        try:
            for descriptor in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
            out.write_text(json.dumps(work()))
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise ValueError((log.read_text().strip().splitlines() or ["killed"])[-1])
    return json.loads(out.read_text())


def measured(case: str, hidden: str, options: argparse.Namespace) -> dict[str, Any]:
    """One case in a process of its own."""
    sizes = [64, *map(int, hidden.split(",")), 10]
    weights = sum((before + 1) * after for before, after in itertools.pairwise(sizes))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if case in COMMANDS:
            prior = "horseshoe" if case.endswith(":horseshoe") else "gaussian"
            forked(lambda: made_run(hidden, folder / "run", prior), folder / "make.log")
        row = forked(lambda: one(case, hidden, options.batch, folder, options.threads), folder / "one.log")
    told = {"case": case, "hidden": hidden, "batch": options.batch, "threads": options.threads, "weights": weights}
    return told | row | {"estimate_ratio": row["estimate_mib"] / row["growth_mib"]}


def told(row: dict[str, Any], tiny: dict[str, Any] | None) -> dict[str, Any]:
    """A row with what it holds beyond a tiny network, in multiples of its float32 size; printed."""
    size = 4 * row["weights"] / MIB
    row |= {"float32_mib": size, "x": (row["growth_mib"] - tiny["growth_mib"]) / size if tiny else None}
    numbers = f"{row['weights']:12,}{row['growth_mib']:9.0f}{row['estimate_mib']:9.0f}{row['estimate_ratio']:7.2f}"
    times = "      -" if row["x"] is None else f"{row['x']:7.1f}"
    print(f"{row['case']:<34}{numbers}{times}{row['seconds']:7.0f}{row['cpu_seconds']:7.0f}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", default="4200,4500", help="19.2 million weights; digits in, 10 classes out")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--only", nargs="+", metavar="CASE", help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="of commands")
    parser.add_argument("--small", action="store_true", help=f"one of each kind at {SMALL}")
    parser.add_argument("--json", type=Path, help="rows are added to those it holds")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, one fit")
    parser.add_argument("--fresh", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.fresh:  # forks come from a process that has trained nothing
        fresh([*sys.argv[1:], "--fresh"])
        return
    if options.smoke:
        options.hidden, options.only = TINY, ["fit:gaussian:eager:checkpoints"]
    if options.small:
        options.hidden, options.only = SMALL, options.only or FEW
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    names = ("growth", 9), ("guard", 9), ("ratio", 7), ("x", 7), ("s", 7), ("cpu s", 7)
    print(f"{machine}\n{'case':<34}{'weights':>12}" + "".join(f"{name:>{width}}" for name, width in names))
    for case in options.only or CASES:
        tiny = measured(case, TINY, options) if case in COMMANDS and options.hidden != TINY else None
        row = told(measured(case, options.hidden, options), tiny) | {"machine": machine}
        if options.json:
            rows = json.loads(options.json.read_text()) if options.json.is_file() else []
            keys = ("case", "hidden", "batch", "threads")
            rows = [old for old in rows if any(old[key] != row[key] for key in keys)]
            options.json.write_text(json.dumps([*rows, row], indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
