"""Integer C exports, compiled by the C compiler of this machine and run; imports neither torch nor the generator."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pyro_compress.deploy.c.library import PLAIN, shared
from pyro_compress.graph.faces.c_text import identifier

STRICT = (*PLAIN, "-Wall", "-Wextra", "-Werror", "-pedantic")


def is_integer(path: Path) -> bool:
    """Whether a C export computes in integers."""
    return f"void {identifier(path.stem)}_run_int8(" in path.read_text()


class IntegerLibrary:
    """An integer C file, compiled and loaded.

    Attributes:
        inputs: values of an example, and `outputs`.
        kind: type of an input value.
        entry: scale and zero of its input; `out` likewise.
        arena: bytes of its memory.
    """

    def __init__(self, path: Path, options: Sequence[str] = STRICT):
        name = identifier(path.stem)
        found = re.findall(rf"^#define {name.upper()}_(\w+) \(?(-?[\d.e+-]+)f?\)?$", path.read_text(), re.MULTILINE)
        self.macros = {key: float(value) for key, value in found}
        self.inputs, self.outputs, self.arena = (int(self.macros[key]) for key in ("INPUTS", "OUTPUTS", "ARENA"))
        self.entry, self.out = (
            (self.macros[f"{side}_SCALE"], int(self.macros[f"{side}_ZERO_POINT"])) for side in ("INPUT", "OUTPUT")
        )
        tokens = int(self.macros.get("TOKENS", 0))
        self.kind: type = np.min_scalar_type(tokens - 1).type if tokens else np.int8
        self._library = shared(path, options)
        self._run = self._library[f"{name}_run_int8"]
        self._run.restype = None

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Inputs `(n, ...)` as integers `(n, inputs)`; tokens stay what they are."""
        if self.kind is not np.int8:
            return x.reshape(len(x), -1).astype(self.kind)
        scale, zero = self.entry
        return np.clip(np.rint(x.reshape(len(x), -1) / scale) + zero, -128, 127).astype(np.int8)

    def run(self, codes: np.ndarray) -> np.ndarray:
        """Integers `(n, inputs)` to integers `(n, outputs)`, one example after the other."""
        given, found = np.ascontiguousarray(codes), np.empty((len(codes), self.outputs), np.int8)
        for place in range(len(codes)):
            self._run(ctypes.c_void_p(given[place].ctypes.data), ctypes.c_void_p(found[place].ctypes.data))
        return found


def load_integer(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a function of inputs in the range it was trained on, to real values `(n, outputs)`."""
    library = IntegerLibrary(path)
    scale, zero = library.out

    def predict(x: np.ndarray) -> np.ndarray:
        return ((library.run(library.codes(x)).astype(np.float32) - zero) * np.float32(scale)).astype(np.float32)

    return predict
