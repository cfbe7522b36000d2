"""Integers by λ, bit widths by hand, and bit widths as the literature counts them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.code_length import CodeLength
from pyro_compress.compression.fixed_point import fixed_point, fixed_point_of, occupied, significant_bits
from pyro_compress.compression.precision import Size, bits_step, size_of
from pyro_compress.compression.rounding import LEAST_STD, Grid, Rounding, cheapest, rounded_weights
from pyro_compress.compression.search import compress
from pyro_compress.compression.target import SearchCallbacks, Trial
from pyro_compress.graph.network import Network
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.runs.folder import Run
from pyro_compress.types import LayerPosterior, Quantized, Splits


@pytest.fixture(scope="module")
def run(fitted_run: Run) -> Run:
    return fitted_run


def layer(std: float, shape: tuple[int, int] = (30, 40)) -> LayerPosterior:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)
    return LayerPosterior(mean, torch.full(shape, std))


LAYOUT = (30, 40, 1, 1)


def test_lambda_0_rounds_to_the_nearest() -> None:
    one = layer(0.1)
    found = cheapest(one.mean, one, 0.2, LAYOUT, 0.0)
    assert torch.equal(found, torch.round(one.mean / 0.2))


@pytest.mark.parametrize("std", [0.0, 0.02, 0.3])
def test_lambda_is_paid_back(std: float) -> None:
    """Distortion and bits together are no more than those of the nearest integers, and signs never turn."""
    one, step, lam = layer(std), 0.2, 1.0

    def objective(codes: torch.Tensor) -> float:
        code_length, size = CodeLength(LAYOUT), codes.abs()
        code_length.look(size)
        bits = torch.where(
            size == 0, code_length.zero.view_as(size), code_length.one.view_as(size) + code_length.more[size.long()]
        )
        spread = (one.std / step).clamp_min(LEAST_STD)
        return float(((one.mean / step - codes).square() / (2 * spread.square()) + lam * math.log(2) * bits).sum())

    found = cheapest(one.mean, one, step, LAYOUT, lam)
    assert objective(found) <= objective(torch.round(one.mean / step))
    assert (found * one.mean >= 0).all()
    assert (found[one.mean == 0] == 0).all()
    assert ((found - one.mean / step).abs() < 1)[found != 0].all()


def test_what_is_known_well_stays_and_what_is_not_may_go() -> None:
    """Half of the layer has a posterior so narrow that no λ moves it; the other half pays."""
    one = layer(0.5)
    std = one.std.clone()
    std[:15] = 1e-6
    nearest = torch.round(one.mean / 0.2)
    found = cheapest(one.mean, LayerPosterior(one.mean, std), 0.2, LAYOUT, 3.0)
    assert torch.equal(found[:15], nearest[:15])
    assert (found[15:] != 0).sum() < 0.8 * (nearest[15:] != 0).sum()


def test_dearer_bits_give_a_smaller_file(run: Run, digits: Splits) -> None:
    masks = {name: layer.mean.abs() > 0.2 * layer.std for name, layer in run.posterior.layers.items()}
    counts = []
    for lam in (0.0, 1.0, 10.0):
        weights, _ = rounded_weights(run.posterior, masks, Grid(0.25, (), lam))
        counts.append(sum(int((weight != 0).sum()) for weight in weights.values()))
    assert counts[0] > counts[1] > counts[2]


@pytest.mark.parametrize("bits", [(2,), (8,), (15,), (4, 5, 6)])
def test_bits_by_hand(bits: tuple[int, ...], run: Run, digits: Splits) -> None:
    network, _ = pc.compress(run.posterior, digits, pc.Goal(sparsity=0.5), Rounding(bits=bits))
    widths = dict(zip(run.posterior.layers, bits * 3 if len(bits) == 1 else bits, strict=True))
    decoded = file.loads(file.dumps(network)[0])
    for name, width in widths.items():
        tensor = decoded.tensors[name]
        assert isinstance(tensor, Quantized)
        assert abs(tensor.codes).max() <= 2 ** (width - 1) - 1
    if min(bits) >= 8:
        mean = evaluate(Network(run.posterior.graph, run.posterior.tensors).eval(), digits, "validation")
        assert evaluate(to_module(network), digits, "validation").accuracy > mean.accuracy - 0.05


def test_the_largest_weight_is_the_largest_integer() -> None:
    one = layer(0.1)
    step = bits_step(size_of(one.mean, one.mean != 0), 5)
    assert torch.round(one.mean.abs().max() / step) == 15
    assert size_of(one.mean, torch.zeros_like(one.mean, dtype=torch.bool)) == Size(0.0, 0.0)
    assert bits_step(Size(0.0, 0.0), 5) == 1.0


def test_significant_bits_are_the_fewest_that_round_as_little() -> None:
    for variance in (3.0, 0.5, 0.3, 0.25, 1e-2, 1.7e-4, 1e-9):
        enough = [t for t in range(1, 24) if 0.5 * 2.0 ** (1 - t) <= variance]
        assert significant_bits(variance) == (enough[0] if enough else 23)


def test_fixed_point_counts_by_hand(run: Run) -> None:
    """Two hidden units and nine inputs are masked out: by weights, and by what is left of rows and columns."""
    posterior = run.posterior
    masks = {name: torch.ones_like(layer.mean, dtype=torch.bool) for name, layer in posterior.layers.items()}
    masks["1.weight"][[3, 7]] = False
    masks["1.weight"][:, 11:20] = False
    masks["3.weight"][0, 1] = False
    bits = [
        significant_bits(float(layer.std[masks[name]].square().mean())) + 4 for name, layer in posterior.layers.items()
    ]
    total = 64 * 60 + 60 + 60 * 20 + 20 + 200 + 10
    found = fixed_point(posterior, masks, by_units=True)
    left = [55 * 58, 58 * 20, 200]
    assert found.bits == bits
    assert found.pruned == pytest.approx(total / sum(left))
    assert found.reduced == pytest.approx(32 * total / sum(n * b for n, b in zip(left, bits, strict=True)))
    assert fixed_point(posterior, masks, by_units=False).pruned == pytest.approx(total / (sum(left) - 1))


def test_fixed_point_of_a_compressed_network(run: Run, digits: Splits) -> None:
    """Its own non-zeros, or its units, at widths from what log alpha < 3 keeps (Molchanov et al. 2017), or from all."""
    posterior = run.posterior
    tensors = to_module(pc.compress(posterior, digits, pc.Goal(sparsity=0.8))[0]).state_dict()
    alpha = {name: (layer.std / layer.mean).square() for name, layer in posterior.layers.items()}
    variances = {name: layer.std[alpha[name].log() < 3].square().mean() for name, layer in posterior.layers.items()}
    bits = [significant_bits(float(variance)) + 4 for variance in variances.values()]
    left = [int((tensors[name] != 0).sum()) for name in posterior.layers]
    found = fixed_point_of(posterior, tensors, "snr")
    assert found.bits == bits
    assert found.pruned == pytest.approx(posterior.parameters_total / sum(left))
    vague = {
        name: replace(layer, std=torch.full_like(layer.std, 100 * float(layer.mean.abs().max())))
        for name, layer in posterior.layers.items()
    }
    of_all = [significant_bits(float(layer.std[0, 0]) ** 2) + 4 for layer in vague.values()]
    assert fixed_point_of(replace(posterior, layers=vague), tensors, "snr").bits == of_all
    dead = fixed_point_of(posterior, {}, "snr")
    assert (dead.pruned, dead.reduced) == (None, None)  # a constant is no compressed network


def test_columns_that_nobody_reads_are_not_counted() -> None:
    weight = torch.zeros(6, 5, 3, 3)
    weight[2, 1, 0, 2] = weight[4, 3] = 1.0
    assert occupied(weight) == 6 * 2 * 9
    assert occupied(weight[:, :, 0, 2]) == 6 * 2


REFUSED = [
    (("--bits", "1"), "bits 1: allowed are values from 2 and up to 15"),
    (("--bits", "4,4"), "2 bit widths for 3 layers"),
    (("--bits", "8", "--finetune", "2"), "go without --finetune"),
    (("--lambda", "0.1", "--finetune", "2"), "go without --finetune"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_refused(arguments: tuple[str, ...], message: str, run: Run, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["compress", str(run.path), "--out", str(tmp_path / "a.pcn"), *arguments])
    assert result.exit_code == 1
    assert message in result.output


def test_lambdas_on_the_command_line(run: Run, tmp_path: Path) -> None:
    """Both values of λ are tried, and the report tells what the variances alone would save."""
    arguments = [
        "--lambda",
        "0",
        "--lambda",
        "0.01",
        "--bits",
        "7",
        "--tolerance",
        "0.1",
        "--curve",
        str(tmp_path / "curve.csv"),
    ]
    out = tmp_path / "a.pcn"
    result = CliRunner().invoke(main, ["compress", str(run.path), "--out", str(out), *arguments])
    assert result.exit_code == 0, result.output
    assert "bits a weight by the posterior's variances" in result.output
    lams = {line.split(",")[2] for line in (tmp_path / "curve.csv").read_text().splitlines()[1:]}
    assert {float(lam) for lam in lams} == {0.0, 0.01}


def test_at_a_sparsity_the_best_lambda_is_taken(run: Run, digits: Splits) -> None:
    """Whatever their order: the smallest of those that cost next to nothing; if none do, the lowest NLL."""
    high, bits = 40.0, (7,)
    for lams in ((0.0, high), (high, 0.0)):
        network, _ = compress(run.posterior, digits, pc.Goal(sparsity=0.5), Rounding(bits=bits, lams=lams))
        assert network.rounded == (0.0, 0.0)
    for lams in ((high, 10 * high), (10 * high, high)):
        seen = list[Trial]()
        tell = SearchCallbacks(candidate=seen.append)
        network, _ = compress(run.posterior, digits, pc.Goal(sparsity=0.5), Rounding(lams=lams), callbacks=tell)
        best = min(seen, key=lambda one: one.validation_nll_nats)
        assert len(seen) == 18
        assert network.rounded == (best.relative_step, best.lam)
    sizes = {}
    for lams in ((0.0,), (1e-5,), (0.0, 1e-5), (1e-5, 0.0)):
        network, _ = compress(run.posterior, digits, pc.Goal(sparsity=0.5), Rounding(bits=(12,), lams=lams))
        sizes[lams] = len(file.dumps(network)[0])
    assert sizes[0.0, 1e-5] == sizes[1e-5, 0.0] == sizes[1e-5,] < sizes[0.0,]
