"""Priors of one's own: from Python, by module and function, in every command; what is none is refused."""

import json
import sys
from pathlib import Path

import pyro
import pytest
import torch
from click.testing import CliRunner
from pyro.distributions import Beta, HalfNormal, Laplace, LogNormal, Normal
from torch import nn

import pyro_compress as pc
from pyro_compress.bayes import own_priors
from pyro_compress.bayes.marginals import draw, read_marginals
from pyro_compress.bayes.own_priors import as_prior, bring, prior_named
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.cli.main import main
from pyro_compress.runs.folder import load_run
from pyro_compress.types import LayerShape

EXAMPLES = Path(__file__).parent.parent / "examples" / "priors"


def laplace(shape, name, scale=0.1):
    return pyro.sample(name, Laplace(0.0, scale).expand(shape).to_event(len(shape)))


def scaled(shape, name, typical=0.3):
    ones = (1,) * len(shape)
    scale = pyro.sample(f"{name}.scale", HalfNormal(typical).expand(ones).to_event(len(ones)))
    return pyro.sample(name, Normal(0.0, scale).expand(shape).to_event(len(shape)))


def gaussian(shape, name, scale=1.0):
    return pyro.sample(name, Normal(0.0, scale).expand(shape).to_event(len(shape)))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_function_is_a_prior_with_options() -> None:
    prior = as_prior(laplace, "laplace").with_options({"scale": 0.5})
    shape = LayerShape("1.weight", (3, 4), "weight")
    trace = pyro.poutine.trace(prior.draw).get_trace(shape)
    fn = trace.nodes["1.weight.raw"]["fn"]
    value = torch.linspace(-1, 1, 12).reshape(3, 4)
    assert torch.allclose(fn.log_prob(value), -(value.abs() / 0.5).sum() - 12 * torch.log(torch.tensor(1.0)))
    start = prior.start(shape, value, 0.02)
    assert torch.equal(start["1.weight.raw"].loc, value)
    assert float(start["1.weight.raw"].scale.max()) == pytest.approx(0.02)
    with pytest.raises(ValueError, match="unknown prior option 'width'; allowed: scale"):
        as_prior(laplace, "laplace").with_options({"width": 1.0})


def test_sites_of_its_own_start_at_the_priors_median() -> None:
    prior = as_prior(scaled, "scaled").with_options({"typical": 2.0})
    start = prior.start(LayerShape("1.weight", (3, 4), "weight"), torch.zeros(3, 4), 0.02)
    assert start["1.weight.raw.scale"].family is LogNormal
    assert float(start["1.weight.raw.scale"].loc.exp()) == pytest.approx(0.6745 * 2, rel=0.3)


def test_the_gaussian_written_by_hand_has_the_closed_forms_kl(digits) -> None:
    """Estimated from draws, or in closed form: the same number."""
    names = (bring(gaussian, "by-hand"), "gaussian")
    found = []
    for name in names:
        config = pc.resolve(
            pc.FitConfig(prior=name, epochs=2, estimator="weight", lr=1e-3, device="cpu", init_scale=0.05), 1000
        )
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        torch.manual_seed(0)
        found.append(pc.fit_posterior(net, digits, config).history[-1].kl_nats)
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_from_python_and_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits) -> None:
    config = pc.resolve(pc.FitConfig(prior=bring(laplace, "laplace"), epochs=2, device="cpu"), len(digits.train))
    posterior = pc.extract(pc.fit_posterior(pc.build_net("mlp", (1, 8, 8), 10, (12,)), digits, config))
    assert posterior.criterion == "snr"
    assert posterior.provenance.prior == "laplace"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    common = ("--hidden", "12", "--epochs", "3", "--device", "cpu", "--threads", "1")
    for name in ("learned_scale", "group_spike_and_slab"):
        run("fit", "--prior", f"priors:{name}", *common, "--out", name)
        told = json.loads(run("inspect", name, "--json", "--threads", "1", "--draws", "50"))
        assert told["sampled"]["draws"] == 50
        found = load_run(Path(name))
        marginals = read_marginals(Path(name) / "guide.safetensors", found.config, found.posterior)
        assert draw(marginals).keys() == {"1.weight", "3.weight"}
        assert any(site.endswith((".scale", ".width")) for site in marginals.sites)
        assert "smaller" in run("compress", name, "--threads", "1", "--out", f"{name}.pcn")


@pytest.mark.parametrize("name", ["laplace", "student_t", "learned_scale", "regularised_horseshoe"])
def test_the_examples_start_where_they_should(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    prior, shape = prior_named(f"priors:{name}"), LayerShape("2.weight", (5, 3, 2, 2), "weight")
    start = prior.start(shape, torch.zeros(shape.weight), 0.1)
    trace = pyro.poutine.trace(prior.draw).get_trace(shape)
    trace.compute_log_prob()
    for site, one in start.items():
        assert tuple(one.loc.shape) == tuple(trace.nodes[site]["value"].shape)
        assert torch.isfinite(trace.nodes[site]["log_prob_sum"])


def nothing(shape, name):
    return torch.zeros(shape)


def elsewhere(shape, name):
    return pyro.sample("w", Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


def between(shape, name):
    pyro.sample(f"{name}.share", Beta(1.0, 1.0))
    return pyro.sample(name, Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


def narrow(shape, name):
    return pyro.sample(name, Normal(0.0, 1.0))


def positional(size):
    return None


def tripled(shape, name):
    return 3 * pyro.sample(name, Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


def positive(shape, name):
    return pyro.sample(name, HalfNormal(1.0).expand(shape).to_event(len(shape)))


def failing(shape, name):
    raise KeyError("boo")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (nothing, "samples nothing; it must sample the weight under the name that it is given"),
        (elsewhere, "samples w; it must sample the weight"),
        (between, "on UnitInterval|on Interval"),
        (narrow, r"gives a tensor of shape \(\); it must give what it draws at 1.weight.raw"),
        (tripled, "gives something else than what it samples at 1.weight.raw: return that"),
        (positive, "posterior is normal: they must be real numbers"),
        (failing, r"^prior 'mine' fails: KeyError: 'boo'$"),
        (positional, r"takes \(size\); a prior takes \(shape, name, and its options by name\)"),
        ("text", "is a str; it must be a Pyro function or a Prior"),
    ],
)
def test_functions_that_are_no_priors(function: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_prior(function, "mine").start(LayerShape("1.weight", (3, 4), "weight"), torch.zeros(3, 4), 0.1)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("--prior", "horsehoe"), "did you mean horseshoe?"),
        (("--prior", "nowhere:prior"), "prior 'nowhere:prior' cannot be imported: No module named 'nowhere'"),
        (("--prior", "math:pi"), "is a float; it must be a Pyro function or a Prior"),
        (("--prior", "math:pi", "--no-code"), "--no-code"),
    ):
        result = CliRunner().invoke(main, ["fit", "--epochs", "1", *arguments])
        assert result.exit_code in (1, 2)
        assert message in result.output.replace("\n", " ")
    with pytest.raises(ValueError, match="there is a prior called horseshoe already"):
        bring(PRIORS["gaussian"], "horseshoe")
    with pytest.raises(ValueError, match="unknown prior 'none-such'; allowed: gaussian,"):
        prior_named("none-such")


def test_a_run_whose_prior_is_code_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_priors_here.py").write_text((EXAMPLES / "priors.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    run(
        "fit",
        "--prior",
        "own_priors_here:laplace",
        "--hidden",
        "12",
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--out",
        "run",
    )
    own_priors._brought.pop("own_priors_here:laplace")
    result = CliRunner().invoke(main, ["inspect", "run", "--no-code"])
    assert result.exit_code == 1
    assert "--no-code" in result.output
    sys.modules.pop("own_priors_here")
