"""C exports, compiled by the C compiler of this machine and loaded; imports neither torch nor the generator."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pyro_compress.graph.faces.c_text import identifier

PLAIN = ("-std=c99", "-O3")
"""How an export is compiled to be checked: as standard C, for any processor of the kind."""
FAST = ("-O3", "-march=native")
"""How it is compiled to be measured: for this processor."""


def compiler() -> list[str]:
    """The C compiler: `$CC`, which may hold options, or `cc`.

    Raises:
        ValueError: there is none.
    """
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"no C compiler: {command[0]} is not there, and a C export is compiled and compared before it is written; "
            "install one (Debian: apt install gcc; macOS: xcode-select --install) or name yours in CC"
        )
    return command


def load_c(path: Path, options: Sequence[str] = PLAIN) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a function of inputs in the range it was trained on; a raw one is given raw integers."""
    library = Library(path, options)

    def predict(x: np.ndarray) -> np.ndarray:
        given = np.rint(x * library.scale).astype(np.uint8) if library.raw else x.astype(library.kind)
        outputs = np.empty((len(x), library.outputs), np.float32)
        library.ready(np.ascontiguousarray(given), outputs)()
        return outputs

    return predict


def shared(path: Path, options: Sequence[str]) -> ctypes.CDLL:
    """A C file as a library of this process.

    Raises:
        ValueError: it does not compile.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        built = Path(folder, f"{identifier(path.stem)}.so")
        command = [*compiler(), *options, "-shared", "-fPIC", "-o", str(built), str(path), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not built.exists():
            lines = done.stderr.strip().splitlines() or [f"it wrote nothing, exit code {done.returncode}"]
            reason = next((line for line in lines if "error" in line), lines[-1])
            raise ValueError(f"{command[0]} does not compile the export: {reason}; name another compiler in CC")
        return ctypes.CDLL(str(built))


class Library:
    """A C file, compiled and loaded.

    Attributes:
        inputs: values of an example, and `outputs`.
        raw: inputs are bytes.
        kind: type of inputs.
        scale: what they are divided by.
    """

    def __init__(self, path: Path, options: Sequence[str]):
        name, self._library = identifier(path.stem), shared(path, options)
        self.inputs, width, self.outputs, floats = (ctypes.c_size_t * 4).in_dll(self._library, f"{name}_sizes")
        self.raw, self.scale = width == 1, ctypes.c_float.in_dll(self._library, f"{name}_scale").value
        self.kind = np.uint8 if self.raw else np.int32 if hasattr(self._library, f"{name}_tokens") else np.float32
        self._run = self._library[f"{name}_run"]
        self._run.restype = None
        self._workspace = np.empty(floats, np.float32)

    def ready(self, x: np.ndarray, outputs: np.ndarray) -> Callable[[], None]:
        """A call that maps inputs `(n, ...)` to outputs `(n, outputs)`, without looking at either again."""
        assert x.flags.c_contiguous
        assert x.size == len(x) * self.inputs
        assert x.dtype == self.kind
        arrays = (x, outputs, self._workspace)
        given, found, workspace = (ctypes.c_void_p(array.ctypes.data) for array in arrays)
        run, n = self._run, ctypes.c_size_t(len(x))

        def call(keep: tuple[np.ndarray, ...] = arrays) -> None:  # what only addresses point to must not go
            run(given, n, found, workspace)

        return call
