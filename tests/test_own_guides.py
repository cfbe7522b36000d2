"""Guides of one's own: from Python, by module and function, in every command; what is none is refused."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyro
import pytest
import torch
from click.testing import CliRunner
from pyro.distributions import LogNormal, Normal, constraints
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_median,
)
from pyro.nn import PyroModule, PyroParam
from torch import nn

import pyro_compress as pc
from pyro_compress.bayes import own_guides
from pyro_compress.bayes.own_guides import bring_guide
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.cli.main import main
from pyro_compress.types import LayerShape, Splits

MODULE = """
import pyro, torch
from pyro.distributions import Normal, constraints

def narrow(x, y=None):
    for name, shape in (("1.weight", (12, 64)), ("3.weight", (10, 12))):
        loc = pyro.param(f"{name}.loc", 0.1 * torch.randn(shape))
        scale = pyro.param(f"{name}.scale", torch.full(shape, 0.05), constraints.positive)
        pyro.sample(f"{name}.raw", Normal(loc, scale).to_event(2))
"""


@pytest.fixture(autouse=True)
def _nothing_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_guides, "_brought", {})
    pyro.clear_param_store()


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def by_hand(prior: str):
    """The mean-field guide of a prior, with the start that ours has."""
    weight = net()[1].weight.detach()
    own = PRIORS[prior]
    shape = LayerShape("1.weight", tuple(weight.shape), own.groupings[0])
    starts = own.start(shape, weight, own.init_scale)

    def guide(x, y=None):
        for site, one in starts.items():
            loc = pyro.param(f"{site}.loc", one.loc)
            scale = pyro.param(f"{site}.scale", one.scale, constraints.positive)
            family = LogNormal if one.family is LogNormal else Normal
            pyro.sample(site, family(loc, scale).to_event(loc.dim()))

    return guide


@pytest.mark.parametrize("prior", ["gaussian", "normal-jeffreys"])
def test_the_mean_field_guide_written_by_hand_gives_the_same_posterior(prior: str, digits: Splits) -> None:
    """The same draws, objective and steps, so the same parameters; its moments are taken from draws."""
    common = {
        "prior": prior, "epochs": 2, "estimator": "weight", "pretrain_epochs": 0, "lr_group": 1e-3, "lr": 1e-3,
        "max_scale": 0, "device": "cpu",
    }  # fmt: skip
    ours, own = pc.fit(net(), digits, **common), pc.fit(net(), digits, guide=by_hand(prior), **common)
    kept = dict(own.fit.guide.kept)
    for site in ours.fit.guide.families:
        loc = kept[f"{site}.loc".replace(".", "/")]
        assert torch.allclose(loc, ours.fit.guide.marginal(site).mean if prior == "gaussian" else loc, atol=1e-5)
        q = ours.fit.guide.marginal(site)
        assert torch.allclose(kept[f"{site}.scale".replace(".", "/")].exp(), q.scale, rtol=1e-4)
        assert torch.allclose(loc, q.loc, atol=1e-5)
    assert own.history[-1].kl_nats == pytest.approx(ours.history[-1].kl_nats, rel=1e-4)
    one, other = ours.posterior.layers["1.weight"], own.posterior.layers["1.weight"]
    assert ((one.mean - other.mean).abs() / one.std).max() < 5 / own_guides.DRAWS**0.5 * 2
    assert float(other.std.mean()) == pytest.approx(float(one.std.mean()), rel=0.05)
    assert len(pyro.get_param_store()) == 0


class Module(PyroModule):
    """A guide with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(10, 64))
        self.scale = PyroParam(torch.full((10, 64), 0.1), constraints.positive)

    def forward(self, x, y=None):
        pyro.sample("1.weight.raw", Normal(self.loc, self.scale).to_event(2))


GUIDES = {
    "class": AutoLowRankMultivariateNormal,
    "full": AutoMultivariateNormal,
    "point": AutoDelta,
    "factory": lambda model: AutoNormal(model, init_loc_fn=init_to_median),
    "module": Module(),
}


@pytest.mark.parametrize("kind", [k if k != "full" else pytest.param(k, marks=pytest.mark.slow) for k in GUIDES])
def test_whatever_pyro_has_is_fitted_and_compressed(kind: str, digits: Splits, tmp_path: Path) -> None:
    fitted = pc.fit(net(), digits, prior="gaussian", guide=GUIDES[kind], epochs=12, lr=1e-2, device="cpu")
    assert fitted.history[-1].validation_accuracy > 0.8
    assert fitted.history[-1].negative_elbo_nats < fitted.history[0].negative_elbo_nats
    assert bool(fitted.posterior.layers["1.weight"].std.any()) == (kind != "point")
    assert fitted.compress(sparsity=0.3).bytes < 2600
    assert len(pyro.get_param_store()) == 0
    assert fitted.save(tmp_path / "run").posterior.layers.keys() == {"1.weight"}


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_guides_here.py").write_text(MODULE)
    common = ("--hidden", "12", "--prior", "gaussian", "--epochs", "2", "--device", "cpu", "--threads", "1")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [*arguments])
        return result.exit_code, result.output.replace("\n", " ")

    code, told = run("fit", *common, "--guide", "own_guides_here:narrow", "--out", "run")
    assert code == 0, told
    code, told = run("inspect", "run", "--json", "--draws", "50", "--threads", "1", "--no-code")
    assert code == 0, told
    assert json.loads(told)["sampled"]["draws"] == 50
    code, told = run("fit", "--config", "run/config.toml", "--out", "again")
    assert code == 0, told
    assert "names code, which is now imported and run: own_guides_here:narrow" in told
    own_guides._brought.pop("own_guides_here:narrow")
    for arguments, message in (
        (("--guide", "own_guides_here:narrow", "--no-code"), "guide 'own_guides_here:narrow' is code to import"),
        (("--guide", "mean-fild"), "did you mean mean-field?"),
        (("--guide", "nowhere:guide"), "guide 'nowhere:guide' cannot be imported: No module named 'nowhere'"),
        (("--guide", "own_guides_here:narrow", "--estimator", "local"), "use --estimator weight"),
    ):
        code, told = run("fit", *common, *arguments)
        assert code in (1, 2)
        assert message in told
    sys.modules.pop("own_guides_here")


def leaves_out(x, y=None):
    pyro.sample("w", Normal(0.0, 1.0))


def without_first_value(x, y=None):
    pyro.param("loc")


def gives_nothing(model):
    return None


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (leaves_out, "samples w; it must sample every site of the model, 1.weight.raw among them"),
        (without_first_value, "fails: ValueError: parameter loc of the guide has no first value"),
        (gives_nothing, "fails: ValueError: a function of a model must return a guide; got None"),
        (3, "a int is no guide"),
    ],
)
def test_what_is_no_guide(guide: object, message: str, digits: Splits) -> None:
    with pytest.raises(ValueError, match=message):
        pc.fit(net(), digits, prior="gaussian", guide=guide, epochs=2)


def test_spreads_move_at_the_rate_of_scales(digits: Splits) -> None:
    for guide, names in (
        (Module(), {"inner.scale_unconstrained"}),
        (by_hand("gaussian"), {"kept.1/weight/raw/scale"}),
        (AutoLowRankMultivariateNormal, {"inner.scale_unconstrained", "inner.cov_factor"}),
        (lambda model: AutoNormal(model), {"inner.scales.1.weight.raw_unconstrained"}),
    ):
        found = pc.fit(net(), digits, prior="gaussian", guide=guide, epochs=1, callbacks=[Once()]).fit.guide
        _, spreads = found.groups(1.0, 2.0, 3.0)
        named = {id(parameter): name for name, parameter in found.named_parameters()}
        assert {named[id(one)] for one in spreads["params"]} == names


class Once(pc.Callback):
    """Ends a fit with its first step."""

    def on_step(self, step) -> bool:
        return True


def test_a_guide_of_an_installed_package(monkeypatch: pytest.MonkeyPatch, digits: Splits) -> None:
    point = SimpleNamespace(name="low-rank", load=lambda: AutoLowRankMultivariateNormal)
    monkeypatch.setattr(own_guides, "entry_points", lambda group: [point] if group == "pyro_compress.guides" else [])
    fitted = pc.fit(net(), digits, prior="gaussian", guide="low-rank", epochs=1, callbacks=[Once()])
    assert isinstance(fitted.fit.guide.inner, AutoLowRankMultivariateNormal)
    with pytest.raises(ValueError, match=r"low-rank, package.module:function; did you mean low-rank\?"):
        pc.fit(net(), digits, prior="gaussian", guide="lowrank")


def test_names_of_guides() -> None:
    assert bring_guide(AutoNormal) == "pyro.infer.autoguide.guides:AutoNormal"
    assert bring_guide(Module()) == f"{__name__}:Module"
    assert bring_guide(leaves_out, "mine") == "mine"
