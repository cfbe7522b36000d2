"""Shared problems: the embedded digits and networks small enough to fit in seconds."""

import os

import pytest
import torch

from pyro_compress.data.splits import load_splits
from pyro_compress.machine import prepare
from pyro_compress.types import Splits


@pytest.fixture(scope="session", autouse=True)
def _machine() -> None:
    prepare("cpu", 1)


@pytest.fixture(scope="session")
def digits() -> Splits:
    return load_splits("digits")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_dir() -> str:
    folder = os.environ.get("PYRO_COMPRESS_DATA", "")
    if not folder:
        pytest.skip("PYRO_COMPRESS_DATA names no folder with MNIST")
    return folder
