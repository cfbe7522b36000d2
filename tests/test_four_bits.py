"""ONNX in 4 bits: the blocks are what the operation means by them, and validation chooses how far it goes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pyro_compress.compression.candidates import to_module
from pyro_compress.deploy import onnx_four_bits as four
from pyro_compress.deploy.card import card
from pyro_compress.deploy.onnx_files import load_onnx
from pyro_compress.graph.capture import capture
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed, Data, Splits

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SCORES = Scores(0.9, 0.3, 0.01, 0.1)


def small() -> Compressed:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 20), nn.ReLU(), nn.Linear(20, 4, bias=False)]
    net = nn.Sequential(*layers).eval()
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    return Compressed(capture(net, (1, 8, 8)), tensors, {})


def splits_for(network: Compressed, wrong: float = 0.0) -> Splits:
    """Random images whose classes are what the network says, but for a share."""
    x = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = to_module(network)(x).argmax(1)
    y[: int(wrong * 400)] = (y[: int(wrong * 400)] + 1) % 4
    data = Data(x, y)
    return Splits(data, data, data, tuple("abcd"))


def test_blocks() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    weight[1, :8] = 0
    packed, scales = four.blocks_of(weight, 8)
    assert packed.shape == (3, 3, 4)
    assert scales.shape == (3, 3)
    levels = np.stack([packed & 15, packed >> 4], -1).reshape(3, 3, 8).astype(np.float32) - 8
    meant = (levels * scales[..., None]).reshape(3, 24)[:, :20]
    assert (meant[1, :8] == 0).all()
    bound = np.abs(scales).repeat(8, 1)[:, :20]
    assert (np.abs(meant - weight) <= bound * (1 + 1e-5)).all()
    for row, block in ((0, 0), (2, 1)):  # the largest weight of a block is exact
        place = 8 * block + np.abs(weight[row, 8 * block : 8 * block + 8]).argmax()
        assert meant[row, place] == pytest.approx(weight[row, place], rel=1e-6)


@pytest.mark.parametrize("tokens", [False, True])
def test_the_operation_multiplies_what_the_blocks_mean(tokens: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Linear(40, 5).eval()
    shape = (3, 40) if tokens else (40,)
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    network = Compressed(capture(net, shape), tensors, {})
    model = four.build(network, about := card(network, SCORES, 1), integers=False, crop=False)
    layers = four._layers(model)
    made = four.in_four_bits(model, layers, 16, layers, about["input"], np.zeros((1, *shape), np.float32))
    assert [node.op_type for node in made.graph.node] == ["MatMulNBits", "Add"]
    assert "weight" not in {one.name for one in made.graph.initializer}
    (path := tmp_path / "a.onnx").write_bytes(made.SerializeToString())
    packed, scales = four.blocks_of(tensors["weight"], 16)
    levels = np.stack([packed & 15, packed >> 4], -1).reshape(5, 3, 16).astype(np.float32) - 8
    x = np.random.default_rng(1).normal(size=(7, *shape)).astype(np.float32)
    wanted = x @ (levels * scales[..., None]).reshape(5, 48)[:, :40].T + tensors["bias"]
    assert np.allclose(load_onnx(path)(x), wanted, atol=1e-4)


def test_an_output_behind_a_transposition_stays(tmp_path: Path) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x).permute(0, 2, 1)

    net = Turned().eval()
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    network = Compressed(capture(net, (3, 32)), tensors, {})
    model = four.build(network, about := card(network, SCORES, 1), integers=False, crop=False)
    layers = four._layers(model)
    made = four.in_four_bits(model, layers, 16, layers, about["input"], np.zeros((1, 3, 32), np.float32))
    (path := tmp_path / "a.onnx").write_bytes(made.SerializeToString())
    x = torch.randn(4, 3, 32)
    wanted = net(x).detach().numpy()
    assert np.abs(load_onnx(path)(x.numpy()) - wanted).max() < 0.2 * np.abs(wanted).max()


def test_validation_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small()
    splits, about, path = splits_for(network), card(network, SCORES, 1), tmp_path / "a.onnx"
    monkeypatch.setattr(four, "LOSS", 0.2)
    told = four.write_int4(network, about, path, splits, splits.train.x)
    assert told[0].startswith("4 bits in blocks of 128: 3, 5")
    assert told[1] == "8-bit integers: 0"
    assert told[2].startswith("validation accuracy: 100.00 % in floats, ")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("MatMulNBits") == 2
    assert "QuantizeLinear" in kinds
    monkeypatch.setattr(four, "BLOCKS", (16,))
    seen = iter([0.5, 1.0])
    monkeypatch.setattr(four, "_scores", lambda *_: Scores(next(seen), 0.1, 0.1, 0.1))
    told = four.write_int4(network, about, path, splits, splits.train.x)
    assert told[:2] == ["4 bits in blocks of 16: 3", "8-bit integers: 5, 0"]
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("MatMulNBits") == 1
    path.unlink()
    monkeypatch.setattr(four, "_scores", lambda *_: Scores(0.5, 0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"from 100.00 % to 50.00 % even with 3 alone in blocks of 16; nothing was"):
        four.write_int4(network, about, path, splits, splits.train.x)
    assert not list(tmp_path.iterdir())


def test_without_a_linear_layer(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten()).eval()
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    network = Compressed(capture(net, (1, 6)), tensors, {})
    with pytest.raises(ValueError, match="no linear layer, which 4 bits are for; export with --int8"):
        four.write_int4(
            network, card(network, SCORES, 1), tmp_path / "a.onnx", splits_for(small()), torch.zeros(1, 1, 6)
        )
