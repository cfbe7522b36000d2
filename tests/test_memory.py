"""What is worked out in parts is what it is as a whole."""

import pytest
import torch

from pyro_compress.bayes import marginals
from pyro_compress.bayes.marginals import Marginals, Sites, draw, kl_by_tensor
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.compression.precision import quantize, step_size
from pyro_compress.compression.prune import Ranking, kept, masks_at, scores, unit_scores
from pyro_compress.pcn import codec
from pyro_compress.types import Graph, LayerPosterior, LayerShape, Posterior, blocks, nonzero, rows_of


@pytest.fixture
def posterior(monkeypatch: pytest.MonkeyPatch) -> Posterior:
    """Two layers with a scale per input, worked on in blocks of some rows."""
    monkeypatch.setattr("pyro_compress.types.rows_of.__defaults__", (64,))
    layers = {
        name: LayerPosterior(torch.randn(*size), torch.rand(*size), torch.rand(1, size[1]), torch.rand(1, size[1]))
        for name, size in {"a": (30, 16), "b": (7, 30)}.items()
    }
    return Posterior(Graph((), (16,)), layers, {}, "group-snr", {})


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
    step = step_size(layer, mask, 0.1)
    assert step == pytest.approx(0.1 * typical, rel=1e-6)
    codes = quantize(layer.mean, step).codes
    assert (codes == torch.round(layer.mean.double() / step).int().numpy()).all()
    assert (codec.decode(codec.encode(codes), codes.shape) == codes).all()


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
        whole = Marginals(sites, {"a": shape}, PRIORS[prior])
        found.append((draw(whole)["a"], kl_by_tensor(whole)["a"]))
    (one, kl), (other, kl_in_parts) = found
    assert len(whole.parts("a")) == 5
    assert torch.equal(one.value, other.value)
    assert torch.allclose(one.norms, other.norms)
    assert kl == pytest.approx(kl_in_parts, rel=1e-12)
    assert one.log_prior == pytest.approx(other.log_prior, rel=1e-12)
    assert one.log_posterior == pytest.approx(other.log_posterior, rel=1e-12)
