"""Operations of sequences, volumes and images of another size in C, one by one and in the networks of the package."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_c_export import STRICT, agrees, drawn, needs_compiler, stays_within, written
from torch import Tensor, nn

from pyro_compress.compression import precision
from pyro_compress.deploy.c.library import compiler, load_c
from pyro_compress.deploy.c.plan import planned
from pyro_compress.deploy.card import tokens_of
from pyro_compress.deploy.entries import random_inputs
from pyro_compress.deploy.memory import peak_memory
from pyro_compress.graph.capture import capture
from pyro_compress.networks.nets import build_net
from pyro_compress.types import Compressed, Graph, Node


class Apply(nn.Module):
    """A function of a value and of modules."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def states(layer: nn.Module, outputs: int) -> nn.Module:
    """The outputs of a recurrent layer at every step, and a linear layer of them."""
    return Apply(lambda x, layer, head: head(layer(x)[0]), layer, nn.Linear(outputs, 3))


def behind(*layers: nn.Module, last: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Linear(last, 3))


def linear() -> nn.Linear:
    return nn.Linear(5, 5)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transposed": (lambda: behind(nn.ConvTranspose2d(3, 4, 2, 2), nn.ReLU(), last=12), (3, 5, 6)),
    "transposed, norm": (
        lambda: behind(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.Tanh(), last=12), (3, 5, 6),
    ),
    "transposed, groups": (lambda: behind(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2), last=12), (4, 5, 6)),
    "transposed, dilated": (
        lambda: behind(nn.ConvTranspose2d(4, 6, (4, 3), (3, 2), (2, 0), (1, 1), dilation=(2, 3)), last=18), (4, 5, 6),
    ),
    "transposed, one step": (lambda: behind(nn.ConvTranspose2d(4, 6, 3, 1, 1), last=6), (4, 5, 6)),
    "transposed series": (lambda: behind(nn.ConvTranspose1d(4, 6, 5, 2, 1), last=15), (4, 7)),
    "transposed volume": (lambda: behind(nn.ConvTranspose3d(2, 3, 3, 2, 1, 1), last=6), (2, 3, 4, 3)),
    "transposed, far apart": (
        lambda: behind(nn.ConvTranspose2d(3, 4, 3, (1 << 30, 9), (1, 0)), last=12), (3, 1, 2),
    ),
    "transposed, nothing but bias": (lambda: behind(nn.ConvTranspose1d(3, 4, 3, 9, 5), last=2), (3, 2)),
    "volume": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.MaxPool3d(2), nn.AvgPool3d(2, 1, 1), nn.ReLU()), (2, 7, 8, 9),
    ),
    "volume, steps": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, (2, 3, 2), (2, 2, 1), (1, 1, 0), (1, 2, 1), 2), nn.BatchNorm3d(4), nn.ReLU()
        ),
        (2, 5, 7, 4),
    ),
    "volume, one window": (lambda: nn.Sequential(nn.Conv3d(2, 4, 2, (1, 1 << 30, 1 << 30))), (2, 3, 3, 2)),
    "enlarged": (lambda: Apply(lambda x, a: F.interpolate(a(x), scale_factor=3), nn.Conv2d(2, 4, 3)), (2, 8, 9)),
    "enlarged volume": (
        lambda: Apply(lambda x, a: F.interpolate(a(x), scale_factor=(1, 2, 3)), nn.Conv3d(2, 4, 3)), (2, 4, 5, 3),
    ),
    "resized": (
        lambda: Apply(
            lambda x, a: F.interpolate(
                F.interpolate(a(x), (9, 2), mode="bilinear"), (3, 7), mode="bilinear", align_corners=True
            ),
            nn.Conv2d(2, 4, 3),
        ),
        (2, 8, 9),
    ),
    "resized volume": (
        lambda: Apply(lambda x, a: F.interpolate(a(x), (5, 3, 4), mode="trilinear"), nn.Conv3d(2, 4, 3)), (2, 4, 5, 3),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6)), (4, 5)),
    "positions": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7)), (4, 3, 5)),
    "states of an lstm": (lambda: states(nn.LSTM(5, 6, batch_first=True), 6), (7, 5)),
    "states of a gru": (lambda: states(nn.GRU(5, 6, batch_first=True), 6), (7, 5)),
    "lstm both ways": (lambda: states(nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True), 12), (7, 5)),
    "gru both ways": (lambda: states(nn.GRU(5, 6, 2, False, True, bidirectional=True), 12), (4, 5)),
    "attention": (
        lambda: Apply(
            lambda x, a, b, c: F.scaled_dot_product_attention(a(x), b(x), c(x), is_causal=True),
            nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 3),
        ),
        (2, 7, 5),
    ),
    "attention, scaled": (
        lambda: Apply(
            lambda x, a, b: F.scaled_dot_product_attention(a(x)[:, :3], b(x), x, is_causal=False, scale=0.3),
            linear(), linear(),
        ),
        (7, 5),
    ),
    "products": (
        lambda: Apply(lambda x, a, b: torch.softmax(a(x) @ b(x).transpose(1, 2), -1) @ x, linear(), linear()), (7, 5),
    ),
    "products, repeated": (lambda: Apply(lambda x, a: a(x) @ x[:, :1].transpose(2, 3), linear()), (3, 7, 5)),
    "softmax": (lambda: Apply(lambda x, a: torch.log_softmax(torch.softmax(a(x), 1), 2), linear()), (3, 7, 5)),
    "reduced": (
        lambda: Apply(lambda x, a: a(x).var((1, 3)).sum(1, keepdim=True) + a(x).mean(2).amax(2), linear()), (3, 7, 5),
    ),
    "moved": (
        lambda: Apply(lambda x, a: torch.cat([a(x), x.flip(2), x.roll(3, 2)], 2) * x[:, :, :1, :1], linear()),
        (3, 7, 5),
    ),
    "repeated": (lambda: Apply(lambda x, a: a(x)[:, :, :1] * x[:, :1, :, :1] + x[:, :, :1], linear()), (3, 7, 5)),
    "repeated four times": (
        lambda: Apply(lambda x, a: a(x)[:, :1, :, :1] + x[:, :, :1, :, :1], linear()), (2, 3, 2, 5),
    ),
    "padded": (lambda: Apply(lambda x, a: F.pad(a(x), (1, 0, 2, 1, 0, 2)), nn.Conv2d(2, 3, 2)), (2, 5, 4)),
    "words in a row": (
        lambda: Apply(
            lambda x, a, b: b(a(x[:, :3].abs().clamp(max=8).long())).sum(1), nn.Embedding(9, 4), nn.Linear(4, 3)
        ),
        (5,),
    ),
}  # fmt: skip
NETWORKS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "lstm": ((6,), 9, 9),
    "gru": ((6,), 9, 9),
    "gpt": ((6,), 9, 9),
    "unet": ((1, 8, 8), 3, 0),
}
"""Shape of an example, classes, kinds of tokens."""


def pruned(net: nn.Module, graph: Graph, quantized: bool) -> Compressed:
    """A network with half of its weights zero, as integers or as floats."""
    held = net.state_dict()
    tensors = {}
    for name in sorted({name for node in graph.nodes for name in node.parameters.values()}):
        value = held[name].clone()
        if "running_var" in name:
            value.uniform_(0.5, 2)
        elif value.dim() > 1:
            value[torch.rand(value.shape) < 0.5] = 0
        else:
            value += 0.3 * torch.randn(value.shape)
        tensors[name] = precision.quantize(value, 0.01) if quantized and value.dim() > 1 else value.numpy()
    return Compressed(graph, tensors, {"data": "own.npz"})


def case(name: str, quantized: bool) -> Compressed:
    """One of `CASES`."""
    torch.manual_seed(1)
    make, shape = CASES[name]
    net = make().eval()
    return pruned(net, capture(net, shape, trained=False), quantized)


def built(name: str, quantized: bool) -> Compressed:
    """One of `NETWORKS`."""
    torch.manual_seed(1)
    shape, classes, tokens = NETWORKS[name]
    net = build_net(name, shape, classes, (), tokens).eval()
    return pruned(net, capture(net, shape, trained=False, kind="int64" if tokens else "float32"), quantized)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_operations(name: str, tmp_path: Path) -> None:
    """Integers with all warnings as errors, floats for this processor; one by one and in blocks."""
    for quantized, options in ((True, ("-std=c99", "-O1", *STRICT)), (False, ("-O1", "-march=native"))):
        network = case(name, quantized)
        agrees(network, written(network, tmp_path / f"n{int(quantized)}.c"), options, (1, 3, 16, 21))


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, tmp_path: Path) -> None:
    network = built(name, True)
    agrees(network, written(network, tmp_path / "n.c"), ("-std=c99", "-O1", *STRICT), (1, 17))


@needs_compiler
@pytest.mark.parametrize("name", ["gru both ways", "attention", "transposed volume", "words in a row"])
def test_they_stay_within_what_they_are_given(name: str, tmp_path: Path) -> None:
    stays_within(case(name, True), tmp_path)


def test_norms_become_part_of_what_is_moved_behind_a_layer() -> None:
    for name in ("transposed, norm", "volume, steps"):
        loops = planned(case(name, True))
        assert "affine" not in [loop.op for loop in loops]
        assert [loop.op for loop in loops].count("conv2d") == 1


@pytest.mark.parametrize(
    ("op", "weight", "shape", "window"),
    [
        ("conv_transpose2d", (64, 64, 2, 2), (64, 1, 1), {"padding": [0, 0], "dilation": [256, 256], "extra": [0, 0]}),
        ("conv3d", (1, 1, 100, 1, 1), (1, 200, 100, 100), {"padding": [[0] * 3] * 2, "dilation": [1] * 3}),
    ],
)
def test_convolutions_that_would_become_far_larger_are_named(
    op: str, weight: tuple[int, ...], shape: tuple[int, ...], window: dict[str, Any]
) -> None:
    """Taps that lie far apart, and planes that nearly all windows see, are written out."""
    stride = {"stride": [1, *[100] * (len(shape) - 2)]}
    nodes = (
        Node("input"), Node("linear", (0,), {"weight": "w"}), Node(op, (1,), {"weight": "a.weight"}, stride | window),
    )  # fmt: skip
    tensors = {"w": np.eye(shape[-1], dtype=np.float32), "a.weight": np.zeros(weight, np.float32)}
    network = Compressed(Graph(nodes, shape), tensors, {})
    with pytest.raises(
        ValueError, match=r"^convolution a takes \d+ numbers in C \(at most 67108864\); make .*model\.onnx$"
    ):
        planned(network)


def test_what_stays_where_it_is_becomes_no_loop() -> None:
    """Axes of one place change places, a part is all of it, a single place is repeated once."""
    nodes = (
        Node("input"), Node("linear", (0,), {"weight": "w"}), Node("reshape", (1,), {}, {"shape": [1, 4, 1]}),
        Node("permute", (2,), {}, {"axes": [2, 1, 3]}), Node("slice", (3,), {}, {"axis": 1, "start": 0, "stop": 4}),
    )  # fmt: skip
    network = Compressed(Graph(nodes, (3,)), {"w": np.ones((4, 3), np.float32)}, {})
    assert [loop.op for loop in planned(network)] == ["linear"]


@needs_compiler
def test_tokens(tmp_path: Path) -> None:
    """They are whole numbers; one that the table does not have reads nothing beyond it, and the program refuses it."""
    network = built("gru", True)
    path = written(network, tmp_path / "n.c")
    text = path.read_text()
    assert "typedef int32_t n_value;" in text
    assert "#define N_TOKENS 9" in text
    predict = load_c(path)
    assert np.array_equal(predict(np.full((1, 6), 8)), predict(np.full((1, 6), 1 << 20)))
    assert np.array_equal(predict(np.zeros((1, 6), int)), predict(np.full((1, 6), -5)))
    subprocess.run([*compiler(), "-std=c99", *STRICT, "-DN_MAIN", path, "-o", tmp_path / "n", "-lm"], check=True)
    done = subprocess.run([tmp_path / "n"], input=np.full(6, 9, np.int32).tobytes(), capture_output=True)
    assert done.returncode == 1
    assert done.stderr == b"error: the token 9; this network knows those from 0 to 8\n"
    assert tokens_of(network) == 9
    assert drawn(network, 50).max() == 8
    assert set(np.unique(random_inputs(network, 50))) == set(range(9))
    assert peak_memory("C", path, (4, 6), "int64") is not None


@needs_compiler
def test_the_program_prints_a_class_per_position(tmp_path: Path) -> None:
    nodes = Node("input"), Node("linear", (0,), {"weight": "w"}), Node("permute", (1,), {}, {"axes": [2, 1]})
    network = Compressed(Graph(nodes, (3, 2)), {"w": np.eye(2, dtype=np.float32)}, {"classes": ["a", "b"]})
    path = written(network, tmp_path / "n.c")
    subprocess.run([*compiler(), "-std=c99", *STRICT, "-DN_MAIN", path, "-o", tmp_path / "n", "-lm"], check=True)
    x = np.array([[0, 1], [1, 0], [2, 3]], np.float32)
    done = subprocess.run([tmp_path / "n"], input=x.tobytes(), capture_output=True, check=True)
    assert done.stdout == b"b a b\n"
