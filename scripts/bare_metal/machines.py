"""Microcontrollers in QEMU: an integer C export is compiled for them, run, and its instructions are counted.

Debian: `apt install gcc-arm-none-eabi qemu-system-arm gcc-riscv64-unknown-elf qemu-system-misc`.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffreestanding", "-fno-builtin")
COUNTED = ("-icount", "shift=4,align=off,sleep=off")
"""Every instruction takes 16 ns of the machine's own time."""


@dataclass(frozen=True)
class Machine:
    """A processor: what compiles for it, and what runs it.

    Attributes:
        prefix: of the compiler's tools.
        options: name the processor.
        start: the file before `main`; `layout`: where things lie.
        emulator: command of QEMU.
    """

    prefix: str
    options: tuple[str, ...]
    start: str
    layout: str
    emulator: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """What a machine made of some examples.

    Attributes:
        outputs: int8, `(n, outputs)`.
        instructions: of each run; `stack` bytes likewise.
    """

    outputs: np.ndarray
    instructions: np.ndarray
    stack: np.ndarray


MPS2 = ("qemu-system-arm", "-M", "mps2-an385", "-semihosting-config", "enable=on,target=native")
VIRT = ("qemu-system-riscv32", "-M", "virt", "-bios", "none")
MACHINES = {
    "Cortex-M0+": Machine("arm-none-eabi-", ("-mcpu=cortex-m0plus", "-mthumb"), "cortex.c", "cortex.ld", MPS2),
    "Cortex-M3": Machine("arm-none-eabi-", ("-mcpu=cortex-m3", "-mthumb"), "cortex.c", "cortex.ld", MPS2),
    "RV32IMC": Machine(
        "riscv64-unknown-elf-", ("-march=rv32imc_zicsr", "-mabi=ilp32", "-mcmodel=medany"), "riscv.c", "riscv.ld", VIRT
    ),
}
"""Cores without a floating-point unit; mps2-an385 is a Cortex-M3, which runs the instructions of a Cortex-M0+ too."""


def missing(machine: Machine, run: bool = True) -> str:
    """The first program that is not there, or an empty string."""
    needed = [f"{machine.prefix}gcc", f"{machine.prefix}objdump", *machine.emulator[: int(run)]]
    return next((name for name in needed if shutil.which(name) is None), "")


def compiled(
    machine: Machine, source: Path, folder: Path, optimised: str = "-O2", options: Sequence[str] = STRICT
) -> Path:
    """An integer C export `network.c` as an object file, with every warning an error."""
    built = folder / "network.o"
    command = [f"{machine.prefix}gcc", *machine.options, *options, optimised, "-c", str(source), "-o", str(built)]
    subprocess.run(command, check=True)
    return built


def linked(machine: Machine, built: Path, source: Path, codes: np.ndarray, folder: Path) -> Path:
    """A program that runs examples `(n, inputs)`, int8, which are part of it."""
    rows = ",\n".join(f"{{{', '.join(map(str, row))}}}" for row in codes.reshape(len(codes), -1).tolist())
    text = f"#include <stdint.h>\n#define EXAMPLES {len(codes)}\n"
    text += f"static const int8_t examples[{len(codes)}][{codes[0].size}] = {{\n{rows}}};\n"
    (folder / "examples.h").write_text(text)
    parts = [str(HERE / "main.c"), str(HERE / machine.start), str(built)]
    program = folder / "program.elf"
    options = [
        "-O1",
        "-ffreestanding",
        f"-I{folder}",
        f"-I{source.parent}",
        f"-I{HERE}",
        "-nostdlib",
        "-nostartfiles",
        "-static",
    ]
    options += ["-Wl,--build-id=none,--no-warn-rwx-segments", "-T", str(HERE / machine.layout)]
    command = [
        f"{machine.prefix}gcc",
        *machine.options,
        "-std=gnu99",
        *options,
        *parts,
        *libraries(machine),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    return program


def run(machine: Machine, program: Path, seconds: float = 300) -> Ran:
    """What it prints, as numbers."""
    command = [*machine.emulator, *COUNTED, "-nographic", "-monitor", "none", "-kernel", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    rows = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    found = np.array([row for row in rows if row and all(re.fullmatch(r"-?\d+", word) for word in row)], np.int64)
    if not len(found):
        raise RuntimeError(f"{machine.emulator[0]} printed no results: {done.stderr or done.stdout}")
    return Ran(found[:, 2:].astype(np.int8), found[:, 0], -(-found[:, 1] // 4) * 4)


def disassembled(machine: Machine, built: Path) -> str:
    """Its instructions, with the names of what they call."""
    command = [f"{machine.prefix}objdump", "-d", "-r", str(built)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def sized(machine: Machine, built: Path, folder: Path) -> tuple[int, int]:
    """Bytes of flash and of RAM of an object file with what it needs of the compiler's and C's own libraries."""
    alone = folder / "alone.elf"
    options = ["-nostartfiles", "-nostdlib", "-static", "-Wl,-e,network_run_int8,--gc-sections,--build-id=none"]
    command = [f"{machine.prefix}gcc", *machine.options, *options, str(built), *libraries(machine), "-o", str(alone)]
    subprocess.run(command, check=True)
    in_flash, in_ram = (
        _sections(machine, alone, ".text", ".rodata", ".data"),
        _sections(machine, built, ".data", ".bss"),
    )
    return in_flash, in_ram


def _sections(machine: Machine, built: Path, *names: str) -> int:
    """Bytes of the sections whose names begin so."""
    command = [f"{machine.prefix}size", "-A", str(built)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(names))


def libraries(machine: Machine) -> list[str]:
    """What floats need of C's library, where it lies beside the compiler."""
    command = [f"{machine.prefix}gcc", *machine.options, "-print-file-name=libm.a"]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() != "libm.a"
    return ["-Wl,--start-group", *(["-lm", "-lc"] if there else []), "-lgcc", "-Wl,--end-group"]
