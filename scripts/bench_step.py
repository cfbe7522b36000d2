"""What one SVI step costs, as a multiple of a fused-Adam step on point weights of the same network.

    python scripts/bench_step.py [--hidden 500 1200] [--net resnet-20] [--batch 100 1000] [--json FILE] [--smoke]

`--hidden` are widths of 784-H-H-10, `--net` names of built-in networks of images (CIFAR's, MNIST's of LeNets) or of 64
bytes of text, in the memory format and with the `--precision` of a fit. Adam's step has the same.

All variants of one network and batch size live in one process and are timed in turn, round after round; a row's time
is the median of its rounds, its ratio the median of the rounds' own ratios. Modes: `eager`, `captured` (one compiled
graph), `naive` (Pyro's AutoNormal and SVI.step); estimator `natural`: whole weights drawn, natural gradients in place
of Adam. Rows of the packages blitz-bayesian-pytorch and bayesian-torch appear where they are installed. state_bytes is
what lies between two steps of each parameter of the network: values and moments. peak_mib is the growth of resident
memory that building and running a variant causes in a process of its own: libraries, and in captured mode the compiler,
included (--no-memory leaves it out). `--only` picks rows:

    python scripts/bench_step.py --hidden 120 680 2790 9600 --batch 100 --only gaussian:weight:captured
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_compress.bayes.capture import captured
from pyro_compress.bayes.estimators import COARSE
from pyro_compress.bayes.layers import bayesianize
from pyro_compress.bayes.model import Likelihood, classifier
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.step import Rule, eager
from pyro_compress.bayes.train_state import TrainState, first_train_state
from pyro_compress.cli.commands import run_script
from pyro_compress.deploy.memory import high_water_mib
from pyro_compress.graph.capture import capture
from pyro_compress.machine import channels_last, prepare
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.outputs import with_columns
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.training.point import products

Run = Callable[[], object]
SIZE = 60_000
TEXT = ("lstm", "gru", "gpt")
TOKENS, BYTES = 64, 256
"""Length of what networks of tokens read, and how many kinds there are."""
ESTIMATORS = {
    "gaussian": ("weight", "local", "flipout"),
    "spike-and-slab": ("weight",),
    "log-uniform": ("weight", "local"),
    "normal-jeffreys": ("weight", "local"),
    "horseshoe": ("weight", "local"),
}


class Subject(NamedTuple):
    """What is timed: a width or a network's name, a minibatch of it, the precision of the products."""

    name: str
    x: Tensor
    y: Tensor
    precision: str = "float32"

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def network(self) -> nn.Module:
        return network(self.name).to(self.x.device)


def network(name: str) -> nn.Module:
    """784-H-H-10 of a width H, or a built-in network of images or tokens."""
    torch.manual_seed(0)
    if name in TEXT:
        return with_columns(build_net(name, (TOKENS,), BYTES, vocabulary=BYTES), (TOKENS,), (BYTES, TOKENS), "int64")
    if not name.isdecimal():
        return build_net(name, shape_of(name), 10)
    hidden = int(name)
    return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def shape_of(name: str) -> tuple[int, ...]:
    """Of one input."""
    if name.isdecimal():
        return (784,)
    return (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)


def title(name: str, precision: str) -> str:
    plain = f"784-{name}-{name}-10" if name.isdecimal() else name
    return plain if precision == "float32" else f"{plain}, {precision}"


def point(of: Subject, optimizer: Callable[..., torch.optim.Optimizer], compile: bool) -> Run:
    """Cross entropy on point weights."""
    net = of.network()
    update = optimizer(net.parameters())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with products(of.precision, x):
            outputs = net(x)
        return F.cross_entropy(outputs.float(), y)

    loss = torch.compile(loss) if compile else loss

    def step() -> None:
        update.zero_grad()
        loss(of.x, of.y).backward()
        update.step()

    return step


def state(of: Subject, prior: str, estimator: str) -> TrainState:
    """What one of ours works on, as `fit` makes it; the estimator `natural` is weight sampling by natural gradients."""
    natural = estimator == "natural"
    config = FitConfig(
        prior=prior, estimator="weight" if natural else estimator, optimizer="natural" if natural else "adam",
        lr=1e-3, lr_scale=1e-3, lr_group=1e-3, device=of.x.device.type,
        precision="float32" if of.precision == COARSE and estimator != "local" else of.precision,
    )  # fmt: skip
    net = of.network()
    graph = capture(net, tuple(of.x.shape[1:]), kind=str(of.x.dtype).removeprefix("torch."))
    task = "next-token" if of.y.dim() > 1 else "classification"
    return first_train_state(net, graph, Likelihood(task, SIZE), of.data, resolve(config, SIZE))


def state_bytes(name: str, prior: str, estimator: str) -> float | None:
    """Bytes per weight that lie between two steps: values and moments; None: not ours."""
    if prior == "none":
        return {"adam": 12.0, "sgd": 4.0}[estimator]
    if estimator not in (*ESTIMATORS[prior], "natural"):
        return None
    kept = state(minibatch(name, 2), prior, estimator).state
    parameters = sum(parameter.numel() for parameter in network(name).parameters())
    return sum(t.nbytes for t in (*kept.parameters, *kept.first, *kept.second)) / parameters


def variational(of: Subject, prior: str, estimator: str, mode: str) -> Run:
    """One of ours."""
    made = state(of, prior, estimator)
    build = captured if mode == "captured" else lambda *given: eager(*given[:4])
    step = build(made.objective, made.trained, Rule(), made.state, of.data)
    return lambda: step(of.x, of.y, 1.0, 1.0)


def naive(of: Subject) -> Run:
    """The same model with a Gaussian prior as Pyro's tutorials would fit it."""
    pyro.clear_param_store()
    model = classifier(bayesianize(of.network(), PRIORS["gaussian"]), SIZE)
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    return lambda: svi.step(*of.data)


def blitz(of: Subject) -> Run:
    hidden = int(of.name)
    from blitz.modules import BayesianLinear
    from blitz.utils import variational_estimator

    @variational_estimator
    class Net(nn.Sequential):
        pass

    net = Net(
        BayesianLinear(784, hidden), nn.ReLU(), BayesianLinear(hidden, hidden), nn.ReLU(), BayesianLinear(hidden, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        net.sample_elbo(of.x, of.y, nn.CrossEntropyLoss(), sample_nbr=1, complexity_cost_weight=1 / SIZE).backward()
        optimizer.step()

    return step


def intel(of: Subject) -> Run:
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    net = of.network()
    dnn_to_bnn(net, {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -4.0,
                     "type": "Reparameterization", "moped_enable": False, "moped_delta": 0.5})  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (F.cross_entropy(net(of.x), of.y) + get_kl_loss(net) / SIZE).backward()
        optimizer.step()

    return step


HEAD = f"{'prior':<17}{'estimator':<16}{'mode':<10}{'ms':>9}{'ratio':>8}{'MiB':>8}"
Key = tuple[str, str, str]
"""(prior, estimator, mode)."""


def variants(of: Subject, priors: list[str]) -> dict[Key, Callable[[], Run]]:
    """Everything that is timed for one network and batch size; the fused-Adam step comes first."""
    adam = lambda parameters: torch.optim.Adam(parameters, 1e-3, fused=True)  # noqa: E731
    sgd = lambda parameters: torch.optim.SGD(parameters, 0.1)  # noqa: E731
    found: dict[Key, Callable[[], Run]] = {
        ("none", "adam", "eager"): lambda: point(of, adam, False),
        ("none", "adam", "captured"): lambda: point(of, adam, True),
        ("none", "sgd", "eager"): lambda: point(of, sgd, False),
        ("gaussian", "auto-normal", "naive"): lambda: naive(of),
    }
    for prior in priors:
        for estimator in (*ESTIMATORS[prior], "natural"):
            for mode in ("eager", "captured"):
                found[prior, estimator, mode] = lambda p=prior, e=estimator, m=mode: variational(of, p, e, m)
    for other, package, build in (("blitz", "blitz", blitz), ("bayesian-torch", "bayesian_torch", intel)):
        try:
            __import__(package)
        except ImportError:
            continue
        found["gaussian", other, "eager"] = lambda build=build: build(of)
    return found


def minibatch(name: str, batch: int, precision: str = "float32", device: str = "cpu") -> Subject:
    generator = torch.Generator().manual_seed(1)
    if name in TEXT:
        x, y = torch.randint(BYTES, (2, batch, TOKENS), generator=generator).to(device)
        return Subject(name, x, y, precision)
    x = channels_last(torch.rand(batch, *shape_of(name), generator=generator).to(device))
    return Subject(name, x, torch.randint(10, (batch,), generator=generator).to(device), precision)


def timed(runs: dict[Key, Run], rounds: int, repeats: int, clock: Callable[[], float]) -> dict[Key, list[float]]:
    """Milliseconds per step, one number per round."""
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for key, run in runs.items():
            run()  # brings its own data back into the cache
            started = clock()
            for _ in range(repeats):
                run()
            times[key].append((clock() - started) / repeats * 1e3)
    return times


def clock_of(device: str, cpu_time: bool = False) -> Callable[[], float]:
    """Seconds; of a CUDA device, when it has done what it was given."""
    if device == "cpu":
        return time.thread_time if cpu_time else time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def peak_mib(of: Subject, key: Key) -> float:
    """Growth of resident memory while building and running one variant, in a fresh process."""
    one = ["--one", of.name, str(len(of.y)), *key]
    command = [sys.executable, __file__, *one, "--precision", of.precision]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def one(of: Subject, key: Key) -> None:
    """What `peak_mib` runs: prints MiB."""
    nn.Linear(10, 10)(torch.ones(10, 10)).sum().backward()  # libraries are loaded
    before = high_water_mib()
    run = variants(of, list(ESTIMATORS))[key]()
    for _ in range(3):
        run()
    print(high_water_mib() - before)


def bench(of: Subject, options: argparse.Namespace) -> list[dict]:
    name, batch = of.name, len(of.y)
    base_key = ("none", "adam", "eager")
    chosen = variants(of, options.priors)
    runs = {
        k: build() for k, build in chosen.items() if k == base_key or ":".join(k) in (options.only or [":".join(k)])
    }
    times = timed(runs, options.rounds, options.repeats, clock_of(options.device, options.cpu_time))
    base = times[base_key]
    rows = []
    for key, found in times.items():
        prior, estimator, mode = key
        rows.append({
            "network": title(name, of.precision), "batch": batch, "precision": of.precision,
            "prior": prior, "estimator": estimator, "mode": mode,
            "ms": statistics.median(found),
            "ratio": statistics.median(a / b for a, b in zip(found, base, strict=True)),
            "state_bytes": state_bytes(name, prior, estimator),
            "peak_mib": peak_mib(of, key) if options.memory and options.device == "cpu" else None,
        })  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """Markdown, one line per row."""
    last, key = ("bytes of state", "state_bytes") if "state_bytes" in rows[0] else ("MiB", "peak_mib")
    lines = [f"| network | batch | prior | estimator | mode | ms | × Adam | {last} |", "| --- " * 8 + "|"]
    for row in rows:
        memory = "" if row[key] is None else f"{row[key]:.0f}"
        cells = [row["network"], row["batch"], row["prior"], row["estimator"], row["mode"]]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['ms']:.2f} | {row['ratio']:.2f} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", nargs="+", type=int, default=None, help="default: 500 1200")
    parser.add_argument("--net", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16", COARSE), default=["float32"])
    parser.add_argument("--batch", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--priors", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--repeats", type=int, default=5, help="steps per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: peak memory is left out")
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, where others use the machine too")
    parser.add_argument("--only", nargs="+", metavar="PRIOR:ESTIMATOR:MODE", help="these rows only, beside the base")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out: much faster")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true", help="print the Markdown table of --json and stop")
    parser.add_argument("--smoke", action="store_true", help="one prior on a tiny network, two rounds")
    parser.add_argument(
        "--one", nargs=5, metavar=("NAME", "BATCH", "PRIOR", "ESTIMATOR", "MODE"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.json.read_text())))
        return
    options.device = prepare(options.device, options.threads)
    pyro.enable_validation(False)
    if options.one:
        name, batch, *key = options.one
        one(minibatch(name, int(batch), options.precision[0]), tuple(key))
        return
    if options.smoke:
        options.hidden, options.batch, options.rounds, options.repeats, options.memory = [16], [10], 2, 1, False
        options.only = options.only or [
            "gaussian:local:captured", "gaussian:natural:eager", "gaussian:auto-normal:naive",
        ]  # fmt: skip
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    rows = []
    widths = options.hidden or ([] if options.net else [500, 1200])
    for name, batch, precision in product([*map(str, widths), *options.net], options.batch, options.precision):
        print(f"\n{title(name, precision)}, batch {batch}\n{HEAD}")
        for row in bench(minibatch(name, batch, precision, options.device), options):
            memory = f"{row['peak_mib']:8.0f}" if row["peak_mib"] is not None else ""
            what = f"{row['prior']:<17}{row['estimator']:<16}{row['mode']:<10}"
            print(f"{what}{row['ms']:9.2f}{row['ratio']:8.2f}{memory}", flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
