"""`model.wasm`, `model.js` and `model.d.ts`: the C export, built by Zig's C compiler, and what loads it.

The file imports nothing. It exports its memory, where an example's values and its outputs lie (`input`, `output`) and
the function `run`, which takes the one to the other. A section of the name `pyro-compress` holds the card as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyro_compress.atomic import write_atomically
from pyro_compress.deploy.c.source import source
from pyro_compress.deploy.card import SECTION
from pyro_compress.deploy.wasm.packed import UNPACK, packed
from pyro_compress.pcn.file import plan_of
from pyro_compress.types import Compressed

BESIDE = (".js", ".d.ts")
"""Suffixes of what is written beside a `.wasm` file."""
STACK = 1 << 16
"""Bytes; the code has no large variables of its own."""
NAMES = ("input", "output", "run")
OPTIONS = (
    "-target", "wasm32-wasi", "-mexec-model=reactor", "-std=c99", "-O2", "-msimd128", "-DNETWORK_LANES=1",
    f"-Wl,-z,stack-size={STACK}", "-Wl,--strip-all", *(f"-Wl,--export={name}" for name in NAMES),
)  # fmt: skip
"""wasi for its libm alone: what a network needs of that is linked in, and nothing of the system is asked for."""
ENTRY = """
network_value input[NETWORK_INPUTS];
float output[NETWORK_OUTPUTS];

void run(void)
{
    static float workspace[NETWORK_WORKSPACE];
    static int whole;

    if (!whole) {
        {calls}
        whole = 1;
    }
    network_run(input, 1, output, workspace);
}
"""
"""What stands behind the C source."""


def need_zig() -> None:
    """Raise one clear error where the compiler is missing."""
    if find_spec("ziglang") is None:
        raise ValueError(
            "WebAssembly needs one more package, the C compiler ziglang, which is not there; "
            "pip install 'pyro-compress[wasm]'"
        )


def write_wasm(network: Compressed, card: Mapping[str, Any], path: Path) -> None:
    """Write a network as WebAssembly, and beside it the module that loads it and its types.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`; an input of type `uint8` is divided by its scale inside, tokens are
            `int32_t`.
        path: of the `.wasm` file.

    Raises:
        ValueError: an operation that is not supported in C, or the compiler fails.
    """
    code, calls = packed(source(network, card, "network"))
    code += UNPACK + ENTRY.replace("{calls}", "\n".join(calls))
    told = json.dumps({**card, "output_shape": plan_of(network).output}, ensure_ascii=False, separators=(",", ":"))
    write_atomically(path, built(code) + section(SECTION, told.encode()))
    kind = {"uint8": "Uint8Array", "int64": "Int32Array"}.get(card["input"]["dtype"], "Float32Array")
    templates = Path(__file__).parent
    module = (templates / "model.js").read_text("utf-8").replace("./model.", f"./{_name(path)}.")
    write_atomically(path.with_suffix(".js"), module.replace("model.wasm", f"{_name(path)}.wasm").encode())
    types = (templates / "model.d.ts").read_text("utf-8").replace("run(values: Float32Array)", f"run(values: {kind})")
    write_atomically(path.with_suffix(".d.ts"), types.replace("model.js", f"{_name(path)}.js").encode())


def _name(path: Path) -> str:
    """The name of a file as a part of addresses."""
    return quote(path.stem, safe="")


def built(code: str) -> bytes:
    """A WebAssembly module of C source.

    Raises:
        ValueError: the compiler is missing or fails.
    """
    need_zig()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        made = Path(place, "network.wasm")
        command = [sys.executable, "-P", "-m", "ziglang", "cc", "-x", "c", *OPTIONS, "-o", str(made), "-"]
        done = subprocess.run(command, input=code, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ValueError(
                f"ziglang does not build the export: {next((x for x in lines if 'error' in x), lines[-1])}"
            )
        return made.read_bytes()


def section(name: str, content: bytes) -> bytes:
    """A custom section of a WebAssembly module."""
    body = _size(len(name.encode())) + name.encode() + content
    return b"\0" + _size(len(body)) + body


def _size(value: int) -> bytes:
    """An unsigned number as LEB128."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
