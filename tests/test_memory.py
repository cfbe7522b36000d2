"""What is worked out in parts is what it is as a whole."""

import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.distributions import LogNormal, Normal
from torch import nn

import pyro_compress as pc
from pyro_compress import machine
from pyro_compress.bayes import marginals
from pyro_compress.bayes.assignment import everywhere
from pyro_compress.bayes.marginals import (
    Marginals,
    Sites,
    draw,
    draw_prior,
    kl_by_tensor,
    log_density,
    read_marginals,
    write_marginals,
)
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.compression import finetuned, search
from pyro_compress.compression.candidates import Candidates
from pyro_compress.compression.precision import quantize, size_of, step_size
from pyro_compress.compression.prune import Ranking, kept, masks_at, scores, unit_scores
from pyro_compress.compression.rounding import Grid
from pyro_compress.compression.target import SearchCallbacks, Target, Trial
from pyro_compress.graph.capture import capture
from pyro_compress.metrics import evaluate_mixture
from pyro_compress.pcn import codec, file
from pyro_compress.provenance import Provenance
from pyro_compress.types import (
    Compressed,
    Graph,
    LayerPosterior,
    LayerShape,
    Posterior,
    Splits,
    blocks,
    nonzero,
    rows_of,
)

COUNTED_ANEW = """
from pyro_compress.deploy.memory import high_water_from_now, high_water_mib
b"x" * (1 << 27)
start = high_water_from_now()
quiet = high_water_mib() - start
b"x" * (1 << 27)
print(quiet, high_water_mib() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts anew")
def test_the_high_water_counts_from_where_it_is_asked_to() -> None:
    """What was taken and given back before does not count; what comes after does (a process with nothing else)."""
    told = subprocess.run([sys.executable, "-c", COUNTED_ANEW], capture_output=True, text=True, check=True).stdout
    quiet, taken = map(float, told.split())
    assert quiet < 16
    assert 120 < taken < 144


@pytest.fixture
def posterior(monkeypatch: pytest.MonkeyPatch) -> Posterior:
    """Two layers with a scale per input, worked on in blocks of some rows."""
    monkeypatch.setattr("pyro_compress.types.rows_of.__defaults__", (64,))
    layers = {
        name: LayerPosterior(torch.randn(*size), torch.rand(*size), torch.rand(1, size[1]), torch.rand(1, size[1]))
        for name, size in {"a": (30, 16), "b": (7, 30)}.items()
    }
    return Posterior(Graph((), (16,)), layers, {}, "group-snr", Provenance())


def test_parts_are_the_whole(posterior: Posterior) -> None:
    values = posterior.layers["a"].mean
    assert len(rows_of((30, 16))) == 8
    assert torch.equal(torch.cat(list(blocks(values))), values)
    assert nonzero(torch.tensor([1.0, 0.0])) == nonzero(torch.tensor(2.0)) == 1


@pytest.mark.parametrize("criterion", ["snr", "magnitude", "group-snr"])
def test_ranking_is_that_of_the_scores(criterion: str, posterior: Posterior) -> None:
    ranking, ranks = Ranking(posterior, criterion, (0.25, 0.5)), scores(posterior, criterion)
    for sparsity in (0.0, 0.25, 0.5, 0.77, 0.999, {"a": 0.5, "b": 0.9}):
        wanted = masks_at(ranks, sparsity)
        assert all(torch.equal(mask, wanted[name]) for name, mask in ranking.masks(sparsity).items())
    rule = kept(posterior.layers, criterion)
    for name, layer in posterior.layers.items():
        assert torch.equal(unit_scores(layer, criterion), ranks[name].flatten(1).amax(1))
        assert rule[name].shape == layer.mean.shape
    with pytest.raises(ValueError, match="sparsity 1: allowed are values"):
        ranking.masks(1)


def test_steps_and_integers(posterior: Posterior) -> None:
    layer = posterior.layers["a"]
    mask = layer.mean > 0.3
    typical = float(layer.mean[mask].double().square().mean().sqrt())
    step = step_size(size_of(layer.mean, mask), 0.1)
    assert step == pytest.approx(0.1 * typical, rel=1e-6)
    codes = quantize(layer.mean, step).codes
    assert (codes == torch.round(layer.mean.double() / step).int().numpy()).all()
    assert (codec.decode(codec.encode(codes), codes.shape) == codes).all()


@pytest.mark.parametrize("prior", ["gaussian", "horseshoe"])
def test_prior_draws_in_parts(prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights under one scale are drawn with the same one in every part, and spread as the prior says."""
    shape = LayerShape("a", (20, 16), PRIORS[prior].groupings[0])
    start = PRIORS[prior].start(shape, torch.randn(20, 16), 0.1)
    families = {site: one.family for site, one in start.items()}
    whole = Marginals(
        Sites(families, {n: (one.loc, one.scale) for n, one in start.items()}), {"a": shape}, everywhere(PRIORS[prior])
    )
    found = []
    for most in (1 << 18, 64):
        monkeypatch.setattr(marginals, "DRAWN", most)
        torch.manual_seed(0)
        drawn = draw_prior(whole)
        assert drawn
        one = drawn["a"]
        assert torch.allclose(one.norms, one.value.norm(dim=1))
        found.append(one)
        assert (one.gate is None) == (shape.grouping == "weight")
        assert one.gate is None or tuple(one.gate.shape) == shape.gate
    assert len(whole.parts("a")) == 5
    assert prior != "gaussian" or torch.equal(found[0].value, found[1].value)
    assert found[0].sites.keys() >= found[1].sites.keys()


@pytest.mark.parametrize("prior", ["gaussian", "normal-jeffreys", "horseshoe"])
def test_draws_in_parts(prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 16 values take the same noise in parts as in one go; densities and KL are sums over the parts."""
    shape = LayerShape("a", (20, 16), PRIORS[prior].groupings[0])
    start = PRIORS[prior].start(shape, torch.randn(20, 16), 0.1)
    families = {site: one.family for site, one in start.items()}
    sites = Sites(families, {site: (one.loc, one.scale) for site, one in start.items()})
    found = []
    for most in (1 << 18, 64):
        monkeypatch.setattr(marginals, "DRAWN", most)
        torch.manual_seed(0)
        whole = Marginals(sites, {"a": shape}, everywhere(PRIORS[prior]))
        found.append((draw(whole)["a"], kl_by_tensor(whole)["a"]))
    (one, kl), (other, kl_in_parts) = found
    assert len(whole.parts("a")) == 5
    assert torch.equal(one.value, other.value)
    assert torch.allclose(one.norms, other.norms)
    assert kl == pytest.approx(kl_in_parts, rel=1e-12)
    assert one.log_prior == pytest.approx(other.log_prior, rel=1e-12)
    assert one.log_posterior == pytest.approx(other.log_posterior, rel=1e-12)


def test_integers_of_multiples_and_of_others() -> None:
    """Multiples of a step are told by float32; a value that float32 would put on the wrong side of a half is not."""
    step = float(torch.tensor(0.1))
    grid = torch.arange(-500, 500).float() * step
    for values in (grid, grid + 0.05, torch.randn(1000), torch.tensor([0.25, 2.5 * step, -7.5 * step])):
        assert (quantize(values, step).codes == torch.round(values.double() / step).int().numpy()).all()


def test_networks_are_let_go_one_by_one(digits: Splits) -> None:
    """Whoever scores a mixture keeps none of its networks, and whoever draws them none of the draws."""
    alive: list[weakref.ref] = []

    def drawn() -> Iterator[nn.Module]:
        for _ in range(3):
            assert not any(one() for one in alive)
            network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
            alive.append(weakref.ref(network))
            yield network
            del network

    (scores,) = evaluate_mixture(drawn(), digits, ["validation"])
    assert len(alive) == 3
    assert 0 <= scores.error <= 1


def test_a_search_keeps_only_what_may_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that no order of units makes the smallest are let go before the next is built."""
    alive: list[weakref.ref] = []

    def finished() -> Iterator[tuple[Compressed, float]]:
        for size in (90, 70, 71, 80):
            assert sum(one() is not None for one in alive) <= 1
            network = Compressed(Graph((), (1,)), {}, {"size": size})
            alive.append(weakref.ref(network))
            yield network, size / 100
            del network

    monkeypatch.setattr(search, "_size", lambda network: network.meta["size"])
    network, removed = search._best(finished(), 0)
    assert (network.meta["size"], removed) == (70, 0.7)


def test_what_misses_its_target_is_not_counted_in_bytes(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    graph, weights = capture(net, (1, 8, 8)), {name: tensor.detach() for name, tensor in net.state_dict().items()}
    layer = LayerPosterior(weights["1.weight"], torch.full((10, 64), 0.1))
    posterior = Posterior(graph, {"1.weight": layer}, {"1.bias": weights["1.bias"]}, "snr", Provenance())
    candidates, counted = Candidates(posterior, digits, "snr", "cpu", [0.5]), list[int]()
    scored = candidates.scores(candidates.draft(0.5, Grid(0.25)))
    monkeypatch.setattr(file, "dumps", lambda *_, **__: counted.append(1) or (b"12", {}))
    missed, reached = (Target(replace(scored, nll_nats=scored.nll_nats + gap), 0.0, 0.0) for gap in (-1.0, 1.0))
    assert candidates.trial(0.5, Grid(0.25), missed) == (scored, None)
    assert not counted
    assert candidates.trial(0.5, Grid(0.25), reached) == (scored, 2)
    seen: list[Trial] = []
    candidates.callbacks = SearchCallbacks(candidate=seen.append)
    assert candidates.trial(0.5, Grid(0.25), missed) == (scored, 2)
    assert (len(counted), seen[0].bytes, seen[0].sparsity) == (2, 2, 0.5)
    assert candidates.scores_of(candidates.candidate(0.5, Grid(0.25))) == scored


def test_fine_tuning_asks_once_it_knows_the_survivors(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = {"a": torch.rand(30, 20) < 0.2, "b": torch.ones(5, 30, dtype=torch.bool)}
    needed = finetuned.PER_WEIGHT * 750 + finetuned.PER_SURVIVOR * (int(masks["a"].sum()) + 150)
    monkeypatch.setattr(machine, "available_bytes", lambda device: needed)
    finetuned._check_memory(masks)
    monkeypatch.setattr(machine, "available_bytes", lambda device: needed - 1)
    with pytest.raises(ValueError, match=r"fine-tuning needs about .*: remove more weights with --sparsity"):
        finetuned._check_memory(masks)


@pytest.mark.parametrize("shape", [(), (7,), (5, 1), (5, 7)])
@pytest.mark.parametrize("family", [Normal, LogNormal])
def test_log_densities_are_those_of_every_element(family: Any, shape: tuple[int, ...]) -> None:
    """A normal's parameters may be one for all, one per row, or one for each."""
    p = family(torch.randn(shape).double(), torch.rand(shape).double() + 0.1).expand((5, 7)).to_event(2)
    value = torch.rand(5, 7).double() + 0.1
    assert log_density(p, value) == pytest.approx(float(p.log_prob(value).sum()), rel=1e-12)


@pytest.mark.parametrize("prior", ["gaussian", "horseshoe"])
def test_what_guide_and_posterior_have_in_common_is_held_once(prior: str, tmp_path: Path) -> None:
    """Without scales a weight's location is its mean; with them it is another number."""
    splits = pc.load_splits("digits")
    net = pc.build_net("mlp", splits.input_shape, 10, (20,))
    config = pc.resolve(pc.FitConfig(prior=prior, epochs=1, pretrain_epochs=0), len(splits.train))
    fit = pc.fit_posterior(net, splits, config)
    posterior = pc.extract(fit)
    with (tmp_path / "guide.safetensors").open("wb") as file:
        write_marginals(file, fit.model.net, fit.guide)
    found = read_marginals(tmp_path / "guide.safetensors", config, posterior).sites.parameters
    for name, layer in posterior.layers.items():
        assert (found[f"{name}.raw"][0] is layer.mean) is (prior == "gaussian")
        assert (found[f"{name}.raw"][1] is layer.std) is (prior == "gaussian")
        assert torch.equal(found[f"{name}.raw"][0], fit.guide.marginal(f"{name}.raw").loc)
