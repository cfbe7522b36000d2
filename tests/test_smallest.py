"""Both ways of rounding, and the smaller file: what is kept, what is spared, what is said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_compress as pc
from pyro_compress.compression import smallest
from pyro_compress.compression.compensated import Compensation, compress_compensated
from pyro_compress.compression.pipeline import compress_run, way_of
from pyro_compress.compression.rounding import Rounding
from pyro_compress.compression.smallest import Smallest, compress_smallest, file_bytes
from pyro_compress.compression.target import SearchCallbacks, Trial
from pyro_compress.doubts import gathered
from pyro_compress.provenance import Provenance
from pyro_compress.settings import CompressConfig, Goal
from pyro_compress.training.baselines import point_posterior
from pyro_compress.types import LayerPosterior, Posterior, Splits

WAY = Smallest(Compensation(dampings=(0.1,), orders=(False,), repair=0))


@pytest.fixture(scope="module")
def point(digits: Splits) -> Posterior:
    """Trained weights without spread: compensation rounds them smaller than the nearest integers are."""
    torch.manual_seed(0)
    net = pc.build_net("mlp", digits.input_shape, 10, (12,))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(digits.train.x), digits.train.y).backward()
        optimizer.step()
    from pyro_compress.graph.capture import capture

    tensors = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    return point_posterior(capture(net, digits.input_shape), tensors, Provenance())


@pytest.fixture(scope="module")
def sure(point: Posterior) -> Posterior:
    """The same, whose posterior has nine weights of ten for nothing, and is right: they are noise."""
    layers, generator = {}, torch.Generator().manual_seed(1)
    for name, layer in point.layers.items():
        kept = (
            torch.rand(layer.mean.shape, generator=generator) < 0.1 if name == "1.weight" else layer.mean == layer.mean
        )
        noise = 0.02 * torch.randn(layer.mean.shape, generator=generator)
        layers[name] = LayerPosterior(layer.mean * kept + noise * ~kept, torch.where(kept, 1e-3, 0.3))
    return replace(point, layers=layers, criterion="snr")


def both(posterior: Posterior, splits: Splits, goal: Goal) -> list[int]:
    nearest, _ = pc.compress(posterior, splits, goal, Rounding())
    compensated, _ = compress_compensated(posterior, splits, WAY.compensation, goal)
    return [file_bytes(nearest), file_bytes(compensated)]


def test_the_smaller_file_is_kept(point, sure, digits) -> None:
    """Whichever way made it, and the way is told."""
    goal, seen = Goal(tolerance=0.02), []
    for posterior in (point, sure):
        sizes = both(posterior, digits, goal)
        made = compress_smallest(posterior, digits, WAY, goal, passes=0)
        assert file_bytes(made.network) <= min(sizes)
        assert made.compensated == (sizes[1] < sizes[0])
        seen.append(made.compensated)
    assert seen == [True, False]


def test_a_bound_on_bytes_is_spent_on_likelihood(point, digits, tmp_path: Path) -> None:
    scored = {}
    for name, how in {"nearest": Rounding(), "compensated": WAY.compensation, "smallest": WAY}.items():
        report = compress_run(point, digits, tmp_path / name, Goal(max_bytes=420), how, passes=0)
        assert report.file_bytes <= 420
        scored[name] = report.validation_after.nll_nats
    assert scored["smallest"] == min(scored.values()) < max(scored.values())


def test_the_second_search_ends_where_it_is_far_behind(point, digits) -> None:
    seen = list[Trial]()
    callbacks = SearchCallbacks(candidate=seen.append)
    way, numbers = Compensation(dampings=(0.1, 0.3), orders=(False, True), repair=0), []
    for beside in (None, 10_000, 10):
        compress_compensated(point, digits, way, Goal(tolerance=0.02), callbacks=callbacks, beside=beside)
        numbers.append(len(seen))
        seen.clear()
    assert numbers[0] == numbers[1] > numbers[2]


def test_what_takes_long_is_spared_and_said(point, digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smallest, "MOST_WORK", 10.0)
    with gathered() as said:
        made = compress_smallest(point, digits, WAY, Goal(tolerance=0.02), passes=0)
    assert not made.compensated
    assert len(said) == 1 and "--rounding compensated" in said[0]  # noqa: PT018


def test_one_way_is_enough(point, digits, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise ValueError("no candidate")

    monkeypatch.setattr(smallest, "compress", none)
    assert compress_smallest(point, digits, WAY, Goal(tolerance=0.02), passes=0).compensated
    monkeypatch.setattr(smallest, "compress_compensated", none)
    with pytest.raises(ValueError, match="no candidate"):
        compress_smallest(point, digits, WAY, Goal(tolerance=0.02), passes=0)


def test_it_is_what_nothing_else_asked_for_means() -> None:
    assert way_of(CompressConfig()) == Smallest()
    assert way_of(CompressConfig(rounding="smallest", repair=2)) == Smallest(Compensation(repair=2))
    assert way_of(CompressConfig(sparsity=0.5)) == Rounding()
    assert way_of(CompressConfig(rounding="nearest")) == Rounding()
    with pytest.raises(ValueError, match="go another way"):
        pc.compress(None, None, CompressConfig(rounding="smallest"))  # type: ignore[arg-type]


@pytest.mark.parametrize("rounding", ["compensated", "smallest"])
@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"lam": (1.0,)}, {"bits": (4,)}, {"criterion": "snr"}])
def test_what_chooses_every_integer_takes_no_option_of_the_nearest(asked: dict[str, Any], rounding: str) -> None:
    with pytest.raises(ValueError, match=f"rounding {rounding} chooses every integer itself: leave out"):
        CompressConfig(rounding=rounding, **asked)
