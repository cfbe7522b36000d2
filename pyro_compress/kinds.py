"""What lies on a disk: whether this program wrote it. Known by what files say about themselves, not by their names."""

from __future__ import annotations

import json
import mmap
import re
import stat
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_compress.atomic import TEMPORARY
from pyro_compress.foreign import ordinary
from pyro_compress.placing import CHECKPOINTS, FRAMES, LOCK

NAME = b"pyro-compress"
EXAMPLES = "examples.npz"
"""Data of a run that have no name and no file of their own."""
RUN_FILES = {
    EXAMPLES, "config.toml", "history.jsonl", "posterior.safetensors", "guide.safetensors", "snapshots.safetensors",
    "start.pcn", LOCK,
}  # fmt: skip
RUN_FOLDERS = {"tensorboard", FRAMES}
EXPORT_FILES = {"network.json", "run.py", "__pycache__", LOCK}
HEADS_OF_CURVES = (b"sparsity,relative_step,lambda,bytes,", b"sparsity,coarseness,rate,bytes,")
"""How a table of `compress --curve` begins, and how it did before."""
OF_THE_SYSTEM = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file managers leave everywhere."""
_BEING_MADE = re.compile(r"\..+\.(unfinished|replaced)")
LARGEST_HEADER = 100_000_000
"""Bytes, as safetensors itself has it."""


def is_pcn(path: Path) -> bool:
    """Whether a file is a compressed network."""
    return _start(path, 4) == b"\x93PCN"


def is_safetensors(path: Path) -> bool:
    """Whether a file is a whole safetensors file of this program."""
    return "pyro_compress" in (_header(path) or {}).get("__metadata__", {})


def is_page(path: Path) -> bool:
    """Whether a file is a page of `report`."""
    return b'<p class="lead">' + NAME in _start(path, 20_000)


def is_netcdf(path: Path) -> bool:
    """Whether a file holds the draws of `inspect --netcdf`."""
    return _start(path, 8) == b"\x89HDF\r\n\x1a\n" and _holds(path, b"rows_of_elbo")


def is_curve(path: Path) -> bool:
    """Whether a file is a table of `compress --curve`."""
    return _start(path, 200).startswith(HEADS_OF_CURVES)


def is_diagnosis(path: Path) -> bool:
    """Whether a file is what `doctor` found."""
    return _start(path, 20).startswith(b'{\n "machine": {')


def is_predictions(path: Path) -> bool:
    """Whether a file is a table of `predict --csv`."""
    return _start(path, 20).startswith(b"predicted_for,")


def is_picture(path: Path) -> bool:
    """Whether a file is the picture of such a table."""
    return _start(path, 8) == b"\x89PNG\r\n\x1a\n" and NAME in _start(path, 1000)


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model of `export`."""
    return _start(path, 1) == b"\x08" and _holds(path, NAME)


def is_program(path: Path) -> bool:
    """Whether a file is a torch program of `export`."""
    return _start(path, 2) == b"PK" and _holds(path, b"pyro_compress.json")


def is_executorch(path: Path) -> bool:
    """Whether a file is an ExecuTorch program of `export`."""
    return _start(path, 6)[4:] == b"ET" and _holds(path, b"pyro_compress.json")


def is_litert(path: Path) -> bool:
    """Whether a file is a LiteRT model of `export`."""
    return _start(path, 8)[4:] == b"TFL3" and _holds(path, b"pyro_compress.json")


def is_c(path: Path) -> bool:
    """Whether a file is the C source of `export`."""
    return _start(path, 2) == b"/*" and b"written by " + NAME in _start(path, 1000)


def is_wasm(path: Path) -> bool:
    """Whether a file is the WebAssembly of `export`."""
    return _start(path, 4) == b"\0asm" and _holds(path, b"\x0d" + NAME)


def is_module(path: Path) -> bool:
    """Whether a file is what `export` writes beside WebAssembly."""
    return _start(path, 2) == b"//" and b"written by " + NAME in _start(path, 1000)


KINDS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "pcn": (".pcn file", is_pcn),
    "diagnosis": ("report of doctor", is_diagnosis),
    "page": ("page of report", is_page),
    "netcdf": ("NetCDF file of inspect", is_netcdf),
    "curve": ("table of --curve", is_curve),
    "predictions": ("table of predict", is_predictions),
    "picture": ("picture of --curve", is_picture),
    ".onnx": ("export", is_onnx),
    ".pt2": ("export", is_program),
    ".pte": ("export", is_executorch),
    ".tflite": ("export", is_litert),
    ".safetensors": ("export", is_safetensors),
    ".c": ("export", is_c),
    ".wasm": ("export", is_wasm),
    ".js": ("export", is_module),
    ".d.ts": ("export", is_module),
}
"""Kind of file -> what it is called, and how it is known."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a complete run."""
    posterior, config = folder / "posterior.safetensors", folder / "config.toml"
    if not (posterior.is_file() and config.is_file() and _header(posterior) is not None):
        return False
    try:
        fit = tomllib.loads(config.read_text()).get("fit", {})
    except (OSError, ValueError):
        return False
    return fit.get("prior") == "none" or _header(folder / "guide.safetensors") is not None


def is_export(folder: Path) -> bool:
    """Whether a folder is a complete export."""
    try:
        card = json.loads(ordinary(folder / "network.json").read_text())
        return str(card["producer"]).startswith(NAME.decode()) and (folder / "run.py").is_file()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def is_study(folder: Path) -> bool:
    """Whether a folder holds results of `compare`."""
    try:
        return "runs" in json.loads(ordinary(folder / "study.json").read_text())
    except (OSError, ValueError, TypeError, RecursionError):
        return _all_named(folder / "rows", r"[0-9a-f]+\.(json|failed|lock)|tables\.lock")


def is_search(folder: Path) -> bool:
    """Whether a folder holds a search of `tune`."""
    return (folder / "files").is_dir() and _all_named(folder / "workers", r"\d+\.lock")


def is_runs(folder: Path) -> bool:
    """Whether a folder holds the fits of a study or a search, which several may share."""
    return folder.name == "runs" and _all_named(folder, r"[0-9a-f]+(\.lock)?|\.[0-9a-f]+\.(unfinished|replaced)")


def _all_named(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and all(re.fullmatch(pattern, path.name) for path in entries(folder))


def foreign_to_run(folder: Path) -> list[str]:
    """Entries of a run folder that this program did not write: neither the run's own, nor made of it."""
    return [path.name for path in entries(folder) if not _of_run(path)]


def _of_run(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_dir():
        made = path.name in RUN_FOLDERS or _BEING_MADE.fullmatch(path.name)
        return bool(made) or (is_export(path) and not foreign_to_export(path))
    return path.name in RUN_FILES or path.match(CHECKPOINTS) or any(known(path) for _, known in KINDS.values())


def foreign_to_export(folder: Path) -> list[str]:
    """Entries of an exported folder that this program did not write."""
    return [p.name for p in entries(folder) if p.name not in EXPORT_FILES and p.suffix != ".npy"]


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, but for what is on its way or of the system."""
    own = [path for path in folder.iterdir() if path.name in OF_THE_SYSTEM or TEMPORARY.fullmatch(path.name)]
    return sorted(set(folder.iterdir()) - set(own))


def _start(path: Path, size: int) -> bytes:
    """The first bytes of an ordinary file; nothing of anything else."""
    with suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                return file.read(size)
    return b""


def _holds(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _header(path: Path) -> dict[str, Any] | None:
    """The header of a safetensors file that is as long as it says."""
    size = int.from_bytes(_start(path, 8), "little")
    if not 0 < size <= min(LARGEST_HEADER, path.stat().st_size if path.is_file() else 0):
        return None
    try:
        header = json.loads(_start(path, 8 + size)[8:])
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return header if path.stat().st_size == 8 + size + max(ends, default=0) else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
