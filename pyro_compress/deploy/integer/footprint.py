"""Flash, RAM and stack of an integer program: tables are counted, code and stack asked from a compiler."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pyro_compress.atomic import write_atomically
from pyro_compress.deploy.c.library import compiler

CORTEX = ("arm-none-eabi-gcc", "-mcpu=cortex-m0plus", "-mthumb", "-mfloat-abi=soft")
"""The compiler for the smallest Cortex-M, where there is one."""
FREESTANDING = ("-std=c99", "-O2", "-ffreestanding", "-fno-asynchronous-unwind-tables", "-c")


@dataclass(frozen=True)
class Footprint:
    """What a program takes.

    Attributes:
        tables: bytes of constant arrays.
        code: bytes of machine code; None where no tool tells them. `stack` likewise: of the deepest calls.
        arena: bytes of static memory.
        command: the compiler that code and stack are of.
    """

    tables: int
    code: int | None
    stack: int | None
    arena: int
    command: str

    @property
    def flash(self) -> int:
        """Bytes of tables, and of code where that is known."""
        return self.tables + (self.code or 0)


def footprint(code: str, tables: int, arena: int) -> Footprint:
    """Compile for a Cortex-M0+, or where there is no such compiler for this machine, and look at what comes out."""
    cross = shutil.which(CORTEX[0]) is not None
    command = list(CORTEX) if cross else compiler()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source, built = Path(folder, "network.c"), Path(folder, "network.o")
        write_atomically(source, code.encode())
        built_by = [*command, *FREESTANDING, "-fstack-usage", str(source), "-o", str(built)]
        done = subprocess.run(built_by, capture_output=True, text=True)
        told = " ".join([*command[:2], "-O2"])
        if done.returncode:  # a compiler that does not know one of the options
            return Footprint(tables, None, None, arena, told)
        frames = built.with_suffix(".su")
        stack = _stack(frames.read_text()) if frames.is_file() else None
        return Footprint(tables, _code(built, "arm-none-eabi-size" if cross else "size", tables), stack, arena, told)


def _code(built: Path, size: str, tables: int) -> int | None:
    """Bytes that are neither tables nor memory."""
    if shutil.which(size) is None:
        return None
    done = subprocess.run([size, str(built)], capture_output=True, text=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return max(int(rows[1][0]) - tables, 0) if len(rows) > 1 and rows[0][:1] == ["text"] else None


def _stack(frames: str) -> int:
    """Bytes of the outermost function, of the step that takes most, and of the functions that steps call."""
    rows = [line.split("\t") for line in frames.splitlines()]
    sizes = {row[0].rpartition(":")[2]: int(row[1]) for row in rows}
    steps = [size for name, size in sizes.items() if name.startswith("step")]
    return sum(size for name, size in sizes.items() if not name.startswith("step")) + max(steps, default=0)


def report(found: Footprint, inputs: int, outputs: int) -> list[str]:
    """The same in words."""
    code = "code unknown" if found.code is None else f"{found.code:,} of code"
    deep = "stack unknown" if found.stack is None else f"{found.stack:,} bytes"
    return [
        f"flash     {found.flash:,} bytes: {found.tables:,} of tables, {code} ({found.command})",
        f"RAM       {found.arena:,} bytes of arena; input ({inputs:,}) and output ({outputs:,}) are the caller's",
        f"stack     {deep}",
    ]
