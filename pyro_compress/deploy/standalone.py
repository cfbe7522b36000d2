"""Runs the network in this folder with numpy alone; with scipy, sparse layers stay sparse.

In a program:

    from run import Runner
    runner = Runner()
    names = [runner.classes[i] for i in runner.logits(images).argmax(1)]

On a command line: `python run.py examples.npy` prints one class name (or the targets) per example.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_compress.graph.operations.row import Parameters
from pyro_compress.graph.operations.table import OPERATIONS


class Runner:
    """A network read from a folder.

    Attributes:
        card: what `network.json` says: origin, accuracy, input, classes.
        classes: names in the order of the outputs.
    """

    def __init__(self, folder: str | Path | None = None):
        folder = Path(__file__).parent if folder is None else Path(folder)
        self.card: dict[str, Any] = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        self.classes: list[str] = self.card["classes"]
        tensors = {name: _tensor(folder, self.card, name) for name in self.card["tensors"]}
        self._steps = [
            (
                self._function(node),
                tuple(node["inputs"]),
                {role: tensors[name] for role, name in node["parameters"].items()},
                node["attributes"],
            )
            for node in self.card["nodes"]
        ]
        last = {i: index for index, step in enumerate(self._steps, 1) for i in step[1]}
        self._finished: list[list[int]] = [[] for _ in range(len(self._steps) + 1)]
        for i, index in last.items():
            self._finished[index].append(i)

    def _function(self, node: dict[str, Any]) -> Callable[..., np.ndarray]:
        return _sparse_linear if node["parameters"].get("weight") in self.card["sparse"] else OPERATIONS[node["op"]].run

    def prepare(self, examples: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Inputs for the network, `(n, *shape)` float32 in the range it was trained on; several inputs by their names.

        Args:
            examples: integers are raw and are divided by the scale; floats must be scaled already.

        Raises:
            ValueError: another shape, or values that look raw where scaled ones belong.
        """
        entry = self.card["input"]
        if isinstance(examples, Mapping):
            examples = _row(examples, entry)
        shape, scale = tuple(entry["shape"]), entry["scale"]
        if examples.shape[1:] != shape:
            raise ValueError(f"examples of shape {examples.shape[1:]}; this network takes (n, *{shape})")
        x = examples.astype(np.float32)
        if scale != 1 and np.issubdtype(examples.dtype, np.integer):
            x /= np.float32(scale)
        if scale != 1 and x.size and not (0 <= x.min() and x.max() <= 1):
            raise ValueError(
                f"values from {examples.min():g} to {examples.max():g}; this network takes integers from 0 to "
                f"{scale:g}, or floats already divided by that"
            )
        return x

    def logits(self, examples: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Outputs `(n, classes)` for examples as `prepare` takes them."""
        return self.run(self.prepare(examples))

    def predict(self, examples: np.ndarray | Mapping[str, np.ndarray]) -> list[str]:
        """What the network says of every example: the name of a class, or its targets in their own units."""
        outputs = self.logits(examples)
        if "targets" not in self.card:
            return [self.classes[i] for i in outputs.argmax(1)]
        means, stds = (np.array([target[key] for target in self.card["targets"]]) for key in ("mean", "std"))
        return [" ".join(f"{value:.7g}" for value in row) for row in outputs * stds + means]

    def run(self, x: np.ndarray) -> np.ndarray:
        """Outputs for prepared inputs."""
        values = {0: x}
        for index, (function, inputs, parameters, attributes) in enumerate(self._steps, 1):
            values[index] = function(*[values[i] for i in inputs], parameters, attributes)
            for i in self._finished[index]:
                del values[i]
        return values[len(self._steps)]


def _row(arrays: Mapping[str, np.ndarray], entry: dict[str, Any]) -> np.ndarray:
    """Several inputs, `(n, *shape)` by name, one behind the other."""
    names = [one["name"] for one in entry.get("inputs", [])]
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"no array {missing[0]}; this network takes {', '.join(names)}")
    if not names:
        raise ValueError("this network takes one array")
    rows = []
    for one in entry["inputs"]:
        array = np.asarray(arrays[one["name"]])
        if array.shape[1:] != tuple(one["shape"]):
            raise ValueError(f"examples of {one['name']} of shape {array.shape[1:]}; wanted is (n, *{one['shape']})")
        rows.append(array.reshape(len(array), -1).astype(np.float32))
    if len({len(row) for row in rows}) > 1:
        counts = [f"{len(row)} examples of {name}" for row, name in zip(rows, names, strict=True)]
        raise ValueError(f"{', '.join(counts)}; every input has one row per example")
    return np.concatenate(rows, 1)


def _tensor(folder: Path, card: dict[str, Any], name: str) -> Any:
    if name not in card["sparse"]:
        return np.load(folder / f"{name}.npy", allow_pickle=False)
    parts = [np.load(folder / f"{name}.{part}.npy", allow_pickle=False) for part in ("data", "indices", "indptr")]
    shape = tuple(card["tensors"][name])
    try:
        from scipy.sparse import csr_matrix
    except ImportError:
        values = np.zeros(shape, np.float32)
        values[np.repeat(np.arange(shape[0]), np.diff(parts[2])), parts[1]] = parts[0]
        return values
    return csr_matrix(tuple(parts), shape=shape)


def _sparse_linear(x: np.ndarray, p: Parameters, a: dict[str, Any]) -> np.ndarray:
    rows = x.reshape(-1, x.shape[-1])
    y = (p["weight"] @ rows.T).T
    y = y + p["bias"] if "bias" in p else y
    return y.reshape(*x.shape[:-1], y.shape[-1])


def main() -> int:
    """Print the class (or the targets) of every example in a .npy file."""
    if len(sys.argv) != 2:
        print("usage: python run.py examples.npy", file=sys.stderr)
        return 2
    runner = Runner()
    try:
        loaded = np.load(sys.argv[1], allow_pickle=False)
        predicted = runner.predict(loaded if isinstance(loaded, np.ndarray) else dict(loaded))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(predicted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
