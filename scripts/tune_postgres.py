"""Two workers on one study, one of them killed: no trial is lost, through PostgreSQL or through the journal.

    python scripts/tune_postgres.py                       # 30 trials, workers that share a folder
    python scripts/tune_postgres.py --apart               # each with its own, as on two machines
    python scripts/tune_postgres.py --journal             # no data base at all

Starts a PostgreSQL server of its own in a temporary folder, reached through a socket there, and ends it. As root, the
server runs as the user `postgres` or `nobody`, since PostgreSQL refuses root. `--smoke` makes few trials.
"""

import argparse
import glob
import json
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_compress.cli.commands import run_script

STUDY = """
name = "two-workers"
objective = "pareto"
sampler = "gp"
compressions-per-fit = 3
[fit]
data = "digits"
prior = "log-uniform"
hidden = [{width}]
epochs = {epochs}
validation = 0.3
[space.fit]
kl-weight = {{low = 0.3, high = 3.0, log = true}}
"""


def program(name: str) -> str:
    """A program of PostgreSQL."""
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), "")
    if not found:
        sys.exit(f"{name} not found: install PostgreSQL (Debian: apt-get install postgresql), or use --journal")
    return found


@contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL server, as a URL."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    user = None
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, user)
    common = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "check": True}
    data, control = str(folder / "data"), program("pg_ctl")
    subprocess.run([program("initdb"), "-D", data, "-U", "tuner", "--auth=trust", "--no-sync"], **common)
    options = f"-c listen_addresses='' -c fsync=off -k {folder}"
    log = str(folder / "log")
    subprocess.run([control, "-D", data, "-l", log, "-w", "-o", options, "start"], **common)
    try:
        yield f"postgresql+psycopg://tuner@/postgres?host={folder}"
    finally:
        subprocess.run([control, "-D", data, "-m", "immediate", "-w", "stop"], **common)
        shutil.rmtree(folder, ignore_errors=True)


def trials(storage: object) -> list:
    """What the study's storage holds."""
    from pyro_compress.tuning.storage import optuna, quietly

    with quietly():
        return optuna.load_study(study_name="two-workers", storage=storage).get_trials()


def fitting(outs: list[Path], url: str, storage: object) -> bool:
    """Whether the second worker is in the middle of a fit."""
    name = f"{platform.node()}:{outs[1].resolve()}/0" if url else "0"
    running = [t.user_attrs for t in trials(storage) if t.state.name == "RUNNING"]
    return any(t.get("worker") == name and "fit" in t and not (outs[1] / "runs" / t["fit"]).is_dir() for t in running)


def wait_for(what: str, condition, worker: subprocess.Popen) -> object:
    """Look five times a second, five minutes at most."""
    for _ in range(1500):
        if found := condition():
            return found
        if worker.poll() is not None:
            sys.exit(f"the worker ended before {what}")
        time.sleep(0.2)
    sys.exit(f"waited five minutes in vain for {what}")


@contextmanager
def running(command: list[str], **options) -> Iterator[subprocess.Popen]:
    """A process that does not outlive the block, however that ends."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def search(options: argparse.Namespace, url: str) -> dict:
    """Begin a study, start two workers, kill the second in the middle of a trial; what became of it all."""
    from pyro_compress.tuning.plan import read_plan
    from pyro_compress.tuning.storage import opened_storage
    from pyro_compress.tuning.workers import Work, begin

    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    study = folder / "study.toml"
    study.write_text(STUDY.format(width=10 if options.smoke else 20, epochs=30 if options.smoke else 40))
    command = [sys.executable, "-m", "pyro_compress", "tune", str(study), "--trials", str(options.trials)]
    command += ["--device", "cpu", "--threads", "1", "--grace", "4"]
    environment = os.environ | {"PYRO_COMPRESS_STORAGE": url}
    outs = [folder / "first", folder / ("second" if options.apart else "first")]
    if outs[0].exists():
        sys.exit(f"{outs[0]} is there already; choose another --out")
    started = time.perf_counter()
    begin(Work(*read_plan(study, device="cpu", threads=1), outs[0], url, 4.0))
    one = [*command, "--out", str(outs[0]), "--resume", "--json"]
    other = [*command, "--out", str(outs[1]), "--worker"]
    with opened_storage(outs[0], url) as storage, running(other, env=environment) as second:
        wait_for("it started", (outs[1] / "workers" / "0.lock").exists, second)
        with running(one, env=environment, stdout=subprocess.PIPE) as first:
            if not options.smoke:  # its few trials would be over by then
                wait_for("it started", (outs[0] / "workers" / f"{0 if options.apart else 1}.lock").exists, first)
            wait_for("a fit of its own", lambda: fitting(outs, url, storage), second)
            second.kill()
            second.wait()
            outcome = json.loads(first.communicate()[0])
        found = trials(storage)
    killed = [t for t in found if t.state.name == "FAIL"]
    retried = [t for t in found if t.user_attrs.get("retry_of") in {t.number for t in killed}]
    return {
        "storage": "PostgreSQL" if url else "journal",
        "folders": len(set(outs)),
        "finished": sum(t.state.name == "COMPLETE" for t in found),
        "left_running_or_waiting": sum(not t.state.is_finished() for t in found),
        "killed": len(killed),
        "retried_with_the_same_parameters": sum(
            a.params == b.params and b.state.name == "COMPLETE"
            for a in killed for b in retried if b.user_attrs["retry_of"] == a.number
        ),
        "front": len(outcome["front"]),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--journal", action="store_true", help="the journal file instead of PostgreSQL")
    parser.add_argument("--apart", action="store_true", help="a folder for each worker (with PostgreSQL)")
    parser.add_argument("--out", type=Path, default=Path("tuning/two-workers"))
    parser.add_argument("--smoke", action="store_true", help="8 trials of a smaller network")
    options = parser.parse_args()
    if options.journal and options.apart:
        sys.exit("--apart needs a data base; leave --journal out")
    options.trials = 8 if options.smoke else options.trials
    if options.journal:
        found = search(options, "")
    else:
        with server() as url:
            found = search(options, url)
    print(json.dumps(found))
    lost = options.trials - found["finished"]
    retried = found["killed"] == found["retried_with_the_same_parameters"]
    sys.exit(f"{lost} trials lost" if lost or found["left_running_or_waiting"] or not retried else 0)


if __name__ == "__main__":
    run_script(main)
