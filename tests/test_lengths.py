"""Sequences shorter than the longest: which networks take them, and that every way of running one gives the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_shrink import close, doubled
from torch import Tensor, nn

import pyro_compress as pc
from pyro_compress.compression.shrink import shrink
from pyro_compress.deploy.arrays import load_runner
from pyro_compress.deploy.torch_files import load_safetensors
from pyro_compress.graph.capture import capture
from pyro_compress.graph.ir import graph_of
from pyro_compress.graph.network import Network, tensors_of
from pyro_compress.length import Length
from pyro_compress.networks.layered import Layered
from pyro_compress.networks.nets import build_net
from pyro_compress.pcn import file, header, runner
from pyro_compress.pcn.file import loads
from pyro_compress.types import Compressed, Graph

LONGEST, TOKENS = 12, 9


class Windows(nn.Module):
    """Convolutions of a text, of which the first wants four tokens at least."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(TOKENS, 6), nn.Conv1d(6, 5, 4)
        self.pool, self.head = nn.AdaptiveAvgPool1d(1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, length)` -> `(n, 3)`."""
        return self.head(self.pool(self.first(self.embed(x).transpose(1, 2)).relu()).flatten(1))


class Masked(nn.Module):
    """Attention whose places and mask are parts of longer buffers, as published code has it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project, self.head = nn.Embedding(TOKENS, 8), nn.Linear(8, 16), nn.Linear(8, 3)
        self.places = nn.Parameter(torch.randn(1, 20, 8))
        self.register_buffer("mask", torch.full((20, 20), -30.0).triu(1)[None])

    def forward(self, x: Tensor) -> Tensor:
        """`(n, length)` -> `(n, length, 3)`."""
        steps = x.shape[1]
        query, key = self.project(self.embed(x) + self.places[:, :steps]).chunk(2, -1)
        scores = query @ key.transpose(1, 2) + self.mask[:, :steps, :steps]
        return self.head(scores.softmax(-1) @ key)


class Flat(nn.Module):
    """All steps side by side: of one length alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(TOKENS, 4), nn.Linear(4 * LONGEST, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, length)` -> `(n, 3)`."""
        return self.head(self.embed(x).flatten(1))


class Turned(nn.Module):
    """Its last step is read at the end of a table: what a shorter one would not be."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(TOKENS, 4), nn.Linear(4, 3)
        self.places = nn.Parameter(torch.randn(LONGEST, 4))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, length)` -> `(n, length, 3)`."""
        return self.head(self.embed(x) + self.places[LONGEST - x.shape[1] :])


class Middle(nn.Module):
    """Reads one step in the middle: its place is half the length, which no multiple of it says."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(TOKENS, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, length)` -> `(n, 3)`."""
        return self.head(self.embed(x)[:, (x.shape[1] - 1) // 2 + 1])


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    own = {"windows": Windows, "masked": Masked, "flat": Flat, "turned": Turned, "middle": Middle}
    return (own[name]() if name in own else build_net(name, (LONGEST,), TOKENS, vocabulary=TOKENS)).eval()


def texts(length: int) -> Tensor:
    return torch.randint(TOKENS, (5, length), generator=torch.Generator().manual_seed(length))


def packed(graph: Graph, tensors: dict[str, Tensor]) -> Compressed:
    return Compressed(graph, {name: tensor.float().numpy() for name, tensor in tensors.items()}, {"data": "own.npz"})


TAKES = {"lstm": 1, "gru": 1, "gpt": 1, "masked": 1, "turned": 1, "windows": 4}


@pytest.mark.parametrize(("name", "least"), [*TAKES.items(), ("flat", 0), ("middle", 0)])
def test_a_graph_gives_what_its_module_gives_at_every_length(name: str, least: int) -> None:
    net = made(name)
    graph = capture(net, (LONGEST,), kind="int64")
    assert graph.least == least
    network, numbers = Network(graph, tensors_of(net)), packed(graph, tensors_of(net))
    for length in (*range(least or LONGEST, LONGEST), LONGEST):
        x = texts(length)
        expected = net(x)
        close(network(x), expected, 1e-5)
        close(torch.from_numpy(runner.run(numbers, x.numpy())), expected, 1e-5)


class Weighted(nn.Module):
    """Fixed weights for the places of seven tokens, which one token would be multiplied by as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], dtype=torch.float32) / x.shape[1]
        found: Tensor = self.out((self.table(x) * places[:, None]).sum(1))
        return found


def test_a_network_of_one_length_refuses_the_others() -> None:
    """Also the length that its numbers would be broadcast to; whoever traces it gets what it computes."""
    torch.manual_seed(0)
    net = Weighted().eval()
    graph = capture(net, (7,), kind="int64")
    assert graph.least == 0
    for module in (Network(graph, net.state_dict()), Layered(graph, net.state_dict())):
        for length in (1, 2, 6, 8):
            with pytest.raises(ValueError, match=rf"^inputs of shape \({length},\); this network takes \(7,\)$"):
                module(torch.ones(4, length, dtype=torch.int64))
        x = torch.randint(0, 9, (4, 7))
        close(module(x), net(x), 1e-6)
        program = torch.export.export(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2, max=64)}})
        close(program.module()(x[:3]), net(x[:3]), 1e-6)


@pytest.mark.parametrize(("length", "least"), [(0, "1"), (13, "1"), (3, "4"), (11, "")])
def test_other_lengths_are_refused_in_one_line(length: int, least: str) -> None:
    net = made({"1": "gru", "4": "windows", "": "flat"}[least])
    graph = capture(net, (LONGEST,), kind="int64")
    takes = rf"\({least} to 12,\)" if least else r"\(12,\)"
    with pytest.raises(ValueError, match=rf"^inputs of shape \({length},\); this network takes {takes}$"):
        runner.run(packed(graph, tensors_of(net)), np.zeros((2, length), np.int64))


@pytest.mark.parametrize("name", TAKES)
def test_what_is_removed_is_removed_at_every_length(name: str) -> None:
    """Rows of zeros go, the file is read back, and it gives what the masked network gives."""
    net = made(name)
    graph = capture(net, (LONGEST,), kind="int64")
    tensors = {key: tensor.detach().clone() for key, tensor in tensors_of(net).items()}
    for key, tensor in tensors.items():
        if tensor.dim() > 1 and "weight" in key and "embed" not in key and "tokens" not in key:
            tensor[torch.rand(len(tensor)) < 0.5] = 0
    small_graph, small = shrink(graph, doubled(tensors))
    assert small_graph.least == TAKES[name]
    back = loads(file.dumps(packed(small_graph, small))[0])
    assert back.graph.to_dict() == small_graph.to_dict()
    for length in (TAKES[name], 7, LONGEST):
        expected = Network(graph, doubled(tensors))(texts(length))
        close(torch.from_numpy(runner.run(back, texts(length).numpy())), expected, 1e-4)


def test_a_run_folder_keeps_what_changes() -> None:
    graph = capture(made("gpt"), (LONGEST,), kind="int64")
    back = graph_of(json.loads(json.dumps(graph.to_dict())))
    assert back == graph
    assert back.at((5,)) == graph.at((5,))
    shapes = [node.attributes["shape"] for node in back.at((5,)).nodes if node.op == "reshape"]
    assert {shape[0] for shape in shapes} == {5}
    assert all(type(size) is int for shape in shapes for size in shape)


def test_a_file_says_so_in_a_set_of_its_own() -> None:
    """Programs that do not know shorter sequences refuse it; files without stay as they were."""
    graph = capture(made("gpt"), (LONGEST,), kind="int64")
    assert header.set_of(graph) == 8
    assert header.set_of(graph.at((5,))) < 8
    assert "least" not in header.shortened(graph, {})["graph"]


@pytest.mark.parametrize("least", [-1, 12, 1.0, True, "1"])
def test_shortest_sequences_that_are_none_are_refused(least: object) -> None:
    document = capture(made("gru"), (LONGEST,), kind="int64").to_dict() | {"least": least}
    with pytest.raises(ValueError, match=r"sequences from .* steps on, in inputs of shape"):
        graph_of(json.loads(json.dumps(document)))


def test_a_hostile_slope_is_judged_before_it_runs() -> None:
    """What fits the longest sequences alone, and what would take more memory the shorter they are."""
    graph = capture(made("gpt"), (LONGEST,), kind="int64")
    for node in graph.nodes:
        if node.op == "reshape":
            node.attributes["shape"] = [Length(int(size), -(1 << 29)) for size in node.attributes["shape"]]
    with pytest.raises(ValueError, match=r"^node \d+ \(reshape\)"):
        runner.run(packed(graph, tensors_of(made("gpt"))), texts(5).numpy())
    with pytest.raises(ValueError, match=r"^node \d+ \(reshape\)"):
        Network(graph, tensors_of(made("gpt")))(texts(5))


def test_numbers_that_change_are_ints_that_remember() -> None:
    spelled = Length.spelled({"shape": [Length(64, 2), 4], "on": True}, 20)
    assert spelled == {"shape": [{"length": 2, "plus": 24}, 4], "on": True}
    back = Length.read(spelled, 20)
    assert back == {"shape": [64, 4], "on": True}
    assert Length.at(back, -3) == {"shape": [58, 4], "on": True}
    assert Length.read({"length": 1, "plus": "2"}, 20) == {"length": 1, "plus": "2"}


class Next(nn.Module):
    """Class scores of the next byte, `(n, 256, length)`, from the bytes so far."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.memory, self.head = nn.Embedding(256, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 256)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, length)` -> `(n, 256, length)`."""
        return self.head(self.memory(self.embed(x))[0]).transpose(1, 2)


def test_a_file_on_disk_answers_short_texts(tmp_path: Path) -> None:
    """As a module and by `predict`."""
    torch.manual_seed(0)
    net = Next().eval()
    graph = capture(net, (LONGEST,), kind="int64")
    about = {"task": "next-token", "vocabulary": "bytes", "context": LONGEST}
    (path := tmp_path / "next.pcn").write_bytes(file.dumps(replace(packed(graph, tensors_of(net)), meta=about))[0])
    close(pc.load(path)(texts(4)), net(texts(4)), 1e-5)
    (note := tmp_path / "note.txt").write_bytes(b"be")
    (row,) = pc.predict(path, str(note)).rows
    scores = net(torch.tensor([list(b"be")]))[0, :, -1].detach().softmax(0)
    assert row.probabilities[0] == pytest.approx(float(scores.max()), rel=1e-4)


def of_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


EXPORTS: dict[str, Callable[[Path], Callable[[np.ndarray], np.ndarray]]] = {
    "a.onnx": of_onnx,
    "a.pt2": lambda path: lambda x: torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy(),
    "folder": lambda path: load_runner(path).logits,
    "a.safetensors": lambda path: lambda x: load_safetensors(path)(torch.from_numpy(x)).detach().numpy(),
}


@pytest.mark.parametrize("out", EXPORTS)
def test_an_export_of_one_length_says_so(out: str, tmp_path: Path) -> None:
    """And refuses the others, where the file itself takes them."""
    net = made("windows")
    arrays = {f"x_{part}": texts(LONGEST).repeat(20, 1).numpy() for part in ("train", "test")}
    np.savez(tmp_path / "a.npz", **arrays, y_train=np.arange(100) % 3, y_test=np.arange(100) % 3)
    about = {"data": str(tmp_path / "a.npz"), "tokens": TOKENS, "task": "classification"}
    graph = capture(net, (LONGEST,), kind="int64")
    (path := tmp_path / "a.pcn").write_bytes(file.dumps(replace(packed(graph, tensors_of(net)), meta=about))[0])
    exported = pc.export(path, tmp_path / out)
    run, short = EXPORTS[out](tmp_path / out), texts(7)
    close(torch.from_numpy(run(texts(LONGEST).numpy())), net(texts(LONGEST)), 1e-5)
    if out == "a.safetensors":
        assert exported.notes == ()
        close(torch.from_numpy(run(short.numpy())), net(short), 1e-5)
        return
    assert exported.notes[-1] == "sequences are of 12 tokens here; a.pcn itself takes (4 to 12,)"
    with pytest.raises(Exception, match=r"12|dimensions"):
        run(short.numpy())
