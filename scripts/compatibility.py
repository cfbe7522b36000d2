"""Which networks of others are taken, and how far: `python scripts/compatibility.py` writes docs/compatibility.md.

Goes through torchvision's classifiers and segmentation networks and one network of each family of timm, untrained, at
small sizes where their code allows it. Per network: is it captured (and then equal to its module), what share of its
parameters carries a prior, are dead units removed exactly, does it come back from a file, and do numpy, ONNX and C
compute the same. What is not is named with its reason. timm is used where it is installed; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_compress.compression.shrink import shrink
from pyro_compress.deploy import onnx_files
from pyro_compress.deploy.c.plan import planned
from pyro_compress.deploy.card import card
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.networks.attention import split_attention
from pyro_compress.pcn import file, gate, runner
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed, Graph

ROOT = Path(__file__).parents[1]
DEAD = 0.3
"""Share of the rows of every layer that is set to zero before removal."""
CLOSE = 1e-3
"""Largest difference, relative to the largest output, that is rounding: deep untrained networks amplify it."""
MINUTES = 4.0
"""Time that one network may take."""
COLUMNS = ("captured", "prior", "removed", "file", "numpy", "onnx", "c")


@dataclass
class Found:
    """What one network came to.

    Attributes:
        name: of the network.
        parameters: how many it has.
        checks: column of the table -> `yes`, a share, or the reason why not.
        seconds: all of it together.
    """

    name: str
    parameters: int = 0
    checks: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@contextlib.contextmanager
def limited(minutes: float) -> Iterator[None]:
    """Stops what takes longer."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {minutes:g} minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def torchvision_networks() -> dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]]:
    """Classifiers and segmentation networks of torchvision, with an input shape each."""
    from torchvision import models

    def maker(name: str) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
        size = 299 if name.startswith("inception") else 224 if name.startswith(("vit", "maxvit", "swin")) else 64
        size = 96 if name.startswith(("alexnet", "squeezenet", "densenet", "googlenet")) else size

        def make() -> tuple[nn.Module, tuple[int, ...]]:
            more: dict[str, Any] = {"weights": None}
            more |= {"weights_backbone": None} if name in models.list_models(module=models.segmentation) else {}
            more |= {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
            return models.get_model(name, **more), (3, size, size)

        return make

    names = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    return {f"torchvision {name}": maker(name) for name in names}


def timm_networks() -> dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]]:
    """The smallest network of every family of timm."""
    try:
        import timm
    except ImportError:
        print("timm is not installed: its networks are left out", file=sys.stderr)
        return {}

    def maker(name: str) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
        def make() -> tuple[nn.Module, tuple[int, ...]]:
            net = timm.create_model(name, pretrained=False, num_classes=10)
            return net, tuple(net.default_cfg["input_size"])

        return make

    found = {}
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            found[f"timm {module}"] = maker(min(names, key=_size_of_name))
    return found


def _size_of_name(name: str) -> tuple[int, int, str]:
    """Small ones first, as far as names say it."""
    small = (
        "atto",
        "femto",
        "pico",
        "nano",
        "_xxt",
        "_xt",
        "tiny",
        "_t0",
        "_s0",
        "_050",
        "_035",
        "18",
        "_b0",
        "_xxs",
        "_xs",
    )
    return (0 if any(mark in name for mark in small) else 1, len(name), name)


def tried(name: str, make: Callable[[], tuple[nn.Module, tuple[int, ...]]]) -> Found:
    """Send one network through everything; the first thing that fails ends it."""
    found, started = Found(name), time.monotonic()
    torch.manual_seed(0)
    try:
        with limited(MINUTES):
            net, shape = make()
            net = split_attention(net).eval()
            found.parameters = sum(parameter.numel() for parameter in net.parameters())
            _all(found, net, shape)
    except Exception as error:  # whatever it is, it is what the table says
        column = next(column for column in COLUMNS if column not in found.checks)
        found.checks[column] = " ".join(str(error).split())[:160] or type(error).__name__
    found.seconds = round(time.monotonic() - started, 1)
    return found


def _all(found: Found, net: nn.Module, shape: tuple[int, ...]) -> None:
    graph = capture(net, shape, trained=False)
    found.checks["captured"] = "yes"
    tensors = {name: tensor.detach().clone() for name, tensor in net.state_dict(keep_vars=True).items()}
    named = {name for node in graph.nodes for name in node.parameters.values()}
    tensors = {name: tensor for name, tensor in tensors.items() if name in named}
    weights = [node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)]
    found.checks["prior"] = f"{sum(tensors[w].numel() for w in set(weights)) / found.parameters:.1%}"
    x = torch.randn(2, *shape)
    small = _removed(found, graph, tensors, weights, x)
    network = Compressed(small[0], {name: t.float().numpy() for name, t in small[1].items()}, {})
    wanted = Network(*small).eval()(x).detach().numpy()
    again = file.loads(file.dumps(network)[0], gate.UNLIMITED)
    found.checks["file"] = "yes" if again.graph == network.graph else "the graph differs"
    found.checks["numpy"] = _agrees(runner.run(again, x.numpy()), wanted)
    found.checks["onnx"] = _by_onnx(again, x, wanted)
    planned(again)
    found.checks["c"] = "yes"


def _removed(found: Found, graph: Graph, tensors: dict[str, Tensor], weights: list[str], x: Tensor) -> Any:
    """Dead rows everywhere but in the last layer; the smaller network against the masked one, in double precision."""
    for name in weights[:-1]:
        tensors[name][torch.rand(len(tensors[name])) < DEAD] = 0
    double = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    small = shrink(graph, double)
    with torch.no_grad():
        wanted, got = (Network(*one).eval()(x.double()) for one in ((graph, double), small))
    gap = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    left = sum(t.numel() for t in small[1].values()) / sum(t.numel() for t in tensors.values())
    found.checks["removed"] = f"exact, {left:.0%} of the values left" if gap < 1e-9 else f"off by {gap:.1e}"
    return small[0], {name: t.float() for name, t in small[1].items()}


def _agrees(got: np.ndarray, wanted: np.ndarray) -> str:
    gap = float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30))
    return "yes" if gap < CLOSE else f"off by {gap:.1e}"


def _by_onnx(network: Compressed, x: Tensor, wanted: np.ndarray) -> str:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"compatibility-{os.getpid()}.onnx"
    try:
        onnx_files.write_onnx(network, card(network, Scores(0.0, 0.0, 0.0, 0.0), 1), path)
        return _agrees(onnx_files.load_onnx(path)(x.numpy()), wanted)
    finally:
        path.unlink(missing_ok=True)


def page(rows: list[Found]) -> str:
    """The document."""
    head = "| network | parameters | captured, equal | with a prior | dead units removed | file | numpy | ONNX | C |"
    lines = ["# Networks of others", "", __doc__.split("\n\n")[1].replace("\n", " "), ""]
    for family in dict.fromkeys(row.name.split()[0] for row in rows):
        part = [row for row in rows if row.name.split()[0] == family]
        good = sum(row.checks.get("onnx") == "yes" for row in part)
        lines += [
            f"## {family}",
            "",
            f"{good} of {len(part)} are captured and come back from a file and from ONNX.",
            "",
        ]
        lines += [head, "|" + " --- |" * 9]
        for row in part:
            cells = [row.checks.get(column, "") for column in COLUMNS]
            lines.append(f"| {row.name.split()[1]} | {row.parameters:,} | " + " | ".join(map(_cell, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Try them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "results" / "compatibility.json", help="JSON rows")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "compatibility.md", help="the document")
    parser.add_argument("--smoke", action="store_true", help="one small network of torchvision; nothing but its row")
    given = parser.parse_args()
    networks = torchvision_networks() if given.smoke else torchvision_networks() | timm_networks()
    only = "torchvision squeezenet1_1" if given.smoke else given.only
    rows = []
    for name, make in networks.items():
        if only in name:
            rows.append(tried(name, make))
            last = list(rows[-1].checks.items())[-1:]
            print(f"{name}: {rows[-1].seconds} s, {last}", flush=True)
    if given.smoke:
        return 0
    given.rows.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    given.page.write_text(page(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
