"""The record files: they decode, are as large as their rows say, and as good where the data are at hand."""

import json
import os
import re
import zlib
from pathlib import Path

import pytest

from pyro_compress.compression.candidates import to_module
from pyro_compress.data.splits import load_splits
from pyro_compress.graph.ir import widths
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file, header
from pyro_compress.pcn.codec import varint
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


def test_files_of_the_paper_are_those_of_its_rows() -> None:
    folder = FOLDER.parent / "paper"
    rows = {row["file"]: row for row in json.loads((FOLDER.parent / "paper.json").read_text())}
    assert sorted(rows) == sorted(path.name for path in folder.iterdir())
    for name, row in rows.items():
        assert row["bytes"] == (folder / name).stat().st_size
        network = file.read(folder / name)
        assert widths(network.graph, to_module(network).state_dict())[1:] == row["units"][1:]
        assert row["ratio_file"] == pytest.approx(4 * network.meta["parameters_total"] / row["bytes"])


def test_files_of_cifar_are_those_of_their_rows() -> None:
    folder = FOLDER.parent / "cifar"
    rows = {row["file"]: row for row in json.loads((FOLDER.parent / "cifar.json").read_text())}
    assert sorted(rows) == sorted(path.name for path in folder.iterdir())
    for name, row in rows.items():
        network = file.read(folder / name)
        assert row["bytes"] == (folder / name).stat().st_size
        assert row["ratio"] == pytest.approx(4 * network.meta["parameters_total"] / row["bytes"])
        assert (network.meta["data"], network.parameters) == ("cifar-10", row["values"])


def test_no_newer_dictionary_holds_values_of_particular_runs() -> None:
    """Those of versions 2 to 4 do, and stay as they are."""
    value = re.compile(rb'"(seed|rate|validation|parameters_total|finetune_epochs)":[0-9]')
    found = {version for version, texts in header.DICTIONARIES.items() if any(map(value.search, texts))}
    assert found == {2, 3, 4}


def test_spelled_out_headers_need_no_template_and_no_dictionary() -> None:
    """Unpacked by zlib alone, they hold graph, shapes and metadata."""
    network = file.read(FOLDER / ROWS[0]["file"])
    told = header.shortened(network.graph, file.shapes_of(network)) | {"meta": network.meta}
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    packed = packer.compress(json.dumps(told, separators=(",", ":")).encode()) + packer.flush()
    size = len(packed) + 1 + len(varint(len(packed)))
    assert header.spelled_out(network.graph, file.shapes_of(network), network.meta) == size
    assert json.loads(zlib.decompress(packed, -15))["graph"]["input"] == [1, 28, 28]


@pytest.fixture(scope="module")
def mnist() -> Splits:
    folder = os.environ.get("PYRO_COMPRESS_DATA", "")
    if not folder:
        pytest.skip("PYRO_COMPRESS_DATA names no folder with MNIST")
    return load_splits("mnist", folder, 0.05)


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_errors_are_those_of_the_rows(every: int, mnist: Splits) -> None:
    for row in [row for row in ROWS if row["dataset"] == "mnist"][::every]:
        network = to_module(file.read(FOLDER / row["file"]))
        for split in ("validation", "test"):
            error = 100 * (1 - evaluate(network, mnist, split).accuracy)
            wanted = pytest.approx(row[f"{split}_error_percent"], abs=0.0201)  # two images may tip over elsewhere
            assert error == wanted, (row["file"], split)


RESULTS = (FOLDER.parent / "smallest.md").read_text(encoding="utf-8")


def test_means_of_the_readme_stand_on_the_page_of_results() -> None:
    """Each with its spread: one place holds them, and says from which rows they come."""
    readme = (FOLDER.parents[2] / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"[\d,.]+ ± [\d,.]+", readme))
    assert len(told) == 4
    assert {one for one in told if one not in RESULTS} == set()


def test_the_readme_has_the_neighbours_as_their_rows_have_them() -> None:
    readme = (FOLDER.parents[2] / "README.md").read_text(encoding="utf-8")
    rows = json.loads((FOLDER.parent / "compared.json").read_text(encoding="utf-8"))
    for row in [row for row in rows if (row["network"], row["tolerance"]) == ("lenet5-original", 0.005)]:
        error = 100 * (1 - row["test"]["accuracy"])
        assert f"| {row['file_bytes']:,} ({error:.2f} %) |" in readme, row["method"]
