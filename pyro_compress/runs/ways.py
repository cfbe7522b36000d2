"""Ways of working, each tried on the digits, small, for `doctor`.

To add a way, write a function that raises where it does not work, or `Missing` where something is not installed, and
add a row to `WAYS`.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pyro_compress.atomic import write_atomically
from pyro_compress.runs.in_memory import Fitted, fit

SECONDS = 300
"""For several processes to begin, fit and end."""


class Missing(Exception):
    """What a way needs is not installed, or this machine does not have it."""


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
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
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


def _needed(extra: str, *packages: str) -> None:
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            raise Missing(f"{package} is not installed; pip install 'pyro-compress[{extra}]'") from None


def _predict(device: str, place: Path) -> str:
    from pyro_compress.runs.prediction import predict

    return f"{len(predict(place / 'small.pcn', 'digits', device=device)):,} inputs"


def _export(
    ending: str, packages: tuple[str, ...] = (), extra: str = "onnx", **options: Any
) -> Callable[[str, Path], str]:
    def way(device: str, place: Path) -> str:
        from pyro_compress.deploy.export import export

        _needed(extra, *packages)
        made = export(place / "small.pcn", place / f"model{ending}", **options)
        return f"{made.bytes:,} bytes"

    return way


def _webassembly(device: str, place: Path) -> str:
    from pyro_compress.deploy.wasm import build, node

    try:
        build.need_zig()
        node.node()
    except ValueError as error:
        raise Missing(str(error)) from None
    return _export(".wasm")(device, place)


def _bench(device: str, place: Path) -> str:
    from pyro_compress.deploy.bench import bench

    (found,) = bench(place / "small.pcn", place / "run", (1,), 0.05, no_memory=True, device=device, threads=1)
    return f"{len(found.rows)} rows" + "".join(f"; {text}" for text in found.missing)


def _diagnostics(device: str, place: Path) -> str:
    from pyro_compress.inspection.arviz_compat import arviz

    try:
        arviz()
    except ValueError as error:
        raise Missing(str(error)) from None
    from pyro_compress.runs.opened import load_run

    return f"{len(load_run(place / 'run').to_arviz(20).posterior.data_vars)} sites, by ArviZ {version('arviz')}"


def _page(device: str, place: Path) -> str:
    from pyro_compress.inspection.report import report

    _needed("inspect", "arviz", "matplotlib")
    return f"{report(place / 'run', place / 'page.html', draws=20).stat().st_size:,} bytes"


SMALL = """
[fit]
hidden = [8]
epochs = 1
pretrain-epochs = 0
"""
SEARCH = f"""trials = 2
sampler = "random"
{SMALL}data = "digits"
prior = "log-uniform"
[space.fit]
[space.compress]
kept = {{low = 0.3, high = 0.9}}
"""
STUDY = f"""datasets = ["digits"]
networks = ["mlp"]
sparsities = [0.5]
seeds = [0]
{SMALL}compile = "off"
[[methods]]
name = "log-uniform"
prior = "log-uniform"
"""


def _compare(device: str, place: Path) -> str:
    from pyro_compress.studies.study import compare

    write_atomically(study := place / "study.toml", STUDY.encode())
    found = compare(study, place / "study", device=device)
    if found.failed:
        raise RuntimeError(found.failed[0].failure)
    return f"{len(found.rows)} row{'s' * (len(found.rows) != 1)}"


def _search(device: str, place: Path) -> str:
    from pyro_compress.tuning.search import tune

    _needed("search", "optuna")
    write_atomically(study := place / "search.toml", SEARCH.encode())
    found = tune(study, place / "search", device=device)
    if found.failed:
        raise RuntimeError(f"{found.failed} of {found.finished} trials failed")
    return f"{found.finished} trials, by Optuna {version('optuna')}"


WAYS: dict[str, Callable[[str, Path], str]] = {
    "fit, eager": _eager,
    "fit, compiled": _compiled,
    "fit, several processes": _processes,
    "compress": _file,
    "predict": _predict,
    "export .onnx": _export(".onnx", ("onnx", "onnxruntime")),
    "export .onnx --int8": _export(".int8.onnx", ("onnx", "onnxruntime"), int8=True),
    "export .onnx --int4": _export(".int4.onnx", ("onnx", "onnxruntime"), int4=True),
    "export .pt2": _export(".pt2"),
    "export .pte": _export(".pte", ("executorch", "torchao"), "executorch"),
    "export .tflite": _export(".tflite", ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"), "litert"),
    "export .safetensors": _export(".safetensors"),
    "export numpy": _export(""),
    "export .c": _export(".c"),
    "export .wasm": _webassembly,
    "bench": _bench,
    "inspect": _diagnostics,
    "report": _page,
    "compare": _compare,
    "tune": _search,
}
"""Name -> (device, folder that all share, in this order) -> a note."""
