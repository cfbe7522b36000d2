"""Structural removal computes the same function, and every file runs the same in torch and in numpy."""

import copy
import functools
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import COMMON
from filelock import FileLock
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2

from pyro_compress.compression.shrink import shrink
from pyro_compress.graph.capture import capture
from pyro_compress.graph.ir import graph_of, widths
from pyro_compress.graph.network import Network, run_graph
from pyro_compress.graph.operations.table import OPERATIONS, is_weighted
from pyro_compress.graph.rules.table import RULES, run_node
from pyro_compress.networks import vision
from pyro_compress.networks.attention import split_attention
from pyro_compress.networks.nets import NETS, build_net
from pyro_compress.pcn import file, gate, runner
from pyro_compress.types import Compressed, Graph, Node


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class Functional(nn.Module):
    """No modules for its shapes and activations, only calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.view(x.size(0), -1))))


class Gated(nn.Module):
    """Squeeze and excitation, activations in place, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.squeeze, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.a(x))
        x *= nn.functional.hardsigmoid(self.squeeze(x.mean((2, 3)).reshape(-1, 6, 1, 1)))
        y = nn.functional.relu6(self.b(x)) / 2
        torch.relu_(x)  # what is added is rectified
        return self.head((y + x).mean((2, 3)))


class Tokens(nn.Module):
    """Attention written by hand, torch's encoder layer, and parameters of fewer dimensions than what they meet."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 20, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = split_attention(layer)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(9, 8))
        self.size = nn.Parameter(torch.rand(8))
        self.q, self.norm, self.head = nn.Linear(8, 8, bias=False), nn.LayerNorm(8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.squeeze(1).transpose(1, 2)], 1) + self.place
        x = self.norm(self.encoder(x)) * self.size
        weights = torch.softmax(self.q(x) @ x.transpose(-2, -1) * 0.3, -1)
        return self.head((weights @ x)[:, 0])


class Shuffled(nn.Module):
    """Channels in two halves, of which one goes through a layer, and which change places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 8, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 6, 2)
        self.classes = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.a(x)).chunk(2, 1)
        x = torch.cat((left, 1 - torch.sigmoid(self.b(right))), 1)
        x = x.view(-1, 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.classes(torch.relu(self.head(x)).mean((2, 3)))


class Pooled(nn.Module):
    """Pooling that rounds up, or sees a border of zeros; parts of rows and channels; what is largest at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 9, 2)
        self.head = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.a(x)), 3, 2, padding=1, ceil_mode=True)
        x = nn.functional.avg_pool2d(x - 0.5, 3, 1, padding=1)[:, :, 1:]
        x = self.b(x)[:, 1:-2]
        pooled = nn.functional.adaptive_max_pool2d(-x[..., ::2], 1)
        return self.head(pooled.flatten(1) + x.amax((2, 3)) - x.mean((2, 3)))


class Twice(nn.Module):
    """Batch norm and slopes that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.norm, self.act = nn.BatchNorm2d(8), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.a(x)))
        return self.head(self.act(self.norm(self.b(x))).mean((2, 3)))


class Normalized(nn.Module):
    """Inputs that are normalised inside, group and instance norm, weighted sums over pixels; log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.register_buffer("std", torch.rand(3, 1, 1) + 0.5)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.group, self.instance = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8)
        self.hidden, self.head = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.a((x - self.mean) / self.std))
        x = self.instance(self.c(nn.functional.leaky_relu(x, 0.2)))
        gate = torch.sigmoid(self.b(x.mean((2, 3), keepdim=True)))
        x = (x / (gate + 1) - gate).sum((2, 3))
        return torch.log_softmax(self.head(torch.sin(self.hidden(x))), 1)


class Points(nn.Module):
    """A point cloud: the same layers for every point, and the largest of all, but for one coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 12, 1), nn.Linear(10, 5)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, ::2]
        alone = self.c(x.unbind(1)[1])
        found = torch.max(torch.relu(self.b(torch.relu(self.a(x)))), 2)[0]
        first, second = found.split([7, 5], 1)
        return self.head(torch.cat((second * alone, first), 1))


class Functions(nn.Module):
    """Functions of single values one by one, the larger of two, variances."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 10), nn.Linear(10, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.exp(-x.abs()) + torch.cos(x)
        y = self.b(x).square()
        x = torch.maximum(x, torch.log1p(y)) - torch.minimum(x, torch.erf(y))
        x = x.var((2, 3)) + x.amin((2, 3))
        x = self.d(nn.functional.logsigmoid(self.c(torch.rsqrt(x.abs() + 1) * x.clamp(min=-0.5))))
        x = torch.expm1(0.1 * x).abs()
        return self.head(torch.sqrt(x + 0.1) + torch.log(x + 1) + torch.reciprocal(x + 1) + (x + 0.1) ** 1.5)


class Resized(nn.Module):
    """Images of other sizes, repeated, turned, moved in a circle; pixels that were channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.interpolate(torch.relu(self.a(x)), scale_factor=2)
        x = x + x.mean((2, 3), keepdim=True).expand_as(x)
        x = torch.relu(self.b(x.roll((1, -2), (2, 3))))
        x = nn.functional.interpolate(x, (5, 7), mode="bilinear").flip(3)
        x = self.c(nn.functional.pixel_shuffle(x, 2))
        return self.head(nn.functional.interpolate(x, (9, 9), mode="bilinear", align_corners=True).amax((2, 3)))


torch.manual_seed(0)  # the networks are the same whatever was imported before
PROBLEMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (
        nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 9), nn.Sigmoid(), nn.Linear(9, 3)),
        (1, 4, 4),
    ),
    "functional": (Functional(), (1, 4, 4)),
    "no bias": (nn.Sequential(nn.Linear(6, 9, bias=False), nn.Sigmoid(), nn.Linear(9, 3, bias=False)), (6,)),
    "conv": (
        nn.Sequential(
            nn.Conv2d(2, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(24, 5),
            nn.GELU(),
            nn.Linear(5, 3),
        ),
        (2, 8, 8),
    ),
    "residual": (
        nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            Residual(8),
            Residual(8),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 3),
        ),
        (2, 8, 8),
    ),
    "grouped": (
        nn.Sequential(
            nn.Conv2d(4, 4, 3, groups=4, padding="same"),
            nn.SiLU(),
            nn.Conv2d(4, 8, 1, groups=2),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 6, 3, padding_mode="reflect", padding=1),
            nn.Flatten(),
            nn.Linear(96, 3),
        ),
        (4, 8, 8),
    ),
    "depthwise": (
        nn.Sequential(
            nn.Conv2d(2, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardswish(),
            nn.Conv2d(8, 24, 3, padding=1, groups=8),
            nn.Sigmoid(),
            nn.Conv2d(24, 24, 1, groups=24),
            Residual(24),
            nn.Flatten(),
            nn.Linear(216, 3),
        ),
        (2, 8, 8),
    ),
    "inverted": (MobileNetV2(3, 0.25, [[1, 8, 1, 1], [3, 8, 2, 1], [2, 16, 1, 2]], round_nearest=4), (3, 16, 16)),
    "conv1d": (
        nn.Sequential(
            nn.Conv1d(4, 6, 3, dilation=2, padding_mode="circular", padding=2),
            nn.Sigmoid(),
            nn.MaxPool1d(2, padding=1),
            nn.Conv1d(6, 8, 3, stride=2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (4, 8),
    ),
    "conv3d": (
        nn.Sequential(nn.Conv3d(1, 4, 2), nn.GELU("tanh"), nn.Conv3d(4, 5, 2), nn.Flatten(), nn.Linear(40, 3)),
        (1, 4, 4, 4),
    ),
    "gated": (Gated(), (4, 8, 8)),
    "activations": (
        nn.Sequential(
            nn.Conv2d(2, 8, 3),
            nn.LeakyReLU(0.1),
            nn.Conv2d(8, 10, 3),
            nn.PReLU(10),
            nn.Dropout2d(),
            nn.Conv2d(10, 6, 3),
            nn.ELU(0.7),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 12),
            nn.SELU(),
            nn.Linear(12, 12),
            nn.Softplus(),
            nn.Linear(12, 12),
            nn.Mish(),
            nn.Linear(12, 12),
            nn.PReLU(),
            nn.Linear(12, 3),
        ),
        (2, 9, 9),
    ),
    "shuffled": (Shuffled(), (2, 5, 5)),
    "pooled": (Pooled(), (2, 10, 10)),
    "twice": (Twice(), (1, 8, 8)),
    "normalized": (Normalized(), (3, 8, 8)),
    "points": (Points(), (3, 20)),
    "tokens": (Tokens(), (1, 8, 8)),
    "functions": (Functions(), (2, 6, 6)),
    "resized": (Resized(), (2, 7, 7)),
} | {
    "vgg-16": (vision.vgg_16((3, 32, 32), 3, width=4), (3, 32, 32)),
    "resnet-18": (vision.resnet_18((3, 16, 16), 3, width=4), (3, 16, 16)),
    "resnet-50": (vision.resnet_50((1, 64, 64), 3, width=2), (1, 64, 64)),
    "vit-tiny": (split_attention(vision.vit_tiny((1, 16, 16), 3, width=12)), (1, 16, 16)),
    "fcn-1d": (vision.fcn_1d((2, 20), 3, width=6), (2, 20)),
}
KEPT = ("lstm", "gru", "gpt", "unet")
"""Networks with operations that torch alone runs."""
PROBLEMS |= {
    name: (build_net(name, (1, 16, 16), 3, (20, 10)), (1, 16, 16)) for name in NETS if name not in (*PROBLEMS, *KEPT)
}


@functools.cache
def captured(name: str) -> Graph:
    """Every network is exported once for all files and all processes of the suite."""
    path = Path(os.environ[COMMON]) / f"{name}.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_text(json.dumps(asdict(capture(*PROBLEMS[name]))))
        return graph_of(json.loads(path.read_text()))


def prepared(name: str, rows: float, columns: float) -> tuple[nn.Module, Tensor, tuple, dict[str, Tensor]]:
    """A network with random statistics and biases, and its tensors with random dead rows and columns."""
    graph = captured(name)  # draws numbers where it is the first
    torch.manual_seed(3)
    net, input_shape = PROBLEMS[name]
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_()
    used = {tensor for node in graph.nodes for tensor in node.parameters.values()}
    tensors = {key: value.detach().clone() for key, value in net.state_dict().items() if key in used}
    weights = [node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)]
    for key in weights[:-1]:
        tensors[key][torch.rand(len(tensors[key])) < rows] = 0
    for key in weights:
        tensors[key][:, torch.rand(tensors[key].shape[1]) < columns] = 0
    return net, torch.randn(7, *input_shape), graph, tensors


def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In double precision, where rounding hides nothing and no processor has an opinion."""
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    """To a share of the largest output."""
    got, wanted = got.detach(), wanted.detach()
    assert float((got - wanted).abs().max()) <= tolerance * max(float(wanted.abs().max()), 1.0)


def test_every_operation_is_everywhere() -> None:
    """In torch, numpy, ONNX and the specification."""
    assert OPERATIONS.keys() == RULES.keys()
    assert [op for op, rule in RULES.items() if not rule.onnx] == ["aten"]  # torch exports a network with these
    told = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    assert [op for op in OPERATIONS if f"`{op}`" not in told] == []


@pytest.mark.parametrize("name", PROBLEMS)
def test_capture_computes_the_same(name: str) -> None:
    net, x, graph, _ = prepared(name, 0, 0)
    close(Network(graph, doubled(net.state_dict()))(x.double()), copy.deepcopy(net).double().eval()(x.double()))
    made = {0: tuple(x.shape[1:])}

    def look(node: Node, inputs: list[Tensor]) -> None:
        made.update(zip(node.inputs, (tuple(one.shape[1:]) for one in inputs), strict=True))

    run_graph(graph, net.state_dict(), x, look)
    plan = gate.check(graph, {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()})
    assert {index: plan.shapes[index] for index in made} == made
    assert plan.output == (3,)
    assert plan.peak >= max(math.prod(shape) for shape in made.values())


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [((9,), [2], [2]), ((8, 11), [2, 3], [2, 2]), ((7, 7), [3, 3], [1, 2]), ((5, 6, 7), [2, 2, 3], [3, 1, 2])],
)
def test_pooling_without_gradients_is_torchs(shape: tuple[int, ...], kernel: list[int], stride: list[int]) -> None:
    """The fast way and torch's own give the same bits; where gradients are wanted it is torch's own."""
    x = torch.randn(4, 3, *shape)
    x[0, 0] = math.nan
    node = Node("max_pool", (0,), {}, {"kernel": kernel, "stride": stride, "padding": [0] * len(shape)})
    expected = run_node(node, [x.requires_grad_()], {})
    assert "MaxPool" in type(expected.grad_fn).__name__ or "Squeeze" in type(expected.grad_fn).__name__
    with torch.no_grad():
        for layout in (x, x.transpose(1, -1).contiguous().transpose(1, -1)):
            torch.testing.assert_close(run_node(node, [layout], {}), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rows", "columns"), [(0.5, 0.3), (0.9, 0.0), (0.0, 0.6), (1.0, 0.0)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_shrunken_equals_masked(name: str, rows: float, columns: float) -> None:
    _, x, graph, tensors = prepared(name, rows, columns)
    tensors, x = doubled(tensors), x.double()
    small_graph, small = shrink(graph, tensors)
    close(Network(small_graph, small)(x), Network(graph, tensors)(x))
    assert sum(t.numel() for t in small.values()) < sum(t.numel() for t in tensors.values()) or name == "grouped"


@pytest.mark.parametrize("name", PROBLEMS)
def test_numpy_runs_the_decoded_file(name: str) -> None:
    _, x, graph, tensors = prepared(name, 0.3, 0.3)
    small_graph, small = shrink(graph, tensors)
    data, _ = file.dumps(Compressed(small_graph, {key: value.numpy() for key, value in small.items()}, {}))
    got = runner.run(file.loads(data), x.numpy(), batch=3)
    close(torch.from_numpy(got), Network(small_graph, doubled(small))(x.double()), 1e-5)  # it computes in float32


def test_widths_and_constants() -> None:
    """Unit 0 has no inputs and emits relu(2) = 2; unit 1 is read by nobody; input 2 is read by nobody."""
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    graph = capture(net, (3,))
    tensors = {
        "0.weight": torch.tensor([[0.0, 0, 0], [1, 1, 0], [1, 0, 0]]),
        "0.bias": torch.tensor([2.0, 1, 0]),
        "2.weight": torch.tensor([[5.0, 0, 1], [0, 0, 1]]),
        "2.bias": torch.tensor([1.0, 1]),
    }
    small_graph, small = shrink(graph, tensors)
    assert small["2.bias"].tolist() == [11.0, 1.0]
    assert small["2.weight"].tolist() == [[1.0], [1.0]]
    assert small["0.weight"].tolist() == [[1.0, 0.0, 0.0]]
    assert widths(small_graph, small) == [1, 1, 2]


def test_depthwise_channels_go_with_their_neighbours() -> None:
    """Channel 0 is made by nobody, 1 lost its kernel, 2 is read by nobody, 3 stays; two outputs per channel."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 2, 1))
    graph = capture(net, (1, 6, 6))
    tensors = {key: value.detach().clone() for key, value in net.state_dict().items()}
    tensors["0.weight"][0], tensors["0.bias"][0] = 0, -1
    tensors["2.weight"][2:4] = 0
    tensors["3.weight"][:, 4:6] = 0
    small_graph, small = shrink(graph, tensors)
    assert [tuple(small[name].shape) for name in ("0.weight", "2.weight", "3.weight")] == [
        (1, 1, 1, 1), (2, 1, 3, 3), (2, 2, 1, 1)
    ]  # fmt: skip
    assert [node.attributes.get("groups") for node in small_graph.nodes if node.op == "conv2d"] == [None, 1, None]
    x = torch.randn(3, 1, 6, 6).double()
    close(Network(small_graph, doubled(small))(x), Network(graph, doubled(tensors))(x), 1e-6)


def test_a_constant_entering_a_padded_convolution_stays() -> None:
    """Folding it would be wrong at the border."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 3, padding=1))
    tensors = {key: value.detach().clone() for key, value in net.state_dict().items()}
    tensors["0.weight"][0] = 0
    tensors["0.bias"][0] = 3
    _, small = shrink(capture(net, (1, 5, 5)), tensors)
    assert small["0.weight"].shape[0] == 2


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.LSTM(3, 3), "unsupported|cannot be captured|must return one tensor"),
        (nn.Sequential(nn.Linear(4, 3)), r"cannot be captured by torch.export on \(3,\) inputs"),
    ],
)
def test_what_cannot_be_captured_is_named(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capture(net, (3,))
