"""What a file says of its data is what they were, however the fit was asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_compress as pc
from pyro_compress.pcn import file
from pyro_compress.provenance import Provenance
from pyro_compress.runs.evaluation import evaluate
from pyro_compress.settings import FitConfig, ReadConfig
from pyro_compress.training.baselines import fit_baseline
from pyro_compress.types import Data, Posterior, Quantity, Splits

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def own_data(path: Path | None = None) -> Splits:
    """Five separable classes of 16 features; from a .npz file where a path is given, else made by hand."""
    x = torch.randn(200, 16)
    y = torch.arange(200) % 5
    x[torch.arange(200), y] += 6.0
    if path is None:
        part = Data(x, y)
        return Splits(part, part, part, CLASSES)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return pc.load_splits(str(path), validation=0.25)


def fitted(splits: Splits, prior: str) -> Posterior:
    """As the Python API fits: with a configuration that says nothing of the data."""
    net = pc.build_net("mlp", splits.input_shape, splits.outputs, (8,))
    config = pc.resolve(FitConfig(prior=prior, epochs=2, lr=0.02, device="cpu", threads=1), len(splits.train))
    if prior == "none":
        return fit_baseline(net, splits, config)[0]
    return pc.extract(pc.fit_posterior(net, splits, config))


def saved(splits: Splits, path: Path, prior: str) -> dict:
    network, _ = pc.compress(fitted(splits, prior), splits, pc.Goal(sparsity=0.1))
    pc.save(path, network, splits)
    return file.read(path).meta


@pytest.mark.parametrize("prior", ["none", "gaussian"])
def test_data_made_by_hand_have_no_name(prior: str, tmp_path: Path) -> None:
    meta = saved(own_data(), tmp_path / "own.pcn", prior)
    assert (meta["data"], meta["classes"]) == ("", list(CLASSES))
    assert "scale" not in meta
    with pytest.raises(ValueError, match="does not say what it was fitted on; name them with --data"):
        evaluate(tmp_path / "own.pcn", None, "test")
    data = own_data()
    np.savez(tmp_path / "mine.npz", x=data.test.x, y=data.test.y)
    assert evaluate(tmp_path / "own.pcn", str(tmp_path / "mine.npz"), "test")[1] == 200


def test_data_of_a_file_bear_its_name_and_share(tmp_path: Path) -> None:
    meta = saved(own_data(tmp_path / "mine.npz"), tmp_path / "own.pcn", "none")
    assert meta["data"] == str(tmp_path / "mine.npz")
    assert meta["validation"] == 0.25
    assert evaluate(tmp_path / "own.pcn", None, "validation")[1] == 50


def test_a_known_data_set_is_only_named(digits: Splits, tmp_path: Path) -> None:
    meta = saved(digits, tmp_path / "digits.pcn", "none")
    assert meta["data"] == "digits"
    assert not {"classes", "scale", "validation"} & meta.keys()


def test_how_data_were_read_comes_from_them_too() -> None:
    few = pc.load_splits("digits", reading=ReadConfig(limit=300))
    assert fitted(few, "none").provenance.entries["limit"] == 300


def test_the_task_is_that_of_the_data() -> None:
    x = torch.randn(60, 3)
    part = Data(x, x[:, :1])
    posterior = fitted(Splits(part, part, part, (), targets=(Quantity("y"),)), "none")
    assert posterior.task == "regression"
    assert posterior.noise is not None


def test_a_configuration_on_its_own_data_stays_as_it_is(digits: Splits) -> None:
    config = FitConfig()
    assert config.on(digits.origin, digits.task) == config
    assert replace(config, limit=5).on(digits.origin, digits.task) == config


def test_provenance_keeps_its_order_and_says_what_it_holds() -> None:
    """Files hold entries in the order in which they were learned: another order is another file."""
    first = Provenance({"prior": "gaussian", "data": "digits", "task": "regression"})
    found = first.but({"prior": "laplace"}, noise=0.5, parameters_total=None)
    assert list(found.entries.items()) == [
        ("prior", "laplace"), ("data", "digits"), ("task", "regression"), ("noise", 0.5)
    ]  # fmt: skip
    assert (found.prior, found.data, found.task, found.noise, found.parameters_total) == (
        "laplace", "digits", "regression", 0.5, None,
    )  # fmt: skip
    assert first.entries["prior"] == "gaussian"
    assert (Provenance().data, Provenance().task, Provenance().noise) == ("", "classification", None)
