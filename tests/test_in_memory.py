"""`fit` from Python: the command's results, from whatever data; callbacks that end it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_compress as pc
from pyro_compress.bayes.diagnostics import Size
from pyro_compress.inspection.summary import inspect_run
from pyro_compress.training import display
from pyro_compress.training.callbacks import Callbacks
from pyro_compress.training.history import Epoch
from pyro_compress.types import Splits

SMALL = {"hidden": (12,), "epochs": 4, "device": "cpu", "threads": 1}


class Two(nn.Module):
    """Reads numbers and words."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.words, self.end = nn.Linear(4, 8), nn.Embedding(5, 3), nn.Linear(14, 2)

    def forward(self, numbers: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.end(torch.cat([self.numbers(numbers).relu(), self.words(words).flatten(1)], 1))


def two_inputs() -> TensorDataset:
    x, words = torch.randn(400, 4), torch.randint(0, 5, (400, 2))
    return [({"numbers": a, "words": b}, int(a[0] > 0) ^ int(b[0] == 2)) for a, b in zip(x, words, strict=True)]


class Products(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Parameter(0.3 * torch.randn(4, 4, out)) for out in (5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("bij,ijk->bik", x.view(-1, 4, 4), self.first).relu()
        return torch.einsum("bik,ikc->bc", hidden, torch.cat([self.last, self.last[:, :1]], 1))


def test_weights_without_a_layer_are_compressed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 16)
    fitted = pc.fit(Products(), (x, (x[:, 0] > 0).long() + (x[:, 5] > 0).long()), prior="log-uniform", epochs=30)
    small = fitted.compress(sparsity=0.3)
    small.save(tmp_path / "p.pcn")
    loaded = pc.load(tmp_path / "p.pcn")
    assert {name: tuple(t.shape) for name, t in loaded.named_parameters()} == {"first": (4, 4, 5), "last": (4, 4, 3)}
    zeros = sum(int((tensor == 0).sum()) for tensor in loaded.parameters())
    assert zeros >= 0.3 * (80 + 48) - 1
    assert small.report.units_kept == []


def test_steps_that_integers_cannot_take_are_refused() -> None:
    fitted = pc.fit("mlp", "digits", prior="log-uniform", **SMALL)
    message = (
        r"relative step 1e-30 is too fine for \d\.weight, whose integers would exceed 16384: give at least 0\.000\d"
    )
    with pytest.raises(ValueError, match=message):
        fitted.compress(sparsity=0.5, relative_step=1e-30)


def test_it_is_the_fit_that_its_parts_make(digits: Splits) -> None:
    """The same posterior, number by number, as by `resolve`, `fit_posterior` and `extract`."""
    for prior in ("log-uniform", "none"):
        found = pc.fit("mlp", "digits", prior=prior, **SMALL)
        config = pc.resolve(pc.FitConfig(prior=prior, **SMALL), len(digits.train))
        if prior == "none":
            assert found.fit is None
            continue
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = pc.build_net("mlp", (1, 8, 8), 10, (12,))
        wanted = pc.extract(pc.fit_posterior(net, digits, config))
        for name, layer in wanted.layers.items():
            assert torch.equal(found.posterior.layers[name].mean, layer.mean)
            assert torch.equal(found.posterior.layers[name].std, layer.std)
        assert found.posterior.provenance == wanted.provenance


def test_from_network_and_loader_to_a_file(tmp_path: Path) -> None:
    seen = []
    loader = DataLoader(two_inputs(), 50, shuffle=True)
    fitted = pc.fit(Two(), loader, epochs=30, prior="gaussian", callbacks=[lambda e: seen.append(e) or e.epoch == 3])
    assert fitted.config.batch_size == 50
    assert [epoch.epoch for epoch in seen] == [epoch.epoch for epoch in fitted.history] == [1, 2, 3]
    assert set(fitted.posterior.layers) == {"numbers.weight", "words.weight", "end.weight"}
    found = fitted.compress(sparsity=0.2)
    path = found.save(tmp_path / "two.pcn")
    assert path.stat().st_size == found.bytes == found.report.file_bytes
    assert "two" not in repr(found)
    x = fitted.splits.validation.x
    assert torch.equal(pc.load(path)(x), found.module()(x))
    with pytest.raises(ValueError, match=r"two\.pcn"):
        found.save(path)
    for told in (fitted, found):
        assert json.dumps(told.to_dict())
        assert len(repr(told)) < 1000
        assert told._repr_html_().startswith("<table>")


class Stops(pc.Callback):
    """Ends a fit at a step, and notes what it is told."""

    def __init__(self, phase: str, step: int) -> None:
        self.at, self.told = (phase, step), list[object]()

    def on_begin(self, what: str) -> None:
        self.told.append(what)

    def on_end(self, what: str) -> None:
        self.told.append(what)

    def on_step(self, step) -> bool:
        self.told.append((step.phase, step.step))
        assert (step.expected_log_likelihood_nats is None) == (step.phase == "point")
        return (step.phase, step.step) == self.at

    def on_candidate(self, candidate) -> bool:
        self.told.append(candidate.bytes)
        return True


@pytest.mark.parametrize(
    ("prior", "phase", "step", "epochs", "steps"),
    [
        ("horseshoe", "point", 3, ["point"], 3),
        ("horseshoe", "point", 19, ["point"], 19),
        ("horseshoe", "svi", 2, ["point", "svi"], 21),
        ("horseshoe", "svi", 25, ["point", "svi", "svi"], 44),
        ("none", "point", 20, ["point", "point"], 20),
    ],
)
def test_a_callback_ends_the_fit_at_a_step(prior: str, phase: str, step: int, epochs: list[str], steps: int) -> None:
    stops = Stops(phase, step)
    fitted = pc.fit(
        "mlp", "digits", prior=prior, callbacks=[stops], pretrain_epochs=1 if prior != "none" else None, **SMALL
    )
    assert [epoch.phase for epoch in fitted.history] == epochs
    assert stops.told[0] == stops.told[-1] == "fit"
    assert len(stops.told) == steps + 2
    assert all(torch.isfinite(layer.mean).all() for layer in fitted.posterior.layers.values())


def test_a_callback_ends_the_search() -> None:
    fitted = pc.fit("mlp", "digits", prior="log-uniform", **SMALL)
    stops = Stops("", 0)
    early, whole = fitted.compress(callbacks=[stops], tolerance=0.05), fitted.compress(tolerance=0.05)
    candidates = [one for one in stops.told if isinstance(one, int)]
    assert 1 <= len(candidates) < 10
    assert early.report.within_tolerance
    assert whole.bytes <= early.bytes


@pytest.mark.parametrize("options", [{}, {"max_bytes": 900}, {"finetune": 1}, {"rounding": "compensated"}])
def test_a_callback_ends_every_search(options: dict) -> None:
    """After the first candidate that is good enough; without it there are more."""
    fitted = pc.fit("mlp", "digits", prior="log-uniform", **SMALL)
    counts = []
    for ends in (True, False):
        seen = list[int]()

        class Counts(pc.Callback):
            def on_candidate(self, candidate) -> bool:
                seen.append(candidate.bytes)  # noqa: B023 - told at once
                return ends  # noqa: B023

        found = fitted.compress(callbacks=[Counts()], **({"tolerance": 0.1} | options))
        assert found.report.within_tolerance or "max_bytes" in options
        counts.append(len(seen))
    assert 1 <= counts[0] < counts[1]


def test_draws_for_arviz_are_those_of_the_run_folder(tmp_path: Path) -> None:
    """In memory, and by `inspect` from the folder that was saved: the same posterior, draw by draw."""
    pytest.importorskip("arviz")
    pytest.importorskip("h5netcdf")
    fitted = pc.fit("mlp", "digits", prior="horseshoe", **SMALL)
    found = fitted.to_arviz(draws=20, seed=3)
    run = fitted.save(tmp_path / "run")
    _, diagnosis = inspect_run(run.path, size=Size(20), seed=3)
    wanted = diagnosis.groups.values["posterior"]["1.weight.element"]
    assert np.allclose(found.posterior["1.weight.element"].values, wanted)
    assert pc.inspect(run.path, draws=20, seed=3).sampled.draws == 20
    assert "1.weight:" in repr(pc.inspect(run.path, draws=20))
    with pytest.raises(ValueError, match="has no posterior to draw from"):
        pc.fit("mlp", "digits", prior="none", **SMALL).to_arviz()


def test_all_callbacks_are_told_and_a_stranger_is_refused() -> None:
    seen = []
    told = Callbacks([lambda epoch: True, seen.append, SimpleNamespace(on_epoch=seen.append)])
    assert told.on_epoch(Epoch(epoch=7)) is True
    assert [epoch.epoch for epoch in seen] == [7, 7]
    assert told.steps is None
    assert told.candidates is None
    with pytest.raises(ValueError, match="a int is no callback: give a function of an epoch, or an object with any of"):
        Callbacks([3])


def test_the_bar_of_a_notebook_and_the_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with pc.ProgressBar() as bar:
        bar.on_epoch(Epoch(1, 2, validation_accuracy=0.5, validation_nll_nats=1.25))
    assert "validation   50.00 %, 1.2500 nats" in capsys.readouterr().err
    drawn = []
    page = SimpleNamespace(HTML=str, display=lambda *a, **k: SimpleNamespace(update=drawn.append))
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(), display=page)
    monkeypatch.setitem(display.sys.modules, "IPython", shell)
    monkeypatch.setitem(display.sys.modules, "IPython.display", page)
    with pc.ProgressBar() as bar:
        bar.on_epoch(Epoch(1, 2, validation_accuracy=0.5, validation_nll_nats=1.25))
        bar.on_search(3, 4)
    assert drawn[0].startswith('<progress value="1" max="2"></progress> 1/2 point, validation 50.00 %')
    assert "3/4" in drawn[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown setting of a fit 'epoch'; did you mean epochs?"),
        ({"epochs": 0}, "epochs 0: it must be positive"),
        ({"prior": "horsehoe"}, "unknown prior 'horsehoe'"),
        ({"prior": ["*=gaussian"]}, "is a list; several go to tensors by their names: {'conv"),
        ({"prior": 3}, "is a int; it must be a Pyro function or a Prior"),
        ({"train": "nowhere"}, "unknown data set 'nowhere'"),
    ],
)
def test_what_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pc.fit("mlp", settings.pop("train", "digits"), **settings)


def test_tokens_that_nobody_announced_are_in_the_file(tmp_path: Path) -> None:
    """An embedding says how many there are; what is saved reads the same tokens again."""
    x = torch.randint(0, 10, (300, 6))
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(24, 2))
    fitted = pc.fit(net, (x, (x[:, 0] > 4).long()), prior="log-uniform", epochs=3, device="cpu")
    fitted.compress(sparsity=0.2, relative_step=0.1).save(tmp_path / "net.pcn")
    assert len(pc.predict(tmp_path / "net.pcn", x)) == 300


def test_a_fit_that_ends_before_its_posterior_says_so() -> None:
    x = torch.randn(300, 6)
    fitted = pc.fit(nn.Linear(6, 2), (x, (x[:, 0] > 0).long()), epochs=20, device="cpu", callbacks=[lambda epoch: True])
    assert any("ended before its posterior began" in doubt for doubt in fitted.doubts)


def test_one_callback_needs_no_list() -> None:
    seen = list[int]()
    for given in (None, lambda epoch: seen.append(epoch.epoch), [lambda epoch: seen.append(-epoch.epoch)]):
        Callbacks(given).on_epoch(Epoch(epoch=3))
    assert seen == [3, -3]


@pytest.mark.parametrize("settings", [{"guide": "auto-normal"}, {"kl_weight": 0.1}])
def test_what_goes_with_a_prior_is_refused_without_one(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(settings))}: goes with a prior; prior is 'none'$"):
        pc.fit("mlp", "digits", prior="none", **settings)
