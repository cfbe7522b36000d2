"""Says what an exported network says of examples: ONNX Runtime and numpy, neither torch nor pyro-compress.

    python onnx_runtime.py model.onnx images.npy

Several inputs come as a .npz file with an array for each. The model says itself what it takes and what its outputs are;
the input's name and type keep raw pixels and scaled ones apart.
"""

import json
import sys
from collections.abc import Callable

import numpy as np
import onnxruntime


def load(path: str) -> tuple[onnxruntime.InferenceSession, dict]:
    """A session on one thread, and what the model says about itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    return session, {key: json.loads(value) for key, value in metadata.items()}


def prepare(examples: np.ndarray, entry: dict, several: bool = False) -> np.ndarray:
    """Examples as an input takes them: integers are raw, unless they are tokens; floats must be scaled already."""
    name, takes = entry["name"] if several else "examples", f"this model takes {entry['meaning']}"
    if examples.shape[1:] != tuple(entry["shape"]):
        raise ValueError(f"{name} of shape {examples.shape}; this model takes (n, *{tuple(entry['shape'])})")
    raw = np.issubdtype(examples.dtype, np.integer)
    if entry["dtype"] != "float32" and not (raw or examples.dtype == bool):
        raise ValueError(f"{name} are {examples.dtype}; {takes}")
    if several and entry["dtype"] == "float32" and entry["scale"] == 1 and examples.dtype == np.uint8:
        raise ValueError(f"{name} are bytes; {takes}, which were none")
    x = examples if entry["dtype"] != "float32" else examples.astype(np.float32)
    if raw and entry["dtype"] == "float32":
        x = x / np.float32(entry["scale"])
    if entry["range"] and x.size and not entry["range"][0] <= x.min() <= x.max() <= entry["range"][1]:
        raise ValueError(f"{name} have values from {examples.min():g} to {examples.max():g}; {takes}")
    return x.astype(entry["dtype"])


def feeds(examples: np.ndarray | dict, entry: dict) -> dict[str, np.ndarray]:
    """What a session is given: an array per input."""
    if "inputs" not in entry:
        if isinstance(examples, dict):
            raise ValueError("this model takes one array: give a .npy file")
        return {entry["name"]: prepare(examples, entry)}
    names = [one["name"] for one in entry["inputs"]]
    if not isinstance(examples, dict) or not set(names) <= set(examples):
        raise ValueError(f"this model takes {', '.join(names)}: give a .npz file with these arrays")
    return {one["name"]: prepare(examples[one["name"]], one, True) for one in entry["inputs"]}


def one_class(outputs: np.ndarray, x: np.ndarray, about: dict) -> list[str]:
    """The class with the largest output."""
    return [about["classes"][i] for i in outputs.argmax(1)]


def labels(outputs: np.ndarray, x: np.ndarray, about: dict) -> list[str]:
    """Every label whose probability is above one half; often none."""
    return [";".join(about["classes"][i] for i in np.flatnonzero(row > 0)) for row in outputs]


def numbers(outputs: np.ndarray, x: np.ndarray, about: dict) -> list[str]:
    """Targets in their own units."""
    means, stds = (np.array([target[key] for target in about["targets"]]) for key in ("mean", "std"))
    return [" ".join(f"{value:.7g}" for value in row) for row in outputs * stds + means]


def places(outputs: np.ndarray, x: np.ndarray, about: dict) -> list[str]:
    """The class of every position."""
    return [" ".join(about["classes"][i] for i in row.ravel()) for row in outputs.argmax(1)]


def next_token(outputs: np.ndarray, x: np.ndarray, about: dict) -> list[str]:
    """The token behind the last one that is no padding."""
    last = ((x != about.get("pad", -1)) * np.arange(x.shape[1])).max(1)
    return [about["classes"][row[:, place].argmax()] for row, place in zip(outputs, last, strict=True)]


def error(outputs: np.ndarray, x: np.ndarray, about: dict) -> list[str]:
    """Root mean squared error of a reconstruction."""
    x = x / np.float32(about["input"]["scale"]) if x.dtype == np.uint8 else x
    gaps = (outputs.astype(np.float64) - x).reshape(len(x), -1)
    return [f"{gap:.7g}" for gap in np.sqrt((gaps**2).mean(1))]


READERS: dict[str, Callable[[np.ndarray, np.ndarray, dict], list[str]]] = {
    "classification": one_class,
    "regression": numbers,
    "next-token": next_token,
    "tagging": places,
    "segmentation": places,
    "multi-label": labels,
    "reconstruction": error,
}


def said(session: onnxruntime.InferenceSession, about: dict, examples: np.ndarray | dict) -> list[str]:
    """A line per example; of several outputs all of them by name, with tabs between them."""
    given = feeds(examples, about["input"])
    x = next(iter(given.values()))
    if "outputs" in about:
        found = session.run([one["name"] for one in about["outputs"]], given)
        told = [
            [f"{one['name']}={line}" for line in READERS[one["task"]](part, x, one)]
            for one, part in zip(about["outputs"], found, strict=True)
        ]
        return ["\t".join(row) for row in zip(*told, strict=True)]
    return READERS[about.get("task", "classification")](session.run(None, given)[0], x, about)


def main() -> None:
    """Print what the network says of every example."""
    if len(sys.argv) != 3:
        sys.exit("usage: python onnx_runtime.py model.onnx examples.npy (or .npz)")
    session, about = load(sys.argv[1])
    loaded = np.load(sys.argv[2], allow_pickle=False)
    try:
        print("\n".join(said(session, about, loaded if isinstance(loaded, np.ndarray) else dict(loaded))))
    except ValueError as reason:
        sys.exit(f"error: {reason}")


if __name__ == "__main__":
    main()
