"""Language models from training to small files: bits per byte before and after, beside pruning by magnitude.

    python scripts/language_models.py --folder models [--networks lstm transformer] [--json docs/results/language.json]

The networks are those of `examples/language.py`, the text is what it writes. Each is trained by Adam as anybody would
(weights in FOLDER, taken up where they are there), then made small three ways, all through `compress`, all allowed
`--loss` (2 %) more bits per byte on the validation text: rounded with compensation and not trained; pruned by its
posterior and fine-tuned; pruned by magnitude and fine-tuned. The test text is read once, at the end. A row that is
there is not made again. `--smoke` makes a tiny one.
"""

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn

import pyro_compress as pc
from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.data.splits import load_splits
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Splits

EXAMPLE = Path(__file__).parents[1] / "examples" / "language.py"


def example() -> Any:
    """The module of the networks."""
    spec = importlib.util.spec_from_file_location("language", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(name: str, net: nn.Module, splits: Splits, options: argparse.Namespace) -> float:
    """Train by Adam on one cycle, or take the weights that are there; the seconds that it took."""
    path = Path(options.folder) / f"{name}.safetensors"
    if path.exists():
        load_model(net, str(path))
        return 0.0
    started, batch = time.perf_counter(), 64
    steps = math.ceil(len(splits.train) / batch)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    total = options.epochs * steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=total, pct_start=0.2)
    for epoch in range(options.epochs):
        net.train()
        for rows in torch.randperm(len(splits.train)).split(batch):
            optimizer.zero_grad()
            logits = net(splits.train.x[rows])
            F.cross_entropy(logits.flatten(0, 1), splits.train.y[rows].flatten()).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"{name}: epoch {epoch + 1} of {options.epochs}: {bits(net, splits):.4f} bits per byte", flush=True)
    save_model(net, str(path))
    return time.perf_counter() - started


@torch.no_grad()
def bits(net: nn.Module, splits: Splits) -> float:
    """Bits per byte of the validation text."""
    net.eval()
    data = splits.validation
    found = [F.cross_entropy(net(x).flatten(0, 1), y.flatten(), reduction="sum")
             for x, y in zip(data.x.split(64), data.y.split(64), strict=True)]  # fmt: skip
    return float(sum(found)) / data.y.numel() / math.log(2)


def ways(options: argparse.Namespace) -> dict[str, Callable[[Any, dict[str, Any]], Any]]:
    """Name -> (network, what may be lost) -> its compression."""
    tuned = {"finetune": options.finetune, "finetune_lr": 2e-3, "finetune_batch_size": 64}
    tuned |= {} if options.finetune_lambda is None else {"finetune_lambda": options.finetune_lambda}
    return {
        "rounded with compensation": lambda given, goal: given.compress(**goal),
        "posterior, fine-tuned": lambda given, goal: given.compress(**goal, **tuned),
        "magnitude, fine-tuned": lambda given, goal: given.compress(**goal, **tuned, criterion="magnitude"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="models", help="of the text and the weights")
    parser.add_argument("--networks", nargs="+", default=["lstm", "gru", "transformer"])
    parser.add_argument("--ways", nargs="+", default=None, help="first words of the ways; default: all")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=6e-3, help="highest learning rate of the cycle")
    parser.add_argument("--finetune", type=int, default=6, help="epochs of fine-tuning")
    parser.add_argument("--finetune-lambda", type=float, default=None, help="default: searched for on validation")
    parser.add_argument("--loss", type=float, default=0.02, help="share of the bits per byte that may be added")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--limit", type=int, default=0, help="training windows; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="one tiny row")
    options = parser.parse_args()
    if options.smoke:
        options.networks, options.ways, options.epochs, options.limit, options.loss = ["lstm"], ["rounded"], 1, 64, 0.5
    language, rows = example(), json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    text = Path(options.folder) / "text"
    if not text.is_dir():
        language.write_text(text)
    reading = ReadConfig(task="next-token", context=options.context, limit=options.limit)
    splits = load_splits(str(text), reading=reading)
    recipe = {name: getattr(options, name) for name in ("seed", "epochs", "loss", "finetune", "finetune_lambda")}
    for name in options.networks:
        torch.manual_seed(options.seed)
        net = getattr(language, name)(splits.input_shape, splits.tokens)
        seconds = trained(name, net, splits, options)
        given = pc.trained(net, splits, context=options.context, task="next-token")
        before = given.evaluate()
        goal = {"tolerance": 0.02, "nll_tolerance": options.loss * before.nll_nats}
        for way, small in ways(options).items():
            wanted = options.ways is None or way.split()[0].strip(",") in options.ways
            if not wanted or any((row["network"], row["way"]) == (name, way) for row in rows):
                continue
            started = time.process_time()
            found = small(given, goal)
            found.save(Path(options.folder) / f"{name}-{way.split()[0].strip(',')}.pcn", force=True)
            row = row_of(name, way, found, time.process_time() - started) | {"train_seconds": round(seconds, 1)}
            rows.append(row | recipe)
            print(json.dumps({key: rows[-1][key] for key in ("network", "way", "bytes", "ratio", "test_bits", "more")}))
            if options.json:
                write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())


def row_of(name: str, way: str, found: Any, seconds: float) -> dict[str, Any]:
    """What a table shows of a compression."""
    report = found.report
    before, after = (getattr(report, f"test_{when}").nll_nats / math.log(2) for when in ("before", "after"))
    scores = {f"test_{when}": asdict(getattr(report, f"test_{when}")) for when in ("before", "after")}
    return {
        "network": name, "way": way, "bytes": found.bytes, "ratio": report.ratio, "kept": report.parameters_kept,
        "total": report.parameters_total, "test_bits_before": before, "test_bits": after, "more": after / before - 1,
        "cpu_seconds": round(seconds, 1), **scores,
    }  # fmt: skip


if __name__ == "__main__":
    run_script(main)
