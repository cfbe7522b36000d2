"""The benchmark: every row there, its arithmetic right, its sentences true to the numbers."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pyro_compress.cli.console import bench_text
from pyro_compress.cli.main import main
from pyro_compress.deploy.bench import in_turns
from pyro_compress.deploy.engines import ENGINES
from pyro_compress.deploy.formats import EXPORTERS
from pyro_compress.deploy.measured import Bench, Cell, Row, findings
from pyro_compress.deploy.memory import peak_memory
from pyro_compress.pcn import file
from pyro_compress.runs.evaluation import evaluate

pytest.importorskip("onnxruntime")
ENGINE_ROWS = {
    ("dense", "torch"), ("masked dense", "torch"), ("shrunken", "torch"),
    ("dense", "ONNX Runtime"), ("masked dense", "ONNX Runtime"), ("shrunken", "ONNX Runtime"),
    ("dense", "ONNX Runtime int8"), ("shrunken", "ONNX Runtime int8"), ("shrunken", "scipy CSR"),
    ("shrunken", "ONNX Runtime int4"),
} | ({("masked dense", "C, compiled"), ("shrunken", "C, compiled")} if shutil.which("cc") else set())  # fmt: skip
ENGINE_ROWS |= {("shrunken", "C, integers")} if shutil.which("cc") else set()
for package, engine in (("executorch", "ExecuTorch"), ("litert_torch", "LiteRT")):
    if find_spec(package):
        ENGINE_ROWS |= {(v, engine + i) for v in ("dense", "shrunken") for i in ("", " int8")}
ENGINE_ROWS |= {("shrunken", "WebAssembly, node")} if find_spec("ziglang") and shutil.which("node") else set()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "run"
    fit = ["fit", "--prior", "log-uniform", "--hidden", "30,20", "--epochs", "8", "--batch-size", "100"]
    fit += ["--threads", "1", "--device", "cpu"]
    for command in ([*fit, "--out", str(out)], ["compress", str(out), "--sparsity", "0.8"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    return out


def bench(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, ["bench", "--seconds", "0.01", "--threads", "1", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_row(run: Path) -> None:
    (found,) = json.loads(bench(run / "network.pcn", "--batches", "1,4", "--no-memory", "--json", "--device", "cpu"))
    assert {(row["variant"], row["engine"]) for row in found["rows"]} == ENGINE_ROWS
    assert found["file_bytes"] == (run / "network.pcn").stat().st_size
    assert found["dense_widths"] == [64, 30, 20, 10]
    errors = {row["variant"]: row["error"] for row in found["rows"] if row["engine"] == "torch"}
    assert errors["shrunken"] == pytest.approx(1 - evaluate(run / "network.pcn", threads=1).scores.accuracy)
    assert errors["dense"] == pytest.approx(1 - evaluate(run, threads=1).scores.accuracy)
    assert found["measure"] == "accuracy"
    for row in found["rows"]:
        assert row["error"] == pytest.approx(errors[row["variant"]], abs=0.02)
        assert row["score"] == f"{100 * (1 - row['error']):.2f} %"
        assert [cell["batch"] for cell in row["cells"]] == [1, 4]
        assert all(0 < cell["median_us"] <= cell["p95_us"] and cell["calls"] > 0 for cell in row["cells"])
    sizes = {(row["variant"], row["engine"]): row["bytes"] for row in found["rows"]}
    assert sizes["shrunken", "ONNX Runtime"] < sizes["dense", "ONNX Runtime"]
    assert sizes["masked dense", "ONNX Runtime"] == sizes["dense", "ONNX Runtime"]


def test_without_the_original(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pcn").write_bytes((run / "network.pcn").read_bytes())
    alone = bench(tmp_path / "a.pcn", "--batches", "2", "--no-memory")
    assert "name the original network with --dense RUN" in alone
    assert "\ndense" not in alone
    with_it = bench(tmp_path / "a.pcn", "--batches", "2", "--no-memory", "--dense", run)
    assert "\ndense" in with_it
    assert "Units removed (64-30-20-10 -> " in with_it


def test_data_of_another_shape_are_left_out(run: Path, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((60, 5), np.float32), np.arange(60) % 10
    np.savez(tmp_path / "five.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    network = file.read(run / "network.pcn")
    other = replace(network, meta=network.meta | {"data": str(tmp_path / "five.npz")})
    (tmp_path / "a.pcn").write_bytes(file.dumps(other)[0])
    told = bench(tmp_path / "a.pcn", "--batches", "1", "--no-memory")
    assert "five.npz: one example has shape (5,); this network takes (1, 8, 8)" in told
    assert "no integer C row: its data are not at hand" in told


def test_scores_are_of_so_many_examples(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_compress.deploy.bench.SCORED", 7)
    (found,) = json.loads(bench(run / "network.pcn", "--batches", "1", "--no-memory", "--json"))
    assert found["examples"] == 7
    assert all(7 * row["error"] == pytest.approx(round(7 * row["error"])) for row in found["rows"])


def test_an_engine_that_fails_is_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, threads: int) -> None:
        raise RuntimeError("cannot be loaded\nat all")

    monkeypatch.setitem(ENGINES, "ONNX Runtime", fails)
    (found,) = json.loads(bench(run / "network.pcn", "--batches", "1", "--no-memory", "--json"))
    assert {row["engine"] for row in found["rows"]} == {e for _, e in ENGINE_ROWS if not e.startswith("ONNX")}
    assert "no ONNX row of the dense network: cannot be loaded" in found["missing"]


def test_outputs_that_cannot_be_scored_are_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(EXPORTERS[".onnx"], load=lambda path: lambda x: np.full((len(x), 10), np.nan, np.float32))
    monkeypatch.setitem(EXPORTERS, ".onnx", broken)
    (found,) = json.loads(bench(run / "network.pcn", "--batches", "1", "--no-memory", "--json"))
    scores = {row["engine"]: (row["score"], row["error"]) for row in found["rows"]}
    assert scores["ONNX Runtime"] == ("none", None)
    assert scores["torch"][1] is not None
    assert any("dense, ONNX Runtime: no score: the network's outputs are not finite" in one for one in found["missing"])


def test_bad_batches(run: Path) -> None:
    for wrong in ("0", "a", "1,,2"):
        result = CliRunner().invoke(main, ["bench", str(run / "network.pcn"), "--batches", wrong])
        assert result.exit_code == 1
        assert "give positive sizes separated by commas" in result.stderr


def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    from pyro_compress.deploy.card import card
    from pyro_compress.deploy.onnx_files import write_onnx
    from pyro_compress.scores import Scores
    from pyro_compress.types import Compressed, Graph, Node

    peaks = []
    for width in (10, 20_000):  # the second weight takes 64 MB
        graph = Graph((Node("input"), Node("linear", (0,), {"weight": "w"})), (800,))
        network = Compressed(graph, {"w": np.ones((width, 800), np.float32)}, {})
        write_onnx(network, card(network, Scores(0, 0, 0, 0), 0), tmp_path / "a.onnx")
        peaks.append(peak_memory("ONNX Runtime", tmp_path / "a.onnx", (1, 800)))
    small, large = peaks
    assert small is not None
    assert large is not None
    assert small[0] < 200
    assert 60 < large[1] - small[1] < 400
    assert peak_memory("ONNX Runtime", tmp_path / "nothing.onnx", (1,)) is None


def test_calls_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order, clock = [], [0]

    def call(name: str, took: int) -> None:
        order.append(name)
        clock[0] += took

    monkeypatch.setattr("pyro_compress.deploy.bench.time.perf_counter_ns", lambda: clock[0])
    slow, quick = in_turns([lambda: call("a", 4_000_000), lambda: call("b", 1_000_000)], 0.006)
    assert slow == [4_000_000] * 3
    assert quick == [1_000_000] * 6
    assert "".join(order) == "aaabbb" + 3 * "abb"  # behind three calls each to warm up


def synthetic() -> Bench:
    right = {"ONNX Runtime int8": 0.90, "WebAssembly, node": 0.975}

    def row(variant: str, engine: str, size: int, *medians: float) -> Row:
        cells = tuple(Cell(batch, m, 2 * m, 9) for batch, m in zip((1, 256), medians, strict=True))
        share = right.get(engine, 0.97)
        return Row(variant, engine, 1, size, 50.0, 1.0, cells, f"{100 * share:.2f} %", 1 - share)

    rows = (
        row("dense", "ONNX Runtime", 1000, 20, 1000),
        row("masked dense", "ONNX Runtime", 1000, 20, 1000),
        row("shrunken", "ONNX Runtime", 100, 8, 200),
        row("shrunken", "ONNX Runtime int8", 50, 10, 100),
        row("shrunken", "scipy CSR", 80, 16, 400),
        row("masked dense", "C, compiled", 90, 5, 125),
        row("shrunken", "C, compiled", 70, 4, 50),
        row("shrunken", "WebAssembly, node", 60, 5, 200),
    )
    return Bench("a.pcn", 30, 0.25, [4, 2], [9, 2], rows, ("something is missing",), "accuracy", 40)


def test_findings_say_what_the_numbers_say() -> None:
    told = " ".join(findings(synthetic()))
    assert "Zeros left in place, ONNX Runtime: 1.0× at batch 1, 1.0× at batch 256; a file as large." in told
    assert "Units removed (9-2 -> 4-2), ONNX Runtime: 2.5× at batch 1, 5.0× at batch 256; file 10.0× smaller." in told
    assert "CSR (25 % non-zero): 0.5× at batch 1, 0.5× at batch 256 as fast" in told
    assert "The same zeros in compiled C, which leaves them out: 4.0× at batch 1, 8.0× at batch 256 as fast" in told
    assert "zeros left out, compiled C: 5.0× at batch 1, 20.0× at batch 256 as fast as dense in ONNX Runtime." in told
    assert "The same C as WebAssembly in node: 0.8× at batch 1, 0.2× at batch 256 as fast as compiled for" in told
    assert "8-bit integers on top of removed units: 0.8× at batch 1, 2.0× at batch 256." in told
    fastest = "C, compiled at batch 1 (4.0 µs, 97.00 %), C, compiled at batch 256 (50.0 µs, 97.00 %)"
    fastest += "; not ONNX Runtime int8, which lose more."
    assert f"Fastest for the compressed network, take: {fastest}" in told
    assert told.endswith("Smallest for it, take: WebAssembly, node (60 bytes, 97.50 %).")


def test_a_row_without_a_number_for_its_error_is_not_advised() -> None:
    whole = synthetic()
    wrong = [replace(row, error=float("nan")) if row.engine == "C, compiled" else row for row in whole.rows]
    told = " ".join(findings(replace(whole, rows=tuple(wrong))))
    assert "take: WebAssembly, node at batch 1 (5.0 µs, 97.50 %)" in told
    assert "not ONNX Runtime int8, C, compiled, which lose more." in told
    wrong = [replace(row, error=float("nan")) for row in whole.rows]
    assert "take:" not in " ".join(findings(replace(whole, rows=tuple(wrong))))


def test_without_the_original_c_is_compared_with_the_same_network() -> None:
    whole = synthetic()
    told = " ".join(findings(replace(whole, rows=tuple(row for row in whole.rows if row.variant == "shrunken"))))
    assert "left out by compiled C: 2.0× at batch 1, 4.0× at batch 256 as fast as the same network in ONNX" in told
    assert "The same zeros" not in told


def test_table() -> None:
    lines = bench_text([synthetic()]).splitlines()
    assert lines[0] == "a.pcn: 30 bytes, 25.0 % of its weights non-zero"
    assert lines[4].split() == [
        "shrunken", "ONNX", "Runtime", "1", "100", "50", "+1.0", "8.0", "(16.0)", "2.5×", "200.0", "(400.0)", "5.0×",
        "1,280,000", "97.00", "%",
    ]  # fmt: skip
    assert "something is missing" in lines
    assert "accuracy: on 40 examples of the test split." in lines
