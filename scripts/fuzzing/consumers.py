"""What a network that was read is taken through: torch, numpy, evaluation, every export, training on.

Every consumer is given every network or a share of them (`CONSUMERS`), and may refuse it in one line of its own.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fuzzing.attempts import check_line
from pyro_compress.cli.info import info_text
from pyro_compress.compression.candidates import to_module
from pyro_compress.deploy import arrays, onnx_model, torch_files
from pyro_compress.deploy.c.source import source
from pyro_compress.deploy.card import card
from pyro_compress.deploy.export import export
from pyro_compress.graph.network import Network
from pyro_compress.inspection import anatomy, page
from pyro_compress.inspection.summary import LayerSummary
from pyro_compress.networks.bounded import bounded
from pyro_compress.networks.decoded import decoded_net
from pyro_compress.networks.weights import read_weights
from pyro_compress.pcn import file, gate, runner
from pyro_compress.pcn.gate import Plan
from pyro_compress.runs.evaluation import evaluate
from pyro_compress.runs.info import info
from pyro_compress.runs.prediction import predict
from pyro_compress.scores import Scores
from pyro_compress.settings.export import ExportConfig
from pyro_compress.types import Compressed, Quantized

MEMORY = 64
"""MiB that a file may ask for here, so that none computes for long."""
LIMITS = gate.limited(MEMORY)
BUSY = 1 << 22
"""Multiply-adds per example beyond which a network is not run on a whole data set."""
SCORES = Scores(accuracy=0.5, nll_nats=1.0, ece=0.1, brier=0.2)
"""What the cards of exports say; nothing was measured."""


class Read(NamedTuple):
    """A network that passed the gate, its plan, where it lies, where exports go, what they say of it."""

    network: Compressed
    plan: Plan
    path: Path
    out: Path
    card: dict[str, Any]


def read(path: Path, out: Path) -> Read:
    """A file, if it passes the gate."""
    network = file.read(path, LIMITS)
    return Read(network, file.plan_of(network), path, out, card(network, SCORES, 100))


def run_both(read: Read) -> None:
    """Torch and numpy, which agree where rounding does not grow."""
    x = np.random.default_rng(0).random((2, *read.network.graph.input_shape)).astype(read.network.graph.kind)
    other = runner.run(read.network, x)
    one = bounded(to_module(read.network), read.plan)(torch.from_numpy(x)).detach().numpy()
    assert one.shape == other.shape == (2, *read.plan.output), f"torch {one.shape}, numpy {other.shape}"
    most = np.abs(one).max()
    shaken = runner.run(shaken_a_little(read.network), x * np.float32(1 - 3e-7)) if most < 1e4 else np.inf
    near = np.abs(shaken - other).max()
    if near < 1e-4 * (1 + most) and not steep(read.network):
        assert np.allclose(one, other, rtol=1e-2, atol=1e-3 * (1 + most)), "torch and numpy differ"


def shaken_a_little(network: Compressed) -> Compressed:
    """A network whose tensors differ in their last digits: sums of huge weights that cancel are nothing to compare."""
    draw = np.random.default_rng(1)
    tensors = {}
    for name, tensor in network.tensors.items():
        values = file.dense(tensor)
        whole = isinstance(tensor, Quantized) and tensor.step == 1
        tensors[name] = tensor if whole else values * (1 + 3e-7 * draw.choice([-1, 1], values.shape)).astype(np.float32)
    return replace(network, tensors=tensors)


def steep(network: Compressed) -> bool:
    """Whether rounding may grow without bound in it."""
    return any(
        node.op in ("divide", "sin", "batch_norm", "layer_norm", "group_norm")
        or (node.op == "power" and node.attributes["exponent"] < 1)  # at 0 as steep as one likes
        for node in network.graph.nodes
    )


def _again(read: Read) -> None:
    """Written and read again it is the same."""
    told = file.loads(file.dumps(read.network, False)[0], gate.UNLIMITED)
    assert told.graph == read.network.graph, "written and read again it has another graph"
    assert told.meta == read.network.meta, "written and read again it has other metadata"
    for name, tensor in read.network.tensors.items():
        assert np.array_equal(file.dense(tensor), file.dense(told.tensors[name])), "other values"


def _onnx(read: Read) -> None:
    onnx_model.build(read.network, read.card).SerializeToString(deterministic=True)


def _c(read: Read) -> None:
    text = source(read.network, read.card, read.out.name)
    assert "#include" in text


def _safetensors(read: Read) -> None:
    torch_files.write_safetensors(read.network, read.card, read.out / "a.safetensors")
    assert isinstance(torch_files.load_safetensors(read.out / "a.safetensors", gate.UNLIMITED), Network)


def _folder(read: Read) -> None:
    (folder := read.out / "arrays").mkdir()
    arrays.write_folder(read.network, read.card, folder, 0.9, 16)


def _folder_run(read: Read) -> None:
    x = np.zeros((1, *read.network.graph.input_shape), read.network.graph.kind)
    (folder := read.out / "arrays2").mkdir()
    arrays.write_folder(read.network, read.card, folder)
    assert arrays.load_runner(folder).run(x).shape == (1, *read.plan.output)


def _html(read: Read) -> None:
    steps = anatomy.steps_of(read.network, read.path.stat().st_size)
    layers = [LayerSummary(name, 1, 1, 1.0, None, 1, 1, 1, (1, 1)) for name in read.network.tensors]
    tables = [anatomy.step_rows(steps), anatomy.layer_rows(layers, read.network, read.path)]
    made = page.split(steps.factors.items()) + "".join(map(page.table, tables))
    assert "<script" not in made


def _net(read: Read) -> None:
    shape, outputs = read.network.graph.input_shape, read.plan.output[0] if read.plan.output else 1
    decoded_net(read.path, shape, outputs)
    read_weights(str(read.path))


def _evaluate(read: Read) -> None:
    if read.plan.work < BUSY:
        evaluate(read.path, None, "test", device="cpu", threads=1, max_memory=MEMORY)


def _predict(read: Read) -> None:
    if read.plan.work < BUSY:
        x = np.random.default_rng(0).integers(0, 2, (3, *read.network.graph.input_shape))
        found = predict(read.path, x.astype(read.network.graph.kind), threads=1, device="cpu", max_memory=MEMORY)
        assert len(found.as_csv().splitlines()) >= 4


def _info(read: Read) -> None:
    found = info(read.path, MEMORY)
    json.dumps(found.to_dict())
    assert "\x1b" not in info_text(found)


def _exported(suffix: str, int8: str = "") -> Callable[[Read], None]:
    def run(read: Read) -> None:
        if read.plan.work < BUSY:
            export(read.path, read.out / f"export{suffix}", ExportConfig(int8_dynamic=bool(int8), max_memory=MEMORY))

    return run


CONSUMERS: dict[str, tuple[Callable[[Read], None], float]] = {
    "torch and numpy": (run_both, 1.0),
    "written again": (_again, 0.3),
    "ONNX": (_onnx, 1.0),
    "C": (_c, 1.0),
    "safetensors": (_safetensors, 0.5),
    "folder": (_folder, 0.5),
    "HTML": (_html, 0.05),
    "folder, run": (_folder_run, 0.05),
    "--net and --init": (_net, 0.1),
    "evaluate": (_evaluate, 0.1),
    "predict": (_predict, 0.1),
    "info": (_info, 0.1),
    "export .safetensors": (_exported(".safetensors"), 0.01),
    "export folder": (_exported(""), 0.01),
    "export .onnx": (_exported(".onnx"), 0.01),
    "export .c": (_exported(".c"), 0.003),
    "export .wasm": (_exported(".wasm"), 0.001),
    "export .pt2": (_exported(".pt2"), 0.003),
    "export --int8": (_exported(".onnx", "dynamic"), 0.003),
}
"""Name -> what is done, and with which share of the networks that were read."""


def taken_everywhere(read: Read, chance: random.Random) -> Iterator[str]:
    """Give a network to the consumers; their names, with "!" before those that refused it."""
    for name, (consume, share) in CONSUMERS.items():
        if chance.random() < share:
            try:
                consume(read)
                yield name
            except (ValueError, OSError) as error:
                check_line(error)
                yield f"!{name}"
            except BaseException as error:
                error.add_note(name)
                raise
