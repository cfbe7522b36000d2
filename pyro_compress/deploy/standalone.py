"""Runs the network in this folder with numpy alone; with scipy, sparse layers stay sparse.

In a program:

    from run import Runner
    runner = Runner()
    names = [runner.classes[i] for i in runner.logits(images).argmax(1)]

On a command line: `python run.py examples.npy` (or `.npz`, of several inputs by their names) prints a line per example:
the name of a class; numbers in their own units; of several labels those that it has; of a class per position all of
them; of a text the token behind its end; of a reconstruction its root mean squared error; of several outputs all of
them by name, with tabs between them.
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
        """Inputs for the network, `(n, *shape)` in the type and range it was trained on; several inputs by their names.

        Args:
            examples: integers are raw and are divided by the scale, unless they are tokens; floats must be scaled
                already. Of several inputs an array by name, or rows in which they lie one behind the other.

        Raises:
            ValueError: another shape, or values that look raw where scaled ones belong.
        """
        entry = self.card["input"]
        if isinstance(examples, Mapping):
            return _row(examples, entry)
        if not entry.get("inputs"):
            return _taken(examples, entry, "examples")
        if examples.shape[1:] != tuple(entry["shape"]):
            raise ValueError(
                f"an array of shape {examples.shape}; this network takes {_names(entry)}: give a .npz file"
            )
        return _row(_parts(examples, entry), entry)

    def logits(self, examples: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Outputs `(n, classes)` for examples as `prepare` takes them."""
        return self.run(self.prepare(examples))

    def predict(self, examples: np.ndarray | Mapping[str, np.ndarray]) -> list[str]:
        """What the network says of every example, a line each."""
        x = self.prepare(examples)
        outputs = self.run(x)
        if "outputs" not in self.card:
            return READERS[self.card["task"]](outputs, x, self.card)
        told, start = [], 0
        for one in self.card["outputs"]:
            lines = READERS[one["task"]](outputs[:, start : start + one["size"]], x, one)
            told.append([f"{one['name']}={line}" for line in lines])
            start += one["size"]
        return ["\t".join(row) for row in zip(*told, strict=True)]

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
    inputs = entry.get("inputs", [])
    if not inputs:
        raise ValueError("this network takes one array")
    if missing := [one["name"] for one in inputs if one["name"] not in arrays]:
        raise ValueError(f"no array {missing[0]}; this network takes {_names(entry)}")
    rows = []
    for one in inputs:
        array = np.asarray(arrays[one["name"]])
        if one["dtype"] == "float32" and one["scale"] == 1 and array.dtype == np.uint8:
            raise ValueError(f"{one['name']} is uint8; this network takes {one['meaning']}, which were none")
        rows.append(_taken(array, one, one["name"]).reshape(len(array), -1).astype(np.float32))
    if len({len(row) for row in rows}) > 1:
        counts = [f"{len(row)} examples of {one['name']}" for row, one in zip(rows, inputs, strict=True)]
        raise ValueError(f"{', '.join(counts)}; every input has one row per example")
    return np.concatenate(rows, 1)


def _parts(rows: np.ndarray, entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Several inputs that lie one behind the other, by name, each in its own type."""
    sizes = [int(np.prod(one["shape"])) for one in entry["inputs"]]
    pieces = np.split(rows, np.cumsum(sizes)[:-1], 1)
    return {
        one["name"]: piece.reshape(len(rows), *one["shape"]).astype(one["dtype"])
        for one, piece in zip(entry["inputs"], pieces, strict=True)
    }


def _names(entry: dict[str, Any]) -> str:
    return ", ".join(one["name"] for one in entry["inputs"])


def _taken(array: np.ndarray, entry: dict[str, Any], what: str) -> np.ndarray:
    """Examples of one input, in the type and range that the network was trained on."""
    shape, scale, within = tuple(entry["shape"]), entry["scale"], entry["range"]
    if array.shape[1:] != shape:
        raise ValueError(f"{what} of shape {array.shape[1:]}; this network takes (n, *{shape})")
    if array.dtype.kind not in ("biuf" if entry["dtype"] == "float32" else "biu"):
        raise ValueError(f"{what} are {array.dtype}; this network takes {entry['meaning']}")
    if entry["dtype"] != "float32":
        if within and array.size and not within[0] <= array.min() <= array.max() <= within[1]:
            told = f"{what}: numbers from {int(array.min())} to {int(array.max())}"
            raise ValueError(f"{told}; this network takes {entry['meaning']}")
        return array.astype(entry["dtype"])
    x = array.astype(np.float32)
    if scale != 1 and array.dtype.kind in "iu":
        x /= np.float32(scale)
    if scale != 1 and x.size and not (0 <= x.min() and x.max() <= 1):
        raise ValueError(
            f"{what}: values from {array.min():g} to {array.max():g}; this network takes integers from 0 to {scale:g}, "
            "or floats already divided by that"
        )
    return x


def _class(outputs: np.ndarray, x: np.ndarray, about: dict[str, Any]) -> list[str]:
    return [about["classes"][i] for i in outputs.argmax(1)]


def _labels(outputs: np.ndarray, x: np.ndarray, about: dict[str, Any]) -> list[str]:
    """Those whose probability is above one half."""
    return [";".join(about["classes"][i] for i in np.flatnonzero(row > 0)) for row in outputs]


def _numbers(outputs: np.ndarray, x: np.ndarray, about: dict[str, Any]) -> list[str]:
    means, stds = (np.array([target[key] for target in about["targets"]]) for key in ("mean", "std"))
    return [" ".join(f"{value:.7g}" for value in row) for row in outputs * stds + means]


def _places(outputs: np.ndarray, x: np.ndarray, about: dict[str, Any]) -> list[str]:
    """The class of every position."""
    return [" ".join(about["classes"][i] for i in row.ravel()) for row in outputs.argmax(1)]


def _next_token(outputs: np.ndarray, x: np.ndarray, about: dict[str, Any]) -> list[str]:
    """Behind the last token of every sequence that is no padding."""
    last = ((x != about.get("pad", -1)) * np.arange(x.shape[1])).max(1)
    return [about["classes"][row[:, place].argmax()] for row, place in zip(outputs, last, strict=True)]


def _error(outputs: np.ndarray, x: np.ndarray, about: dict[str, Any]) -> list[str]:
    """Root mean squared error of a reconstruction."""
    gaps = (outputs.astype(np.float64) - x).reshape(len(x), -1)
    return [f"{gap:.7g}" for gap in np.sqrt((gaps**2).mean(1))]


READERS: dict[str, Callable[[np.ndarray, np.ndarray, dict[str, Any]], list[str]]] = {
    "classification": _class,
    "regression": _numbers,
    "next-token": _next_token,
    "tagging": _places,
    "segmentation": _places,
    "multi-label": _labels,
    "reconstruction": _error,
}
"""Task -> (outputs, inputs, names and units) -> a line per example."""


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
    """Print what the network says of every example in a .npy or .npz file."""
    if len(sys.argv) != 2:
        print("usage: python run.py examples.npy (or .npz)", file=sys.stderr)
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
