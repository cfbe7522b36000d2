"""The counter's normals and coins are what they claim to be."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_compress.bayes.noise import Noise, fair_coins, fast_fill, lift_noise, standard_normal

SIZE = 1 << 18


def normals(seed: int) -> np.ndarray:
    keys = torch.zeros(3, dtype=torch.int32).random_(generator=torch.Generator().manual_seed(seed))
    halves = torch.zeros(SIZE // 2), torch.zeros(SIZE // 2)
    standard_normal(*halves, keys)
    return torch.cat(halves).double().numpy()


@pytest.mark.parametrize("seed", range(3))
def test_normal(seed: int) -> None:
    """262,144 draws: Kolmogorov-Smirnov at 0.1 %; four moments within 4 standard errors."""
    z = normals(seed)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - expected) < 4 * (variance / SIZE) ** 0.5
    assert 4 < abs(z).max() < 6


@pytest.mark.parametrize("lag", [1, 2, 16, 500, 784, SIZE // 2])
def test_no_correlation_within_a_step(lag: int) -> None:
    """Of values and of squares, within 4 standard errors."""
    z = normals(7)
    for values, variance in ((z, 1), (z**2 - 1, 4)):
        assert abs((values[:-lag] * values[lag:]).mean()) < 4 * variance / (SIZE - lag) ** 0.5


def test_no_correlation_between_steps() -> None:
    """Of 12 steps, neither in place nor shifted by one (66 pairs, 5 standard errors)."""
    steps = np.stack([normals(seed) for seed in range(12)])
    for shift in (0, 1):
        correlations = steps @ np.roll(steps, shift, axis=1).T / SIZE
        off = correlations[~np.eye(12, dtype=bool)]
        assert abs(off).max() < 5 / SIZE**0.5
        assert off.std() == pytest.approx(SIZE**-0.5, rel=0.25)


def test_neighbouring_keys_are_not_related() -> None:
    """Keys that differ in their lowest bits only give independent draws, in place and with neighbours swapped."""
    base, drawn = torch.tensor([5, 6, 7], dtype=torch.int32), []
    for keys in (base, base ^ 1, base + 1):
        first, second = torch.zeros(SIZE // 2), torch.zeros(SIZE // 2)
        standard_normal(first, second, keys)
        drawn += [first.double().numpy(), first.view(-1, 2).flip(1).flatten().double().numpy()]
    correlations = np.corrcoef(drawn)[np.triu_indices(6, 1)]
    assert abs(correlations).max() < 5 / (SIZE // 2) ** 0.5


def test_coins() -> None:
    """Fair within 4 standard errors, and independent of their neighbours."""
    out = torch.zeros(SIZE)
    fair_coins(out, torch.tensor([1, 2, 3], dtype=torch.int32))
    assert set(out.unique().tolist()) == {0.0, 1.0}
    signs = out.double().numpy() * 2 - 1
    assert abs(signs.mean()) < 4 / SIZE**0.5
    assert abs((signs[1:] * signs[:-1]).mean()) < 4 / SIZE**0.5


def program(x: torch.Tensor, normal: torch.Tensor, coin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a = torch.empty(3, 5).normal_()
    b = torch.empty(40).bernoulli_(0.5)
    c = torch.randn_like(x)
    other = torch.empty(7).bernoulli_(0.1)
    return a, b, c, other


def test_lifted_draws_are_those_of_the_program() -> None:
    """Reference fills equal the program's own draws, number by number; a coin that is not fair stays in the graph."""
    x, empty = torch.zeros(6, 7), torch.zeros(1)
    graph = make_fx(program)(x, empty, empty)
    noise = lift_noise(graph, x.device)
    assert [is_normal for is_normal, _, _ in noise.slices] == [True, False, True]
    torch.manual_seed(0)
    wanted = program(x, empty, empty)[:3]
    torch.manual_seed(0)
    noise.fill_reference()
    found = graph(x, noise.normal, noise.coin)[:3]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert [str(node.target) for node in graph.graph.nodes if "bernoulli" in str(node.target)] == [
        "aten.bernoulli_.float"
    ]


@pytest.mark.slow
def test_fills_follow_the_seed() -> None:
    noise = Noise(torch.zeros(64), torch.zeros(64), ((True, 0, (64,)), (False, 0, (64,))))
    fill, drawn = fast_fill(noise), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        fill()
        drawn.append(torch.cat([noise.normal, noise.coin]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
