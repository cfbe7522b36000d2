"""What the programs here share: settings come as lines of JSON, coded tensors go as a file, memory is told."""

import json
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = Path(__file__).parents[2] / "pyro_compress" / "deploy" / "memory.py"
Arrays = dict[str, np.ndarray]


def serve(code: Callable[[Arrays, Any], Arrays]) -> None:
    """Code the tensors of the first file named in the arguments into the second, once per line of the input.

    For each it prints `coded`, the peak memory of this process in MiB, what of it and how many CPU seconds came after
    the imports.
    """
    memory = runpy.run_path(str(MEMORY))
    before, after = sys.argv[1:]
    given, start, worked = dict(np.load(before)), memory["high_water_from_now"](), time.process_time()
    for line in sys.stdin:
        np.savez(after, **code(given, json.loads(line)))
        peak = memory["high_water_mib"]()
        print("coded", peak, peak - start, time.process_time() - worked, flush=True)
