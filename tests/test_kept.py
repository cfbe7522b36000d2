"""Operations without a row: kept as torch calls them, from the module to the file and back."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_compress as pc
from pyro_compress.bayes.assignment import everywhere
from pyro_compress.bayes.extract import extract, mean_tensors
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.layers import bayes_layers
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.tensors import drawable, with_tensors
from pyro_compress.compression.shrink import shrink
from pyro_compress.deploy.arrays import write_folder
from pyro_compress.deploy.c.plan import planned
from pyro_compress.deploy.card import card
from pyro_compress.deploy.onnx_files import load_onnx, write_int8, write_onnx
from pyro_compress.deploy.onnx_torch import build_by_torch
from pyro_compress.deploy.torch_files import load_program, write_program
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network, tensors_of
from pyro_compress.graph.operations.kept import NAMES, whole_tensors
from pyro_compress.networks.weights import put_weights
from pyro_compress.pcn import file, gate, runner
from pyro_compress.runs.config import resolve
from pyro_compress.scores import Scores
from pyro_compress.settings import FitConfig
from pyro_compress.types import Compressed, Data, Graph, Node, Quantized, Splits


class Around(nn.Module):
    """A function of values between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], inside: int = 12, last: int | None = None):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(6, inside), function, nn.Linear(last or inside, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)).flatten(1))


class Tables(nn.Module):
    """Positions looked up in a table by a buffer of whole numbers, a mask that forward makes, windows as examples."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(7, 4))
        self.register_buffer("places", torch.tensor([3, 0, 6, 2]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)  # (batch, 4, 8)
        rows = torch.relu(self.inner(y.view(-1, 2, 8)))  # two windows an example
        bias = self.table[self.places].view(1, 4, 4)
        scores = rows.view(-1, 4, 8) @ y.transpose(1, 2) + bias
        mask = torch.ones(4, 4).tril() == 0
        return self.last((scores.masked_fill(mask, float("-inf")).softmax(-1) @ y).mean(1))


class StandardizedWeight(nn.Module):
    """A weight of mean 0 and variance 1 per output, by batch norm over the weight (Qiao et al. 2019, as in timm)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.gain = nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.inner.weight[None], None, None, self.gain * 0.5, None, True, 0.0)[0]
        return self.last(torch.relu(F.linear(torch.relu(self.first(x)), weight, self.inner.bias)))


class Filter(nn.Module):
    """Frequencies times learned complex weights, which are kept as pairs (Rao et al. 2021, GFNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.weight = nn.Parameter(torch.randn(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(self.first(x)) * torch.view_as_complex(self.weight)
        return self.last(torch.fft.irfft(found, n=12).relu())


class Relative(nn.Module):
    """Attention with a bias that is computed (so torch runs it), its heads put back in one row by a view."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.first, self.last = heads, nn.Linear(6, 18), nn.Linear(6, 3)
        self.bias = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        n, steps, size = x.shape
        q, k, v = self.first(x).view(n, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.heads == 1:  # without a dimension of heads, as in SAM
            out = F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0], attn_mask=self.bias.sin()[None])
            return self.last(out.mean(1))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.sin())
        return self.last(out.transpose(1, 2).reshape(n, steps, size).mean(1))


class Memory(nn.Module):
    """Time in front of the batch, and a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM):
        super().__init__()
        self.first, self.memory, self.last = nn.Linear(5, 6), kind(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.memory(torch.relu(self.first(x.transpose(0, 1))))
        return self.last(out[-1])


def _shifted(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x.cumsum(1)) + torch.arange(12.0)


FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": lambda: Around(nn.Softplus(2)),
    "celu": lambda: Around(nn.CELU(2)),
    "hardshrink": lambda: Around(nn.Hardshrink()),
    "dilated": lambda: Around(lambda x: F.max_pool1d(x[:, None], 2, 1, dilation=3)[:, 0], last=9),
    "ceil": lambda: Around(lambda x: F.avg_pool1d(x[:, None], 5, 5, ceil_mode=True)[:, 0], last=3),
    "outside": lambda: Around(lambda x: F.avg_pool1d(x[:, None], 3, 1, 1, count_include_pad=False)[:, 0]),
    "larger": lambda: Around(lambda x: torch.max(x, -2 * x)),
    "places": lambda: Around(lambda x: x.max(1)[1][:, None].float() * x),
    "where": lambda: Around(_shifted),
    "sorted": lambda: Around(lambda x: x.sort(1, descending=True)[0] + x.topk(1, dim=1)[0]),
    "merged": lambda: Around(lambda x: nn.functional.relu(x.view(-1, 3)).reshape(-1, 12)),
    "einsum": lambda: Around(lambda x: torch.einsum("bi,bj->bij", x[:, :3], x[:, 3:7]), last=12),
    "uneven": lambda: Around(lambda x: F.adaptive_avg_pool1d(x[:, None], 5)[:, 0], last=5),
    "bicubic": lambda: Around(
        lambda x: F.interpolate(x.view(-1, 1, 3, 4), size=(5, 5), mode="bicubic").flatten(1), last=25
    ),
    "uneven maxima": lambda: Around(lambda x: F.adaptive_max_pool1d(x[:, None], 5)[:, 0], last=5),
    "distances": lambda: Around(lambda x: torch.cdist(x.view(-1, 3, 4), x.view(-1, 3, 4).sin()), last=9),
    "medians": lambda: Around(lambda x: x.view(-1, 3, 4).median(2).values + x.view(-1, 3, 4).quantile(0.3, 2), last=3),
    "scattered": lambda: Around(lambda x: torch.zeros_like(x).scatter_reduce(1, x.argsort(1), x.cummin(1)[0], "sum")),
    "special": lambda: Around(lambda x: torch.erfinv(torch.tanh(x)) + torch.lgamma(x.exp()) + torch.hypot(x, x.sin())),
    "solved": lambda: Around(
        lambda x: torch.linalg.solve(x.view(-1, 3, 4)[..., :3] + 9 * torch.eye(3), x.view(-1, 3, 4)), last=12
    ),
    "spectrum": lambda: Around(lambda x: torch.fft.rfft(x).abs(), last=7),
    "filtered": Filter,
    "relative": Relative,
    "headless": lambda: Relative(1),
    "tables": Tables,
    "standardized": StandardizedWeight,
    "lstm": Memory,
    "gru": lambda: Memory(nn.GRU),
    "rnn": lambda: Memory(nn.RNN),
}
SHAPES = {"relative": (4, 6), "headless": (4, 6), "tables": (4, 5), "lstm": (4, 5), "gru": (4, 5), "rnn": (4, 5)}


def taken(name: str) -> tuple[nn.Module, Graph, dict[str, Tensor], Tensor]:
    torch.manual_seed(3)
    net = FUNCTIONS[name]().eval()
    shape = SHAPES.get(name, (6,))
    graph = capture(net, shape, 3)
    held = dict(net.named_parameters()) | dict(net.named_buffers())
    return (
        net,
        graph,
        {n: held[n].detach() for node in graph.nodes for n in node.parameters.values()},
        torch.randn(3, *shape),
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_has_no_row_is_kept(name: str) -> None:
    """Captured, through the file and back, in torch and in numpy; dead units around it leave exactly."""
    net, graph, tensors, x = taken(name)
    with torch.no_grad():
        wanted = net(x).numpy()
    network = Compressed(graph, {n: _stored(n, graph, tensor) for n, tensor in tensors.items()}, {})
    again = file.loads(file.dumps(network)[0])
    assert again.graph == graph
    np.testing.assert_allclose(runner.run(again, x.numpy()), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Network(graph, tensors)(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
    dead = {n: tensor.double() for n, tensor in tensors.items()}
    dead["first.weight"][:2] = 0
    small, left = shrink(graph, dead)
    got = Network(small, left)(x.double())
    np.testing.assert_allclose(got.detach(), Network(graph, dead)(x.double()).detach(), rtol=1e-9, atol=1e-9)


def _stored(name: str, graph: Graph, tensor: Tensor) -> np.ndarray | Quantized:
    if name in whole_tensors(graph):
        return Quantized(tensor.numpy().astype(np.int32), 1.0)
    return tensor.float().numpy()


def test_rows_are_taken_where_they_serve() -> None:
    """Attention as timm writes it: queries, keys and values picked from an axis in front of the batch."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 8).mean(1))

    graph = capture(Attention(), (5, 8), 3)
    assert [node.op for node in graph.nodes].count("aten") == 0
    assert [node.attributes for node in graph.nodes if node.op == "select"] == [
        {"axis": 2, "index": i} for i in range(3)
    ]


def test_shared_weights_stay_whole() -> None:
    """A layer that is called twice: captured, and none of its units leaves."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(3, 4), layer, nn.ReLU(), layer, nn.Linear(4, 3))
    graph = capture(net, (3,), 3)
    (name,) = {node.parameters["weight"] for node in graph.nodes[2:5] if node.parameters}
    used = {one for node in graph.nodes for one in node.parameters.values()}
    tensors = {one: tensor.detach().double() for one, tensor in net.state_dict().items() if one in used}
    tensors[name][1] = 0
    x = torch.randn(5, 3, dtype=torch.float64)
    small, left = shrink(graph, tensors)
    assert left[name].shape == (4, 4)
    torch.testing.assert_close(Network(small, left)(x), Network(graph, tensors)(x), rtol=1e-12, atol=1e-12)


def test_examples_that_know_of_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="what it gives for one example depends on the others"):
        capture(Around(lambda x: x * x.sum()), (6,))
    with pytest.raises(ValueError, match="what it gives for one example depends on the others"):
        capture(Around(lambda x: x - x.mean(0)), (6,))


def test_what_is_neither_is_named() -> None:
    net = Around(Placed(), last=12)
    with pytest.raises(ValueError, match=r"^unsupported operation aten\.searchsorted\.Tensor in function; see docs"):
        capture(net, (6,))


def test_what_torch_takes_apart_does_not_hide_what_it_cannot() -> None:
    """`stack` is taken apart; the message names the operation that stands in the way, as the network calls it."""
    net = Around(nn.Sequential(Stacked(), Singular()), last=4)
    message = (
        r"^unsupported operation aten\.linalg_svdvals\.default in function\.1, which torch makes of aten\._linalg_svd"
    )
    with pytest.raises(ValueError, match=message):
        capture(net, (6,))


def test_complex_weights_are_told_how_to_be_held() -> None:
    net = Filter()
    net.weight = nn.Parameter(torch.randn(7, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"^weight is complex; hold real and imaginary parts as one real"):
        capture(net, (6,))
    del net.weight
    net.register_buffer("weight", torch.randn(7, 2))
    assert capture(net, (6,)).nodes[3].attributes["call"] == "view_as_complex.default"
    held = Around(lambda x: (torch.fft.rfft(x) * held.factors).abs(), last=7)
    held.register_buffer("factors", torch.randn(7, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"^factors is complex; hold real and imaginary parts"):
        capture(held, (6,))


class Placed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor([0.0, 1.0]), x).float()


class Stacked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, x.sin()], 1).flatten(1)


class Singular(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x.view(-1, 4, 6))


def test_exports_without_torch_name_it(tmp_path: Path) -> None:
    _, graph, tensors, _ = taken("where")
    network = Compressed(graph, {n: _stored(n, graph, t) for n, t in tensors.items()}, {})
    with pytest.raises(
        ValueError, match=r"^C has no add, cumsum, gt, where behind first and arange behind the input, which "
    ):
        planned(network)
    with pytest.raises(ValueError, match=r"^numpy has no add"):
        write_folder(network, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_an_older_version_has_no_newer_operations() -> None:
    _, graph, tensors, _ = taken("where")
    network = Compressed(graph, {n: _stored(n, graph, t) for n, t in tensors.items()}, {})
    assert file.dumps(network)[0][4] == 5
    plain = capture(nn.Linear(3, 2), (3,))
    assert file.dumps(Compressed(plain, {"weight": np.ones((2, 3), "f"), "bias": np.ones(2, "f")}, {}))[0][4] < 5


HOSTILE: list[tuple[dict[str, object], str]] = [
    ({"call": "rand.default", "arguments": [[2]]}, "its call is .*, not a functional operation"),
    ({"call": "as_strided.default", "arguments": []}, "its call is .*, not a functional operation"),
    ({"call": "set_.source_Storage", "arguments": []}, "its call is .*, not a functional operation"),
    ({"call": "empty.memory_format", "arguments": [[9]]}, "its call is .*, not a functional operation"),
    ({"call": "from_file.default", "arguments": ["/etc/passwd"]}, "its call is .*, not a functional operation"),
    ({"call": "__class__.__init__", "arguments": []}, "its call is .*, not a functional operation"),
    ({"call": "relu.default", "arguments": [{"value": 7}]}, "its arguments are not the values"),
    ({"call": "relu.default", "arguments": [{"value": -1}]}, "not a list of arguments"),
    ({"call": "relu.default", "arguments": [{"tensor": "t0"}]}, "its arguments are not the values"),
    ({"call": "relu.default", "arguments": "x"}, "not a list of arguments"),
    ({"call": "relu.default", "arguments": [[[[[[1]]]]]]}, "not a list of arguments"),
    ({"call": "relu.default", "arguments": [{"number": "1e999"}]}, "not a list of arguments"),
    ({"call": "relu.default", "arguments": [{"value": 0}], "keywords": {"out": {"value": 0}}}, "is refused by torch"),
    ({"call": "full.default", "arguments": [[1 << 30, 1 << 20], 1]}, "values held at a time"),
    ({"call": "repeat.default", "arguments": [{"value": 0}, [1 << 20, 1 << 30]]}, "values held at a time"),
    ({"call": "view.default", "arguments": [{"value": 0}, [7, 7]]}, "view.default is refused by torch"),
    ({"call": "to.dtype", "arguments": [{"value": 0}, {"kind": "float64"}]}, "not a list of arguments"),
    ({"call": "select.int", "arguments": [{"value": 0}, 0, 9]}, "select.int is refused by torch"),
    ({"call": "pad.default", "arguments": [{"value": 0}, [1, 1], "__import__('os')"]}, "its call is|not a list of"),
    ({"call": "relu.default", "arguments": [{"value": 0}], "part": 3}, "relu.default has no result 3"),
    ({"call": "relu.default", "arguments": [{"value": 0}], "part": 0}, "relu.default has no result 0"),
    ({"call": "topk.default", "arguments": [{"value": 0}, 1]}, "topk.default has no result None"),
    ({"call": "topk.default", "arguments": [{"value": 0}, 1], "part": 2}, "topk.default has no result 2"),
    ({"call": "sum.default", "arguments": [{"value": 0}]}, "the network's output is"),
    ({"call": "arange.default", "arguments": [1e308]}, "not a list of arguments"),
    ({"call": "slice.Tensor", "arguments": [{"value": 0}, 0, 0, 3]}, "its shape depends on the batch in another way"),
    ({"call": "view.default", "arguments": [{"value": 0}, [{"batch": 1}, -1]]}, "to count them by"),
    ({"call": "view.default", "arguments": [{"value": 0}, [{"batch": 1}, -1]], "batch": 4}, "to count them by"),
    ({"call": "relu.default", "arguments": [None] * 20000}, "not a list of arguments"),
]


@pytest.mark.parametrize(("attributes", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_calls(attributes: dict[str, object], message: str) -> None:
    nodes = (Node("input"), Node("linear", (0,), {"weight": "w"}), Node("aten", (1,), {}, attributes))
    with pytest.raises(ValueError, match=message) as told:
        gate.check(Graph(nodes, (4,)), {"w": (4, 4)})
    assert "\n" not in str(told.value)


def test_indices_beyond_a_table_are_told() -> None:
    """What only the values tell is one line, too."""
    call = {
        "call": "index_select.default",
        "arguments": [{"value": 0}, 1, {"literal": [99], "kind": "int64", "shape": [1]}],
    }
    nodes = (Node("input"), Node("linear", (0,), {"weight": "w"}), Node("aten", (1,), {}, call))
    network = Compressed(Graph(nodes, (4,)), {"w": np.ones((4, 4), "f")}, {})
    gate.check(network.graph, {"w": (4, 4)})
    with pytest.raises(ValueError, match=r"^index_select\.default: .*(index|INDICES) .*out of"):
        runner.run(network, np.ones((2, 4), np.float32))


AWARE = ("scaled_dot_product_attention.default", "index.Tensor", "lstm.input", "gru.input", "rnn_tanh.input",
    "rnn_relu.input", "repeat_interleave.self_int")  # fmt: skip
"""Tagged for cases that the file cannot name: dropout that is on, a mask of truth values as an index."""


def test_names_are_functional() -> None:
    """Nothing in the list writes, draws, allocates without values, or depends on values for its shape."""
    wrong = {torch.Tag.nondeterministic_seeded, torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    for name in sorted(NAMES):
        operation, overload = name.split(".")
        function = getattr(getattr(torch.ops.aten, operation), overload)
        assert not function._schema.is_mutable, name
        assert name in AWARE or not wrong & set(function.tags), name
        assert all(isinstance(one.type, torch._C.TensorType | torch._C.ListType) for one in function._schema.returns)


def test_the_specification_names_them() -> None:
    told = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    assert "`aten`" in told
    assert [name for name in sorted(NAMES) if f"`{name}`" not in told] == []
    fields = {"nodes": (), "input_shape": (), "kind": "float32", "inputs": (), "least": 0}
    assert dataclasses.asdict(Graph((), ())) == fields
    assert json.loads(json.dumps(sorted(NAMES)))


def test_values_that_forward_writes_down_travel_in_the_graph() -> None:
    graph = capture(Around(lambda x: x + torch.tensor([1.0, 2, 3]).repeat(4)), (6,), 3)
    told = [one for node in graph.nodes for one in node.attributes.get("arguments", ()) if isinstance(one, dict)]
    assert {"literal": [1.0, 2.0, 3.0], "kind": "float32", "shape": [3]} in told


def test_numbers_without_a_dimension_stay_so_in_numpy() -> None:
    """What `forward` writes into a part of a tensor is a tensor without dimensions, as the masks of Swin are."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            mask = y.new_zeros(3)
            mask[1:2] = 5
            return y + mask

    net, x = Written(), torch.randn(2, 4)
    tensors = {name: tensor.detach().numpy() for name, tensor in tensors_of(net).items()}
    network = file.loads(file.dumps(Compressed(capture(net, (4,), trained=False), tensors, {}))[0])
    np.testing.assert_allclose(runner.run(network, x.numpy()), net(x).detach().numpy(), atol=1e-6)


class Causal(nn.Module):
    """A mask of minus infinity in a buffer, and an upper bound of infinity, as many networks have them."""

    mask: Tensor
    bound: Tensor

    def __init__(self, masked: float = -torch.inf) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 24), nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((4, 4), masked).triu(1))
        self.register_buffer("bound", torch.tensor(torch.inf), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(x.view(-1, 4, 5)).chunk(3, -1)
        return self.last(torch.minimum((q @ k.transpose(1, 2) + self.mask).softmax(-1) @ v, self.bound)[:, -1])


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min])
def test_infinite_buffers_are_numbers_in_files(masked: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Causal(masked).eval(), torch.randn(60, 1, 4, 5)
    fitted = pc.fit(net, (x, x[:, 0, -1, :3].argmax(1)), prior="gaussian", epochs=3)
    posterior = fitted.posterior
    assert posterior.tensors["mask"].min() == -(2.0**100)
    fitted.compress(tolerance=0.5).save(tmp_path / "n.pcn")
    loaded = pc.load(tmp_path / "n.pcn")
    assert loaded.mask.min() < -1e29
    held = {name: loaded.get_parameter(name) for name in ("first.weight", "first.bias", "last.weight", "last.bias")}
    net.load_state_dict(held, strict=False)
    torch.testing.assert_close(loaded(x), net(x))
    net.mask[0, 0] = torch.nan
    with pytest.raises(ValueError, match="mask holds values that are no numbers"):
        capture(net, (1, 4, 5))


def test_weights_of_a_network_with_infinite_buffers_are_taken() -> None:
    net, other = Causal(), Causal()
    given = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    put_weights(other, given, "causal", "w.safetensors")
    assert torch.equal(other.first.weight, net.first.weight)
    given["mask"] = torch.full((4, 4), -torch.inf)
    with pytest.raises(ValueError, match="mask holds 10 of 16 values that are not finite, the first at"):
        put_weights(other, given, "causal", "w.safetensors")


def test_a_counter_is_found() -> None:
    """What is drawn from elsewhere than the input is no literal."""
    counts = iter(range(100))
    with pytest.raises(ValueError, match="computes something else on a batch of 3"):
        capture(Around(lambda x: x * (1 + next(counts))), (6,))


@pytest.mark.parametrize(
    "name", [pytest.param("tables", marks=pytest.mark.slow), "where", "merged", "relative", "headless"]
)
def test_torchs_exporter_writes_them_to_onnx(name: str, tmp_path: Path) -> None:
    _, graph, tensors, x = taken(name)
    network = Compressed(graph, {n: _stored(n, graph, t) for n, t in tensors.items()}, {})
    path = tmp_path / "network.onnx"
    write_onnx(network, card(network, Scores(0.0, 0.0, 0.0, 0.0), 1), path)
    got = load_onnx(path)(x.numpy())
    np.testing.assert_allclose(got, runner.run(network, x.numpy()), rtol=1e-4, atol=1e-5)


def test_exports_take_as_many_examples_as_there_are(tmp_path: Path) -> None:
    """Also where a call is given the number of examples, which torch's exporters must not take for a constant."""
    arguments = [{"value": 0}, [{"batch": 1}, -1]]
    view = {"call": "view.default", "arguments": arguments, "batch": 0}
    nodes = (
        Node("input"), Node("amax", (0,), {}, {"axes": [1], "keepdim": False}), Node("aten", (1,), {}, view),
        Node("linear", (2,), {"weight": "w"}),
    )  # fmt: skip
    w = np.random.default_rng(2).normal(size=(5, 12)).astype(np.float32)
    network, x = Compressed(Graph(nodes, (2, 3, 4)), {"w": w}, {}), torch.randn(7, 2, 3, 4)
    about = card(network, Scores(0.0, 0.0, 0.0, 0.0), 1)
    wanted = x.amax(1).flatten(1).numpy() @ w.T
    write_onnx(network, about, tmp_path / "a.onnx")
    write_program(network, about, tmp_path / "a.pt2")
    write_int8(network, about, tmp_path / "b.onnx", x.numpy(), dynamic=True)
    np.testing.assert_allclose(load_onnx(tmp_path / "a.onnx")(x.numpy()), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(load_program(tmp_path / "a.pt2")(x).numpy(force=True), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(load_onnx(tmp_path / "b.onnx")(x.numpy()), wanted, atol=0.2)


FITTED = {
    "embedding and lstm": (["embed.weight", "memory.weight_ih_l0", "memory.weight_hh_l0"], ["last.weight"]),
    "shared": (["embed.weight"], []),
}


class Words(nn.Module):
    """A network over numbers of words; its head may share the table of the embedding."""

    def __init__(self, share: bool):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.memory = None if share else nn.LSTM(6, 6, batch_first=True)
        self.last = nn.Linear(6, 9)
        if share:
            self.last.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        return self.last((y if self.memory is None else self.memory(y)[0]).mean(1))


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_any_tensor_gets_a_prior(name: str, estimator: str, tmp_path: Path) -> None:
    """Drawn once a pass, wherever it is held; fitted, extracted, compressed, written and read as any other weight."""
    torch.manual_seed(0)
    x = torch.randint(0, 9, (64, 5))
    splits = Splits(*(Data(x, x[:, 0]) for _ in range(3)), tuple(map(str, range(9))))
    config = resolve(FitConfig(prior="log-uniform", epochs=3, estimator=estimator, batch_size=16), 64)
    net = Words(name == "shared")
    fit = fit_posterior(net, splits, config)
    drawn, layers = FITTED[name]
    found = {one.shape.name: type(one).__name__ for one in bayes_layers(fit.model.net)}
    alias = {"last.weight": "embed.weight"} if name == "shared" else {}
    assert {alias.get(n, n): kind for n, kind in found.items()} == (
        dict.fromkeys(drawn, "BayesTensor") | dict.fromkeys(layers, "BayesLayer")
    )
    posterior = extract(fit)
    assert set(posterior.layers) == set(found)
    assert all(bool((layer.std > 0).all()) for layer in posterior.layers.values())
    if name == "shared":  # one site, and both names have its mean
        (site,) = found
        tensors = mean_tensors(fit.model.net, fit.guide)
        assert torch.equal(tensors["embed.weight"], tensors["last.weight"])
        assert torch.equal(tensors[site], posterior.layers[site].mean)
    with torch.no_grad():
        wanted = Network(posterior.graph, posterior.tensors)(x)
    network = Compressed(posterior.graph, {n: t.numpy() for n, t in posterior.tensors.items()}, {})
    again = file.loads(file.dumps(network)[0])
    np.testing.assert_allclose(runner.run(again, x.numpy()), wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_draws_of_a_shared_tensor_are_one() -> None:
    """Both uses of it see the same draw."""
    net = Words(share=True)
    graph = capture(net, (5,), kind="int64")
    drawn = with_tensors(copy.deepcopy(net), everywhere(PRIORS["gaussian"]), "weight", drawable(net, graph, []), ())
    with torch.no_grad():
        drawn(torch.zeros(2, 5, dtype=torch.int64))
    assert torch.equal(drawn.embed.weight, drawn.last.weight)
    assert not torch.equal(drawn.embed.weight, net.embed.weight)


class Recurrent(nn.Module):
    """A table, a recurrent layer, and a head on all of its outputs or on the last state."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, both: bool, last: bool, bias: bool = True):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.memory = kind(6, 5, layers, batch_first=True, bidirectional=both, bias=bias)
        self.head, self.last = nn.Linear(5 * (1 + both), 3), last

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.memory(self.table(x))
        return self.head((state[0] if isinstance(state, tuple) else state)[-1] if self.last else y.mean(1))


class Turned(nn.Module):
    """Products with weights `(in, out)` and `(out, in)` that stand in no layer, in four spellings."""

    def __init__(self, spelling: str):
        super().__init__()
        self.spelling = spelling
        turned = spelling in ("addmm", "matmul")
        self.weight = nn.Parameter(torch.randn((4, 6) if turned else (6, 4)))
        self.bias, self.last = nn.Parameter(torch.randn(6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "addmm":
            y = torch.addmm(self.bias, x.view(-1, 4), self.weight).view(*x.shape[:-1], 6)
        elif self.spelling == "matmul":
            y = x @ self.weight
        else:
            y = x @ (self.weight.t() if self.spelling == "t" else self.weight.transpose(0, 1))
        return self.last(torch.relu(y)).mean(1)


ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = {
    "lstm": (lambda: Recurrent(nn.LSTM, 1, False, False), (7,), "int64", "embedding lstm mean linear"),
    "deep lstm": (lambda: Recurrent(nn.LSTM, 2, False, True), (7,), "int64", "embedding lstm lstm select linear"),
    "gru both ways": (
        lambda: Recurrent(nn.GRU, 1, True, False), (7,), "int64", "embedding gru gru concat mean linear"
    ),
    "gru without biases": (
        lambda: Recurrent(nn.GRU, 1, False, True, False), (4,), "int64", "embedding gru select linear"
    ),
    "upward": (lambda: nn.Sequential(
        nn.ConvTranspose2d(2, 4, (2, 3), (2, 1), (1, 0), (1, 0), groups=2, dilation=(1, 2)), nn.ReLU(),
        nn.Conv2d(4, 1, 1),
    ), (2, 5, 4), "float32", "conv_transpose2d relu conv2d"),
    "upward series": (lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 4, 2, 1, bias=False), nn.Conv1d(3, 1, 1)),
                      (2, 5), "float32", "conv_transpose1d conv1d"),
    "upward space": (lambda: nn.Sequential(nn.ConvTranspose3d(2, 3, 2, 2), nn.Conv3d(3, 1, 1)),
                     (2, 2, 3, 2), "float32", "conv_transpose3d conv3d"),
    "turned, addmm": (lambda: Turned("addmm"), (3, 4), "float32",
                      "regroup linear_transpose regroup relu linear mean"),
    "turned, matmul": (lambda: Turned("matmul"), (3, 4), "float32", "linear_transpose relu linear mean"),
    "turned, t": (lambda: Turned("t"), (3, 4), "float32", "linear relu linear mean"),
    "turned, transpose": (lambda: Turned("transpose"), (3, 4), "float32", "linear relu linear mean"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_sequences_and_transposed_layers_have_rows(name: str, tmp_path: Path) -> None:
    """In torch, in numpy, in ONNX; the outputs are the module's."""
    build, shape, kind, operations = ROWS[name]
    torch.manual_seed(1)
    net = build().eval()
    graph = capture(net, shape, kind=kind)
    assert " ".join(node.op for node in graph.nodes[1:]) == operations
    tensors = {n: dict(net.named_parameters())[n].detach() for node in graph.nodes for n in node.parameters.values()}
    x = torch.randint(0, 11, (3, *shape)) if kind == "int64" else torch.randn(3, *shape)
    with torch.no_grad():
        wanted = net(x).numpy()
    network = Compressed(graph, {n: tensor.numpy() for n, tensor in tensors.items()}, {})
    again = file.loads(file.dumps(network)[0])
    np.testing.assert_allclose(runner.run(again, x.numpy()), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Network(graph, tensors)(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
    path = tmp_path / "network.onnx"
    write_onnx(network, card(network, Scores(0.0, 0.0, 0.0, 0.0), 1), path)
    np.testing.assert_allclose(load_onnx(path)(x.numpy()), wanted, rtol=1e-4, atol=1e-5)


def test_words_that_a_table_does_not_have_are_one_line() -> None:
    build, shape, kind, _ = ROWS["lstm"]
    net = build().eval()
    graph = capture(net, shape, kind=kind)
    network = Compressed(graph, {n: t.detach().numpy() for n, t in net.named_parameters()}, {})
    with pytest.raises(ValueError, match="embedding: numbers from 0 to 11 in a table of 11 rows"):
        runner.run(network, np.arange(5, 12)[None] * np.array([[0, 1, 1, 1, 1, 1, 1]]))


def test_values_of_no_size_are_for_torch_alone() -> None:
    """Tokens in front of which there are none, as some transformers have them."""
    graph = capture(Around(lambda x: torch.cat([x[:, :0], x], 1)), (6,), 3)
    calls = [node.attributes["call"] for node in graph.nodes if node.op == "aten"]
    assert calls == ["slice.Tensor", "cat.default"]
    plan = gate.check(graph, {"first.weight": (12, 6), "first.bias": (12,), "last.weight": (3, 12), "last.bias": (3,)})
    assert plan.output == (3,)
    nodes = (Node("input"), Node("linear", (0,), {"weight": "w"}), *graph.nodes[2:3], Node("relu", (2,)))
    with pytest.raises(ValueError, match=r"node 3 \(relu\): it reads a value of no size"):
        gate.check(Graph(nodes, (4,)), {"w": (4, 4)})


def test_shapes_of_other_values_are_read() -> None:
    graph = capture(Around(lambda x: x.view(-1, 3, 4).reshape_as(x) + x.view(-1, 3, 4).view_as(x)), (6,), 3)
    assert "aten" not in [node.op for node in graph.nodes]


def test_what_an_exporter_refuses_is_one_line_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        try:
            raise RuntimeError("no rule for \x1b[96maten.frobnicate\x1b[0m\n\nstep 2/3")
        except RuntimeError as error:
            raise ValueError("\x1b[91mFailed.\x1b[0m") from error

    monkeypatch.setattr(torch.onnx, "export", refuse)
    graph = capture(Around(lambda x: x.cumsum(1)), (6,), 3)
    network = Compressed(graph, {n: t.numpy() for n, t in tensors_of(Around(lambda x: x)).items()}, {})
    message = (
        r"^torch's exporter to ONNX refuses the network, which has cumsum behind first: no rule for aten\.frobnicate "
        r"step 2/3; export to \.pt2 \(torch\)$"
    )
    with pytest.raises(ValueError, match=message):
        build_by_torch(network, card(network, Scores(0.0, 0.0, 0.0, 0.0), 0))
