"""Units that leave a running fit: the function stays, so does Adam's memory, and nothing comes back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stored import stored_posterior
from torch import Tensor, nn

import pyro_compress as pc
from pyro_compress.bayes import dead_units
from pyro_compress.bayes.dead_units import masked_tensors, without_dead_units
from pyro_compress.bayes.extract import extract, mean_tensors
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.layers import bayes_layers
from pyro_compress.bayes.model import Likelihood
from pyro_compress.bayes.train_state import TrainState, first_train_state
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.compression.shrink import Shrunk, trace_shrink
from pyro_compress.data.splits import load_splits
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network
from pyro_compress.networks.layered import Layered, momenta
from pyro_compress.runs.config import never_shrinks, resolve
from pyro_compress.runs.folder import load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.checkpoint import Checkpointer, Interrupted
from pyro_compress.types import Data, Splits

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Sigmoid(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, momentum=0.3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 2, padding="same"), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(),
        nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 10),
    )  # fmt: skip


NETS = {"mlp": mlp, "conv": conv}


@pytest.fixture(scope="module")
def splits() -> Splits:
    full = load_splits("digits")
    return Splits(Data(full.train.x[:300], full.train.y[:300]), full.validation, full.test, full.classes)


def train_state_of(
    name: str, prior: str, splits: Splits, grouping: str | None = None, optimizer: str = "adam"
) -> tuple[TrainState, FitConfig]:
    """A train state with random moments, in which some units make nothing and others are not heard."""
    asked = FitConfig(prior=prior, grouping=grouping, shrink_every=1, device="cpu", optimizer=optimizer)
    config = resolve(asked, len(splits.train))
    torch.manual_seed(4)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_()
    likelihood, example = Likelihood("classification", len(splits.train)), (splits.train.x[:2], splits.train.y[:2])
    train_state = first_train_state(net, capture(net, splits.input_shape), likelihood, example, config)
    for moments in (train_state.state.first, train_state.state.second):
        for moment in moments:
            moment.uniform_()
    train_state.state.count = 7
    guide = train_state.objective.elbo.guide
    layers = bayes_layers(train_state.objective.elbo.model.net)
    for layer in layers:
        gated = layer.shape.gate if layer.prior.factors else layer.shape.weight
        rows = torch.rand(gated[0]) < 0.4 if layer is not layers[-1] else torch.zeros(gated[0], dtype=torch.bool)
        columns = torch.rand(gated[1]) < 0.4
        dead = rows.view(-1, *[1] * (len(gated) - 1)) | columns.view(1, -1, *[1] * (len(gated) - 2))
        bury(guide, layer, dead.expand(gated))
    return train_state, config


@torch.no_grad()
def bury(guide: nn.Module, layer: nn.Module, dead: Tensor) -> None:
    """Put what is dead far below every threshold, in the parameter that the criterion looks at."""
    name = layer.shape.name.replace(".", "/")
    loc, log_scale = dict(guide.loc.items()), dict(guide.log_scale.items())
    if layer.prior.factors is None:
        log_scale[f"{name}/raw"][dead] = 2.0
    elif f"{name}/scale" in loc:
        log_scale[f"{name}/scale"][dead] = 2.0
    else:
        loc[f"{name}/local_b"][dead] = -40.0


CASES = [
    ("mlp", "log-uniform", None),
    ("mlp", "normal-jeffreys", "input"),
    ("mlp", "horseshoe", "output"),
    ("conv", "log-uniform", None),
    ("conv", "horseshoe", "output"),
    ("conv", "horseshoe", "filter"),
]


@pytest.mark.parametrize(("net", "prior", "grouping"), CASES)
def test_the_smaller_network_computes_what_the_masked_one_does(
    net: str, prior: str, grouping: str | None, splits: Splits
) -> None:
    """With the dead weights of living units masked as before, function and guide agree exactly."""
    train_state, config = train_state_of(net, prior, splits, grouping)
    before = masked_tensors(train_state, config)
    smaller = without_dead_units(train_state, (splits.train.x[:2], splits.train.y[:2]), config, 3)
    assert smaller is not None
    after = masked_tensors(smaller, config)
    x = splits.validation.x
    wanted = Network(train_state.graph, before).double().eval()(x.double())
    found = Network(smaller.graph, after).double().eval()(x.double())
    assert torch.allclose(found, wanted, atol=1e-5)
    removal = smaller.removals[0]
    assert removal.epoch == 3
    assert removal.parameters_after == sum(t.numel() for t in after.values()) < removal.parameters_before
    assert all(b >= a for b, a in zip(removal.widths_before, removal.widths_after, strict=True))
    assert removal.widths_before[-1] == removal.widths_after[-1] == 10


@pytest.mark.parametrize(
    ("net", "prior", "grouping", "optimizer"),
    [*((*case, "adam") for case in CASES), ("mlp", "log-uniform", None, "natural"), (*CASES[-1], "natural")],
)
def test_survivors_keep_posterior_and_moments(
    net: str, prior: str, grouping: str | None, optimizer: str, splits: Splits
) -> None:
    """Every value of the smaller train state is found in the larger one, at the place the removal tells."""
    train_state, config = train_state_of(net, prior, splits, grouping, optimizer)
    small = trace_shrink(train_state.graph, masked_tensors(train_state, config))
    smaller = without_dead_units(train_state, (splits.train.x[:2], splits.train.y[:2]), config, 1)
    assert smaller is not None
    old = {t.name: index for index, t in enumerate(train_state.trained)}
    assert smaller.state.count == train_state.state.count
    for index, t in enumerate(smaller.trained):
        assert t.rate == train_state.trained[old[t.name]].rate
        rows, columns = places(t.name, small)
        for part in ("first", "second"):
            wanted = picked(getattr(train_state.state, part)[old[t.name]], rows, columns)
            assert torch.equal(getattr(smaller.state, part)[index], wanted)
        if t.name.startswith("guide.log_scale"):
            assert torch.equal(t.parameter, picked(train_state.trained[old[t.name]].parameter, rows, columns))


def places(parameter: str, small: Shrunk) -> tuple[Tensor | None, Tensor | None]:
    dotted = f".{parameter.removeprefix('model.net.').replace('/', '.')}."
    name = next(n for n in small.tensors if f".{n}." in dotted)
    return small.rows.get(name), small.columns.get(name)


def picked(tensor: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    if rows is not None and len(tensor) > 1:
        tensor = tensor[rows]
    return tensor[:, columns] if columns is not None and tensor.dim() > 1 and tensor.shape[1] > 1 else tensor


def test_little_is_left_alone(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    train_state, config = train_state_of("mlp", "log-uniform", splits)
    monkeypatch.setattr(dead_units, "LEAST_SHARE", 0.99)
    assert without_dead_units(train_state, (splits.train.x[:2], splits.train.y[:2]), config, 1) is None


@pytest.mark.parametrize("name", NETS)
def test_layered_trains_like_the_network(name: str, splits: Splits) -> None:
    """Same outputs, gradients and batch-norm statistics, in training mode and in evaluation mode."""
    torch.manual_seed(5)
    net = NETS[name]()
    layered = Layered(capture(net, splits.input_shape), net.state_dict(), momenta(net)).double()
    assert layered.state_dict().keys() == net.double().state_dict().keys()
    x = splits.train.x[:20].double()
    for mode in (True, False):
        wanted, found = net.train(mode)(x), layered.train(mode)(x)
        assert torch.allclose(found, wanted)
        wanted.square().sum().backward()
        found.square().sum().backward()
    for key, parameter in layered.named_parameters():
        assert torch.allclose(parameter.grad, net.get_parameter(key).grad), key
    for key, buffer in layered.named_buffers():
        assert torch.allclose(buffer, net.get_buffer(key)), key
    assert sum(type(m) in (nn.Linear, nn.Conv2d) for m in layered.modules()) == sum(
        type(m) in (nn.Linear, nn.Conv2d) for m in net.modules()
    )


def fit_config(**options) -> FitConfig:
    given = {"prior": "log-uniform", "seed": 1, "epochs": 5, "pretrain_epochs": 0, "init_scale": 0.03, "lr": 1e-4}
    return FitConfig(**(given | {"shrink_every": 2, "device": "cpu", "hidden": (16, 12)} | options))


@torch.no_grad()
def with_idle_units(net: nn.Module) -> nn.Module:
    """Half of the units of every hidden layer make almost nothing, under a posterior that does not care for them."""
    for module in list(net.modules())[:-1]:
        if type(module) in (nn.Linear, nn.Conv2d):
            module.weight[::2] *= 1e-4
    return net


@pytest.mark.parametrize("net", NETS)
def test_units_only_fall_and_the_history_tells(net: str, splits: Splits) -> None:
    config = resolve(fit_config(), len(splits.train))
    torch.manual_seed(0)
    fit = fit_posterior(with_idle_units(NETS[net]()), splits, config)
    assert fit.removals
    told = [epoch.widths for epoch in fit.history if epoch.widths]
    assert told == [removal.widths_after for removal in fit.removals]
    assert [e.epoch for e in fit.history if e.widths] == [removal.epoch for removal in fit.removals]
    for earlier, later in zip(fit.removals, fit.removals[1:], strict=False):
        assert earlier.parameters_after == later.parameters_before
    posterior = extract(fit)
    mean = mean_tensors(fit.model.net, fit.guide)
    assert all(torch.equal(mean[name], tensor) for name, tensor in posterior.tensors.items())
    assert posterior.parameters_total == sum(p.numel() for p in posterior_free(NETS[net]()))


def posterior_free(net: nn.Module) -> list[Tensor]:
    """Every tensor that the graph of a network uses."""
    return [t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")]


class Stopping(Checkpointer):
    def __init__(self, folder: Path, stop: int):
        super().__init__(folder, every_epochs=1000, every_minutes=0.0)
        self.left = stop

    def after_step(self, finished_epoch, take) -> None:
        self.left -= 1
        if not self.left:
            self.stop.set()
        super().after_step(finished_epoch, take)


@pytest.mark.parametrize(
    ("net", "optimizer"), [("mlp", "adam"), ("mlp", "natural"), pytest.param("conv", "adam", marks=pytest.mark.slow)]
)
def test_stopped_anywhere_it_ends_the_same(net: str, optimizer: str, splits: Splits, tmp_path: Path) -> None:
    """Before units leave, at the last step of the epoch they leave in, and after."""
    config = resolve(fit_config(compile="off", optimizer=optimizer), len(splits.train))
    torch.manual_seed(0)
    plain = with_idle_units(NETS[net]())
    straight = fit_posterior(plain, splits, config)
    assert straight.removals
    steps = -(-len(splits.train) // config.batch_size)
    last = straight.removals[0].epoch * steps
    for stop in (last - 1, 1, 3, None):  # one per life: each goes on where the one before stopped
        checkpointer = Checkpointer(tmp_path) if stop is None else Stopping(tmp_path, stop)
        try:
            found = fit_posterior(plain, splits, config, checkpointer=checkpointer)
        except Interrupted:
            assert stop is not None
    assert stored_posterior(extract(found)) == stored_posterior(extract(straight))
    without_clock = [[replace(epoch, seconds=0.0) for epoch in fit.history] for fit in (found, straight)]
    assert without_clock[0] == without_clock[1]


def test_a_run_tells_what_left_and_ratios_are_to_what_it_began_with(tmp_path: Path) -> None:
    start = with_idle_units(pc.build_net("mlp", (1, 8, 8), 10, (16, 12)))
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    config = fit_config(net="mlp", init=str(tmp_path / "start.safetensors"))
    run = fit_run(config, tmp_path / "run")
    read = load_run(run.path).posterior
    assert read.removals == run.posterior.removals
    assert read.removals
    report = compress_run(read, run.splits(), tmp_path / "a.pcn", pc.Goal(sparsity=0.3))
    total = 64 * 16 + 16 + 16 * 12 + 12 + 12 * 10 + 10
    assert report.parameters_total == read.parameters_total == total
    assert report.dense_bytes == 4 * total
    assert report.units_before == [64, 16, 12, 10]


REFUSED = {
    "none": ({"prior": "none", "lr_scale": None, "pretrain_epochs": None, "kl_warmup": None}, "goes with a prior"),
    "auto guide": ({"guide": "auto-normal"}, "needs --guide mean-field and --bias-prior none"),
    "random biases": ({"bias_prior": "same"}, "needs --guide mean-field and --bias-prior none"),
    "negative": ({"shrink_every": -1}, "must not be negative"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        resolve(fit_config(**options), 300)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shrink_every": 4}, ""),
        ({"shrink_every": 5}, "--shrink-every 5 removed nothing: the posterior has 5 of 5 epochs, and none"),
        ({"pretrain_epochs": 3}, "--shrink-every 2 removed nothing: the posterior has 2 of 5 epochs, and none"),
        ({"shrink_every": 0}, ""),
    ],
)
def test_a_fit_that_ends_before_units_may_leave_says_so(options: dict, said: str) -> None:
    found = never_shrinks(resolve(fit_config(**options), 300))
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_refused_beside_snapshots_and_dropout(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        fit_run(fit_config(net="mlp"), tmp_path / "run", checkpointing=CheckpointConfig(snapshots=True))
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))
    with pytest.raises(ValueError, match="without dropout"):
        fit_posterior(dropping, splits, resolve(fit_config(), 300))
