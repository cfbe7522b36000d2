"""Draws of a stored posterior against Pyro: the same marginals, densities, KL and k-hat."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import importance
from stored import stored
from torch import nn

from pyro_compress.bayes.diagnostics import FILE_BYTES, Diagnosis, Size, diagnose, most_stored, seeded_rows, told_apart
from pyro_compress.bayes.elbo import kl_nats
from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.marginals import (
    Marginals,
    draw,
    draw_prior,
    drawn_network,
    kl_by_tensor,
    read_marginals,
    write_marginals,
)
from pyro_compress.bayes.model import Fit
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.inspection import arviz_compat
from pyro_compress.inspection.summary import weight_draw_elbo
from pyro_compress.provenance import Provenance
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.types import Data, Graph, LayerShape, Posterior, Splits

SMALL = Size(draws=60, rows=40, weights=20, prior_draws=10)


def toy(n: int = 60) -> Splits:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 2
    x = torch.randn(n, 3, generator=generator)
    x[:, 0] += 2 * y
    data = Data(x, y)
    return Splits(data, data, data, ("a", "b"))


def fitted(tmp_path: Path, net: nn.Module, **options) -> tuple[Fit, Marginals]:
    config = resolve(FitConfig(**({"epochs": 30, "batch_size": 30, "lr": 1e-2, "device": "cpu"} | options)), 60)
    fit = fit_posterior(net, toy(), config)
    (tmp_path / "guide.safetensors").write_bytes(stored(write_marginals, fit.model.net, fit.guide))
    return fit, read_marginals(tmp_path / "guide.safetensors", config, extract(fit))


def layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("bias_prior", ["none", "same"])
@pytest.mark.parametrize("prior", PRIORS)
def test_stored_is_fitted(prior: str, bias_prior: str, tmp_path: Path) -> None:
    """Marginals survive the disk bit by bit; draws and moments agree with the posterior; the KL with the fit's own."""
    fit, marginals = fitted(tmp_path, layers(), prior=prior, bias_prior=bias_prior, epochs=4)
    for site in fit.guide.families:
        q = fit.guide.marginal(site)
        assert torch.equal(marginals.sites[site].loc.float(), q.loc)
        assert torch.equal(marginals.sites[site].scale.float(), q.scale)
    posterior = extract(fit)
    draws = [draw(marginals) for _ in range(200)]
    for name, layer in posterior.layers.items():
        values = torch.stack([d[name].value for d in draws])
        z = (values.mean(0) - layer.mean) / (layer.std / math.sqrt(len(draws)))
        assert z.abs().max() < 5
        assert (values.std(0) / layer.std - 1).abs().median() < 0.1
    closed, exact = PRIORS[prior].closed_form, kl_by_tensor(marginals)
    reference = np.array([kl_nats(fit.model.net, fit.guide) for _ in range(2 if closed else 200)])
    error = reference.std(ddof=1) / math.sqrt(len(reference))
    if prior == "soft-weight-sharing":  # whose components have posteriors of their own
        assert set(exact.values()) == {None}
    else:
        assert sum(kl for kl in exact.values() if kl is not None) == pytest.approx(
            reference.mean(), rel=1e-4, abs=4 * error
        )


@pytest.mark.parametrize("prior", PRIORS)
def test_densities_are_pyros(prior: str, tmp_path: Path) -> None:
    """Log-densities of a draw equal those of Pyro's traces of guide and model on the same values."""
    fit, marginals = fitted(tmp_path, layers(), prior=prior, epochs=4)
    drawn, data = draw(marginals), toy().train
    values = {site: value.float() for tensor in drawn.values() for site, value in tensor.sites.items()}
    with pyro.validation_enabled(False), torch.no_grad():
        guide = pyro.poutine.trace(pyro.poutine.condition(fit.guide, values)).get_trace()
        model = pyro.poutine.trace(pyro.poutine.condition(fit.model, values)).get_trace(data.x, data.y)
        log_q = sum(
            float(fit.guide.marginal(site).log_prob(value).sum()) for site, value in values.items() if site in guide
        )
        logits = drawn_network(extract(fit), drawn)(data.x)
    assert sum(d.log_posterior for d in drawn.values()) == pytest.approx(log_q, rel=1e-3, abs=1e-2)
    values_at = {site: value for tensor in drawn.values() for site, value in tensor.sites.items()}
    exactly = sum(float(q.log_prob(values_at[site]).sum()) for site, q in marginals.sites.items())
    assert sum(d.log_posterior for d in drawn.values()) == pytest.approx(exactly, rel=1e-6, abs=1e-5)
    log_prior = sum(float(model.nodes[site]["fn"].log_prob(value)) for site, value in values.items())
    assert sum(d.log_prior for d in drawn.values()) == pytest.approx(log_prior, rel=1e-3, abs=1e-2)
    torch.testing.assert_close(logits, model.nodes["_RETURN"]["value"], rtol=1e-4, atol=1e-4)


def test_k_hat_is_pyros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyro's `psis_diagnostic`, given importance weights of its own traces, agrees within Monte Carlo error.

    Its programs must be vectorised, which ours are not: its weights are computed one by one instead. Both have 1,000
    draws of their own, so each k has a standard error of about (1 + k) / sqrt(95).
    """
    fit, marginals = fitted(tmp_path, nn.Linear(3, 2), prior="gaussian", lr_scale=5e-2, lr=3e-2, epochs=80)
    data = toy().train

    def weights(model, guide, *args, num_samples, **kwargs):
        found = []
        for _ in range(num_samples):
            drawn = pyro.poutine.trace(guide).get_trace(*args)
            replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace=drawn)).get_trace(*args)
            found.append(float(replayed.log_prob_sum() - drawn.log_prob_sum()))
        return torch.tensor(found, dtype=torch.float64), None, None

    monkeypatch.setattr(importance, "vectorized_importance_weights", weights)
    with torch.no_grad(), pyro.validation_enabled(False):
        theirs = float(importance.psis_diagnostic(fit.model, fit.guide, data.x, data.y, num_particles=1000))
        found = diagnose(extract(fit), marginals, data, Size(1000, 60, 5, 0), seed=3, all_rows=True)
    ours = arviz_compat.pareto_k(found.log_ratios)
    error = (1 + max(ours, 0)) / math.sqrt(95)
    assert ours == pytest.approx(theirs, abs=4 * math.sqrt(2) * error)
    # and on the very same weights: two implementations of one estimator
    monkeypatch.setattr(
        importance, "vectorized_importance_weights", lambda *a, **k: (torch.from_numpy(found.log_ratios), None, None)
    )
    same = float(importance.psis_diagnostic(fit.model, fit.guide, data.x, data.y, num_particles=1000))
    assert ours == pytest.approx(same, abs=0.02)


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Diagnosis]:
    found = {}
    for prior in ("horseshoe", "log-uniform", "gaussian"):
        fit, marginals = fitted(tmp_path_factory.mktemp("run"), layers(), prior=prior)
        found[prior] = diagnose(extract(fit), marginals, toy().train, SMALL)
    return found


def test_groups(diagnosed: dict[str, Diagnosis]) -> None:
    values = diagnosed["horseshoe"].groups.values
    assert {name for name in values["posterior"] if name.startswith("0.")} == {
        f"0.weight.{variable}" for variable in ("element", "unit_norm", "group_scale", "layer_scale")
    }
    assert set(values["prior"]) == set(values["posterior"])
    assert values["posterior"]["0.weight.element"].shape == (1, 60, 12)
    assert values["prior"]["0.weight.element"].shape == (1, 10, 12)
    assert values["log_likelihood"]["y"].shape == values["posterior_predictive"]["y"].shape == (1, 60, 40)
    assert (values["log_likelihood"]["y"] <= 0).all()
    stats = values["sample_stats"]
    by_hand = stats["expected_log_likelihood"] + stats["log_prior"] - stats["log_posterior"]
    np.testing.assert_allclose(stats["elbo"], by_hand)
    np.testing.assert_allclose(stats["kl"].sum(2), stats["log_posterior"] - stats["log_prior"])
    assert "prior" not in diagnosed["log-uniform"].groups.values  # improper: no draws
    assert "0.weight.group_scale" not in diagnosed["gaussian"].groups.values["posterior"]


def test_mean_of_draws_is_the_closed_form_kl(diagnosed: dict[str, Diagnosis]) -> None:
    for prior in ("horseshoe", "gaussian"):
        drawn = diagnosed[prior].groups.values["sample_stats"]["kl"][0].sum(1)
        closed = sum(diagnosed[prior].kl_nats.values())
        assert abs(drawn.mean() - closed) < 5 * drawn.std() / math.sqrt(len(drawn))


def test_standard_error_of_a_sampled_kl(tmp_path: Path) -> None:
    """Of a learned mixture only draws tell the KL: its error is stated, and holds from seed to seed."""
    fit, marginals = fitted(tmp_path, layers(), prior="soft-weight-sharing", epochs=4)
    found = [diagnose(extract(fit), marginals, toy().train, Size(50, 5, 5, 0), seed, True) for seed in range(16)]
    assert all(one.kl_se_nats.keys() == one.kl_nats.keys() for one in found)
    for name in marginals.shapes:
        numbers = np.array([one.kl_nats[name] for one in found])
        stated = np.sqrt(np.mean([one.kl_se_nats[name] ** 2 for one in found]))
        assert numbers.std(ddof=1) == pytest.approx(stated, rel=0.6)  # 16 seeds: 18 % is one standard error
    bounds = [weight_draw_elbo(one, 60) for one in found]
    assert np.std([bound for bound, _ in bounds], ddof=1) == pytest.approx(bounds[0][1], rel=0.5)
    whole = np.array([one.groups.values["sample_stats"]["elbo"][0].mean() for one in found])
    np.testing.assert_allclose([-bound for bound, _ in bounds], whole)  # nothing of it is exact: the integrand's mean


def test_kl_of_a_spike_and_slab_is_no_sample(tmp_path: Path) -> None:
    """Neither seed nor draws move it, and draws of whole weights agree with it."""
    fit, marginals = fitted(tmp_path, layers(), prior="spike-and-slab", epochs=4)
    one, other = (
        diagnose(extract(fit), marginals, toy().train, Size(draws, 60, 5, 0), seed)
        for draws, seed in ((60, 0), (400, 1))
    )
    assert one.kl_nats == other.kl_nats
    assert not one.kl_se_nats
    drawn = other.groups.values["sample_stats"]["kl"][0].sum(1)
    assert abs(drawn.mean() - sum(one.kl_nats.values())) < 4 * drawn.std() / math.sqrt(len(drawn))


def test_arviz_reads_and_compares(diagnosed: dict[str, Diagnosis], tmp_path: Path) -> None:
    data = {}
    for name, diagnosis in diagnosed.items():
        arviz_compat.write_netcdf(arviz_compat.inference_data(diagnosis.groups), tmp_path / f"{name}.nc")
        data[name] = arviz_compat.read_netcdf(tmp_path / f"{name}.nc")
    rows = arviz_compat.compare(data)
    assert {row["name"] for row in rows} == set(data)
    assert rows[0]["elpd"] >= rows[1]["elpd"] >= rows[2]["elpd"]
    posterior = data["horseshoe"]["posterior"]
    assert posterior["0.weight.group_scale"].coords["0.weight.group"].values.tolist() == [0, 1, 2]
    assert posterior["0.weight.element"].coords["0.weight.index"].values[:2].tolist() == ["0,0", "0,1"]


def test_rows_that_are_certain_leave_the_estimate_whole() -> None:
    """One row of log-likelihood 0 in every draw: the estimate of the others, and next to nothing for it."""
    rng = np.random.default_rng(0)
    others = -rng.gamma(2.0, 0.1, (1, 200, 9))
    sure = np.concatenate([others, np.zeros((1, 200, 1))], 2)

    def loo(values: np.ndarray) -> arviz_compat.Loo:
        groups = {"posterior": {"w": others[..., 0]}, "log_likelihood": {"y": values}}
        return arviz_compat.loo(arviz_compat.inference_data(arviz_compat.Groups(groups)))

    assert loo(sure).pareto_k[-1] > 0.7  # what it is for: infinite
    told = told_apart(sure)
    assert (told <= 0).all()
    np.testing.assert_array_equal(told[..., :9], others)
    assert loo(told).elpd == pytest.approx(loo(others).elpd, abs=1e-5)
    assert loo(told).pareto_k[-1] < 0.7


def test_seeds(tmp_path: Path) -> None:
    fit, marginals = fitted(tmp_path, layers(), prior="horseshoe", epochs=2)
    posterior, train = extract(fit), toy().train
    first, again, other = (diagnose(posterior, marginals, train, SMALL, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.log_ratios, again.log_ratios)
    assert not np.array_equal(first.log_ratios, other.log_ratios)
    assert np.array_equal(first.groups.coords["row"], other.groups.coords["row"])  # the same rows in every run
    assert seeded_rows(train, 10).tolist() == sorted(set(seeded_rows(train, 10).tolist()))


def test_prior_draws_of_the_horseshoe(tmp_path: Path) -> None:
    """The half-Cauchy local scale has median 1: so have the ratios of group scale to layer scale."""
    _, marginals = fitted(tmp_path, nn.Linear(3, 2), prior="horseshoe", epochs=2)
    ratios = []
    for _ in range(1000):
        drawn = draw_prior(marginals)["weight"]
        layer = (drawn.sites["weight.global_a"] * drawn.sites["weight.global_b"]).sqrt()
        ratios.append((drawn.gate / layer).flatten())
    below = (torch.cat(ratios) < 1).double().mean()
    assert float(below) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(3000))


SHAPES = {
    "narrow": [LayerShape("a", (10, 4), "input")],
    "LeNet-5": [LayerShape(str(i), s, "weight") for i, s in enumerate([(20, 1, 5, 5), (50, 20, 5, 5), (500, 800)])],
    "wide": [LayerShape(str(i), (4096, 4096), "input") for i in range(3)],
    "deep": [LayerShape(str(i), (512, 512, 3, 3), "output") for i in range(60)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_everything_stored_counts(name: str) -> None:
    """Weights, scales, units, of posterior and prior, with the likelihoods: under 4.5 MB, and as many as fit."""
    size, shapes = Size(), SHAPES[name]
    most = most_stored(shapes, size)

    def total(most: int) -> int:
        counts = [n for s in shapes for n in (math.prod(s.weight), math.prod(s.gate), s.weight[0])]
        return 4 * 260 * sum(min(most, n) for n in counts) + 500 * 200 * 12

    assert total(most) <= FILE_BYTES
    assert most == size.weights or total(most + 1) > FILE_BYTES


@pytest.mark.parametrize("net", ["lenet-300-100", "lenet-5-relu"])
@pytest.mark.slow
def test_size_and_time_of_the_file(net: str, tmp_path: Path) -> None:
    """Under 5 MB, written in under 10 s of the processor, for both LeNets (on random images: neither sees them)."""
    from pyro_compress.networks.nets import build_net

    x, y = torch.rand(100, 1, 28, 28), torch.arange(100) % 10
    splits = Splits(Data(x, y), Data(x[:60], y[:60]), Data(x[:60], y[:60]), tuple("0123456789"))
    config = resolve(FitConfig(prior="horseshoe", epochs=1, pretrain_epochs=0, batch_size=50, device="cpu"), 100)
    fit = fit_posterior(build_net(net, (1, 28, 28), 10, ()), splits, config)
    (tmp_path / "guide.safetensors").write_bytes(stored(write_marginals, fit.model.net, fit.guide))
    marginals = read_marginals(tmp_path / "guide.safetensors", config, extract(fit))
    size = Size(rows=100)  # the other 400 rows are 6 bytes per draw each
    data = arviz_compat.inference_data(diagnose(extract(fit), marginals, splits.train, size).groups)
    started = time.process_time()
    arviz_compat.write_netcdf(data, tmp_path / "a.nc")
    assert time.process_time() - started < 10
    assert os.path.getsize(tmp_path / "a.nc") + 400 * 200 * 6 < 5_000_000


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged(content: bytes, tmp_path: Path) -> None:
    config, posterior = FitConfig(prior="horseshoe"), Posterior(Graph((), ()), {}, {}, "snr", Provenance())
    with pytest.raises(ValueError, match="is missing"):
        read_marginals(tmp_path / "guide.safetensors", config, posterior)
    (tmp_path / "guide.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="holds no marginals"):
        read_marginals(tmp_path / "guide.safetensors", config, posterior)
