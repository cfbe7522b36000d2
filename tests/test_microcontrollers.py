"""Integer C on emulated microcontrollers: the host's integers to the bit, and no float in what compilers make of it."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bare_metal.machines import MACHINES, compiled, disassembled, linked, missing, run
from test_c_export import problem
from test_integer_c import LENET_5, RECORDS, drawn, needs_compiler, stepped

from pyro_compress.deploy.integer.library import IntegerLibrary
from pyro_compress.deploy.integer.source import program
from pyro_compress.pcn import file
from pyro_compress.types import Compressed

NETWORKS = ("lenet", "residual", "gated", "conv1d")
"""Sparse and pooled; with borders, sums and means; with tables and products; a series."""
FLOATS = re.compile(
    r"__aeabi_[fd]|__(add|sub|mul|div|float|fix)\w*[sd]f|\t(v\w+\.f|vmov|vldr|f(lw|sw|ld|sd|add|mul|mv)\b)"
)
LIBRARY = {
    "__aeabi_lmul",
    "__aeabi_llsl",
    "__aeabi_lasr",
    "__ashldi3",
    "__ashrdi3",
    "__muldi3",
    "memcpy",
    "memset",
    "memmove",
}
"""What the compiler's own library may be asked for: 64-bit products and shifts, copies."""


def needs(name: str, emulator: bool = True) -> None:
    if absent := missing(MACHINES[name], emulator):
        pytest.skip(f"needs {absent}")


def network(name: str) -> Compressed:
    return file.read(RECORDS / LENET_5) if name == "lenet" else problem(name, True)


def written(name: str, folder: Path) -> tuple[Path, np.ndarray]:
    """The C file of a network, and examples for it."""
    given = network(name)
    steps = stepped(given, x := drawn(given, 4))
    (path := folder / "network.c").write_text(program(steps, "network").code)
    return path, steps[0].grids[0].codes(x)


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_hosts_integers_to_the_bit(machine: str, name: str, tmp_path: Path) -> None:
    needs(machine)
    source, codes = written(name, tmp_path)
    built = compiled(MACHINES[machine], source, tmp_path)
    found = run(MACHINES[machine], linked(MACHINES[machine], built, source, codes, tmp_path))
    assert np.array_equal(found.outputs, IntegerLibrary(source, ("-O1",)).run(codes.reshape(len(codes), -1)))
    assert found.stack.max() < 512
    assert np.ptp(found.instructions) < 0.1 * found.instructions.mean()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("machine", MACHINES)
def test_no_floats(machine: str, name: str, tmp_path: Path) -> None:
    needs(machine, emulator=False)
    source, _ = written(name, tmp_path)
    for optimised in ("-Os", "-O3"):
        built = compiled(MACHINES[machine], source, tmp_path, optimised)
        assert not FLOATS.search(disassembled(MACHINES[machine], built))
        command = [f"{MACHINES[machine].prefix}nm", "-u", str(built)]
        asked = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()) - {"U"}
        assert asked <= LIBRARY


def test_floats_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "float.c").write_text("float f(float x)\n{\n    return x * 2.5f + 1;\n}\n")
    for name, machine in MACHINES.items():
        needs(name, emulator=False)
        assert FLOATS.search(disassembled(machine, compiled(machine, tmp_path / "float.c", tmp_path)))


@pytest.mark.parametrize("name", MACHINES)
def test_instructions_are_counted(name: str, tmp_path: Path) -> None:
    """A thousand more of them are a thousand more, but for what a tick of the counter leaves open."""
    needs(name)
    machine, counts = MACHINES[name], []
    for more in (0, 1000):
        (tmp_path / "network.c").write_text(
            "#include <stdint.h>\n#define NETWORK_OUTPUTS 1\nvoid network_run_int8(const int8_t *x, int8_t *y);\n"
            "#ifndef NETWORK_HEADER\nvoid network_run_int8(const int8_t *x, int8_t *y)\n{\n    *y = *x;\n"
            f'    __asm__ volatile(".rept {more}\\nnop\\n.endr\\n");\n}}\n#endif\n'
        )
        built = tmp_path / "network.o"
        options = [*machine.options, "-O2", "-ffreestanding", "-c", str(tmp_path / "network.c"), "-o", str(built)]
        subprocess.run([f"{machine.prefix}gcc", *options], check=True)
        found = run(machine, linked(machine, built, tmp_path / "network.c", np.array([[5], [-7]], np.int8), tmp_path))
        assert found.outputs.tolist() == [[5], [-7]]
        counts.append(found.instructions[0])
    assert abs(counts[1] - counts[0] - 1000) <= 5
