"""Every script runs with --smoke and explains itself with --help."""

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import bench_browser
import compare_post_training
import pytest
import torch
from safetensors.torch import save_model

from pyro_compress.machine import has_bfloat16
from pyro_compress.studies.study import compare
from pyro_compress.tuning.published import PUBLISHED

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))


class Done(NamedTuple):
    """How a script ended, and what it printed."""

    code: object
    stdout: str
    stderr: str


def called(script: Path, *arguments: str, cwd: Path) -> Done:
    """Run a script as its command does, but in this process, where torch is there already."""
    out, err, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("sys.argv", [str(script), *arguments])
        patch.setenv("COLUMNS", "200")
        patch.chdir(cwd)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        finally:
            torch.set_num_threads(threads)
    return Done(code, out.getvalue(), err.getvalue())


def run(script: Path, *arguments: str, cwd: Path) -> str:
    done = called(script, *arguments, cwd=cwd)
    assert done.code == 0, done.stderr
    return done.stdout


def test_help(tmp_path: Path) -> None:
    for script in SCRIPTS:
        assert "--smoke" in run(script, "--help", cwd=tmp_path), script


def test_compatibility(tmp_path: Path) -> None:
    """A network of torchvision goes all the way, and nothing is written where somebody only tries."""
    printed = run(script("compatibility"), "--smoke", cwd=tmp_path)
    assert printed.startswith("torchvision squeezenet1_1: ")
    assert "'c': 'yes'" in printed
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    for stem, arguments, told in (
        ("figure_sparsity", ("--csv", "absent.csv"), "absent.csv"),
        ("figure_weights", ("--results", "absent"), "absent"),
        ("record", ("--data", "mnist", "--data-dir", "absent"), "MNIST not found"),
        ("study_document", ("--add", "absent.toml", "absent"), "absent.toml"),
        ("compare_post_training", ("--methods", "int4 + zstd"), "name the Python that has it with --torchao-python"),
    ):
        result = called(script(stem), *arguments, cwd=tmp_path)
        assert result.code == 1, result
        assert result.stderr.startswith("Error: "), result.stderr
        assert told in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_results_priors(tmp_path: Path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "results_priors")
    run(script, "--smoke", "--out", "rows.json", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["report"]["file_bytes"] > 0
    assert [part["tolerance"] for part in row["structural"]] == [0.0, 0.0005, 0.001]
    assert all(part["weights"] > 0 for part in row["structural"])
    assert "digits, mlp | horseshoe | 5" in run(script, "--table", "--out", "rows.json", cwd=tmp_path)


@pytest.mark.slow
def test_paper(tmp_path: Path) -> None:
    """A row as published, and its file."""
    run(script("paper"), "--smoke", "--json", "rows.json", "--files", "files", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["bytes"] == (tmp_path / "files" / row["file"]).stat().st_size
    assert row["nonzero_percent"] == pytest.approx(100 / row["ratio_pruned"])
    assert row["ratio_fixed_point"] > row["ratio_pruned"]  # fewer than 32 bits a weight
    assert row["ratio_maximum"] > row["ratio_file"]  # no headers, no biases


@pytest.mark.slow
def test_other_tasks(tmp_path: Path) -> None:
    """Data, fit, file and exports by commands; what is there is not made again."""
    tiny = ("--smoke", "--folder", "tasks", "--json", "rows.json")
    assert "a tiny one" in run(script("other_tasks"), *tiny, cwd=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["bytes"] == (tmp_path / "tasks" / "masks-0.pcn").stat().st_size
    assert row["exports"] == {kind: (tmp_path / "tasks" / f"masks-0.{kind}").stat().st_size for kind in ("onnx", "c")}
    assert row["dense_bytes"] == 4 * row["parameters"]
    assert 0 <= row["after"] <= 1
    assert run(script("other_tasks"), *tiny, cwd=tmp_path) == ""


def test_bench_estimators(tmp_path: Path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "bench_estimators")
    run(script, "--smoke", "--json", "rows.json", cwd=tmp_path)
    rows = {row["estimator"]: row["relative"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["local"] == 1
    assert set(rows) == {"weight", "local", "flipout"}


@pytest.mark.slow
def test_bench_step(tmp_path: Path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "bench_step")
    run(script, "--smoke", "--json", "rows.json", cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["mode"] for row in rows} == {"eager", "captured", "naive"}
    assert rows[0]["ratio"] == 1
    assert set(rows[0]) == {
        "network", "batch", "precision", "prior", "estimator", "mode", "ms", "ratio", "state_bytes", "peak_mib",
    }  # fmt: skip
    assert {row["estimator"]: row["state_bytes"] for row in rows} == {
        "adam": 12, "local": pytest.approx(24, rel=0.01), "natural": pytest.approx(12, rel=0.01), "auto-normal": None,
    }  # fmt: skip


def test_natural_gradients(tmp_path: Path) -> None:
    """Rows are merged: what is there is not measured again."""
    script = next(path for path in SCRIPTS if path.stem == "natural_gradients")
    run(script, "--smoke", "--json", "rows.json", cwd=tmp_path)
    first = (tmp_path / "rows.json").read_text()
    rows = json.loads(first)
    assert [(row["optimizer"], row["estimator"]) for row in rows] == [
        ("adam", "local"), ("adam", "weight"), ("natural", "local"), ("natural", "weight"),
    ]  # fmt: skip
    assert list(rows[0]["pruned_test_accuracy"]) == ["0.75", "0.9", "0.95", "0.98"]
    assert "| gaussian | natural | weight |" in run(script, "--smoke", "--json", "rows.json", cwd=tmp_path)
    assert (tmp_path / "rows.json").read_text() == first


def test_bench_equal_time(tmp_path: Path) -> None:
    """All estimators have the same time: epochs as many times more as they are cheaper."""
    run(script("bench_equal_time"), "--smoke", "--json", "rows.json", cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    found = {row["estimator"]: row["epochs"] for row in rows}
    assert list(found) == ["local", *(["local, bfloat16"] if has_bfloat16("cpu") else []), "weight"]
    assert found["local"] == 2
    assert min(found.values()) == 2
    assert "| gaussian | weight |" in run(script("bench_equal_time"), "--smoke", "--json", "rows.json", cwd=tmp_path)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


def test_bench_fit(tmp_path: Path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "bench_fit")
    run(script, "--smoke", "--json", "rows.json", cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["prior"] for row in rows] == ["none", "gaussian"]
    assert all(row["seconds"] > 0 for row in rows)


def script(stem: str) -> Path:
    return next(path for path in SCRIPTS if path.stem == stem)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder of the smallest study, shared by the figures."""
    folder = tmp_path_factory.mktemp("study")
    run(script("figure_training"), "--smoke", "--results", "out", "--out", "training", cwd=folder)
    assert pictures(folder / "training")
    return folder / "out"


def pictures(stem: Path) -> bool:
    """Whether a figure is there twice: a PNG of some size, and an SVG with readable text."""
    png, svg = stem.with_suffix(".png").read_bytes(), stem.with_suffix(".svg").read_text()
    return png[:4] == b"\x89PNG" and len(png) > 5000 and "<text" in svg


@pytest.mark.parametrize("stem", ["figure_weights", "figure_study_bytes"])
@pytest.mark.slow
def test_figures_of_runs(stem: str, results: Path, tmp_path: Path) -> None:
    run(script(stem), "--smoke", "--results", str(results), "--out", "figure", cwd=tmp_path)
    assert pictures(tmp_path / "figure")


@pytest.mark.parametrize("stem", ["figure_prior", "figure_sparsity", "figure_time"])
def test_figures_of_rows(stem: str, results: Path, tmp_path: Path) -> None:
    source = [] if stem == "figure_prior" else ["--csv", str(results / "study.csv")]
    run(script(stem), *source, "--out", "figure", cwd=tmp_path)
    assert pictures(tmp_path / "figure")


def test_figures_of_what_is_stored(tmp_path: Path) -> None:
    """Every published point of a network and every method that has files of it stand in the picture of their panel."""
    run(script("figure_bytes"), "--out", "bytes", cwd=tmp_path)
    assert all(pictures(tmp_path / name) for name in ("bytes", "bytes-more", "bytes-trained"))
    shown = (tmp_path / "bytes.svg").read_text()
    for name in {point.name for points in PUBLISHED.values() for point in points}:
        assert f">{name}<" in shown
    for name in ("log-uniform, fine-tuned", "horseshoe", "magnitude", "uncompressed, float32"):
        assert f">{name}<" in shown
    trained = (tmp_path / "bytes-trained.svg").read_text()
    assert all(f">{row['method']}<" in trained for row in json.loads((RESULTS / "compared.json").read_text()))
    run(script("figure_tuning"), "--out", "tuning", cwd=tmp_path)
    front = (tmp_path / "tuning.svg").read_text()
    for name in ("front (test)", "front (validation)", "log-uniform, fine-tuned"):
        assert f">{name}<" in front
    run(script("figure_architecture"), "--out", "architecture", cwd=tmp_path)
    assert pictures(tmp_path / "architecture")
    run(script("figure_study_bytes"), "--out", "study", cwd=tmp_path)
    points = json.loads((RESULTS / "study-bytes.json").read_text())
    assert all(f">{point['label']}<" in (tmp_path / "study.svg").read_text() for point in points)


@pytest.mark.slow
def test_artefact(tmp_path: Path) -> None:
    document = tmp_path / "d.md"
    document.write_text("before\n<!-- table artefact -->\nold\n<!-- end -->\nafter\n")
    written = ("--json", "row.json", "--document", str(document))
    told = run(script("artefact"), "--smoke", *written, cwd=tmp_path)
    right, wrong, published = json.loads((tmp_path / "row.json").read_text())["test_accuracy"].values()
    assert len(set(published)) == 1
    assert right[0] == wrong[0] == published[0]
    assert right[1] > wrong[1] + 0.3
    assert document.read_text() == f"before\n<!-- table artefact -->\n\n{told}\n<!-- end -->\nafter\n"
    assert run(script("artefact"), *written, cwd=tmp_path) == told


def test_the_page_of_the_artefact_shows_its_row(tmp_path: Path) -> None:
    docs = Path(__file__).parents[1] / "docs"
    told = run(script("artefact"), "--json", str(docs / "results/artefact.json"), cwd=tmp_path)
    assert f"<!-- table artefact -->\n\n{told}\n<!-- end -->" in (docs / "results/artefact.md").read_text()


def test_tables_of_results_are_those_of_the_rows(tmp_path: Path) -> None:
    """Every page of docs/results: `python scripts/results_tables.py` would change nothing."""
    assert run(script("results_tables"), "--check", cwd=tmp_path) == ""


@pytest.mark.slow
def test_study_document(tmp_path: Path) -> None:
    assert "| log-uniform (own recipe) |" in run(script("study_document"), "--smoke", cwd=tmp_path)
    document = tmp_path / "study.md"
    document.write_text("before\n<!-- table accuracy mnist mlp-500-500 -->\nold\n<!-- end -->\nafter\n")
    run(script("study_document"), "--document", str(document), cwd=tmp_path)
    text = document.read_text()
    assert text.startswith("before\n<!-- table accuracy mnist mlp-500-500 -->\n\n| method | 0 % |")
    assert "| *published* | *97.83* | *97.53* | *95.86* | *69.43* |" in text
    assert "old" not in text
    assert text.endswith("\n<!-- end -->\nafter\n")
    again = text
    run(script("study_document"), "--document", str(document), cwd=tmp_path)
    assert document.read_text() == again


@pytest.mark.slow
def test_study_document_keeps_methods_that_share_a_fit(tmp_path: Path) -> None:
    """Added one after the other, each with its own rows and uncertainty; added again, nothing doubles."""
    results, document = tmp_path / "results", tmp_path / "study.md"
    results.mkdir()
    (results / "published.json").write_text("{}")
    document.write_text("<!-- table uncertainty digits mlp-5 -->\n<!-- end -->\n")
    cells = {}
    for criterion in ("snr", "magnitude", "magnitude"):
        study, folder = tmp_path / f"{criterion}.toml", tmp_path / criterion
        study.write_text(
            f'name = "{criterion}"\ndatasets = ["digits"]\nnetworks = ["mlp"]\nsparsities = [0.9]\nseeds = [0]\n'
            "[fit]\nhidden = [5]\nepochs = 3\n"
            f'[[methods]]\nname = "{criterion}"\nprior = "spike-and-slab"\ncriterion = "{criterion}"\n'
        )
        (row, *_) = compare(study, folder, device="cpu", threads=1)
        cells[criterion] = f"| {criterion} | 90 % | {row.nll_nats:.3f} | {row.ece:.3f} | {row.brier:.3f} |"
        added = ("--add", str(study), str(folder), "--results", str(results), "--document", str(document))
        run(script("study_document"), *added, cwd=tmp_path)
    (stored,) = json.loads((results / "study.json").read_text()).values()
    assert len(stored["uncertainty"]) == len((results / "study.csv").read_text().splitlines()) - 1 == 4
    assert cells["snr"] != cells["magnitude"].replace("magnitude", "snr")
    for line in cells.values():
        assert line in document.read_text()


@pytest.mark.slow
def test_networks_end_to_end(tmp_path: Path) -> None:
    document = tmp_path / "d.md"
    document.write_text("before\n<!-- table networks -->\nold\n<!-- end -->\nafter\n")
    run(script("networks_end_to_end"), "--smoke", "--json", "rows.json", "--document", str(document), cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["posterior"], row["finetune_epochs"]) for row in rows["post-training"]] == [
        ("laplace", 0), ("svi", 0), ("laplace", 1)
    ]  # fmt: skip
    assert rows["networks"][0]["onnx_difference"] < 1e-4
    assert document.read_text().startswith("before\n<!-- table networks -->\n\n| network | parameters |")
    assert document.read_text().endswith("<!-- end -->\nafter\n")


def test_compare_coders(tmp_path: Path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "compare_coders")
    lines = run(script, "--smoke", cwd=tmp_path).splitlines()
    assert "static tables" in lines[0]
    assert "zstd" in lines[0]
    assert any(line.startswith("| version-1.pcn | ") for line in lines)


@pytest.mark.slow
def test_ablation(tmp_path: Path) -> None:
    """Every stage of three runs, the context coder never larger; a document gets means over seeds, published rows."""
    header, _, *lines = run(script("ablation"), "--smoke", cwd=tmp_path).splitlines()
    assert [line.split(" | ")[1] for line in lines] == ["log-uniform", "normal-jeffreys", "magnitude"]
    names = header.split(" | ")
    for line in lines:
        cells = dict(zip(names, line.split(" | "), strict=True))
        sizes = [cells[name].split("<br>")[0].rstrip("×") for name in ("file, static tables", "file, context coder")]
        assert float(sizes[0]) <= float(sizes[1])
    stages = [{"ratio": r, "bytes": int(1000 * r), "test_error_percent": e} for r, e in ((1.0, 1.5), (2.0, 1.7))]
    of = {"dataset": "mnist", "network": "lenet-300-100", "method": "horseshoe"}
    rows = [of | {"run": f"ghs-{seed}", "seed": seed, "stages": {"file": stage}} for seed, stage in enumerate(stages)]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, rows[0] | {"dataset": "digits", "seed": 3}]))
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- table ablation -->\nold\n<!-- end -->\nafter\n")
    run(script("ablation"), "--table", "--json", "rows.json", "--document", str(document), cwd=tmp_path)
    text = document.read_text()
    assert (
        "| mnist, lenet-300-100 | horseshoe | 0, 1 | 1.5 ± 0.7×<br>1,500 ± 707 B<br>1.60 ± 0.14 % |\n| | *published*"
        in text
    )
    assert "| digits, lenet-300-100 | horseshoe | 3 | 1.0×<br>1,000 B<br>1.50 % |\n\n<!-- end -->" in text
    assert "old" not in text


@pytest.mark.slow
def test_fuzz_files(tmp_path: Path) -> None:
    told = run(script("fuzz_files"), "--smoke", "--json", "counts.json", cwd=tmp_path)
    assert re.search(r"^300 inputs of seed 0 in .*, 0 neither a result nor one line$", told, re.MULTILINE), told
    kinds = json.loads((tmp_path / "counts.json").read_text())["kinds"]
    assert sum(counts.get("inputs", 0) for counts in kinds.values()) == 300
    assert kinds["pcn, kept valid"]["passed"] > 0.8 * kinds["pcn, kept valid"]["inputs"]


def test_record(tmp_path: Path) -> None:
    run(script("record"), "--smoke", "--shrink-every", "1", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "docs" / "results" / "records" / "records.json").read_text())
    path = tmp_path / "docs" / "results" / "records" / row["file"]
    assert path.stat().st_size == row["bytes"]
    written = path.read_bytes()
    run(script("record"), "--recode", "--smoke", cwd=tmp_path)  # there is nothing to gain any more
    assert len(path.read_bytes()) <= len(written)
    assert row["finetune_epochs"] > 0
    assert row["fit"]["shrink_every"] == 1
    assert "--shrink-every 1 --seeds 0 --lambdas 2" in row["command"]


@pytest.mark.slow
def test_bench_tune(tmp_path: Path) -> None:
    arguments = ("--smoke", "--modes", "layer-wise", "--out", "bench")
    first = run(script("bench_tune"), *arguments, cwd=tmp_path)
    rows = json.loads((tmp_path / "bench" / "rows.json").read_text())
    assert [(row["sampler"], row["trials"]) for row in rows] == [("gp", 12), ("random", 12)]
    for row in rows:
        assert 0 <= row["hypervolume"]["10"] <= row["hypervolume"]["12"]
    assert first.splitlines()[-1].startswith("| layer-wise, random | 1 | 12 |")


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("initdb") or not importlib.util.find_spec("psycopg"), reason="no PostgreSQL server or driver here"
)
def test_tune_postgres(tmp_path: Path) -> None:
    found = json.loads(run(script("tune_postgres"), "--smoke", "--out", "two", cwd=tmp_path))
    assert (found["finished"], found["killed"], found["left_running_or_waiting"]) == (8, 1, 0)
    assert found["retried_with_the_same_parameters"] == 1


@pytest.mark.slow
def test_kill_resume(tmp_path: Path) -> None:
    assert "0 with other bytes" in run(script("kill_resume"), "--smoke", cwd=tmp_path)


@pytest.mark.slow
def test_cut_power(tmp_path: Path) -> None:
    """Where a file system may be mounted; elsewhere the script says that none can be."""
    told = run(script("cut_power"), "--smoke", cwd=tmp_path)
    assert "2 images" in told or "nothing was cut" in told


@pytest.mark.slow
def test_bench_coder(tmp_path: Path) -> None:
    run(script("bench_coder"), "--smoke", "--json", "rows.json", cwd=tmp_path)
    learned, static = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (learned["version"], static["version"]) == (6, 4)
    assert learned["bytes"] < static["bytes"]
    assert learned["values"] == static["values"] == 1235496


@pytest.mark.slow
def test_language_models(tmp_path: Path) -> None:
    run(script("language_models"), "--smoke", "--json", "rows.json", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["network"], row["way"]) == ("lstm", "rounded with compensation")
    assert row["total"] == 256 * 64 + 4 * 256 * (64 + 256 + 2) + 256 * 257
    assert 7.9 < row["test_bits"] < 1.5 * row["test_bits_before"]


@pytest.mark.slow
def test_bench_memory(tmp_path: Path) -> None:
    run(script("bench_memory"), "--smoke", "--json", "rows.json", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["weights"] == 65 * 16 + 17 * 16 + 17 * 10
    assert min(row["growth_mib"], row["estimate_mib"]) > 0


@pytest.mark.slow
def test_bench_distributed(tmp_path: Path) -> None:
    run(script("bench_distributed"), "--smoke", "--json", "rows.json", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["processes"] == 2
    assert row["same_parameters"]
    assert row["bytes_per_step"] > 4 * 2 * row["weights"]  # means and scales


@pytest.mark.slow
def test_digits_chain(tmp_path: Path) -> None:
    told = run(script("digits_chain"), "--smoke", "--out", "rows.json", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert [one["prior"] for one in row["stages"]] == ["horseshoe", "log-uniform"]
    assert f"| 0 | {row['stages'][0]['report']['file_bytes']:,} B (" in told
    assert run(script("digits_chain"), "--table", "--out", "rows.json", cwd=tmp_path) == told


@pytest.mark.slow
@pytest.mark.skipif(bench_browser.chromium() is None, reason="no Chromium is installed")
def test_bench_browser(tmp_path: Path) -> None:
    printed = run(script("bench_browser"), "--smoke", "--out", "rows.json", cwd=tmp_path)
    told = json.loads((tmp_path / "rows.json").read_text())
    assert printed.splitlines() == bench_browser.browser_table(told)
    first = told["rows"][0]
    assert (first["engine"], first["digits"]) == ("WebAssembly", 20)
    assert first["digit_ms"] > 0
    assert told["page_bytes"] < 40_000


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="needs arm-none-eabi-gcc")
@pytest.mark.skipif(not shutil.which("qemu-system-arm"), reason="needs qemu-system-arm")
def test_bench_microcontroller(tmp_path: Path) -> None:
    told = run(script("bench_microcontroller"), "--smoke", "--json", "rows.json", cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    by_program = {row["program"]: row for row in rows if (row["machine"], row["optimized"]) == ("Cortex-M3", "-O2")}
    integers, floats = by_program["integer C"], by_program["C"]
    assert integers["instructions"] < floats["instructions"] / 3
    assert integers["ram"] < floats["ram"]
    assert f"| tiny.pcn | integer C | Cortex-M3 | {integers['flash']:,} |" in told


@pytest.mark.slow
def test_bench_deploy(tmp_path: Path) -> None:
    told = run(script("bench_deploy"), "--smoke", "--out", "rows.json", cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert list(rows) == ["speed network.pcn", "exports network.pcn", "ensemble run", "everywhere"]
    everywhere = {row["export"]: row for row in rows["everywhere"]["rows"]["tiny"]}
    assert len(everywhere) == 13
    for name in ("model.onnx", "model.pt2", "model.safetensors", "folder"):
        assert everywhere[name]["after"]["accuracy"] == everywhere[name]["before"]["accuracy"]
        assert len(everywhere[name]["us"]) == 2
    assert len(rows["exports network.pcn"]["rows"]) == 10 + bool(importlib.util.find_spec("ziglang"))
    assert run(script("bench_deploy"), "--table", "--out", "rows.json", cwd=tmp_path) == told


@pytest.mark.slow
def test_post_training(tmp_path: Path) -> None:
    """The table of files without training, its page and its rows; beside other methods under the same rule."""
    document = tmp_path / "d.md"
    document.write_text("before\n<!-- table without-training -->\nold\n<!-- end -->\nafter\n")
    run(script("post_training_table"), "--smoke", "--json", "rows.json", "--document", str(document), cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row["within_tolerance"] for row in rows)
    assert document.read_text().startswith("before\n<!-- table without-training -->\n\n| network | may be lost |")
    assert document.read_text().endswith("<!-- end -->\nafter\n")
    run(script("compare_post_training"), "--smoke", "--json", "compared.json", cwd=tmp_path)
    compared = {row["method"]: row for row in json.loads((tmp_path / "compared.json").read_text())}
    assert compared["pyro-compress"]["file_bytes"] == rows[0]["file_bytes"]
    assert compared["pyro-compress"]["test"] == rows[0]["test_after"]
    assert set(compared) == {"pyro-compress", "magnitude + xz", "int8 + zstd"}
    assert all(0 < row["growth_mib"] < row["peak_mib"] for row in compared.values())
    table = run(script("compare_post_training"), "--smoke", "--json", "compared.json", cwd=tmp_path)
    assert re.search(r"\| tiny \| pyro-compress \| [\d,]+ \(\d+\.\d\d %\) \| \d+ \| [\d,]+ \([\d,]+\) \|", table)


@pytest.mark.slow
def test_language_models_compared(tmp_path: Path) -> None:
    """What has no 8 bits, what has no such package, and bits per byte in place of errors."""
    language = compare_post_training.language()
    torch.manual_seed(0)
    save_model(language.lstm((64,), 256), str(tmp_path / "lstm.safetensors"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "licence.txt").write_bytes((RESULTS.parents[1] / "LICENSE").read_bytes())
    asked = ("--weights", ".", "--networks", "lstm", "--tolerances", "0.01", "--json", "rows.json")
    told = run(script("compare_post_training"), *asked, "--methods", "magnitude + xz", "int8 + zstd", cwd=tmp_path)
    rows = {row["method"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    pruned = rows["magnitude + xz"]
    assert f"{pruned['file_bytes']:,} ({pruned['test']['bits']:.3f} bits)" in told
    assert pruned["validation"]["bits"] == pytest.approx(8, abs=0.2)  # of a network that knows nothing
    assert pruned["dense_bytes"] == 4 * 411_904
    other = ("--methods", "int4 + zstd", "--torchao-python", sys.executable)
    if not importlib.util.find_spec("torchao"):
        done = called(script("compare_post_training"), *asked, *other, cwd=tmp_path)
        assert done.code == 1
        assert done.stderr == f"Error: lstm: {sys.executable}: ModuleNotFoundError: No module named 'torchao'\n"
