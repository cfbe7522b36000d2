"""What this machine has, and which ways of working run on it: each is tried on the digits, small.

To add a way, write a function that raises where it does not work, or `Missing` where something is not installed, and
add a row to `WAYS`.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from pyro_compress.doubts import gathered
from pyro_compress.foreign import one_line
from pyro_compress.machine import GIB, available_bytes, prepare
from pyro_compress.pcn import streams
from pyro_compress.runs.in_memory import Fitted, fit

PACKAGE = "pyro-compress"
SECONDS = 300
"""For several processes to begin, fit and end."""


class Missing(Exception):
    """What a way needs is not installed, or this machine does not have it."""


@dataclass(frozen=True)
class Check:
    """How one way of working went.

    Attributes:
        name: of the way.
        outcome: `works`, `missing` (not installed, or not here) or `fails`.
        note: what is missing or failed, or what was found.
        seconds: that it took.
    """

    name: str
    outcome: str
    note: str
    seconds: float


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `doctor` returns.

    Attributes:
        machine: name of a fact -> what it is.
        packages: name -> version; empty where an optional one is not installed.
        checks: one per way of working, in the order in which they were tried.
    """

    machine: dict[str, str]
    packages: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        """Ways that should work here and do not."""
        return [check for check in self.checks if check.outcome == "fails"]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def __repr__(self) -> str:
        """How many ways work."""
        works = sum(check.outcome == "works" for check in self.checks)
        return f"Diagnosis: {works} of {len(self.checks)} ways work, {len(self.failed)} fail"


def doctor(device: str = "auto", on_check: Callable[[Check], object] = lambda check: None) -> Diagnosis:
    """Look at this machine and try every way of working on it; under a minute or two.

    Args:
        device: `auto`, `cpu` or `cuda`: where fits run.
        on_check: called with every check when it has ended.

    Raises:
        ValueError: CUDA is asked for and absent.
    """
    chosen, checks = prepare(device), list[Check]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, way in WAYS.items():
            started, outcome, note = time.perf_counter(), "works", ""
            try:
                with gathered():
                    note = way(chosen, place)
            except Missing as missing:
                outcome, note = "missing", str(missing)
            except Exception as error:  # whatever a driver or a compiler says
                outcome, note = "fails", one_line(f"{type(error).__name__}: {error}")
            checks.append(Check(name, outcome, note, round(time.perf_counter() - started, 2)))
            on_check(checks[-1])
    return Diagnosis(machine_of(chosen), packages(), tuple(checks))


def machine_of(device: str) -> dict[str, str]:
    """Facts about this machine, as text."""
    free = available_bytes("cpu")
    facts = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": f"{platform.python_version()}, {sys.executable}",
        "processors": f"{os.cpu_count()}; torch uses {torch.get_num_threads()} threads",
        "memory": "unknown" if free is None else f"{free / GIB:.1f} GiB free",
        "--device auto": device,
        "C compiler": shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or "none: steps run eagerly",
        "compiled coder": "yes" if streams.COMPILED else "no: files are decoded a hundred times slower",
    }
    if torch.version.cuda:
        facts["CUDA of torch"] = torch.version.cuda
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        facts[f"CUDA device {index}"] = (
            f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute capability {about.major}.{about.minor}"
        )
    return facts


def packages() -> dict[str, str]:
    """Versions of this package and of what it names as needed, optional ones too."""
    wanted = [one.split(";")[0] for one in requires(PACKAGE) or []]
    names = {"".join(c if c.isalnum() or c in "-_." else " " for c in one).split()[0] for one in wanted}
    found = {}
    for name in [PACKAGE, *sorted(names - {PACKAGE})]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


@contextmanager
def _warned() -> Iterator[list[str]]:
    """What is logged as a warning meanwhile."""
    texts = list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("pyro_compress")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


def _fitted(device: str, **settings: Any) -> Fitted:
    given: dict[str, Any] = {"hidden": (16,), "epochs": 2, "pretrain_epochs": 1, "compile": "off"}
    return fit("mlp", "digits", device=device, **given | settings)


def _eager(device: str, place: Path) -> str:
    fitted = _fitted(device)
    fitted.save(place / "run")
    return f"{device}, {fitted.history[-1].validation}"


def _compiled(device: str, place: Path) -> str:
    if device == "cpu" and not (shutil.which("g++") or shutil.which(os.environ.get("CXX", "c++"))):
        raise Missing("no C++ compiler, which torch's inductor needs; install g++")
    with _warned() as warnings:
        _fitted(device, compile="on")
    if fallen := [text for text in warnings if "could not be compiled" in text]:
        raise RuntimeError(fallen[0])
    return "inductor" if device == "cpu" else "inductor, CUDA graph"


def _processes(device: str, place: Path) -> str:
    if sys.platform == "win32":
        raise Missing("torchrun of several processes is not tried on Windows")
    options = ["--hidden", "16", "--epochs", "2", "--pretrain-epochs", "1", "--compile", "off", "--threads", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["pyro_compress", "fit", *options, "--device", device, "--out", str(place / "several")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(next(reversed(done.stderr.strip().splitlines()), f"exit status {done.returncode}"))
    return "2 processes, torchrun"


def _file(device: str, place: Path) -> str:
    from pyro_compress.runs.opened import load_run

    small = load_run(place / "run").compress(tolerance=0.1)
    small.save(place / "small.pcn")
    return f"{small.bytes:,} bytes, written, read and evaluated"


def _export(ending: str, packages: tuple[str, ...] = (), program: str = "") -> Callable[[str, Path], str]:
    def way(device: str, place: Path) -> str:
        from pyro_compress.deploy.export import export

        for package in packages:
            try:
                version(package)
            except PackageNotFoundError:
                raise Missing(f"{package} is not installed") from None
        if program and not shutil.which(program):
            raise Missing(f"no {program}")
        made = export(place / "small.pcn", place / f"model{ending}")
        return f"{made.bytes:,} bytes"

    return way


def _diagnostics(device: str, place: Path) -> str:
    from pyro_compress.inspection.arviz_compat import arviz

    try:
        arviz()
    except ValueError as error:
        raise Missing(str(error)) from None
    from pyro_compress.runs.opened import load_run

    return f"{len(load_run(place / 'run').to_arviz(20).posterior.data_vars)} sites, by ArviZ {version('arviz')}"


def _search(device: str, place: Path) -> str:
    try:
        return f"Optuna {version('optuna')}"
    except PackageNotFoundError:
        raise Missing("optuna is not installed; pip install 'pyro-compress[search]'") from None


WAYS: dict[str, Callable[[str, Path], str]] = {
    "fit, eager": _eager,
    "fit, compiled": _compiled,
    "fit, several processes": _processes,
    "compress": _file,
    "export .onnx": _export(".onnx", ("onnx", "onnxruntime")),
    "export .pt2": _export(".pt2"),
    "export .safetensors": _export(".safetensors"),
    "export numpy": _export(""),
    "export .c": _export(".c"),
    "inspect": _diagnostics,
    "tune": _search,
}
"""Name -> (device, folder that all share, in this order) -> a note."""
