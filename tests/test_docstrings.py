"""The examples of the public functions' docstrings run and print what they say."""

import doctest
import importlib

import pytest

MODULES = ["bayes.layers", "bayes.fit", "bayes.extract", "bayes.predict", "compression.search", "compression.pipeline"]
MODULES += ["runs.info", "runs.prediction"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"pyro_compress.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
