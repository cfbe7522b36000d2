"""Kills fits of a tiny network with SIGKILL at random moments and resumes them: every one must end in the same bytes.

    python scripts/kill_resume.py [--kills 50] [--seed 0] [--json FILE] [--smoke]

A fit may be killed several times before it gets through; every kill counts. Prints one line per finished fit.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pyro_compress.cli.commands import run_script
from pyro_compress.runs.folder import unfinished
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig

CONFIG = FitConfig(hidden=(8,), epochs=150, threads=1, device="cpu")
FIT = [sys.executable, "-m", "pyro_compress", "fit"]


def fresh(config: FitConfig) -> list[str]:
    """Options of a fit from its beginning."""
    told = {"hidden": config.hidden[0], "epochs": config.epochs, "limit": config.limit, "threads": 1, "device": "cpu"}
    told["checkpoint-epochs"] = 1
    return [word for name, value in told.items() for word in (f"--{name}", str(value))]


def changed(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 where there is none, or none any more."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def killed(command: list[str], started: Path, delay: float) -> bool:
    """Run a command, kill it `delay` seconds after the file `started` changed; False if it was through before."""
    before = changed(started)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and changed(started) in (0, before):
        time.sleep(0.005)
    try:
        process.wait(delay)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def command(config: FitConfig, out: Path) -> list[str]:
    """What begins a fit, or goes on with it."""
    if any(unfinished(out).glob("checkpoint-*")):
        return [*FIT, "--resume", str(out)]
    return [*FIT, *fresh(config), "--force", "--out", str(out)]


def survived(config: FitConfig, out: Path, generator: random.Random, most: int) -> int:
    """Fit, killed up to `most` times; how many kills it took."""
    kills = 0
    while kills < most:
        if not killed(command(config, out), unfinished(out) / "history.jsonl", generator.uniform(0, 1.5)):
            return kills
        kills += 1
    subprocess.run(command(config, out), check=True, capture_output=True)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--per-fit", type=int, default=5, help="kills of one fit, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="two kills of a shorter fit")
    options = parser.parse_args()
    if options.smoke:
        options.kills = options.per_fit = 2
    config = replace(CONFIG, limit=300) if options.smoke else CONFIG
    generator, kills, fits = random.Random(options.seed), 0, []
    with tempfile.TemporaryDirectory() as folder:
        straight = fit_run(config, Path(folder) / "straight")
        wanted = (straight.path / "posterior.safetensors").read_bytes()
        while kills < options.kills:
            out = Path(folder) / f"run-{len(fits)}"
            took = survived(config, out, generator, min(options.per_fit, options.kills - kills))
            same = (out / "posterior.safetensors").read_bytes() == wanted
            fits.append({"kills": took, "same_bytes": same})
            kills += took
            print(f"fit {len(fits)}: {took} kills, {'same bytes' if same else 'OTHER BYTES'}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(fits, indent=1) + "\n")
    different = sum(not fit["same_bytes"] for fit in fits)
    print(f"{kills} kills in {len(fits)} fits, {different} with other bytes")
    sys.exit(bool(different))


if __name__ == "__main__":
    run_script(main)
