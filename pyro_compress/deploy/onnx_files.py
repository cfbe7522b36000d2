"""ONNX files: float32 or 8-bit integer, written and run."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_compress.atomic import write_atomically
from pyro_compress.deploy.engines import feeds, session
from pyro_compress.deploy.onnx_model import build, describe
from pyro_compress.deploy.onnx_torch import build_by_torch, has_kept
from pyro_compress.deploy.refusals import reason
from pyro_compress.types import Compressed

if TYPE_CHECKING:
    import onnx

CALIBRATION = 500
"""Training examples from which static quantisation reads the range of every activation."""
BATCH = 100


def need_onnx() -> None:
    """Raise one clear error where the packages are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ONNX needs two more packages ({error}); pip install 'pyro-compress[onnx]'") from error


def write_onnx(
    network: Compressed, card: Mapping[str, Any], path: Path, integers: bool = True, crop: bool = True
) -> None:
    """Write a model that computes in float32; arguments as for `build`."""
    model = build_by_torch(network, card) if has_kept(network) else build(network, card, integers, crop)
    write_atomically(path, model.SerializeToString(deterministic=True))


def write_int8(
    network: Compressed, card: Mapping[str, Any], path: Path, examples: np.ndarray, dynamic: bool = False
) -> None:
    """Write a model that computes in 8-bit integers, quantised by ONNX Runtime.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`.
        path: where to.
        examples: `(n, *input_shape)`, as the model takes them, for calibration.
        dynamic: find the range of activations at run time instead.
    """
    import onnx
    from onnxruntime import quantization

    model = build_by_torch(network, card) if has_kept(network) else build(network, card, integers=False)
    option = "--int8-dynamic" if dynamic else "--int8"
    with tempfile.TemporaryDirectory() as folder, _quantising(option):
        inside, outside = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save_model(model, inside)
        # 7-bit weights: without VNNI instructions the sum of two 8-bit products overflows, silently
        common = {"weight_type": quantization.QuantType.QInt8, "reduce_range": True}
        if dynamic:
            quantization.quantize_dynamic(inside, outside, **common)
        else:
            reader = _reader(card["input"], examples)
            quantization.quantize_static(inside, outside, reader, per_channel=True, **common)
        model = onnx.load_model(outside)
        describe(model, card)
        onnx.checker.check_model(model, full_check=True)
    write_atomically(path, model.SerializeToString(deterministic=True))


def quantized_layers(
    model: onnx.ModelProto, nodes: Sequence[str], entry: Mapping[str, Any], examples: np.ndarray
) -> onnx.ModelProto:
    """A model with 8-bit integers for the nodes of these names alone, weights per output channel.

    Args:
        model: in floats.
        nodes: names.
        entry: `input` of the card.
        examples: as the model takes them, for calibration.
    """
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _quantising("--int4"):
        inside, outside = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save_model(model, inside)
        quantization.quantize_static(
            inside, outside, _reader(entry, examples), per_channel=True, reduce_range=True,
            weight_type=quantization.QuantType.QInt8, nodes_to_quantize=list(nodes),
        )  # fmt: skip
        return onnx.load_model(outside)


def _reader(entry: Mapping[str, Any], examples: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts: Iterator[np.ndarray] = iter(np.split(examples, range(BATCH, len(examples), BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else feeds(part, entry)

    return Reader()


@contextmanager
def _quantising(option: str) -> Iterator[None]:
    """Without advice of the quantiser to preprocess the model, which is clean; what it refuses is one line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the quantiser says of an operation
        message = f"ONNX Runtime's quantiser refuses the network: {reason(error)}; export without {option}"
        raise ValueError(message) from error
    finally:
        logging.disable(before)


def load_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The model as a function of inputs in the range the network was trained on; a raw one is given raw integers."""
    with _running():
        loaded = session(path)
    entry = json.loads(loaded.get_modelmeta().custom_metadata_map["input"])

    def predict(x: np.ndarray) -> np.ndarray:
        with _running():
            logits: np.ndarray = loaded.run(None, feeds(fed(x, entry), entry))[0]
        return logits

    return predict


@contextmanager
def _running() -> Iterator[None]:
    """What ONNX Runtime says of a model, which names the node that it cannot run, as one line."""
    try:
        yield
    except Exception as error:
        message = f"ONNX Runtime does not run the export: {reason(error)}; export to .pt2 (torch)"
        raise ValueError(message) from error


def fed(x: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """Inputs as a model with this card entry takes them, from values in the range the network was trained on."""
    if entry["dtype"] == "uint8":
        return np.rint(x * entry["scale"]).astype(np.uint8)
    return x
