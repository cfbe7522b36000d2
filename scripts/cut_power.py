"""Cuts the power of a real file system while commands write to it: nothing that was reported may be missing.

    python scripts/cut_power.py [--images 200] [--seed 0] [--no-sync] [--json FILE] [--smoke]

An ext4 file system in a file is mounted; a process fits, compresses, exports and compares on it, and notes elsewhere
what every command reported. At random moments it is stopped and the file copied, which is what a power cut leaves of a
disk: what was still in memory is not in it. Every copy is mounted, and what had been reported before is looked for, as
the next command would. `--no-sync` leaves fsync out, to see that losses are found. Needs root and Linux; where nothing
can be mounted it says so and ends.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pyro_compress.cli.commands import run_script
from pyro_compress.kinds import is_export, is_run
from pyro_compress.placing import recover

MIB = 48
HARSH = "data=writeback,noauto_da_alloc,commit=30"
"""Of ext4: data may reach the disk after names, and renames hurry nothing."""
STUDY = Path(__file__).parent / "studies" / "tiny.toml"


def digest(path: Path) -> str:
    """Of a file, or of all files of a folder; empty where it is not there."""
    within = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [one for one in within if one.is_file() and one.suffix != ".lock"]
    parts = [f"{one.relative_to(path)} {hashlib.sha256(one.read_bytes()).hexdigest()}" for one in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else ""


def work(place: Path, reports: Path) -> None:
    """Run commands as long as the process that began this lives, and note after each what it wrote."""
    from pyro_compress.compression.curve import write_curve
    from pyro_compress.compression.pipeline import compress_run
    from pyro_compress.compression.target import Trial
    from pyro_compress.deploy.export import export
    from pyro_compress.machine import prepare
    from pyro_compress.runs.run import fit_run
    from pyro_compress.settings import FitConfig, Goal
    from pyro_compress.settings.fit import CheckpointConfig
    from pyro_compress.studies.study import compare

    prepare("cpu", 1)

    def report(*paths: Path) -> None:
        with reports.open("a") as file:
            file.write(json.dumps({str(path.relative_to(place)): digest(path) for path in paths}) + "\n")

    config = FitConfig(prior="gaussian", hidden=(8,), epochs=2, limit=300, device="cpu", threads=1)
    number, parent = 0, os.getppid()
    while os.getppid() == parent:
        run = fit_run(
            replace(config, seed=number), place / "run", number > 0, checkpointing=CheckpointConfig(every_epochs=1)
        )
        report(run.path)
        goal, trials = Goal(sparsity=0.5 + number % 5 / 20), [Trial(0, 0, 0, 100 + number, 0, 0)]
        compress_run(run.posterior, run.splits(), place / "small.pcn", goal, passes=0)
        report(place / "small.pcn")
        report(*write_curve(place / "curve.csv", trials))
        for name in ("net", "net.safetensors", "net.c", "net.pt2"):
            report(export(place / "small.pcn", place / name, force=True).path)
        compare(STUDY, place / f"study-{number % 3}", device="cpu", threads=1)
        report(place / f"study-{number % 3}" / "study.csv", place / f"study-{number % 3}" / "rows")
        shutil.rmtree(place / f"study-{(number + 1) % 3}", ignore_errors=True)
        with reports.open("a") as file:
            file.write(json.dumps({f"study-{(number + 1) % 3}/{name}": "" for name in ("study.csv", "rows")}) + "\n")
        number += 1


@contextmanager
def mounted(image: Path, options: str = "") -> Iterator[Path]:
    """A file system in a file."""
    place = Path(tempfile.mkdtemp(dir=image.parent))
    subprocess.run(["mount", "-o", f"loop,{options}".rstrip(","), image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        place.rmdir()


def lost(place: Path, before: list[dict[str, str]], later: list[dict[str, str]]) -> list[str]:
    """What had been reported and is neither there nor replaced by what came next."""
    recover(place / "run", is_run)
    recover(place / "net", is_export)
    wanted = {name: found for reported in before for name, found in reported.items()}
    missing = []
    for name, found in wanted.items():
        follows = [reported[name] for reported in later if name in reported][:1]
        if found and digest(place / name) not in (found, *follows) and "" not in follows:
            missing.append(name)
    return missing


def read(reports: Path) -> list[dict[str, str]]:
    """What was reported so far."""
    text = reports.read_text() if reports.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def cut(folder: Path, images: int, generator: random.Random, sync: bool) -> list[tuple[Path, int]]:
    """Copies of the disk, and how much had been reported by then."""
    image, reports, copies = folder / "disk", folder / "reports", []
    with image.open("wb") as file:
        file.truncate(MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with mounted(image, HARSH) as place:
        arguments = ["--work", str(place), "--reports", str(reports), *([] if sync else ["--no-sync"])]
        process = subprocess.Popen([sys.executable, __file__, *arguments])
        try:
            while len(read(reports)) < 3 and process.poll() is None:
                time.sleep(0.1)
            while len(copies) < images and process.poll() is None:
                time.sleep(generator.uniform(0.0, 0.8))
                process.send_signal(signal.SIGSTOP)
                copy = folder / f"image-{len(copies)}"
                subprocess.run(["cp", "--sparse=always", image, copy], check=True)
                copies.append((copy, len(read(reports))))
                process.send_signal(signal.SIGCONT)
            while copies and len(read(reports)) == copies[-1][1] and process.poll() is None:
                time.sleep(0.1)  # what was being written when the last copy was made is reported, too
        finally:
            process.kill()
            process.wait()
    return copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-sync", action="store_true", help="without fsync")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="two images")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reports", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        if options.no_sync:
            os.fsync = lambda handle: None
        work(options.work, options.reports)
    if os.name != "posix" or os.geteuid() or not (Path("/dev/loop-control").exists() and shutil.which("mkfs.ext4")):
        print("no file system can be mounted here (root, Linux and mkfs.ext4 are needed): nothing was cut")
        return
    with tempfile.TemporaryDirectory(prefix="cut-power-") as folder:
        images = 2 if options.smoke else options.images
        copies = cut(Path(folder), images, random.Random(options.seed), not options.no_sync)
        everything, found = read(Path(folder) / "reports"), []
        for copy, reported in copies:
            with mounted(copy) as place:
                missing = lost(place, everything[:reported], everything[reported:])
            found.append({"reported": reported, "lost": missing})
            copy.unlink()
    losses = sum(bool(one["lost"]) for one in found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    for one in found:
        if one["lost"]:
            print(f"after {one['reported']} reports: lost {', '.join(one['lost'])}")
    print(f"{len(found)} images, {len(everything)} reports, {losses} with losses")
    sys.exit(bool(losses))


if __name__ == "__main__":
    run_script(main)
