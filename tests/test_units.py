"""Units that leave exactly: in recurrent layers, embeddings, concatenations, splits, heads, transposed convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_compress.compression.shrink import shrink, stuck_units, trace_shrink
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.networks import vision
from pyro_compress.networks.attention import split_attention
from pyro_compress.types import Graph


class Speech(nn.Module):
    """A table, recurrent layers one upon the other, a head."""

    def __init__(self, kind: type[nn.RNNBase], both: bool = False, bias: bool = True):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.memory = kind(6, 5, 2, batch_first=True, bidirectional=both, bias=bias)
        self.head = nn.Linear(5 * (1 + both), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(self.table(x))[0].mean(1))


class Joined(nn.Module):
    """Two branches of different widths, one behind the other, twice; batch norm on both together, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 3, 1)
        self.norm, self.three = nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3, padding=1)
        self.last = nn.Linear(12 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.one(x), self.two(x)], 1)
        y = torch.cat([torch.relu(self.three(torch.relu(self.norm(y)))), y], 1)
        return self.last(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


class Heads(nn.Module):
    """Attention of four heads of three, its projections as other people write them, between two residual additions."""

    def __init__(self, how: str):
        super().__init__()
        self.how, width = how, 12
        self.enter, self.norm = nn.Linear(5, width), nn.LayerNorm(width)
        shared = 6 if how == "shared" else width  # two heads of keys and values for four of queries
        if how in ("stacked", "chunks", "last"):
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, shared), nn.Linear(width, shared)
        self.out, self.leave = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.norm(x)
        if self.how == "stacked":  # timm
            q, k, v = self.qkv(y).reshape(-1, 7, 3, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.how == "last":  # heads outermost, the three of each behind one another
            q, k, v = self.qkv(y).view(-1, 7, 4, 9).transpose(1, 2).chunk(3, -1)
        else:
            parts = self.qkv(y).chunk(3, -1) if self.how == "chunks" else (self.q(y), self.k(y), self.v(y))
            q, k, v = (part.unflatten(-1, (-1, 3)).transpose(1, 2) for part in parts)
        if self.how == "shared":
            k, v = (part[:, :, None].expand(-1, -1, 2, -1, -1).reshape(-1, 4, 7, 3) for part in (k, v))
        if self.how == "masked":  # torch alone runs this
            mask = x[:, None, :, :1].transpose(2, 3) > -9
            seen = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        elif self.how == "by hand":
            seen = torch.softmax(q @ k.transpose(-2, -1) / 3**0.5, -1) @ v
        else:
            seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.how == "chunks")
        return self.leave((x + self.out(seen.transpose(1, 2).flatten(2))).mean(1))


class Encoder(nn.Module):
    """Torch's encoder layer, and attention between two sequences."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 8, dropout=0.0, batch_first=True)
        self.layer, self.last = split_attention(layer), nn.Linear(12, 3)
        self.cross = split_attention(nn.MultiheadAttention(12, 6, batch_first=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cross(x[:, :2], self.layer(x), x)[0].mean(1))


class Windows(nn.Module):
    """Attention within windows of pixels, each an example of its own meanwhile, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.out = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.leave = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x)).view(-1, 2, 2, 2, 2, 8).transpose(2, 3).reshape(-1, 4, 8)
        q, k, v = self.qkv(x).view(-1, 4, 3, 4, 2).permute(2, 0, 3, 1, 4)
        x = self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.leave(x.view(-1, 2, 2, 2, 2, 8).transpose(2, 3).reshape(-1, 16, 8).amax(1))


class Turned(nn.Module):
    """A block of a decoder as GPT-2 has it: weights `(in, out)`, their products taken of all tokens at once."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 8), nn.Linear(8, 3)
        for name, *sizes in (("attend", 8, 24), ("merge", 8, 8), ("widen", 8, 14), ("narrow", 14, 8)):
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.randn(*sizes) / 3))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(sizes[1]) / 3))

    def times(self, name: str, x: Tensor) -> Tensor:
        bias, weight = getattr(self, f"{name}_bias"), getattr(self, f"{name}_weight")
        return torch.addmm(bias, x.view(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (one.view(-1, 6, 4, 2).transpose(1, 2) for one in self.times("attend", x).split(8, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(-1, 6, 8)
        x = x + self.times("merge", y)
        x = x + self.times("narrow", nn.functional.gelu(self.times("widen", x)))
        return self.leave(x).mean(1)


class Upward(nn.Module):
    """Transposed convolutions whose windows lie beside each other, and upon each other; a linear layer as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.one = nn.Linear(6, 5 * 4), nn.ConvTranspose2d(5, 4, 2, 2)
        self.two, self.last = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, bias=False), nn.Conv2d(6, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x).view(-1, 5, 2, 2))
        return self.last(torch.relu(self.two(torch.sigmoid(self.one(x))))).mean((2, 3))


class Split(nn.Module):
    """Channels in two parts, of which one goes through a layer; halves that gate each other; places that change."""

    def __init__(self, shuffles: bool = False):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 8, 3), nn.Conv2d(5, 7, 1), nn.Conv2d(10, 12, 1)
        self.norm, self.last, self.shuffles = nn.BatchNorm2d(8), nn.Linear(6, 3), shuffles

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.norm(self.a(x))).split([3, 5], 1)
        x = torch.cat([left, torch.tanh(self.b(right))], 1)
        if self.shuffles:
            x = x.view(-1, 2, 5, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.last(nn.functional.glu(self.c(x), 1).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "lstm": (lambda: Speech(nn.LSTM), (7,), "int64"),
    "gru": (lambda: Speech(nn.GRU), (7,), "int64"),
    "lstm both ways": (lambda: Speech(nn.LSTM, both=True), (7,), "int64"),
    "gru without biases": (lambda: Speech(nn.GRU, bias=False), (7,), "int64"),
    "joined": (Joined, (1, 4, 4), "float32"),
    **{
        f"heads, {how}": (functools.partial(Heads, how), (7, 5), "float32")
        for how in ("separate", "stacked", "chunks", "last", "shared", "by hand", "masked")
    },
    "encoder": (Encoder, (5, 12), "float32"),
    "windows": (Windows, (4, 4, 3), "float32"),
    "upward": (Upward, (6,), "float32"),
    "turned": (Turned, (6, 5), "float32"),
    "unet": (lambda: vision.unet((1, 4, 4), 3), (1, 4, 4), "float32"),
    "split": (Split, (2, 4, 4), "float32"),
    "shuffled": (lambda: Split(shuffles=True), (2, 4, 4), "float32"),
}


@functools.cache
def captured(name: str) -> Graph:
    build, shape, kind = NETWORKS[name]
    return capture(build().eval(), shape, kind=kind)


def taken(name: str, seed: int) -> tuple[Graph, dict[str, Tensor], Tensor]:
    build, shape, kind = NETWORKS[name]
    torch.manual_seed(seed)
    net = build().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    graph = captured(name)
    used = {one for node in graph.nodes for one in node.parameters.values()}
    tensors = {n: t.detach().clone() for n, t in net.state_dict().items() if n in used}
    x = torch.randint(0, 11, (4, *shape)) if kind == "int64" else torch.randn(4, *shape, dtype=torch.float64)
    return graph, tensors, x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(6))
def test_smaller_networks_compute_the_same(name: str, seed: int) -> None:
    """Random rows and columns of everything are zero; what is left is exact in double precision, and no larger."""
    graph, tensors, x = taken(name, seed)
    for key, tensor in tensors.items():
        if tensor.dim() < 2:
            continue
        block = 1 + 2 * (seed % 2 * (name.startswith("heads") and len(tensor) % 3 == 0))  # a head is three rows
        if key not in ("last.weight", "head.weight", "leave.weight"):
            tensor[(torch.rand(len(tensor) // block) < 0.4).repeat_interleave(block)] = 0
        block = block if tensor.shape[1] % block == 0 else 1
        tensor[:, (torch.rand(tensor.shape[1] // block) < 0.4).repeat_interleave(block)] = 0
    small, left = shrink(graph, tensors)
    wanted = Network(graph, tensors)(x)
    torch.testing.assert_close(Network(small, left)(x), wanted, rtol=1e-12, atol=1e-12)
    assert sum(t.numel() for t in left.values()) <= sum(t.numel() for t in tensors.values())


def test_unread_units_of_a_recurrent_layer_leave_with_their_gates() -> None:
    """Nobody but themselves reads two of them; a third is read by one that is needed."""
    graph, tensors, x = taken("lstm", 0)
    tensors["memory.weight_ih_l1"][:, [1, 2, 4]] = 0
    across = tensors["memory.weight_hh_l0"]
    rest = torch.tensor([0, 3])
    for unit in (1, 2):  # they read each other, and are read by nobody else
        across.view(4, 5, 5)[:, [*rest, 4], unit] = 0
    traced = trace_shrink(graph, tensors)
    assert traced.tensors["memory.weight_ih_l0"].shape == (12, 6)
    assert traced.tensors["memory.weight_hh_l0"].shape == (12, 3)
    assert traced.tensors["memory.weight_ih_l1"].shape == (20, 3)
    assert traced.rows["memory.bias_ih_l0"].tolist() == [0, 3, 4, 5, 8, 9, 10, 13, 14, 15, 18, 19]
    assert traced.columns["memory.weight_hh_l0"].tolist() == [0, 3, 4]
    torch.testing.assert_close(
        Network(traced.graph, traced.tensors)(x), Network(graph, tensors)(x), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_unit_without_a_candidate_is_silent(name: str) -> None:
    graph, tensors, x = taken(name, 1)
    gates = len(tensors["memory.bias_ih_l0"]) // 5
    for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        tensors[f"memory.{key}_l0"].view(gates, 5, -1)[2, 3] = 0
    small, left = shrink(graph, tensors)
    assert left["memory.weight_hh_l0"].shape == (gates * 4, 4)
    torch.testing.assert_close(Network(small, left)(x), Network(graph, tensors)(x), rtol=1e-11, atol=1e-12)


def test_columns_of_a_table_leave() -> None:
    graph, tensors, x = taken("gru", 2)
    tensors["memory.weight_ih_l0"][:, [0, 4]] = 0  # nobody reads them
    tensors["table.weight"][:, 5] = 0  # they say nothing
    small, left = shrink(graph, tensors)
    assert left["table.weight"].shape == (11, 3)
    assert left["memory.weight_ih_l0"].shape == (15, 3)
    torch.testing.assert_close(Network(small, left)(x), Network(graph, tensors)(x), rtol=1e-11, atol=1e-12)


def test_channels_behind_a_concatenation_leave() -> None:
    """A dead filter of either branch goes, with its part of the norm and of every layer behind."""
    graph, tensors, x = taken("joined", 3)
    tensors["one.weight"][2], tensors["two.weight"][0] = 0, 0
    tensors["three.weight"][1] = 0
    small, left = shrink(graph, tensors)
    assert left["one.weight"].shape[0] == 3 or left["norm.weight"].shape[0] < 7
    assert left["last.weight"].shape[1] < 48
    torch.testing.assert_close(Network(small, left)(x), Network(graph, tensors)(x), rtol=1e-11, atol=1e-12)


def exact(graph: Graph, tensors: dict[str, Tensor], x: Tensor) -> tuple[Graph, dict[str, Tensor]]:
    """The smaller network, which computes the same."""
    small, left = shrink(graph, tensors)
    torch.testing.assert_close(Network(small, left)(x), Network(graph, tensors)(x), rtol=1e-12, atol=1e-12)
    return small, left


@pytest.mark.parametrize("dead", ["values", "reader", "values and reader"])
@pytest.mark.parametrize("how", ["separate", "by hand", "masked"])
def test_a_head_leaves_with_its_queries_keys_and_values(dead: str, how: str) -> None:
    """Where its values are the same at all positions (the bias is left: attention passes it on), or nobody reads it."""
    graph, tensors, x = taken(f"heads, {how}", 4)
    if dead != "reader":
        tensors["v.weight"][3:6] = 0
        if how != "separate":  # nobody knows of a product, or behind a mask, that shares add up to one
            tensors["v.bias"][3:6] = 0
    if dead != "values":
        tensors["out.weight"][:, 9:12] = 0
    small, left = exact(graph, tensors, x)
    heads = 2 if dead == "values and reader" else 3
    assert [len(left[f"{one}.weight"]) for one in "qkv"] == [3 * heads] * 3
    assert left["out.weight"].shape == (12, 3 * heads)
    shapes = [node.attributes["shape"] for node in small.nodes if node.op == "reshape"]
    assert (shapes[:3], shapes[-1]) == ([[7, heads, 3]] * 3, [7, 3 * heads])


@pytest.mark.parametrize("how", ["stacked", "chunks", "last", "shared"])
def test_a_head_leaves_a_layer_of_all_three(how: str) -> None:
    """Its queries, keys and values are rows of one layer, or two heads of queries share those of the others."""
    graph, tensors, x = taken(f"heads, {how}", 5)
    tensors["out.weight"][:, 0:6] = 0
    _, left = exact(graph, tensors, x)
    assert left["out.weight"].shape == (12, 6)
    if how == "shared":
        assert (len(left["q.weight"]), len(left["v.weight"])) == (6, 3)
    else:
        assert left["qkv.weight"].shape == (18, 12)


def test_a_part_of_a_head_stays() -> None:
    """All rows of a head go together: two of three dead columns take nothing with them, and one head stays of four."""
    graph, tensors, x = taken("heads, separate", 6)
    tensors["out.weight"][:, 0:2] = 0
    assert exact(graph, tensors, x)[1]["q.weight"].shape == (12, 12)
    tensors["out.weight"][:] = 0
    assert exact(graph, tensors, x)[1]["q.weight"].shape == (3, 12)


def test_channels_leave_around_transposed_convolutions() -> None:
    graph, tensors, x = taken("upward", 0)
    tensors["one.weight"][1] = 0  # nobody reads it
    tensors["one.weight"][:, 2] = 0  # nothing makes it: the bias alone is left, which the next one spreads unevenly
    tensors["two.weight"][:, 3] = 0  # nothing makes it
    tensors["last.weight"][:, 5] = 0  # nobody reads it
    _, left = exact(graph, tensors, x)
    assert left["enter.weight"].shape == (16, 6)
    assert left["one.weight"].shape == (4, 4, 2, 2)
    assert left["two.weight"].shape == (4, 4, 3, 3)
    assert left["last.weight"].shape == (3, 4, 3, 3)
    tensors["two.weight"][2] = 0
    assert exact(graph, tensors, x)[1]["two.weight"].shape == (3, 4, 3, 3)


def test_units_of_a_unet_leave() -> None:
    """Before and behind a transposed convolution, whose outputs stand beside those of the way down."""
    graph, tensors, x = taken("unet", 0)
    tensors["up.0.weight"][[0, 7]] = 0
    tensors["join.0.0.weight"][:, [1, 2, 40]] = 0  # the last of them is read on the way down, too
    _, left = exact(graph, tensors, x)
    assert left["middle.3.weight"].shape[0] == 62
    assert left["up.0.weight"].shape[:2] == (62, 30)
    assert left["join.0.0.weight"].shape[1] == 62


def test_channels_leave_parts_of_values() -> None:
    """Of a split, of a concatenation, of two halves of which one gates the other."""
    graph, tensors, x = taken("split", 0)
    tensors["a.weight"][1] = 0
    tensors["c.weight"][:, 2] = 0  # of the part that goes on as it is
    tensors["b.weight"][:, 0] = 0  # of the part that goes through a layer
    tensors["last.weight"][:, 4] = 0
    small, left = exact(graph, tensors, x)
    assert left["a.weight"].shape[0] == 5
    assert left["b.weight"].shape[1] == 4
    assert left["c.weight"].shape[:2] == (10, 8)
    places = [(n.attributes["start"], n.attributes["stop"]) for n in small.nodes if n.op == "slice"]
    assert places == [(0, 1), (1, 5), (0, 5), (5, 10)]


def test_what_keeps_channels_is_told() -> None:
    """The statistics of a layer norm are those of all features: one that nothing makes stays, and is counted once."""
    graph, tensors, _ = taken("heads, separate", 7)
    assert stuck_units(graph, tensors) == {}
    for name in ("enter", "out"):
        tensors[f"{name}.weight"][[2, 5]] = 0
    tensors["out.weight"][8] = 0  # the other one makes it still
    small, left = shrink(graph, tensors)
    assert left["enter.weight"].shape == (12, 5)
    assert stuck_units(small, left) == {"layer_norm": 2}


def test_units_leave_windows() -> None:
    """Of what makes windows of an image, and heads within them."""
    graph, tensors, x = taken("windows", 0)
    assert any(node.op == "regroup" for node in graph.nodes)
    tensors["out.weight"][:, 2:6], tensors["qkv.weight"][:, 3], tensors["out.weight"][1] = 0, 0, 0
    _, left = exact(graph, tensors, x)
    assert {name: tuple(tensor.shape) for name, tensor in left.items() if tensor.dim() > 1} == {
        "enter.weight": (7, 3), "qkv.weight": (12, 7), "out.weight": (7, 4), "leave.weight": (3, 7)
    }  # fmt: skip


def test_heads_and_units_of_turned_weights_leave() -> None:
    graph, tensors, x = taken("turned", 0)
    attend, widen = tensors["attend_weight"], tensors["widen_weight"]
    attend.view(8, 3, 4, 2)[:, 2, 1] = 0  # the values of one head of four
    tensors["attend_bias"].view(3, 4, 2)[2, 1] = 0
    widen[:, [0, 3, 9]], tensors["narrow_weight"][5] = 0, 0
    _, left = exact(graph, tensors, x)
    assert left["attend_weight"].shape == (8, 18)
    assert left["merge_weight"].shape == (6, 8)
    assert left["widen_weight"].shape == (8, 10)
    assert left["narrow_weight"].shape == (10, 8)
