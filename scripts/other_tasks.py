"""Masks, text, words: one network of each kind from its data to a small file and exports, for docs/results/trained.md.

    python scripts/other_tasks.py --folder tasks [--only masks words] [--json docs/results/tasks.json]

Every row is what a user types: the example that makes the data, `fit`, `compress`, `export`; what stands in the table
is what these commands print. The test split is read once, by `compress`. Data and runs stay in FOLDER; a run that is
there is not fitted again, a row that is there is not made again. `--smoke` makes a tiny one of masks.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.studies.tables import markdown_table

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Task:
    """What a row is made of.

    Attributes:
        what: the network and its data, in words.
        data: the example that makes them, with its arguments.
        fit: words of `fit`, without the folder.
        compress: words of `compress`.
        score: what counts, as the results call it, and how it is written.
    """

    what: str
    data: str
    fit: str
    compress: str
    score: tuple[str, str]


TASKS = {
    "masks": Task(
        "U-Net with transposed convolutions, digits on textured ground", "digit_masks.py scans --images 1200",
        "--task segmentation --data scans --net unet --prior log-uniform --epochs 40", "--tolerance 0.01",
        ("mean_iou", "{:.1%} mean IoU"),
    ),
    "text": Task(
        "GRU of 128 units, bytes of licences and documentation", "language.py text",
        "--task next-token --data text --context 64 --net gru --prior log-uniform --epochs 16", "--tolerance 0.02",
        ("bits", "{:.3f} bits per byte"),
    ),
    "words": Task(
        "trigrams by two convolutions, the language of a word out of eight", "word_languages.py words.npz",
        "--data words.npz --tokens 256 --net word_languages:network --prior log-uniform --epochs 16",
        "--tolerance 0.005", ("accuracy", "{:.2%}"),
    ),
}  # fmt: skip
EXPORTS = ("onnx", "c")


def typed(words: str, folder: Path) -> str:
    """Run a command of ours in a folder; what it prints.

    Raises:
        SystemExit: it fails; its last line.
    """
    program = [str(EXAMPLES / words.split()[0])] if words.split()[0].endswith(".py") else ["-m", "pyro_compress"]
    rest = shlex.split(words)[1:] if len(program) == 1 else shlex.split(words)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(EXAMPLES)])}
    done = subprocess.run(
        [sys.executable, *program, *rest], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{words}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
    return done.stdout


def row(name: str, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """Data, fit, file, exports."""
    made = task.data.split()[1]
    if not (folder / made).exists():
        typed(task.data, folder)
    run, file = f"{name}-{seed}", f"{name}-{seed}.pcn"
    fit = f"fit {task.fit} --seed {seed} --threads 1 --out {run}"
    started, minutes = time.perf_counter(), None
    if not (folder / run).exists():
        typed(f"{fit} --quiet", folder)
        minutes = (time.perf_counter() - started) / 60
    compress = f"compress {run} {task.compress} --out {file}"
    found = json.loads(typed(f"{compress} --json --force", folder))
    score = task.score[0]
    exported = {}
    for suffix in EXPORTS:
        out = f"{name}-{seed}.{suffix}"
        try:
            typed(f"export {file} --out {out} --force --quiet", folder)
            exported[suffix] = (folder / out).stat().st_size
        except SystemExit as refused:
            exported[suffix] = str(refused)
    return {
        "task": name, "seed": seed, **asdict(task), "parameters": found["parameters_total"],
        "before": found[f"test_{score}_before"], "after": found[f"test_{score}_after"],
        "bytes": (folder / file).stat().st_size, "dense_bytes": found["dense_bytes"], "fit_minutes": minutes,
        "exports": exported, "commands": [f"python examples/{task.data}", f"pyro-compress {fit}",
                                          f"pyro-compress {compress}"],
        "warnings": found["warnings"], "versions": {one: version(one) for one in ("torch", "pyro-ppl", "numpy")},
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line per row."""
    heads = ["network, data", "parameters", "test before", "after", "file", "ratio", *(f".{one}" for one in EXPORTS)]
    cells = [
        [
            one["what"], f"{one['parameters']:,}", *(one["score"][1].format(one[when]) for when in ("before", "after")),
            f"{one['bytes']:,} B", f"{one['dense_bytes'] / one['bytes']:.0f}×",
            *(f"{size:,} B" if isinstance(size := one["exports"][suffix], int) else "refused" for suffix in EXPORTS),
        ]
        for one in rows
    ]  # fmt: skip
    return markdown_table([heads, *cells])


def commands(rows: list[dict[str, Any]]) -> str:
    """What was typed, in a block."""
    return "\n".join(["```", *(line for one in rows for line in one["commands"]), "```"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("tasks"), help="of data, runs and files")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "tasks.json")
    parser.add_argument("--smoke", action="store_true", help="a tiny one of masks")
    given = parser.parse_args()
    chosen = {name: TASKS[name] for name in given.only}
    if given.smoke:
        tiny = TASKS["masks"].fit.replace("--epochs 40", "--epochs 2")
        chosen = {
            "masks": Task(
                "a tiny one", "digit_masks.py scans --images 12", tiny, "--tolerance 1", ("mean_iou", "{:.1%}")
            )
        }
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = json.loads(given.json.read_text()) if given.json.exists() else []
    for name, task in chosen.items():
        if any((one["task"], one["seed"]) == (name, given.seed) for one in rows):
            continue
        rows.append(row(name, task, given.folder.resolve(), given.seed))
        write_atomically(given.json, (json.dumps(rows, indent=1) + "\n").encode())
        print(table(rows[-1:]), flush=True)


if __name__ == "__main__":
    run_script(main)
