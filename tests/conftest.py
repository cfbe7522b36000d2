"""Shared problems: the embedded digits, networks small enough to fit in seconds, and fits that many tests look at.

Nothing heavy is imported at the top: the process that hands the tests out to others needs none of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyro_compress.runs.folder import Run
    from pyro_compress.settings import FitConfig
    from pyro_compress.types import Splits

COMMON = "PYRO_COMPRESS_TESTS_COMMON"
"""Names the folder that all processes of the suite share."""


@pytest.fixture(scope="session", autouse=True)
def _machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread; no waiting for the disk, nor for the best order of units: these have tests of their own.

    `test_durable` has a disk that keeps what was synchronised; `test_order` says how long to search.
    """
    from pyro_compress.compression import order
    from pyro_compress.machine import prepare

    prepare("cpu", 1)
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "common"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(COMMON, str(folder))
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(order, "CODED", 100_000)
        yield


@pytest.fixture(scope="session")
def shared() -> Callable[[FitConfig], Run]:
    """The run of a configuration, fitted once for all files and all processes of the suite; nobody changes it."""
    from filelock import FileLock

    from pyro_compress.runs.folder import load_run
    from pyro_compress.runs.identity import config_hash
    from pyro_compress.runs.run import fit_run

    def run(config: FitConfig) -> Run:
        path = Path(os.environ[COMMON]) / config_hash(config)
        with FileLock(f"{path}.lock"):
            return load_run(path) if path.exists() else fit_run(config, path)

    return run


@pytest.fixture(scope="session")
def fitted_run(shared: Callable[[FitConfig], Run]) -> Run:
    """The fit that most tests of compression look at."""
    from pyro_compress.settings import FitConfig

    return shared(FitConfig(prior="log-uniform", hidden=(60, 20), epochs=30, seed=1, device="cpu", threads=1))


@pytest.fixture(scope="session")
def digits() -> Splits:
    from pyro_compress.data.splits import load_splits

    return load_splits("digits")


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.default_generator.manual_seed(0)  # `torch.manual_seed` asks after every kind of device


@pytest.fixture(scope="session")
def mnist_dir() -> str:
    folder = os.environ.get("PYRO_COMPRESS_DATA", "")
    if not folder:
        pytest.skip("PYRO_COMPRESS_DATA names no folder with MNIST")
    return folder
