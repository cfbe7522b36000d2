"""Classifies images with an exported network: ONNX Runtime and numpy, neither torch nor pyro-compress.

    python onnx_runtime.py model.onnx images.npy

The model says itself what it takes; the input's name and type keep raw pixels and scaled ones apart.
"""

import json
import sys

import numpy as np
import onnxruntime


def load(path: str) -> tuple[onnxruntime.InferenceSession, dict]:
    """A session on one thread, and what the model says about itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    return session, {key: json.loads(value) for key, value in metadata.items()}


def prepare(images: np.ndarray, entry: dict) -> np.ndarray:
    """Images as the model takes them: integers are raw, floats must be scaled already."""
    raw = np.issubdtype(images.dtype, np.integer)
    if entry["dtype"] == "uint8":
        if not raw or images.min() < 0 or images.max() > entry["scale"]:
            raise ValueError(f"this model takes {entry['meaning']}")
        return images.astype(np.uint8)
    x = images.astype(np.float32)
    if raw:
        x /= np.float32(entry["scale"])
    if entry["range"] and not entry["range"][0] <= x.min() <= x.max() <= entry["range"][1]:
        raise ValueError(f"this model takes {entry['meaning']}")
    return x


def main() -> None:
    """Print the class of every image."""
    if len(sys.argv) != 3:
        sys.exit("usage: python onnx_runtime.py model.onnx images.npy")
    session, about = load(sys.argv[1])
    x = prepare(np.load(sys.argv[2], allow_pickle=False), about["input"])
    logits = session.run(None, {about["input"]["name"]: x})[0]
    print("\n".join(about["classes"][i] for i in logits.argmax(1)))


if __name__ == "__main__":
    main()
