"""Built-in networks, torchvision's, attention with a layer per projection: held against torch's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from pyro_compress.bayes.layers import bayes_layers, bayesianize
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.graph.statistics import batch_statistics
from pyro_compress.networks.attention import Attention, split_attention
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.spelling import plainly_named
from pyro_compress.networks.weights import put_weights, read_weights
from pyro_compress.pcn.names import check_names


@pytest.mark.parametrize(("name", "theirs"), [("resnet-18", "resnet18"), ("resnet-50", "resnet50")])
def test_residual_networks_are_torchvisions(name: str, theirs: str) -> None:
    with torch.device("meta"):
        one, two = build_net(name, (3, 224, 224), 1000), torchvision.models.get_model(theirs)
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in two.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "layers"),
    [
        ("vgg-16", (3, 32, 32), 14_987_210, 15),
        ("resnet-20", (3, 32, 32), 272_474, 22),
        ("resnet-18", (3, 32, 32), 11_173_962, 21),
        ("vit-tiny", (3, 32, 32), 2_693_578, 1 + 6 * 6 + 1),
        ("fcn-1d", (3, 60), 267_146, 4),
        ("torchvision:mobilenet_v2", (3, 64, 64), 2_236_682, 53),
    ],
)
def test_every_layer_gets_a_prior(name: str, shape: tuple[int, ...], parameters: int, layers: int) -> None:
    """Whatever the graph says has a weight is a layer that `bayesianize` knows."""
    net = build_net(name, shape, 10)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    graph = capture(net, shape)
    weights = [node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)]
    bayes = bayesianize(net, PRIORS["log-uniform"])
    assert sorted(layer.shape.name for layer in bayes_layers(bayes)) == sorted(weights)
    assert len(weights) == layers


@pytest.mark.parametrize("bias", [True, False])
def test_split_attention_computes_the_same(bias: bool) -> None:
    """Cross attention with weights of its own; the weights load under torch's names as well."""
    given = nn.ModuleDict({"mix": nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)}).eval()
    for parameter in given.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, y = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    split = split_attention(given).double()
    wanted = given.double()["mix"](x, y, y)[0]
    assert type(split["mix"]) is Attention
    assert type(given["mix"]) is nn.MultiheadAttention
    assert torch.allclose(split["mix"](x, y, y)[0], wanted)
    for tensor in split.parameters():
        nn.init.zeros_(tensor)
    split.load_state_dict(given.state_dict())
    assert torch.allclose(split["mix"](x, y, y)[0], wanted)


def test_the_vision_transformer_is_torchvisions() -> None:
    """In double precision, where rounding does not hide what differs."""
    theirs = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    ).eval()
    nn.init.normal_(theirs.heads.head.weight)
    ours, x = split_attention(theirs), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    graph = capture(ours, (3, 16, 16))
    wanted = theirs.double()(x)
    torch.testing.assert_close(ours.double()(x), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(Network(graph, ours.state_dict()).double()(x), wanted, rtol=0, atol=1e-12)


def test_batch_statistics_are_torchs() -> None:
    """Against `torch.optim.swa_utils.update_bn` on one batch; torch's variance has n - 1 in its denominator."""
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4), nn.BatchNorm1d(4)
    )
    x = torch.randn(50, 2, 5, 5)
    graph, before = capture(net, (2, 5, 5)), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = batch_statistics(graph, before, x)
    torch.optim.swa_utils.update_bn([x], net)
    assert set(found) == {f"{i}.running_{kind}" for i in (1, 5) for kind in ("mean", "var")}
    for name, values in (("1", 50 * 9), ("5", 50)):
        module = net.get_submodule(name)
        assert torch.allclose(found[f"{name}.running_mean"], module.running_mean, atol=1e-6)
        assert torch.allclose(found[f"{name}.running_var"] * values / (values - 1), module.running_var, rtol=1e-4)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"mix": nn.MultiheadAttention(4, 2, batch_first=True)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner["mix"](x, x, x, attn_mask=torch.zeros(3, 3))[0].mean(1)


class Twice(nn.Module):
    def __init__(self, join: Callable) -> None:
        super().__init__()
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(x, -x)


class Largest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.max(2)[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_net("math:pi", (3,), 2), "network 'math:pi' is 3.14.*, not a function"),
        (lambda: build_net("os:getcwd", (3,), 2), "os:getcwd returned .*; it must return a torch.nn.Module"),
        (lambda: build_net("math:sqrt", (3,), 2), "network 'math:sqrt' needs 'x'; a function of yours gets"),
        (lambda: build_net("builtins:dict", (3,), 2), "network 'builtins:dict' cannot be used: no signature"),
        (lambda: build_net("torch.nn:Linear", (3,), 2), "needs 'in_features'; .* of input_shape, classes, hidden"),
        (lambda: build_net("torchvision:resnet19", (3, 32, 32), 10), "no classifier 'resnet19'; did you mean resnet18"),
        (lambda: build_net("resnet18", (3, 32, 32), 10), "unknown network 'resnet18'; allowed: .*torchvision:NAME"),
        (lambda: build_net("vgg-16", (1, 28, 28), 10), "takes images .* of 32×32 pixels or more"),
        (lambda: build_net("vit-tiny", (3, 32, 40), 10), "square images whose side is a multiple of 8"),
        (lambda: build_net("fcn-1d", (40,), 10), r"takes series \(channels, length\)"),
        (lambda: split_attention(nn.Sequential(nn.MultiheadAttention(4, 2))), "^0: attention is supported with batch"),
        (lambda: capture(Masked(), (3, 4)), "^inner.mix: torch.nn.MultiheadAttention .*split_attention"),
        (lambda: capture(split_attention(Masked()), (3, 4)), "cannot be captured .*: attention masks are not supp"),
        (lambda: capture(Largest(), (2, 7)), "the network's output is int64 of shape .*; it must be float32"),
    ],
)
def test_refusals_name_the_module(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_network_for_other_inputs_is_one_message(capfd: pytest.CaptureFixture) -> None:
    """Torch logs such an error before it raises it; nobody needs it twice."""
    with pytest.raises(ValueError, match=r"cannot be captured by torch.export on \(4,\) inputs: a and b must have"):
        capture(nn.Sequential(nn.Linear(3, 2)), (4,))
    assert capfd.readouterr().err == ""


def test_names_that_no_file_may_hold_are_spelled_plainly(tmp_path: Path) -> None:
    """RegNet calls its blocks `block1-0`; a file of ours, and weights under the old names, go with the new ones."""
    torch.manual_seed(0)
    given = torchvision.models.regnet_y_400mf(num_classes=3).eval()
    before = list(given.state_dict())
    torch.save(given.state_dict(), tmp_path / "given.pt")
    net = build_net("torchvision:regnet_y_400mf", (3, 32, 32), 3).eval()
    put_weights(net, read_weights(str(tmp_path / "given.pt"), net.state_dict()), "given.pt", "regnet")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(x), given(x))
    check_names(net.state_dict())
    assert list(plainly_named(given).state_dict()) == list(net.state_dict())
    assert list(given.state_dict()) == before
    assert plainly_named(net) is net
    both = nn.ModuleDict({"a-b": nn.Linear(1, 1), "a_b": nn.Linear(2, 1)})
    assert {name: m.in_features for name, m in plainly_named(both).named_children()} == {"a_b_": 1, "a_b": 2}
