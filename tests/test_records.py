"""The record files: they decode, are as large as their rows say, and as good where the data are at hand."""

import json
import os
from pathlib import Path

import pytest

from pyro_compress.compression.search import to_module
from pyro_compress.data.splits import load_splits
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.types import Splits

FOLDER = Path(__file__).parents[1] / "docs" / "results" / "records"
ROWS = json.loads((FOLDER / "records.json").read_text())
KEYS = {
    "file", "network", "dataset", "prior", "seed", "bytes", "validation_error_percent", "test_error_percent", "teacher",
    "finetune_epochs", "command",
}  # fmt: skip


def test_every_file_has_a_row() -> None:
    assert {path.name for path in FOLDER.glob("*.pcn")} == {row["file"] for row in ROWS}


def test_files_decode_and_count() -> None:
    for row in ROWS:
        assert row.keys() >= KEYS, row["file"]
        network = file.read(FOLDER / row["file"])
        told = {
            "bytes": (FOLDER / row["file"]).stat().st_size,
            "dataset": network.meta["data"],
            "finetune_epochs": network.meta["finetune_epochs"],
            "teacher": network.meta.get("teacher", ""),
            "values": network.parameters,
            "spelled_out_bytes": file.spelled_out_bytes(network, row["sections_bytes"]["header"], row["bytes"]),
        }
        assert told == {name: row[name] for name in told}, row["file"]


@pytest.fixture(scope="module")
def mnist() -> Splits:
    folder = os.environ.get("PYRO_COMPRESS_DATA", "")
    if not folder:
        pytest.skip("PYRO_COMPRESS_DATA names no folder with MNIST")
    return load_splits("mnist", folder, 0.05)


def test_errors_are_those_of_the_rows(mnist: Splits) -> None:
    for row in ROWS:
        if row["dataset"] != "mnist":
            continue
        network = to_module(file.read(FOLDER / row["file"]))
        for split in ("validation", "test"):
            error = 100 * (1 - evaluate(network, mnist, split).accuracy)
            wanted = pytest.approx(row[f"{split}_error_percent"], abs=0.0201)  # two images may tip over elsewhere
            assert error == wanted, (row["file"], split)
