"""A captured network is the network: random networks of everything that is supported, held against their modules."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_networks import (
    OUTPUTS,
    Apply,
    ByHand,
    Rectified,
    Same,
    activation,
    batch_norm,
    conv,
    draw,
    linear,
    norm,
    normed_linear,
    padding,
    part,
    pool,
    prelu,
    rectified_view,
    reduced,
    reshaped,
    residual,
    with_tensor,
)  # fmt: skip
from torch import Tensor, nn

import pyro_compress as pc
from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.layers import BayesLayer, bayesianize, left_out, plain_weights
from pyro_compress.bayes.model import Likelihood
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.train_state import first_train_state
from pyro_compress.compression import packing
from pyro_compress.compression.packing import folded
from pyro_compress.compression.shrink import shrink
from pyro_compress.graph.calls import Call
from pyro_compress.graph.capture import capture
from pyro_compress.graph.ir import first_weights
from pyro_compress.graph.network import Network
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.graph.rules.table import RULES
from pyro_compress.graph.statistics import renewed_statistics
from pyro_compress.metrics import evaluate
from pyro_compress.networks.layered import Layered
from pyro_compress.networks.outputs import with_columns
from pyro_compress.pcn import file, runner
from pyro_compress.provenance import Provenance
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.training.baselines import fit_baseline, point_posterior
from pyro_compress.training.point import dropped_inputs
from pyro_compress.types import Compressed, Data, Graph, Quantity, Splits

SEQUENCES = [(5, 5), (4, 6), (6, 4), (3, 8)]
ON_SEQUENCES = [linear, normed_linear, normed_linear, batch_norm, norm, activation, prelu, padding, pool, reduced,
                reshaped, part, conv, residual, with_tensor]  # fmt: skip


def held(seed: int, net: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Module against graph in both modes, and everything that is made of the graph against the graph."""
    graph = capture(net, input_shape, OUTPUTS)
    x = torch.randn(5, *input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        assert exact.train()(x).shape == (5, OUTPUTS)
        exact = copy.deepcopy(net).double().eval()
        wanted = exact(x)
        tensors = used(graph, exact)
        close(Network(graph, tensors).eval()(x), wanted, 1e-9)
        close(Layered(graph, tensors).eval()(x), wanted, 1e-9)
        flat = {name: tensor.double() for name, tensor in folded(graph, tensors).items()}
        close(Network(graph, flat)(x), wanted, 1e-4)
        dead = cut(graph, tensors, seed)
        wanted = Network(graph, dead)(x)
        small_graph, small = shrink(graph, dead)
        close(Network(small_graph, small)(x), wanted, 1e-9)
        single = {name: tensor.float() for name, tensor in small.items()}
        network = Compressed(small_graph, {name: tensor.numpy() for name, tensor in single.items()}, {})
        got = runner.run(file.loads(file.dumps(network, in_context=False)[0]), x.float().numpy())
        assert np.isfinite(got).all()
        close(torch.from_numpy(got), Network(small_graph, single)(x.float()), 1e-4)


def used(graph: Graph, net: nn.Module) -> dict[str, Tensor]:
    names = {name for node in graph.nodes for name in node.parameters.values()}
    return {name: tensor.detach().double() for name, tensor in net.state_dict().items() if name in names}


def cut(graph: Graph, tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """With dead rows and columns in every weight."""
    generator, found = torch.Generator().manual_seed(seed), {name: tensor.clone() for name, tensor in tensors.items()}
    weights = [node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)]
    for name in weights:
        weight = found[name]
        if name != weights[-1]:
            weight[torch.rand(len(weight), generator=generator) < 0.5] = 0
        weight[:, torch.rand(weight.shape[1], generator=generator) < 0.3] = 0
    return found


def close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    got, wanted = got.detach().double(), wanted.detach().double()
    assert float((got - wanted).abs().max()) <= tolerance * max(float(wanted.abs().max()), 1.0)


def tens(number: int, quick: int) -> list[Any]:
    """Tens of networks, of which the later ones are left to the whole suite."""
    return [pytest.param(ten, marks=pytest.mark.slow if ten >= quick else ()) for ten in range(number)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("tens", tens(20, quick=3))
def test_module_and_graph_are_the_same(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        held(seed, *draw(seed))


@pytest.mark.parametrize("tens", tens(4, quick=1))
def test_networks_on_sequences(tens: int) -> None:
    """Linear layers have their channels last there, batch norm behind the batch."""
    for seed in range(10 * tens, 10 * tens + 10):
        held(seed, *draw(seed, SEQUENCES, ON_SEQUENCES))


class Own(nn.Module):
    """A forward of its own around two layers."""

    def __init__(self, forward: Callable[..., Any], **tensors: Tensor):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(6, 6), nn.Linear(6, 3), forward
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def counted(net: nn.Module, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return net.b(x) * net.calls


def of_class(module: type[nn.Module] | Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), module(*args, **options))


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "a dict": (Own(lambda n, x: {"logits": n.b(x)}), "the network returns a dict; it must return one tensor"),
    "two outputs in training": (Own(lambda n, x: (n.b(x),) * 2 if n.training else n.b(x)), "in training mode the netw"),
    "another shape in training": (
        Own(lambda n, x: n.a(x) if n.training else n.b(x)),
        r"of shape \(6,\), in eval",
    ),
    "an error in training": (
        Own(lambda n, x: n.c(x) if n.training else n.b(x)),
        "in training mode the network fails",
    ),
    "an if on the data": (Own(lambda n, x: n.b(x) if x.sum() > 0 else n.b(-x)), "depends on the values of its input"),
    "a counter": (Own(counted), "computes something else on a batch of 3: it depends on more than its input"),
    "a lost batch": (Own(lambda n, x: n.b(x).squeeze()), r"on a batch of 1, .* of shape \(3,\) for 1 examples"),
    "one output": (Own(lambda n, x: n.b(x)[:, :1]), r"gives outputs of shape \(1,\), the data ask for \(3,\)"),
    "outputs per position": (Own(lambda n, x: n.b(x)[:, None]), r"gives outputs of shape \(1, 3\), the data"),
    "other examples": (Own(lambda n, x: n.b(x) - n.b(x).mean(0)), "depends on the others of its batch"),
    "always dropped": (Own(lambda n, x: F.dropout(n.b(x))), "drops values in evaluation mode too"),
    "double sums": (
        Own(lambda n, x: n.b(x[:, None]).sum(1, dtype=torch.float64)),
        "dtype=torch.float64 is not sup",
    ),
    "bits": (Own(lambda n, x: n.b(x).view(torch.int32)), "aten.view.dtype: dtype=torch.int32 is not supported"),
    "half in between": (Own(lambda n, x: n.b(x).half().float()), "it computes in float16; networks are float32"),
    "a double buffer": (Own(lambda n, x: n.b(x) * n.d, d=torch.ones(3).double()), "it computes in float64; networks"),
    "a changed input": (Own(lambda n, x: n.b(x.sub_(0.5))), "aten.sub_.Tensor: it changes the input of the network"),
    "a changed buffer": (Own(lambda n, x: n.b(x) * n.d.add_(1), d=torch.ones(3)), "it changes d in place"),
    "no statistics": (of_class(nn.BatchNorm1d, 3, track_running_stats=False), "in 1: batch norm without running stati"),
    "half": (of_class(nn.Identity).half(), "0.weight is float16; networks are float32"),
    "double": (of_class(nn.Identity).double(), "0.weight is float64; networks are float32"),
    "lazy": (nn.Sequential(nn.LazyLinear(3)), "0.weight has no shape yet; call the network once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line(name: str, capfd: pytest.CaptureFixture) -> None:
    net, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        capture(net, (6,), 3)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_misread_operation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a reader gets wrong is found by running module and graph side by side."""
    wrong = replace(RULES["tanh"], reads={"tanh": lambda call: ("relu", [call["self"]], {}, {})})
    monkeypatch.setitem(RULES, "tanh", wrong)
    net = nn.Sequential(nn.Linear(6, 3), nn.ModuleDict({"x": nn.Tanh()})["x"], nn.Tanh())
    with pytest.raises(ValueError, match=r"something else on a batch of 3: aten.tanh.default in 1$"):
        capture(net, (6,))


def test_every_argument_of_every_reader_is_looked_at_or_refused() -> None:
    """An argument that no reader asks for, of an operation that has one it does not know."""
    program = torch.export.export(nn.Softplus(1, 30), (torch.zeros(2, 3),))
    (node,) = [node for node in program.graph.nodes if node.op == "call_function"]
    call = Call(node)
    assert call["beta"] == 1
    with pytest.raises(ValueError, match=r"^self=.*threshold=30 is not supported"):
        call.refuse_unread()


def test_modes_and_statistics_stay_as_they_were() -> None:
    net = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout())
    net[1].eval()
    before, state = {key: t.clone() for key, t in net.state_dict().items()}, torch.random.get_rng_state()
    plain_weights(net, capture(net, (6,), 3))
    assert [module.training for module in net] == [True, False, True]
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


class Named(nn.Module):
    """Parts with the names that our own modules use, or once used, for theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.paths = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.running_scale, self.likelihood, self.net = nn.Parameter(torch.rand(5)), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.likelihood(self.paths(self.graph(x)) * self.running_scale).relu())


def by_size(x: Tensor) -> Tensor:
    """A number per example scales the example."""
    return x * torch.sigmoid(x.mean(1) * 2 - 0.1).unsqueeze(1)


def test_a_number_per_example_has_no_channels() -> None:
    held(0, nn.Sequential(nn.Linear(6, 5), Apply(by_size), nn.Linear(5, OUTPUTS)), (6,))
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(0))
    graph = capture(with_columns(net, (6,), 1), (6,), 1)
    assert [node.op for node in graph.nodes] == ["input", "linear", "relu", "linear", "reshape"]
    assert graph.nodes[-1].attributes == {"shape": [1]}


def test_any_name_may_be_given_to_a_part() -> None:
    net = Named().eval()
    graph, x = capture(net, (6,)), torch.randn(4, 6).double()
    for kind in (Network, Layered):
        made = kind(graph, net.state_dict()).double().eval()
        close(made(x), copy.deepcopy(net).double()(x), 1e-12)
        assert "running_scale" in dict(made.named_parameters())
        assert {"paths.running_mean", "graph.weight"} <= set(made.state_dict())
    bayes = bayesianize(net, PRIORS["gaussian"], among=plain_weights(net, graph))
    assert sum(isinstance(module, BayesLayer) for module in bayes.modules()) == 3


def test_folding_a_constant_makes_a_bias_of_its_own() -> None:
    """Where a network has a tensor of that name already, or two layers share theirs."""
    torch.manual_seed(1)
    net = nn.Sequential(ByHand(6, 5), nn.Sigmoid(), ByHand(5, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[5].bias = net[3].bias
    graph, x = capture(net, (6,)), torch.randn(4, 6).double()
    tensors = {name: tensor.detach().double().clone() for name, tensor in net.state_dict().items()}
    for name in ("0.weight", "3.weight"):
        tensors[name][:2] = 0
    small_graph, small = shrink(graph, tensors)
    close(Network(small_graph, small)(x), Network(graph, tensors)(x), 1e-12)
    assert len(small["5.weight"].T) == 2


# --- priors and bounds go where the graph says


class Doubled(nn.Linear):
    """A linear layer in evaluation only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


def hooked() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.register_forward_hook(lambda module, args, out: out.relu())
    return layer


PARTS: dict[str, tuple[nn.Module, bool]] = {
    "linear": (nn.Linear(6, 6), True),
    "subclass": (Same(6, 6), True),
    "more than linear": (Rectified(6, 6), False),
    "other in training": (Doubled(6, 6), False),
    "hooked": (hooked(), False),
    "by hand": (ByHand(6, 6), False),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_prior_goes_to_what_is_a_layer_and_nothing_else(name: str) -> None:
    module, plain = PARTS[name]
    net = Own(lambda n, x: n.b(n.c(x)))
    net.c = module
    graph = capture(net, (6,), 3)
    found = plain_weights(net, graph)
    assert found == ["b.weight"] + ["c.weight"] * plain  # `a` is never called
    told = left_out(net, graph, found)
    assert ("no prior on c.weight" in told) != plain
    assert "a.weight" not in told
    assert left_out(net, graph, found, keep=("c",)) == ""
    bayes = bayesianize(net, PRIORS["gaussian"], among=found)
    assert isinstance(bayes.c, BayesLayer) == plain
    assert type(bayes.a) is nn.Linear


def test_tensors_are_read_in_other_shapes_but_not_as_weights() -> None:
    """A scale per channel is often stored flat; a weight's shape is what a file and a prior go by."""
    way = lambda n, x: n.b(n.a(x) * n.scale.view(1, -1) + n.shift.reshape(2, 3).flatten()[None])  # noqa: E731
    net = Own(way, scale=torch.rand(6), shift=torch.rand(6))
    graph = capture(net, (6,), 3)
    assert [node.op for node in graph.nodes] == ["input", "linear", "constant", "multiply", "constant", "add", "linear"]
    x = torch.randn(4, 6)
    assert torch.allclose(Network(graph, net.state_dict())(x), net(x), atol=1e-6)
    other = Own(lambda n, x: n.b(F.linear(x, n.flat.view(6, 6))), flat=torch.randn(36))
    assert [node.op for node in capture(other, (6,), 3).nodes] == ["input", "aten", "linear"]


class HeadFirst(nn.Module):
    """Registered last to first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.skip, self.unused = (nn.Linear(6, n) for n in (3, 6, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x * 2).relu() + self.skip(x))


def test_the_first_layers_are_those_that_read_the_input() -> None:
    net = HeadFirst()
    graph = capture(net, (6,), 3)
    assert first_weights(graph) == ["body.weight", "skip.weight"]
    likelihood = Likelihood("classification", 10)
    config = resolve(FitConfig(prior="log-uniform", max_scale=0.2, device="cpu"), 10)
    train_state = first_train_state(net, graph, likelihood, (torch.zeros(2, 6), torch.zeros(2).long()), config)
    bounds = train_state.objective.elbo.guide.max_log_scale
    assert bounds == {f"{name}.weight.raw": pytest.approx(math.log(0.2)) for name in ("body", "skip")}
    seen: dict[str, Tensor] = {}
    net.train()
    with dropped_inputs(net, graph, 0.0, 1.0):
        for name, layer in net.named_children():
            layer.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0]}))
        net(torch.ones(4, 6))
    assert {name: bool((x == 0).all()) for name, x in seen.items()} == {"body": True, "skip": True, "head": False}


# --- whole fits


def splits_of(net: nn.Module, task: str = "classification") -> Splits:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 6, generator=generator)
    if task == "regression":
        data = Data(x, (2 * x[:, :1] - x[:, 1:2]) / 5**0.5)
        return Splits(data, data, data, (), targets=(Quantity("y", 0.0, 1.0),))
    data = Data(x, x[:, :3].argmax(1))
    return Splits(data, data, data, ("a", "b", "c"))


FITTED: dict[str, nn.Module] = {
    "an unused layer": HeadFirst(),
    "a bool buffer": Own(lambda n, x: n.b(n.a(x) * n.mask), mask=torch.rand(6) > 0.3),
    "names of ours": Named(),
    "a changed view": Own(lambda n, x: n.b(rectified_view(n.a(x)))),
    "a subclass": nn.Sequential(Same(6, 6), nn.ReLU(), Rectified(6, 6), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("prior", ["none", "log-uniform", "horseshoe"])
def test_what_is_captured_is_fitted_and_written(name: str, prior: str, tmp_path: Path) -> None:
    net = FITTED[name]
    splits = splits_of(net)
    config = resolve(FitConfig(prior=prior, epochs=2, pretrain_epochs=1, device="cpu", compile="off"), 120)
    if prior == "none":
        posterior, _ = fit_baseline(net, splits, config)
    else:
        posterior = extract(fit_posterior(net, splits, config))
    network, _ = pc.compress(posterior, splits, pc.Goal(sparsity=0.3))
    pc.save(tmp_path / "n.pcn", network, splits)
    assert pc.load(tmp_path / "n.pcn")(splits.train.x).shape == (120, 3)


def test_a_network_that_looks_into_its_layers_is_told_so() -> None:
    net = Own(lambda n, x: n.b(n.a(x.to(n.b.weight.device))))
    config = resolve(FitConfig(prior="gaussian", epochs=1, pretrain_epochs=0, device="cpu", compile="off"), 120)
    with pytest.raises(ValueError, match=r"more than its output: .*attribute 'weight'.* with --keep"):
        fit_posterior(net, splits_of(net), config)
    posterior = extract(fit_posterior(net, splits_of(net), replace(config, keep=("b",))))
    assert float(posterior.layers["a.weight"].std.min()) > 0
    assert float(posterior.layers["b.weight"].std.max()) == 0


@pytest.mark.parametrize("prior", ["none", "gaussian"])
def test_one_output_without_a_column_is_one_with_it(prior: str) -> None:
    """Targets (n, 1): outputs (n,) and (n, 1) give the same error."""
    torch.manual_seed(0)
    plain, errors = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), []
    for net in (plain, nn.Sequential(*copy.deepcopy(plain), nn.Flatten(0))):
        assert net(torch.zeros(4, 6)).shape in {(4, 1), (4,)}
        splits = splits_of(net, "regression")
        config = resolve(FitConfig(prior=prior, epochs=3, pretrain_epochs=1, device="cpu", compile="off", lr=1e-2), 120)
        if prior == "none":
            posterior, history = fit_baseline(net, splits, config)
        else:
            fit = fit_posterior(net, splits, config)
            posterior, history = extract(fit), fit.history
        made = Network(posterior.graph, posterior.tensors).eval()
        errors.append((evaluate(made, splits, "validation").error, history[-1].validation_rmse))
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


@pytest.mark.parametrize(("end", "said"), [(nn.Softmax(1), True), (nn.Sigmoid(), True), (nn.LogSoftmax(1), False)])
def test_a_softmax_at_the_end_is_said(end: nn.Module, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(6, 3), end)
    for prior in ("none", "gaussian"):
        caplog.clear()
        config = resolve(FitConfig(prior=prior, epochs=1, pretrain_epochs=0, device="cpu", compile="off"), 120)
        (fit_baseline if prior == "none" else fit_posterior)(net, splits_of(net), config)
        warned = [record.getMessage() for record in caplog.records if record.name.startswith("pyro_compress")]
        assert [("taken for logits" in message) for message in warned] == [True] * said


def test_a_wrong_fold_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of the check would be wrong alike if it began with the folded network."""
    net = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(4, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    splits = splits_of(net)
    tensors = {name: tensor.detach() for name, tensor in net.eval().state_dict().items()}
    posterior = point_posterior(capture(net, (6,), 3), tensors, Provenance())
    network, _ = pc.compress(posterior, splits, pc.Goal(sparsity=0.0))
    pc.save(tmp_path / "right.pcn", network, splits)
    monkeypatch.setattr(packing, "_ranks", lambda graph, tensors: [2] * len(graph.nodes))
    network, _ = pc.compress(posterior, splits, pc.Goal(sparsity=0.0))
    with pytest.raises(RuntimeError, match="with batch norm as scale and shift the network is off by"):
        pc.save(tmp_path / "wrong.pcn", network, splits)
    assert not (tmp_path / "wrong.pcn").exists()


def test_norms_that_share_a_scale_alone_are_not_folded() -> None:
    """Nor goes a bias into a shift that another layer has too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4),
                        nn.BatchNorm1d(4), nn.Linear(4, 4))  # fmt: skip
    net[3].weight, net[6].bias = net[1].weight, net[4].bias
    for index in (1, 3, 5):
        net[index].running_var.uniform_(0.5, 2)
        net[index].running_mean.normal_()
        nn.init.normal_(net[index].bias)
    graph, x = capture(net, (6,)), torch.randn(9, 6)
    tensors = {name: tensor.detach() for name, tensor in net.eval().state_dict().items()}
    flat = folded(graph, tensors)
    close(Network(graph, flat)(x).detach(), net(x).detach(), 1e-5)
    assert [int(flat[f"{i}.running_mean"].abs().max() == 0) for i in (1, 3, 5)] == [0, 0, 1]
    close(Network(graph, flat | renewed_statistics(graph, flat, x))(x).detach(), net(x).detach(), 1e-4)
