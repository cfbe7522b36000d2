"""What this machine has, and which ways of working (`runs.ways`) run on it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from pyro_compress.atomic import write_atomically
from pyro_compress.doubts import gathered
from pyro_compress.foreign import one_line
from pyro_compress.machine import GIB, available_bytes, prepare
from pyro_compress.pcn import streams
from pyro_compress.places import check_file
from pyro_compress.runs.ways import WAYS, Missing

PACKAGE = "pyro-compress"


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

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=1)

    def __repr__(self) -> str:
        """How many ways work."""
        works = sum(check.outcome == "works" for check in self.checks)
        return f"Diagnosis: {works} of {len(self.checks)} ways work, {len(self.failed)} fail"


def doctor(
    device: str = "auto", *, out: str | Path | None = None, force: bool = False,
    on_check: Callable[[Check], object] = lambda check: None,
) -> Diagnosis:  # fmt: skip
    """Look at this machine and try every way of working on it; under a minute or two.

    Args:
        device: `auto`, `cpu` or `cuda`: where fits run.
        out: file to write everything into, as JSON; None: none.
        force: replace an existing file of that kind.
        on_check: called with every check when it has ended.

    Raises:
        ValueError: CUDA is asked for and absent; something else lies at `out`.
        OSError: the file cannot be written.
    """
    if out is not None:
        check_file(Path(out), "diagnosis", force)
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
    found = Diagnosis(machine_of(chosen), packages(), tuple(checks))
    if out is not None:
        write_atomically(Path(out), (found.to_json() + "\n").encode())
    return found


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
