"""Writes the tables of docs/results/*.md from the rows in docs/results/*.json and *.csv.

    python scripts/results_tables.py

What stands between `<!-- table NAME -->` and `<!-- end -->` is made anew; nothing is measured. `--check` writes nothing
and says which pages would change. Tables of the study (`<!-- table KIND DATA NETWORK ... -->`) are those of
`study_document.py`.
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation
import artefact
import bench_browser
import bench_deploy
import bench_equal_time
import bench_microcontroller
import bench_step
import compare_post_training
import digits_chain
import natural_gradients
import networks_end_to_end
import other_tasks
import paper
import post_training_table
import results_priors
import study_document

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.studies.tables import markdown_table, spread

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
MARKED = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMED = re.compile(r"(?:fashion-)?mnist-(?:lenet-300-100|lenet-5-caffe)-(.*?)-?rate[\d.]+-seed\d+\.pcn")
RECIPES = {
    "": "fine-tuning", "long": "longer", "fine": "longer, finer steps", "flat": "sharpness-aware",
    "flat-small": "sharpness-aware, batches of 64", "conv-taught": "teacher: lenet-5-relu",
    "mlp-taught": "teacher: mlp with dropout", "taught": "teacher: lenet-5-relu",
    "taught-fine": "teacher: lenet-5-relu, finer steps", "augmented": "augmented images",
    "augmented-long": "augmented images, no noise", "augmented-fit": "fit on augmented images, too",
    "augmented-fit-fast": "fit on augmented images, too; learning rate 4e-3",
    "augmented-fit-long": "fit on augmented images, too", "augmented-fit-longer": "fit on augmented images, too",
}  # fmt: skip
"""What the labels of `record.py` stand for."""


def stored(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def lines(heads: list[str], rows: list[list[str]]) -> str:
    return markdown_table([heads, *rows])


def records() -> list[dict]:
    return stored("records/records.json")


def recipe(row: dict) -> tuple[str, str, str, int, float]:
    """Data, network, words, epochs of fine-tuning, λ."""
    label = NAMED.fullmatch(row["file"])
    assert label, row["file"]
    return row["dataset"], row["network"], RECIPES[label[1]], row["finetune_epochs"], row["rate"]


def smallest(data: str, network: str) -> str:
    groups: dict[tuple, list[dict]] = {}
    for row in records():
        groups.setdefault(recipe(row), []).append(row)
    found = []
    for key, rows in sorted(groups.items(), key=lambda one: -statistics.mean(row["bytes"] for row in one[1])):
        if key[:2] == (data, network):
            of = lambda name, digits, rows=rows: spread([row[name] for row in rows], digits)  # noqa: E731
            seeds = ", ".join(str(seed) for seed in sorted(row["seed"] for row in rows))
            found.append([
                key[2], str(key[3]), f"{key[4]:g}", seeds, of("bytes", 0), of("spelled_out_bytes", 0),
                f"{statistics.mean(row['ratio'] for row in rows):,.0f}×", of("validation_error_percent", 2),
                of("test_error_percent", 2),
            ])  # fmt: skip
    heads = ["how", "epochs", "λ", "seeds", "bytes", "spelled out", "ratio", "validation error %"]
    return lines([*heads, "test error %"], found)


def every_file() -> str:
    rows = [
        [row["file"], f"{row['bytes']:,}", "-".join(map(str, row["units"])), f"{row['validation_error_percent']:.2f}",
         f"{row['test_error_percent']:.2f}"]
        for row in records()
    ]  # fmt: skip
    return lines(["file", "bytes", "units", "validation error %", "test error %"], rows)


def record_commands() -> str:
    return "\n".join(["```", *dict.fromkeys(row["command"] for row in records()), "```"])


def units() -> str:
    rows = []
    for row in stored("grouped.json"):
        for part in row["structural"]:
            rows.append([
                row["prior"], str(row["epochs"]), str(row["seed"]), f"{100 * part['tolerance']:.2f}",
                "-".join(map(str, part["units"])), f"{part['ratio']:.1f}×", f"{part['test_error_percent']:.2f}",
                f"{row['report']['file_bytes']:,}", f"{100 * (1 - row['report']['test_accuracy_after']):.2f}",
            ])  # fmt: skip
    heads = ["prior", "epochs", "seed", "may be lost, points", "units", "fewer weights", "test error %"]
    return lines([*heads, "bytes of the file", "its test error %"], rows)


def single() -> str:
    row = stored("single.json")
    told = row["report"]
    before, after = (f"{100 * (1 - told[f'test_accuracy_{when}']):.2f} %" for when in ("before", "after"))
    cells = [before, after, f"{told['file_bytes']:,}", f"{told['ratio']:.1f}×", "-".join(map(str, told["units_kept"]))]
    heads = ["test error, uncompressed", "test error, file", "bytes", "ratio", "units"]
    return "\n".join([lines(heads, [cells]), "", "```", *row["command"], "```"])


def compared() -> str:
    return compare_post_training.table(stored("compared.json"))


def language() -> str:
    heads = ["network", "made small by", "file", "ratio", "bits per byte before", "after", "more"]
    cells = [
        [row["network"], row["way"], f"{row['bytes']:,} B", f"{row['ratio']:.1f}", f"{row['test_bits_before']:.4f}",
         f"{row['test_bits']:.4f}", f"{100 * row['more']:.2f} %"]
        for row in stored("language.json")
    ]  # fmt: skip
    return lines(heads, cells)


def cifar() -> str:
    heads = ["network", "made small by", "validation may lose", "file", "ratio", "test error before", "after"]
    cells = [
        [row["network"], row["way"], f"{100 * row['tolerance']:.1f} points", f"{row['bytes']:,} B",
         f"{row['ratio']:.1f}", f"{row['test_error_percent_before']:.2f} %", f"{row['test_error_percent']:.2f} %"]
        for row in stored("cifar.json")
    ]  # fmt: skip
    commands = list(dict.fromkeys(one for row in stored("cifar.json") for one in (row["fit"], row["command"])))
    return "\n".join([lines(heads, cells), "", "```", *commands, "```"])


def tasks() -> str:
    rows = stored("tasks.json")
    return "\n".join([other_tasks.table(rows), "", other_tasks.commands(rows)])


def coder() -> str:
    heads = ["values", "kept", "coder", "bytes", "written in", "read in", "memory, × float32"]
    cells = [
        [f"{row['values']:,}", f"{100 * row['kept']:g} %", row["coder"], f"{row['bytes']:,}",
         f"{row['write_seconds']:.1f} s", f"{row['read_seconds']:.1f} s", f"{max(row['write_x'], row['read_x']):.1f}"]
        for row in stored("coder.json")["rows"]
    ]  # fmt: skip
    return lines(heads, cells)


def fits() -> str:
    rows = stored("fit.json")
    heads = ["prior", "epochs", "seconds", "× Adam", "seconds per epoch", "seconds paid once"]
    cells = [
        [row["prior"], str(row["epochs"]), f"{row['seconds']:.0f}", f"{row['seconds'] / rows[0]['seconds']:.2f}",
         f"{row['seconds_per_epoch']:.2f}", f"{row['seconds_once']:.1f}"]
        for row in rows
    ]  # fmt: skip
    return lines(heads, cells)


def gradients() -> str:
    found: dict[str, dict[str, float]] = {}
    for row in stored("estimators.json"):
        found.setdefault(row["prior"], {})[row["estimator"]] = row["relative"]
    names = list(next(iter(found.values())))
    rows = [[prior, *(f"{told[name]:.2f}" for name in names)] for prior, told in found.items()]
    return lines(["prior", *names], rows)


def memory() -> str:
    rows = [
        [row["case"].replace(":", ", "), f"{row['weights']:,}", f"{row['growth_mib']:,.0f}",
         f"{row['estimate_mib']:,.0f}", f"{row['estimate_ratio']:.2f}"]
        for row in stored("memory.json")
    ]  # fmt: skip
    return lines(["command", "weights", "measured, MiB", "guard, MiB", "guard / measured"], rows)


def distributed() -> str:
    rows = [
        [str(row["processes"]), f"{row['ms_per_step']:.1f}", f"{row['bytes_per_step']:,}",
         "yes" if row["same_parameters"] else "no", f"{row['negative_elbo_nats']:,.0f}",
         f"{100 * row['validation_accuracy']:.2f} %"]
        for row in stored("distributed.json")
    ]  # fmt: skip
    heads = ["processes", "ms per step", "bytes per step", "same parameters", "-ELBO, nats", "validation accuracy"]
    return lines(heads, rows)


def sharded() -> str:
    told = stored("sharded.json")
    rows = [
        [str(row["processes"]), f"{row['peak_mib']:,.0f}", f"{row['peak_mib'] / told[0]['peak_mib']:.2f}",
         f"{row['ms_per_step'] / 1000:.1f}", "yes" if row["same_parameters"] else "no",
         f"{row['negative_elbo_nats']:,.0f}"]
        for row in told
    ]  # fmt: skip
    heads = ["processes", "peak of each, MiB", "of one process", "s per step", "same parameters", "-ELBO, nats"]
    return lines(heads, rows)


def searches() -> str:
    told, rows = stored("tuning.json"), []
    for arm in dict.fromkeys((row["sampler"], row["mode"]) for row in told):
        own = [row for row in told if (row["sampler"], row["mode"]) == arm]
        volumes = [spread([row["hypervolume"][str(after)] for row in own], 3) for after in (10, 20, 40, 60)]
        sizes = [f"{statistics.mean(row['bytes_at_error'][error] for row in own):,.0f}" for error in ("0.02", "0.03")]
        seconds = f"{statistics.mean(row['cpu_seconds'] for row in own):.0f}"
        rows.append([*arm, ", ".join(str(row["seed"]) for row in own), *volumes, *sizes, seconds])
    heads = ["sampler", "kept share", "seeds", "after 10 trials", "20", "40", "60", "bytes at 2 %", "at 3 %", "seconds"]
    return lines(heads, rows)


def front() -> str:
    rows = [
        [f"{row['bytes']:,}", f"{100 * row['validation_error']:.2f} %", f"{100 * row['test_error']:.2f} %"]
        for row in sorted(stored("tuning-rates.json"), key=lambda row: row["bytes"])
    ]
    return lines(["bytes", "validation error", "test error"], rows)


def deployed(kind: str, file: str) -> str:
    makers = {
        "speed": bench_deploy.speed_table,
        "exports": bench_deploy.exports_table,
        "ensemble": bench_deploy.ensemble_table,
    }
    return "\n".join(makers[kind](stored("deploy.json")[f"{kind} {file}"]["rows"]))


LENET_300 = "mnist-lenet-300-100-rate1.5-seed0.pcn"
TABLES: dict[str, Callable[[], str]] = {
    "priors": lambda: results_priors.table(stored("priors.json")),
    "single": single,
    "units": units,
    "lenet5": lambda: results_priors.table(stored("lenet5.json")),
    "ablation": lambda: ablation.table(stored("ablation.json")),
    "smallest-lenet-300-100": lambda: smallest("mnist", "lenet-300-100"),
    "smallest-lenet-5-caffe": lambda: smallest("mnist", "lenet-5-caffe"),
    "smallest-fashion": lambda: smallest("fashion-mnist", "lenet-300-100"),
    "every-file": every_file,
    "record-commands": record_commands,
    "cifar": cifar,
    "tasks": tasks,
    "without-training": lambda: post_training_table.table(stored("post_training.json")),
    "compared": compared,
    "language": language,
    "coder": coder,
    "post-training": lambda: networks_end_to_end.tables(stored("networks.json"))["post-training"],
    "networks": lambda: networks_end_to_end.tables(stored("networks.json"))["networks"],
    "chain": lambda: digits_chain.table(stored("digits.json")),
    "natural": lambda: natural_gradients.table(stored("natural.json")),
    "natural-step": lambda: bench_step.table(stored("natural-step.json")),
    "step": lambda: bench_step.table(stored("step.json")),
    "step-bfloat16": lambda: bench_step.table(stored("step-bfloat16.json")),
    "scaling": lambda: bench_step.table(stored("scaling.json")),
    "fit": fits,
    "gradients": gradients,
    "equal-time": lambda: bench_equal_time.table(stored("equal-time.json")),
    "memory": memory,
    "distributed": distributed,
    "sharded": sharded,
    "searches": searches,
    "front": front,
    "speed-lenet-300-100": lambda: deployed("speed", LENET_300),
    "speed-phone": lambda: deployed("speed", "phone-lenet-5-caffe"),
    "speed-lenet-5-caffe": lambda: deployed("speed", "mnist-lenet-5-caffe-rate2-seed0.pcn"),
    "exports": lambda: deployed("exports", LENET_300),
    "everywhere": lambda: "\n".join(bench_deploy.everywhere_table(stored("deploy.json")["everywhere"]["rows"])),
    "browser": lambda: "\n".join(bench_browser.browser_table(stored("browser.json"))),
    "ensemble": lambda: deployed("ensemble", "digits-mlp-horseshoe-0"),
    "microcontroller": lambda: bench_microcontroller.table(stored("microcontroller.json")["rows"]),
    "paper-lenet-5-caffe": lambda: paper.table(stored("paper.json"), stored("published_paper.json"), "lenet-5-caffe"),
    "paper-lenet-300-100": lambda: paper.table(stored("paper.json"), stored("published_paper.json"), "lenet-300-100"),
    "paper-commands": lambda: paper.commands(stored("paper.json")),
    "artefact": lambda: artefact.table(stored("artefact.json")),
}
"""What stands between the marks of that name."""


def renewed(text: str) -> str:
    """The page with its tables as the rows have them."""
    text = MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)
    return study_document.renewed(text, RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", "--smoke", action="store_true", help="write nothing; say which pages would change")
    options = parser.parse_args()
    for page in sorted(RESULTS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        now = renewed(text)
        if now != text:
            print(page.relative_to(ROOT))
            if not options.check:
                write_atomically(page, now.encode())


if __name__ == "__main__":
    run_script(main)
