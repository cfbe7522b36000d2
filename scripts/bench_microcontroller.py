"""Flash, RAM, stack and instructions of integer C on emulated microcontrollers, beside the same network in floats.

    python scripts/bench_microcontroller.py FILE.pcn... --data-dir data [--json docs/results/microcontroller.json]

Every file is exported with and without `--integer`, compiled for processors without a floating-point unit and run in
QEMU, which counts instructions; integers are held against those of this machine to the bit. A network of linear layers
is also written by emlearn (`pip install emlearn`), where that is there. Flash and RAM are those of what is linked with
the network, the compiler's arithmetic included. `--smoke` does all of it for a tiny network.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from bare_metal.machines import MACHINES, STRICT, Machine, compiled, linked, missing, run, sized

from pyro_compress.atomic import write_atomically
from pyro_compress.cli.commands import run_script
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.data.splits import load_splits, preprocessing_of
from pyro_compress.deploy.export import export
from pyro_compress.deploy.integer.library import IntegerLibrary
from pyro_compress.pcn import file, runner
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig, Goal
from pyro_compress.settings.export import ExportConfig
from pyro_compress.studies.tables import markdown_table
from pyro_compress.types import Compressed

EXAMPLES = 10
DECLARED = """#include <stdint.h>
#define NETWORK_OUTPUTS {outputs}
void network_run_int8(const int8_t *input, int8_t *output);
#ifndef NETWORK_HEADER
{code}
#endif
"""
LARGEST = """
int32_t best = 0;
for (int32_t i = 1; i < NETWORK_OUTPUTS; i++)
    best = y[i] > y[best] ? i : best;
for (int32_t i = 0; i < NETWORK_OUTPUTS; i++)
    output[i] = i == best;
}"""
FLOATS = """#include "plain.c"
void network_run_int8(const int8_t *input, int8_t *output)
{
static float y[NETWORK_OUTPUTS], workspace[PLAIN_WORKSPACE];
plain_run((const plain_value *)input, 1, y, workspace);"""
EMLEARN = """
void network_run_int8(const int8_t *input, int8_t *output)
{
static float x[%d], y[NETWORK_OUTPUTS];
for (int32_t i = 0; i < %d; i++)
    x[i] = (float)((const uint8_t *)input)[i] / %.1ff;
eml_regress(x, %d, y, NETWORK_OUTPUTS);"""
"""Both are given bytes of an image, and say which output is the largest."""


def measured(machine: Machine, source: Path, codes: np.ndarray, options: tuple[str, ...], level: str) -> dict:
    """Numbers of one program, and what it answered."""
    with tempfile.TemporaryDirectory() as place:
        built = compiled(machine, source, Path(place), level, options)
        ran = run(machine, linked(machine, built, source, codes, Path(place)))
        flash, ram = sized(machine, built, Path(place))
    told = {"flash": flash, "ram": ram, "stack": int(ran.stack.max()), "instructions": round(ran.instructions.mean())}
    return told | {"outputs": ran.outputs}


def in_floats(network: Compressed, path: Path, folder: Path, data_dir: str) -> Path:
    """The same network in the C of floats, one example at a time."""
    export(path, folder / "plain.c", ExportConfig(raw=True), data_dir=data_dir, force=True)
    return wrapped(network, FLOATS, folder)


def by_emlearn(network: Compressed, folder: Path) -> Path:
    """A network of linear layers with ReLU between them, in the C of emlearn."""
    from emlearn import net

    layers = [node for node in network.graph.nodes if node.op == "linear"]
    weights, biases = (
        [file.dense(network.tensors[node.parameters[role]]) for node in layers] for role in ("weight", "bias")
    )
    functions = ["relu"] * (len(layers) - 1) + ["identity"]
    code = net.c_generate_net_loadable(functions, [one.T for one in weights], biases, "eml")
    size = weights[0].shape[1]
    return wrapped(network, code + EMLEARN % (size, size, preprocessing_of(network.meta).scale, size), folder)


def wrapped(network: Compressed, code: str, folder: Path) -> Path:
    """Code as what a microcontroller runs."""
    outputs = runner.run(network, np.zeros((1, *network.graph.input_shape), np.float32)).size
    path = folder / "network.c"
    path.write_text(DECLARED.format(outputs=outputs, code=code + LARGEST))
    return path


def is_dense(network: Compressed) -> bool:
    """Whether emlearn has all that a network is made of."""
    return {node.op for node in network.graph.nodes} <= {"input", "reshape", "linear", "relu", "identity"}


def programs(path: Path, data_dir: str, folder: Path) -> list[tuple[str, Path, np.ndarray, np.ndarray, dict, tuple]]:
    """What is measured: name, file, examples, what is to come out, what else is known, options of the compiler."""
    network = file.read(path)
    exported = export(path, folder / "network.c", ExportConfig(integer=True), data_dir=data_dir, force=True)
    library = IntegerLibrary(folder / "network.c")
    splits = load_splits(str(network.meta["data"]), data_dir, network.meta.get("validation"))
    x = splits.validation.x[:EXAMPLES].numpy()
    raw = np.rint(x * splits.scale).astype(np.uint8).view(np.int8).reshape(EXAMPLES, -1)
    best = runner.run(network, x).argmax(1)
    wanted = (np.arange(library.outputs) == best[:, None]).astype(np.int8)
    scores = {"test_accuracy": 1 - exported.after.error, "test_accuracy_decoded": 1 - exported.before.error}
    codes, notes = library.codes(x), {"notes": list(exported.notes)}
    found = [("integer C", folder / "network.c", codes, library.run(codes), scores | notes, STRICT)]
    loose = ("-std=c99", "-w", "-ffreestanding", "-DPLAIN_LANES=1", "-ffunction-sections")
    (folder / "floats").mkdir()
    found.append(("C", in_floats(network, path, folder / "floats", data_dir), raw, wanted, scores, loose))
    if is_dense(network) and find_spec("emlearn"):
        (folder / "emlearn").mkdir()
        headers = (*loose, f"-I{Path(str(find_spec('emlearn').origin)).parent}")
        name = f"emlearn {version('emlearn')}"
        found.append((name, by_emlearn(network, folder / "emlearn"), raw, wanted, scores, headers))
    return found


def rows(path: Path, data_dir: str) -> list[dict]:
    """Everything about one file."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for name, source, codes, wanted, known, options in programs(path, data_dir, Path(place)):
            for title, machine in MACHINES.items():
                if missing(machine) or (name != "integer C" and "arm" not in machine.prefix):
                    continue  # only newlib's headers are sure to be where floats are
                for level in ("-O2", "-Os"):
                    told = measured(machine, source, codes, options, level)
                    same = np.array_equal(told.pop("outputs"), wanted)
                    if not same:
                        raise ValueError(f"{path}: {name} on {title} gives other outputs than this machine")
                    about = {"file": path.name, "program": name, "machine": title, "optimized": level}
                    found.append(about | told | known)
                    print(" ".join(str(value) for value in (about | told).values()), flush=True)
    return found


def table(told: list[dict]) -> str:
    """Markdown: a row per program and processor."""
    heads = ["file", "program", "processor", "flash", "RAM", "stack", "instructions", "test accuracy"]
    found = []
    for row in told:
        key = "test_accuracy" if row["program"] == "integer C" else "test_accuracy_decoded"
        numbers = [f"{row[name]:,}" for name in ("flash", "ram", "stack", "instructions")]
        if row["optimized"] == "-O2":
            found.append([row["file"], row["program"], row["machine"], *numbers, f"{100 * row[key]:.2f} %"])
    return markdown_table([heads, *found])


def tiny(folder: Path) -> Path:
    """The file of a small fit of the digits."""
    config = FitConfig(prior="horseshoe", hidden=(12,), epochs=2, limit=200, device="cpu", threads=1)
    found = fit_run(config, folder / "run")
    compress_run(found.posterior, found.splits(), folder / "tiny.pcn", Goal(sparsity=0.5), passes=0)
    return folder / "tiny.pcn"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--data-dir", default=os.environ.get("PYRO_COMPRESS_DATA", ""))
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--smoke", action="store_true", help="a tiny network")
    options = parser.parse_args()
    absent = {name: missing(machine) for name, machine in MACHINES.items()}
    if all(absent.values()):
        raise ValueError(f"nothing to run on: {', '.join(absent.values())} are missing (see bare_metal/machines.py)")
    with tempfile.TemporaryDirectory() as place:
        files = [tiny(Path(place))] if options.smoke else options.files
        found = [row for path in files for row in rows(path, options.data_dir)]
    if options.json:
        made_by = {name: shutil.which(f"{machine.prefix}gcc") for name, machine in MACHINES.items()}
        told = {"rows": found, "compilers": {name: compiler_version(path) for name, path in made_by.items() if path}}
        write_atomically(options.json, (json.dumps(told, indent=1) + "\n").encode())
    print(table(found))


def compiler_version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True).stdout.splitlines()[0]


if __name__ == "__main__":
    run_script(main)
