"""Peak memory of one engine running one network, in a process that does nothing else.

`python -m pyro_compress.deploy.memory ENGINE FILE SHAPE` prints two numbers, in MiB: the peak of the process, and what
of it came after the runtime had been imported.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

RUNTIMES = {
    "torch": "torch",
    "torch CUDA": "torch",
    "ONNX Runtime": "onnxruntime",
    "scipy CSR": "scipy.sparse",
    "C": "ctypes",
    "WebAssembly": "subprocess",
    "C integers": "ctypes",
    "ExecuTorch": "executorch.runtime",
    "LiteRT": "ai_edge_litert.interpreter",
}
"""What each engine must import whatever it runs."""


def peak_memory(engine: str, path: Path, shape: tuple[int, ...], kind: str = "float32") -> tuple[float, float] | None:
    """Peak of a fresh process and the part behind the import, in MiB; None where it cannot be measured.

    Args:
        engine: name in `ENGINES`.
        path: the exported network.
        shape: of the batch that it runs.
        kind: type of its values.
    """
    command = [sys.executable, "-P", "-m", __name__, engine, str(path), ",".join(map(str, shape)), kind]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        total, added = done.stdout.split()
        return float(total), float(added)
    except ValueError:
        return None


def high_water_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")  # on Linux getrusage would still count the parent that was forked
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def high_water_from_now() -> float:
    """Resident memory of this process in MiB, from which `high_water_mib` counts anew; off Linux the peak."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return high_water_mib()


def main(engine: str, path: str, shape: str, kind: str) -> None:
    """Load, run a few times, print; what runs in a process of its own tells its memory itself."""
    from pyro_compress.deploy.engines import ENGINES
    from pyro_compress.deploy.wasm.node import Timed

    importlib.import_module(RUNTIMES[engine])
    before = high_water_mib()
    call = ENGINES[engine](Path(path), 1)(np.zeros([int(size) for size in shape.split(",")], kind))
    for _ in range(3):
        call()
    print(*call.memory() if isinstance(call, Timed) else (high_water_mib(), high_water_mib() - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
