"""A fit watched by TensorBoard: what its reader finds is what the history says, once per epoch, resumed or not."""

import json
from pathlib import Path

import numpy as np
import pytest

from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.checkpoint import Interrupted
from pyro_compress.training.history import Epoch

CONFIG = FitConfig(
    prior="log-uniform", hidden=(8,), epochs=4, pretrain_epochs=1, device="cpu", threads=1, compile="off"
)


def found(run: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]:
    """Tag -> (step, value) of scalars, and tag -> steps of histograms."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "histograms": 0})  # 0: all of them
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars, {tag: [e.step for e in events.Histograms(tag)] for tag in events.Tags()["histograms"]}


def check(run: Path) -> None:
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    scalars, histograms = found(run)
    for tag, values in scalars.items():
        name = tag.removeprefix("elbo/")
        told = [(line["epoch"], line[name]) for line in history if line[name] is not None]
        assert [step for step, _ in values] == [epoch for epoch, _ in told]
        np.testing.assert_allclose([value for _, value in values], [value for _, value in told], rtol=1e-6)
    assert {"validation_accuracy", "elbo/kl_nats", "elbo/kl_weight"} <= set(scalars)
    kinds = {f"{kind}/{layer}.weight" for kind in ("mean", "log10_snr") for layer in (1, 3)}
    assert histograms == {kind: [2, 3, 4] for kind in kinds}


def test_events_say_what_the_history_says(tmp_path: Path) -> None:
    fit_run(CONFIG, tmp_path / "run", checkpointing=CheckpointConfig(log="tensorboard"))
    check(tmp_path / "run")


def test_resumed(tmp_path: Path) -> None:
    """An epoch that was logged after the last checkpoint, and then lost, is there once."""

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise Interrupted("here")

    with pytest.raises(Interrupted):
        fit_run(
            CONFIG, tmp_path / "run", on_epoch=stop, checkpointing=CheckpointConfig(every_epochs=2, log="tensorboard")
        )
    fit_run(CONFIG, tmp_path / "run", checkpointing=CheckpointConfig(resume=True, log="tensorboard"))
    check(tmp_path / "run")


def test_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown log 'x'; allowed: tensorboard"):
        fit_run(CONFIG, tmp_path / "run", checkpointing=CheckpointConfig(log="x"))
    assert not list(tmp_path.iterdir())
