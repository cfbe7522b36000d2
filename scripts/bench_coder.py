"""Time and memory of a large network's file: written, read, beside the same without the coder that learns.

    python scripts/bench_coder.py [--network resnet50] [--kept 0.1 0.5] [--json docs/results/coder.json]

The network is torchvision's, with the weights it begins with: of every layer the largest are kept, filter by filter by
another share, and rounded to steps of half their root mean square. Sizes say nothing of a trained network; values per
second do. Writing and reading have a process of their own each, and as many threads as there are processors; `x` is the
growth of its peak memory in multiples of the float32 size.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pyro_compress.cli.commands import run_script
from pyro_compress.deploy.memory import high_water_mib


def made(name: str, kept: float) -> Any:
    """The network, pruned and rounded."""
    import torch
    import torchvision

    from pyro_compress.graph.capture import capture
    from pyro_compress.types import Compressed, Quantized

    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    graph = capture(net, (3, 64, 64), trained=False)
    state, draw = net.state_dict(), np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for tensor in dict.fromkeys(n for node in graph.nodes for n in node.parameters.values()):
        values = state[tensor].float().numpy()
        tensors[tensor] = values
        if values.ndim > 1:
            rows = abs(values.reshape(len(values), -1))
            shares = np.minimum(kept * draw.gamma(2, 0.5, len(rows)), 1)
            bounds = [np.quantile(row, 1 - share) for row, share in zip(rows, shares, strict=True)]
            there = rows >= np.array(bounds)[:, None]
            step = float(np.float32(np.sqrt(np.square(rows[there]).mean()) / 2))
            codes = np.rint(values / step) * there.reshape(values.shape)
            tensors[tensor] = Quantized(codes.astype(np.int32), step)
    return Compressed(graph, tensors, {})


def written(folder: str, name: str, kept: float, in_context: bool) -> dict[str, float]:
    """Write the file; what it took."""
    from pyro_compress.pcn import file

    network = made(name, kept)
    before, started = high_water_mib(), time.perf_counter()
    data = file.dumps(network, in_context)[0]
    Path(folder, "a.pcn").write_bytes(data)
    took = time.perf_counter() - started
    return {"seconds": took, "mib": high_water_mib() - before, "bytes": len(data), "version": data[4]}


def read(folder: str) -> dict[str, float]:
    """Read it."""
    from pyro_compress.pcn import file

    before, started = high_water_mib(), time.perf_counter()
    network = file.read(Path(folder, "a.pcn"))
    took = time.perf_counter() - started
    values = sum(file.dense(tensor).size for tensor in network.tensors.values())
    return {"seconds": took, "mib": high_water_mib() - before, "values": values}


def measured(name: str, kept: float, in_context: bool) -> dict[str, Any]:
    """Both, in processes that begin with nothing."""
    spawn = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        with spawn.Pool(1) as pool:
            wrote = pool.apply(written, (folder, name, kept, in_context))
        with spawn.Pool(1) as pool:
            found = pool.apply(read, (folder,))
    size = 4 * found["values"] / (1 << 20)
    return {
        "network": name, "values": int(found["values"]), "kept": kept,
        "coder": "in context" if in_context else "static", "version": wrote["version"], "bytes": wrote["bytes"],
        "write_seconds": round(wrote["seconds"], 2), "write_x": round(wrote["mib"] / size, 2),
        "read_seconds": round(found["seconds"], 2), "read_x": round(found["mib"] / size, 2),
        "million_values_per_second": round(found["values"] / found["seconds"] / 1e6, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", help="name in torchvision.models")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.1, 0.5], help="share of the weights")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="squeezenet1_1, one share")
    options = parser.parse_args()
    name, shares = ("squeezenet1_1", [0.05]) if options.smoke else (options.network, options.kept)
    rows = [measured(name, share, in_context) for share in shares for in_context in (True, False)]
    print(f"| {' | '.join(rows[0])} |\n{'| --- ' * len(rows[0])}|")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")
    if options.json:
        machine = {"processor": platform.machine(), "cores": os.cpu_count()}
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
