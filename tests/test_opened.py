"""Run folders in Python programs: read again, and gone on with, they are what `fit` gives."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.runs.folder import Run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.checkpoint import Interrupted
from pyro_compress.training.history import Epoch

CONFIG = FitConfig(prior="log-uniform", hidden=(8,), epochs=3, device="cpu", threads=1, compile="off")


def test_a_run_folder_is_what_fit_gives(fitted_run: Run, tmp_path: Path) -> None:
    fitted = pc.load_run(fitted_run.path)
    assert repr(fitted).startswith(f"Fitted: run {fitted_run.path}; prior log-uniform; weights ")
    assert len(fitted.history) == len(fitted.to_dict()["history"]) == 30
    made = fitted.compress(sparsity=0.9, reorder=0).save(tmp_path / "python.pcn")
    options = ["--sparsity", "0.9", "--reorder", "0", "--out", str(tmp_path / "command.pcn")]
    assert CliRunner().invoke(main, ["compress", str(fitted_run.path), *options]).exit_code == 0
    assert made.read_bytes() == (tmp_path / "command.pcn").read_bytes()
    told = CliRunner().invoke(main, ["evaluate", str(made)])
    assert told.stdout == f"{made}: {pc.evaluate(made)!r}\n"
    with pytest.raises(ValueError, match="is a run folder already; copy it"):
        fitted.save(tmp_path / "copy")
    assert len(repr(fitted.posterior)) < 120
    assert repr(fitted_run).startswith(f"Run: {fitted_run.path}; prior log-uniform; net mlp on digits")


def test_a_run_is_drawn_from_again(fitted_run: Run) -> None:
    pytest.importorskip("arviz")
    drawn = pc.load_run(fitted_run.path).to_arviz(draws=3)
    assert drawn["posterior"].sizes["draw"] == 3


def test_a_fit_goes_on(tmp_path: Path) -> None:
    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise Interrupted("here")

    with pytest.raises(Interrupted):
        fit_run(CONFIG, tmp_path / "run", on_epoch=stop, checkpointing=CheckpointConfig(every_epochs=1))
    seen = list[int]()
    fitted = pc.resume(tmp_path / "run", callbacks=[lambda epoch: seen.append(epoch.epoch)])
    whole = fit_run(CONFIG, tmp_path / "whole")
    assert (seen, fitted.path) == ([2, 3], tmp_path / "run")
    for name, layer in whole.posterior.layers.items():
        assert torch.equal(fitted.posterior.layers[name].mean, layer.mean)
