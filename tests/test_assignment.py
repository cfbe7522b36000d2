"""Priors by pattern: each tensor by its own prior's recipe; what matches nothing is told."""

import dataclasses
import json
from pathlib import Path

import pyro
import pytest
import torch
from click.testing import CliRunner
from pyro.distributions import Laplace, LogNormal, Normal
from torch import nn

import pyro_compress as pc
from pyro_compress.bayes import own_priors
from pyro_compress.bayes.assignment import assigned, assignment_of, spelled
from pyro_compress.bayes.model import Likelihood
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.train_state import TrainState, first_train_state
from pyro_compress.cli.main import main
from pyro_compress.graph.capture import capture
from pyro_compress.runs.folder import load_run
from pyro_compress.settings import FitConfig
from pyro_compress.types import Splits


@pytest.fixture(autouse=True)
def _nothing_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_priors, "_brought", {})


BOTH = "conv*=horseshoe,fc*=log-uniform"


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc1, self.fc2 = nn.Conv2d(1, 4, 3), nn.Linear(144, 6), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(self.conv1(x).relu().flatten(1)).relu())


def train_state_of(prior: str, **options) -> tuple[TrainState, FitConfig]:
    net = Net()
    config = pc.resolve(pc.FitConfig(prior=prior, device="cpu", **options), 1000)
    example = torch.rand(2, 1, 8, 8), torch.tensor([1, 2])
    return first_train_state(net, capture(net, (1, 8, 8)), Likelihood("classification", 1000), example, config), config


def test_one_pattern_for_all_is_the_prior(digits: Splits) -> None:
    found = []
    for prior in ("horseshoe", "*=horseshoe"):
        config = pc.resolve(pc.FitConfig(prior=prior, epochs=2, device="cpu"), len(digits.train))
        torch.manual_seed(0)
        found.append(pc.extract(pc.fit_posterior(Net(), digits, config)))
    assert all(torch.equal(found[0].layers[n].std, found[1].layers[n].std) for n in found[0].layers)
    assert found[0].criterion == found[1].criterion == "group-mode"


@pytest.mark.parametrize("lr", [None, 1e-4])
def test_each_tensor_is_fitted_by_its_own_recipe(lr: float | None) -> None:
    """Starts, spreads, groupings, bounds are the prior's own; rates are too, in proportion to a given one."""
    train_state, config = train_state_of(BOTH, lr=lr)
    guide, (horseshoe, log_uniform) = train_state.objective.elbo.guide, (PRIORS["horseshoe"], PRIORS["log-uniform"])
    shapes = {layer.shape.name: layer.shape for layer in train_state.objective.layers}
    assert {name: shape.grouping for name, shape in shapes.items()} == {
        "conv1.weight": "input", "fc1.weight": "weight", "fc2.weight": "weight",
    }  # fmt: skip
    assert {site.rpartition(".")[2] for site in guide.families if site.startswith("conv1")} == {
        "raw", "global_a", "global_b", "local_a", "local_b",
    }  # fmt: skip
    assert [site for site in guide.families if site.startswith("fc1")] == ["fc1.weight.raw"]
    assert float(guide.marginal("fc1.weight.raw").scale.detach().mean()) == pytest.approx(log_uniform.init_scale)
    assert float(guide.marginal("conv1.weight.raw").scale.detach().mean()) == pytest.approx(horseshoe.init_scale)
    rates = {one.name: one.rate for one in train_state.trained}
    factor = 1.0 if lr is None else lr / horseshoe.lr
    assert rates["guide.loc.conv1/weight/raw"] == pytest.approx(factor * horseshoe.lr)
    assert rates["guide.loc.fc1/weight/raw"] == pytest.approx(factor * log_uniform.lr)
    assert rates["guide.log_scale.fc2/weight/raw"] == pytest.approx(log_uniform.lr_scale)
    assert rates["guide.loc.conv1/weight/local_a"] == pytest.approx(horseshoe.lr_group)
    assert guide.max_log_scale.keys() == {"conv1.weight.raw"}
    assert (config.estimator, config.grouping) == ("local", "input")
    assert config.pretrain_epochs == round(0.2 * config.epochs)
    assert config.kl_warmup == pytest.approx(0.75 * (config.epochs - config.pretrain_epochs))
    again = pc.resolve(config, 1000)
    assert dataclasses.asdict(again) == dataclasses.asdict(config)


def test_what_has_no_prior_and_what_has_one_of_its_own(digits: Splits) -> None:
    """A prior of one's own for the head, none for the convolution; biases go with their weights."""

    def narrow(shape, name, scale=0.05):
        return pyro.sample(name, Laplace(0.0, scale).expand(shape).to_event(len(shape)))

    prior = {"conv*": "none", "fc2*": narrow, "*": "horseshoe"}
    fitted = pc.fit(Net(), digits, prior=prior, epochs=2, bias_prior="same", device="cpu")
    families = fitted.fit.guide.families
    assert {site for site in families if not site.startswith("fc1.")} == {"fc2.weight.raw", "fc2.bias.raw"}
    assert families["fc1.bias.local_a"] is LogNormal
    assert families["fc2.bias.raw"] is Normal
    assert not fitted.posterior.layers["conv1.weight"].std.any()
    assert fitted.posterior.layers["fc1.weight"].unit_mean is not None
    assert fitted.posterior.layers["fc2.weight"].unit_mean is None
    assert fitted.posterior.criterion == "snr"
    assert fitted.config.estimator == "weight"
    assert fitted.compress(sparsity=0.3).bytes > 0


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("conv*=horseshoe", r"fc1.weight, fc2.weight matches none of the priors' patterns conv\*; give it a prior, or"),
        (
            "head*=gaussian,*=horseshoe",
            r"the prior of 'head\*' is no tensor's; tensors that may have one: conv1.weight",
        ),
        ("*=none", "is none at all; say 'none'"),
        ("fc*=gaussian,fc*=horseshoe", "a pattern stands there twice"),
        ("fc*=gausian", "unknown prior 'gausian'"),
        ("fc*=gaussian,horseshoe", "'horseshoe' is no PATTERN=PRIOR; several priors go"),
        ("gaussian,horseshoe", "'gaussian' is no PATTERN=PRIOR"),
    ],
)
def test_patterns_that_do_not_fit(prior: str, message: str, digits: Splits) -> None:
    with pytest.raises(ValueError, match=message):
        pc.fit(Net(), digits, prior=prior, epochs=2)


def test_options_go_to_those_that_have_them() -> None:
    found = assigned(pc.FitConfig(prior="a*=horseshoe,b*=gaussian", prior_options={"tau0": 1e-3}))
    assert found.of("a.weight").draw.keywords == {"tau0": 1e-3}
    assert found.of("b.weight").draw.keywords == {}
    with pytest.raises(ValueError, match="unknown prior option width; allowed: scale, tau0"):
        assignment_of("a*=horseshoe,b*=gaussian", {"width": 1.0})
    assert spelled({"a*": "horseshoe", "*": "none"}) == "a*=horseshoe,*=none"


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option repeated, in a run's config.toml, in its default name; `inspect` reads the priors again."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [*arguments])
        return result.exit_code, result.output

    common = ("--hidden", "12", "--epochs", "2", "--device", "cpu", "--threads", "1")
    code, told = run(
        "fit", "--prior", "1=horseshoe", "--prior", "3*=log-uniform", "--prior-option", "tau0=1e-4", *common
    )
    assert code == 0, told
    (folder,) = Path("runs").iterdir()
    assert folder.name == "digits-mlp-1_horseshoe_3_log-uniform-0"
    config = load_run(folder).config
    assert (config.prior, config.prior_options) == ("1=horseshoe,3*=log-uniform", {"tau0": 1e-4})
    code, told = run("inspect", str(folder), "--json", "--draws", "50", "--threads", "1")
    assert code == 0, told
    assert json.loads(told)["prior"] == config.prior
    code, told = run("fit", "--config", str(folder / "config.toml"), "--out", "again")
    assert code == 0, told
    for name, layer in load_run(folder).posterior.layers.items():
        assert torch.equal(load_run(Path("again")).posterior.layers[name].std, layer.std)
    assert run("compress", str(folder), "--sparsity", "0.5", "--threads", "1")[0] == 0
    code, told = run("fit", "--prior", "1=horseshoe", *common)
    assert code == 1
    assert "3.weight matches none of the priors' patterns 1;" in told.replace("\n", " ")
    code, told = run("fit", "--prior", "1=horseshoe", "--prior", "*=gausian", *common)
    assert code == 1
    assert "did you mean gaussian?" in told.replace("\n", " ")
    help = " ".join(run("fit", "--help")[1].split())
    assert "[default: horseshoe]" in help or "default: horseshoe" in help
