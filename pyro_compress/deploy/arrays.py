"""A folder of plain numpy arrays with a runner that needs numpy alone.

network.json   the card, and the operations in order
NAME.npy       one array per tensor; a sparse one as NAME.data.npy, NAME.indices.npy, NAME.indptr.npy
run.py         loads the folder, checks what it is fed, runs it: `python run.py examples.npy`
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pyro_compress.atomic import write_atomically
from pyro_compress.deploy import standalone
from pyro_compress.deploy.program import program
from pyro_compress.deploy.refusals import refuse_kept
from pyro_compress.foreign import ordinary
from pyro_compress.pcn.file import dense
from pyro_compress.pcn.names import check_names
from pyro_compress.types import Compressed

CSR_PAYS = 0.1
"""Density below which a sparse product was faster than a dense one, at every batch size."""
SMALLEST = 4096
"""Matrices of fewer values are never worth a sparse product."""


def write_folder(
    network: Compressed, card: Mapping[str, Any], folder: Path, sparse_below: float = 0.0, smallest: int = SMALLEST
) -> list[str]:
    """Write the folder, which must exist; returns the names of the tensors that became sparse.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`.
        folder: where to.
        sparse_below: weights of linear layers with a smaller share of non-zeros are stored as CSR.
        smallest: matrices of fewer values stay dense.
    """
    refuse_kept(network.graph, "numpy")
    check_names(network.tensors)  # they become names of files
    linear = {node.parameters["weight"] for node in network.graph.nodes if node.op == "linear"}
    sparse = []
    for name, tensor in network.tensors.items():
        values = dense(tensor)
        if name in linear and values.size >= smallest and np.count_nonzero(values) < sparse_below * values.size:
            sparse.append(name)
            for part, array in _csr(values).items():
                _save(folder / f"{name}.{part}.npy", array)
        else:
            _save(folder / f"{name}.npy", values)
    nodes = [asdict(node) for node in network.graph.nodes[1:]]
    shapes = {name: list(dense(tensor).shape) for name, tensor in network.tensors.items()}
    document = {**card, "nodes": nodes, "tensors": shapes, "sparse": sparse}
    write_atomically(folder / "run.py", program(node.op for node in network.graph.nodes).encode())
    write_atomically(folder / "network.json", (json.dumps(document, indent=1) + "\n").encode())
    return sparse


def _save(path: Path, values: np.ndarray) -> None:
    file = io.BytesIO()  # where a disk is full numpy says only how much is missing
    np.save(file, values)
    write_atomically(path, file.getvalue())


def _csr(values: np.ndarray) -> dict[str, np.ndarray]:
    rows, columns = np.nonzero(values)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(values)))])
    return {"data": values[rows, columns], "indices": columns.astype(np.int32), "indptr": indptr.astype(np.int32)}


def _operations(folder: Path) -> list[str]:
    """Operations of a folder's network; none where it does not say so."""
    try:
        card = json.loads(ordinary(folder / "network.json").read_text(encoding="utf-8"))
        return [str(node["op"]) for node in card["nodes"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def load_runner(folder: Path) -> standalone.Runner:
    """The folder's network, run by the very `run.py` that lies in it.

    Raises:
        ValueError: it is not the one that this version writes: no other code is run.
    """
    path = folder / "run.py"
    source = path.read_text(encoding="utf-8")
    if source != program(_operations(folder)):
        raise ValueError(f"{path} is not the program that this version writes, and is not run")
    module = ModuleType("pyro_compress_exported_run")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where its dataclasses look for the names of their types
    exec(
        compile(source, path, "exec"), module.__dict__
    )  # what was compared is what runs, and no bytecode is left behind
    runner: standalone.Runner = module.Runner(folder)
    return runner
