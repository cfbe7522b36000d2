"""ExecuTorch and LiteRT exports compute what the decoded network computes, in integers where those are asked for."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_export import SCORES, problem
from torch import nn

from pyro_compress.cli.main import main
from pyro_compress.compression.candidates import to_module
from pyro_compress.deploy.card import card, read_card
from pyro_compress.deploy.phone import executorch, litert, traced
from pyro_compress.graph.capture import capture
from pyro_compress.kinds import KINDS
from pyro_compress.types import Compressed, Graph, Node

FORMATS = {
    ".pte": (executorch.write_executorch, executorch.load_executorch, executorch.need_executorch),
    ".tflite": (litert.write_litert, litert.load_litert, litert.need_litert),
}


def needed(suffix: str) -> None:
    try:
        FORMATS[suffix][2]()
    except ValueError as error:
        pytest.skip(str(error))


def network(net: nn.Module, shape: tuple[int, ...]) -> Compressed:
    torch.manual_seed(0)
    graph = capture(net.eval(), shape, trained=False)
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    return Compressed(graph, tensors, {"data": "own.npz"})


def evens() -> Compressed:
    """Convolutions whose padding is larger behind than before."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 4, 4, padding="same"), nn.ReLU(), nn.Conv2d(4, 4, (2, 3), padding="same"), nn.ReLU()]
    return network(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(256, 10)), (1, 8, 8))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A compressed network of the digits that nobody trained for long."""
    made = tmp_path / "digits.pcn"
    fit = ["fit", "--prior", "none", "--hidden", "20", "--epochs", "4", "--threads", "1", "--device", "cpu"]
    for command in ([*fit, "--out", str(tmp_path / "run")], ["compress", str(tmp_path / "run"), "--out", str(made)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    return made


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("integers", [False, True])
def test_what_is_exported_is_what_was_decoded(suffix: str, integers: bool, tmp_path: Path) -> None:
    write, load, _ = FORMATS[suffix]
    needed(suffix)
    found, out = evens(), tmp_path / f"a{suffix}"
    x = torch.randn(20, 1, 8, 8)
    wanted = to_module(found)(x).detach().numpy()
    notes = write(found, card(found, SCORES, 7), out, x if integers else None)
    got = load(out)(x.numpy())
    assert np.abs(got - wanted).max() < (0.05 if integers else 1e-5) * np.abs(wanted).max()
    assert got.shape == wanted.shape
    assert KINDS[suffix][1](out)
    assert read_card(out)[0]["input"]["shape"] == [1, 8, 8]
    assert "one example at a time" in notes[0]
    assert ("8-bit integers" in notes[0]) == integers
    if integers and suffix == ".tflite":
        types, floats = litert.tensor_types(out.read_bytes())
        assert floats == []
        assert set(types) == {"INT8", "INT32"}


class Recurrent(nn.Module):
    """A convolution over time, a recurrent layer, its last state classified."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first, self.memory, self.last = nn.Conv1d(3, 6, 3), kind(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.memory(torch.relu(self.first(x)).transpose(1, 2))[0][:, -1])


class Attentive(nn.Module):
    """A block of a transformer, the mean of its places classified."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.attend = nn.Conv1d(3, 8, 1), nn.LayerNorm(8), nn.Linear(8, 24)
        self.up, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).transpose(1, 2)
        parts = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.attend(self.norm(x)).chunk(3, -1))
        x = x + nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return self.last(nn.functional.gelu(self.up(x)).mean(1))


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("name", ["gru", "lstm", "transformer"])
def test_sequences_in_litert(name: str, integers: bool, tmp_path: Path) -> None:
    needed(".tflite")
    torch.manual_seed(0)
    net = Attentive() if name == "transformer" else Recurrent(nn.GRU if name == "gru" else nn.LSTM)
    found, out = network(net, (3, 6)), tmp_path / "a.tflite"
    x = torch.randn(40, 3, 6)
    wanted = to_module(found)(x).detach().numpy()
    litert.write_litert(found, card(found, SCORES, 7), out, x if integers else None)
    got = litert.load_litert(out)(x.numpy())
    assert np.abs(got - wanted).max() < (0.1 if integers else 1e-5) * np.abs(wanted).max()
    types, floats = litert.tensor_types(out.read_bytes())
    assert (floats == []) == integers
    assert ("INT8" in types) == integers


@pytest.mark.parametrize("suffix", FORMATS)
def test_by_the_command(suffix: str, path: Path, tmp_path: Path) -> None:
    needed(suffix)
    for options, tolerance in (([], 1e-5), (["--int8"], 0.01)):
        out = tmp_path / f"m{len(options)}{suffix}"
        result = CliRunner().invoke(main, ["export", str(path), "-o", str(out), "--json", *options])
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["bytes"] == out.stat().st_size
        assert told["after"]["accuracy"] == pytest.approx(told["before"]["accuracy"], abs=2 * tolerance)
        assert (told["difference"] < 1e-5 * max(told["largest_output"], 1)) == (not options)


def test_an_operation_without_a_kernel_is_named(tmp_path: Path) -> None:
    needed(".pte")

    class Largest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cummax(self.first(x), 1)[0]

    found = network(Largest(), (4,))
    with pytest.raises(ValueError, match=r"^ExecuTorch refuses 'cummax' behind first: .*; leave it out .* to \.onnx$"):
        executorch.write_executorch(found, card(found, SCORES, 7), tmp_path / "a.pte")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "extra"), [(".pte", "executorch"), (".tflite", "litert")])
def test_without_the_packages(
    suffix: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for package in ("executorch.exir", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, package, None)
    (source := tmp_path / "a.pcn").write_bytes(b"")
    result = CliRunner().invoke(main, ["export", str(source), "-o", str(tmp_path / f"m{suffix}")])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert f"pip install 'pyro-compress[{extra}]'" in result.stderr


@pytest.mark.parametrize("error", [OSError("a.so: invalid\nELF header"), AttributeError("no attribute 'a'")])
def test_packages_that_do_not_load(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr(traced, "import_module", broken)
    with pytest.raises(ValueError, match=r"^LiteRT does not load \(\w+: .*\); pip install .*\[litert\]'$") as caught:
        litert.need_litert()
    assert "\n" not in str(caught.value)
    assert " ".join(str(error).split()) in str(caught.value)


def refused(*arguments: object) -> None:
    raise RuntimeError("no such\nkernel")


def test_what_the_tool_chain_of_executorch_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed(".pte")
    from torchao.quantization.pt2e import quantize_pt2e

    found = evens()
    for name in ("convert_pt2e", "prepare_pt2e"):
        monkeypatch.setattr(quantize_pt2e, name, refused)
        with pytest.raises(
            ValueError, match=r"^XNNPACK's quantiser refuses 'conv2d' behind 0: no such kernel; .* --int8$"
        ):
            executorch.write_executorch(found, card(found, SCORES, 7), tmp_path / "a.pte", torch.randn(1, 1, 8, 8))
    assert not list(tmp_path.iterdir())


def test_what_the_tool_chain_of_litert_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed(".tflite")
    from ai_edge_quantizer import quantizer

    monkeypatch.setattr(quantizer.Quantizer, "quantize", refused)
    found = evens()
    with pytest.raises(
        ValueError, match=r"^LiteRT's quantiser refuses 'conv2d' behind 0: no such kernel; .* --integer$"
    ):
        litert.write_litert(found, card(found, SCORES, 7), tmp_path / "a.tflite", torch.randn(1, 1, 8, 8))
    assert not list(tmp_path.iterdir())


class Branches(nn.Module):
    """Two branches that are joined; the second one has a sine between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.more, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = self.more(torch.sin(self.right(x)))
        return self.last(torch.relu(self.left(x)) + right)


def refusing(*refused: str) -> Callable[[Compressed], None]:
    """A tool chain that does not know some operations, and says nothing of which."""

    def convert(found: Compressed) -> None:
        read, last = {len(found.graph.nodes) - 1}, len(found.graph.nodes) - 1
        for index in range(last, 0, -1):
            read |= set(found.graph.nodes[index].inputs) if index in read else set()
        if {found.graph.nodes[index].op for index in read} & set(refused):
            raise traced.Refused("The converter", RuntimeError("no\nkernel"), "to .onnx")

    return convert


@pytest.mark.parametrize(
    ("refused", "named"),
    [
        ("sin", "'sin' behind right"),
        ("relu", "'relu' behind left"),
        ("add", "'add' behind left"),
        ("linear", "'linear'"),
    ],
)
def test_what_is_refused_is_found_by_asking(refused: str, named: str) -> None:
    """Wherever it stands: in a chain, on either side of a sum, at the beginning."""
    found, convert = network(Branches(), (4,)), refusing(refused)
    with pytest.raises(traced.Refused) as caught:
        convert(found)
    message = str(traced.located(found, caught.value, convert))
    assert message.startswith(f"The converter refuses {named}")
    assert message.endswith(": no kernel; leave it out of the network, or export to .onnx")


def test_what_no_beginning_shows_is_named_by_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = network(Branches(), (4,))
    said = traced.Refused(
        "The converter", RuntimeError("graph of 7 nodes: aten.sin.default has no lowering"), "to .onnx"
    )
    assert traced.first_refused(found, lambda _: None) is None
    assert str(traced.located(found, said, lambda _: None)).startswith(
        "The converter refuses 'sin' behind right: graph"
    )
    unknown = traced.Refused("The converter", "no reason", "to .onnx")
    assert str(traced.located(found, unknown, lambda _: None)) == (
        "The converter refuses the network: no reason; export to .onnx"
    )
    assert traced.first_refused(found, refusing("sin"), seconds=-1.0) is None


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteRT's converter, which knows no sine, and its quantiser, which leaves one in floats."""

    def convert(module: nn.Module, example: tuple[torch.Tensor, ...]) -> SimpleNamespace:
        code = str(torch.export.export(module, example).graph)
        if "aten.sin" in code:
            raise RuntimeError("Lowering not found:\n\n  somewhere")
        return SimpleNamespace(model_content=lambda: code.encode())

    def ready(**given: bytes) -> None:
        if b"aten.tanh" in given["model_content"]:
            raise RuntimeError("Didn't find op for builtin opcode 'TANH'")

    monkeypatch.setitem(sys.modules, "litert_torch", SimpleNamespace(convert=convert))
    monkeypatch.setattr(litert, "_in_integers", lambda content, *rest: content)
    monkeypatch.setattr(litert, "_interpreter", ready)
    monkeypatch.setattr(litert, "tensor_types", lambda content: ({}, ["RELU"] if b"relu" in content else []))


def test_litert_names_operation_and_module(converter: object, tmp_path: Path) -> None:
    found = network(Branches(), (4,))
    message = r"^LiteRT's converter refuses 'sin' behind right: Lowering not found: somewhere; .* export to \.onnx$"
    with pytest.raises(ValueError, match=message):
        litert.write_litert(found, card(found, SCORES, 7), tmp_path / "a.tflite")
    bounded = network(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), (4,))
    message = r"^LiteRT's runtime refuses 'tanh' behind 0: Didn't find op for builtin opcode 'TANH'; .* to \.onnx$"
    with pytest.raises(ValueError, match=message):
        litert.write_litert(bounded, card(bounded, SCORES, 7), tmp_path / "a.tflite")
    plain = network(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,))
    message = r"^LiteRT's quantiser refuses 'relu' behind 1: RELU would stay in floats; .* or to model\.c --integer$"
    with pytest.raises(ValueError, match=message):
        litert.write_litert(plain, card(plain, SCORES, 7), tmp_path / "a.tflite", torch.randn(3, 4))
    assert not list(tmp_path.iterdir())


def test_padding_becomes_symmetric() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, (2, 4), padding="same"), nn.Conv2d(3, 2, 3, padding="same"))
    found = network(net, (2, 12, 12))
    made = executorch.symmetric(found)
    assert [node.attributes["padding"][0] == node.attributes["padding"][1] for node in made.graph.nodes[1:]] == [
        True
    ] * 2
    x = torch.randn(3, 2, 12, 12)
    assert torch.allclose(to_module(made)(x), net(x), atol=1e-6)
    assert made.tensors["1.weight"] is found.tensors["1.weight"]


def test_a_weight_that_two_convolutions_share_is_widened_for_each() -> None:
    """And stays as it is for one that pads both sides alike."""
    rng = np.random.default_rng(0)
    window = {"stride": [1], "dilation": [1]}
    paddings = [[[0], [1]], [[0], [1]], [[1], [0]], [[1], [1]]]
    layers = (
        Node("conv1d", (i,), {"weight": "w"}, window | {"padding": padding}) for i, padding in enumerate(paddings)
    )
    graph = Graph((Node("input"), *layers), (2, 9))
    found = Compressed(graph, {"w": rng.standard_normal((2, 2, 2), np.float32)}, {})
    made = executorch.symmetric(found)
    x = torch.randn(3, 2, 9)
    assert torch.allclose(to_module(made)(x), to_module(found)(x), atol=1e-6)
    weights = [node.parameters["weight"] for node in made.graph.nodes[1:]]
    assert len(set(weights)) == 4
    assert [made.tensors[name].shape[2] for name in weights] == [3, 3, 3, 2]
    assert found.tensors["w"].shape[2] == 2


def test_padding_that_no_kernel_makes_up_for() -> None:
    found = network(nn.Sequential(nn.Conv1d(1, 1, 2, padding="same", dilation=3)), (1, 9))
    with pytest.raises(ValueError, match=r"conv1d 0 pads 1 before and 2 behind, which quantised .* --int8"):
        executorch.symmetric(found)


def test_the_card_lies_behind_the_program(tmp_path: Path) -> None:
    about = card(problem("mlp", False), SCORES, 7)
    (made := tmp_path / "a.pte").write_bytes(traced.with_card(b"\0\0\0\0ET12 and more", about))
    assert traced.card_behind(made) == json.loads(json.dumps(about))
    assert KINDS[".pte"][1](made)
    assert made.read_bytes() == traced.with_card(b"\0\0\0\0ET12 and more", about)


def test_values_on_a_grid() -> None:
    about = {"quantization": (0.5, -2), "dtype": np.int8}
    x = np.array([0.0, 0.5, 0.26, -1e9, 1e9], np.float32)
    assert litert.as_taken(x, about).tolist() == [-2, -1, -1, -128, 127]
    assert litert.as_real(np.array([-2, 4], np.int8), about).tolist() == [0.0, 3.0]
    assert litert.as_taken(x, {"quantization": (0.0, 0), "dtype": np.float32}).tolist() == x.tolist()


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    import os
    import warnings

    with traced.quiet():
        print("a")
        os.write(2, b"b")
        warnings.warn("c", stacklevel=1)
    print("d")
    assert capfd.readouterr() == ("d\n", "")
