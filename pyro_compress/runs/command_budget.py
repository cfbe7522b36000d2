"""What a command will hold in memory, estimated from the shapes of a network before anything is read, and refused.

A network's own size is that of its tensors as float32; a posterior has a mean and a spread of each weight.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pyro_compress.compression.calibrated import IMAGES, VALUES
from pyro_compress.compression.uses import uses_of
from pyro_compress.foreign import json_of, of_type, read_toml, table
from pyro_compress.graph.ir import graph_of
from pyro_compress.machine import require
from pyro_compress.metrics import BATCH_VALUES
from pyro_compress.pcn import gate
from pyro_compress.runs.budget import EVALUATED, MIB, SCORED
from pyro_compress.tensorfile import TensorFile
from pyro_compress.types import Graph

Shapes = Mapping[str, tuple[int, ...]]
MOMENTS = 8 * 8
"""Bytes for each entry of a layer's second moments: eight matrices in double precision."""


class Held(NamedTuple):
    """What a command holds at its peak beside the posterior that it was given, measured (`scripts/bench_memory.py`).

    Attributes:
        fixed: bytes, whatever the network: libraries that it loads, the reader of a data set.
        network: multiples of the network's own size.
        layer: multiples of its largest tensor's.
    """

    fixed: int
    network: float
    layer: float = 0.0


COMMANDS = {
    "evaluate": Held(185 * MIB, 0.0),
    "predict": Held(185 * MIB, 0.0),  # as if it were given what evaluate is
    "inspect": Held(295 * MIB, 2.5),
    "inspect, scales": Held(325 * MIB, 4.5),
    "compress": Held(200 * MIB, 5.1),
    "compress --lambda": Held(200 * MIB, 4.1, 5.3),
    "compress --rounding compensated": Held(225 * MIB, 4.1, 50.0),
    "compress --finetune": Held(350 * MIB, 12.2),
}
"""By command. A λ and compensated rounding work on a whole layer at once: of the former it is what a layer
takes that keeps nearly all its weights, of the latter an upper bound, counted from its arrays. Fine-tuning is reckoned
with a tenth of the weights left, and asked again once their number is known (`compression.finetuned`). Where weights
have scales, `inspect` holds the guide's parameters besides."""


def needed_by(command: str, graph: Graph, shapes: Shapes, rows: Mapping[str, int], posterior: int) -> dict[str, int]:
    """Estimate of what a command will hold, part by part.

    Args:
        command: name in `COMMANDS`.
        graph: the network.
        shapes: of its tensors.
        rows: split -> number of its examples, those that are still to be read.
        posterior: bytes of it that are still to be read.
    """
    held, plan = COMMANDS[command], gate.check(graph, shapes, gate.UNLIMITED)
    sizes, each = [4 * math.prod(shape) for shape in shapes.values()], math.prod(graph.input_shape)
    scored = max((rows.get(split, 0) for split in ("validation", "test")), default=0)
    batch = min(EVALUATED, scored, max(1, BATCH_VALUES // max(each, 1)))
    calibration = _calibration(graph, shapes, plan) if command == "compress --rounding compensated" else 0
    at_once = batch if len(plan.output) > 1 else scored  # a class per position is counted batch by batch
    return {
        "libraries": held.fixed,
        "data": 4 * each * sum(rows.values()),
        "posterior": posterior,
        "network": int(held.network * sum(sizes) + held.layer * max(sizes)),
        "calibration": calibration,
        "evaluation": 4 * batch * plan.peak + SCORED * at_once * math.prod(plan.output),
    }


def _calibration(graph: Graph, shapes: Shapes, plan: gate.Plan) -> int:
    """Bytes of the activations that calibration holds, twice, and of the moments of the layer with the most inputs."""
    values = min(VALUES, 2 * IMAGES * plan.peak)
    uses = [use.size for parts in uses_of(graph, shapes, list(shapes)).values() for use in parts]
    squares = [groups * n**2 for groups, _, n in uses]
    return 2 * 4 * values + MOMENTS * max(squares, default=0)


def check_command(command: str, run: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to work on a run where that does not fit, told by the headers of its files.

    Args:
        command: name in `COMMANDS`.
        run: the run folder; what is wrong with it says whoever reads it.
        environment: may hold `machine.FORCE`.

    Raises:
        ValueError: the estimate exceeds what the machine has left.
    """
    path = run / "posterior.safetensors"
    try:
        file = TensorFile(path)
        graph = graph_of(table(json_of(file.metadata, "its metadata"), "its metadata").get("graph"))
        shapes = {name.partition("/")[2]: shape for name, shape in file.shapes.items() if not name.startswith("unit_")}
        rows = of_type(read_toml(run / "config.toml").get("splits", {}), dict[str, int], "splits")
        if command == "inspect" and any(name.startswith("unit_") for name in file.shapes):
            command = "inspect, scales"
        needed = needed_by(command, graph, shapes, rows, path.stat().st_size)
    except (ValueError, OSError):
        return
    require(needed, "cpu", f"{command.partition(',')[0]} of {run}", "use a machine with more memory", environment)


def check_network(
    command: str, graph: Graph, shapes: Shapes, what: str, gradients: int = 0,
    environment: Mapping[str, str] = os.environ,
) -> None:  # fmt: skip
    """The same for a network that is at hand, with its data: a posterior around it has a spread per weight.

    Args:
        command: name in `COMMANDS`.
        graph: the network.
        shapes: of its tensors.
        what: the network, in words.
        gradients: bytes that finding the spreads takes besides.
        environment: as above.

    Raises:
        ValueError: as above.
    """
    needed = needed_by(command, graph, shapes, {}, 4 * sum(map(math.prod, shapes.values())))
    needed |= {"gradients": gradients}
    require(needed, "cpu", f"{command} of {what}", "use a machine with more memory", environment)
