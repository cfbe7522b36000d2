"""Valid run folders, unfinished fits, studies, weights, data, an export: what the changes begin with."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from PIL import Image
from safetensors.torch import save_file

from pyro_compress.data.splits import load_splits
from pyro_compress.deploy import torch_files
from pyro_compress.networks.nets import build_net
from pyro_compress.pcn import file
from pyro_compress.runs.config import config_toml
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.checkpoint import Checkpointer, Interrupted

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
CLASSES = ("cat", "dog")


def small(prior: str, **options: Any) -> FitConfig:
    """A fit of a moment."""
    return FitConfig(prior=prior, data="digits", limit=60, hidden=(6,), epochs=1, device="cpu", threads=1, **options)


def write_seeds(seeds: Path) -> None:
    """Everything."""
    write_runs(seeds)
    write_plain(seeds)


def write_runs(seeds: Path) -> None:
    """Run folders and unfinished fits (`kinds.FITTED`)."""
    fit_run(small("horseshoe", pretrain_epochs=0), seeds / "horseshoe", checkpointing=CheckpointConfig(snapshots=True))
    fit_run(small("none"), seeds / "none")
    for name, config in (("h", small("horseshoe", pretrain_epochs=0)), ("n", small("none"))):
        with stopped(), contextlib.suppress(Interrupted):
            fit_run(config, seeds / name)


@contextlib.contextmanager
def stopped() -> Any:
    """Every fit ends after its first step, as by Ctrl-C."""
    real = Checkpointer.after_step

    def stop(self: Checkpointer, finished: int, take: Callable[[], Any]) -> None:
        self.stop.set()
        real(self, finished, take)

    Checkpointer.after_step = stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        Checkpointer.after_step = real  # type: ignore[method-assign]


def write_plain(seeds: Path) -> None:
    """What is written without a fit."""
    (seeds / "config.toml").write_text(config_toml(small("none"), load_splits("digits")))
    _studies(seeds)
    state = build_net("mlp", (1, 8, 8), 10, (6,)).state_dict()
    save_file(state, seeds / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": state}, seeds / "a.pt")
    torch.save(state, seeds / "old.pt", _use_new_zipfile_serialization=False)
    network = file.read(GOLDEN / "version-4.pcn")
    torch_files.write_safetensors(network, {"producer": "somebody"}, seeds / "export.safetensors")
    _data(seeds)


def _studies(seeds: Path) -> None:
    fit = {"hidden": [6], "epochs": 1, "limit": 60, "lr": 1e-3}
    method = {"name": "a", "prior": "none", "choose": {"lr": [1e-3]}, "sparsities": [0.5]}
    study = {"name": "s", "datasets": ["digits"], "networks": ["mlp"], "sparsities": [0, 0.5], "seeds": [0], "fit": fit}
    (seeds / "study.toml").write_text(
        tomli_w.dumps(study | {"methods": [method], "out-of-domain": {"digits": "digits"}})
    )
    space = {"fit": {"lr": {"low": 1e-3, "high": 1e-2, "log": True}}, "compress": {"kept": {"low": 0.1, "high": 0.5}}}
    search = {
        "name": "s", "trials": 2, "fidelities": [1, 2], "fit": fit | {"data": "digits", "prior": "none"},
        "space": space,
    }  # fmt: skip
    more = {"compress": {"relative_step": 0.5}, "reference": [{"name": "a", "bytes": 1, "error": 0.1}], "bound": 0.5}
    (seeds / "search.toml").write_text(tomli_w.dumps(search | more))
    row = dict.fromkeys(("sparsity", "accuracy", "nll_nats", "ece", "train_seconds"), 0.5)
    row |= dict.fromkeys(("dataset", "network", "method", "variant"), "a") | {"seed": 0, "config_hash": "0123456789ab"}
    runs = {"a": {"config": fit, "versions": {"a": "1"}, "machine": {"a": "1"}, "rows": [row]}}
    (seeds / "study.json").write_text(json.dumps({"runs": runs, "failures": {"b": "c"}}))


def _data(seeds: Path) -> None:
    """The same few examples as arrays, as a table, as images."""
    import pyarrow
    from pyarrow import parquet

    draw = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": values
        for part in ("train", "test")
        for kind, values in (("x", draw.integers(0, 256, (20, 8, 8)).astype(np.uint8)), ("y", np.arange(20) % 10))
    }
    np.savez(seeds / "data.npz", **arrays, classes=np.array([f"c{i}" for i in range(10)]))
    (seeds / "arrays").mkdir()
    for name, values in arrays.items():
        np.save(seeds / "arrays" / f"{name}.npy", values)
    rows = [
        f"{a:.2f};{int(10 * b)};{CLASSES[int(a > b)]};{'yes' if a > 0.5 else 'no'}" for a, b in draw.random((40, 2))
    ]
    (seeds / "table.csv").write_text("\n".join(["a;b;c;target", *rows]) + "\n")
    numbers = {"a": draw.random(40), "b": draw.integers(0, 9, 40), "c": ["x", "y"] * 20, "target": [0, 1] * 20}
    parquet.write_table(pyarrow.table(numbers), seeds / "table.parquet")
    for split in ("train", "test"):
        for index in range(8):
            (folder := seeds / "images" / split / CLASSES[index % 2]).mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.{('png', 'bmp', 'jpg')[index % 3]}")
